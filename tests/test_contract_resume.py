"""Contracts 5 and 6: a killed run resumes to the same bits; an equal algorithm compiles nothing new."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from guides import AmortizedNormal, MeanField
from inference import (
    EM,
    NUTS,
    SVI,
    Adversarial,
    Alternating,
    ChEES,
    ContrastiveDivergence,
    CorruptFile,
    Fit,
    Gibbs,
    Tempering,
    VariationalBayes,
    fit,
)
from inference.checkpoint import previous, read
from inference.games import WassersteinGradientPenalty
from inference.objectives import ELBO, NVIL, VIMCO
from ppl_models import RBM, GaussianMixture, GaussianRBM, Generator
from ppl_models.networks import MLP, Critic

loop = importlib.import_module("inference.fit")

X = np.random.default_rng(0).normal(size=(57, 2)).astype(np.float32) + np.repeat([[0, 0], [5, 5], [9, 0]], 19, 0)
X = X.astype(np.float32)
BITS = (X > X.mean(0)).astype(np.float32)
ADAM = optax.adam(1e-2)


def noisy(key, data):
    return {"x": data["x"] + 0.1 * jax.random.normal(key, data["x"].shape)}


class Noisy:
    """A data set value with a random transform."""

    arrays = {"x": X}
    transform = staticmethod(noisy)
    name = "noisy"


def program(x, num_data=None):
    loc = numpyro.sample("loc", dist.Normal(0, 10).expand([2]).to_event(1))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("x", dist.Normal(loc, 1).to_event(1), obs=x)


def bits(x, num_data=None):
    w = numpyro.param("w", np.array([4.0, 2.0], np.float32))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(z[..., None] * w, 2).to_event(1), obs=x)


def bits_guide(x, num_data=None):
    v = numpyro.param("v", np.array([0.2, -0.1], np.float32))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("z", dist.Bernoulli(logits=x @ v + 0.1))


ALGORITHMS = {
    "svi": (SVI(program, MeanField(program), ELBO(), ADAM), Noisy, {"num_steps": 60, "batch_size": 10}),
    "svi-chains": (SVI(program, MeanField(program), ELBO(), ADAM), X, {"num_steps": 40, "num_chains": 2}),
    "svi-early": (
        SVI(program, MeanField(program), ELBO(), ADAM),
        X,
        {"num_epochs": 40, "batch_size": 10, "validation": X, "early_stopping": 3},
    ),
    "em": (EM(GaussianMixture(6), tolerance=0), X, {"num_steps": 40, "num_chains": 2}),
    "nuts": (NUTS(program, num_warmup=20), X, {"num_steps": 20, "num_chains": 2}),
    "chees": (ChEES(program, num_warmup=20), X, {"num_steps": 20, "num_chains": 4}),
    "gibbs": (Gibbs(GaussianMixture(2), num_warmup=10), X, {"num_steps": 20, "num_chains": 2}),
    "vb": (VariationalBayes(GaussianMixture(3), tolerance=0), X, {"num_steps": 30}),
    "nvil": (SVI(bits, bits_guide, NVIL(3), ADAM), X, {"num_steps": 40, "batch_size": 10}),
    "cd": (
        ContrastiveDivergence(RBM(2), k=2, optimizer=optax.sgd(0.1, momentum=0.5)),
        BITS,
        {"num_steps": 40, "batch_size": 10, "num_chains": 2},
    ),
    "pcd-tempered": (
        ContrastiveDivergence(GaussianRBM(2), persistent=True, sampler=Tempering(3)),
        Noisy,
        {"num_epochs": 8, "batch_size": 10, "validation": X},
    ),
    "adversarial": (
        Adversarial(
            Generator(2, MLP((3,))),
            Critic(MLP((3,))),
            WassersteinGradientPenalty(),
            ADAM,
            ADAM,
            critic_steps=2,
            guide=AmortizedNormal(2, MLP((3,))),
        ),
        X,
        {"num_steps": 40, "batch_size": 10},
    ),
    "turns": (Alternating(SVI(bits, bits_guide, VIMCO(2), ADAM), 3, 2), X, {"num_steps": 40, "batch_size": 10}),
}


class Stop(Exception):
    """Stands for the process dying."""


def leaves(run: Fit) -> list[np.ndarray]:
    return [np.asarray(v) for v in jax.tree.leaves((run.params, run.draws, run.history))]


# Slow: those whose state differs from another's in its arrays alone.
ALIKE = {"svi-chains", "gibbs", "vb", "pcd-tempered"}
named = [pytest.param(name, marks=pytest.mark.slow if name in ALIKE else []) for name in ALGORITHMS]


@pytest.mark.parametrize("name", named)
def test_stopped_anywhere_and_resumed_is_bit_identical(name, tmp_path, monkeypatch):
    algorithm, data, options = ALGORITHMS[name]
    monkeypatch.setattr(loop, "SEGMENT_SECONDS", 1e-4)  # many short segments
    whole = fit(algorithm, data, key=3, **options)

    path = tmp_path / "run.ckpt"
    save, count = loop.save, [0]

    def dying(*args):
        save(*args)
        count[0] += 1
        if count[0] in (2, 5):
            raise Stop

    monkeypatch.setattr(loop, "save", dying)
    monkeypatch.setattr(loop, "CHECKPOINT_SHARE", np.inf)  # after every segment
    stops = 0
    for _ in range(5):
        try:
            resumed = fit(algorithm, data, key=3, checkpoint=path, **options)
            break
        except Stop:
            stops += 1
    assert stops == 2
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(leaves(whole), leaves(resumed), strict=True))


SCRIPT = """
import importlib, sys, numpy as np
loop = importlib.import_module("inference.fit")
loop.SEGMENT_SECONDS = 0.02
sys.path.insert(0, {tests!r})
from test_contract_resume import SVI, MeanField, program, ELBO, ADAM, Noisy, fit
algorithm = SVI(program, MeanField(program), ELBO(), ADAM)
run = fit(algorithm, Noisy, key=3, num_steps={steps}, batch_size=10, checkpoint={path!r})
np.savez({out!r}, bound=run.history["bound"], **{{k: np.asarray(v) for k, v in run.params.items()}})
"""


def start(path: Path, out: Path, steps: int) -> subprocess.Popen:
    """The same run in a process of its own; what it writes to stderr goes beside its checkpoint."""
    code = SCRIPT.format(tests=str(Path(__file__).parent), path=str(path), out=str(out), steps=steps)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with open(path.with_suffix(".log"), "ab") as log:
        return subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=log)


def wait_for(path: Path, process: subprocess.Popen, after: int) -> int:
    """Until the checkpoint is past ``after``; returns its step."""
    deadline = time.monotonic() + 120
    while True:
        step = read(path)[1]["step"] if path.exists() else -1
        if step > after:
            return step
        assert process.poll() is None and time.monotonic() < deadline, path.with_suffix(".log").read_text()
        time.sleep(0.02)


@pytest.mark.slow
def test_kill_minus_nine_and_sigterm(tmp_path):
    """A process killed with SIGKILL, then one ended by SIGTERM, then one left alone, equal one never stopped."""
    steps = 400_000
    once, path, out = tmp_path / "once.npz", tmp_path / "run.ckpt", tmp_path / "out.npz"
    never_stopped = start(tmp_path / "once.ckpt", once, steps)
    assert never_stopped.wait() == 0, (tmp_path / "once.log").read_text()
    killed = start(path, out, steps)
    first = wait_for(path, killed, 1000)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    ended = start(path, out, steps)
    wait_for(path, ended, first + 1000)
    ended.send_signal(signal.SIGTERM)
    assert ended.wait() == 0
    assert "stopped by a signal" in path.with_suffix(".log").read_text()
    assert first < read(path)[1]["step"] < steps
    assert start(path, out, steps).wait() == 0
    a, b = np.load(once), np.load(out)
    assert all(np.array_equal(a[n], b[n]) for n in a.files)


def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, monkeypatch):
    algorithm, data, options = ALGORITHMS["svi"]
    path = tmp_path / "run.ckpt"
    whole = fit(algorithm, data, key=3, checkpoint=path, **options)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:-5] + b"\x00\x01\x02\x03\x04", b"", b"not a checkpoint"):
        path.write_bytes(damaged)
        with pytest.raises(CorruptFile):
            read(path)
        assert previous(path).exists()
        with pytest.warns(UserWarning, match="Reading the one before it"):
            again = fit(algorithm, data, key=3, checkpoint=path, **options)
        assert all(np.array_equal(a, b) for a, b in zip(leaves(whole), leaves(again), strict=True))


def test_no_good_checkpoint_left_is_said(tmp_path):
    algorithm, data, options = ALGORITHMS["svi"]
    path = tmp_path / "run.ckpt"
    path.write_bytes(b"garbage")
    with pytest.raises(CorruptFile, match="No good checkpoint is left; delete it to start over"):
        fit(algorithm, data, key=3, checkpoint=path, **options)


def test_a_deleted_checkpoint_starts_over(tmp_path):
    """Even of another run, whose file before the last is still there."""
    algorithm, data, options = ALGORITHMS["svi"]
    path = tmp_path / "run.ckpt"
    for key in (3, 4):
        run = fit(algorithm, data, key=key, checkpoint=path, **options)
        assert previous(path).exists() and run.info["seed"][1] == key
        path.unlink()


def test_checkpoint_of_another_run_is_refused(tmp_path):
    algorithm, data, options = ALGORITHMS["svi"]
    path = tmp_path / "run.ckpt"
    fit(algorithm, data, key=3, checkpoint=path, **options)
    with pytest.raises(CorruptFile, match="belongs to another run: key was"):
        fit(algorithm, data, key=4, checkpoint=path, **options)
    with pytest.raises(CorruptFile, match="data was"):
        fit(algorithm, X + 1, key=3, checkpoint=path, **options)


def test_save_and_load_weights(tmp_path):
    algorithm, data, options = ALGORITHMS["svi"]
    run = fit(algorithm, data, key=3, **options)
    path = tmp_path / "weights"
    run.save(path)
    back = Fit.load(path, algorithm)
    assert all(np.array_equal(a, b) for a, b in zip(leaves(run), leaves(back), strict=True))
    assert back.log_likelihood(X).mean == run.log_likelihood(X).mean
    other = SVI(program, MeanField(program, init_scale=0.2), ELBO(), ADAM)
    with pytest.raises(CorruptFile, match="load it with an equal one"):
        Fit.load(path, other)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match="SHA-256"):
        Fit.load(path, algorithm)
    run.save(path)
    with pytest.raises(FileNotFoundError, match=r"expected one written by Fit\.save"):
        Fit.load(tmp_path / "nowhere", algorithm)


@pytest.fixture
def compiled():
    """Counts programs lowered for XLA: what a compile starts with, also when a disk cache then spares the rest."""
    names: list[str] = []

    def listen(event: str, duration: float, **_: object) -> None:
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            names.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("name", ["svi", "svi-chains", "em", "nuts"])
def test_an_equal_algorithm_compiles_nothing(name, compiled):
    _, data, options = ALGORITHMS[name]

    def equal():
        return {
            "svi": lambda: SVI(program, MeanField(program), ELBO(), ADAM),
            "svi-chains": lambda: SVI(program, MeanField(program), ELBO(), ADAM),
            "em": lambda: EM(GaussianMixture(6), tolerance=0),
            "nuts": lambda: NUTS(program, num_warmup=20),
        }[name]()

    first = fit(equal(), data, key=3, **options)
    compiled.clear()
    jax.jit(lambda v: v + 1)(1.0)
    assert compiled, "the counter sees compilations"
    compiled.clear()
    second = fit(equal(), data, key=3, **options)
    assert not compiled
    assert all(np.array_equal(a, b) for a, b in zip(leaves(first), leaves(second), strict=True))
