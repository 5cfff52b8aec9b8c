"""The full-covariance guide: its density by hand and in both engines, and a bound that is the evidence."""

from dataclasses import replace

import jax
import linear_vae_exact as exact
import numpy as np
import pyro
import pytest
import torch
from numpyro import distributions as dist
from numpyro import handlers
from scipy import stats

from guides import AmortizedFullNormal, AmortizedNormal
from inference.objectives import IWAE
from ppl_models.networks import MLP, Linear


def test_density_by_hand_and_in_both_engines():
    guide = AmortizedFullNormal(3, MLP((7,)), site="latent")
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    params = jax.tree.map(lambda v: v + 0.3 * np.random.default_rng(1).normal(size=v.shape), exact.fresh(guide, x))
    w1, b1, w2, b2 = map(np.float64, jax.tree.leaves(params["encoder"]))
    outputs = np.tanh(x @ w1.T + b1) @ w2.T + b2
    assert outputs.shape == (5, 3 + 6)
    z = np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32)
    expected = []
    for (*loc, a, b, c, d, e, f), row in zip(outputs, z, strict=True):
        tril = np.array([[np.log1p(np.exp(a)), 0, 0], [b, np.log1p(np.exp(c)), 0], [d, e, np.log1p(np.exp(f))]])
        expected.append(stats.multivariate_normal(loc, tril @ tril.T).logpdf(row))
    with handlers.seed(rng_seed=0), handlers.substitute(data=params), handlers.trace() as tr:
        guide(x)
    assert tr["latent"]["fn"].event_shape == (3,) and tr["latent"]["fn"].batch_shape == (5,)
    np.testing.assert_allclose(tr["latent"]["fn"].log_prob(z), expected, rtol=1e-4)  # float32 triangular solves

    theirs = replace(guide, ppl=pyro)
    pyro.clear_param_store()
    theirs(torch.tensor(x))
    store = pyro.get_param_store()
    for name, leaf in zip(list(store), jax.tree.leaves(params["encoder"]), strict=True):
        store[name] = torch.tensor(np.asarray(leaf, np.float32))
    conditioned = pyro.poutine.condition(theirs, {"latent": torch.tensor(z)})
    total = pyro.poutine.trace(conditioned).get_trace(torch.tensor(x), num_data=10).log_prob_sum().item()
    assert total / 2 == pytest.approx(sum(expected), rel=1e-4)


def test_its_divergence_from_independent_normals_is_that_from_a_diagonal_covariance():
    rng = np.random.default_rng(0)
    q = dist.MultivariateNormal(rng.normal(size=(5, 3)), scale_tril=np.tril(rng.normal(size=(5, 3, 3))) + 2 * np.eye(3))
    loc, scale = rng.normal(size=3), np.exp(rng.normal(size=3))
    independent, dense = dist.Normal(loc, scale).to_event(1), dist.MultivariateNormal(loc, scale_tril=np.diag(scale))
    np.testing.assert_allclose(dist.kl_divergence(q, independent), dist.kl_divergence(q, dense), rtol=1e-5)
    in_a_plate = dist.Normal(0.0, scale).expand([5, 3]).to_event(1), dist.MultivariateNormal(0.0, np.diag(scale**2))
    np.testing.assert_allclose(*(dist.kl_divergence(q, p) for p in in_a_plate), rtol=1e-5)
    with pytest.raises(NotImplementedError):
        dist.kl_divergence(q, dist.Laplace(loc, scale).to_event(1))


def test_it_reaches_the_evidence_where_independent_coordinates_cannot():
    x = exact.rows()
    evidence = exact.log_evidence(x).sum()
    guide = AmortizedFullNormal(2, Linear())
    full = exact.bounds(guide, {"encoder": exact.FULL}, x, draws=20, objective=IWAE(1))
    # At the posterior log p(x, z) - log q(z | x) = log p(x) whatever z: float32 rounding is all that is left.
    np.testing.assert_allclose(full, evidence, atol=2e-3)
    diagonal = exact.bounds(AmortizedNormal(2, Linear()), {"encoder": exact.DIAGONAL}, x, draws=20_000)
    error = diagonal.std() / np.sqrt(len(diagonal))
    assert exact.GAP > 0.5 and abs(diagonal.mean() - (evidence - len(x) * exact.GAP)) < 4 * error  # false alarm 6e-5


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: AmortizedFullNormal(0, MLP((5,))), ValueError, "latent_dim is 0; expected a whole number"),
        (lambda: AmortizedFullNormal(2, MLP((5,)), site=""), ValueError, "expected the name of a latent site"),
        (lambda: AmortizedFullNormal(2, (5, 5)), TypeError, "network is a tuple; numpyro needs"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
