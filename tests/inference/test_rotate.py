"""Random orientations of loadings undone, and Varimax against a search over angles."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ortho_group

from inference import BadData
from inference.relabel import assign
from inference.rotate import rotations, varimax

DRAWS, DIM, Q = 50, 12, 3


@pytest.fixture(scope="module")
def draws():
    """Loadings with simple structure, and noise of a tenth of their size between draws."""
    rng = np.random.default_rng(0)
    centre = np.zeros((DIM, Q))
    for k in range(Q):
        centre[4 * k : 4 * k + 4, k] = [3 - k, 2.5 - k / 2, -2, 1]
    return centre + 0.1 * rng.normal(size=(DRAWS, DIM, Q))


@pytest.fixture(scope="module")
def turned(draws):
    """The draws under random rotations and reflections, one each (Haar)."""
    return draws @ ortho_group(Q, seed=1).rvs(DRAWS)


def criterion(w):
    return (w**2).var(-2).sum(-1)


def test_random_orientations_are_undone(draws, turned):
    before, after = draws @ rotations(draws), turned @ rotations(turned)
    np.testing.assert_allclose(after, before, atol=1e-6)  # the turns stop at 1e-8 of the mean's size, about 5
    # Turned at random an entry varies by the size of its row; put right, by less than before it was turned,
    # for 3 of 36 directions of the noise were rotations.
    assert turned.std(0).mean() > 5 * draws.std(0).mean()
    assert 0.9 * draws.std(0).mean() < after.std(0).mean() < draws.std(0).mean()
    np.testing.assert_allclose(np.abs(after.mean(0)).max(1), np.abs(draws.mean(0)).max(1), atol=0.05)


def test_they_are_rotations(turned):
    r = rotations(turned)
    np.testing.assert_allclose(r.mT @ r, np.broadcast_to(np.eye(Q), r.shape), atol=1e-12)
    w = turned @ r
    np.testing.assert_allclose(w @ w.mT, turned @ turned.mT, atol=1e-12)  # W Wᵀ stays
    z = np.random.default_rng(2).normal(size=(DRAWS, 5, Q))
    np.testing.assert_allclose((z @ r) @ w.mT, z @ turned.mT, atol=1e-12)  # and so does W z


def test_signs_and_order_of_columns_are_fixed(turned):
    mean = (turned @ rotations(turned)).mean(0)
    size = (mean**2).sum(0)
    assert (np.diff(size) <= 0).all()
    assert ((mean**3).sum(0) > 0).all()


def test_varimax_finds_the_best_angle_of_a_plane():
    w = np.random.default_rng(3).normal(size=(4, 9, 2))
    found = criterion(w @ varimax(w))
    angles = np.linspace(0, np.pi / 2, 20001)
    c, s = np.cos(angles), np.sin(angles)
    all_turned = w[:, None] @ np.moveaxis(np.array([[c, -s], [s, c]]), 2, 0)
    # The criterion is flat at its top: a grid of 8e-5 rad finds it to about 1e-8 of its curvature.
    np.testing.assert_allclose(found, criterion(all_turned).max(1), rtol=1e-6)


def test_varimax_is_a_maximum_in_every_plane(turned):
    w = turned @ varimax(turned)
    for j, k in ((0, 1), (0, 2), (1, 2)):
        for angle in (0.01, -0.01):
            other = w.copy()
            other[..., j], other[..., k] = (
                np.cos(angle) * w[..., j] + np.sin(angle) * w[..., k],
                np.cos(angle) * w[..., k] - np.sin(angle) * w[..., j],
            )
            assert (criterion(other) < criterion(w)).all()


@pytest.mark.parametrize("shape", [(6, 5, 1), (1, 5, 2), (6, 2, 2)])
def test_small_shapes(shape):
    w = np.random.default_rng(4).normal(size=shape)
    r = rotations(w)
    np.testing.assert_allclose(r.mT @ r, np.broadcast_to(np.eye(shape[2]), r.shape), atol=1e-12)


def test_a_factor_of_which_there_is_nothing_does_no_harm():
    w = np.random.default_rng(5).normal(size=(10, 6, 3))
    w[..., 2] = 0
    assert np.isfinite(rotations(w)).all()


def rotation_sign_permutation(w):
    """Varimax of every draw, then signed permutations to the mean, as Papastamoulis and Ntzoufras have it."""
    w = w @ varimax(w)
    mean = w[0]
    for _ in range(10):
        inner = np.einsum("dk,tdj->tkj", mean, w)
        order = assign(np.abs(inner))
        aligned = np.take_along_axis(w, order[:, None], 2)
        aligned = aligned * np.sign((aligned * mean).sum(1, keepdims=True))
        mean = aligned.mean(0)
    return aligned


def test_with_simple_structure_it_is_rotation_sign_permutation(turned):
    ours, theirs = turned @ rotations(turned), rotation_sign_permutation(turned)
    match = assign(np.abs(theirs.mean(0).T @ ours.mean(0))[None])[0]
    ours = ours[..., match]
    ours = ours * np.sign((ours.mean(0) * theirs.mean(0)).sum(0))
    error = ours.std(0) / DRAWS**0.5  # of the means, 0.014
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 2 * error.max()).all()
    np.testing.assert_allclose(ours.std(0).mean(), theirs.std(0).mean(), rtol=0.02)


def test_loadings_without_structure_agree_too():
    """Where Varimax has many maxima, and draws that differ by little end in different ones."""
    rng = np.random.default_rng(6)
    w = rng.normal(size=(20, 5)) + 0.05 * rng.normal(size=(40, 20, 5))
    turned = w @ ortho_group(5, seed=7).rvs(40)

    def farthest(aligned):
        return np.linalg.norm(aligned - aligned.mean(0), axis=(1, 2)).max()

    assert farthest(turned @ rotations(turned)) < farthest(w) < 0.5 * farthest(rotation_sign_permutation(turned))


def test_loadings_that_are_not_finite_are_refused(draws):
    broken = draws.copy()
    broken[4:6, 0, 1] = np.nan
    with pytest.raises(BadData, match="the loadings are not finite in 2 of 50 draws, first in draw 4"):
        rotations(broken)
