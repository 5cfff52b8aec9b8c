"""Pathwise gradients of guide sites that are no location-scale family, against quadrature and closed forms.

Single draws are compared with dz = -(dF / dtheta) / p, by finite differences of the distribution function in float64;
gradients of expectations are z-tests at |z| < 5 (5.7e-7 two-sided). With fewer than 80 components the file raises a
false alarm less than once in 20,000 seeds, and the seeds are fixed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import special, stats

from guides.distributions import MixtureOfDiagonalNormals, MixtureOfNormals, VonMises
from guides.distributions.von_mises import draw_derivative
from inference.objectives import ELBO

pytestmark = pytest.mark.slow  # a compile for each family and function

DRAWS = 20_000
KEY = jax.random.key(0)


def finite_difference(function, params):
    """Central differences of a float64 function of named arrays."""
    out = {}
    for name, value in params.items():
        value = np.asarray(value, np.float64)
        grad = np.zeros(value.shape)
        for index in np.ndindex(value.shape):
            step = np.zeros(value.shape)
            step[index] = 1e-4 * max(1.0, abs(value[index]))
            up, down = (function(params | {name: value + sign * step}) for sign in (1, -1))
            grad[index] = (up - down) / (2 * step[index])
        out[name] = grad
    return out


def pathwise(make, params, function):
    """Gradients of f(z) for many draws, by parameter."""
    values = {n: jnp.asarray(v, jnp.float32) for n, v in params.items()}
    one = jax.grad(lambda p, key: function(make(**p).sample(key)))
    return jax.jit(jax.vmap(one, (None, 0)))(values, jax.random.split(KEY, DRAWS))


def check(make, params, function, expectation):
    found, truth = pathwise(make, params, function), finite_difference(expectation, params)
    for name, samples in found.items():
        samples = np.asarray(samples, np.float64)
        error = samples.std(0) / np.sqrt(DRAWS)
        # float32 draws and implicit derivatives are good to about 1e-5
        assert (np.abs(samples.mean(0) - truth[name]) < 5 * error + 2e-5).all(), (name, samples.mean(0), truth[name])
        assert np.abs(truth[name]).max() > 10 * error.min(), f"{name}: the gradient is too small to be tested"


def softmax(v):
    return np.exp(v - v.max()) / np.exp(v - v.max()).sum()


def integral(density, function, nodes, jacobian=1.0):
    """E[f] by the trapezoidal rule, which is exact to rounding for what decays, or is periodic, on a uniform grid."""
    weight = density * jacobian
    return float((weight * function(nodes)).sum() / weight.sum())


# --- NumPyro's own -------------------------------------------------------------------------------
LINE = np.linspace(-30, 30, 6001)


def test_gamma():
    z = np.exp(LINE)

    def expectation(f):
        return lambda p: integral(stats.gamma.pdf(z, p["concentration"], scale=1 / p["rate"]), f, z, z)

    params = {"concentration": 1.7, "rate": 0.8}
    check(dist.Gamma, params, jnp.sin, expectation(np.sin))
    params["concentration"] = 0.3
    check(dist.Gamma, params, jnp.log, lambda p: special.digamma(p["concentration"]) - np.log(p["rate"]))


def test_beta():
    z, complement = special.expit(LINE), special.expit(-LINE)

    def expectation(f):
        def value(p):
            a, b = p["concentration1"], p["concentration0"]
            return integral(z ** (a - 1) * complement ** (b - 1), f, z, z * complement)

        return value

    params = {"concentration1": 0.7, "concentration0": 2.2}
    check(dist.Beta, params, lambda z: jnp.sin(4 * z), lambda p: expectation(lambda z: np.sin(4 * z))(p))
    check(dist.Beta, params, lambda z: z * z, lambda p: expectation(np.square)(p))


def test_dirichlet():
    def expectation(p):
        a = p["concentration"]
        n = a.sum()
        return special.digamma(a[2]) - special.digamma(n) + 5 * a[0] * a[1] / (n * (n + 1))

    # E[log z_3 + 5 z_1 z_2]
    check(dist.Dirichlet, {"concentration": [0.8, 2.5, 1.4]}, lambda z: jnp.log(z[2]) + 5 * z[0] * z[1], expectation)


def test_student_t():
    z = np.sinh(LINE)

    def expectation(f):
        return lambda p: integral(stats.t.pdf(z, p["df"], p["loc"], p["scale"]), f, z, np.cosh(LINE))

    params = {"df": 3.0, "loc": 0.5, "scale": 1.3}
    for ours, theirs in (
        (jnp.tanh, np.tanh),
        (lambda z: jnp.exp(-z * z / 2), lambda z: np.exp(-np.minimum(z * z, 99) / 2)),
    ):
        check(dist.StudentT, params, ours, expectation(theirs))


def test_numpyro_has_none_for_von_mises_and_mixtures():
    """If this fails, NumPyro has gained them, and guides.distributions may go."""
    normals = dist.Normal(jnp.zeros(2), 1.0)
    assert not dist.VonMises(0.0, 1.0).has_rsample
    assert not dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), normals).has_rsample


# --- von Mises -----------------------------------------------------------------------------------
def test_von_mises():
    z = np.linspace(-np.pi, np.pi, 2001)[:-1]

    def expectation(f):
        return lambda p: integral(np.exp(p["concentration"] * (np.cos(z - p["loc"]) - 1)), f, z)

    for concentration in (0.4, 3.0, 40.0):
        params = {"loc": 0.7, "concentration": concentration}
        check(VonMises, params, lambda z: jnp.cos(z) + jnp.sin(2 * z), expectation(lambda z: np.cos(z) + np.sin(2 * z)))


@pytest.mark.parametrize("concentration", [1e-3, 0.3, 2.0, 30.0, 51.0, 1e3, 1e5])
def test_each_von_mises_draw_moves_along_its_quantile(concentration):
    def cdf(c, k):
        """From 0 to c, over the normaliser: Gauss-Legendre with 400 nodes, float64."""
        nodes, weights = np.polynomial.legendre.leggauss(400)
        t = c[:, None] * (nodes + 1) / 2
        inside = c / 2 * (np.exp(k * (np.cos(t) - 1)) @ weights)
        return inside / (2 * np.pi * special.i0e(k))

    k = concentration
    width = min(np.pi, 4.5 / np.sqrt(k))  # 4.5 standard deviations: what draws reach
    c = np.linspace(-width, width, 41)
    h = 1e-4 * k
    density = np.exp(k * (np.cos(c) - 1)) / (2 * np.pi * special.i0e(k))
    truth = -(cdf(c, k + h) - cdf(c, k - h)) / (2 * h) / density
    found = np.asarray(draw_derivative(jnp.asarray(c, jnp.float32), jnp.full(41, k, jnp.float32)))
    np.testing.assert_allclose(found, truth, rtol=2e-4, atol=2e-5 * np.abs(truth).max())


def test_von_mises_is_numpyros_but_for_the_gradient():
    ours, theirs = VonMises(jnp.array([0.3, 2.9]), 2.0), dist.VonMises(jnp.array([0.3, 2.9]), 2.0)
    assert ours.has_rsample and ours.batch_shape == (2,) and ours.to_event(1).has_rsample
    draws = np.asarray(ours.sample(KEY, (DRAWS,)))
    assert draws.shape == (DRAWS, 2) and np.abs(draws).max() <= np.pi + 1e-6
    np.testing.assert_array_equal(ours.log_prob(draws), theirs.log_prob(draws))
    for j, loc in enumerate((0.3, 2.9)):
        centred = (draws[:, j] - loc + np.pi) % (2 * np.pi) - np.pi
        assert stats.kstest(centred, stats.vonmises(2.0).cdf).pvalue > 1e-6


# --- mixtures ------------------------------------------------------------------------------------
MIXTURE = {"logits": [0.3, -0.4, 0.0], "loc": [-2.0, 0.4, 3.0], "scale": [0.6, 1.2, 0.9]}
PLANE = {
    "logits": [0.5, -0.2],
    "loc": [[-1.0, 0.3], [1.2, -0.6]],
    "scale": [[0.6, 0.9], [0.8, 0.5]],
}


def normal(z, loc, scale):
    return np.exp(-0.5 * ((z - loc) / scale) ** 2) / scale / np.sqrt(2 * np.pi)


def test_mixture_of_normals():
    def expectation(f):
        return lambda p: integral(
            normal(LINE[:, None], p["loc"], p["scale"]) @ softmax(np.asarray(p["logits"])), f, LINE
        )

    for ours, theirs in ((jnp.sin, np.sin), (lambda z: z**2, np.square)):
        check(MixtureOfNormals, arrays(MIXTURE), ours, expectation(theirs))


def arrays(params):
    return {n: np.asarray(v, np.float64) for n, v in params.items()}


def test_each_mixture_draw_moves_along_its_quantile():
    params = arrays(MIXTURE)
    values = {n: jnp.asarray(v, jnp.float32) for n, v in params.items()}
    keys = jax.random.split(KEY, 300)
    jacobian = jax.vmap(jax.jacobian(lambda p, key: MixtureOfNormals(**p).sample(key)), (None, 0))(values, keys)
    draws = np.asarray(jax.vmap(lambda key: MixtureOfNormals(**values).sample(key))(keys), np.float64)
    density = normal(draws[:, None], params["loc"], params["scale"]) @ softmax(params["logits"])
    for index in range(len(draws)):

        def cdf(p, z=draws[index]):
            return float(stats.norm.cdf(z, p["loc"], p["scale"]) @ softmax(p["logits"]))

        truth = finite_difference(cdf, params)
        for name in params:
            # float32, and draws rounded by 1e-7 relative; F - 1 is differentiated in the upper tail
            np.testing.assert_allclose(jacobian[name][index], -truth[name] / density[index], rtol=1e-3, atol=1e-3)


def test_mixture_of_diagonal_normals():
    line = np.linspace(-8, 8, 401)
    z = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)

    def expectation(f):
        def value(p):
            density = normal(z[:, None], p["loc"], p["scale"]).prod(-1) @ softmax(np.asarray(p["logits"]))
            return integral(density, f, z)

        return value

    for ours, theirs in (
        (lambda z: jnp.sin(z[0]) * z[1], lambda z: np.sin(z[:, 0]) * z[:, 1]),
        (lambda z: (z[0] + z[1]) ** 2, lambda z: (z[:, 0] + z[:, 1]) ** 2),
    ):
        check(MixtureOfDiagonalNormals, arrays(PLANE), ours, expectation(theirs))


@pytest.mark.parametrize(("kind", "params"), [(MixtureOfNormals, MIXTURE), (MixtureOfDiagonalNormals, PLANE)])
def test_mixtures_have_numpyros_density_and_their_own_moments(kind, params):
    values = {n: jnp.asarray(v) for n, v in params.items()}
    ours, event = kind(**values), len(np.shape(params["loc"])) - 1
    normals = dist.Normal(values["loc"], values["scale"]).to_event(event)
    theirs = dist.MixtureSameFamily(dist.Categorical(logits=values["logits"]), normals)
    draws = ours.sample(KEY, (DRAWS,))
    assert draws.shape == theirs.sample(KEY, (DRAWS,)).shape
    np.testing.assert_allclose(ours.log_prob(draws), theirs.log_prob(draws), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-6)
    np.testing.assert_allclose(ours.variance, theirs.variance, rtol=1e-5)
    error = np.sqrt(np.asarray(ours.variance) / DRAWS)
    assert (np.abs(draws.mean(0) - ours.mean) < 5 * error).all()
    wide = ours.expand((2, 3)) if event == 0 else ours.expand((2,))
    assert wide.sample(KEY, (4,)).shape == (4, *wide.batch_shape, *wide.event_shape) and wide.has_rsample


def test_second_derivatives_of_a_mixture_draw_are_right():
    """d²z/dm² by differences of the first derivative at a fixed F, which moves with the draw."""

    def derivative(loc, z):
        p, c = normal(z, loc, 1.0) @ [0.4, 0.6], normal(z, loc, 1.0) * [0.4, 0.6]
        return c[0] / p  # dz/dm_1 = w_1 N(z; m_1) / p(z)

    loc = np.array([-0.5, 1.0])

    def draw(m):
        return MixtureOfNormals(jnp.log(jnp.array([0.4, 0.6])), jnp.stack([m, 1.0]), 1.0).sample(KEY)

    z = float(draw(-0.5))
    h = 1e-4
    up, down = (derivative(loc + [s * h, 0], z + s * h * derivative(loc, z)) for s in (1, -1))
    np.testing.assert_allclose(jax.jit(jax.grad(jax.grad(draw)))(-0.5), (up - down) / (2 * h), rtol=1e-3)


# --- through the ELBO ----------------------------------------------------------------------------
def test_the_elbo_takes_a_von_mises_guide_to_the_conjugate_posterior():
    """A von Mises prior and direction: the posterior is von Mises, and there the ELBO is log p(y), draw by draw."""
    y, k0, k1 = 0.9, 1.5, 2.5

    def model():
        z = numpyro.sample("z", dist.VonMises(0.0, k0))
        numpyro.sample("y", dist.VonMises(z, k1), obs=y)

    def guide():
        loc, k = numpyro.param("loc", 0.0), numpyro.param("k", 1.0)
        numpyro.sample("z", VonMises(loc, k))

    c, s = k0 + k1 * np.cos(y), k1 * np.sin(y)
    posterior = {"loc": jnp.arctan2(s, c), "k": jnp.hypot(c, s)}
    evidence = np.log(special.i0(np.hypot(c, s)) / (2 * np.pi * special.i0(k0) * special.i0(k1)))
    loss = jax.jit(jax.vmap(jax.value_and_grad(lambda p, key: ELBO().loss(key, p, model, guide)), (None, 0)))
    keys = jax.random.split(KEY, 5000)
    value, gradient = loss(posterior, keys)
    np.testing.assert_allclose(-value, evidence, atol=2e-6)  # float32
    for samples in gradient.values():
        assert abs(samples.mean()) < 5 * samples.std() / np.sqrt(5000)

    z = np.linspace(-np.pi, np.pi, 2001)[:-1]

    def elbo(p):
        q = np.exp(p["k"] * (np.cos(z - p["loc"]) - 1))
        q = q / q.sum()
        log_q = p["k"] * np.cos(z - p["loc"]) - np.log(2 * np.pi * special.i0(p["k"]))
        return float(q @ (k0 * np.cos(z) + k1 * np.cos(y - z) - log_q))

    params = {"loc": 0.2, "k": 1.1}
    _, gradient = loss({n: jnp.float32(v) for n, v in params.items()}, keys)
    for name, truth in finite_difference(elbo, params).items():
        samples = np.asarray(gradient[name], np.float64)
        assert abs(samples.mean() + truth) < 5 * samples.std() / np.sqrt(5000)


def test_the_elbo_takes_a_mixture_guide_to_a_posterior_with_two_modes():
    """p is itself a mixture of two Normals: started near it, the guide's loss falls to -log p(x) = 0."""
    target = dist.MixtureSameFamily(dist.Categorical(jnp.array([0.7, 0.3])), dist.Normal(jnp.array([-2.0, 2.0]), 0.7))

    def model():
        numpyro.sample("z", target)

    def guide():
        logits = numpyro.param("logits", jnp.zeros(2))
        loc = numpyro.param("loc", jnp.array([-1.0, 1.0]))
        scale = numpyro.param("scale", jnp.ones(2), constraint=dist.constraints.positive)
        numpyro.sample("z", MixtureOfNormals(logits, loc, scale))

    from numpyro.infer import SVI

    svi = SVI(model, guide, numpyro.optim.Adam(0.02), ELBO(num_particles=100))
    run = svi.run(KEY, 800, progress_bar=False)
    np.testing.assert_allclose(jax.nn.softmax(run.params["logits"]), [0.7, 0.3], atol=0.02)
    np.testing.assert_allclose(run.params["loc"], [-2, 2], atol=0.05)
    np.testing.assert_allclose(run.params["scale"], [0.7, 0.7], atol=0.05)
