"""Images in rows and mosaics: what plots of fits, reports and recipes share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0  # inches, of a figure as wide as a report


def image_rows(rows: Mapping[str, Any], image_shape: Sequence[int], *, like: Any = None) -> Figure:
    """Rows of images under one another, each with its name: data above their reconstructions.

    All have the grey scale of the first row, or of the images ``like``.

    Parameters
    ----------
    rows
        Name to images, flat ``(n, D)`` or ``(n, *image_shape)``; all rows with the same n.
    image_shape
        ``(height, width)``, or with one or three channels before or after.
    like
        Images whose grey scale is taken.
    """
    mosaics = {name: mosaic(_images(images, image_shape), len(images)) for name, images in rows.items()}
    height, width = next(iter(mosaics.values())).shape[:2]
    label = 0.14 + 0.092 * max(map(len, rows))  # inches that the longest name takes
    scale = min((WIDTH - label) / width, 1.1 / height)  # inches a pixel
    total = (height + 1) * scale * len(rows)
    fig = figure(label + width * scale, total, layout="none")
    greys = _greys(next(iter(mosaics.values())) if like is None else mosaic(_images(like, image_shape), 10))
    for i, (name, image) in enumerate(mosaics.items()):
        bottom = 1 - (i + 1) * (height + 1) * scale / total
        left = label / fig.get_figwidth()
        ax = fig.add_axes((left, bottom, 1 - left, height * scale / total))
        _show(ax, image, greys)
        fig.text(left - 0.1 / fig.get_figwidth(), bottom + height * scale / total / 2, name, ha="right", va="center")
    return fig


def image_panels(
    panels: Mapping[str, Any],
    image_shape: Sequence[int],
    *,
    columns: int = 6,
    across: int = 4,
    width: float = WIDTH,
    same_scale: bool = True,
    like: Any = None,
) -> Figure:
    """Panels side by side, each a mosaic of images under its name: data beside samples of several fits.

    Parameters
    ----------
    panels
        Name to images, flat ``(n, D)`` or ``(n, *image_shape)``.
    image_shape
        ``(height, width)``, or with one or three channels before or after.
    columns
        Images in a line of a panel.
    across
        Panels in a line of the figure.
    width
        Of the figure, in inches.
    same_scale
        Give all panels the grey scale of the first, or each its own.
    like
        Images whose grey scale is taken in place of the first panel's.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    across = min(across, len(panels))
    lines = -(-len(panels) // across)
    mosaics = {name: mosaic(_images(images, image_shape), columns) for name, images in panels.items()}
    ratio = max(m.shape[0] / m.shape[1] for m in mosaics.values())
    side = width / across
    fig = figure(width, (side * ratio + 0.35) * lines, ConstrainedLayoutEngine(wspace=0.05, hspace=0.05))
    axes = fig.subplots(lines, across, squeeze=False).ravel()
    first = _greys(next(iter(mosaics.values())) if like is None else mosaic(_images(like, image_shape), 10))
    for ax, (name, image) in zip(axes, mosaics.items(), strict=False):
        _show(ax, image, first if same_scale else _greys(image))
        ax.set_title(name)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    return fig


def mosaic(images: np.ndarray, columns: int, gap: int = 1) -> np.ndarray:
    """Images ``(n, height, width[, channels])`` in one, with NaN between and after them."""
    count, height, width, *channels = images.shape
    columns = min(columns, count)
    lines = -(-count // columns)
    out = np.full((lines * (height + gap) - gap, columns * (width + gap) - gap, *channels), np.nan)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        out[top : top + height, left : left + width] = image
    return out


def _images(images: Any, image_shape: Sequence[int]) -> np.ndarray:
    images = np.asarray(images, np.float32).reshape(-1, *image_shape)
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        images = np.moveaxis(images, 1, 3)
    return images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images


class _Greys(NamedTuple):
    """Limits of the grey scale, and whether large numbers are dark."""

    low: float
    high: float
    ink: bool


def _greys(image: np.ndarray) -> _Greys:
    """All of the image but its most extreme pixels; ink on paper where most of it is blank, else light."""
    low, middle, high = np.nanpercentile(image, (0.5, 50, 99.5))
    high = max(high, low + 1e-6)
    return _Greys(low, high, ink=middle < low + (high - low) / 4)


def _show(ax: Axes, image: np.ndarray, greys: _Greys) -> None:
    low, high, ink = greys
    if image.ndim == 2:
        ax.imshow(image, cmap="Greys" if ink else "gray", vmin=low, vmax=high, interpolation="nearest")
    else:
        ax.imshow(np.clip((np.nan_to_num(image, nan=high) - low) / (high - low), 0, 1), interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)


def figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    """An empty figure of this size in inches, outside pyplot. Layouts are matplotlib's, whose types lack "none"."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


__all__ = ["WIDTH", "figure", "image_panels", "image_rows", "mosaic"]
