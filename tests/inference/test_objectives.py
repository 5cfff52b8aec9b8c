"""What the estimators promise beyond their expectation (contract 1 has that): variance, state, refusals."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI as NumPyroSVI

from inference import SVI, Incompatible, check, fit
from inference.objectives import (
    ELBO,
    IWAE,
    NVIL,
    STL,
    VIMCO,
    Beta,
    Capacity,
    DReG,
    FreeBits,
    Players,
    Renyi,
    ReweightedWakeSleep,
    ScoreFunction,
    cyclical,
)
from inference.objectives.importance import log_mean_exp
from inference.objectives.objective import Estimate, Objective, surrogate
from inference.objectives.pair import log_weights
from inference.objectives.vimco import leave_one_out
from inference.programs import on_rows, trace
from inference.protocols import Batch

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
THETA = 1.4


def conjugate_model(x, num_data=None):
    theta = numpyro.param("theta", THETA)
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros((len(x), 3)), 1).to_event(1))
        numpyro.sample("x", dist.Normal(theta * z, 1).to_event(1), obs=x)


def conjugate_guide(x, num_data=None):
    """At its starting values the exact posterior, z | x ~ N(theta x / (1 + theta²), 1 / (1 + theta²))."""
    a = numpyro.param("a", THETA / (1 + THETA**2))
    s = numpyro.param("s", (1 + THETA**2) ** -0.5)
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("z", dist.Normal(a * x, s * jnp.ones(3)).to_event(1))


def bits_model(x, num_data=None):
    w = numpyro.param("w", jnp.array([[1.0, -0.7, 0.4], [0.3, 0.9, -1.1]]))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Bernoulli(logits=0.3 * jnp.ones((len(x), 2))).to_event(1))
        numpyro.sample("x", dist.Normal(z @ w, 0.5).to_event(1), obs=x)


def bits_guide(x, num_data=None):
    v = numpyro.param("v", 0.2 * jnp.ones((3, 2)))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("z", dist.Bernoulli(logits=x @ v + 0.1).to_event(1))


def batch_of(rows=6):
    return Batch({"x": jnp.asarray(X[:rows])}, jnp.arange(rows), 6)


def gradients(objective, model, guide, values=None, count=2000):
    """Replicates of the gradient in every parameter, at the programs' starting values."""
    batch = batch_of()
    model, guide = on_rows(model, batch), on_rows(objective.guide(guide), batch)

    def sites(key):
        tr = trace(lambda: guide(**batch.data), key)
        latents = {n: s["value"] for n, s in tr.items() if s["type"] == "sample"}
        return tr | trace(lambda: model(**batch.data), key, latents)

    tr = sites(jax.random.key(0))
    start = {n: s["value"] for n, s in tr.items() if s["type"] in ("param", "mutable")} | (values or {})
    moving = {n: start.pop(n) for n in list(start) if tr[n]["type"] == "param"}

    def loss(moving, key):
        return objective.loss(key, moving | start, model, guide, **batch.data)

    keys = jax.random.split(jax.random.key(1), count)
    return jax.jit(lambda: jax.lax.map(lambda k: jax.grad(loss)(moving, k), keys, batch_size=500))()


def total_variance(gradient):
    return float(jnp.sum(jnp.var(gradient, axis=0)))


@pytest.mark.parametrize("objective", [STL(), DReG(4)], ids=str)
def test_path_derivatives_are_without_noise_at_the_posterior(objective):
    """The guide's gradient there is zero up to float32 (1e-8 of the variance that the ELBO's has)."""
    quiet = gradients(objective, conjugate_model, conjugate_guide)
    noisy = gradients(IWAE(objective.num_particles), conjugate_model, conjugate_guide)
    for name in ("a", "s"):
        assert float(jnp.abs(quiet[name]).max()) < 1e-3  # sums of 18 float32 terms of order 10
        assert total_variance(quiet[name]) < 1e-6 < 1e-2 < total_variance(noisy[name])


@dataclass(frozen=True)
class KSampleScore(Objective):
    """The K-sample bound with plain scores: every draw credited with the whole bound."""

    num_particles: int = 5

    def estimate(self, key, both, state):
        w = log_weights(both, key, self.num_particles)
        per_row = log_mean_exp(w.rows)
        bound = jnp.sum(per_row)
        return Estimate(-bound - surrogate(jnp.sum(jax.lax.stop_gradient(per_row) * w.score_rows)), bound)


def test_vimco_is_quieter_than_plain_scores_of_the_same_bound():
    """Variances over 2,000 draws differ by more than 3x here; their sampling error is a few percent."""
    plain = gradients(KSampleScore(), bits_model, bits_guide)
    vimco = gradients(VIMCO(5), bits_model, bits_guide)
    assert 3 * total_variance(vimco["v"]) < total_variance(plain["v"])
    gap = jnp.mean(plain["v"], 0) - jnp.mean(vimco["v"], 0)  # the same expectation: 6 z-tests at 5 sigma
    assert jnp.all(jnp.abs(gap) < 5 * jnp.sqrt((jnp.var(plain["v"], 0) + jnp.var(vimco["v"], 0)) / 2000))


def test_vimco_bears_weights_of_zero():
    """Its baseline by hand, of weights 1, 0 and e; and finite gradients where a draw is impossible."""
    e = np.e
    found = leave_one_out(jnp.array([[0.0], [-jnp.inf], [1.0]]))[:, 0]
    np.testing.assert_allclose(found, np.log(np.array([e, 1 + e**0.5 + e, 1]) / 3), rtol=1e-6)

    def model(x, num_data=None):
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5 * jnp.ones(len(x))))
            numpyro.factor("impossible", jnp.where(z == 0, -jnp.inf, 0.0))
            numpyro.sample("x", dist.Normal(z, 1), obs=x)

    def guide(x, num_data=None):
        logit = numpyro.param("logit", jnp.float32(1.0))
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            numpyro.sample("z", dist.Bernoulli(logits=logit * jnp.ones(len(x))))

    batch = Batch({"x": jnp.zeros(1)}, jnp.arange(1), 1)
    run = SVI(model, guide, VIMCO(2), optax.identity())
    state = run.init(jax.random.key(0), batch)
    keys = jax.random.split(jax.random.key(1), 200)
    gradient, estimate = jax.jit(jax.vmap(lambda k: run.gradient(k, state, batch)))(keys)
    bound, slope = np.asarray(estimate.bound), np.asarray(gradient["logit"])
    possible = np.isfinite(bound)  # one of the two draws is 1; both are 0 with chance 0.27² = 0.07
    assert 0.85 < possible.mean() < 1 and np.isfinite(slope[possible]).all()
    # with one draw of each, the score of the 1 is sigmoid(-1) with L itself, that of the 0 is -sigmoid(1) times 0
    q = 1 / (1 + np.exp(-1.0))
    one = np.log(0.5 / q / 2) - 0.5 * np.log(2 * np.pi) - 0.5
    mixed = np.isclose(bound, one, rtol=1e-5)
    assert 0.25 < mixed.mean() < 0.55
    baseline = one + np.log(2)  # L where the 0 has the weight of the 1 in its place
    expected = one * (1 - q) + (one - baseline) * -q - (1 - q)
    np.testing.assert_allclose(slope[mixed], -expected, rtol=1e-4)


@pytest.mark.parametrize("objective", [ELBO, STL, IWAE, Renyi, DReG, VIMCO, NVIL, ScoreFunction, ReweightedWakeSleep])
@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "3"])
def test_draws_are_whole_numbers(objective, wrong):
    with pytest.raises(ValueError, match=f"num_particles is {wrong!r}; expected a whole number of at least"):
        objective(num_particles=wrong)


@pytest.mark.parametrize("alpha", [np.nan, np.inf, 1, 1 - 1e-4, 1 + 1e-6])
def test_renyi_refuses_orders_that_float32_cannot_take(alpha):
    with pytest.raises(ValueError, match=f"alpha is {alpha}"):
        Renyi(alpha)


def test_nvil_is_quieter_than_plain_scores_once_its_baseline_has_learned():
    run = SVI(bits_model, bits_guide, NVIL(20), optax.masked(optax.adam(1e-2), lambda p: {n: "nvil" in n for n in p}))
    state = run.init(jax.random.key(0), batch_of())
    frozen = {n: v for n, v in state["params"].items() if "nvil" not in n}
    step = jax.jit(lambda k, s: run.step(k, s, batch_of())[0])
    for i in range(300):
        state = step(jax.random.key(i), state)
        state["params"] |= frozen  # the baseline learns, the guide stands still
    learned = {n: v for n, v in state["params"].items() if "nvil" in n} | state["kept"]
    moments = {n: float(v) for n, v in state["kept"]["nvil_moments"].items()}
    deviation = np.sqrt(moments["square"] / moments["weight"] - (moments["mean"] / moments["weight"]) ** 2)
    nvil = gradients(NVIL(20), bits_model, bits_guide, learned)["v"] * max(1.0, deviation)  # scale taken out
    plain = gradients(ScoreFunction(), bits_model, bits_guide)["v"]
    assert 2 * total_variance(nvil) < total_variance(plain)


def test_a_moving_average_quiets_scores_and_is_kept_between_steps():
    run = SVI(bits_model, bits_guide, ScoreFunction(decay=0.9), optax.sgd(0.0))
    state = run.init(jax.random.key(0), batch_of())
    step = jax.jit(lambda k, s: run.step(k, s, batch_of()))
    bounds = []
    for i in range(50):
        state, record = step(jax.random.key(i), state)
        bounds.append(float(record.metrics["bound"]))
    kept = {n: float(v) for n, v in state["kept"]["score_average"].items()}
    weights = 0.1 * 0.9 ** np.arange(50)[::-1]
    assert np.isclose(kept["weight"], weights.sum(), rtol=1e-5)
    assert np.isclose(kept["row"], weights @ bounds, rtol=1e-4)  # N / B = 1: the mean of rows is the bound per row
    averaged = gradients(ScoreFunction(decay=0.9), bits_model, bits_guide, state["kept"])["v"]
    plain = gradients(ScoreFunction(), bits_model, bits_guide)["v"]
    assert total_variance(averaged) < total_variance(plain)


@pytest.mark.parametrize(
    "objective",
    [STL(), DReG(3), NVIL(8), VIMCO(3), ReweightedWakeSleep(3), Beta(ELBO(), optax.linear_schedule(0, 1, 9))],
)
def test_objectives_work_in_plain_numpyro_svi(objective):
    """With ``objective.guide(guide)`` and nothing else; state is carried and the loss falls."""
    discrete = not isinstance(objective, (STL, DReG, Beta))
    model, guide = (bits_model, bits_guide) if discrete else (conjugate_model, conjugate_guide)
    svi = NumPyroSVI(model, objective.guide(guide), numpyro.optim.Adam(0.02), objective)
    result = svi.run(jax.random.key(0), 300, jnp.asarray(X), progress_bar=False)
    assert np.isfinite(result.losses).all()
    if discrete:
        assert result.losses[-50:].mean() < result.losses[:50].mean()
    if isinstance(objective, Beta):
        assert int(result.state.mutable_state["objective_step"]["count"]) == 300


def test_history_keeps_the_plain_bound_beside_a_controlled_kl():
    objective = Beta(ELBO(), optax.linear_schedule(0.0, 1.0, 20))
    run = fit(SVI(conjugate_model, conjugate_guide, objective, optax.adam(1e-3)), X, key=0, num_steps=40, batch_size=3)
    history = {n: v[0] for n, v in run.history.items()}
    assert np.allclose(history["bound"], history["reconstruction"] - history["kl"], rtol=1e-5, atol=1e-5)
    assert np.allclose(history["beta"], np.minimum(np.arange(40) / 20, 1), atol=1e-6)
    # KL(q || p) per row at the start, where q is the posterior of the first batch's rows
    assert 0 < history["kl"][0] < 5


def test_schedules():
    wave = jax.vmap(cyclical(10, high=2.0, rise=0.5))(jnp.arange(12))
    assert np.allclose(wave, [0, 0.4, 0.8, 1.2, 1.6, 2, 2, 2, 2, 2, 0, 0.4])


def test_free_bits_leave_a_cheap_latent_alone_and_capacity_holds_the_kl():
    """With 3 nats free the KL climbs towards 3; capacity at 1.5 nats ends there."""
    for objective, target in ((FreeBits(ELBO(), 3.0), 3.0), (Capacity(ELBO(), 1.5, 20.0), 1.5)):
        run = fit(SVI(conjugate_model, conjugate_guide, objective, optax.adam(2e-2)), X, key=0, num_steps=1500)
        assert abs(run.history["kl"][0, -300:].mean() - target) < 0.15  # steps of 0.02 around a kink


@pytest.mark.parametrize(
    ("objective", "guide", "message"),
    [
        (STL(), bits_guide, r"STL differentiates through.*\['z'\].*ScoreFunction\(\), NVIL\(\), VIMCO\(\)"),
        (DReG(), bits_guide, "DReG differentiates through"),
        (Players(IWAE(2), ELBO()), bits_guide, "IWAE differentiates through"),
    ],
    ids=["stl", "dreg", "players"],
)
def test_pathwise_objectives_refuse_discrete_sites(objective, guide, message):
    with pytest.raises(Incompatible, match=message):
        check(bits_model, guide, objective, X)


def test_refusals_name_what_would_do():
    with pytest.raises(Incompatible, match=r"Beta weighs the KL inside an ELBO, and IWAE"):
        Beta(IWAE(2), 0.5)
    with pytest.raises(ValueError, match="num_particles is 1; expected a whole number of at least 2"):
        VIMCO(1)
    with pytest.raises(ValueError, match="sleep is 2"):
        ReweightedWakeSleep(sleep=2)
    with pytest.raises(ValueError, match="decay is 1"):
        ScoreFunction(decay=1)
    with pytest.raises(Incompatible, match=r"cannot be summed out exactly.*one variable a site"):
        check(bits_model, lambda x, num_data=None: None, ELBO(), X)

    def scaled(x, num_data=None):
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            z = numpyro.sample("z", dist.Bernoulli(logits=0.3 * jnp.ones((len(x), 2))).to_event(1))
            numpyro.sample("x", dist.Normal(z.sum(-1, keepdims=True) * jnp.ones(3), 1).to_event(1), obs=2 * x)

    with pytest.raises(Incompatible, match="sleep phase hands the guide dreamed values of 'x'"):
        check(scaled, bits_guide, ReweightedWakeSleep(2, sleep=1.0), X)


def test_players_share_one_baseline_which_is_the_guides():
    run = fit(SVI(bits_model, bits_guide, Players(NVIL(5), NVIL(7)), optax.adam(1e-2)), X, key=0, num_steps=2)
    assert run.params["nvil_baseline"].layers[0].weight.shape == (7, 3)
    assert np.isfinite(run.history["bound"]).all()
