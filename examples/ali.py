"""An encoder for a generator, learned by the same game: the critic sees pairs, and neither side sees a reconstruction.

    data    x,         z ~ q(z | x)
    model   x = g(z),  z ~ N(0, I)

The two laws of pairs agree only where q inverts g. How far that went is seen in reconstructions g(z), z ~ q(z | x):
they are not asked for, and show what the critic has made the players agree about, not pixels.

ppl run examples/ali.py --data mnist --steps 40000
"""

from __future__ import annotations

from typing import Any

import numpy as np
import optax

from guides import AmortizedNormal
from inference import Adversarial, Fit, diagnose, fit, quality
from inference.games import WassersteinGradientPenalty
from ppl import figures
from ppl.recipe import Result
from ppl_models import Generator, datasets
from ppl_models.networks import MLP, Critic


def main(
    *,
    data: str = "digits",
    latent_dim: int = 16,
    hidden: int = 128,
    weight: float = 1.0,
    critic_steps: int = 4,
    steps: int = 10_000,
    batch_size: int = 100,
    learning_rate: float = 1e-3,
    size: int = 360,
    seed: int = 0,
) -> dict[str, Result]:
    """Adversarially learned inference (ALI, BiGAN) of images, and what it reconstructs.

    Reconstructions are put beside two controls: what they would be if the latents said nothing (those of other images),
    and the images themselves. Where labels are known, a classifier trained here says how often a reconstruction keeps
    its digit.

    Parameters
    ----------
    data
        digits, mnist, or the path of a .npy, .npz or .csv file.
    latent_dim
        Length of z.
    hidden
        Units in each of two hidden layers, of all players.
    weight
        Of the gradient penalty.
    critic_steps
        Of the critic to one of generator and encoder.
    steps
        Of the critic.
    batch_size
        Images in a step.
    learning_rate
        Of all players; it falls to a twentieth.
    size
        Held-out images that are reconstructed.
    seed
        Of the run.

    References
    ----------
    Adversarially Learned Inference (Dumoulin et al., 2017); Adversarial Feature Learning (Donahue, Krähenbühl and
    Darrell, 2017).
    """
    train, test = datasets.load(data, "none")
    test = test.shuffled()[:size]
    x, held_out = (np.asarray(part.arrays["x"], np.float32) for part in (train, test))
    network = MLP((hidden, hidden), "relu")
    slow, fast = (
        optax.adam(optax.cosine_decay_schedule(learning_rate, count, 0.05), b1=0.5, b2=0.9)
        for count in (-(-steps // critic_steps), steps)
    )
    algorithm = Adversarial(
        Generator(latent_dim, network, output="sigmoid"),
        Critic(network),
        WassersteinGradientPenalty(weight),
        slow,
        fast,
        critic_steps,
        guide=AmortizedNormal(latent_dim, network),
    )
    run = fit(algorithm, train, key=seed, num_steps=steps, batch_size=batch_size)

    rebuilt = run.reconstruct(held_out, num_samples=1)["x"]
    rows = {
        "reconstructions": rebuilt,
        "of other images": np.roll(rebuilt, 1, axis=0),
        "the images themselves": held_out,
    }
    features = None if train.labels is None else quality.classifier_features(x, train.labels, seed=seed)
    table: list[dict[str, Any]] = []
    for name, sample in rows.items():
        line: dict[str, Any] = {"": name, "root mean squared error": float(np.sqrt(np.mean((sample - held_out) ** 2)))}
        if features is not None and test.labels is not None:
            line["taken for their own digit"] = f"{np.mean(features.classify(sample) == test.labels):.0%}"
        table.append(line)
    made = run.generate(len(held_out), key=seed)["x"]
    results: dict[str, Result] = {
        f"{len(held_out):,} held-out images of {test.name}": table,
        "Latents of held-out images": latents(run, held_out),
        "Draws beside held-out images": [quality.summary(made, held_out, x, seed=seed)],
    }
    if train.image_shape is not None:
        few = held_out[:14]
        pairs = {"held out": few} | {
            f"g(z), draw {i + 1}": run.reconstruct(few, key=i, num_samples=1)["x"] for i in range(2)
        }
        results["Reconstructions"] = figures.image_rows(pairs, train.image_shape)
        shown = {"data": x[:40], "draws": made[:40]}
        results["Draws"] = figures.image_panels(shown, train.image_shape, columns=8, across=2)
    return {**results, "Diagnosis": str(diagnose(run)), "ALI": run}


def latents(run: Fit, held_out: np.ndarray) -> list[dict[str, Any]]:
    """Moments of q(z) averaged over images, N(0, I) where the game is over."""
    z = run.sample_posterior(held_out, 10)["z"]  # (draw, row, latent)
    joined, within = z.reshape(-1, z.shape[-1]), z.std(0).mean()
    largest = np.abs(np.cov(joined.T) - np.eye(z.shape[-1])).max()
    names = ("largest |mean|", "standard deviation", "of one image", "largest |covariance - I|")
    values = (np.abs(joined.mean(0)).max(), joined.std(0).mean(), within, largest)
    return [{"": "q(z)"} | {name: float(value) for name, value in zip(names, values, strict=True)}]


if __name__ == "__main__":
    from ppl import run

    run(main)
