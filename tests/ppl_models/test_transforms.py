"""Transforms of batches: dequantized grey levels, hidden classes."""

import jax
import numpy as np
import pytest

from ppl_models.datasets.transforms import HiddenClasses, InTurn
from ppl_models.dequantization import Dequantize

KEY = jax.random.key(0)


def test_dequantized_levels_fill_their_own_intervals():
    levels = np.repeat(np.arange(17), 2000).astype(np.float32)[:, None]
    x = np.asarray(Dequantize(17, -1.0, 1.0)(KEY, {"x": levels / 16})["x"])[:, 0].reshape(17, -1)
    low = -1 + 2 * np.arange(17) / 17
    assert (x >= low[:, None] - 1e-6).all() and (x <= low[:, None] + 2 / 17 + 1e-6).all()
    # Uniform inside: 17 means of 2,000, within 4.5 standard errors; a false alarm in 8,000 runs.
    np.testing.assert_allclose(x.mean(1), low + 1 / 17, atol=4.5 * 2 / 17 / np.sqrt(12 * 2000))


def test_a_share_of_classes_is_hidden():
    y = np.tile(np.arange(4), 2500)
    found = np.asarray(HiddenClasses(0.1)(KEY, {"y": y})["y"])
    assert set(found[found != y]) == {-1}
    assert (found == -1).mean() == pytest.approx(0.1, abs=4.5 * np.sqrt(0.09 / 10_000))  # a false alarm in 100,000


def test_in_turn_each_has_a_key_of_its_own():
    both = InTurn((Dequantize(2), Dequantize(2)))
    batch = {"x": np.zeros((3, 2), np.float32)}
    keys = jax.random.split(KEY, 2)
    expected = Dequantize(2)(keys[1], Dequantize(2)(keys[0], batch))
    np.testing.assert_array_equal(both(KEY, batch)["x"], expected["x"])
    assert both == InTurn((Dequantize(2), Dequantize(2))) and hash(both)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dequantize(1), "levels is 1"),
        (lambda: Dequantize(4, 1.0, 0.0), "low is 1.0 and high 0.0"),
        (lambda: HiddenClasses(1.5), "rate is 1.5"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
