"""The one loop: rows, keys, chains, progress, history, validation, early stopping, checkpoints, signals.

Algorithms are values with pure ``init`` and ``step``; everything that lasts longer than a step is here.
The run is cut into segments of about a second. Between them, and only there, the loop looks at the
clock, the signals and the validation bound, so that the compiled part never waits.
"""

from __future__ import annotations

import importlib.metadata
import json
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from inference import checkpoint as files
from inference.check import check_support, program_name
from inference.data import Rows, Stream, as_data
from inference.errors import BadData, CorruptFile, Incompatible, NonFinite
from inference.execution import Runner, Schedule, Segment, choose, make_keys
from inference.progress import Bar
from inference.protocols import Batch
from inference.result import Fit, assemble, rows_of_their_own

SEGMENT_SECONDS = 1.0
CHECKPOINT_SHARE = 0.05  # of the time goes into writing checkpoints, at most
VALIDATION_STEPS = 100  # at least this many steps between validations, and whole epochs


def fit(
    algorithm: Any,
    data: Any,
    *,
    key: int | Array,
    num_steps: int | None = None,
    num_epochs: int | None = None,
    num_chains: int = 1,
    batch_size: int | None = None,
    validation: Any = None,
    early_stopping: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Fit:
    """Run an algorithm on data.

    Parameters
    ----------
    algorithm
        ``SVI``, ``EM``, ``NUTS``, ``PyroSVI``, ``PyroNUTS``, or any value that follows
        :class:`~inference.protocols.Algorithm`.
    data
        An array (named ``x``), a mapping of arrays with a common leading axis, a value of
        ``ppl_models.datasets``, a memory-mapped array, or an iterable of mappings.
    key
        Seed, or a JAX random key. The run is a function of it.
    num_steps, num_epochs
        How long; one of them. MCMC counts kept draws, and EM may leave both out (it stops when the
        bound does).
    num_chains
        Independent runs in one compile, vectorised: MCMC chains, restarts of EM, seeds of SVI. They
        share the order of rows. Restarts come back best first.
    batch_size
        Rows a step, all of them by default. The last batch of an epoch may be smaller; it is kept
        and scaled by its own size.
    validation
        Data on which the bound is evaluated after every epoch (and at least 100 steps).
    early_stopping
        Patience: stop after this many validations without a better bound, and return the best.
    checkpoint
        File to resume from, if it exists, and to write to after segments, at the end, and on SIGINT
        or SIGTERM (which end the run cleanly). A resumed run ends bit-identical to one never stopped.
    progress
        Show a progress bar, if on a terminal.

    Returns
    -------
    Fit
        Parameters, draws, and the history (bounds in nats per row, higher is better).

    Raises
    ------
    Incompatible, BadData
        Before compiling, when model, guide, objective, algorithm and data do not go together.
    NonFinite
        When the bound stops being finite; the error carries the last good state as ``.fit``.
    """
    source = as_data(data)
    root = jax.random.key(key) if isinstance(key, (int, np.integer)) else key
    example, schedule = _schedule(source, batch_size)
    total, warmup = _length(algorithm, schedule, source, num_steps, num_epochs)
    _check_arguments(num_chains, validation, early_stopping, algorithm)
    _check_programs(algorithm, source, example)

    run_key, finish_key = jax.random.split(root)
    keys = make_keys(run_key, num_chains)
    init_key = keys.chains[0]
    mode = choose(algorithm, source, lambda: (jax.eval_shape(algorithm.init, init_key, example), example))
    runner = Runner(algorithm, source, schedule, keys, mode)
    held_out = None if validation is None else _Validation(algorithm, as_data(validation), runner, early_stopping)

    run = _Run(runner.init(example))
    identity = _identity(algorithm, source, root, num_chains, schedule, mode)
    if checkpoint is not None:
        getattr(algorithm, "pack", lambda state: state)(run.state)  # an algorithm that cannot resume says so now
        run = _resume(Path(checkpoint), run, identity, algorithm, held_out)
    capacity = runner.capacity(run.state, example)

    started = time.perf_counter()
    earlier = run.seconds
    with Bar(program_name(algorithm), total, progress) as bar, _signals() as interrupted:
        saved, save_cost = time.perf_counter(), 0.0
        length = 1  # the first segment compiles; its time says nothing
        while run.step < total and not run.done and not interrupted:
            begin = time.perf_counter()
            count = min(length, total - run.step, capacity)
            if held_out is not None:
                count = min(count, held_out.until_next(run.step))
            segment = runner.run(run.state, run.step, count, capacity)
            if not segment.finite:
                raise _non_finite(algorithm, runner, run, segment, source, example, capacity, finish_key, warmup)
            run.advance(segment, warmup)
            elapsed = time.perf_counter() - begin
            rate = segment.count / max(elapsed, 1e-9)
            length = _next_length(length, elapsed)
            if held_out is not None and held_out.due(run.step):
                held_out.evaluate(run)
            run.seconds = earlier + time.perf_counter() - started
            bar.update(run.step, run.latest(), rate)
            if checkpoint is not None and save_cost <= CHECKPOINT_SHARE * (time.perf_counter() - saved):
                before = time.perf_counter()
                _save(Path(checkpoint), run, identity, algorithm)
                saved = time.perf_counter()
                save_cost = saved - before
        if checkpoint is not None:
            _save(Path(checkpoint), run, identity, algorithm)
    if interrupted:
        where = f"; resume with checkpoint={str(checkpoint)!r}" if checkpoint is not None else ""
        warnings.warn(f"stopped by a signal after step {run.step} of {total}{where}.", stacklevel=2)
    elif num_steps is num_epochs is None and not run.done:
        warnings.warn(f"stopped at the algorithm's max_steps, {total}, before it converged.", stacklevel=2)
    state = held_out.best_state if held_out is not None and held_out.best_state is not None else run.state
    return assemble(
        algorithm,
        state,
        run.metrics(),
        run.kept(),
        source,
        example,
        finish_key,
        num_chains,
        run.info(root, mode, bool(interrupted)),
    )


@dataclass
class _Run:
    """Everything a run accumulates; what a checkpoint holds."""

    state: Any
    step: int = 0
    done: bool = False
    seconds: float = 0.0
    records: list[dict[str, np.ndarray]] = field(default_factory=list)
    draws: list[dict[str, np.ndarray]] = field(default_factory=list)
    validation: list[tuple[int, np.ndarray]] = field(default_factory=list)
    best: Any = None
    best_bound: float = -np.inf
    patience: int = 0
    before: tuple[Any, int] | None = None  # state and step before the last segment

    def rewind(self) -> int:
        """Undo the last segment; returns how many steps it had."""
        assert self.before is not None
        count = self.step - self.before[1]
        (self.state, self.step), self.before = self.before, None
        self.records.pop()
        return count

    def advance(self, segment: Segment, warmup: int) -> None:
        """Take a segment in; draws of the warmup are dropped."""
        skip = max(0, warmup - self.step)
        self.before = (self.state, self.step)
        self.state, self.step, self.done = segment.state, self.step + segment.count, segment.done
        self.records.append(segment.metrics)
        if segment.draws and skip < segment.count:
            self.draws.append({n: v[skip:] for n, v in segment.draws.items()})

    def metrics(self) -> dict[str, np.ndarray]:
        """History as ``(chain, step)`` arrays."""
        history = {n: v.T for n, v in _concatenate(self.records).items()}
        if self.validation:
            history["validation_step"] = np.array([step for step, _ in self.validation])
            history["validation"] = np.stack([bound for _, bound in self.validation], axis=1)
        return history

    def kept(self) -> dict[str, np.ndarray]:
        """Draws as ``(chain, draw, ...)`` arrays."""
        return {n: np.swapaxes(v, 0, 1) for n, v in _concatenate(self.draws).items()}

    def latest(self) -> str:
        """The newest metric, for the progress bar."""
        name, values = next(iter(self.records[-1].items()), ("", np.zeros((1, 1))))
        return f"{name} {values[-1].max():,.2f}" if len(values) else ""

    def info(self, root: Array, mode: str, interrupted: bool) -> dict[str, Any]:
        """What a reader of the result wants to know of the run."""
        return {
            "seed": np.asarray(jax.random.key_data(root)).tolist(),
            "num_steps": self.step,
            "seconds": self.seconds,
            "mode": mode,
            "interrupted": interrupted,
        }


def _concatenate(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {n: np.concatenate([p[n] for p in parts]) for n in parts[0]} if parts else {}


def _schedule(source: Rows | Stream, batch_size: int | None) -> tuple[Batch, Schedule]:
    if isinstance(source, Stream):
        if batch_size is not None:
            raise BadData("batch_size is the stream's own: leave it out, and yield batches of the size you want.")
        size = len(source.first)
        return source.first, Schedule(source.num_data or size, size)
    if batch_size is not None and not 1 <= batch_size:
        raise BadData(f"batch_size is {batch_size}; expected at least 1.")
    size = min(batch_size or source.num_data, source.num_data)
    return source.batch(slice(0, size)), Schedule(source.num_data, size)


def _length(
    algorithm: Any, schedule: Schedule, source: Rows | Stream, num_steps: int | None, num_epochs: int | None
) -> tuple[int, int]:
    """Steps in all, and how many of them are warmup."""
    warmup = getattr(algorithm, "num_warmup", 0)
    default = getattr(algorithm, "max_steps", None)
    if (num_steps is None) + (num_epochs is None) != 1 and not (default and num_steps is num_epochs is None):
        raise BadData(f"give one of num_steps and num_epochs; got num_steps={num_steps}, num_epochs={num_epochs}.")
    if num_epochs is not None:
        if isinstance(source, Stream) and source.num_data is None:
            raise BadData("an iterable of unknown length has no epochs: give num_steps.")
        num_steps = num_epochs * schedule.steps_per_epoch
    steps: int = default if num_steps is None else num_steps  # pyright: ignore[reportAssignmentType]
    if steps < 1:
        raise BadData(f"num_steps is {steps}; expected at least 1.")
    return steps + warmup, warmup


def _check_arguments(num_chains: int, validation: Any, early_stopping: int | None, algorithm: Any) -> None:
    if num_chains < 1:
        raise BadData(f"num_chains is {num_chains}; expected at least 1.")
    if early_stopping is not None and validation is None:
        raise BadData("early_stopping watches the validation bound: give validation data.")
    if validation is not None and not hasattr(algorithm, "evaluate"):
        raise Incompatible(f"{program_name(algorithm)} has no bound to evaluate on validation data: leave it out.")
    missing = [n for n in ("init", "step", "finish", "engine") if not hasattr(algorithm, n)]
    if missing:
        raise Incompatible(
            f"{algorithm!r} is not an algorithm: it has no {missing}. Wrap the model, for example "
            "SVI(model, guide, ELBO(), optax.adam(1e-3)), NUTS(model) or EM(model)."
        )
    try:
        hash(algorithm)
    except TypeError as error:
        raise Incompatible(
            f"{program_name(algorithm)} is not a value: {error}. Programs are functions or frozen dataclasses "
            "whose fields are hashable (tuples, not lists or arrays)."
        ) from None


def _check_programs(algorithm: Any, source: Rows | Stream, example: Batch) -> None:
    if hasattr(algorithm, "check"):
        algorithm.check(example)
    if not isinstance(source, Rows):
        return
    if algorithm.engine == "pyro":
        from inference.pyro_check import check_support as check_rows

        for batch in source.batches(8192):
            check_rows(algorithm.model, batch, algorithm.device)
    else:
        for batch in source.batches(8192):
            check_support(algorithm.model, batch)


def _next_length(length: int, elapsed: float) -> int:
    if length == 1:
        return 8
    return max(1, min(int(length * SEGMENT_SECONDS / max(elapsed, 1e-6)), 8 * length))


@dataclass
class _Validation:
    """Evaluates the bound on held-out rows at steps fixed in advance, so that runs are repeatable."""

    algorithm: Any
    source: Any
    runner: Runner
    patience: int | None
    best_state: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, Rows):
            raise BadData("validation data must be arrays, not a stream.")
        per_epoch = self.runner.schedule.steps_per_epoch
        self.every = per_epoch * max(1, -(-VALIDATION_STEPS // per_epoch))
        if rows_of_their_own(self.algorithm, self.source.batch(slice(0, self.runner.schedule.batch_size))):
            raise Incompatible(
                "the guide has parameters of its own for every training row and none for validation rows. "
                "Use an amortized guide, or leave validation out."
            )

    def until_next(self, step: int) -> int:
        return self.every - step % self.every

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def evaluate(self, run: _Run) -> None:
        """Record the bound; remember the best state; stop when patience is out."""
        num_data = self.runner.schedule.num_data
        size = min(1024, num_data)
        total, bound = 0, np.zeros(self.runner.chains)
        for i, batch in enumerate(self.source.batches(size)):
            batch = Batch(batch.data, batch.rows, num_data)
            value = _evaluate(self.algorithm, self.runner.chains, self.runner.mode)(jax.random.key(i), run.state, batch)
            bound += np.asarray(value).reshape(-1) * len(batch)
            total += len(batch)
        bound /= total
        run.validation.append((run.step, bound))
        if self.patience is None:
            return
        if bound.max() > run.best_bound:
            run.best_bound, run.best, run.patience = float(bound.max()), run.state, 0
        else:
            run.patience += 1
            run.done = run.done or run.patience >= self.patience
        self.best_state = run.best


@lru_cache(maxsize=32)
def _evaluate(algorithm: Any, chains: int, mode: str) -> Any:
    if mode == "eager":
        return lambda key, state, batch: np.array([algorithm.evaluate(0, s, batch) for s in state])
    return jax.jit(algorithm.evaluate if chains == 1 else jax.vmap(algorithm.evaluate, in_axes=(None, 0, None)))


def _non_finite(
    algorithm: Any,
    runner: Runner,
    run: _Run,
    segment: Segment,
    source: Any,
    example: Batch,
    capacity: int,
    finish_key: Array,
    warmup: int,
) -> NonFinite:
    """Replay up to the last state whose bound was finite, and say which site broke.

    Entry i of a segment is the bound of the state before its step i, so the state before the last
    entry's is the last good one; it may lie in the segment before.
    """
    bad_step, good = run.step + segment.count - 1, segment.count - 2
    pure = runner.mode in ("loop", "step", "host") or (runner.mode == "eager" and hasattr(algorithm, "unpack"))
    if pure:
        if good < 0 and run.before is not None:
            good = run.rewind() - 1
        if good > 0:
            run.advance(runner.run(run.state, run.step, good, capacity), warmup)
    site = ""
    if hasattr(algorithm, "explain"):
        site = algorithm.explain(jax.random.key(0), run.state, example)
    error = NonFinite(
        f"{program_name(algorithm)}: the bound is not finite at step {bad_step}{site}. The last good state, of step "
        f"{run.step}, is kept in this error's `.fit`. Lower the step size, clip gradients, or rescale the data."
    )
    error.step = bad_step
    info = run.info(finish_key, runner.mode, True)
    error.fit = assemble(
        algorithm, run.state, run.metrics(), run.kept(), source, example, finish_key, runner.chains, info
    )
    return error


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM while the loop runs, so that it ends after a whole segment."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    watched = (signal.SIGINT, signal.SIGTERM)
    before = {s: signal.signal(s, lambda number, _: received.append(number)) for s in watched}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _identity(algorithm: Any, source: Any, root: Array, num_chains: int, schedule: Schedule, mode: str) -> dict:
    """What must be the same for a checkpoint to be resumed."""
    versions = {"jax": jax.__version__}
    if algorithm.engine == "pyro":
        versions["torch"] = importlib.metadata.version("torch")
    return versions | {
        "algorithm": describe(algorithm),
        "data": source.fingerprint() if isinstance(source, Rows) else "stream",
        "key": np.asarray(jax.random.key_data(root)).tolist(),
        "num_chains": num_chains,
        "num_data": schedule.num_data,
        "batch_size": schedule.batch_size,
        "mode": mode,
    }


def describe(value: Any) -> str:
    """Text that is the same in every process for equal programs (no memory addresses)."""
    if hasattr(value, "__dataclass_fields__"):
        fields = ", ".join(f"{n}={describe(getattr(value, n))}" for n in value.__dataclass_fields__)
        return f"{type(value).__qualname__}({fields})"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(describe, value)) + ")"
    if hasattr(value, "__self__"):
        return f"{describe(value.__self__)}.{value.__name__}"
    if callable(value) or hasattr(value, "__name__"):
        return getattr(value, "__qualname__", getattr(value, "__name__", type(value).__qualname__))
    return repr(value)


def _save(path: Path, run: _Run, identity: dict, algorithm: Any) -> None:
    pack = getattr(algorithm, "pack", lambda state: state)
    arrays = files.flatten(pack(run.state), "state")
    if run.best is not None:
        arrays |= files.flatten(pack(run.best), "best")
    arrays |= {f"metrics/{n}": v for n, v in _concatenate(run.records).items()}
    arrays |= {f"draws/{n}": v for n, v in _concatenate(run.draws).items()}
    if run.validation:
        arrays["validation/step"] = np.array([s for s, _ in run.validation])
        arrays["validation/bound"] = np.stack([b for _, b in run.validation])
    meta = {
        "identity": identity,
        "step": run.step,
        "done": run.done,
        "seconds": run.seconds,
        "best_bound": run.best_bound,
        "patience": run.patience,
    }
    files.write(path, {n: np.asarray(v, order="C") for n, v in arrays.items()}, meta)


def _resume(path: Path, fresh: _Run, identity: dict, algorithm: Any, held_out: _Validation | None) -> _Run:
    found = files.read_latest(path)
    if found is None:
        return fresh
    arrays, meta = found
    different = {n: (meta["identity"].get(n), v) for n, v in identity.items() if meta["identity"].get(n) != v}
    if different:
        what = "; ".join(f"{n} was {json.dumps(a)}, is {json.dumps(b)}" for n, (a, b) in different.items())
        raise CorruptFile(
            f"checkpoint {str(path)!r} belongs to another run: {what}. Give another file, or delete it to start over."
        )
    unpack = getattr(algorithm, "unpack", None)

    def restore(prefix: str) -> Any:
        if unpack is None:
            return files.unflatten(fresh.state, arrays, prefix)
        return unpack(fresh.state, {n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)})

    def group(prefix: str) -> list[dict[str, np.ndarray]]:
        part = {n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)}
        return [part] if part else []

    best = restore("best") if any(n.startswith("best") for n in arrays) else None
    steps, bounds = arrays.get("validation/step", ()), arrays.get("validation/bound", ())
    run = _Run(restore("state"), meta["step"], meta["done"], meta["seconds"], group("metrics/"), group("draws/"))
    run.validation = [(int(s), b) for s, b in zip(steps, bounds, strict=True)]
    run.best, run.best_bound, run.patience = best, meta["best_bound"], meta["patience"]
    if held_out is not None:
        held_out.best_state = best
    return run
