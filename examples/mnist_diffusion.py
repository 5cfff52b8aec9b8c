"""Denoising diffusion of images, given their class, with classifier-free guidance.

ppl run examples/mnist_diffusion.py --data digits
ppl run examples/mnist_diffusion.py --network.channels 64 128 128 --epochs 100
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from inference import SVI, Fit, averaged, fit, quality, step_bound
from inference.objectives import Denoising, UnitDenoising
from ppl import figures
from ppl.recipe import Result
from ppl_models import Diffusion, datasets
from ppl_models.datasets import Dataset
from ppl_models.datasets.transforms import HiddenClasses, InTurn
from ppl_models.dequantization import Dequantize
from ppl_models.diffusion_samplers import DDIM, Ancestral, interpolate
from ppl_models.networks import TimeMLP, UNet
from ppl_models.noise_schedules import CosineSchedule, LinearSchedule
from ppl_models.predictions import PredictNoise, PredictVelocity

LEVELS = {"digits": 17}  # grey levels; of others 256
GUIDANCE = (0.0, 1.0, 3.0)
SURE = 0.9  # confidence from which a draw counts as recognised


def main(
    *,
    data: str = "mnist",
    network: UNet | TimeMLP = UNet((32, 64, 64)),
    schedule: LinearSchedule | CosineSchedule = CosineSchedule(1000),
    prediction: PredictNoise | PredictVelocity = PredictVelocity(),
    objective: Denoising | UnitDenoising = UnitDenoising(),
    epochs: int = 20,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    num_train: int | None = None,
    num_held_out: int = 200,
    num_draws: int = 500,
    ddim_steps: int = 50,
    seed: int = 0,
) -> dict[str, Result]:
    """A diffusion of images, told their class nine times in ten.

    Because it has also learned to do without, what it sees in noise with the class can be strengthened against what
    it sees without: guidance. What it sees is held within the range of pixels, which a draw of a dense network else
    may leave for good. The bound is of images that are told their class, dequantized, in [-1, 1].

    Parameters
    ----------
    data
        mnist or digits.
    network
        The denoiser.
    schedule
        Variances of the steps.
    prediction
        What the network puts out.
    objective
        The bound, or the squared error with the same weight at every step.
    epochs
        Passes over the data.
    batch_size
        Images in a step.
    learning_rate
        Of Adam; it falls along half a cosine.
    num_train
        Images to learn from; all by default.
    num_held_out
        Images that are bounded, by twice as many runs of the network each as there are steps.
    num_draws
        Images at each guidance that are given to a classifier of the training images.
    ddim_steps
        Steps of DDIM.
    seed
        Of the run.
    """
    grey, levels = Dequantize(LEVELS.get(data, 256), -1.0, 1.0), LEVELS.get(data, 256)
    train, test = datasets.load(data)
    train = _told(train[:num_train], InTurn((grey, HiddenClasses(0.1))))
    test = _told(test.shuffled()[:num_held_out], grey)
    shape, num_classes = train.image_shape, int(train.arrays["y"].max()) + 1
    assert shape is not None
    model = Diffusion(network, schedule, prediction, num_classes=num_classes)
    steps = epochs * -(-len(train) // batch_size)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    )
    algorithm = SVI(model, model.noising, objective, averaged(optimizer, 0.999))
    run = fit(algorithm, train, key=seed, num_epochs=epochs, batch_size=batch_size)

    bound = step_bound(run, test, num_sweeps=2, key=seed)
    row = {
        "nats per image, at least": round(float(bound.rows.mean()), 1),
        "standard error": round(bound.estimate.standard_error, 1),
        "bits per dimension, at most": round(bound.bits_per_dim(test.arrays["x"].shape[1], 2 / levels), 3),
    }
    classes = np.arange(num_draws) % num_classes
    samplers = {
        f"guidance {w:g}" if w else "no guidance": DDIM(ddim_steps, guidance=w, limits=(-1, 1)) for w in GUIDANCE
    }
    draws = {
        name: run.generate(num_draws, given={"y": classes}, key=seed, sampler=sampler)["x"]
        for name, sampler in samplers.items()
    }
    images, held_out = (2 * np.asarray(part.arrays["x"]) - 1 for part in (train, test))
    features = quality.classifier_features(images, train.arrays["y"], seed=seed)
    ancestral = run.generate(
        40, given={"y": np.arange(40) % num_classes}, key=seed, expected=True, sampler=Ancestral(limits=(-1, 1))
    )
    shown = {"data": six_of_each(images, train.arrays["y"])}
    shown |= {name: six_of_each(rows, classes) for name, rows in draws.items()}
    return {
        f"{len(test):,} held-out images of {test.name}, told their class": [row],
        f"{num_draws:,} draws to a classifier of the training images": [
            recognised("held-out images", features, held_out, test.arrays["y"]),
            *(recognised(name, features, rows, classes) for name, rows in draws.items()),
        ],
        "Draws": (
            figures.image_panels({"data": held_out[:40], "ancestral": ancestral["x"]}, shape, columns=8, across=2),
            f"Images, and draws of the model in all {model.num_evaluations} steps, classes in turn.",
        ),
        "Guidance": (
            figures.image_panels(shown, shape, columns=6, across=4),
            f"A class a line: images, and draws by {ddim_steps} steps of DDIM from the same noise.",
        ),
        "Through the latent": (through_the_latent(run, test, ddim_steps, shape), _LATENT),
        "Terms of the bound": terms(bound.by_step),
        "Diffusion": run,
    }


_LATENT = (
    "Held-out images; the same from their latents x_T; and images from points on the arc between the latents of the "
    "first and of the last of them, told the class of the nearer."
)


def six_of_each(rows: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The first six rows of each class."""
    return np.concatenate([rows[classes == c][:6] for c in np.unique(classes)])


def recognised(name: str, features: Any, rows: np.ndarray, told: np.ndarray) -> dict[str, Any]:
    """How sure the classifier is of rows, how often it says the class that they were told, and of how many classes."""
    sure, said = features.confidence(rows) > SURE, features.classify(rows)
    return {
        "": name,
        f"confidence above {SURE:g}": f"{sure.mean():.1%}",
        "taken for their class": f"{(said == told).mean():.1%}",
        "classes": len(np.unique(said[sure])),
    }


def _told(data: Dataset, transform: Any) -> Dataset:
    """The data set with its labels as classes y that the model is told."""
    if data.labels is None:
        raise ValueError(f"{data.name} has no labels: give mnist or digits.")
    return replace(data, arrays=dict(data.arrays) | {"y": data.labels}, transform=transform)


def through_the_latent(run: Fit, test: Dataset, num_steps: int, shape: tuple[int, ...], count: int = 10) -> Figure:
    """Reconstructions and an interpolation, without noise in any step."""
    sampler, model, count = DDIM(num_steps), run.model, min(count, len(test))
    x = 2 * jnp.asarray(test.arrays["x"][:count]) - 1
    y = jnp.asarray(test.arrays["y"][:count])
    nearer = jnp.where(jnp.arange(count) < count / 2, y[0], y[-1])

    @jax.jit
    def both(params: Any) -> tuple[Any, Any]:
        chain = model.fitted(params, x.shape, y)
        latent = sampler.encode(chain, x)
        between = interpolate(latent[:1], latent[-1:], count)[:, 0]
        key = jax.random.key(0)  # of no use: no step has noise
        return sampler(key, chain, latent), sampler(key, model.fitted(params, x.shape, nearer), between)

    rebuilt, between = map(np.asarray, both(run.params))
    return figures.image_rows({"held out": x, "reconstructed": rebuilt, "between": between}, shape)


def terms(by_step: np.ndarray) -> Figure:
    """Where along the path the nats are spent."""
    figure = Figure(figsize=(0.75 * figures.WIDTH, 3.0), layout="constrained")
    ax = figure.subplots()
    ax.plot(np.arange(2, len(by_step)), -by_step[1:-1], color=figures.COLOURS[0])
    ax.set(xlabel="step t", ylabel="KL divergence, nats per image", yscale="log")
    text = f"image given x_1: {by_step[0]:.0f} nats; of x_T from its prior: {-by_step[-1]:.2g}"
    ax.set_title(text.replace("-", "−"), fontsize=10)
    return figure


if __name__ == "__main__":
    from ppl import run

    run(main)
