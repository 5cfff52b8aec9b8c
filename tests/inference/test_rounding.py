"""Data that float32 does not hold are refused at the door; what it holds well enough is let in."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from inference import BadData, rounding
from inference.data import as_data
from inference.rounding import check_rounding

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 3))


def holed(x, x_observed, num_data=None):
    """A model that takes missing values."""


def refused(data, *programs):
    """The message, or nothing where the data are let in."""
    try:
        as_data(data, *programs)
    except BadData as error:
        return str(error)
    return None


def test_an_offset_that_leaves_no_digits_is_refused_by_name():
    x = X + [0, 0, 1e8]
    message = refused({"y": X, "x": x})
    assert message is not None
    assert message.startswith("'x' is float64 and is rounded to float32, which moves numbers in column 2 by up to ")
    assert f"standard deviation, {X[:, 2].std():.2g}" in message and "Subtract the column's mean" in message
    assert refused(x - x.mean(0)) is None
    assert refused(x.astype(np.float32)) is None  # nothing is lost here; what was, was lost before
    assert "in column 1, 0" in str(refused(X[:, None] + [[0], [1e8]]))
    assert "moves numbers by up to" in str(refused(x[:, 2]))  # one axis, so no column


@pytest.mark.parametrize("offset", [1e3, 1e4, 3e4, 1e5])
def test_the_limit_is_a_thousandth_of_a_standard_deviation(offset):
    x = X[:, 0] + offset
    assert (refused(x) is not None) == (abs(x - x.astype(np.float32)).max() > 1e-3 * x.std())


def test_what_lies_near_zero_or_does_not_vary_is_let_in():
    assert refused(X) is None and refused(X * 1e-30) is None and refused(1e30 * X) is None
    assert refused(np.full((300, 2), 0.1)) is None
    nearly = np.full((300, 1), 1e8 / 3)
    nearly[::2] *= 1 + 2e-16  # a constant as it comes out of a computation
    assert refused(nearly) is None
    assert refused(np.arange(10**8, 10**8 + 300)) is None  # int32 holds them
    assert refused(1e8 + X[:3]) is None  # too few rows to tell
    assert refused({"x": X, "sample_weight": 1e8 + abs(X[:, 0])}) is None  # a weight needs six digits, not more
    heavy = RNG.standard_cauchy(size=(100_000, 1))
    assert abs(heavy).max() > 1e4 and refused(heavy) is None


def test_what_is_too_small_for_float32_is_refused():
    assert refused(X * 1e-60) is not None


def test_only_what_is_observed_counts():
    x = X.copy()
    x[::3] = np.nan
    assert refused(x, holed) is None
    assert "column 1" in str(refused(x + [0, 1e8, 0], holed))
    seen = ~np.isnan(x)
    marked = np.where(seen, 1e8 + X, 0.0)  # which as they stand vary by 1e8
    assert refused(marked) is None
    assert "column 0" in str(refused({"x": marked, "x_observed": seen}, holed))


def test_streams_are_judged_by_their_first_batch():
    assert refused(iter([{"x": X + 1e8}])) is not None
    assert refused(X + 1e8 for _ in range(3)) is not None
    assert refused(iter([{"x": X}, {"x": 1e8 + X}])) is None


def test_mapped_data_are_read_a_piece_at_a_time(tmp_path, monkeypatch):
    """The same verdict whatever the pieces, in the memory of a few of them."""
    x = np.memmap(tmp_path / "x", np.float64, "w+", shape=(200_000, 4))
    x[:] = 3.0 + RNG.normal(size=x.shape)
    x[:, 3] += 1e6
    whole = refused(np.array(x))
    assert whole is not None and "column 3" in whole
    monkeypatch.setattr(rounding, "CHUNK", 1000)
    assert refused(x) == whole
    monkeypatch.setattr(rounding, "CHUNK", 2**14)
    x[:, 3] -= 1e6
    tracemalloc.start()
    check_rounding("x", np.asarray(x))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**14 * 8 < x.nbytes / 4
