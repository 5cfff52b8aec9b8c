"""The second engine: bounds that equal the first one's, rows that meet their parameters, runs that are functions."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpyro import handlers
from scipy.stats import norm

from guides.amortized_normal import AmortizedNormal
from guides.mean_field import MeanField
from inference import SVI, BadData, Fit, Incompatible, NonFinite, PyroSVI, fit
from inference.data import Rows
from inference.objectives import ELBO, IWAE, NVIL, VIMCO, Renyi, ReweightedWakeSleep, ScoreFunction
from inference.programs import bind as bind_numpyro
from inference.programs import trace as trace_numpyro
from inference.protocols import Batch
from inference.pyro_anatomy import row_params
from ppl_models import VAE, GaussianMixture
from ppl_models.networks import MLP

ADAM = torch.optim.Adam
RNG = np.random.default_rng(0)
X = RNG.normal(1.0, 1.0, 24).astype(np.float32)


def one_mean(x, num_data=None):
    """mu ~ N(0, 1), x_n ~ N(mu, 1)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", num_data or len(x), subsample_size=len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def about_mean(x, num_data=None):
    loc = pyro.param("loc", lambda: torch.randn(()))
    scale = pyro.param("scale", lambda: torch.tensor(0.3), constraint=dist.constraints.positive)
    pyro.sample("mu", dist.Normal(loc, scale))


def row_means(x, num_data=None):
    """z_n ~ N(0, 1), x_n ~ N(z_n, 0.1)."""
    with pyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.1), obs=x)


def about_rows(x, num_data=None):
    with pyro.plate("data", num_data or len(x), subsample_size=len(x)):
        loc = pyro.param("row_loc", lambda: torch.zeros(num_data or len(x)), event_dim=0)
        pyro.sample("z", dist.Normal(loc, 0.1))


def coin(x, num_data=None):
    """z_n ~ Bernoulli(0.3), x_n ~ N(2 z_n - 1, 1)."""
    with pyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(2 * z - 1 + pyro.param("shift", torch.tensor(0.1)), 1.0), obs=x)


def about_coin(x, num_data=None):
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("data", num_data or len(x), subsample_size=len(x)):
        pyro.sample("z", dist.Bernoulli(logits=slope * x))


def nothing(x, num_data=None):
    """Guess nothing."""


def coin_log_likelihood(x, shift=0.1):
    return np.logaddexp(np.log(0.7) + norm.logpdf(x, shift - 1), np.log(0.3) + norm.logpdf(x, shift + 1))


def batch_of(x, rows=None):
    return Rows({"x": x}).batch(np.arange(len(x)) if rows is None else rows)


def at(algorithm, batch, **params):
    """A state with the parameters set, unconstrained."""
    state = algorithm.init(0, batch)
    values = {n: torch.as_tensor(params.get(n, v), dtype=torch.float32) for n, v in state.params.items()}
    return state._replace(params=values)


def test_the_exact_posterior_of_a_conjugate_model_is_found():
    run = fit(PyroSVI(one_mean, about_mean, ELBO(4), ADAM, {"lr": 0.02}), X, key=0, num_steps=400)
    # precision 1 + N, mean sum x / (1 + N). Adam's jitter at this step size stays within a fifth of the sd.
    sd = 25**-0.5
    assert run.params["loc"] == pytest.approx(X.sum() / 25, abs=sd / 5)
    assert run.params["scale"] == pytest.approx(sd, rel=0.2)
    draws = run.draws.posterior["mu"]
    assert draws.shape == (1, 500)
    evidence = norm.logpdf(X, scale=1).sum() + 0.5 * X.sum() ** 2 / 25 - 0.5 * math.log(25)
    weights = run.draws.sample_stats["log_weight"]  # log p(x, mu) - log q(mu) is the evidence when q is exact
    assert np.mean(weights) == pytest.approx(evidence, abs=0.2)
    assert run.history["bound"][0, -50:].mean() * 24 == pytest.approx(evidence, abs=0.3)


@pytest.mark.parametrize("objective", [ELBO(), IWAE(3)], ids=str)
def test_engines_agree_at_the_same_weights(objective):
    x = (RNG.random((6, 12)) < 0.4).astype(np.float32)
    size = MLP((5,), activation="tanh")
    ours = SVI(VAE(2, size), AmortizedNormal(2, size), objective, None)
    theirs = PyroSVI(VAE(2, size, ppl=pyro), AmortizedNormal(2, size, ppl=pyro), objective, ADAM)
    batch = batch_of(x)
    with handlers.seed(rng_seed=1):
        weights = {
            n: s["value"]
            for program in (ours.guide, ours.model)
            for n, s in trace_numpyro(bind_numpyro(program, batch), jax.random.key(1)).items()
            if s["type"] == "param"
        }
    leaves = [np.asarray(v) for name in ("encoder", "decoder") for v in jax.tree.leaves(weights[name])]
    state = theirs.init(0, batch)
    names = [n for kind in ("encoder", "decoder") for n in state.params if n.startswith(kind)]
    for name, leaf in zip(names, leaves, strict=True):
        assert state.params[name].shape == leaf.shape
    params = {n: torch.from_numpy(v.copy()) for n, v in zip(names, leaves, strict=True)}
    state = state._replace(params={n: params[n] for n in state.params})
    step = jax.jit(jax.vmap(lambda key: ours.evaluate(key, {"params": weights, "kept": {}, "optimizer": ()}, batch)))
    a = np.asarray(step(jax.random.split(jax.random.key(2), 150)))
    b = np.array([theirs.evaluate(seed, state, batch) for seed in range(150)])
    # z-test of the means over draws: 4 standard errors are passed by chance once in 16,000
    error = math.hypot(a.std(), b.std()) / math.sqrt(150)
    assert abs(a.mean() - b.mean()) < 4 * error
    assert error < 0.1


@pytest.mark.parametrize("objective", [ELBO(), IWAE(4), Renyi(0.5, 4)], ids=str)
def test_a_pass_over_minibatches_sees_the_full_bound(objective):
    # scale 0 of the guide: every draw is loc, up to 1e-4, and the bound has no Monte-Carlo error
    guide = about_rows if objective != ELBO() else about_mean
    model = row_means if objective != ELBO() else one_mean
    algorithm = PyroSVI(model, guide, objective, ADAM)
    loc = {"loc": 0.7, "scale": math.log(1e-4), "row_loc": X / 1.01}
    state = at(algorithm, batch_of(X), **loc)
    whole = [algorithm.evaluate(s, state, batch_of(X)) for s in range(60)]
    order = np.random.default_rng(1).permutation(24)
    parts = [
        np.mean([algorithm.evaluate(s, state, batch_of(X, rows)) for rows in order.reshape(4, 6)]) for s in range(60)
    ]
    error = math.hypot(np.std(whole), np.std(parts)) / math.sqrt(60)
    assert abs(np.mean(whole) - np.mean(parts)) < 4 * error + 1e-5  # float32 sums
    assert error < 2e-3


def test_importance_weights_are_per_row_as_in_pyro_where_pyro_is_right():
    algorithm = PyroSVI(row_means, about_rows, IWAE(3), ADAM)
    state = at(algorithm, batch_of(X), row_loc=X)
    rows = np.arange(6)
    native = pyro.infer.RenyiELBO(alpha=0, num_particles=3)
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        pyro.param("row_loc", torch.from_numpy(X[rows]))
        torch.manual_seed(5)
        expected = -native.loss(row_means, about_rows, torch.from_numpy(X[rows])) / 6
    # the same draws, float32; Pyro alone would take 24 / 6 inside the logsumexp
    assert algorithm.evaluate(5, state, batch_of(X, rows)) == pytest.approx(expected, rel=1e-5)


def test_importance_bounds_nest_inside_the_globals():
    def model(x, num_data=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", num_data or len(x), subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, num_data=None):
        mu = pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1e-3))
        with pyro.plate("data", num_data or len(x), subsample_size=len(x)):
            pyro.sample("z", dist.Normal((mu + x) / 2, 0.5**0.5))  # exact: rows have no variance

    algorithm = PyroSVI(model, guide, IWAE(3), ADAM)
    state = at(algorithm, batch_of(X))
    values = [algorithm.evaluate(s, state, batch_of(X, np.arange(6))) for s in range(300)]
    # E log p(mu) - E log q(mu) + (N / B) sum_n log N(x_n; mu, 2), nats per row of N = 24
    expected = norm.logpdf(0.5) + math.log(1e-3) + 0.5 * math.log(2 * math.pi * math.e)
    expected += 4 * norm.logpdf(X[:6], 0.5, 2**0.5).sum()
    assert np.mean(values) == pytest.approx(expected / 24, abs=4 * np.std(values) / 300**0.5)
    assert np.std(values) < 0.1


def test_a_guide_ordered_against_the_model_gets_no_analytic_kl():
    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(x):
        pyro.param("unused", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Normal(2 * x / 3, (2 / 3) ** 0.5))
            pyro.sample("a", dist.Normal(b / 2, 0.5**0.5))

    algorithm = PyroSVI(model, guide, ELBO(), ADAM)
    bound = algorithm.evaluate(0, algorithm.init(0, batch_of(X)), batch_of(X))
    # The guide is exact, so one draw gives the evidence, up to float32.
    assert bound == pytest.approx(norm.logpdf(X, scale=3**0.5).mean(), abs=1e-5)
    with pytest.raises(Incompatible, match="in another order than the model"):
        PyroSVI(model, guide, pyro.infer.TraceMeanField_ELBO(), ADAM).check(batch_of(X))


@pytest.mark.parametrize("objective", [ELBO(), IWAE(2), ScoreFunction()], ids=str)
@pytest.mark.parametrize("rows", [np.arange(24), np.arange(6)], ids=["full", "minibatch"])
def test_discrete_latents_left_out_are_summed_out(objective, rows):
    algorithm = PyroSVI(coin, nothing, objective, ADAM)
    algorithm.check(batch_of(X, rows))
    bound = algorithm.evaluate(0, algorithm.init(0, batch_of(X)), batch_of(X, rows))
    assert bound == pytest.approx(coin_log_likelihood(X[rows]).mean(), abs=1e-5)  # float32


@pytest.mark.parametrize("objective", [ScoreFunction(), NVIL(5)], ids=str)
def test_score_function_gradients_are_right_on_minibatches(objective):
    algorithm = PyroSVI(coin, about_coin, objective, torch.optim.SGD, {"lr": 1.0})
    batch = batch_of(X, np.arange(8))
    start = algorithm.init(0, batch)
    steps = [float(algorithm.step(s, start, batch)[0].params["slope"]) - 0.5 for s in range(300)]
    # sum over z: d/ds [q (log p(x, 1) - log q) + (1 - q) (log p(x, 0) - log (1 - q))], q = sigmoid(s x)

    def bound(slope):
        q = jax.nn.sigmoid(slope * X[:8])
        one = math.log(0.3) + jax.scipy.stats.norm.logpdf(X[:8], 1.1)
        zero = math.log(0.7) + jax.scipy.stats.norm.logpdf(X[:8], -0.9)
        return jnp.mean(q * (one - jnp.log(q)) + (1 - q) * (zero - jnp.log1p(-q)))

    error = np.std(steps) / 300**0.5
    assert np.mean(steps) == pytest.approx(float(jax.grad(bound)(0.5)), abs=4 * error)
    assert error < 0.06  # of 0.36; a second factor N / B would make it 1.07


def test_wake_phases_weigh_each_row():
    """The guide's step is E[sum_k w~_k d log q(z_k)] per row, over the four pairs of draws; 4 sigma, seed fixed."""
    algorithm = PyroSVI(coin, about_coin, ReweightedWakeSleep(2), torch.optim.SGD, {"lr": 1.0})
    batch = batch_of(X, np.arange(8))
    start = algorithm.init(0, batch)
    steps = [float(algorithm.step(s, start, batch)[0].params["slope"]) - 0.5 for s in range(300)]
    x, q = X[:8], jax.nn.sigmoid(0.5 * X[:8])
    log_q = {1: jnp.log(q), 0: jnp.log1p(-q)}
    log_p = {z: math.log(0.3 if z else 0.7) + jax.scipy.stats.norm.logpdf(x, 2.0 * z - 0.9) for z in (0, 1)}
    slope = {1: (1 - q) * x, 0: -q * x}  # d log q / d slope
    expected = 0.0
    for a, b in np.ndindex(2, 2):
        weight = jax.nn.sigmoid((log_p[a] - log_q[a]) - (log_p[b] - log_q[b]))
        expected += jnp.exp(log_q[a] + log_q[b]) * (weight * slope[a] + (1 - weight) * slope[b])
    assert np.mean(steps) == pytest.approx(float(jnp.mean(expected)), abs=4 * np.std(steps) / 300**0.5)


def test_nvil_learns_its_baseline():
    algorithm = PyroSVI(coin, about_coin, NVIL(5), ADAM, {"lr": 1e-2})
    whole = fit(algorithm, X, key=0, num_steps=12, batch_size=6)
    start = algorithm.init(0, batch_of(X)).params["nvil_baseline.b2"]
    assert whole.params["nvil_baseline.b2"] != float(start)
    assert np.isfinite(whole.log_likelihood(X, num_particles=20).mean)


def test_parameters_of_rows_meet_their_rows():
    run = fit(PyroSVI(row_means, about_rows, ELBO(), ADAM, {"lr": 0.1}), X, key=0, num_epochs=60, batch_size=7)
    # z_n | x_n ~ N(x_n / 1.01, 0.1), and rows lie about 1 apart; Adam jitters by its step size times a few
    assert np.abs(run.params["row_loc"] - X / 1.01).mean() < 0.15


def test_runs_are_functions_of_their_keys():
    algorithm = PyroSVI(one_mean, about_mean, ELBO(), ADAM, {"lr": 0.01})
    pyro.get_param_store().clear()
    run = {n: fit(algorithm, X, key=k, num_steps=1, num_chains=2) for n, k in (("a", 0), ("b", 1))}
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = fit(algorithm, X, key=0, num_steps=1, num_chains=2)
    starts = np.concatenate([r.draws.params["loc"] for r in run.values()])
    assert len(np.unique(starts)) == 4
    for name, value in run["a"].draws.params.items():
        np.testing.assert_array_equal(value, again.draws.params[name])
    assert len(pyro.get_param_store()) == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_algorithms_are_values():
    a = PyroSVI(one_mean, about_mean, ELBO(), ADAM, {"lr": 1e-3, "betas": [0.9, 0.99]}, device="cpu")
    b = PyroSVI(one_mean, about_mean, ELBO(), ADAM, {"betas": (0.9, 0.99), "lr": 1e-3})
    assert a == b and hash(a) == hash(b)
    assert dataclasses.replace(a, objective=IWAE(2)) != a
    with pytest.raises(Incompatible, match="expected a class of torch.optim"):
        PyroSVI(one_mean, about_mean, ELBO(), pyro.optim.Adam({"lr": 1e-3}))
    with pytest.raises(Incompatible, match="evaluates the bound several times"):
        PyroSVI(one_mean, about_mean, ELBO(), torch.optim.LBFGS)


def test_steps_are_those_of_the_torch_optimizer():
    algorithm = PyroSVI(one_mean, about_mean, ELBO(), ADAM, {"lr": 0.1})
    batch = batch_of(X)
    first = state = algorithm.init(0, batch)
    start = {n: v.clone() for n, v in first.params.items()}
    for seed in range(4):
        state, _ = algorithm.step(seed, state, batch)
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        loc = pyro.param("loc", start["loc"].clone())
        scale = pyro.param("scale", start["scale"].exp(), constraint=dist.constraints.positive)
        optimizer = ADAM([loc.unconstrained(), scale.unconstrained()], lr=0.1)
        for seed in range(4):
            torch.manual_seed(seed)
            optimizer.zero_grad()
            pyro.infer.TraceMeanField_ELBO().loss_and_grads(one_mean, about_mean, torch.from_numpy(X))
            optimizer.step()  # Adam does not feel the factor 24 between sum and mean, but for its epsilon
        assert float(state.params["loc"]) == pytest.approx(loc.unconstrained().item(), rel=1e-5)
        assert float(state.params["scale"]) == pytest.approx(scale.unconstrained().item(), rel=1e-5)
    for name, value in start.items():
        assert torch.equal(first.params[name], value)  # a state is never changed


@pytest.mark.parametrize("optimizer", [ADAM, torch.optim.Adagrad, pyro.optim.clipped_adam.ClippedAdam])
def test_a_resumed_run_ends_bit_identical(tmp_path, optimizer):
    options = {"lr": 0.02} | ({"lrd": 0.99} if "Clipped" in optimizer.__name__ else {})
    algorithm = PyroSVI(one_mean, about_mean, ELBO(), optimizer, options)
    run = lambda steps, file: fit(  # noqa: E731
        algorithm, X, key=3, num_steps=steps, num_chains=2, batch_size=7, checkpoint=tmp_path / file
    )
    whole = run(30, "a")
    run(13, "b")
    resumed = run(30, "b")
    assert resumed.info["num_steps"] == 30
    np.testing.assert_array_equal(whole.history["bound"], resumed.history["bound"])
    for name, value in whole.draws.params.items():
        np.testing.assert_array_equal(value, resumed.draws.params[name])


def test_a_module_is_where_a_run_starts_and_is_not_changed():
    net = torch.nn.Linear(1, 2)
    before = {n: v.detach().clone() for n, v in net.named_parameters()}

    def guide(x, num_data=None):
        pyro.module("net", net)
        with pyro.plate("data", num_data or len(x), subsample_size=len(x)):
            loc, log_scale = net(x[:, None]).unbind(-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))

    algorithm = PyroSVI(row_means, guide, ELBO(), ADAM, {"lr": 0.05})
    run = fit(algorithm, X, key=0, num_steps=200)
    for name, value in net.named_parameters():
        assert torch.equal(value, before[name]) and value.grad is None
    weight = run.params["net$$$weight"][0, 0]
    assert weight == pytest.approx(1 / 1.01, abs=0.1)  # the posterior mean is x / 1.01
    once = fit(algorithm, X, key=0, num_steps=1)
    assert np.abs(once.params["net$$$weight"] - before["weight"].numpy()).max() < 0.051  # one step of Adam


def test_a_bound_that_is_not_finite_stops_the_run_with_the_last_good_state():
    def guide(x, num_data=None):
        loc = pyro.param("loc", torch.tensor(1.0))
        pyro.sample("mu", dist.Normal(torch.log(loc), 0.1))  # minus infinity, then NaN, once loc reaches zero

    algorithm = PyroSVI(one_mean, guide, ELBO(), torch.optim.SGD, {"lr": 50.0})
    with pytest.raises(NonFinite, match="not finite at step") as caught:
        fit(algorithm, np.full(5, -9, np.float32), key=0, num_steps=50)
    assert np.isfinite(caught.value.fit.params["loc"])


def test_an_autoencoder_of_torch_modules_from_start_to_file(tmp_path):
    x = (RNG.random((60, 9)) < 0.3).astype(np.float32)
    torch.manual_seed(0)
    decoder, encoder = torch.nn.Linear(2, 9), torch.nn.Linear(9, 4)
    before = decoder.weight.detach().clone()
    algorithm = PyroSVI(VAE(2, decoder, ppl=pyro), AmortizedNormal(2, encoder, ppl=pyro), ELBO(), ADAM, {"lr": 0.02})
    run = fit(algorithm, x[:40], key=0, num_epochs=100, batch_size=20, validation=x[40:], early_stopping=5)
    assert torch.equal(decoder.weight, before)
    assert run.history["bound"][0, -10:].mean() > run.history["bound"][0, 0] + 0.3
    assert np.isfinite(run.history["validation"]).all()
    estimate = run.log_likelihood(x[40:], num_particles=50)
    # the likelihood is above the bound: by more than the noise of one draw a row
    assert estimate.mean > run.history["validation"][0, -1] - 0.2
    assert run.generate(3)["x"].shape == (3, 9)
    means = run.reconstruct(x[:5])["x"]
    assert means.shape == (5, 9) and means.min() > 0 and means.max() < 1
    run.save(tmp_path / "vae")
    again = Fit.load(tmp_path / "vae", algorithm).log_likelihood(x[40:], num_particles=50)
    np.testing.assert_array_equal(again.rows, estimate.rows)
    assert row_params(row_means, about_rows, batch_of(X)) == ["row_loc"]
    assert row_params(algorithm.model, algorithm.guide, batch_of(x)) == []


def test_a_mean_field_guide_and_enumeration_fit_a_mixture():
    x = np.repeat([[-2.0], [2.0]], [12, 24], 0) + np.random.default_rng(1).normal(size=(36, 1)) / 2
    mixture = GaussianMixture(2, "spherical", ppl=pyro)
    run = fit(PyroSVI(mixture, MeanField(mixture, ppl=pyro), ELBO(), ADAM, {"lr": 0.02}), x, key=0, num_steps=200)
    draws = run.draws.posterior
    # rows weigh 13 / 38 and 25 / 38 in the posterior; a mean has sd 0.15 at 12 rows, and Adam's jitter
    np.testing.assert_allclose(draws["weights"].mean((0, 1)), [13 / 38, 25 / 38], atol=0.08)
    np.testing.assert_allclose(draws["means"].mean((0, 1))[:, 0], [-2, 2], atol=0.4)
    assert run.draws.sample_stats["log_weight"].shape == (1, 500)
    labels = run.sample_posterior(x, 2)["z"]
    np.testing.assert_array_equal(labels, np.repeat([0, 1], [12, 24])[None].repeat(2, 0))


def test_likelihoods_of_rows():
    def guide(x, num_data=None):
        wide = pyro.param("wide", torch.tensor(1.0))
        with pyro.plate("data", num_data or len(x), subsample_size=len(x)):
            pyro.sample("z", dist.Normal(x / 2, wide * 0.5**0.5))

    def plain(x, num_data=None):
        with pyro.plate("data", num_data or len(x), subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def mixed(x, num_data=None):
        with pyro.plate("data", num_data or len(x), subsample_size=len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.3))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + 2 * c, 1.0), obs=x)

    exact = fit(PyroSVI(plain, guide, ELBO(), torch.optim.SGD, {"lr": 0.0}), X, key=0, num_steps=1)
    estimate = exact.log_likelihood(X, num_particles=3)
    np.testing.assert_allclose(estimate.rows, norm.logpdf(X, scale=2**0.5), atol=1e-5)  # q exact: weights constant
    assert estimate.variance.max() < 1e-6
    both = fit(PyroSVI(mixed, guide, ELBO(), torch.optim.SGD, {"lr": 0.0}), X, key=0, num_steps=1)
    estimate = both.log_likelihood(X, num_particles=2000)
    truth = np.logaddexp(np.log(0.7) + norm.logpdf(X, 0, 2**0.5), np.log(0.3) + norm.logpdf(X, 2, 2**0.5))
    z = (estimate.rows - truth) / np.sqrt(estimate.variance)
    assert np.abs(z).max() < 4.5  # 24 rows: by chance once in 6,000
    assert np.sqrt(estimate.variance).max() < 0.2
    drawn = both.sample_posterior(X, 3)
    assert drawn["z"].shape == drawn["c"].shape == (3, 24)
    assert both.generate(5)["x"].shape == (5,)
    assert both.reconstruct(X[:4])["x"].shape == (4,)


def test_what_would_train_to_a_wrong_answer_is_refused():
    refused = [
        (coin, about_coin, ELBO(), "no reparameterised sampler"),
        (coin, about_coin, IWAE(2), r"use ScoreFunction\(\)"),
        (coin, about_coin, pyro.infer.RenyiELBO(alpha=0), "has no gradient"),
        (coin, about_coin, pyro.infer.ReweightedWakeSleep(num_particles=2), "gives a whole batch one weight"),
        (coin, about_coin, ReweightedWakeSleep(2, sleep=0.5), "a sleep phase runs under NumPyro"),
        (coin, about_coin, ScoreFunction(decay=0.9), "a number for each place in a batch"),
        (coin, about_coin, VIMCO(2), "SVI .NumPyro. runs them all"),
        (coin, nothing, pyro.infer.Trace_ELBO(), "would draw from the prior"),
        (row_means, about_rows, pyro.infer.RenyiELBO(alpha=0), "inside its logsumexp"),
        (row_means, about_rows, pyro.infer.JitTrace_ELBO(), "compiles the first batch"),
        (one_mean, about_mean, IWAE(2), "weighs the whole data set at once"),
        (one_mean, about_rows, ELBO(), r"the guide samples \['z'\]"),
        (row_means, nothing, ELBO(), r"leaves out \['z'\]"),
        (one_mean, about_mean, torch.nn.MSELoss(), "not an objective"),
        (VAE(2, MLP((3,))), about_rows, ELBO(), "written for ppl=numpyro"),
        (row_means, AmortizedNormal(1, MLP((3,))), ELBO(), "written for ppl=numpyro"),
    ]
    for model, guide, objective, message in refused:
        x = np.zeros((24, 3), np.float32) if isinstance(model, VAE) else X
        with pytest.raises(Incompatible, match=message):
            PyroSVI(model, guide, objective, ADAM).check(batch_of(x, np.arange(6)))


def test_programs_that_do_not_fit_the_data_are_refused():
    def closed(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def fixed(x, num_data=None):
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0), obs=x[:3])

    def positive(x, num_data=None):
        with pyro.plate("data", num_data or len(x), subsample_size=len(x)):
            z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def flags(x, num_data=None):
        with pyro.plate("data", num_data or len(x), subsample_size=len(x)):
            pyro.sample("x", dist.Bernoulli(pyro.param("p", torch.tensor(0.5))), obs=x)

    part = batch_of(X, np.arange(6))
    with pytest.raises(Incompatible, match="takes no num_data"):
        PyroSVI(closed, about_mean, ELBO(), ADAM).check(part)
    with pytest.raises(Incompatible, match="has 3 rows whatever the data"):
        PyroSVI(fixed, nothing, ELBO(), ADAM).check(part)
    with pytest.raises(Incompatible, match="outside its support in the model"):
        PyroSVI(positive, about_rows, ELBO(), ADAM).check(part)
    with pytest.raises(Incompatible, match="has no argument 'y'"):
        PyroSVI(one_mean, about_mean, ELBO(), ADAM).check(Batch({"y": jnp.asarray(X)}, jnp.arange(24), 24))
    with pytest.raises(Incompatible, match="neither model nor guide has a parameter"):
        PyroSVI(closed, lambda x: pyro.sample("mu", dist.Normal(0.0, 1.0)), ELBO(), ADAM).check(batch_of(X))
    with pytest.raises(BadData, match="outside its likelihood's support, boolean"):
        fit(PyroSVI(flags, nothing, ELBO(), ADAM), np.full(4, 2.0, np.float32), key=0, num_steps=1)
    with pytest.raises(Incompatible, match="could not be run: RuntimeError: mat"):
        PyroSVI(lambda x: x @ x, nothing, ELBO(), ADAM).check(batch_of(np.zeros((4, 3), np.float32)))
