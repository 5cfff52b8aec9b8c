"""Bernoulli draws: probabilities, and independence of how many are drawn side by side."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from inference import ContrastiveDivergence, fit
from ppl_models import RBM
from ppl_models.binary_draws import bernoulli, uniform


def test_frequencies_are_the_probabilities():
    """Within five standard errors: one false alarm in 300,000 seeds for seven probabilities."""
    p, n = jnp.array([0.0, 1e-3, 0.1, 0.5, 0.9, 0.999, 1.0]), 100_000
    found = bernoulli(jax.random.key(0), jnp.broadcast_to(p, (n, 7))).mean(0)
    assert (np.abs(found - p) <= 5 * np.sqrt(p * (1 - p) / n)).all()


def test_a_vmapped_draw_is_that_of_its_own_key():
    keys = jax.random.split(jax.random.key(0), (2, 3))
    side_by_side = jax.jit(jax.vmap(jax.vmap(lambda key: uniform(key, (4,)))))(keys)
    one_by_one = [[uniform(key, (4,)) for key in row] for row in keys]
    np.testing.assert_array_equal(side_by_side, np.array(one_by_one))


def test_a_chain_of_a_machine_does_not_depend_on_how_many_there_are():
    x = np.random.default_rng(0).integers(0, 2, (20, 4)).astype(np.float32)
    algorithm = ContrastiveDivergence(RBM(2), persistent=True, optimizer=optax.sgd(0.1))
    few, many = (fit(algorithm, x, key=0, num_steps=5, num_chains=n, batch_size=10, progress=False) for n in (2, 4))
    pairs = {tuple(row) for row in np.round(many.history["free_energy"][:, :5], 4)}
    # chains are sorted best first, so they are found among the others; to the rounding of other batch sizes
    assert all(tuple(row) in pairs for row in np.round(few.history["free_energy"][:, :5], 4))
