"""Looking at a fit of images: one call a figure, each a matplotlib ``Figure``.

Images have the shape of ``image_shape``, ``(height, width)`` or with channels; by default that of the fit's data set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from inference import images
from inference.errors import BadData
from inference.latent_space import code_shape, code_site, decode, encode, holes, normal_grid, spherical, unit_kl
from inference.result import Fit
from inference.surgery import log_aggregate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Shape = Sequence[int] | None
Inputs = Mapping[str, Any] | None
HOLES = 6
GRID, REACH = 43, 3.3  # points a side, and standard deviations, of the plane in which holes are looked for


def reconstructions(fit: Fit, data: Any, *, image_shape: Shape = None) -> Figure:
    """Rows above the decoder's mean images of latents that the guide drew for them."""
    rebuilt = next(iter(fit.reconstruct(data).values()))
    return images.image_rows({"data": _images(fit, data), "reconstructed": rebuilt}, _shape(fit, data, image_shape))


def samples(fit: Fit, count: int = 40, *, image_shape: Shape = None, key: int = 0) -> Figure:
    """The decoder's mean images of latents from their prior."""
    drawn = next(iter(fit.generate(count, expected=True, key=key).values()))
    return images.image_panels(
        {"samples": drawn}, _shape(fit, None, image_shape), columns=10, across=1, like=_like(fit)
    )


def samples_by_epoch(fits: Mapping[Any, Fit], count: int = 10, *, image_shape: Shape = None, key: int = 0) -> Figure:
    """Samples of the same latents, a row for each fit: of a run after so many epochs, by that number."""
    rows = {
        f"epoch {epoch}": next(iter(f.generate(count, expected=True, key=key).values())) for epoch, f in fits.items()
    }
    first = next(iter(fits.values()))
    return images.image_rows(rows, _shape(first, None, image_shape), like=_like(first))


def manifold(
    fit: Fit, size: int = 15, *, site: str | None = None, inputs: Inputs = None, image_shape: Shape = None
) -> Figure:
    """What a plane of latents decodes to, at quantiles of its Normal prior: equal areas have equal probability.

    Parameters
    ----------
    fit
        With two units in the latent.
    size
        Images a side.
    site
        Which latent, where there are several.
    inputs
        The model's other arguments, such as a fixed label.
    image_shape
        Shape of an image.

    Raises
    ------
    BadData
        When the latent has more than two units.
    """
    grid = normal_grid(size)
    decoded = decode(fit, _plane(fit, site, grid), site, inputs=inputs)
    title = "$z_1$ from left to right, $z_2$ upwards, at quantiles of the prior"
    return images.image_panels(
        {title: decoded}, _shape(fit, None, image_shape), columns=size, across=1, width=7, like=_like(fit)
    )


def interpolations(
    fit: Fit,
    starts: Any,
    ends: Any,
    *,
    path: Callable[..., Any] = spherical,
    steps: int = 10,
    site: str | None = None,
    inputs: Inputs = None,
    image_shape: Shape = None,
) -> Figure:
    """From the code of one row to that of another, a line for each pair.

    ``path`` is :func:`~inference.latent_space.spherical` or :func:`~inference.latent_space.linear`.
    """
    t = np.linspace(0, 1, steps)
    codes = [path(a, b, t) for a, b in zip(encode(fit, starts, site), encode(fit, ends, site), strict=True)]
    decoded = decode(fit, np.concatenate(codes), site, inputs=inputs)
    title = "from the code of one image to that of another, a line for each pair"
    return images.image_panels(
        {title: decoded}, _shape(fit, starts, image_shape), columns=steps, across=1, width=8, like=_like(fit)
    )


def attribute(
    fit: Fit,
    data: Any,
    has_it: Any,
    rows: Any,
    *,
    amounts: Sequence[float] = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5),
    site: str | None = None,
    image_shape: Shape = None,
) -> Figure:
    """Attribute arithmetic: codes of ``rows``, plus so much of what tells rows with an attribute from those without.

    Parameters
    ----------
    fit
        A fit with an encoder.
    data, has_it
        Rows, and which of them have the attribute, boolean ``(rows,)``. The direction is the difference of the two
        means of codes.
    rows
        Rows to move.
    amounts
        Multiples of the direction.
    site
        Which latent, where there are several.
    image_shape
        Shape of an image.

    Raises
    ------
    BadData
        When all rows have the attribute, or none.
    """
    codes, has_it = encode(fit, data, site), np.asarray(has_it, bool)
    if len(has_it) != len(codes) or has_it.all() or not has_it.any():
        raise BadData(
            f"has_it marks {int(has_it.sum())} of {len(has_it)} rows, of {len(codes)}: expected some, not all."
        )
    direction = codes[has_it].mean(axis=0) - codes[~has_it].mean(axis=0)
    moved = encode(fit, rows, site)
    shown = {f"{amount:+g}": decode(fit, moved + amount * direction, site) for amount in amounts}
    return images.image_rows({"data": _images(fit, rows)} | shown, _shape(fit, rows, image_shape))


def analogies(fit: Fit, a: Any, b: Any, c: Any, *, site: str | None = None, image_shape: Shape = None) -> Figure:
    """a is to b as c is to d: columns of rows a, b, c, and the image of z_c + z_b - z_a."""
    z = [encode(fit, part, site) for part in (a, b, c)]
    found = {
        "a": _images(fit, a),
        "b": _images(fit, b),
        "c": _images(fit, c),
        "c + b − a": decode(fit, z[2] + z[1] - z[0], site),
    }
    return images.image_rows(found, _shape(fit, a, image_shape))


def traversals(
    fit: Fit,
    data: Any,
    *,
    units: int = 8,
    steps: int = 9,
    reach: float = 2.5,
    site: str | None = None,
    image_shape: Shape = None,
) -> Figure:
    """One unit moved at a time from the mean code of some rows, those of the largest KL first.

    Parameters
    ----------
    fit
        A fit with an encoder.
    data
        Rows over which the KL, and the code to start from, are averaged.
    units
        How many units, each a row.
    steps, reach
        Images a row, from ``-reach`` to ``reach`` in the latent's own unit.
    site
        Which latent, where there are several.
    image_shape
        Shape of an image.
    """
    kl, centre = unit_kl(fit, data, site), encode(fit, data, site).mean(axis=0)
    rows = {}
    for j in np.argsort(-kl)[:units]:
        codes = np.tile(centre.ravel(), (steps, 1))
        codes[:, j] = np.linspace(-reach, reach, steps)
        rows[f"unit {j}, {kl[j]:.2f} nats"] = decode(fit, codes.reshape(steps, *centre.shape), site)
    return images.image_rows(rows, _shape(fit, data, image_shape), like=_images(fit, data)[:100])


def aggregate_posterior(
    fit: Fit, data: Any, labels: Any = None, *, site: str | None = None, image_shape: Shape = None, key: int = 0
) -> Figure:
    """The aggregate posterior against the prior in the plane, and what decodes from its holes.

    Draws of q(z | x) of all rows, over contours of their exact mixture (shaded) and circles that hold 50, 90 and 99 per
    cent of a standard Normal prior. Numbers mark where the prior has most that no row was encoded to; beside them, what
    those codes decode to.

    Parameters
    ----------
    fit
        With two units in the latent, whose prior is a standard Normal.
    data
        Rows.
    labels
        A class of each row, for colours.
    site
        Which latent, where there are several.
    image_shape
        Shape of an image.
    key
        Seed of the draws.

    Raises
    ------
    BadData
        When the latent has more than two units.
    """
    import matplotlib as mpl

    shape = _shape(fit, data, image_shape)
    ticks = np.linspace(-REACH, REACH, GRID)
    points = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2).astype(np.float32)
    name = code_site(fit, site)
    log_q = log_aggregate(fit, data, {name: _plane(fit, site, points)})
    log_p = -0.5 * (points**2).sum(axis=1) - np.log(2 * np.pi)
    found = holes(points, log_p, log_q, HOLES)
    drawn = fit.sample_posterior(data, 1, key=key)[name][0]

    figure = images.figure(7.8, 6.2)
    plane, side = figure.subplots(1, 2, width_ratios=(6, 1.35))
    plane.contourf(ticks, ticks, np.exp(log_q).reshape(GRID, GRID), levels=8, cmap="Greys", alpha=0.45)
    colours: Any = "#0072B2"
    if labels is not None:
        classes, numbers = np.unique(np.asarray(labels), return_inverse=True)
        palette = mpl.colormaps["tab10" if len(classes) <= 10 else "turbo"]
        colours = palette(numbers if len(classes) <= 10 else numbers / len(classes))
        for i, label in enumerate(classes if len(classes) <= 20 else []):
            plane.scatter([], [], s=18, color=palette(i if len(classes) <= 10 else i / len(classes)), label=str(label))
    plane.scatter(*drawn.T, s=5, c=colours, alpha=0.7, linewidths=0)
    angle = np.linspace(0, 2 * np.pi, 200)
    for share in (0.5, 0.9, 0.99):
        radius = np.sqrt(-2 * np.log(1 - share))  # |z|² / 2 is exponential in the plane
        plane.plot(radius * np.cos(angle), radius * np.sin(angle), color="#D55E00", linewidth=0.9)
        plane.text(0, -radius, f"{share:.0%}", color="#D55E00", fontsize=9, ha="center", va="bottom")
    for number, i in enumerate(found, 1):
        plane.text(*points[i], str(number), ha="center", va="center", fontsize=11, fontweight="bold",
                   bbox={"boxstyle": "circle", "facecolor": "white", "edgecolor": "#222222"})  # fmt: skip
    plane.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal", xlabel="$z_1$", ylabel="$z_2$")
    plane.set_title("draws of the aggregate posterior; circles: the prior")
    plane.grid(False)
    if labels is not None and len(np.unique(labels)) <= 20:
        plane.legend(loc="upper right", fontsize=8, framealpha=0.9)
    decoded = images._images(decode(fit, _plane(fit, site, points[found]), site), shape)
    images._show(
        side, images.mosaic(decoded, 1), images._greys(images.mosaic(images._images(_images(fit, data), shape), 10))
    )
    height = decoded.shape[1] + 1
    for number in range(len(found)):
        side.text(-1.5, (number + 0.5) * height - 1, str(number + 1), ha="right", va="center", fontsize=11)
    side.set_title("holes", loc="center")
    return figure


def _plane(fit: Fit, site: str | None, points: np.ndarray) -> np.ndarray:
    name = code_site(fit, site)
    shape = code_shape(fit, site)
    if prod(shape) != 2:
        raise BadData(f"latent {name!r} has shape {shape}; a plane needs two units. Use traversals for more.")
    return points.reshape(-1, *shape).astype(np.float32)


def _images(fit: Fit, data: Any) -> np.ndarray:
    """The observed rows as the model gets them."""
    batch = fit._rows(data).whole()
    return np.asarray(batch.data["x"] if "x" in batch.data else next(iter(batch.data.values())))


def _like(fit: Fit) -> np.ndarray | None:
    """Some rows of the fit, whose grey scale all figures have."""
    if fit.data is None:
        return None
    batch = fit.data.batch(np.arange(min(100, fit.data.num_data)))
    return np.asarray(batch.data["x"] if "x" in batch.data else next(iter(batch.data.values())))


def _shape(fit: Fit, data: Any, image_shape: Shape) -> Sequence[int]:
    known = (image_shape, getattr(data, "image_shape", None), getattr(fit.data, "image_shape", None))
    shape = next((s for s in known if s is not None), None)
    if shape is None:
        raise BadData("the data set does not say how rows are images: pass image_shape=(height, width).")
    return shape


__all__ = [
    "aggregate_posterior",
    "analogies",
    "attribute",
    "interpolations",
    "manifold",
    "reconstructions",
    "samples",
    "samples_by_epoch",
    "traversals",
]
