"""The loop: rows, modes of execution, chains, validation, early stopping, signals."""

from __future__ import annotations

import importlib
import os
import signal
import threading
import time
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from guides import MeanField, empty
from inference import EM, NUTS, SVI, Incompatible, MaximumLikelihood, fit
from inference.data import as_data
from inference.execution import Schedule, choose, epoch_order, make_keys
from inference.fit import _signals
from inference.objectives import ELBO
from inference.programs import bind, joint_density
from inference.protocols import Batch, Draws, Record
from ppl_models import GaussianMixture

ADAM = optax.adam(2e-2)
X = np.random.default_rng(0).normal(3.0, 1.0, size=(23, 2)).astype(np.float32)


def program(x, num_data=None):
    loc = numpyro.sample("loc", dist.Normal(0, 10).expand([2]).to_event(1))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("x", dist.Normal(loc, 1).to_event(1), obs=x)


SVI_ = SVI(program, MeanField(program), ELBO(), ADAM)


class Recorder:
    """An algorithm that records which rows each step sees, and how they are scaled."""

    engine = "numpyro"
    model = staticmethod(program)
    guide = None

    def init(self, key, batch):
        return jnp.zeros(())

    def step(self, key, state, batch):
        seen = jnp.zeros(batch.num_data).at[batch.rows].add(1.0)
        matches = jnp.all(batch.data["x"] == jnp.asarray(X)[batch.rows])
        metrics = {"bound": state, "size": jnp.float32(len(batch)), "matches": matches.astype(jnp.float32)}
        return state + 1, Record(metrics, {"seen": seen})

    def finish(self, key, state, records, batch):
        return Draws({}, {"seen": records["seen"]}, {})


def test_every_epoch_sees_every_row_once_in_a_new_order():
    run = fit(Recorder(), X, key=0, num_epochs=4, batch_size=5)
    seen = run.draws.posterior["seen"][0].reshape(4, 5, 23)  # 23 rows in batches of 5: the last has 3
    assert np.array_equal(seen.sum(axis=1), np.ones((4, 23)))
    assert run.history["size"][0].tolist() == [5, 5, 5, 5, 3] * 4
    assert run.history["matches"].all()  # rows are the rows of the data
    assert not np.array_equal(seen[0], seen[1])


def test_order_is_a_function_of_key_and_epoch():
    keys, schedule = make_keys(jax.random.key(0), 1), Schedule(23, 5)
    orders = [np.asarray(epoch_order(keys, schedule, epoch)) for epoch in (0, 1, 0)]
    assert np.array_equal(orders[0], orders[2]) and not np.array_equal(orders[0], orders[1])
    assert sorted(orders[0]) == list(range(23))


@pytest.mark.parametrize("batch_size", [None, 5])
def test_all_modes_give_the_same_run(batch_size, tmp_path, monkeypatch):
    """A compiled loop, a jitted step a batch, and host batches differ by rounding only (1e-5)."""
    options = {"key": 1, "num_steps": 40, "batch_size": batch_size}
    loop = fit(SVI_, X, **options)
    np.save(tmp_path / "x.npy", X)
    host = fit(SVI_, {"x": np.load(tmp_path / "x.npy", mmap_mode="r")}, **options)
    monkeypatch.setattr(importlib.import_module("inference.fit"), "choose", lambda *_: "step")
    step = fit(SVI_, X, **options)
    assert [r.info["mode"] for r in (loop, host, step)] == ["loop", "host", "step"]
    for other in (host, step):
        np.testing.assert_allclose(other.history["bound"], loop.history["bound"], rtol=1e-5)
        np.testing.assert_allclose(other.params["loc_loc"], loop.params["loc_loc"], rtol=1e-4)


def test_convolutions_on_a_cpu_take_a_step_per_batch():
    """XLA runs them several times slower inside a compiled loop, so the rule looks for them."""
    layer = eqx.nn.Conv2d(1, 2, 3, key=jax.random.key(0))

    def conv(x, num_data=None):
        w = numpyro.param("w", layer.weight)
        out = jax.lax.conv_general_dilated(x.reshape(-1, 1, 4, 4), w, (1, 1), "SAME").mean((1, 2, 3))
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            numpyro.sample("x", dist.Normal(out, 1), obs=x[:, 0])

    x = np.zeros((6, 16), np.float32)
    algorithm = SVI(conv, empty, ELBO(), ADAM)
    example = as_data(x).whole()
    state = jax.eval_shape(algorithm.init, jax.random.key(0), example)
    assert choose(algorithm, as_data(x), lambda: (state, example)) == "step"
    assert choose(SVI_, as_data(X), lambda: (jax.eval_shape(SVI_.init, jax.random.key(0), as_data(X).whole()),
                                             as_data(X).whole())) == "loop"  # fmt: skip


class Batches:
    """A re-iterable stream of unequal batches that knows its length."""

    num_data = 23

    def __iter__(self):
        for start in range(0, 23, 5):
            yield {"x": X[start : start + 5]}


def test_streams():
    run = fit(SVI_, Batches(), key=0, num_epochs=60)
    assert run.info["mode"] == "stream" and run.history["bound"].shape == (1, 300)
    exact = X.sum(0) / (23 + 0.01)  # conjugate: posterior mean of loc under N(0, 10^2)
    # Adam at 2e-2 on minibatches of 5 wanders by about 0.1 (sd 0.2 of a posterior, one draw a step).
    assert np.abs(np.asarray(run.params["loc_loc"]) - exact).max() < 0.4
    likelihood = SVI(MaximumLikelihood(program), empty, ELBO(), ADAM)  # no prior, so no length is needed
    once = fit(likelihood, ({"x": X[i : i + 5]} for i in range(0, 20, 5)), key=0, num_steps=100)
    assert once.history["bound"].shape == (1, 4)  # a generator ends, and the run with it


def test_minibatches_are_scaled():
    """The posterior found from minibatches of 5 (the last of 3) is the full-data posterior."""
    schedule = optax.exponential_decay(5e-2, 3000, 0.01)
    run = fit(SVI(program, MeanField(program), ELBO(4), optax.adam(schedule)), X, key=0, num_epochs=600, batch_size=5)
    precision = 23 + 0.01
    # After decay to 5e-4, Adam's noise in a location is far below the posterior sd of 0.21.
    assert np.abs(np.asarray(run.params["loc_loc"]) - X.sum(0) / precision).max() < 0.02
    assert np.abs(np.asarray(run.params["loc_scale"]) * precision**0.5 - 1).max() < 0.1


def test_chains_do_not_depend_on_how_many_there_are():
    one = fit(NUTS(program, num_warmup=10), X, key=5, num_steps=10)
    three = fit(NUTS(program, num_warmup=10), X, key=5, num_steps=10, num_chains=3)
    np.testing.assert_allclose(three.history["lp"][0, :3], one.history["lp"][0, :3], rtol=1e-4)  # before chaos
    assert len(np.unique(three.draws.posterior["loc"][:, -1, 0])) == 3


def test_restarts_come_best_first():
    run = fit(EM(GaussianMixture(4)), np.concatenate([X, X + 5, X - 6]), key=0, num_chains=8)
    final = run.history["bound"][:, -1]
    assert np.all(np.diff(final) < 1e-5)  # float32 rounding of equal optima
    assert np.array_equal(run.params["means"], run.draws.params["means"][0])


def test_validation_and_early_stopping_keep_the_best():
    """A step size that overshoots after a while: the best state is returned, not the last."""
    schedule = optax.piecewise_constant_schedule(5e-2, {1500: 400.0})
    algorithm = SVI(program, MeanField(program), ELBO(4), optax.adam(schedule))
    options = {"key": 0, "num_steps": 5000, "batch_size": 5, "validation": X}
    run = fit(algorithm, X, early_stopping=4, **options)
    steps, bounds = run.history["validation_step"], run.history["validation"][0]
    assert steps[-1] < 5000 and len(steps) - 1 - bounds.argmax() == 4
    assert run.info["num_steps"] == steps[-1]
    assert np.abs(np.asarray(run.params["loc_loc"]) - X.mean(0)).max() < 1.0


def test_a_second_signal_ends_at_once():
    with pytest.raises(KeyboardInterrupt), _signals() as received:
        signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGINT]
        signal.raise_signal(signal.SIGINT)


def test_a_signal_ends_the_run_cleanly(tmp_path):
    path = tmp_path / "run.ckpt"
    before = signal.getsignal(signal.SIGINT)

    def interrupt():  # once the loop is under way
        while not path.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.warns(UserWarning, match="stopped by a signal after step .* resume with checkpoint="):
        run = fit(SVI_, X, key=0, num_steps=10_000_000, checkpoint=path)
    assert run.info["interrupted"] and path.exists()
    assert run.history["bound"].shape[1] == run.info["num_steps"] > 0
    assert signal.getsignal(signal.SIGINT) is before


def test_silent_off_a_terminal(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(SVI_, X, key=0, num_steps=3)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_a_mixture_answers_for_fewer_rows_than_it_has_components():
    """Its guide starts from k-means, which needs as many; a question is no start."""
    mixture = GaussianMixture(3, "spherical")
    x = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
    run = fit(SVI(mixture, MeanField(mixture), ELBO(), ADAM), x, key=0, num_steps=2)
    assert run.reconstruct(x[:2])["x"].shape == (2, 2)
    assert np.isfinite(run.log_likelihood(x[:2]).rows).all()


def test_a_latent_that_is_not_to_be_enumerated_is_not_drawn_in_the_sum():
    def model(x, num_data=None):
        with numpyro.plate("rows", num_data or len(x), subsample_size=len(x)):
            k = numpyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "sequential"})
            numpyro.sample("x", dist.Normal(3.0 * k, 1.0), obs=x)

    batch = Batch({"x": jnp.zeros(4)}, jnp.arange(4), 4)
    with pytest.raises(Incompatible, match="site 'k' cannot be summed out"):
        joint_density(bind(model, batch), jax.random.key(0), {})
