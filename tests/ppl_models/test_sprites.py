"""Sprites: the grid, and that an image moves, turns and grows as its factors say."""

import numpy as np
import pytest

from ppl_models.datasets.sprites import FACTORS, SHAPES, sprites

SQUARE, ELLIPSE, HEART = range(3)


def images(**grid):
    data, factors = sprites(**grid)
    sizes = factors.max(axis=0) + 1
    return data.arrays["x"].reshape(*sizes, *data.image_shape)


def test_the_grid():
    data, factors = sprites(16, scales=2, orientations=3, positions=4)
    assert len(data) == len(factors) == 3 * 2 * 3 * 4 * 4 and len(FACTORS) == factors.shape[1] == 5
    assert data.image_shape == (16, 16) and data.arrays["x"].dtype == np.float32
    assert set(np.unique(data.arrays["x"])) == {0, 1} and (data.arrays["x"].sum(axis=1) > 0).all()
    assert [SHAPES[s] for s in np.unique(data.labels)] == ["square", "ellipse", "heart"]
    np.testing.assert_array_equal(data.labels, factors[:, 0])
    assert len(np.unique(factors, axis=0)) == len(factors)
    np.testing.assert_array_equal(factors.min(axis=0), 0)
    np.testing.assert_array_equal(factors.max(axis=0) + 1, [3, 2, 3, 4, 4])


def test_places():
    """16 pixels between the extreme centres, in eight steps: to the right with x, down with y."""
    found = images(side=32, scales=1, orientations=1, positions=9)[:, 0, 0]  # (shape, x, y, row, column)
    for shape in range(3):
        for i in range(8):
            np.testing.assert_array_equal(found[shape, i + 1, 3], np.roll(found[shape, i, 3], 2, axis=1))
            np.testing.assert_array_equal(found[shape, 4, i + 1], np.roll(found[shape, 4, i], 2, axis=0))
    first, last = found[:, 0, 0], found[:, 8, 8]
    assert first[:, :16, :16].sum() == first.sum() and last[:, 16:, 16:].sum() == last.sum()


def test_turns_are_counter_clockwise():
    found = images(side=64, scales=1, orientations=4, positions=1)[:, 0, :, 0, 0]
    for shape in range(3):
        for turn in range(3):
            np.testing.assert_array_equal(found[shape, turn + 1], np.rot90(found[shape, turn]))
    np.testing.assert_array_equal(found[SQUARE, 0], found[SQUARE, 1])  # its symmetry
    np.testing.assert_array_equal(found[ELLIPSE, 0], found[ELLIPSE, 2])
    heart = found[HEART, 0]
    np.testing.assert_array_equal(heart, heart[:, ::-1])
    assert (
        heart[:32].sum() > heart[32:].sum() and heart[32:, 31].any() and not heart[:16, 31].all()
    )  # its point is below


def test_areas():
    """Of a square of half diagonal r, 2 r²; of an ellipse of axes r and r / 2, π r² / 2; all grow with scale²."""
    side = 256
    found = images(side=side, scales=3, orientations=1, positions=1)[:, :, 0, 0, 0].sum(axis=(2, 3)) / side**2
    scales = np.array([0.5, 0.75, 1.0])
    # A pixel is in or out by its centre: off by less than half of one along an outline shorter than 2.
    np.testing.assert_allclose(found[SQUARE], 2 * (0.25 * scales) ** 2, atol=1 / side)
    np.testing.assert_allclose(found[ELLIPSE], np.pi / 2 * (0.25 * scales) ** 2, atol=1 / side)
    np.testing.assert_allclose(found[HEART] / found[HEART, -1], scales**2, atol=1 / side / found[HEART, -1])


def test_a_single_scale_is_the_whole():
    one, six = (images(side=32, scales=n, orientations=1, positions=1) for n in (1, 6))
    np.testing.assert_array_equal(one[:, 0], six[:, -1])


@pytest.mark.parametrize("bad", [{"side": 0}, {"scales": 1.5}, {"orientations": True}, {"positions": -1}])
def test_sizes_that_are_none(bad):
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=f"{name} is {value!r}; expected a whole number of at least 1"):
        sprites(**bad)
