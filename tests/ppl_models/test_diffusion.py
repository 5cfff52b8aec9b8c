"""Diffusion on Gaussians, where everything is known: the chains, the bound and its terms, the samplers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from scipy import stats

from inference import SVI, Incompatible, check, fit, step_bound
from inference.objectives import ELBO, Denoising, UnitDenoising
from inference.objectives.denoising import spread_steps
from inference.posterior import row_log_likelihood
from inference.protocols import Batch
from ppl_models import Diffusion
from ppl_models.diffusion_samplers import DDIM, Ancestral, interpolate
from ppl_models.networks import MLP, TimeMLP
from ppl_models.noise_chains import NoisingChain
from ppl_models.noise_schedules import CosineSchedule, FixedSchedule, LinearSchedule, levels, reverse_variances
from ppl_models.predictions import PredictData, PredictNoise, PredictVelocity

MEAN, COVARIANCE = np.array([0.5, -1.0]), np.array([[0.8, 0.3], [0.3, 0.5]])
FOUR = FixedSchedule((0.1, 0.2, 0.4, 0.6))
PREDICTIONS = [PredictNoise(), PredictData(), PredictVelocity()]


@dataclass(frozen=True)
class Exact:
    """The best denoiser of N(m, C): x_t ~ N(a m, a² C + s² I), so that E[e | x_t] = s (a² C + s² I)⁻¹ (x_t - a m)."""

    schedule: object
    prediction: object = PredictNoise()

    def noise(self, x_t, a, s):
        precision = jnp.linalg.inv(a**2 * jnp.asarray(COVARIANCE, jnp.float32) + s**2 * jnp.eye(2))
        return s * precision @ (x_t - a * jnp.asarray(MEAN, jnp.float32))

    def build(self, in_size, out_size, key):
        known = levels(self.schedule)

        def run(row):
            t = jnp.round(row[2] * known.num_steps).astype(int)
            a, s = (jnp.asarray(v, jnp.float32)[t] for v in (known.signal, known.noise))
            noise = self.noise(row[:2], a, s)
            return self.prediction.target((row[:2] - s * noise) / a, noise, a, s)

        return eqx.nn.Lambda(run)


def exact(schedule, prediction=PREDICTIONS[0], **options):
    return Diffusion(Exact(schedule, prediction), schedule, prediction, **options)


def weights(model, in_size=3):
    """Parameters of a model of two numbers, drawn."""
    return {"denoiser": eqx.filter(model.denoiser.build(in_size, 2, jax.random.key(0)), eqx.is_array)}


# --- schedules --------------------------------------------------------------------------------------
@pytest.mark.parametrize("schedule", [LinearSchedule(), LinearSchedule(7, 0.1, 0.9), CosineSchedule(50), FOUR])
def test_levels_are_products_of_the_steps(schedule):
    known, beta = levels(schedule), schedule.betas
    abar = np.array([np.prod(1 - beta[:t]) for t in range(len(beta) + 1)])
    np.testing.assert_allclose(known.signal**2, abar, rtol=1e-12)  # float64 products of at most 1000 factors
    np.testing.assert_allclose(known.noise**2, 1 - abar, rtol=1e-9)
    # btilde by Bayes' rule: precisions of q(x_{t-1} | x_0) and q(x_t | x_{t-1}) add up
    for t in range(2, len(beta) + 1):
        precision = 1 / (1 - abar[t - 1]) + (1 - beta[t - 1]) / beta[t - 1]
        assert known.posterior_variance[t] == pytest.approx(1 / precision, rel=1e-9)
    assert known.posterior_variance[1] == 0 and reverse_variances(schedule, "posterior")[1] == beta[0]


def test_the_published_schedules():
    assert LinearSchedule().betas[[0, -1]] == pytest.approx([1e-4, 0.02])
    half = np.cos((0.5 + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    assert levels(CosineSchedule(1000)).signal[500] ** 2 == pytest.approx(half, rel=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearSchedule(10), "LinearSchedule: beta_6 of 10 steps is 1.1"),
        (lambda: LinearSchedule(10, 0.0, 0.5), r"beta_1 of 10 steps is 0; .* inside \(0, 1\)"),
        (lambda: CosineSchedule(10, largest=1.0), "CosineSchedule: beta_10 of 10 steps is 1"),
        (lambda: FixedSchedule((0.1, float("nan"))), "beta_2 of 2 steps is nan"),
        (lambda: FixedSchedule(()), "no variances"),
        (lambda: LinearSchedule(0), "num_steps is 0"),
        (lambda: CosineSchedule(3, offset=-1.0), "offset is -1.0"),
    ],
)
def test_schedules_outside_0_and_1_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- the chains, and the bound they make --------------------------------------------------------------
def joint_gaussian(start_mean, start_variance, steps):
    """Mean and covariance of a scalar chain x' = k x + c + N(0, v), its start first."""
    mean, covariance = [start_mean], np.array([[start_variance]])
    for k, c, v in steps:
        row = k * covariance[-1]
        mean.append(k * mean[-1] + c)
        covariance = np.block([[covariance, row[:, None]], [row[None], np.array([[k * row[-1] + v]])]])
    return np.array(mean), covariance


def test_the_noising_chain_is_the_joint_gaussian_it_says():
    rng = np.random.default_rng(0)
    x, path = rng.normal(size=(3, 1)), rng.normal(size=(3, 4, 1))
    found = NoisingChain(jnp.asarray(x, jnp.float32), FOUR).log_prob(jnp.asarray(path, jnp.float32))
    steps = [(np.sqrt(1 - b), 0.0, b) for b in FOUR.betas]
    for row in range(3):
        mean, covariance = joint_gaussian(x[row, 0], 0.0, steps)
        expected = stats.multivariate_normal(mean[1:], covariance[1:, 1:]).logpdf(path[row, :, 0])
        assert float(found[row]) == pytest.approx(expected, abs=1e-4)  # float32 sums of a few squares

    draws = NoisingChain(jnp.ones((20_000, 1)), FOUR).sample(jax.random.key(0))[..., 0]
    mean, covariance = joint_gaussian(1.0, 0.0, steps)
    # Ten entries each; 4.5 standard errors of a covariance, at most sqrt(2 / n): a false alarm in 10,000 runs.
    np.testing.assert_allclose(np.cov(draws.T), covariance[1:, 1:], atol=4.5 * np.sqrt(2 / 20_000))
    np.testing.assert_allclose(draws.mean(0), mean[1:], atol=4.5 / np.sqrt(20_000))


def plain(schedule, variances, dim=2):
    """The hierarchical model and its guide with a site for every step, written out: nothing of the package's."""
    beta = schedule.betas
    abar = np.cumprod(1 - beta)
    last = len(beta)

    def reverse(x_t, t):  # mean and variance of p(x_{t-1} | x_t)
        a, s = np.sqrt(abar[t - 1]), np.sqrt(1 - abar[t - 1])
        noise = s * (x_t - a * MEAN.astype(np.float32)) @ np.linalg.inv(a**2 * COVARIANCE + s**2 * np.eye(2))
        return (x_t - beta[t - 1] / s * noise) / np.sqrt(1 - beta[t - 1]), variances[t]

    def model(x):
        with numpyro.plate("data", len(x)):
            x_t = numpyro.sample(f"x_{last}", dist.Normal(jnp.zeros((len(x), dim)), 1.0).to_event(1))
            for t in range(last, 0, -1):
                mean, variance = reverse(x_t, t)
                law = dist.Normal(mean, np.sqrt(variance)).to_event(1)
                x_t = numpyro.sample(f"x_{t - 1}" if t > 1 else "x", law, obs=x if t == 1 else None)

    def guide(x):
        with numpyro.plate("data", len(x)):
            x_t = x
            for t in range(1, last + 1):
                law = dist.Normal(np.sqrt(1 - beta[t - 1]) * x_t, np.sqrt(beta[t - 1])).to_event(1)
                x_t = numpyro.sample(f"x_{t}", law)

    return model, guide, reverse


def enumerated(x, schedule, variances):
    """The bound of rows by its KL terms, each the closed form for two Normals, averaged by Gauss-Hermite quadrature."""
    beta, abar = schedule.betas, np.cumprod(1 - schedule.betas)
    nodes, mass = np.polynomial.hermite_e.hermegauss(8)  # exact: the terms are quadratic in the noise
    noise = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    mass = np.outer(mass, mass).ravel() / (2 * np.pi)
    _, _, reverse = plain(schedule, variances)
    terms = []
    for t in range(1, len(beta) + 1):
        x_t = np.sqrt(abar[t - 1]) * x[:, None] + np.sqrt(1 - abar[t - 1]) * noise
        mean, variance = reverse(x_t, t)
        if t == 1:
            value = stats.norm(mean, np.sqrt(variance)).logpdf(x[:, None]).sum(-1)
        else:
            precision = 1 / (1 - abar[t - 2]) + (1 - beta[t - 1]) / beta[t - 1]
            ours = np.sqrt(abar[t - 2]) / (1 - abar[t - 2]) * x[:, None] + np.sqrt(1 - beta[t - 1]) / beta[t - 1] * x_t
            ours, v = ours / precision, 1 / precision
            value = -0.5 * ((v + (ours - mean) ** 2) / variance - 1 - np.log(v / variance)).sum(-1)
        terms.append(value @ mass)
    v, ours = 1 - abar[-1], np.sqrt(abar[-1]) * x
    terms.append(-0.5 * (v + ours**2 - 1 - np.log(v)).sum(-1))
    return np.array(terms)


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(1).multivariate_normal(MEAN, COVARIANCE, 5).astype(np.float32)


@pytest.mark.parametrize("variance", ["posterior", "forward"])
@pytest.mark.parametrize("prediction", PREDICTIONS, ids=lambda p: type(p).__name__)
def test_the_terms_are_the_kl_divergences_of_the_steps(prediction, variance, rows):
    truth = enumerated(rows.astype(float), FOUR, reverse_variances(FOUR, variance))
    model = exact(FOUR, prediction, variance=variance)
    chain = model.fitted(weights(model), rows.shape, None)
    nodes, mass = np.polynomial.hermite_e.hermegauss(8)
    noise = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 1, 2).astype(np.float32)
    mass = np.outer(mass, mass).ravel() / (2 * np.pi)
    noise, x = np.broadcast_arrays(noise, rows[None])
    for t in range(1, 5):
        term, error = chain.terms(jnp.asarray(x), jnp.full(x.shape[:2], t), jnp.asarray(noise))
        np.testing.assert_allclose(mass @ np.asarray(term), truth[t - 1], atol=2e-4)  # float32, of terms up to 10 nats
        assert (np.asarray(error) >= 0).all()
    np.testing.assert_allclose(chain.last_term(jnp.asarray(rows)), truth[4], atol=1e-5)


@pytest.mark.parametrize("variance", ["posterior", "forward"])
def test_the_variational_loss_is_the_elbo_of_the_model_with_a_site_for_every_step(variance, rows):
    # 20,000 draws each: the means are within 4.5 Monte-Carlo errors of the enumerated bound (false alarm: 1 in 50,000).
    variances = reverse_variances(FOUR, variance)
    truth = enumerated(rows.astype(float), FOUR, variances).sum()
    model, count = exact(FOUR, variance=variance), 20_000
    key, params = jax.random.key(0), weights(model)
    written, noising, _ = plain(FOUR, variances)
    pairs = {
        "written out": (ELBO(), written, noising),
        "path": (ELBO(), model, model.noising),
        "steps": (Denoising(), model, model.noising),
    }
    for name, (objective, p, q) in pairs.items():
        loss = jax.jit(jax.vmap(lambda k, o=objective, p=p, q=q: o.loss(k, params, p, q, x=rows)))
        bound = -np.asarray(loss(jax.random.split(key, count)), np.float64)
        assert bound.mean() == pytest.approx(truth, abs=4.5 * bound.std() / np.sqrt(count)), name
        assert bound.std() > 0.1, name


def log_evidence(x):
    return stats.multivariate_normal(MEAN, COVARIANCE).logpdf(x)


def test_the_bound_is_tight_to_the_discretisation(rows):
    gaps = []
    for num_steps in (50, 100, 200):
        schedule = LinearSchedule(num_steps)
        bound = enumerated(rows.astype(float), schedule, reverse_variances(schedule, "forward")).sum(0)
        gaps.append((log_evidence(rows) - bound).mean())
    gaps = np.array(gaps)
    assert (gaps > 0).all()
    # The gap is of first order in the size of a step: twice the steps, half the gap.
    np.testing.assert_allclose(gaps[:-1] / gaps[1:], 2, atol=0.3)
    assert gaps[-1] < 0.1
    model = exact(LinearSchedule(200))
    run = jax.jit(jax.vmap(lambda k: model.bound_terms(k, weights(model), jnp.asarray(rows)).sum(0)))
    bound = np.asarray(run(jax.random.split(jax.random.key(0), 400))).mean(1)
    error = bound.std() / np.sqrt(400)  # 4.5 of them: a false alarm in 100,000
    assert (log_evidence(rows) - bound.mean()).mean() == pytest.approx(gaps[-1], abs=4.5 * error + 1e-3)


def test_with_the_posterior_variance_the_bound_does_not_close(rows):
    # Near the data r = beta_t / btilde_t = t / (t - 1), however fine the schedule: of the nats that sigma_t² = beta_t
    # saves, sum_t (r - 1 - log r) / 2 a dimension, none goes away with more steps.
    schedule = LinearSchedule(400, 1e-5, 1e-5)  # the beginning of a fine schedule
    bounds = [
        enumerated(rows.astype(float), schedule, reverse_variances(schedule, v)).sum(0)
        for v in ("forward", "posterior")
    ]
    r = np.arange(2, 401) / np.arange(1, 400)
    assert (bounds[0] - bounds[1]).mean() / 2 == pytest.approx((0.5 * (r - 1 - np.log(r))).sum(), rel=0.02)


# --- samplers ---------------------------------------------------------------------------------------
def linear_chain_moments(schedule, variances):
    """Mean and covariance of ancestral draws of the exact denoiser, by the recursion of a linear Gaussian chain."""
    beta, known = schedule.betas, levels(schedule)
    mean, covariance = np.zeros(2), np.eye(2)
    for t in range(len(beta), 0, -1):
        a, s = known.signal[t], known.noise[t]
        gain = s * np.linalg.inv(a**2 * COVARIANCE + s**2 * np.eye(2))
        step = (np.eye(2) - beta[t - 1] / s * gain) / np.sqrt(1 - beta[t - 1])
        mean = step @ mean + beta[t - 1] / s / np.sqrt(1 - beta[t - 1]) * gain @ (a * MEAN)
        covariance = step @ covariance @ step.T + variances[t] * np.eye(2)
    return mean, covariance


@pytest.mark.parametrize("sampler", [Ancestral(), DDIM(100, eta=1.0), DDIM(100)], ids=["ancestral", "eta=1", "eta=0"])
def test_draws_have_the_moments_of_the_data(sampler):
    count, model = 20_000, exact(LinearSchedule(100))
    x = np.asarray(jax.jit(lambda k: model.draw(k, weights(model), (count, 2), sampler=sampler))(jax.random.key(1)))
    if sampler == DDIM(100):
        mean, covariance, bias = MEAN, COVARIANCE, 0.05  # of a hundred steps of a differential equation
    else:
        variances = reverse_variances(model.schedule, "posterior" if isinstance(sampler, DDIM) else "forward").copy()
        variances[1] *= not isinstance(sampler, DDIM)  # its last step has no noise
        mean, covariance = linear_chain_moments(model.schedule, variances)
        bias = 0.0
        np.testing.assert_allclose(mean, MEAN, atol=0.02)  # what a hundred steps cost
        np.testing.assert_allclose(covariance, COVARIANCE, atol=0.05 if sampler == Ancestral() else 0.1)
    # 4.5 standard errors, of five numbers: a false alarm in 30,000 runs.
    np.testing.assert_allclose(x.mean(0), mean, atol=4.5 / np.sqrt(count) + bias)
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=4.5 * np.sqrt(2 / count) + bias)


@pytest.mark.parametrize(("sampler", "length"), [(Ancestral(), 1000), (DDIM(50), 50)], ids=["ancestral", "ddim"])
def test_drawing_is_one_scan_that_runs_the_network_once_a_step(sampler, length):
    model = Diffusion(MLP((7,)), LinearSchedule(1000))
    params = weights(model)
    jaxpr = str(jax.make_jaxpr(lambda k: model.draw(k, params, (3, 2), sampler=sampler))(jax.random.key(0)))
    assert jaxpr.count(f"length={length}") == jaxpr.count("scan[") == 1
    assert jaxpr.count("dot_general[") == 2  # the two affine maps


def test_ddim_gives_rows_a_latent_from_which_they_are_had_back(rows):
    model = exact(LinearSchedule(500), PredictVelocity())
    ddim, chain = DDIM(250), model.fitted(weights(model), rows.shape, None)
    latent = ddim.encode(chain, jnp.asarray(rows))
    back = ddim(jax.random.key(0), chain, latent)
    np.testing.assert_allclose(back, rows, atol=0.05)  # first-order steps there and back
    # N(m, C) is taken to N(0, I) along straight lines in the eigenbasis of C: a closed form.
    values, basis = np.linalg.eigh(COVARIANCE)
    np.testing.assert_allclose(latent, (rows - MEAN) @ basis / np.sqrt(values) @ basis.T, atol=0.08)


def test_interpolation_keeps_the_length_of_the_ends():
    first, last = jax.random.normal(jax.random.key(0), (2, 3, 50))
    points = np.asarray(interpolate(first, 2.0 * last, 5))
    np.testing.assert_allclose(points[[0, -1]], [first, 2 * last], atol=1e-5)
    straight = jnp.linalg.norm(first + 2 * last, axis=-1) / 2
    assert (jnp.linalg.norm(points[2], axis=-1) > straight).all()
    # The arc between latents of one direction is straight, not 0 / 0.
    np.testing.assert_allclose(interpolate(first, 3 * first, 3)[1], 2 * first, rtol=1e-3)  # arccos in float32 near 1


# --- training -----------------------------------------------------------------------------------------
def test_steps_are_uniform_for_every_row_and_spread_over_a_batch():
    draws = np.asarray(jax.vmap(lambda k: spread_steps(k, 4, 8))(jax.random.split(jax.random.key(0), 8000)))
    assert draws.min() == 1 and draws.max() == 8
    counts = np.stack([(draws == t).mean(0) for t in range(1, 9)])
    assert counts == pytest.approx(np.full((8, 4), 1 / 8), abs=4.5 * np.sqrt(1 / 8 / 8000))  # a false alarm in 4,000
    assert (np.diff(np.sort(draws, axis=1), axis=1) == 2).all()  # eight steps, four rows: every second one


def test_the_unit_weight_follows_the_squared_error_and_reports_the_bound(rows):
    model = Diffusion(TimeMLP((8,)), FOUR, PredictVelocity())
    params, key = weights(model), jax.random.key(3)

    def evaluate(objective, params):
        return objective.evaluate(key, params, model, model.noising, x=jnp.asarray(rows))

    unit, variational = jax.jit(lambda p: (evaluate(UnitDenoising(), p), evaluate(Denoising(), p)))(params)
    assert float(unit.bound) == pytest.approx(float(variational.bound), rel=1e-6)
    assert float(variational.loss) == pytest.approx(-float(variational.bound))
    assert float(unit.loss) == pytest.approx(float(unit.metrics["squared_error"]))

    def by_hand(params):
        key_steps, key_noise = jax.random.split(key)
        t, e = spread_steps(key_steps, 5, 4), jax.random.normal(key_noise, rows.shape)
        a, s = (jnp.asarray(v, jnp.float32)[t][:, None] for v in levels(FOUR)[2:4])
        chain = model.fitted(params, rows.shape, None)
        return jnp.square(chain.network(a * rows + s * e, t) - (a * e - s * rows)).mean(-1).sum()

    both = jax.jit(lambda p: (jax.grad(lambda p: evaluate(UnitDenoising(), p).loss)(p), jax.grad(by_hand)(p)))(params)
    for one, other in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_training_step_runs_the_network_once(rows):
    model = Diffusion(MLP((7,)), LinearSchedule(1000))
    svi, batch = (
        SVI(model, model.noising, Denoising(), optax.sgd(0.1)),
        Batch({"x": jnp.asarray(rows)}, jnp.arange(5), 5),
    )
    state = svi.init(jax.random.key(0), batch)
    compiled = jax.jit(svi.step).lower(jax.random.key(0), state, batch).compile().as_text()
    # Two affine maps: forwards, and backwards to the weights of both and the units between. No path is drawn, and the
    # decoder at the path's end is not computed.
    assert compiled.count(" dot(") == 2 + 3 and "[5,1000,2]" not in compiled


@pytest.fixture(scope="module")
def run():
    x = np.random.default_rng(2).multivariate_normal(MEAN, COVARIANCE, 500).astype(np.float32)
    model = Diffusion(TimeMLP((16,)), LinearSchedule(20, 0.005, 0.5), num_classes=2)
    y = (x[:, 0] > MEAN[0]).astype(np.int32)
    optimizer = optax.adam(1e-2)
    return fit(
        SVI(model, model.noising, Denoising(), optimizer), {"x": x, "y": y}, key=0, num_steps=600, batch_size=100
    )


@pytest.mark.slow
def test_a_fit_answers_as_others_do(run):
    data = {n: v[:50] for n, v in run.data.arrays.items()}
    found = run.log_likelihood(data)
    assert found.is_bound and str(found).startswith("variational bound") and found.variance.all()
    steps = step_bound(run, data, num_sweeps=50)  # as many as log_likelihood's 1000 runs of the network
    assert steps.terms.shape == (21, 50) and steps.by_step.sum() == pytest.approx(found.mean, abs=1e-4)
    assert steps.bits_per_dim(2, 1 / 128) == pytest.approx(-found.mean / (2 * np.log(2)) + 7)
    # Importance sampling of paths from the noising is a tighter bound than their ELBO.
    batch = Batch({n: jnp.asarray(v) for n, v in data.items()}, jnp.arange(50), 50)
    tighter, _ = row_log_likelihood(run.model, run.guide, run.params, jax.random.key(0), batch, 500)
    assert float(tighter.mean()) > found.mean
    # Classes that split the first coordinate at its mean cost log 2 to tell: log p(x | y) = log p(x) + log 2.
    assert found.mean < (log_evidence(data["x"]) + np.log(2)).mean()
    assert found.mean > log_evidence(data["x"]).mean() - 0.5

    for sampler in (Ancestral(), DDIM(10), DDIM(10, guidance=1.0)):
        draws = run.generate(400, given={"y": 1}, sampler=sampler)["x"]
        assert (draws[:, 0] > MEAN[0]).mean() > 0.8
    assert run.generate(3, given={"y": [0, 1, -1]}, expected=True)["x"].shape == (3, 2)
    rebuilt = run.reconstruct(data)["x"]  # from x_1, which is near x
    assert np.abs(rebuilt - data["x"]).max() < 0.5
    inference_data = run.to_arviz()
    assert "log_likelihood" not in inference_data.groups() and "bound" in inference_data.attrs["log_likelihood"]
    assert inference_data.constant_data["y"].ndim == 1


@pytest.mark.slow
def test_draws_that_cannot_be_had_are_refused(run):
    with pytest.raises(ValueError, match="given={.y.: ...}"):
        run.generate(3)
    with pytest.raises(ValueError, match="expected classes 0 to 1"):
        run.generate(3, given={"y": 2})
    with pytest.raises(ValueError, match="expected one whole number, or 3 of them"):
        run.generate(3, given={"y": [0, 1]})
    with pytest.raises(ValueError, match="DDIM: num_steps is 50; the model has 20"):
        run.generate(3, given={"y": 0}, sampler=DDIM(50))


def test_guidance_moves_from_what_is_seen_without_the_class_past_what_is_seen_with_it(rows):
    model = Diffusion(MLP((7,)), FOUR, num_classes=2)
    params, t = weights(model, 5), jnp.array([1, 2, 3, 4, 4])
    y = jnp.array([0, 1, 1, 0, -1])

    def found(chain):
        return np.asarray(chain.found(jnp.asarray(rows), t)[1])

    told, free = found(model.fitted(params, rows.shape, y)), found(model.fitted(params, rows.shape, None))
    assert np.abs(told - free)[:4].min(0).all() and not (told - free)[4].any()  # -1 is not told
    np.testing.assert_allclose(found(model._guided(params, rows.shape, y, 2.0)), 3 * told - 2 * free, atol=1e-5)


def test_what_does_not_fit_is_refused(rows):
    with pytest.raises(ValueError, match="eta is 2"):
        DDIM(10, eta=2)
    with pytest.raises(ValueError, match="guidance is -1"):
        Ancestral(guidance=-1)
    plain = Diffusion(TimeMLP((4,)), FOUR)
    with pytest.raises(ValueError, match="num_classes is 0"):
        plain.chain((3, 2), jnp.zeros(3, int))
    with pytest.raises(ValueError, match="give the classes y"):
        plain.draw(jax.random.key(0), weights(plain), (3, 2), sampler=DDIM(2, guidance=1.0))
    with pytest.raises(TypeError, match="prediction is"):
        Diffusion(MLP((4,)), FOUR, prediction=PredictNoise)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="variance is 'beta'"):
        Diffusion(MLP((4,)), FOUR, variance="beta")  # pyright: ignore[reportArgumentType]
    told = Diffusion(MLP((4,)), FOUR, num_classes=3)
    with pytest.raises(Incompatible, match=r"classes y range over \[0, 4\]; expected whole numbers from 0 to 2, or -1"):
        check(told, told.noising, Denoising(), {"x": rows, "y": np.arange(5)})
    other = Diffusion(TimeMLP((4,)), LinearSchedule(4, 0.1, 0.5))
    with pytest.raises(Incompatible, match="by one schedule"):
        check(plain, other.noising, Denoising(), rows)
    with pytest.raises(ValueError, match="a time and a one-hot class"):
        TimeMLP((4,)).build(3, 3, jax.random.key(0))


@pytest.mark.parametrize("sampler", [Ancestral, partial(DDIM, 2)])
def test_what_is_seen_is_held_within_limits(sampler, run):
    """Limits that are never met change nothing but the rounding; those that are hold the rows of the last step."""
    free, wide, narrow = (
        run.generate(50, given={"y": 0}, key=0, expected=True, sampler=sampler(limits=limits))["x"]
        for limits in (None, (-1e3, 1e3), (-0.1, 0.2))
    )
    np.testing.assert_allclose(wide, free, atol=1e-3)
    assert np.abs(free).max() > 0.3 and -0.1 - 1e-4 <= narrow.min() and narrow.max() <= 0.2 + 1e-4
    with pytest.raises(ValueError, match=r"limits are \(1, -1\); expected the lower one first"):
        sampler(limits=(1, -1))
