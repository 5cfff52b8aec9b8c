"""Codes, paths and figures of a linear decoder, where it is known what everything decodes to."""

import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from scipy import stats

from inference import SVI, BadData, Incompatible, fit, plots
from inference import latent_space as space
from inference.objectives import ELBO
from inference.surgery import log_aggregate

RNG = np.random.default_rng(0)
W = RNG.normal(size=(2, 6)).astype(np.float32)
A, S = RNG.normal(size=(6, 2)).astype(np.float32), np.array([0.3, 0.9])
X = RNG.normal(size=(20, 6)).astype(np.float32)
SHAPE = (2, 3)


def model(x, label=None, num_data=None):
    w = numpyro.param("w", jnp.asarray(W))
    shift = 0.0 if label is None else 10.0 * label[:, None]
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros((len(x), 2)), 1).to_event(1))
        numpyro.sample("x", dist.Normal(z @ w + shift, 0.5).to_event(1), obs=x)


def encoder(x, label=None, num_data=None):
    a = numpyro.param("a", jnp.asarray(A))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("z", dist.Normal(x @ a, jnp.asarray(S)).to_event(1))


def at_start(data):
    return fit(SVI(model, encoder, ELBO(), optax.sgd(0.0)), data, key=0, num_steps=1)


@pytest.fixture(scope="module")
def run():
    return at_start(X)


def test_codes_and_what_they_decode_to(run):
    codes = space.encode(run, X)
    assert np.allclose(codes, X @ A, atol=1e-5)
    assert np.allclose(space.decode(run, codes), codes @ W, atol=1e-5)
    labelled = at_start({"x": X, "label": np.arange(20, dtype=np.float32)})
    assert np.allclose(space.decode(labelled, codes, inputs={"label": 3}), codes @ W + 30, atol=1e-4)  # a fixed label
    with pytest.raises(BadData, match="inputs has 'y'"):
        space.decode(labelled, codes, inputs={"y": 3})
    with pytest.raises(BadData, match=r"codes have shape \(20, 3\)"):
        space.decode(run, np.zeros((20, 3)))
    with pytest.raises(Incompatible, match=r"site is 'u'; expected one of .*\['z'\]"):
        space.encode(run, X, "u")


def test_unit_kl_is_that_of_normals(run):
    exact = 0.5 * (S**2 + (X @ A) ** 2 - 1 - 2 * np.log(S)).mean(axis=0)  # KL(N(m, s²) || N(0, 1))
    assert np.allclose(space.unit_kl(run, X), exact, rtol=1e-4)  # float32


def test_log_aggregate_is_the_mixture_of_all_encoders(run):
    points = RNG.normal(size=(15, 2)).astype(np.float32)
    terms = stats.norm((X @ A)[None], S).logpdf(points[:, None]).sum(-1)
    exact = np.logaddexp.reduce(terms, axis=1) - np.log(20)
    assert np.allclose(log_aggregate(run, X, {"z": points}), exact, atol=1e-3)  # float32


def test_paths():
    a, b, t = np.array([3.0, 0, 0]), np.array([0, 1.0, 0]), np.linspace(0, 1, 5)
    straight, round_ = space.linear(a, b, t), space.spherical(a, b, t)
    assert np.allclose(straight[2], [1.5, 0.5, 0])
    assert np.allclose(np.linalg.norm(round_, axis=1), 3 - 2 * t)  # the length goes evenly
    angles = np.arctan2(round_[:, 1], round_[:, 0])
    assert np.allclose(np.diff(angles), np.pi / 8)  # and so does the angle
    for path in (straight, round_):
        assert np.allclose(path[[0, -1]], [a, b])
    assert np.allclose(space.spherical(a, -a, t), space.linear(a, -a, t))  # no circle is the shortest
    assert np.allclose(space.spherical(0 * a, b, t), space.linear(0 * a, b, t))


def test_the_grid_has_equal_probability_a_cell():
    grid = space.normal_grid(8)
    assert grid.shape == (64, 2) and np.allclose(stats.norm.cdf(grid[:8, 0]), (np.arange(8) + 0.5) / 8)
    assert grid[0, 1] > 0 > grid[-1, 1] and grid[0, 0] < 0 < grid[7, 0]  # from the top left


def test_holes_are_where_the_prior_is_dense_and_the_aggregate_is_not():
    ticks = np.linspace(-3, 3, 31)
    points = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    log_prior = stats.norm.logpdf(points).sum(1)
    hole = np.exp(-8 * ((points - [0.8, 0.2]) ** 2).sum(1))
    found = space.holes(points, log_prior, log_prior - 5 * hole, count=3)
    assert np.allclose(points[found[0]], [0.8, 0.2], atol=0.11)
    assert all(np.linalg.norm(points[i] - points[j]) >= 0.7 for i in found for j in found if i != j)
    assert all(np.linalg.norm(points[i]) < 2.5 for i in found)


def test_every_figure_shows_what_was_computed(run, monkeypatch):
    """The images handed to the mosaics are the linear decoder's."""
    shown = {}

    module = sys.modules["inference.images"]
    codes = X @ A
    for name in ("image_rows", "image_panels"):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda p, s, real=real, **o: shown.update(p) or real(p, s, **o))

    def images(function, *args, **options):
        shown.clear()
        function(*args, image_shape=SHAPE, **options).savefig("/dev/null", format="png", dpi=20)
        return {n: np.asarray(v) for n, v in shown.items()}

    assert set(images(plots.reconstructions, run, X[:4])) == {"data", "reconstructed"}
    assert images(plots.samples, run, 10)["samples"].shape == (10, 6)
    (grid,) = images(plots.manifold, run, 4).values()
    assert np.allclose(grid, space.normal_grid(4) @ W, atol=1e-5)
    (lines,) = images(plots.interpolations, run, X[:2], X[2:4], path=space.linear, steps=3).values()
    assert np.allclose(lines[1], (codes[0] + codes[2]) / 2 @ W, atol=1e-4)
    assert np.allclose(lines[5], codes[3] @ W, atol=1e-4)
    has_it = np.arange(20) < 8
    moved = images(plots.attribute, run, X, has_it, X[:3], amounts=(0.0, 2.0))
    direction = codes[:8].mean(0) - codes[8:].mean(0)
    assert np.allclose(moved["+2"] - moved["+0"], 2 * direction @ W, atol=1e-4)
    analogy = images(plots.analogies, run, X[:2], X[2:4], X[4:6])["c + b − a"]
    assert np.allclose(analogy, (codes[4:6] + codes[2:4] - codes[:2]) @ W, atol=1e-4)
    walk = images(plots.traversals, run, X, units=2, steps=3, reach=2.0)
    kl = space.unit_kl(run, X)
    assert list(walk) == [f"unit {j}, {kl[j]:.2f} nats" for j in np.argsort(-kl)]  # ordered by KL
    first = int(np.argmax(kl))
    assert np.allclose(next(iter(walk.values()))[2] - next(iter(walk.values()))[0], 4 * W[first], atol=1e-4)
    by_epoch = images(plots.samples_by_epoch, {1: run, 5: run}, 3)
    assert np.array_equal(by_epoch["epoch 1"], by_epoch["epoch 5"])  # of the same latents
    figure = plots.aggregate_posterior(run, X, np.arange(20) % 3, image_shape=SHAPE)
    figure.savefig("/dev/null", format="png", dpi=20)
    assert len(figure.axes[0].texts) >= 3 + 1  # the circles' shares, and numbers of holes


def test_what_cannot_be_drawn_is_said(run):
    with pytest.raises(BadData, match=r"pass image_shape=\(height, width\)"):
        plots.samples(run)
    with pytest.raises(BadData, match="has_it marks 20 of 20"):
        plots.attribute(run, X, np.ones(20), X[:2], image_shape=SHAPE)
    wide = SimpleNamespace(**vars(run))
    wide.guide = None
    with pytest.raises(Incompatible, match="codes of rows are those of a NumPyro guide"):
        space.code_site(wide)
