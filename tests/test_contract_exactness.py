"""Contract 1: every estimator's value and gradient equal their expectation, computed without sampling.

Cases: {locals, locals + globals} x {full data, N / B > 1} x {reparameterised, discrete, mixed}. The
expectations are Gauss-Hermite quadrature over Gaussian latents (24 nodes a dimension, exact to far
below the Monte-Carlo error) and enumeration over discrete ones; gradients are those of that formula.

False alarms: each component is a z-test at |z| < 5 (5.7e-7 two-sided); with fewer than 300
components in all, the whole file raises a false alarm less than once in 5,000 seeds, and the seed
is fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp
from numpyro.infer import SVI as NumPyroSVI

from inference.objectives import ELBO, IWAE, Renyi, ScoreFunction
from inference.programs import bind
from inference.protocols import Batch

X = jnp.array([-1.3, 0.4, 2.1, 0.9, -0.2, 1.7])
REPLICATES = 20_000
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
NODES, WEIGHTS = jnp.asarray(NODES), jnp.asarray(WEIGHTS / WEIGHTS.sum())


def normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi)


def bernoulli(z, logit):
    return -jax.nn.softplus(jnp.where(z == 1, -logit, logit))


def expect(function, dimensions):
    """E[function(e_1, .., e_d)] for independent standard normals."""
    grid = jnp.stack(jnp.meshgrid(*[NODES] * dimensions, indexing="ij"), -1).reshape(-1, dimensions)
    weight = jnp.prod(jnp.stack(jnp.meshgrid(*[WEIGHTS] * dimensions, indexing="ij"), -1), -1).ravel()
    return jnp.tensordot(weight, jax.vmap(lambda e: function(*e))(grid), 1)


def tempered(log_w, alpha):
    """log mean_k w_k for alpha = 0, Renyi's bound else; the first axis is k."""
    return (logsumexp((1 - alpha) * log_w, axis=0) - jnp.log(log_w.shape[0])) / (1 - alpha)


# --- z_n ~ N(0, 1), x_n ~ N(theta z_n, 1); q(z_n | x_n) = N(a x_n, s) -----------------------------
LOCAL_PARAMS = {"theta": jnp.array(1.4), "a": jnp.array(0.3), "log_s": jnp.array(-0.4)}


def local_model(x, num_data=None):
    theta = numpyro.param("theta", 1.0)
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("x", dist.Normal(theta * z, 1), obs=x)


def local_guide(x, num_data=None):
    a, log_s = numpyro.param("a", 0.0), numpyro.param("log_s", 0.0)
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("z", dist.Normal(a * x, jnp.exp(log_s)))


def local_log_w(p, x, e):
    s = jnp.exp(p["log_s"])
    z = p["a"] * x + s * e
    return normal(z, 0.0, 1.0) + normal(x, p["theta"] * z, 1.0) - normal(z, p["a"] * x, s)


def local_elbo(p, x, scale):
    return scale * jnp.sum(expect(lambda e: local_log_w(p, x, e), 1))


def local_bound(alpha):
    def bound(p, x, scale):
        pair = lambda e, f: tempered(jnp.stack([local_log_w(p, x, e), local_log_w(p, x, f)]), alpha)  # noqa: E731
        return scale * jnp.sum(expect(pair, 2))

    return bound


# --- mu ~ N(0, 1), z_n ~ N(mu, 1), x_n ~ N(z_n, theta); q(mu) = N(m, t), q(z_n | x_n, mu) = N(a x_n + mu / 2, s) ---
GLOBAL_PARAMS = {"theta": jnp.array(0.8), "m": jnp.array(0.3), "log_t": jnp.array(-1.0)} | {
    "a": jnp.array(0.4),
    "log_s": jnp.array(-0.3),
}


def global_model(x, num_data=None):
    theta = numpyro.param("theta", 1.0)
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Normal(mu, 1))
        numpyro.sample("x", dist.Normal(z, theta), obs=x)


def global_guide(x, num_data=None):
    p = {n: numpyro.param(n, 0.0) for n in ("m", "log_t", "a", "log_s")}
    mu = numpyro.sample("mu", dist.Normal(p["m"], jnp.exp(p["log_t"])))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("z", dist.Normal(p["a"] * x + mu / 2, jnp.exp(p["log_s"])))


def _mu(p, e):
    t = jnp.exp(p["log_t"])
    mu = p["m"] + t * e
    return mu, normal(mu, 0.0, 1.0) - normal(mu, p["m"], t)


def _global_log_w(p, x, mu, e):
    s = jnp.exp(p["log_s"])
    loc = p["a"] * x + mu / 2
    z = loc + s * e
    return normal(z, mu, 1.0) + normal(x, z, p["theta"]) - normal(z, loc, s)


def global_elbo(p, x, scale):
    def inside(e, f):
        mu, shared = _mu(p, e)
        return shared + scale * jnp.sum(_global_log_w(p, x, mu, f))

    return expect(inside, 2)


def global_bound(alpha):
    def bound(p, x, scale):
        def inside(e, f, g):
            mu, shared = _mu(p, e)
            log_w = jnp.stack([_global_log_w(p, x, mu, f), _global_log_w(p, x, mu, g)])
            return shared + scale * jnp.sum(tempered(log_w, alpha))

        return expect(inside, 3)

    return bound


# --- z_n ~ Bernoulli(0.4), x_n ~ N(theta z_n, 1); q(z_n | x_n) = Bernoulli(logit = a + b x_n) ------
# No logit is exactly 0, where numpyro 0.22 differentiates log Bernoulli wrongly (1 - z for 1/2 - z).
DISCRETE_PARAMS = {"theta": jnp.array(1.5), "a": jnp.array(-0.2), "b": jnp.array(0.45)}
PRIOR_LOGIT = jnp.log(0.4 / 0.6)


def discrete_model(x, num_data=None):
    theta = numpyro.param("theta", 1.0)
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Bernoulli(logits=PRIOR_LOGIT), infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.Normal(theta * z, 1), obs=x)


def discrete_guide(x, num_data=None):
    a, b = numpyro.param("a", 0.0), numpyro.param("b", 0.0)
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("z", dist.Bernoulli(logits=a + b * x))


def no_guide(x, num_data=None):
    """Leaves z to be summed out."""


def discrete_elbo(p, x, scale):
    logit = p["a"] + p["b"] * x
    terms = [
        jnp.exp(bernoulli(z, logit))
        * (bernoulli(z, PRIOR_LOGIT) + normal(x, p["theta"] * z, 1.0) - bernoulli(z, logit))
        for z in (0, 1)
    ]
    return scale * jnp.sum(terms[0] + terms[1])


def discrete_evidence(p, x, scale):
    joint = jnp.stack([bernoulli(z, PRIOR_LOGIT) + normal(x, p["theta"] * z, 1.0) for z in (0, 1)])
    return scale * jnp.sum(logsumexp(joint, axis=0))


# --- mixed: g ~ Bernoulli(0.3) global, z_n ~ N(g, 1), x_n ~ N(theta z_n, 1), c_n ~ Bernoulli local ---
MIXED_PARAMS = {n: jnp.array(v) for n, v in {"theta": 1.2, "g": 0.4, "a": 0.3, "log_s": -0.2, "c": 0.5}.items()}
G_LOGIT = jnp.log(0.3 / 0.7)


def mixed_model(x, num_data=None):
    theta = numpyro.param("theta", 1.0)
    g = numpyro.sample("g", dist.Bernoulli(logits=G_LOGIT))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Normal(g, 1))
        c = numpyro.sample("c", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(theta * z + c, 1), obs=x)


def mixed_guide(x, num_data=None):
    p = {n: numpyro.param(n + "_", 0.0) for n in ("g", "a", "log_s", "c")}
    g = numpyro.sample("g", dist.Bernoulli(logits=p["g"]))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("z", dist.Normal(p["a"] * x + g / 2, jnp.exp(p["log_s"])))
        numpyro.sample("c", dist.Bernoulli(logits=p["c"] * x))


def mixed_elbo(p, x, scale):
    s, total = jnp.exp(p["log_s_"]), 0.0
    for g in (0, 1):
        rows = 0.0
        for c in (0, 1):
            log_qc = bernoulli(c, p["c_"] * x)

            def row(e, c=c, g=g, log_qc=log_qc):
                loc = p["a_"] * x + g / 2
                z = loc + s * e
                log_p = normal(z, g, 1.0) + jnp.log(0.5) + normal(x, p["theta"] * z + c, 1.0)
                return log_p - normal(z, loc, s) - log_qc

            rows += jnp.exp(log_qc) * expect(row, 1)
        log_qg = bernoulli(g, p["g_"])
        total += jnp.exp(log_qg) * (bernoulli(g, G_LOGIT) - log_qg + scale * jnp.sum(rows))
    return total


# --- globals whose sampler splits its key, beside locals with a closed-form KL: their draws must be independent ---
COVARIANCE = jnp.array([[1.0], [-0.5], [0.7]])
LOW_RANK_PARAMS = {"a": jnp.array(0.4), "m": jnp.array(0.2)}


def low_rank_model(x, num_data=None):
    g = numpyro.sample("g", dist.Normal(0, 1).expand([3]).to_event(1))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("x", dist.Normal(z * g[0], 1), obs=x)


def low_rank_guide(x, num_data=None):
    a, m = numpyro.param("a", 0.0), numpyro.param("m", 0.0)
    numpyro.sample("g", dist.LowRankMultivariateNormal(m * jnp.ones(3), COVARIANCE, 0.3 * jnp.ones(3)))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("z", dist.Normal(a * x, 0.7))


def low_rank_elbo(p, x, scale):
    full = COVARIANCE @ COVARIANCE.T + 0.3 * jnp.eye(3)
    kl_g = 0.5 * (jnp.trace(full) + 3 * p["m"] ** 2 - 3 - jnp.linalg.slogdet(full)[1])

    def row(e, f):
        z, g = p["a"] * x + 0.7 * e, p["m"] + jnp.sqrt(full[0, 0]) * f
        return normal(z, 0.0, 1.0) - normal(z, p["a"] * x, 0.7) + normal(x, z * g, 1.0)

    return scale * jnp.sum(expect(row, 2)) - kl_g


@dataclass(frozen=True)
class Case:
    name: str
    model: object
    guide: object
    objective: object
    exact: object
    params: tuple

    def __str__(self):
        return self.name


def case(name, model, guide, objective, exact, params):
    return Case(name, model, guide, objective, exact, tuple(params.items()))


mixed_params = {"theta": MIXED_PARAMS["theta"]} | {f"{n}_": v for n, v in MIXED_PARAMS.items() if n != "theta"}
theta_only = {"theta": DISCRETE_PARAMS["theta"]}
CASES = [
    case("local-elbo", local_model, local_guide, ELBO(), local_elbo, LOCAL_PARAMS),
    case("local-elbo-3", local_model, local_guide, ELBO(3), local_elbo, LOCAL_PARAMS),
    case("local-score", local_model, local_guide, ScoreFunction(), local_elbo, LOCAL_PARAMS),
    case("local-iwae", local_model, local_guide, IWAE(2), local_bound(0.0), LOCAL_PARAMS),
    case("local-renyi", local_model, local_guide, Renyi(0.5, 2), local_bound(0.5), LOCAL_PARAMS),
    case("local-renyi-negative", local_model, local_guide, Renyi(-1.0, 2), local_bound(-1.0), LOCAL_PARAMS),
    case("global-elbo", global_model, global_guide, ELBO(), global_elbo, GLOBAL_PARAMS),
    case("global-score", global_model, global_guide, ScoreFunction(2), global_elbo, GLOBAL_PARAMS),
    case("global-iwae", global_model, global_guide, IWAE(2), global_bound(0.0), GLOBAL_PARAMS),
    case("global-renyi", global_model, global_guide, Renyi(0.5, 2), global_bound(0.5), GLOBAL_PARAMS),
    case("low-rank-elbo", low_rank_model, low_rank_guide, ELBO(), low_rank_elbo, LOW_RANK_PARAMS),
    case("discrete-score", discrete_model, discrete_guide, ScoreFunction(), discrete_elbo, DISCRETE_PARAMS),
    case("discrete-score-4", discrete_model, discrete_guide, ScoreFunction(4), discrete_elbo, DISCRETE_PARAMS),
    case("discrete-summed", discrete_model, no_guide, ELBO(), discrete_evidence, theta_only),
    case("mixed-score", mixed_model, mixed_guide, ScoreFunction(), mixed_elbo, mixed_params),
    case("mixed-score-3", mixed_model, mixed_guide, ScoreFunction(3), mixed_elbo, mixed_params),
]


def estimate(c: Case, batch: Batch):
    """Mean and standard error over replicates of the bound and its gradient."""

    def loss(params, key):
        return c.objective.loss(key, params, bind(c.model, batch), bind(c.guide, batch))

    keys = jax.random.split(jax.random.key(20), REPLICATES)
    value, gradient = jax.lax.map(lambda k: jax.value_and_grad(loss)(dict(c.params), k), keys, batch_size=4000)
    out = {"value": -value} | {n: -g for n, g in gradient.items()}
    return {n: (v.mean(), v.std() / np.sqrt(REPLICATES)) for n, v in out.items()}


@pytest.mark.parametrize("rows", [np.arange(6), np.array([4, 1])], ids=["full", "minibatch"])
@pytest.mark.parametrize("c", CASES, ids=str)
def test_value_and_gradient_match_their_expectation(c, rows):
    batch = Batch({"x": X[rows]}, jnp.asarray(rows), len(X))
    scale = len(X) / len(rows)
    value, gradient = jax.value_and_grad(c.exact)(dict(c.params), X[rows], scale)
    exact = {"value": value} | gradient
    for name, (mean, error) in estimate(c, batch).items():
        # 1e-4 relative: float32 sums and, where the estimator has no variance, nothing else.
        assert abs(mean - exact[name]) < 5 * error + 1e-4 * (1 + abs(exact[name])), (name, mean, exact[name], error)


def test_bounds_are_ordered_below_the_evidence():
    """ELBO < L_2 < L_20 < log p(x), by the estimates' means (gaps are tens of standard errors)."""
    batch = Batch({"x": X}, jnp.arange(6), 6)
    evidence = jnp.sum(normal(X, 0.0, jnp.sqrt(1 + LOCAL_PARAMS["theta"] ** 2)))
    bounds = []
    for objective in (ELBO(), IWAE(2), IWAE(20)):
        c = case("", local_model, local_guide, objective, None, LOCAL_PARAMS)
        bounds.append(estimate(c, batch)["value"][0])
    assert bounds[0] < bounds[1] < bounds[2] < evidence


def test_objectives_work_in_plain_numpyro_svi():
    """The same objective in numpyro.infer.SVI climbs to the same evidence."""
    numpyro_svi = NumPyroSVI(discrete_model, no_guide, numpyro.optim.Adam(0.05), ELBO())
    result = numpyro_svi.run(jax.random.key(0), 400, X, progress_bar=False)
    best = min(-discrete_evidence({"theta": t}, X, 1.0) for t in jnp.linspace(0, 3, 301))
    assert abs(float(result.losses[-1]) - float(best)) < 1e-3  # grid of 0.01 on a curvature of order 1
