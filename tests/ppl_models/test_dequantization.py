"""Grey levels under a flow: probabilities by quadrature, bounds below them, and bits a pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpyro import handlers
from scipy import stats

from guides import UniformDequantization, VariationalDequantization, empty
from inference import SVI, BadData, fit
from inference.objectives import ELBO, IWAE
from ppl_models import Flow, QuantizedFlow
from ppl_models.dequantization import Dequantize, bits_per_dimension
from ppl_models.networks import MLP, Planar, flow

LEVELS, ARCHITECTURE = 4, Planar(2)
MODEL = QuantizedFlow(ARCHITECTURE, LEVELS)
GUIDES = [UniformDequantization(LEVELS), VariationalDequantization(LEVELS, MLP((5,)))]
ALL = np.stack(np.meshgrid(np.arange(4), np.arange(4), indexing="ij"), -1).reshape(-1, 2).astype(np.float32) / 3


@pytest.fixture(scope="module")
def params():
    """Weights of a flow that leaves little mass outside of the unit square."""
    x = np.random.default_rng(0).choice(4, (50, 2), p=[0.1, 0.5, 0.3, 0.1]).astype(np.float32) / 3
    found = {}
    for program in (MODEL, GUIDES[1]):
        found |= handlers.trace(handlers.seed(program, 3)).get_trace(x)
    return {n: found[n]["value"] for n in ("flow", "encoder")}


@pytest.fixture(scope="module")
def probabilities(params):
    """log P(k) of all 16 pairs of levels by the midpoint rule, and the part of it that lies in the unit square.

    Of outer levels P counts what is beyond the square too, where no guide looks.
    """
    with handlers.substitute(data=params):
        p = flow("flow", ARCHITECTURE, 2)
    edge, points = 4.0, 9 * 100
    step = (1 + 2 * edge) / points
    axis = (-edge + (np.arange(points) + 0.5) * step).astype(np.float32)  # cells' borders fall between points
    grid = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    density = np.exp(np.asarray(jax.jit(p.log_prob)(grid), np.float64)).reshape(points, points) * step**2
    k = np.clip(np.floor(LEVELS * axis), 0, LEVELS - 1).astype(int)
    inside = (axis > 0) & (axis < 1)
    table, cells = np.zeros((2, 4, 4))
    np.add.at(table, (k[:, None], k[None, :]), density)
    np.add.at(cells, (k[:, None], k[None, :]), density * inside[:, None] * inside)
    assert table.sum() == pytest.approx(1, abs=2e-3)  # probabilities of levels sum to one
    return np.log(table).ravel(), np.log(cells).ravel()


@pytest.mark.parametrize("guide", GUIDES, ids=lambda g: type(g).__name__)
def test_bounds_lie_below_the_probability_and_tend_to_it(guide, params, probabilities):
    def bounds(objective):
        def one(key, row):
            return -objective.loss(key, params, MODEL, guide, x=row[None])

        return jax.jit(jax.vmap(one, in_axes=(None, 0)))(jax.random.key(1), ALL)

    elbo, iwae = bounds(ELBO(4000)), bounds(IWAE(4000))
    all_of_it, cells = probabilities
    # Both are averages of 4,000 draws, with Monte-Carlo errors below 0.01 on these cells.
    assert (elbo < cells + 0.03).all() and (cells <= all_of_it).all()
    np.testing.assert_allclose(iwae, cells, atol=0.03)
    assert (cells - elbo).max() > 0.05  # in some cell the density is not flat


def test_uniform_noise_on_the_data_is_the_uniform_guides_bound(params):
    key = jax.random.key(0)
    v = Dequantize(LEVELS)(key, {"x": jnp.repeat(ALL[5:6], 20_000, axis=0)})["x"]
    assert (np.floor(LEVELS * v) == LEVELS * 0 + np.round(3 * ALL[5])).all()
    with handlers.substitute(data=params):
        transformed = np.asarray(flow("flow", ARCHITECTURE, 2).log_prob(v)) - 2 * np.log(LEVELS)
    loss = jax.jit(lambda key: ELBO(20_000).loss(key, params, MODEL, GUIDES[0], x=ALL[5:6]))
    # Two averages of 20,000 draws: 5 standard errors of their difference.
    assert transformed.mean() == pytest.approx(-float(loss(key)), abs=5 * transformed.std() * (2 / 20_000) ** 0.5)


def test_bits_per_dimension():
    assert bits_per_dimension(-2 * 10 * np.log(2), 10) == pytest.approx(2.0)  # nats of a probability
    assert bits_per_dimension(0.0, 64, levels=256) == pytest.approx(8.0)  # a uniform density knows nothing
    density = stats.uniform(0, 0.5).logpdf(0.2) * 3  # all levels in the lower half: one bit less
    assert bits_per_dimension(density, 3, levels=16) == pytest.approx(3.0)


@pytest.mark.slow
def test_a_fit_learns_the_frequencies_of_the_levels():
    share = np.array([0.05, 0.6, 0.25, 0.1])
    x = np.random.default_rng(0).choice(4, (400, 2), p=share).astype(np.float32) / 3
    runs = [
        fit(SVI(MODEL, guide, ELBO(2), optax.adam(1e-2)), x, key=0, num_steps=300, batch_size=100) for guide in GUIDES
    ]
    entropy = -2 * (share * np.log(share)).sum()
    bounds = [run.history["bound"][0, -50:].mean() for run in runs]
    assert all(-entropy - 0.6 < bound < -entropy + 0.1 for bound in bounds), (bounds, entropy)
    run = runs[1]
    made = run.generate(3000)["x"]
    assert set(np.round(3 * made).ravel()) <= {0, 1, 2, 3}
    # log P(x) is at most the negative entropy in the mean, give or take 400 rows' error.
    assert -entropy - 0.5 < run.log_likelihood(x, num_particles=100).mean < -entropy + 0.1
    np.testing.assert_allclose(run.reconstruct(x[:9])["x"], x[:9], atol=1e-6)  # v tells the level


def test_dequantization_as_a_transform_of_a_data_set():
    from ppl_models.datasets import Dataset

    x = np.random.default_rng(0).choice(4, (60, 2)).astype(np.float32) / 3
    data = Dataset("levels-dequantized", {"x": x}, transform=Dequantize(LEVELS))
    run = fit(SVI(Flow(Planar(1)), empty, ELBO(), optax.adam(1e-3)), data, key=0, num_steps=3, batch_size=20)
    bits = bits_per_dimension(run.log_likelihood(data).mean, 2, LEVELS)
    assert 1.5 < bits < 4  # two bits a pixel is the truth, and the flow is near its start


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuantizedFlow(Planar(), 1), "levels is 1; expected a whole number of at least 2"),
        (lambda: Dequantize(2.5), "levels is 2.5"),
        (lambda: UniformDequantization(0), "levels is 0"),
        (lambda: VariationalDequantization(True, MLP((3,))), "levels is True"),
    ],
)
def test_bad_levels(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_data_of_other_levels_are_refused():
    x = np.random.default_rng(0).choice(5, (20, 2)).astype(np.float32) / 4
    with pytest.raises(BadData, match="'x' is observed outside its likelihood's support, grey ?levels"):
        fit(SVI(MODEL, GUIDES[0], ELBO(), optax.sgd(1e-3)), x, key=0, num_steps=2)
