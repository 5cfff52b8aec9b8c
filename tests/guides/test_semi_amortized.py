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
from inference.objectives import ELBO, IWAE
from inference.programs import site_log_prob, trace
from ppl_models import PPCA
from ppl_models.networks import Linear

FULL, DIAGONAL = AmortizedFullNormal(2, Linear()), AmortizedNormal(2, Linear())


def refined(guide, params, x, key=0, num_data=None):
    """Where each row's q is after the steps."""
    with handlers.seed(rng_seed=key), handlers.substitute(data=params), handlers.trace() as tr:
        guide(x, num_data)
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
    drawn = exact.bounds(full, blank(FULL, x), x, draws=3, objective=IWAE(1))  # with no KL in closed form
    np.testing.assert_allclose(drawn, evidence, atol=0.02)

    diagonal = replace(full, encoder=DIAGONAL)
    bounds = exact.bounds(diagonal, blank(DIAGONAL, x), x, draws=200)
    best, error = evidence - len(x) * exact.GAP, bounds.std() / np.sqrt(200)
    # Here noise is left in the 20 numbers refined, and costs 0.3 nats in all or less.
    assert best - 4 * error - 0.3 < bounds.mean() < best + 4 * error < evidence


def test_the_refined_guide_is_a_function_of_the_row():
    """Not of the other rows, nor of the key, nor of how many rows the plate stands for."""
    x = exact.rows()
    guide = SemiAmortized(exact.MODEL, DIAGONAL, 3, step_size=0.01)
    params = {"decoder": exact.DECODER} | exact.fresh(DIAGONAL, x)
    together = refined(guide, params, x)
    assert np.abs(together - refined(replace(guide, num_steps=0), params, x)).max() > 0.1
    for key, row in enumerate(x, 1):
        alone = refined(guide, params, row[None], key, num_data=7)
        np.testing.assert_allclose(alone[0], together[key - 1], atol=1e-5)  # float32 sums in another order


def test_log_q_at_given_latents_is_that_of_the_guide_that_drew_them():
    """STL, DReG and wake-sleep run the guide again, by another key."""
    x = exact.rows()
    params = {"decoder": exact.DECODER} | exact.fresh(DIAGONAL, x)

    def guide():
        return SemiAmortized(exact.MODEL, DIAGONAL, 3, step_size=0.01)(x)

    first = trace(guide, jax.random.key(1), params)["z"]
    again = trace(guide, jax.random.key(2), params | {"z": first["value"]})["z"]
    np.testing.assert_allclose(site_log_prob(again), site_log_prob(first), rtol=1e-5)


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
