"""Flows: a density that integrates to one, an inverse, the log-determinant by autodiff, draws that follow it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from numpyro import handlers
from scipy import stats

import guides
from inference import SVI, Fit, Incompatible, NonFinite, fit
from inference.objectives import ELBO
from ppl_models import Flow
from ppl_models.networks import MAF, MLP, NeuralSpline, Planar, RealNVP, flow

SMALL = [RealNVP(3, 6), MAF(2, 6), NeuralSpline(2, 6, num_bins=4, interval=3.0), Planar(6)]
architectures = pytest.mark.parametrize("architecture", SMALL, ids=lambda value: type(value).__name__)


def perturbed(architecture, condition=None, scale=0.5):
    """A flow over two columns whose weights are far from the start, where layers are near the identity."""
    with handlers.trace() as tr, handlers.seed(rng_seed=0):
        flow("flow", architecture, 2, condition)
    leaves, tree = jax.tree.flatten(tr["flow"]["value"])
    rng = np.random.default_rng(1)
    weights = jax.tree.unflatten(tree, [v + scale * rng.normal(size=v.shape).astype(np.float32) for v in leaves])
    with handlers.substitute(data={"flow": weights}):
        return flow("flow", architecture, 2, condition)


def grid(half_width, points):
    axis = np.linspace(-half_width, half_width, points, dtype=np.float32)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2), (axis[1] - axis[0]) ** 2


@architectures
def test_density_inverse_log_determinant_and_draws(architecture):
    q = perturbed(architecture)
    log_prob = jax.jit(q.log_prob)

    # It integrates to one, on a grid that holds all but 1e-3 of the mass (the draws below say so).
    draws = np.asarray(jax.jit(lambda key: q.sample(key, (4000,)))(jax.random.key(2)))
    centre, spread = np.median(draws, 0), 1.3 * np.abs(draws - np.median(draws, 0)).max()
    points, cell = grid(spread, 700)
    density = np.exp(np.asarray(log_prob(points + centre), np.float64))
    assert density.sum() * cell == pytest.approx(1, abs=0.01)  # the corners of splines and rectifiers, of cell's size

    # g(f(x)) = x, and log |det df/dx| is that of the Jacobian by automatic differentiation.
    bijection = q.bijection
    x = jnp.asarray(draws[:20])

    def one(x):
        z, log_det = bijection.inverse_and_log_det(x)
        back, _ = bijection.transform_and_log_det(z)
        return z, log_det, back, jnp.linalg.slogdet(jax.jacfwd(bijection.inverse)(x))[1]

    z, log_det, back, by_autodiff = jax.jit(jax.vmap(one))(x)
    np.testing.assert_allclose(back, x, atol=2e-3 * spread)  # float32, through layers with gains of some hundreds
    np.testing.assert_allclose(log_det, by_autodiff, atol=2e-3)
    np.testing.assert_allclose(log_prob(x), stats.norm.logpdf(z).sum(-1) + log_det, atol=1e-3)

    # Frequencies of draws in 16 boxes of about equal counts against the density's integral over them.
    edges = [np.concatenate([[-np.inf], np.quantile(draws[:, i], [0.25, 0.5, 0.75]), [np.inf]]) for i in (0, 1)]
    counts = np.histogram2d(*draws.T, bins=edges)[0].ravel()
    shares = np.histogram2d(*(points + centre).T, bins=edges, weights=density * cell)[0].ravel()
    test = stats.chisquare(counts, shares / shares.sum() * counts.sum())
    assert test.pvalue > 1e-4  # false alarm: 1 in 10,000, for each of four fixed seeds


def test_a_flow_starts_at_the_mean_and_deviation_of_the_rows():
    x = np.random.default_rng(0).normal([3.0, -2.0], [0.5, 4.0], (500, 2)).astype(np.float32)
    tr = handlers.trace(handlers.seed(Flow(Planar(2)), 0)).get_trace(x)
    # Planar layers start as the identity.
    expected = stats.norm(x.mean(0), x.std(0)).logpdf(x).sum(1)
    np.testing.assert_allclose(tr["x"]["fn"].log_prob(x), expected, atol=1e-4)


def test_a_condition_moves_the_density():
    q = perturbed(RealNVP(2, 6), np.array([[-1.0], [2.0]], np.float32), scale=0.3)
    points, cell = grid(20.0, 800)
    totals = jax.jit(lambda p: jnp.exp(q.log_prob(p[:, None])).sum(0) * cell)(points)
    assert q.batch_shape == (2,)
    np.testing.assert_allclose(totals, 1, atol=0.01)
    values = q.log_prob(jnp.zeros((2, 2)))
    assert abs(values[0] - values[1]) > 0.05


def test_a_fit_is_maximum_likelihood():
    """A normal target's density is a flow of no layers but the last: the fit is the sample's mean and deviation."""

    def affine(dim, condition_dim, key):
        from flowjax.distributions import StandardNormal

        return StandardNormal((dim,))

    x = np.random.default_rng(0).normal([3.0, -2.0], [0.5, 4.0], (400, 2)).astype(np.float32)
    algorithm = SVI(Flow(affine), guides.empty, ELBO(), optax.adam(1e-2))
    run = fit(algorithm, x, key=0, num_steps=300, batch_size=100, num_chains=2)
    expected = stats.norm(x.mean(0), x.std(0)).logpdf(x).sum(1)
    ours = run.log_likelihood(x)
    assert not ours.variance.any()  # exact
    assert ours.mean == pytest.approx(expected.mean(), abs=0.01)  # minibatches of 100 move the mean by 0.1 deviations
    assert run.generate(2000)["x"].mean(0) == pytest.approx(x.mean(0), abs=0.5)


@pytest.mark.slow
def test_a_fit_is_saved_and_read(tmp_path):
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    algorithm = SVI(Flow(RealNVP(2, 4)), guides.empty, ELBO(), optax.adam(1e-2))
    run = fit(algorithm, x, key=0, num_steps=3)
    run.save(tmp_path / "flow")
    again = Fit.load(tmp_path / "flow", algorithm)
    np.testing.assert_array_equal(again.log_likelihood(x).rows, run.log_likelihood(x).rows)
    assert "log_likelihood" in run.to_arviz().groups()
    with pytest.raises(Incompatible, match="site 'x' is a FlowDistribution, which has no mean in closed form"):
        run.reconstruct(x)


def test_equal_programs_are_equal_values():
    assert Flow(RealNVP(3, 6)) == Flow(RealNVP(3, 6)) and hash(Flow(MAF())) == hash(Flow(MAF()))
    assert Flow(RealNVP(3, 6)) != Flow(RealNVP(3, 7)) != Flow(MAF(3, 7))


def tanh_planar(dim, condition_dim, key):
    from flowjax.distributions import StandardNormal
    from flowjax.flows import planar_flow

    return planar_flow(key, base_dist=StandardNormal((dim,)), cond_dim=condition_dim)


def flattening(dim, condition_dim, key):
    from flowjax.bijections import Scale
    from flowjax.distributions import StandardNormal, Transformed

    return Transformed(StandardNormal((dim,)), eqx.tree_at(lambda s: s.scale, Scale(jnp.ones(dim)), jnp.zeros(dim)))


def of_another_size(dim, condition_dim, key):
    return RealNVP(1, 4).build_flow(dim + 1, condition_dim, key)


def no_flow(dim, condition_dim, key):
    return MLP((3,)).build(dim, dim, key)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RealNVP(0), ValueError, r"num_layers is \(0,\); expected whole numbers of at least 1"),
        (lambda: MAF(2, 0), ValueError, "width is"),
        (lambda: NeuralSpline(num_bins=0), ValueError, "num_bins is"),
        (lambda: NeuralSpline(interval=-1), ValueError, "interval is -1; expected a positive number"),
        (lambda: Planar(negative_slope=0.0), ValueError, "negative_slope is 0.0; .* is not invertible"),
        (lambda: Flow(RealNVP), TypeError, "architecture is .*; expected a description with build_flow"),
        (lambda: Flow(MLP((3,))), TypeError, "architecture is MLP.*; expected a description with build_flow"),
        (lambda: Flow(3), TypeError, "architecture is 3; expected a description"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("architecture", "columns", "error", "message"),
    [
        (RealNVP(1, 4), 1, Incompatible, "RealNVP was given rows of 1 column; it needs at least 2"),
        (tanh_planar, 2, Incompatible, "tanh_planar.* has a layer that is not invertible in closed form"),
        (of_another_size, 2, Incompatible, r"built a flow over shape \(3,\) given None; expected \(2,\)"),
        (no_flow, 2, Incompatible, "built a Sequential; expected a distribution of flowjax"),
        (flattening, 2, NonFinite, "bound is not finite at step 0"),
    ],
    ids=["one-column", "one-way", "size", "no-flow", "flat"],
)
def test_a_flow_that_is_none_is_refused(architecture, columns, error, message):
    x = np.random.default_rng(0).normal(size=(9, columns)).astype(np.float32)
    with pytest.raises(error, match=message):
        fit(SVI(Flow(architecture), guides.empty, ELBO(), optax.sgd(1e-3)), x, key=0, num_steps=2)


def test_rows_in_no_plate_and_no_key_are_numpyros_business():
    """The program is plain NumPyro: its own SVI runs it."""
    x = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    svi = numpyro.infer.SVI(Flow(RealNVP(2, 4)), guides.empty, optax.adam(1e-2), numpyro.infer.Trace_ELBO())
    losses = svi.run(jax.random.key(0), 20, x, progress_bar=False).losses
    assert np.mean(losses[-5:]) < losses[0]
