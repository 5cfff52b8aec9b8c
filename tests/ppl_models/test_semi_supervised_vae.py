"""M2: its log joint and its bound by brute force over classes, likelihoods by quadrature, its complaints."""

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
from scipy.special import expit, log_softmax, logsumexp, softmax

from guides import SemiSupervisedNormal
from inference import SVI, Incompatible, PyroSVI, check, fit, pyro_density
from inference.objectives import ELBO, EnumeratedELBO, ReweightedWakeSleep, ScoreFunction
from inference.programs import bind, joint_density
from inference.protocols import Batch
from ppl_models import SemiSupervisedVAE
from ppl_models.networks import MLP

CLASSES, PIXELS, ROWS = 3, 4, 6
ALPHA = 2.5
X = (np.random.default_rng(0).random((ROWS, PIXELS)) < 0.4).astype(np.float32)
Y = np.array([0, -1, 2, -1, -1, 1], np.int32)
DATA = {"x": X, "y": Y}
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)  # of a function under N(0, 1), once divided by sqrt(2 pi)
WEIGHTS = WEIGHTS / np.sqrt(2 * np.pi)


def programs(latent_dim=1, alpha=ALPHA, ppl=numpyro):
    model = SemiSupervisedVAE(CLASSES, latent_dim, MLP((5,)), ppl=ppl)
    return model, SemiSupervisedNormal(CLASSES, latent_dim, MLP((5,)), MLP((4,)), alpha=alpha, ppl=ppl)


def random_params(latent_dim=1, seed=2):
    rng = np.random.default_rng(seed)

    def weights(sizes_in, hidden, sizes_out):
        module = eqx.filter(MLP((hidden,)).build(sizes_in, sizes_out, jax.random.key(0)), eqx.is_array)
        return jax.tree.map(lambda w: rng.normal(0, 0.7, w.shape).astype(np.float32), module)

    return {
        "decoder": weights(latent_dim + CLASSES, 5, PIXELS),
        "classifier": weights(PIXELS, 4, CLASSES),
        "encoder": weights(PIXELS + CLASSES, 5, 2 * latent_dim),
    }


def network(weights, rows):
    w1, b1, w2, b2 = map(np.float64, jax.tree.leaves(weights))
    return np.tanh(rows @ w1.T + b1) @ w2.T + b2


def unit(y, rows):
    return np.broadcast_to(np.eye(CLASSES)[y], (rows, CLASSES))


def log_x(params, x, y, z):
    """log p(x | y, z) for rows of z and a class."""
    p = expit(network(params["decoder"], np.concatenate([z, unit(y, len(z))], axis=1)))
    return stats.bernoulli(p).logpmf(x).sum(-1)


def encoded(params, x, y):
    outputs = network(params["encoder"], np.concatenate([x, unit(y, len(x))], axis=1))
    half = outputs.shape[1] // 2
    return outputs[:, :half], np.logaddexp(0, outputs[:, half:]) + 1e-6


def bound_by_hand(params, expected_log_x, alpha=ALPHA):
    """The sum over rows of L(x, y) + alpha log q(y | x), or of U(x): everything but E_q[log p(x | y, z)] by formula."""
    log_q = log_softmax(network(params["classifier"], X), axis=1)
    values = np.empty((ROWS, CLASSES))
    for c in range(CLASSES):
        loc, scale = encoded(params, X, c)
        kl = (0.5 * (loc**2 + scale**2 - 1) - np.log(scale)).sum(1)
        values[:, c] = expected_log_x(params, c, loc, scale) - np.log(CLASSES) - kl
    known = values[np.arange(ROWS), Y] + alpha * log_q[np.arange(ROWS), Y]
    hidden = (np.exp(log_q) * (values - log_q)).sum(1)
    return np.where(Y >= 0, known, hidden).sum()


def at_location(params, c, loc, scale):
    """E_q[log p(x | y, z)] of a q whose scale has vanished."""
    return log_x(params, X, c, loc)


def by_quadrature(params, c, loc, scale):
    """The same for one latent of any scale."""
    z = loc + scale * NODES
    rows = [WEIGHTS @ log_x(params, x, c, z_n[:, None]) for x, z_n in zip(X, z, strict=True)]
    return np.array(rows)


def log_evidence(params, known=Y):
    """log p(x, y), or log p(x) where the class is not known, by quadrature over one latent."""
    each = np.array(
        [[logsumexp(log_x(params, x, c, NODES[:, None]), b=WEIGHTS) for c in range(CLASSES)] for x in X]
    ) - np.log(CLASSES)
    return np.where(known >= 0, each[np.arange(ROWS), known], logsumexp(each, axis=1))


def without_scale(params):
    """The encoder's scales at their floor, 1e-6, so that a draw is its location."""
    weights = jax.tree.map(np.array, params["encoder"])
    w2, b2 = jax.tree.leaves(weights)[2:]
    half = len(b2) // 2
    w2[half:], b2[half:] = 0.0, -60.0
    return params | {"encoder": weights}


def test_log_joint_by_hand_and_in_both_engines():
    params, rng = random_params(2), np.random.default_rng(1)
    z, hidden = rng.normal(size=(ROWS, 2)).astype(np.float32), rng.integers(0, CLASSES, ROWS)
    y = np.where(Y >= 0, Y, hidden)
    rows = [log_x(params, X[n : n + 1], y[n], z[n : n + 1])[0] for n in range(ROWS)]
    expected = 2 * (np.sum(rows) + stats.norm.logpdf(z).sum() - ROWS * np.log(CLASSES))
    values = {"z": z, "y_hidden": hidden.astype(np.int32)}
    seeded, kwargs = handlers.seed(programs(2)[0], 0), {"num_data": 2 * ROWS}
    ours = log_density(seeded, (X, Y), kwargs, params | values)[0]
    assert float(ours) == pytest.approx(expected, rel=1e-5)  # float32 sums of some 40 terms; N / B = 2
    theirs = in_pyro(programs(2, ppl=pyro)[0], params, values, **kwargs)
    assert theirs.log_prob_sum().item() == pytest.approx(expected, rel=1e-5)


def test_a_hidden_class_that_is_summed_out_counts_once_where_it_is_known():
    """log p(x, y, z) of rows whose class is known, and log sum_y of the others, in both engines; N / B = 2."""
    params, rng = random_params(2), np.random.default_rng(1)
    z = rng.normal(size=(ROWS, 2)).astype(np.float32)
    each = np.stack([log_x(params, X, c, z) for c in range(CLASSES)], axis=1) - np.log(CLASSES)
    rows = np.where(Y >= 0, each[np.arange(ROWS), Y], logsumexp(each, axis=1)) + stats.norm.logpdf(z).sum(1)
    batch = Batch({n: jax.numpy.asarray(v) for n, v in DATA.items()}, jax.numpy.arange(ROWS), 2 * ROWS)
    ours = joint_density(bind(programs(2)[0], batch), jax.random.key(0), params | {"z": z})
    np.testing.assert_allclose(ours.rows, rows, rtol=1e-5)
    assert float(ours.total()) == pytest.approx(2 * rows.sum(), rel=1e-5)
    theirs = programs(2, ppl=pyro)[0]
    in_pyro(theirs, params, {"z": z, "y_hidden": np.zeros(ROWS, int)})  # leaves the weights in the store

    def thunk():
        return theirs(torch.tensor(X), torch.tensor(Y), num_data=2 * ROWS)

    parts = pyro_density.describe(pyro_density.trace(thunk, {}))
    found = pyro_density.at_values(thunk, {"z": torch.tensor(z)}, parts)
    np.testing.assert_allclose(found.rows.detach(), rows, rtol=1e-5)
    assert found.total().item() == pytest.approx(2 * rows.sum(), rel=1e-5)


def test_guides_agree_in_both_engines():
    params, rng = random_params(2), np.random.default_rng(1)
    values = {"z": rng.normal(size=(ROWS, 2)).astype(np.float32), "y_hidden": rng.integers(0, CLASSES, ROWS)}
    ours = log_density(handlers.seed(programs(2)[1], 0), (X, Y), {}, params | values)[0]
    log_q = log_softmax(network(params["classifier"], X), axis=1)[
        np.arange(ROWS), np.where(Y >= 0, Y, values["y_hidden"])
    ]
    loc, scale = np.stack([encoded(params, X, c) for c in range(CLASSES)])[
        np.where(Y >= 0, Y, values["y_hidden"]), :, np.arange(ROWS)
    ].transpose(1, 0, 2)
    expected = np.where(Y >= 0, -ALPHA, 1.0) @ log_q + stats.norm(loc, scale).logpdf(values["z"]).sum()
    assert float(ours) == pytest.approx(expected, rel=1e-5)
    theirs = in_pyro(programs(2, ppl=pyro)[1], params, values)
    assert theirs.log_prob_sum().item() == pytest.approx(expected, rel=1e-5)


def in_pyro(program, params, values, **kwargs):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    data = torch.tensor(X), torch.tensor(Y)
    program(*data)  # makes the parameters
    store = pyro.get_param_store()
    for name, value in params.items():
        names = [n for n in store if n.startswith(f"{name}.")]
        for n, leaf in zip(names, jax.tree.leaves(value), strict=bool(names)):
            store[n] = torch.tensor(np.asarray(leaf))
    values = {name: torch.tensor(value) for name, value in values.items()}
    return pyro.poutine.trace(pyro.poutine.condition(program, values)).get_trace(*data, **kwargs)


@pytest.mark.parametrize("alpha", [ALPHA, pytest.param(0.0, marks=pytest.mark.slow)])
def test_bound_and_gradient_are_the_sum_over_classes(alpha):
    """With the scales at their floor nothing is random: the bound is that of brute force, and so is its gradient."""
    model, guide = programs(2, alpha)
    params = without_scale(random_params(2))

    def loss(params):
        bound = EnumeratedELBO().loss(jax.random.key(0), params, model, guide, **DATA, num_data=5 * ROWS)
        return bound / 5  # N / B

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    expected = bound_by_hand(params, at_location, alpha)
    assert -float(value) == pytest.approx(expected, rel=2e-6)  # float32
    flat, tree = jax.tree.flatten(params)
    rng, step = np.random.default_rng(3), 1e-4
    for name in params:  # along a random direction of each network
        others = [n for n in params if n != name]
        way = jax.tree.unflatten(tree, [rng.normal(size=w.shape) for w in flat]) | {
            n: jax.tree.map(np.zeros_like, params[n]) for n in others
        }
        if name == "encoder":  # the scales stay at their floor
            for w in jax.tree.leaves(way[name])[2:]:
                w[2:] = 0.0
        moved = [
            bound_by_hand(jax.tree.map(lambda w, d, s=s: np.float64(w) + s * d, params, way), at_location, alpha)
            for s in (step, -step)
        ]
        slope = sum(np.sum(g * d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(way), strict=True))
        # Central differences are right to the square of the step.
        assert -slope == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-4, abs=1e-4)


def test_draws_average_to_the_bound_which_is_below_the_evidence():
    """The mean of 4,000 draws within 5 standard errors: one false alarm in 1.7 million seeds."""
    model, guide = programs()
    params = random_params()
    value = jax.jit(jax.vmap(lambda key: -EnumeratedELBO().loss(key, params, model, guide, **DATA)))
    draws = np.float64(value(jax.random.split(jax.random.key(0), 4000)))
    expected = bound_by_hand(params, by_quadrature)
    assert abs(draws.mean() - expected) < 5 * draws.std() / np.sqrt(len(draws))
    assert 0.01 < draws.std() and draws.std() / np.sqrt(len(draws)) < 0.1  # it could tell
    plain = bound_by_hand(params, by_quadrature, alpha=0.0)
    assert expected < plain < log_evidence(params).sum()


@pytest.mark.slow
def test_scores_estimate_the_same_gradient_of_the_classifier():
    """2,000 draws of two objectives: each gradient's mean differs by less than 5 standard errors, 35 numbers."""
    model, guide = programs()
    params = random_params()

    def gradients(objective, seed):
        def loss(classifier, key):
            return objective.loss(key, params | {"classifier": classifier}, model, guide, **DATA)

        keys = jax.random.split(jax.random.key(seed), 2000)
        found = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(params["classifier"], keys)
        return np.concatenate([np.reshape(g, (2000, -1)) for g in jax.tree.leaves(found)], axis=1)

    summed, scored = gradients(EnumeratedELBO(), 0), gradients(ScoreFunction(2), 1)
    error = np.sqrt((summed.var(0) + scored.var(0)) / 2000)
    assert (np.abs(summed.mean(0) - scored.mean(0)) < 5 * error).all()
    assert summed.std(0).mean() < 0.5 * scored.std(0).mean()  # which is why one sums


@pytest.fixture(scope="module")
def run():
    """A short fit, with the classifier's weight so large that likelihoods would show it."""
    model, guide = programs(alpha=50.0)
    return fit(SVI(model, guide, EnumeratedELBO(), optax.adam(1e-2)), DATA, key=0, num_steps=30)


@pytest.mark.parametrize("y", [Y, np.full(ROWS, -1, np.int32)], ids=["some", "none"])
def test_likelihoods_are_of_what_is_known_whatever_alpha(run, y):
    """Importance sampling within 5 of its standard errors of the quadrature, for each of 12 rows."""
    found = run.log_likelihood({"x": X, "y": y}, 4000)
    exact = log_evidence(run.params, y)
    np.testing.assert_array_less(np.abs(found.rows - exact), 5 * np.sqrt(found.variance) + 1e-4)
    assert found.mc_error < 0.02


def test_classes_are_predicted(run):
    """Shares of 2,000 draws within 5 standard errors, 18 numbers."""
    expected = softmax(network(run.params["classifier"], X), axis=1)
    np.testing.assert_allclose(run.guide.class_probs(run.params, X), expected, atol=1e-5)
    draws = run.sample_posterior({"x": X, "y": np.full(ROWS, -1)}, 2000)["y_hidden"]
    shares = (draws[..., None] == np.arange(CLASSES)).mean(0)
    np.testing.assert_allclose(shares, expected, atol=5 * 0.5 / np.sqrt(2000))


def test_rows_are_generated_with_their_classes(run):
    made = run.generate(200)
    assert made["x"].shape == (200, PIXELS) and set(np.unique(made["y"])) == set(range(CLASSES))


@pytest.mark.slow
def test_pyro_trains_by_scores_and_has_the_same_likelihoods():
    """As above, by 2,000 draws; a bound that includes 50 log q(y | x) would be off by tens of nats."""
    model, guide = programs(alpha=50.0, ppl=pyro)
    run = fit(PyroSVI(model, guide, ScoreFunction(2), torch.optim.Adam, {"lr": 3e-2}), DATA, key=0, num_steps=150)
    assert run.history["bound"][0, -20:].mean() > run.history["bound"][0, :20].mean() + 1
    layers = [f"{n}.{leaf}" for n in (0, 2) for leaf in ("weight", "bias")]
    params = {
        n: jax.tree.unflatten(jax.tree.structure(w), [run.params[f"{n}.{layer}"] for layer in layers])
        for n, w in random_params().items()
    }
    found = run.log_likelihood(DATA, 2000)
    np.testing.assert_array_less(np.abs(found.rows - log_evidence(params)), 5 * np.sqrt(found.variance) + 1e-4)
    expected = softmax(network(params["classifier"], X), axis=1)
    np.testing.assert_allclose(guide.class_probs(run.params, X), expected, atol=1e-5)


@pytest.mark.slow
def test_it_learns_classes_from_the_few_that_are_known():
    """Three noisy prototypes, 2 of 60 rows of each labelled: the others are nearly all right; chance is a third."""
    rng = np.random.default_rng(0)
    prototypes, truth = np.repeat(np.eye(3), 4, axis=1), np.repeat(np.arange(3), 60)
    x = (rng.random((180, 12)) < 0.1 + 0.8 * prototypes[truth]).astype(np.float32)
    y = np.where(np.arange(180) % 60 < 2, truth, -1)
    model = SemiSupervisedVAE(3, 2, MLP((20,)))
    guide = SemiSupervisedNormal(3, 2, MLP((20,)), MLP((20,)), alpha=10.0)
    run = fit(SVI(model, guide, EnumeratedELBO(), optax.adam(1e-2)), {"x": x, "y": y}, key=0, num_steps=300)
    assert (guide.class_probs(run.params, x).argmax(1) == truth).mean() > 0.95
    assert run.history["bound"][0, -20:].mean() > run.history["bound"][0, :20].mean() + 1


def test_what_does_not_fit_is_refused():
    model, guide = programs()
    with pytest.raises(Incompatible, match="ELBO differentiates through the guide's draws, but .'y_hidden'. have no"):
        check(model, guide, ELBO(), DATA)
    with pytest.raises(Incompatible, match="factors .'known_classes'., terms of a bound.*EnumeratedELBO"):
        check(model, guide, ReweightedWakeSleep(3), DATA)
    check(model, programs(alpha=0.0)[1], ReweightedWakeSleep(3), DATA)
    for y in ([0, 3, 0, 0, 0, 0], [0, -2, 0, 0, 0, 0], [0, 0.5, 0, 0, 0, 0]):
        with pytest.raises(Incompatible, match="classes y range over.*expected whole numbers from 0 to 2, or -1"):
            check(model, guide, EnumeratedELBO(), {"x": X, "y": np.array(y)})
    with pytest.raises(Incompatible, match="needs an argument 'y'"):
        check(model, guide, EnumeratedELBO(), X)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SemiSupervisedVAE(0, 2, MLP((5,))), ValueError, "num_classes is 0; expected a whole number"),
        (lambda: SemiSupervisedVAE(3, 2.0, MLP((5,))), ValueError, "latent_dim is 2.0"),
        (lambda: SemiSupervisedVAE(3, 2, (5, 5)), TypeError, "decoder is a tuple"),
        (lambda: SemiSupervisedVAE(3, 2, MLP((5,)), "x"), TypeError, "expected a value such as Bernoulli()"),
        (lambda: SemiSupervisedNormal(3, 2, MLP((5,)), (4,)), TypeError, "classifier is a tuple"),
        (lambda: SemiSupervisedNormal(3, 2, MLP((5,)), MLP((5,)), -1.0), ValueError, "alpha is -1.0; expected"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
