"""Turns move one player at a time and arrive where joint training does."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from inference import SVI, Alternating, Incompatible, LaggingEncoder, fit
from inference.objectives import ELBO, IWAE, Players
from inference.protocols import Batch

RNG = np.random.default_rng(1)
X = (1.5 * RNG.normal(size=(40, 1)) + 0.4 * RNG.normal(size=(40, 1))).astype(np.float32)
OPTIMUM = float(np.sqrt(np.mean(X**2) - 1))  # x ~ N(0, theta² + 1)
EVIDENCE = float(np.mean(-0.5 * X**2 / np.mean(X**2) - 0.5 * np.log(2 * np.pi * np.mean(X**2))))


def model(x, num_data=None):
    theta = numpyro.param("theta", 0.6)
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros((len(x), 1)), 1).to_event(1))
        numpyro.sample("x", dist.Normal(theta * z, 1).to_event(1), obs=x)


def guide(x, num_data=None):
    a = numpyro.param("a", 0.1)
    s = numpyro.param("s", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("z", dist.Normal(a * x, s).to_event(1))


def svi(objective=None, rate=0.02):
    return SVI(model, guide, objective or ELBO(), optax.adam(rate))


def walk(algorithm, steps):
    """Parameters after each step."""
    batch = Batch({"x": jnp.asarray(X)}, jnp.arange(40), 40)
    state, out = algorithm.init(jax.random.key(0), batch), []
    step = jax.jit(algorithm.step)
    for i in range(steps):
        out.append({n: np.float32(v) for n, v in state["params"].items()})
        state, _ = step(jax.random.key(i), state, batch)
    return [*out, {n: np.float32(v) for n, v in state["params"].items()}]


def moved(path):
    """Who moved in each step: g, m or both."""
    out = ""
    for before, after in zip(path, path[1:], strict=False):
        out += {(True, False): "g", (False, True): "m", (True, True): "b"}[
            before["a"] != after["a"], before["theta"] != after["theta"]
        ]
    return out


def test_turns_are_counted():
    assert moved(walk(Alternating(svi(), guide_steps=2, model_steps=1), 9)) == "ggmggmggm"


def test_the_lagging_encoder_moves_the_model_when_the_guide_gains_no_more():
    path = moved(walk(LaggingEncoder(svi(rate=0.05), aggressive_steps=120, window=5, max_inner=40), 130))
    turns = path[:120].split("m")
    assert path[120:] == "b" * 10  # then both together
    assert all(10 <= len(t) <= 40 and len(t) % 5 == 0 for t in turns[:-1])  # two windows at least
    assert len(turns[0]) > min(len(t) for t in turns[1:-1])  # the first has the longest way to go


@pytest.mark.parametrize(
    "algorithm",
    [
        Alternating(svi(), guide_steps=3, model_steps=1),
        LaggingEncoder(svi(), aggressive_steps=600, window=5, max_inner=20),
        Alternating(svi(Players(IWAE(3), ELBO())), guide_steps=2, model_steps=2),
    ],
    ids=["alternating", "lagging", "players"],
)
def test_turns_arrive_at_the_exact_optimum(algorithm):
    run = fit(algorithm, X, key=0, num_steps=3000)
    assert abs(abs(float(run.params["theta"])) - OPTIMUM) < 0.05  # Adam at 0.02 hovers within about 0.03
    assert abs(run.history["bound"][0, -500:].mean() - EVIDENCE) < 0.02
    assert run.log_likelihood(X, num_particles=200).mean == pytest.approx(EVIDENCE, abs=0.01)


def test_chains_and_refusals():
    run = fit(Alternating(svi()), X, key=0, num_steps=20, num_chains=3)
    assert run.history["bound"].shape == (3, 20)
    with pytest.raises(ValueError, match="guide_steps is 0"):
        Alternating(svi(), guide_steps=0)
    with pytest.raises(ValueError, match="window"):
        LaggingEncoder(svi(), max_inner=2)

    def fixed(x, num_data=None):
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros((len(x), 1)), 1).to_event(1))
            numpyro.sample("x", dist.Normal(z, 1).to_event(1), obs=x)

    with pytest.raises(Incompatible, match="the model has no parameters of its own"):
        fit(Alternating(SVI(fixed, guide, ELBO(), optax.adam(0.1))), X, key=0, num_steps=2)
