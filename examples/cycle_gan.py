"""Digits to their outlines and back, from images of either kind that are not paired.

    y = max over neighbours of x - x,   the outline, of images that are not among the x

What is learned is both maps, G(x) and F(y), from what either kind of image looks like and that the maps undo each
other. Here the outline of every image is known, so that held-out ones say how far G is from the map it should be.

ppl run examples/cycle_gan.py --data mnist
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from jaxtyping import Array, Float
from scipy.ndimage import grey_dilation

from inference import Adversarial, Fit, diagnose, fit
from inference.games import NonSaturating
from ppl import figures
from ppl.recipe import Result
from ppl_models import CycleGAN, datasets
from ppl_models.networks import MLP, SpectralNorm, network
from ppl_models.networks.unet import Convolution

CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)


@dataclass(frozen=True)
class Filters:
    """3x3 convolutions that keep the size of a grey image, then a sigmoid: what comes out of a pixel is near it.

    Parameters
    ----------
    channels
        Between one convolution and the next.
    image_shape
        ``(height, width)``.
    """

    channels: tuple[int, ...]
    image_shape: tuple[int, ...]

    def build(self, in_size: int, out_size: int, key: Array) -> eqx.Module:
        """Module that maps one row ``(in_size,)`` to one of as many."""
        keys = jax.random.split(key, len(self.channels) + 1)
        layers: list[Any] = [eqx.nn.Lambda(partial(jnp.reshape, shape=(*self.image_shape, 1)))]
        for (a, b), k in zip(pairwise((1, *self.channels, 1)), keys, strict=True):
            layers += [eqx.nn.Lambda(Convolution(a, b, k)), eqx.nn.Lambda(jax.nn.relu)]
        return eqx.nn.Sequential([*layers[:-1], eqx.nn.Lambda(jax.nn.sigmoid), eqx.nn.Lambda(jnp.ravel)])


@dataclass(frozen=True)
class BothCritics:
    """Scores of a pair of rows, one of either kind, each by a critic of its own."""

    network: Any

    def __call__(self, x: Float[Array, "batch pixels"], y: Float[Array, "batch pixels"]) -> Float[Array, "batch 2"]:
        scores = [network(numpyro, n, self.network, v.shape[-1], 1)(v) for n, v in (("of_x", x), ("of_y", y))]
        return jnp.concatenate(scores, axis=-1)


def main(
    *,
    data: str = "digits",
    channels: tuple[int, ...] = (16, 16),
    hidden: int = 128,
    weight: float = 10.0,
    steps: int = 6000,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    num_held_out: int = 360,
    seed: int = 0,
) -> dict[str, Result]:
    """A CycleGAN of digits and outlines of other digits.

    The two training sets are halves of the data, so that no image has its outline among the others. On held-out images,
    whose outlines are known, the error of G is put beside that of a map that has the right kind of image and not the
    right one: the outline of another image.

    Parameters
    ----------
    data
        digits, mnist, or the path of a .npy, .npz or .csv file of grey images.
    channels
        Of the convolutions of both maps.
    hidden
        Units in each of two hidden layers of both critics.
    weight
        Of the cycle loss: 0 shows what it is for.
    steps
        Of all players.
    batch_size
        Images of either kind in a step.
    learning_rate
        Of the maps; that of the critics is twice that. Both fall to a twentieth.
    num_held_out
        Held-out images, at most.
    seed
        Of the run.
    """
    train, test = datasets.load(data)
    shape = train.image_shape
    if shape is None or len(shape) != 2:
        raise ValueError(f"{data} has image shape {shape}; expected grey images, (height, width).")
    x, half = train.arrays["x"], len(train) // 2
    unpaired = {"x": x[:half], "y": outlines(x[half : 2 * half], shape)}
    held_out = test.arrays["x"][:num_held_out]
    truth = {"x": held_out, "y": outlines(held_out, shape)}

    slow, fast = (
        optax.adam(optax.cosine_decay_schedule(rate, steps, 0.05), b1=0.5)
        for rate in (learning_rate, 2 * learning_rate)
    )
    critics = BothCritics(SpectralNorm(MLP((hidden, hidden), "relu"), 5))
    model = CycleGAN(Filters(tuple(channels), shape), weight=weight)
    run = fit(
        Adversarial(model, critics, NonSaturating(), slow, fast),
        unpaired,
        key=seed,
        num_steps=steps,
        batch_size=batch_size,
    )
    there = mapped(run, truth)  # G(x), F(y)
    back = mapped(run, {"x": there["x"], "y": there["y"]})  # F(G(x)), G(F(y))
    few = slice(0, 14)
    rows = {
        "x": truth["x"],
        "its outline": truth["y"],
        "G(x)": there["y"],
        "F(G(x))": back["x"],
        "F(its outline)": there["x"],
    }
    return {
        f"{len(held_out):,} held-out images of {test.name}": errors(truth, there, back),
        "Maps": (
            figures.image_rows({name: v[few] for name, v in rows.items()}, shape, like=truth["x"]),
            "Held-out images, their outlines, which the run never saw beside them, and what the maps make of both.",
        ),
        "Diagnosis": str(diagnose(run)),
        "CycleGAN": run,
    }


def outlines(x: Float[np.ndarray, "rows pixels"], shape: tuple[int, ...]) -> Float[np.ndarray, "rows pixels"]:
    """The largest of a pixel and its four neighbours, less the pixel."""
    images = np.asarray(x).reshape(-1, *shape)
    return (grey_dilation(images, footprint=CROSS[None]) - images).reshape(len(images), -1)


def mapped(run: Fit, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """y = G(x) and x = F(y)."""
    return {n: v[0] for n, v in run.predict(rows, 1).items()}


def errors(truth: dict[str, Any], there: dict[str, Any], back: dict[str, Any]) -> list[dict[str, Any]]:
    """Mean absolute difference of a pixel: of each map from the truth, of another image's truth, and of the cycle."""

    def apart(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a - b).mean())

    return [
        {
            "": name,
            "from the true one": apart(there[made], truth[made]),
            "another image's": apart(np.roll(truth[made], 1, axis=0), truth[made]),
            "there and back": apart(back[given], truth[given]),
        }
        for name, given, made in (("G, image to outline", "x", "y"), ("F, outline to image", "y", "x"))
    ]


if __name__ == "__main__":
    from ppl import run

    run(main)
