r"""Sprites on a grid of their factors: a square, an ellipse and a heart, scaled, turned and placed, all drawn here.

A pixel is 1 where its centre p, in the sprite's own coordinates (u, v) = R(-angle) (p - centre) / (scale * r), lies in

    square   max(|u|, |v|) <= 1 / √2
    ellipse  u² + 4 v² <= 1
    heart    (u² + v² - 1)³ <= u² v³, shrunk

each of which the unit circle encloses, and 0 elsewhere; r is a fourth of the image's side, and centres stay as far from
the edges. Turns that a shape's symmetry maps to itself give equal images.

After dSprites, whose factors and full grid (3 shapes, 6 scales from 0.5 to 1, 40 turns, 32 x 32 places, 64 x 64 pixels)
these are. What differs: outlines and sizes are those above; the turns go from 0 to below 2π, where dSprites has 0 and
2π both; and the default is a part of the grid at 32 x 32 pixels, which fits in memory.

References
----------
dSprites: Disentanglement Testing Sprites Dataset (Matthey, Higgins, Hassabis & Lerchner, 2017).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from ppl_models.datasets import Dataset

FACTORS = ("shape", "scale", "orientation", "x", "y")
SHAPES = ("square", "ellipse", "heart")
RADIUS = 0.25  # r, in sides of the image
HEART = 1.4245  # how far the heart's curve goes from its origin


def sprites(
    side: int = 32, *, scales: int = 6, orientations: int = 20, positions: int = 16
) -> tuple[Dataset, Int[np.ndarray, "row 5"]]:
    """Every image of the grid, and the factors that made it.

    Parameters
    ----------
    side
        Pixels of a side.
    scales
        From a half to the whole size; a single one is the whole.
    orientations
        Turns, evenly from 0 to below 2π.
    positions
        Places of the centre across, and as many down.

    Returns
    -------
    Dataset
        ``3 * scales * orientations * positions²`` rows of zeros and ones, in order of the factors, the last one
        fastest; its labels are the shapes.
    Array
        Which value of each of :data:`FACTORS` a row has, numbered from 0, ``(row, 5)``.

    Raises
    ------
    ValueError
        A size that is not a whole number of at least 1.
    """
    sizes = {"side": side, "scales": scales, "orientations": orientations, "positions": positions}
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} is {size!r}; expected a whole number of at least 1.")
    places = np.linspace(RADIUS, 1 - RADIUS, positions) if positions > 1 else np.array([0.5])
    grid = (len(SHAPES), scales, orientations, positions, positions)
    x = np.empty((*grid[:3], positions**2, side**2), np.float32)
    for shape, scale, turn in np.ndindex(grid[:3]):
        size, angle = float(np.linspace(1, 0.5, scales)[-1 - scale]), 2 * np.pi * turn / orientations
        x[shape, scale, turn] = _drawn(SHAPES[shape], RADIUS * size, angle, places, side)
    factors = np.indices(grid).reshape(len(grid), -1).T.astype(np.int32)
    rows = x.reshape(len(factors), -1)
    return Dataset("sprites", {"x": rows}, labels=factors[:, 0], image_shape=(side, side)), factors


def _drawn(
    shape: str, radius: float, angle: float, places: Float[np.ndarray, " place"], side: int
) -> Bool[np.ndarray, "place pixel"]:
    """The sprite at every place, those down fastest."""
    centres = (np.arange(side) + 0.5) / side
    across = (centres - places[:, None]) / radius  # (place, column)
    a, b = across[:, None, None, :], -across[None, :, :, None]  # lines of an image go down, v goes up
    u, v = np.cos(angle) * a + np.sin(angle) * b, np.cos(angle) * b - np.sin(angle) * a
    return _inside(shape, u, v).reshape(len(places) ** 2, side**2)


def _inside(shape: str, u: Float[np.ndarray, "..."], v: Float[np.ndarray, "..."]) -> Bool[np.ndarray, "..."]:
    if shape == "square":
        return np.maximum(abs(u), abs(v)) <= 0.5**0.5
    if shape == "ellipse":
        return u**2 + 4 * v**2 <= 1
    u, v = HEART * u, HEART * v
    return (u**2 + v**2 - 1) ** 3 <= u**2 * v**3


__all__ = ["FACTORS", "SHAPES", "sprites"]
