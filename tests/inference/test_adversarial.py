"""Adversarial learning against optimal critics, exact distances, and gradients written out. All seeds are fixed."""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers

from guides import AmortizedNormal
from inference import SVI, Adversarial, Fit, Incompatible, NonFinite, averaged, fit
from inference.games import Minimax, NonSaturating, Wasserstein, WassersteinGradientPenalty, WassersteinLipschitzPenalty
from inference.implicit import Implicit
from inference.objectives import ELBO
from inference.protocols import Batch
from inference.sites import row_weights
from ppl_models import VAE, CycleGAN, Generator
from ppl_models.networks import MLP, ClassifyingCritic, Critic, Linear, network

STILL = optax.set_to_zero()
GRID = np.linspace(-6, 6, 2401)
WIDTH = GRID[1] - GRID[0]
ROW = jnp.arange(40_000, dtype=jnp.int32)
GAMES = (NonSaturating(), Minimax(), Wasserstein(0.1))


def normal(x, loc, scale):
    return np.exp(-0.5 * ((x - loc) / scale) ** 2) / (scale * np.sqrt(2 * np.pi))


# Two humps against one: the best critics are known by quadrature.
DATA = 0.5 * normal(GRID, -1.5, 0.5) + 0.5 * normal(GRID, 1.5, 0.5)
MODEL = normal(GRID, 0, 1)
BEST = DATA / (DATA + MODEL)  # D*
JENSEN_SHANNON = 0.5 * WIDTH * np.sum(DATA * np.log(2 * BEST) + MODEL * np.log(2 * (1 - BEST)))
W1 = WIDTH * np.sum(np.abs(np.cumsum(DATA - MODEL) * WIDTH))  # the integral of |F - G|


class Humps:
    """Fresh rows at every step, so that a critic cannot learn them by heart."""

    arrays = {"x": np.zeros((512, 1), np.float32)}
    name = "humps"

    @staticmethod
    def transform(key, data):
        side, noise = jax.random.split(key)
        shape = data["x"].shape
        return {"x": 1.5 * jax.random.rademacher(side, shape, jnp.float32) + 0.5 * jax.random.normal(noise, shape)}


def shifted(x, num_data=None):
    """x = loc + z."""
    loc = numpyro.param("loc", 0.0)
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([1]).to_event(1))
        numpyro.deterministic("x", loc + z)


def slope(x):
    """s = w x."""
    return numpyro.param("w", 0.7) * x[:, 0]


def scores(run):
    found = handlers.substitute(run.algorithm.critic, data=run.params)(x=jnp.asarray(GRID[:, None], jnp.float32))
    return np.asarray(found, np.float64)


def test_the_critic_finds_the_optimal_one_and_its_value():
    steps = 1500
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))
    algorithm = Adversarial(shifted, Critic(MLP((32, 32), "silu")), Minimax(), STILL, optimizer)
    run = fit(algorithm, Humps(), key=0, num_steps=steps)
    found = 1 / (1 + np.exp(-scores(run)))
    # Where 99% of the rows are: beyond, no row says anything.
    dense = DATA + MODEL > 0.02
    assert WIDTH * ((DATA + MODEL) / 2)[dense].sum() > 0.99
    assert np.abs(found - BEST)[dense].max() < 0.05
    value = WIDTH * np.sum(DATA * np.log(found) + MODEL * np.log(1 - found))
    best = 2 * JENSEN_SHANNON - np.log(4)
    assert best - 0.003 < value <= best + 1e-6  # no critic has more than the optimal one
    # 200 batches of 512 rows, whose log D have a deviation of 0.6 at most: 0.002 is over three standard errors.
    assert abs(run.history["divergence"][0, -200:].mean() - JENSEN_SHANNON) < 0.004
    right = 0.5 + 0.25 * WIDTH * np.abs(DATA - MODEL).sum()  # one half and half the total variation
    assert abs(run.history["critic_accuracy"][0, -200:].mean() - right) < 0.01


@pytest.mark.slow
def test_the_gradient_penalty_estimates_the_wasserstein_distance():
    steps, game = 2000, WassersteinGradientPenalty(10.0)
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    run = fit(
        Adversarial(shifted, Critic(MLP((32, 32), "relu")), game, STILL, optimizer), Humps(), key=0, num_steps=steps
    )
    found = WIDTH * np.sum((DATA - MODEL) * scores(run))
    assert abs(found / W1 - 1) < 0.1
    # max over a of a W - weight (a - 1)² is at a = 1 + W / (2 weight)
    assert found == pytest.approx(W1 * (1 + W1 / (2 * game.weight)), rel=0.03)


@pytest.mark.parametrize("game", [WassersteinGradientPenalty(10.0), WassersteinLipschitzPenalty(10.0)])
def test_each_of_several_critics_pays_for_its_own_slope(game):
    """s_1 = 2 x and s_2 = y: the first is off by one, the second by nothing, and the penalty is their average."""
    rows = {"x": jnp.ones((6, 1)), "y": jnp.ones((6, 1))}
    both = game.penalty(jax.random.key(0), lambda r: jnp.stack([2 * r["x"][:, 0], r["y"][:, 0]], -1), rows, rows)
    assert float(both) == pytest.approx(10 * (1 + 0) / 2, abs=1e-4)
    # One critic that sees both arrays has one slope, over both.
    one = game.penalty(jax.random.key(0), lambda r: 2 * r["x"][:, 0] + r["y"][:, 0], rows, rows)
    assert float(one) == pytest.approx(10 * (np.sqrt(5) - 1) ** 2, abs=1e-4)


def test_clipped_weights_stay_clipped_and_their_value_is_below_k_times_the_distance():
    clip = 0.1
    algorithm = Adversarial(shifted, Critic(MLP((16,), "relu")), Wasserstein(clip), STILL, optax.adam(1e-2))
    run = fit(algorithm, Humps(), key=0, num_steps=200)
    weights = np.concatenate([np.ravel(w) for w in jax.tree.leaves(run.params["critic"])])
    assert np.abs(weights).max() <= clip and np.mean(np.abs(weights) == np.float32(clip)) > 0.3
    assert 0 < WIDTH * np.sum((DATA - MODEL) * scores(run)) < W1 * 16 * clip**2  # K of two layers, at most


@pytest.mark.parametrize(
    ("game", "push"),
    [
        (Minimax(), lambda s: -(1 / (1 + np.exp(-s)))),  # d log(1 - D) / ds = -D
        (NonSaturating(), lambda s: -(1 / (1 + np.exp(s)))),  # d -log D / ds = -(1 - D)
        (Wasserstein(10), lambda s: -np.ones_like(s)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_one_step_follows_the_gradient_of_the_game(game, push):
    """w moves by the critic's own gradient, and loc by -rate E[push(w x)] w at the new w, both by quadrature."""
    rate, rows = 0.5, 40_000
    x = np.random.default_rng(0).normal(1.0, 1.0, (rows, 1)).astype(np.float32)
    batch = Batch({"x": jnp.asarray(x)}, ROW[:rows], rows)
    algorithm = Adversarial(shifted, slope, game, optax.sgd(rate), optax.sgd(rate))
    state, _ = algorithm.step(jax.random.key(1), algorithm.init(jax.random.key(0), batch), batch)
    real, fake = normal(GRID, 1, 1), MODEL
    if isinstance(game, Wasserstein):
        climb = WIDTH * np.sum((real - fake) * GRID)
    else:
        d = 1 / (1 + np.exp(-0.7 * GRID))
        climb = WIDTH * np.sum((real * (1 - d) - fake * d) * GRID)  # dV / dw
    w = float(state["critic"]["w"])
    # Both means have standard errors below sqrt(2) / 200; five of their sum: one false alarm in a million
    assert abs(w - (0.7 + rate * climb)) < rate * 5 * 2 / 200
    expected = -rate * w * WIDTH * np.sum(MODEL * push(w * GRID))
    # push is between -1 and 0: its mean over the rows has a standard error of 0.0025 at most; five of them
    assert abs(float(state["players"]["loc"]) - expected) < rate * abs(w) * 5 * 0.0025


@pytest.mark.slow
@pytest.mark.parametrize("game", GAMES, ids=lambda v: type(v).__name__)
def test_every_game_moves_the_model_to_the_data(game):
    x = np.random.default_rng(0).normal(2.0, 1.0, (4096, 1)).astype(np.float32)
    steps = 600
    slow, fast = (optax.adam(optax.cosine_decay_schedule(r, steps), b1=0.0) for r in (2e-2, 1e-2))
    algorithm = Adversarial(shifted, Critic(MLP((16,), "relu")), game, slow, fast)
    run = fit(algorithm, x, key=1, num_steps=steps, batch_size=256, num_chains=2)
    # from a distance of 2; the players circle round the data's mean, which has an error of 0.016
    assert np.abs(run.draws.params["loc"] - 2.0).max() < 0.25
    assert set(run.history) == {"generator_loss", "critic_loss", "critic_accuracy", "divergence"}
    assert all(v.shape == (2, steps) and np.isfinite(v).all() for v in run.history.values())
    early, late = run.history["divergence"][:, 20:120], run.history["divergence"][:, -100:]
    assert (late.mean(1) < early.mean(1)).all()


def test_the_generator_moves_at_every_third_step_of_the_critic():
    batch = Batch({"x": jnp.full((8, 1), 2.0)}, ROW[:8], 8)
    algorithm = Adversarial(shifted, slope, critic_steps=3)
    state, locs, slopes = algorithm.init(jax.random.key(0), batch), [], []
    for i in range(6):
        state, _ = algorithm.step(jax.random.key(i), state, batch)
        locs.append(float(state["players"]["loc"]))
        slopes.append(float(state["critic"]["w"]))
    assert locs[0] == locs[1] == 0 != locs[2] == locs[3] == locs[4] != locs[5]
    assert len(set(slopes)) == 6


def test_players_that_are_averaged_are_reported_so():
    """The critic stays at w = 0.7, so that loc moves by rate 0.7 a step: 0.07, 0.14, 0.21, averaged with 2 / 11, ..."""
    batch = Batch({"x": jnp.zeros((8, 1))}, ROW[:8], 8)
    algorithm = Adversarial(shifted, slope, Wasserstein(10), averaged(optax.sgd(0.1)), averaged(STILL))
    state = algorithm.init(jax.random.key(0), batch)
    expected = 0.0
    for n in range(1, 4):
        state, _ = algorithm.step(jax.random.key(n), state, batch)
        share = (1 + n) / (10 + n)
        expected = share * expected + (1 - share) * 0.07 * n
    params = algorithm.params(state, batch)
    assert float(state["players"]["loc"]) == pytest.approx(0.21, rel=1e-5)
    assert float(params["loc"]) == pytest.approx(expected, rel=1e-5)
    assert float(params["w"]) == pytest.approx(0.7)


@pytest.mark.slow
def test_the_one_sided_penalty_turns_round_where_the_model_overshoots():
    x = np.random.default_rng(0).normal(2.0, 1.0, (4096, 1)).astype(np.float32)
    steps = 600
    rates = [optax.adam(optax.cosine_decay_schedule(r, steps), b1=0.0) for r in (2e-2, 1e-2)]
    algorithm = Adversarial(shifted, Critic(MLP((16,), "relu")), WassersteinLipschitzPenalty(), *rates)
    run = fit(algorithm, x, key=1, num_steps=steps, batch_size=256, num_chains=4)
    assert np.abs(run.draws.params["loc"] - 2.0).max() < 0.35


def test_a_guide_as_encoder_finds_the_posterior_of_a_linear_gaussian_model():
    """ALI: z ~ N(0, 1), x | z ~ N(w z, 0.7²), whose posterior is N(x w / (w² + 0.49), 0.49 / (w² + 0.49)).

    The log ratio of two Normal laws of (x, z) is quadratic, so that this critic holds the optimal one.
    """
    noise, steps = 0.7, 3000

    def linear(x, num_data=None):
        w = numpyro.param("w", 0.5)
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([1]).to_event(1))
            numpyro.sample("x", dist.Normal(w * z, noise).to_event(1), obs=x)

    def quadratic(x, z):
        weights, x, z = numpyro.param("weights", jnp.zeros(6)), x[:, 0], z[:, 0]
        return jnp.stack([jnp.ones_like(x), x, z, x * x, x * z, z * z], -1) @ weights

    class Rows:
        arrays = {"x": np.zeros((512, 1), np.float32)}
        name = "rows"

        @staticmethod
        def transform(key, data):
            return {"x": np.sqrt(1 + noise**2) * jax.random.normal(key, data["x"].shape)}

    slow = optax.adam(optax.cosine_decay_schedule(3e-3, steps), b1=0.5)
    algorithm = Adversarial(
        linear, quadratic, NonSaturating(), slow, optax.adam(3e-2, b1=0.5), guide=AmortizedNormal(1, Linear())
    )
    run = fit(algorithm, Rows(), key=0, num_steps=steps)
    assert float(run.params["w"]) == pytest.approx(1.0, abs=0.05)  # up to its sign, which the start decides
    x = np.linspace(-2, 2, 5, dtype=np.float32)[:, None]
    z = run.sample_posterior(x, 4000)["z"][..., 0]
    # 4,000 draws of deviation 0.57 have a mean with an error of 0.009; the players circle by about as much
    np.testing.assert_allclose(z.mean(0), x[:, 0] / (1 + noise**2), atol=0.05)
    np.testing.assert_allclose(z.std(0), noise / np.sqrt(1 + noise**2), atol=0.05)
    # x has a density here, and the encoder weighs it: the likelihood is that of N(0, w² + 0.49).
    variance = float(run.params["w"]) ** 2 + noise**2
    exact = -0.5 * (np.log(2 * np.pi * variance) + x[:, 0] ** 2 / variance)
    np.testing.assert_allclose(run.log_likelihood(x).rows, exact, atol=0.02)


@pytest.mark.slow
def test_a_conditional_generator_makes_rows_of_the_label_it_is_given():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 1024)
    data = {"x": (rng.normal(0, 0.3, (1024, 1)) + np.where(labels, 2, -2)[:, None]).astype(np.float32)}
    data["y"] = np.eye(2, dtype=np.float32)[labels]
    adam = optax.adam(5e-3, b1=0.5)
    algorithm = Adversarial(Generator(2, MLP((16,))), Critic(MLP((16,), "silu")), NonSaturating(), adam, adam)
    run = fit(algorithm, data, key=0, num_steps=500, batch_size=128)
    drawn = run.predict({n: v[:200] for n, v in data.items()}, 5)["x"]
    assert drawn.shape == (5, 200, 1)
    assert np.mean((drawn[..., 0] > 0) == (labels[:200] == 1)) > 0.98
    with pytest.raises(Incompatible, match="are inputs of the model that it does not generate"):
        run.generate(5)


def test_what_a_fit_answers_of_an_implicit_model(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    algorithm = Adversarial(Generator(2, MLP((4,))), Critic(MLP((4,))))
    run = fit(algorithm, x, key=0, num_steps=3, batch_size=20)
    assert run.generate(7)["x"].shape == (7, 3)
    with pytest.raises(Incompatible, match="implicit: it makes .*'x'.* without a density"):
        run.log_likelihood(x)
    with pytest.raises(Incompatible, match="no posterior to draw"):
        run.sample_posterior(x)
    data = run.to_arviz()
    np.testing.assert_array_equal(data.observed_data["x"], x)
    assert data.posterior_predictive["x"].shape[2:] == x.shape
    assert "without a density" in data.attrs["log_likelihood"] and "log_likelihood" not in data.groups()
    run.save(tmp_path / "weights")
    back = Fit.load(tmp_path / "weights", algorithm)
    np.testing.assert_array_equal(back.generate(7)["x"], run.generate(7)["x"])

    paired = Adversarial(Generator(2, MLP((4,))), Critic(MLP((4,))), guide=AmortizedNormal(2, MLP((4,))))
    run = fit(paired, x, key=0, num_steps=3)
    assert run.sample_posterior(x, 4)["z"].shape == (4, 60, 2)
    assert run.reconstruct(x)["x"].shape == x.shape
    # There is no p(x | z) to weigh a draw with.
    assert row_weights(run, run.sample_posterior(x, 2), run.example) is None


@pytest.mark.slow
def test_rows_need_no_plate_and_no_deterministic_site():
    def plain(x, num_data=None):
        loc = numpyro.param("loc", 0.0)
        numpyro.sample("x", dist.Normal(loc, jnp.ones_like(x)))

    x = np.random.default_rng(0).normal(3, 1, (64, 1)).astype(np.float32)
    adam = optax.adam(0.1)
    run = fit(
        Adversarial(plain, slope, WassersteinGradientPenalty(), adam, adam), x, key=0, num_steps=20, batch_size=16
    )
    assert float(run.params["loc"]) > 0.5


@pytest.mark.slow
def test_constrained_parameters_stay_in_their_space():
    def scaled(x, num_data=None):
        scale = numpyro.param("scale", 3.0, constraint=dist.constraints.positive)
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([1]).to_event(1))
            numpyro.deterministic("x", scale * z)

    def squares(x):
        return numpyro.param("w", -0.1) * x[:, 0] ** 2

    x = np.random.default_rng(0).normal(size=(500, 1)).astype(np.float32)
    rates = optax.adam(optax.cosine_decay_schedule(0.03, 500)), optax.adam(0.03, b1=0.5)
    run = fit(Adversarial(scaled, squares, Minimax(), *rates), x, key=0, num_steps=500)
    assert float(run.params["scale"]) == pytest.approx(x.std(), abs=0.15)


@pytest.mark.parametrize(
    ("model", "critic", "message"),
    [
        (lambda x: numpyro.deterministic("rows", numpyro.param("a", 0.0) + x), slope, "no site named after the data"),
        (lambda x: numpyro.deterministic("x", numpyro.param("a", jnp.zeros(3)) + x[:, :1]), slope, "with shape"),
        (lambda x: numpyro.deterministic("x", jnp.zeros_like(x)), slope, "the model has no parameters"),
        (shifted, lambda x: x[:, 0], "the critic has no parameters"),
        (shifted, lambda x: numpyro.param("w", 1.0) * x, "one score a row"),
        (shifted, lambda x: numpyro.param("loc", 1.0) * x[:, 0], "share parameters"),
        (shifted, lambda rows: numpyro.param("w", 1.0) * rows[:, 0], "no argument 'x'"),
        (lambda x: numpyro.sample("x", dist.Poisson(numpyro.param("rate", 1.0) * jnp.ones_like(x))), slope, "relax"),
    ],
)
def test_programs_that_do_not_play_are_refused_before_compiling(model, critic, message):
    with pytest.raises(Incompatible, match=message):
        fit(Adversarial(model, critic), np.ones((6, 1), np.float32), key=0, num_steps=2)


def test_discrete_draws_without_parameters_are_fine():
    def labelled(x, num_data=None):
        means = numpyro.param("means", jnp.array([-1.0, 1.0]))
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            label = numpyro.sample("label", dist.Bernoulli(0.5))
            noise = numpyro.sample("noise", dist.Normal(0, 0.5))
            numpyro.deterministic("x", (means[label] + noise)[:, None])

    Adversarial(labelled, slope).check(Batch({"x": jnp.ones((6, 1))}, ROW[:6], 6))


def test_a_likelihood_cannot_bound_an_implicit_model_nor_pyro_play():
    x = np.ones((6, 3), np.float32)
    generator, guide = Generator(2, MLP((4,))), AmortizedNormal(2, MLP((4,)))
    for model in (generator, Implicit(generator)):
        with pytest.raises(Incompatible, match="implicit: it makes"):
            fit(SVI(model, guide, ELBO(), optax.adam(1e-3)), x, key=0, num_steps=1)
    import pyro

    with pytest.raises(Incompatible, match="ppl=pyro"):
        fit(Adversarial(VAE(2, MLP((4,)), ppl=pyro), slope), x, key=0, num_steps=1)
    with pytest.raises(ValueError, match="critic_steps is 0"):
        Adversarial(generator, slope, critic_steps=0)
    for game, name in ((Wasserstein, "clip"), (WassersteinGradientPenalty, "weight")):
        with pytest.raises(ValueError, match=f"{name} is -1"):
            game(-1)
    for options, message in (({"latent_dim": 0}, "latent_dim is 0"), ({"output": "softmax"}, "output is 'softmax'")):
        with pytest.raises(ValueError, match=message):
            Generator(**({"latent_dim": 2, "network": MLP((4,))} | options))


@pytest.mark.parametrize(
    ("player", "reason"),
    [("critic", "critic's parameter 'w'"), pytest.param("model", "parameter 'loc'", marks=pytest.mark.slow)],
)
def test_a_player_that_stops_being_finite_ends_the_run_with_a_reason(player, reason):
    bad = optax.stateless(lambda g, _: jax.tree.map(lambda v: v * jnp.nan, g))
    rates = (STILL, bad) if player == "critic" else (bad, STILL)
    x = np.ones((6, 1), np.float32)
    with pytest.raises(NonFinite, match=f"critic loss is not finite at step 1.*{reason}") as caught:
        fit(Adversarial(shifted, slope, Minimax(), *rates), x, key=0, num_steps=50)
    good = caught.value.fit
    assert all(np.isfinite(v).all() for v in good.history.values())
    assert np.isfinite(good.generate(3)["x"]).all()


def test_the_program_is_kept_as_one_that_observes():
    """The same value from the same parts, so that nothing is compiled twice; and x is the data's unless it is drawn."""
    make = lambda: Adversarial(Generator(2, MLP((4,))), Critic(MLP((4,))))  # noqa: E731
    assert make() == make() and hash(make()) == hash(make())
    x = jnp.ones((5, 3))
    batch = Batch({"x": x}, jnp.arange(5), 5)
    programs = importlib.import_module("inference.programs")
    tr = programs.trace(programs.bind(make().model, batch), jax.random.key(0))
    assert tr["x"]["type"] == "sample" and tr["x"]["is_observed"]
    np.testing.assert_array_equal(tr["x"]["value"], x)
    assert np.abs(tr["x"]["fn"].mean - x).min() > 0


def test_factors_of_the_model_and_what_the_critic_observes_are_climbed_besides():
    """Gradients by hand: of -a (loc - 3)² for the model, and of a Bernoulli's log density for the critic."""
    rate, rows = 0.1, 8

    def held(x, y):
        loc = numpyro.param("loc", 1.0)
        numpyro.factor("prior", -0.5 * rows * (loc - 3.0) ** 2)  # of all rows; per row it is that over 8
        with numpyro.plate("data", len(x)):
            numpyro.deterministic("x", loc + 0.0 * x)

    def blind(x, y):
        logit = numpyro.param("logit", -0.1)  # not 0, where NumPyro 0.22's gradient of a Bernoulli is wrong
        numpyro.sample("label", dist.Bernoulli(logits=logit).mask(y[:, 0] >= 0), obs=jnp.maximum(y[:, 0], 0))
        return 0.0 * x[:, 0]

    y = jnp.array([1.0, 1, 1, 0, -1, -1, -1, -1])[:, None]  # four rows have no label
    batch = Batch({"x": jnp.ones((rows, 1)), "y": y}, ROW[:rows], rows)
    algorithm = Adversarial(held, blind, Minimax(), optax.sgd(rate), optax.sgd(rate))
    state, record = algorithm.step(jax.random.key(0), algorithm.init(jax.random.key(0), batch), batch)
    assert float(state["players"]["loc"]) == pytest.approx(1 + rate * 2)  # d/dloc -½ (loc - 3)² = 2
    one = 1 / (1 + np.exp(0.1))  # sigma(-0.1)
    assert float(state["critic"]["logit"]) == pytest.approx(
        -0.1 + rate * (3 - 4 * one) / 8
    )  # sum of y - sigma, per row
    assert float(record.metrics["generator_loss"]) == pytest.approx(-np.log(2) + 2)  # log(1 - ½) + ½ 2²
    assert float(record.metrics["critic_loss"]) == pytest.approx(
        2 * np.log(2) - (3 * np.log(one) + np.log(1 - one)) / 8
    )


def test_the_score_of_a_classifying_critic_and_what_it_observes():
    """By hand, of one affine map: D = sum_k exp l_k / (sum_k exp l_k + 1), and log softmax of rows that are told."""
    critic, x, y = ClassifyingCritic(Linear(), 3), jnp.eye(4, 2), jnp.array([2, -1, 0, -1])
    tr = handlers.trace(handlers.seed(critic, 0)).get_trace(x=x, y=y)
    told = handlers.substitute(critic, data={"critic": tr["critic"]["value"]})
    weights = tr["critic"]["value"]
    logits = np.asarray(x @ weights.weight.T + weights.bias, np.float64)
    total = np.exp(logits).sum(-1)
    np.testing.assert_allclose(1 / (1 + np.exp(-told(x=x, y=y))), total / (total + 1), rtol=1e-5)
    algorithm = Adversarial(lambda x, y: Generator(1, Linear())(x), critic, Minimax())
    _, seen = algorithm._judge(jax.random.key(0), {"critic": weights}, {"x": x, "y": y})
    log_softmax = logits - np.log(total)[:, None]
    assert float(seen) == pytest.approx((log_softmax[0, 2] + log_softmax[2, 0]) / 4, rel=1e-5)  # of 4 rows, 2 told
    with pytest.raises(ValueError, match="num_classes is 1; expected at least 2"):
        ClassifyingCritic(Linear(), 1)


@pytest.mark.slow
def test_a_semi_supervised_critic_learns_classes_from_a_few_labels():
    """Two clusters, five labels each."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 512)
    x = (rng.normal(size=(512, 2)) * 0.5 + np.where(truth, 2, -2)[:, None]).astype(np.float32)
    y = np.full(512, -1)  # no label
    for k in range(2):
        y[np.flatnonzero(truth == k)[:5]] = k

    def unconditional(x, y, num_data=None):
        return Generator(2, MLP((16,)))(x, num_data=num_data)

    critic = ClassifyingCritic(MLP((16,), "silu"), 2)
    adam = optax.adam(5e-3, b1=0.5)
    run = fit(Adversarial(unconditional, critic, NonSaturating(), adam, adam), {"x": x, "y": y}, key=0, num_steps=300)
    logits = handlers.substitute(critic.logits, data=run.params)(x=jnp.asarray(x))
    assert np.mean(np.asarray(logits).argmax(-1) == truth) > 0.99


@pytest.mark.slow
def test_a_cycle_finds_the_map_between_unpaired_sets():
    """y = 2 x + 1 of other rows of the same law, uneven, so that only one affine map takes one set to the other."""
    rng = np.random.default_rng(0)

    def draw():
        return np.where(rng.random((4096, 1)) < 0.8, rng.normal(-1, 0.3, (4096, 1)), rng.normal(2, 0.3, (4096, 1)))

    data = {"x": draw().astype(np.float32), "y": (2 * draw() + 1).astype(np.float32)}

    def both(x, y):
        of_x = network(numpyro, "of_x", MLP((32,), "silu"), 1, 1)(x)
        of_y = network(numpyro, "of_y", MLP((32,), "silu"), 1, 1)(y)
        return jnp.concatenate([of_x, of_y], -1)

    steps = 1500
    rates = [optax.adam(optax.cosine_decay_schedule(r, steps), b1=0.5) for r in (3e-3, 1e-2)]
    algorithm = Adversarial(CycleGAN(Linear(), weight=1.0), both, NonSaturating(), *rates)
    run = fit(algorithm, data, key=0, num_steps=steps, batch_size=256, num_chains=6)
    # Maps that start with the wrong slope stay where they fit one cluster; of these starts two are right.
    forward, backward = run.draws.params["forward"], run.draws.params["backward"]
    there = np.stack([forward.weight.ravel(), forward.bias.ravel()], 1)
    back = np.stack([backward.weight.ravel(), backward.bias.ravel()], 1)
    good = np.abs(there - [2, 1]).max(1) < 0.35
    assert good.sum() >= 2
    assert np.abs(back[good] - [0.5, -0.5]).max() < 0.2
    # There and back is the identity, which the cycle loss asks; no pair was shown.
    round_trip = back[good, 0] * there[good, 0]
    assert np.abs(round_trip - 1).max() < 0.1
    made = run.predict({"x": np.zeros((2, 1), np.float32), "y": np.ones((2, 1), np.float32)}, 1)
    assert set(made) == {"x", "y"} and made["y"][0, 0, 0] == pytest.approx(there[0, 1], abs=1e-5)  # G(0)
