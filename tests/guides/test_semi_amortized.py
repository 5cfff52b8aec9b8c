"""The semi-amortized guide: how far its steps go on a model with a known posterior, and the gradient through them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import linear_vae_exact as exact
import numpy as np
import pytest
from numpyro import handlers

from guides import AmortizedFullNormal, AmortizedNormal, SemiAmortized
from inference import Incompatible, check
from inference.objectives import ELBO
from ppl_models import PPCA
from ppl_models.networks import Linear

FULL, DIAGONAL = AmortizedFullNormal(2, Linear()), AmortizedNormal(2, Linear())


def refined(guide, params, x, key=0):
    """Parameters of each row's q after the steps."""
    with handlers.seed(rng_seed=key), handlers.substitute(data=params), handlers.trace() as tr:
        guide(x)
    q = tr["z"]["fn"]
    return np.asarray(q.loc if hasattr(q, "loc") else q.base_dist.loc)


def test_no_steps_is_the_encoder():
    x = exact.rows()
    params = exact.fresh(DIAGONAL, x)
    plain, semi = (exact.bounds(g, params, x, draws=3) for g in (DIAGONAL, SemiAmortized(exact.MODEL, DIAGONAL, 0)))
    np.testing.assert_array_equal(plain, semi)


def blank(guide, x):
    """An encoder that says N(0, (0.7)² I) of every row."""
    return jax.tree.map(jnp.zeros_like, {"encoder": exact.fresh(guide, x)["encoder"]})


def test_enough_steps_reach_the_evidence_from_a_blank_encoder_and_independent_coordinates_their_best():
    x = exact.rows()
    evidence = exact.log_evidence(x).sum()
    assert exact.bounds(FULL, blank(FULL, x), x, draws=50).mean() < evidence - 50
    full = SemiAmortized(exact.MODEL, FULL, num_steps=2000, step_size=0.005, num_particles=8)
    # The path derivative has no noise at the posterior, so that the steps settle there: no draw differs from log p(x).
    np.testing.assert_allclose(exact.bounds(full, blank(FULL, x), x, draws=3), evidence, atol=0.02)

    diagonal = replace(full, encoder=DIAGONAL)
    bounds = exact.bounds(diagonal, blank(DIAGONAL, x), x, draws=200)
    best, error = evidence - len(x) * exact.GAP, bounds.std() / np.sqrt(200)
    # Here noise is left in the 20 numbers refined, and costs 0.3 nats in all or less.
    assert best - 4 * error - 0.3 < bounds.mean() < best + 4 * error < evidence


def test_rows_are_refined_one_by_one():
    x = exact.rows()
    guide = SemiAmortized(exact.MODEL, DIAGONAL, 3, step_size=0.01)
    params = {"decoder": exact.DECODER, "data": jnp.arange(len(x))} | exact.fresh(DIAGONAL, x)
    other = x.copy()
    other[2] += 1.0
    here, there = refined(guide, params, x), refined(guide, params, other)
    changed = np.abs(here - there).max(axis=1)
    assert changed[2] > 0.1 and np.delete(changed, 2).max() == 0
    # A plate that stands for ten times as many rows changes nothing of a row's own bound.
    with handlers.seed(rng_seed=0), handlers.substitute(data=params), handlers.trace() as tr:
        guide(x, num_data=10 * len(x))
    np.testing.assert_array_equal(tr["z"]["fn"].base_dist.loc, here)


def test_the_gradient_goes_through_the_steps():
    """Of the bound at the refined guide, to encoder and decoder, against central differences at the same key."""
    x = exact.rows()
    guide = SemiAmortized(exact.MODEL, DIAGONAL, 3, step_size=0.01)
    params = {"decoder": exact.DECODER} | exact.fresh(DIAGONAL, x)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(3)
    direction = jax.tree.unflatten(tree, [jnp.float32(rng.normal(size=v.shape)) for v in leaves])

    def bound(params):
        return ELBO().evaluate(jax.random.key(4), params, exact.MODEL, guide, x=x).bound

    def along(step):
        return bound(jax.tree.map(lambda v, d: v + step * d, params, direction))

    slope, low, high = jax.jit(lambda: (jax.jvp(along, (0.0,), (1.0,))[1], along(-1e-2), along(1e-2)))()
    assert (float(high) - float(low)) / 2e-2 == pytest.approx(float(slope), rel=2e-2)
    gradient = jax.jit(jax.grad(bound))(params)
    backwards = sum(
        float((g * d).sum()) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    )
    assert backwards == pytest.approx(float(slope), rel=1e-3)


def test_models_that_it_cannot_ask_are_refused():
    x = exact.rows()
    with pytest.raises(Incompatible, match=r"the model's latent sites are \[.*'loadings'"):
        check(PPCA(2), SemiAmortized(PPCA(2), DIAGONAL), ELBO(), x)
    for options, error, message in (
        ({"num_steps": -1}, ValueError, "num_steps is -1"),
        ({"num_particles": 0}, ValueError, "num_particles is 0"),
        ({"step_size": 0.0}, ValueError, "step_size is 0.0; expected a positive number"),
        ({"encoder": Linear()}, TypeError, r"expected a guide with encode\(x\) and at\(outputs\)"),
    ):
        with pytest.raises(error, match=message):
            replace(SemiAmortized(exact.MODEL, DIAGONAL), **options)
