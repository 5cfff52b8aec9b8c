"""The Hamiltonian guide: leapfrog's volume and error, and a bound below a known evidence."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import linear_vae_exact as exact
import numpy as np
import pytest

from guides import AmortizedNormal, Hamiltonian
from guides.hamiltonian import leapfrog
from inference import Incompatible, check
from inference.objectives import ELBO, STL, DReG, ReweightedWakeSleep
from ppl_models import PPCA
from ppl_models.networks import MLP, Linear

ENCODER = AmortizedNormal(2, Linear())
GUIDE = Hamiltonian(exact.MODEL, ENCODER, MLP((8,)), num_steps=3, init_step_size=0.1)


def test_leapfrog_keeps_volume_turns_back_and_nearly_keeps_energy():
    def energy(z):
        return jnp.sum(jnp.cosh(z)) + 0.3 * z[0] * z[1]

    def move(state, steps=10, size=0.1):
        return jnp.stack(leapfrog(lambda z: -jax.grad(energy)(z), size * jnp.array([1.0, 0.7]), steps, *state))

    state = jnp.array([[0.5, -1.0], [0.8, 0.3]])
    jacobian = np.float64(jax.jacfwd(move)(state)).reshape(4, 4)
    assert np.linalg.det(jacobian) == pytest.approx(1.0, abs=1e-5)
    z, v = move(state)
    np.testing.assert_allclose(move(jnp.stack([z, -v])), jnp.stack([state[0], -state[1]]), atol=1e-5)

    def error(size, steps):  # of H, whose steps are (e, 0.7 e): conserved by the flow of the rescaled coordinates
        z, v = leapfrog(lambda z: -jax.grad(energy)(z), jnp.full(2, size), steps, *state)
        return float(energy(z) + 0.5 * v @ v - energy(state[0]) - 0.5 * state[1] @ state[1])

    assert error(0.2, 5) / error(0.1, 10) == pytest.approx(4.0, rel=0.2)  # second order


def test_no_steps_is_the_encoder():
    x = exact.rows()
    params = exact.fresh(ENCODER, x)
    plain, none = (exact.bounds(g, params, x, draws=3) for g in (ENCODER, replace(GUIDE, num_steps=0)))
    np.testing.assert_array_equal(plain, none)


@pytest.mark.slow
def test_the_bound_is_below_the_evidence_and_its_weights_are_unbiased():
    """E[w] = p(x) for any reverse model and step sizes: a wrong Jacobian or a lost term would show."""
    x = exact.rows(1)
    evidence = exact.log_evidence(x).sum()
    # Half learned and a little too wide: weights whose mean can be estimated, far enough from equal to say something.
    params = exact.climb(GUIDE, started(x), x, num_steps=200)
    params["encoder"] = jax.tree.map(lambda v: v.at[2:].add(0.3) if v.ndim == 1 else v, params["encoder"])
    log_weights = exact.bounds(GUIDE, params, x, draws=40_000)
    error = log_weights.std() / 200
    assert log_weights.mean() < evidence - 4 * error
    ratio = np.exp(log_weights - evidence)
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / 200  # false alarm 6e-5
    assert 0.1 < ratio.std() < 2  # so that the line above is a test

    particles = exact.bounds(GUIDE, params, x, draws=400, particles=50)
    assert log_weights.mean() < particles.mean() < evidence + 4 * particles.std() / 20


def started(x):
    """The guide's own parameters: the best independent coordinates, and the rest as it starts."""
    params = exact.fresh(GUIDE, x) | {"encoder": exact.DIAGONAL}
    return {name: value for name, value in params.items() if name != "decoder"}


@pytest.mark.slow
def test_training_goes_beyond_independent_coordinates():
    x = exact.rows()
    trained = exact.climb(GUIDE, started(x), x, num_steps=2000)
    bounds = exact.bounds(GUIDE, trained, x, draws=4000)
    evidence, error = exact.log_evidence(x).sum(), bounds.std() / np.sqrt(4000)
    assert evidence - len(x) * exact.GAP / 2 < bounds.mean() - 4 * error
    assert bounds.mean() < evidence + 4 * error


@pytest.mark.parametrize("objective", [STL(), DReG(2), ReweightedWakeSleep(2)], ids=lambda value: type(value).__name__)
def test_objectives_that_need_the_density_of_z_are_refused(objective):
    with pytest.raises(Incompatible, match="known for its own draws with their momentum"):
        check(exact.MODEL, GUIDE, objective, exact.rows())


def test_bad_arguments():
    with pytest.raises(Incompatible, match="the model's latent sites are"):
        check(PPCA(2), Hamiltonian(PPCA(2), ENCODER, MLP((8,))), ELBO(), exact.rows())
    for options, error, message in (
        ({"num_steps": 1.5}, ValueError, "num_steps is 1.5"),
        ({"init_step_size": -1.0}, ValueError, "init_step_size is -1.0; expected a positive number"),
        ({"encoder": MLP((3,))}, TypeError, r"expected a guide with conditional\(x\)"),
        ({"network": (8,)}, TypeError, "network is a tuple; numpyro needs"),
    ):
        with pytest.raises(error, match=message):
            replace(GUIDE, **options)
