"""Figures: what they show where, checked on the drawn objects."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from inference import images
from inference.compare import Comparison, Row
from inference.estimate import Estimate
from ppl import figures


def test_a_mosaic_puts_each_image_in_its_place():
    images = np.arange(5 * 2 * 3, dtype=float).reshape(5, 2, 3)
    out = figures.mosaic(images, columns=2)
    assert out.shape == (3 * 2 + 2, 2 * 3 + 1)  # a line of one pixel between
    for i, (top, left) in enumerate([(0, 0), (0, 4), (3, 0), (3, 4), (6, 0)]):
        np.testing.assert_array_equal(out[top : top + 2, left : left + 3], images[i])
    assert np.isnan(out[2]).all() and np.isnan(out[:, 3]).all() and np.isnan(out[6:, 4:]).all()


@pytest.mark.parametrize(
    ("image_shape", "stacked"),
    [((2, 3), (4, 2, 3)), ((2, 3, 1), (4, 2, 3)), ((1, 2, 4), (4, 2, 4)), ((2, 4, 3), (4, 2, 4, 3))],
)
def test_rows_become_images(image_shape, stacked):
    flat = np.random.default_rng(0).random((4, int(np.prod(image_shape))))
    assert images._images(flat, image_shape).shape == stacked
    figures.image_panels({"a": flat}, image_shape).savefig("/dev/null", format="png")


def test_image_rows_share_the_scale_of_the_first():
    data = np.linspace(0, 1, 24).reshape(6, 4)
    figure = figures.image_rows({"data": data, "a longer name": 100 * data}, (2, 2))
    first, second = (ax.images[0] for ax in figure.axes)
    assert first.get_clim() == second.get_clim()
    assert [text.get_text() for text in figure.texts] == ["data", "a longer name"]
    assert figure.axes[1].get_position().y1 < figure.axes[0].get_position().y0
    # The longest name has room to the left of the images.
    figure.canvas.draw()
    assert min(text.get_window_extent().x0 for text in figure.texts) >= 0


def test_panels_share_a_scale_unless_told():
    panels = {"a": np.linspace(0, 1, 8).reshape(2, 4), "b": np.linspace(0, 5, 8).reshape(2, 4)}
    same = [ax.images[0].get_clim() for ax in figures.image_panels(panels, (2, 2)).axes]
    own = [ax.images[0].get_clim() for ax in figures.image_panels(panels, (2, 2), same_scale=False).axes]
    assert same[0] == same[1] and own[0] != own[1]


def run(history, **algorithm):
    return SimpleNamespace(history=history, algorithm=SimpleNamespace(**algorithm))


def test_history_leaves_the_first_descent_out_of_the_scale():
    bound = np.full((2, 500), -1.0)
    bound[:, :20] = -1e6
    bound[0] += np.random.default_rng(0).normal(0, 0.1, 500)
    figure = figures.history({"SVI": run({"bound": bound}), "None": run({})})
    (ax,) = figure.axes
    low, high = ax.get_ylim()
    assert -10 < low < -1 < high < 1
    assert ax.get_title(loc="left") == "SVI" or ax.get_title() == "SVI"
    assert len(ax.lines) == 2


def test_history_shows_warmup_and_held_out_rows():
    sampler = run({"lp": np.random.default_rng(0).normal(size=(2, 60))}, num_warmup=20)
    watched = run(
        {"bound": np.zeros((1, 40)), "validation": np.ones((1, 4)), "validation_step": np.array([10, 20, 30, 40])}
    )
    first, second = figures.history({"NUTS": sampler, "SVI": watched}).axes
    assert [text.get_text() for text in first.texts] == ["warmup"]
    assert [text.get_text() for text in second.get_legend().get_texts()] == ["held-out rows"]
    np.testing.assert_array_equal(second.lines[-1].get_xdata(), [10, 20, 30, 40])


def test_no_history_no_figure():
    assert figures.history({"a": run({})}) is None


def test_comparison_marks_likelihood_and_bound():
    estimate = Estimate(np.array([-2.0, -1.0, -1.5]), np.zeros(3), 0.0)
    nan = float("nan")
    rows = (Row("one", -3.0, estimate, nan, nan, nan, 1.0), Row("two", nan, estimate, 10.0, 1.0, nan, 1.0))
    figure = figures.comparison(Comparison(rows))
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["one", "two"]
    assert ax.yaxis_inverted()
    bounds = [line for line in ax.lines if line.get_label() == "training bound"]
    assert [line.get_xdata().tolist() for line in bounds] == [[-3.0]]
    figure.savefig("/dev/null", format="png")


def test_latent_plane_is_the_widest_one():
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(200, 5)) * np.array([0.1, 5.0, 0.1, 3.0, 0.1])
    figure = figures.latent_plane(latents, rng.integers(0, 3, 200))
    (ax,) = figure.axes
    points = np.concatenate([c.get_offsets() for c in ax.collections])
    assert len(ax.collections) == 3 and points.shape == (200, 2)
    np.testing.assert_allclose(points.std(axis=0), latents.std(axis=0)[[1, 3]], rtol=0.05)
    assert "%" in ax.get_xlabel()


def test_drawings_are_ink_on_paper_and_photographs_are_light():
    rng = np.random.default_rng(0)
    drawing = (rng.random((6, 64)) < 0.2).astype(float)
    photograph = rng.normal(0.5, 0.2, (6, 64))
    found = [figures.image_rows({"data": images}, (8, 8)).axes[0].images[0] for images in (drawing, photograph)]
    assert [image.get_cmap().name for image in found] == ["Greys", "gray"]
