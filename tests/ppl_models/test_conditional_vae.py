"""The conditional VAE: log joint by hand and in both engines, likelihood by quadrature, rows of a given class."""

import equinox as eqx
import jax
import numpy as np
import numpyro
import optax
import pyro
import pytest
import torch
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import stats
from scipy.special import expit, logsumexp

from guides import ConditionalNormal
from inference import SVI, BadData, Incompatible, PyroSVI, fit
from inference.objectives import ELBO
from ppl_models import ConditionalVAE
from ppl_models.networks import MLP

CLASSES, PIXELS, ROWS = 3, 6, 90
RNG = np.random.default_rng(0)
Y = np.arange(ROWS) % CLASSES
PROTOTYPES = np.repeat(np.eye(CLASSES), PIXELS // CLASSES, axis=1)
X = (RNG.random((ROWS, PIXELS)) < 0.1 + 0.8 * PROTOTYPES[Y]).astype(np.float32)
DATA = {"x": X, "y": Y}


def log_x(weights, x, y, z):
    """log p(x | y, z) of rows."""
    w1, b1, w2, b2 = map(np.float64, jax.tree.leaves(weights))
    outputs = np.tanh(np.concatenate([z, np.eye(CLASSES)[y]], axis=1) @ w1.T + b1) @ w2.T + b2
    return stats.bernoulli(expit(outputs)).logpmf(x).sum(-1)


def test_log_joint_by_hand_and_in_both_engines():
    model = ConditionalVAE(CLASSES, 2, MLP((5,)))
    module = eqx.filter(model.decoder.build(2 + CLASSES, PIXELS, jax.random.key(0)), eqx.is_array)
    weights = jax.tree.map(lambda w: RNG.normal(0, 0.7, w.shape).astype(np.float32), module)
    z = RNG.normal(size=(ROWS, 2)).astype(np.float32)
    expected = 2 * (log_x(weights, X, Y, z).sum() + stats.norm.logpdf(z).sum())
    values, kwargs = {"decoder": weights, "z": z}, {"num_data": 2 * ROWS}
    ours = log_density(handlers.seed(model, 0), (X, Y), kwargs, values)[0]
    assert float(ours) == pytest.approx(expected, rel=1e-5)  # float32 sums of 720 terms; N / B = 2

    program, data = ConditionalVAE(CLASSES, 2, MLP((5,)), ppl=pyro), (torch.tensor(X), torch.tensor(Y))
    pyro.clear_param_store()
    program(*data)
    for name, leaf in zip(list(pyro.get_param_store()), jax.tree.leaves(weights), strict=True):
        pyro.get_param_store()[name] = torch.tensor(leaf)
    theirs = pyro.poutine.trace(pyro.poutine.condition(program, {"z": torch.tensor(z)})).get_trace(*data, **kwargs)
    assert theirs.log_prob_sum().item() == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def run():
    model, guide = ConditionalVAE(CLASSES, 1, MLP((5,))), ConditionalNormal(CLASSES, 1, MLP((5,)))
    return fit(SVI(model, guide, ELBO(), optax.adam(3e-2)), DATA, key=0, num_steps=300)


def test_likelihood_is_of_rows_given_their_class(run):
    """Importance sampling within 5 standard errors of the quadrature, 90 rows.

    Pixels are independent given the class: z has nothing to say, and the bound comes to the likelihood, -6 H(0.1).
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    rows = [log_x(run.params["decoder"], x, np.full(60, y), nodes[:, None]) for x, y in zip(X, Y, strict=True)]
    exact = logsumexp(rows, b=weights / np.sqrt(2 * np.pi), axis=1)
    found = run.log_likelihood(DATA, 1000)
    np.testing.assert_array_less(np.abs(found.rows - exact), 5 * np.sqrt(found.variance) + 1e-4)
    assert run.history["bound"][0, -50:].mean() == pytest.approx(exact.mean(), abs=0.02)  # of 50 noisy steps
    assert exact.mean() == pytest.approx(6 * (0.1 * np.log(0.1) + 0.9 * np.log(0.9)), abs=0.2)  # of 90 rows


def test_rows_of_a_given_class_look_like_it(run):
    """Classes differ in which third of the pixels is on, with probability 0.9 against 0.1."""
    means = run.generate(50 * CLASSES, given={"y": np.repeat(np.arange(CLASSES), 50)}, expected=True)["x"]
    found = means.reshape(CLASSES, 50, PIXELS).mean(axis=1)
    np.testing.assert_allclose(found, 0.1 + 0.8 * PROTOTYPES, atol=0.15)  # three standard errors of 30 rows
    drawn = run.generate(500, given={"y": 1})["x"]
    np.testing.assert_allclose(drawn.mean(axis=0), found[1], atol=0.1)  # over four standard errors of 500 draws


def test_what_is_not_given_or_does_not_fit_is_refused(run):
    with pytest.raises(Incompatible, match=r"'y'. are inputs of the model.*given={'y': value}"):
        run.generate(5)
    with pytest.raises(BadData, match=r"given 'y' has shape \(2,\); expected \(5,\), or \(\) for all rows"):
        run.generate(5, given={"y": [0, 1]})
    with pytest.raises(BadData, match=r"given is .'label'.; expected names of arrays of the data, .'x', 'y'."):
        run.generate(5, given={"label": 0})
    with pytest.raises(BadData, match="given 'y' has dtype float64; expected int32"):
        run.generate(5, given={"y": 1.5})
    with pytest.raises(ValueError, match=r"classes y range over \[0, 3\]; expected whole numbers from 0 to 2"):
        run.generate(4, given={"y": range(4)})
    with pytest.raises(ValueError, match=r"classes y range over \[1, 3\]"):
        run.log_likelihood(DATA | {"y": Y + 1}, 10)
    for classes in (Y + 1, Y - 1, Y + 0.5, np.eye(CLASSES)[Y]):
        with pytest.raises(Incompatible, match="classes y (range over|have shape)"):
            fit(run.algorithm, DATA | {"y": classes}, key=0, num_steps=1)


def test_pyro_generates_rows_of_a_class_too():
    model = ConditionalVAE(CLASSES, 1, MLP((5,)), ppl=pyro)
    guide = ConditionalNormal(CLASSES, 1, MLP((5,)), ppl=pyro)
    run = fit(PyroSVI(model, guide, ELBO(), torch.optim.Adam, {"lr": 3e-2}), DATA, key=0, num_steps=150)
    found = run.generate(50, given={"y": 1}, expected=True)["x"].mean(axis=0)
    assert (found[2:4] > 0.7).all() and (np.delete(found, [2, 3]) < 0.3).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ConditionalVAE(0, 2, MLP((5,))), ValueError, "num_classes is 0; expected a whole number"),
        (lambda: ConditionalVAE(3, True, MLP((5,))), ValueError, "latent_dim is True"),
        (lambda: ConditionalNormal(3, 2, 5), TypeError, "network is a int; numpyro needs a description"),
        (lambda: ConditionalVAE(3, 2, MLP((5,)), None, numpyro), TypeError, "likelihood is None"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
