"""Errors of draws against a reference, and diagnostics of chains, on draws of which they are known."""

from __future__ import annotations

import numpy as np
import pytest

from inference import posterior_error
from inference.posterior_error import Error, diagnose_site, errors, monte_carlo_error


def test_errors_by_hand():
    theirs = np.random.default_rng(1).normal(size=(2, 50, 3))
    theirs[..., 2] = 7.0  # stands still in the reference: left out
    ours = theirs.copy()
    ours[..., 0] = 3 * theirs[..., 0]
    m, s = theirs.mean((0, 1)), theirs.std((0, 1))
    (found,) = errors({"a": ours, "b": ours}, {"a": theirs, "c": theirs}).values()
    mean = np.sqrt((2 * m[0] / s[0]) ** 2 / 2)
    np.testing.assert_allclose(found, Error(mean, np.log(3) / 2**0.5))
    ours[..., 1] = 0.0
    assert errors({"a": ours}, {"a": theirs})["a"].sd == -np.inf  # one that should move does not
    assert errors({"a": ours[..., :2]}, {"a": theirs}) == {}  # of another shape, so of something else
    assert errors({"a": ours}, {"a": np.ones((2, 50, 3))}) == {}


def test_monte_carlo_error_of_independent_draws():
    draws = np.random.default_rng(2).normal(size=(4, 1000, 30))
    assert monte_carlo_error(draws) == pytest.approx(4000**-0.5, rel=0.1)  # the estimate's own noise is 5%
    assert np.isnan(monte_carlo_error(np.ones((4, 1000, 3))))


def test_diagnostics_do_not_depend_on_how_elements_are_split(monkeypatch):
    draws = np.random.default_rng(3).normal(size=(2, 50, 7, 2)).cumsum(1)
    draws[..., 0, 0] = 0.1  # whose computed deviation is not exactly zero
    whole = diagnose_site(draws)
    monkeypatch.setattr(posterior_error, "CHUNK", 200)
    assert diagnose_site(draws) == whole and whole[1] > 1.1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_draws_that_are_not_finite_are_not_hidden(bad):
    """A single one leaves no effective draws, an infinite R-hat and an infinite error, whatever the others are."""
    rng = np.random.default_rng(6)
    theirs = rng.normal(size=(2, 50, 3))
    ours = rng.normal(size=(2, 50, 3))
    ours[1, 7, 2] = bad
    assert diagnose_site(ours) == (0.0, np.inf) and monte_carlo_error(ours) == np.inf
    assert posterior_error.worst({"a": ours, "b": theirs}) == (0.0, np.inf)
    assert posterior_error.worst({"b": theirs, "a": ours[:, :3]})[1] < 1.1  # which has not come to it
    (found,) = errors({"a": ours}, {"a": theirs}).values()
    assert found.mean == np.inf and np.isnan(found.sd)
    # An element that the reference does not know is left out of the error, and so is one that stands still at infinity.
    assert errors({"a": theirs}, {"a": ours})["a"] == errors({"a": theirs[..., :2]}, {"a": ours[..., :2]})["a"]
    constant = np.where(np.arange(3) == 1, -np.inf, theirs)
    assert diagnose_site(constant) == diagnose_site(theirs[..., [0, 2]])


def test_chains_too_short_to_judge_are_not_judged():
    draws = np.random.default_rng(4).normal(size=(2, 3, 2))
    assert np.isnan(diagnose_site(draws)).all() and np.isnan(monte_carlo_error(draws))
    assert np.isnan(posterior_error.worst({"a": draws, "b": np.ones((2, 50))})).all()
    long = np.random.default_rng(5).normal(size=(2, 50))
    assert posterior_error.worst({"a": draws, "b": long}) == diagnose_site(long)
