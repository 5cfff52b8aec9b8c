"""Flow guides: inverse and log-determinant against autodiff, densities that integrate to one, frequencies of draws."""

import jax
import jax.numpy as jnp
import linear_vae_exact as exact
import numpy as np
import pyro
import pytest
from numpyro import handlers

from guides import AmortizedFlow, AmortizedNormal, SemiAmortized
from inference import Incompatible
from inference.objectives import STL
from inference.pyro_check import check_engine
from ppl_models import VAE
from ppl_models.networks import MLP, Linear
from ppl_models.networks.bijections import AutoregressiveFlow, FlowTransform, PlanarFlow, bijection
from ppl_models.priors import FlowPrior

FLOWS = [AutoregressiveFlow(2, 8), PlanarFlow(4, 8)]
every_flow = pytest.mark.parametrize("flow", FLOWS, ids=lambda value: type(value).__name__)


def bent(params, size=0.7):
    """Weights away from their start, so that the flow is far from the identity."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda v: v + size * rng.normal(size=np.shape(v)).astype(np.float32), params)


def transform(flow, dim, context):
    context_dim = None if context is None else context.shape[-1]

    def program():
        return bijection("flow", flow, dim, context_dim)

    tr = handlers.trace(handlers.seed(program, rng_seed=0)).get_trace()
    with handlers.substitute(data={"flow": bent(tr["flow"]["value"])}):
        return FlowTransform(program(), context)


@every_flow
@pytest.mark.parametrize(("dim", "conditional"), [pytest.param(1, False, marks=pytest.mark.slow), (3, True)])
def test_inverse_and_log_determinant(flow, dim, conditional):
    rng = np.random.default_rng(0)
    x = jnp.float32(rng.normal(size=(4, dim)))
    context = jnp.float32(rng.normal(size=(4, 2))) if conditional else None
    t = transform(flow, dim, context)
    y, log_det = jax.jit(t.call_with_intermediates)(x)
    assert y.shape == x.shape and log_det.shape == (4,) and float(jnp.abs(y - x).max()) > 0.1
    np.testing.assert_allclose(jax.jit(t._inverse)(y), x, atol=2e-4)  # float32, through layers that shrink and widen
    jacobian = jax.jacfwd(lambda x: t(x))(x)  # (4, dim, 4, dim), zero between rows
    blocks = np.float64(jnp.einsum("nink->nik", jacobian))
    assert np.abs(jacobian).sum() == pytest.approx(np.abs(blocks).sum())
    # Shrunk seventeenfold, a row's determinant is what is left of differences of float32; CPUs differ by 1.4e-4.
    np.testing.assert_allclose(log_det, np.linalg.slogdet(blocks)[1], atol=3e-4)
    np.testing.assert_allclose(t.log_abs_det_jacobian(x, y), log_det, atol=1e-5)
    # The inverse has the derivative of an inverse.
    back = np.float64(jnp.einsum("nink->nik", jax.jacrev(t._inverse)(y)))
    np.testing.assert_allclose(back @ blocks, np.broadcast_to(np.eye(dim), (4, dim, dim)), atol=5e-3)


@every_flow
def test_density_integrates_to_one_and_is_that_of_the_draws(flow):
    guide = AmortizedFlow(2, MLP((5,)), flow, context_dim=3)
    x = np.random.default_rng(2).normal(size=(1, 4)).astype(np.float32)
    params = bent(exact.fresh(guide, x), 0.4)
    with handlers.seed(rng_seed=0), handlers.substitute(data=params), handlers.trace() as tr:
        guide(x)
    q = tr["z"]["fn"]
    assert q.event_shape == (2,) and q.batch_shape == (1,)

    z, intermediates = q.sample_with_intermediates(jax.random.key(0), (20_000,))
    at_draws = q.log_prob(z, intermediates)
    few = slice(200)
    np.testing.assert_allclose(jax.jit(q.log_prob)(z[few]), at_draws[few], atol=5e-3)  # float32 inverse

    low, high = np.float64(z.min((0, 1))), np.float64(z.max((0, 1)))
    middle, half = (low + high) / 2, 0.8 * (high - low)
    axes = [np.linspace(m - h, m + h, 300) for m, h in zip(middle, half, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).astype(np.float32).reshape(-1, 1, 2)
    mass = np.exp(np.float64(jax.jit(q.log_prob)(grid)))[:, 0] * np.prod(2 * half / 299)
    assert mass.sum() == pytest.approx(1.0, abs=5e-3)  # a smooth density, 300 points a side
    # Draws fall where the density says: means of four test functions, 4 standard errors (false alarm 3e-4).
    for f in (lambda z: z[..., 0], lambda z: z[..., 1], lambda z: z[..., 0] * z[..., 1], lambda z: z[..., 0] > 0.1):
        drawn = np.float64(f(z))
        assert abs(drawn.mean() - (f(grid)[:, 0] * mass).sum()) < 4 * drawn.std() / np.sqrt(len(drawn)) + 5e-3


@pytest.mark.slow
@every_flow
def test_training_bends_the_guide_towards_the_posterior(flow):
    """From below the best independent coordinates to above it, and never above the evidence."""
    guide = AmortizedFlow(2, Linear(), flow, context_dim=1)
    x = exact.rows()
    raw = exact.inverse_softplus(np.diag(exact.LAMBDA) ** -0.5)
    params = exact.fresh(guide, x) | {"encoder": exact.encoder(np.append(raw, 0.0))}
    trained = exact.climb(guide, params, x, num_steps=1500)
    bounds = exact.bounds(guide, trained, x, draws=4000)
    evidence, error = exact.log_evidence(x).sum(), bounds.std() / np.sqrt(4000)
    assert evidence - len(x) * exact.GAP / 4 < bounds.mean() < evidence + 4 * error  # false alarm 3e-5
    # STL inverts the flow at the same draws.
    np.testing.assert_allclose(
        exact.bounds(guide, trained, x, draws=50, objective=STL()), exact.bounds(guide, trained, x, draws=50), atol=2e-2
    )


def test_pyro_is_refused_by_name():
    encoder = AmortizedNormal(2, MLP((5,)))
    vae = VAE(2, MLP((5,)), prior=FlowPrior(), ppl=pyro)
    for program in (AmortizedFlow(2, MLP((5,))), SemiAmortized(exact.MODEL, encoder), vae):
        with pytest.raises(Incompatible, match="is written for ppl=numpyro"):
            check_engine(program)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: AmortizedFlow(0, MLP((5,))), ValueError, "latent_dim is 0"),
        (lambda: AmortizedFlow(2, MLP((5,)), context_dim=0), ValueError, "context_dim is 0"),
        (lambda: AmortizedFlow(2, MLP((5,)), flow="iaf"), TypeError, "flow is 'iaf'; expected a description"),
        (lambda: AmortizedFlow(2, (5,)), TypeError, "network is a tuple; numpyro needs"),
        (lambda: PlanarFlow(0), ValueError, "num_layers is"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
