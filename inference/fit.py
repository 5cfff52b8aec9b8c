"""The one loop: rows, keys, chains, progress, history, validation, early stopping, checkpoints, signals.

Algorithms are values with pure ``init`` and ``step``; everything that lasts longer than a step is here.
The run is cut into segments of about a second. Between them, and only there, the loop looks at the
clock, the signals and the validation bound, so that the compiled part never waits.
"""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from inference import checkpoint as files
from inference.check import check_support, program_name
from inference.data import Rows, Stream, as_data
from inference.errors import BadData, Incompatible, NonFinite, check_whole
from inference.execution import WATCHED, Runner, Schedule, Segment, choose, make_keys
from inference.programs import anatomy, bind
from inference.progress import Bar
from inference.protocols import Batch
from inference.result import Fit, assemble, rows_of_their_own
from inference.run import Run, identity, resume, save
from inference.validation import Validation

SEGMENT_SECONDS = 1.0
CHECKPOINT_SHARE = 0.05  # of the time goes into writing checkpoints, at most


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
        ``SVI``, ``EM``, ``VariationalBayes``, ``Gibbs``, ``NUTS``, ``PyroSVI`` …, or any value that follows
        :class:`~inference.protocols.Algorithm`.
    data
        An array (named ``x``), a mapping of arrays with a common leading axis, a value of
        ``ppl_models.datasets``, a memory-mapped array, or an iterable of mappings (with an attribute
        ``num_data``, its rows in all, where the model has global latents). NaN are missing entries to
        models with an argument ``x_observed``, and an array ``sample_weight`` says how often rows count,
        to models with that argument: the Gaussian mixture, PPCA and factor analysis have both.
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
        or SIGTERM (which end the run cleanly; a second one at once). A resumed run ends bit-identical to one never
        stopped.
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
    check_whole("num_chains", num_chains)
    lengths = {"num_steps": num_steps, "num_epochs": num_epochs, "batch_size": batch_size}
    for name, value in {**lengths, "early_stopping": early_stopping}.items():
        if value is not None:
            check_whole(name, value)
    programs = getattr(algorithm, "model", None), getattr(algorithm, "guide", None)
    source = as_data(data, *programs)
    if isinstance(source, Rows):
        source.check_columns()
    root = as_key(key)
    if checkpoint is not None:
        files.check_writable(checkpoint)
    example, schedule = _schedule(source, batch_size)
    total, warmup = _length(algorithm, schedule, source, num_steps, num_epochs)
    _check_arguments(num_chains, validation, early_stopping, algorithm)
    _check_programs(algorithm, source, example)

    run_key, finish_key = jax.random.split(root)
    keys = make_keys(run_key, num_chains)
    init_key = keys.chains[0]
    mode = choose(algorithm, source, lambda: (jax.eval_shape(algorithm.init, init_key, example), example))
    runner = Runner(algorithm, source, schedule, keys, mode)
    held_out = None
    if validation is not None:
        held_out = Validation(algorithm, as_data(validation, *programs), runner, early_stopping)

    run = Run(runner.init(example))
    who = identity(algorithm, source, None if held_out is None else held_out.source, root, num_chains, schedule, mode)
    if checkpoint is not None:
        getattr(algorithm, "pack", lambda state: state)(run.state)  # an algorithm that cannot resume says so now
        run = resume(Path(checkpoint), run, who, algorithm)
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
                raise _non_finite(algorithm, runner, run, segment, source, example, capacity, root, finish_key, warmup)
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
                save(Path(checkpoint), run, who, algorithm)
                saved = time.perf_counter()
                save_cost = saved - before
        if checkpoint is not None:
            save(Path(checkpoint), run, who, algorithm)
    if interrupted:
        where = f"; resume with checkpoint={str(checkpoint)!r}" if checkpoint is not None else ""
        warnings.warn(f"stopped by a signal after step {run.step} of {total}{where}.", stacklevel=2)
    elif num_steps is num_epochs is None and not run.done:
        warnings.warn(f"stopped at the algorithm's max_steps, {total}, before it converged.", stacklevel=2)
    state = run.state if run.best is None else run.best
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
        best_by_validation=run.best is not None,
    )


def as_key(key: Any) -> Array:
    """A seed or a random key, as one typed JAX key."""
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool) and 0 <= key < 2**63:
        return jax.random.key(int(key))
    if isinstance(key, jax.Array) and jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0:
        return key
    if isinstance(key, jax.Array) and key.dtype == np.uint32 and key.shape == (2,):
        return jax.random.wrap_key_data(key)
    raise BadData(f"key is {key!r}; expected a seed, a whole number of at least 0, or one jax.random.key.")


def _schedule(source: Rows | Stream, batch_size: int | None) -> tuple[Batch, Schedule]:
    if isinstance(source, Stream):
        if batch_size is not None:
            raise BadData("batch_size is the stream's own: leave it out, and yield batches of the size you want.")
        size = len(source.first)
        return source.first, Schedule(source.num_data or size, size)
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
    return steps + warmup, warmup


def _check_arguments(num_chains: int, validation: Any, early_stopping: int | None, algorithm: Any) -> None:
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
    fewest = getattr(algorithm, "min_chains", 1)
    if num_chains < fewest:
        raise Incompatible(
            f"{program_name(algorithm)} learns from its chains together, and num_chains is {num_chains}: give at least "
            f"{fewest}, better 64."
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
        _check_stream(algorithm, source, example)
        return
    if algorithm.engine == "pyro":
        from inference.pyro_check import check_support as check_rows

        for batch in source.batches(8192):
            check_rows(algorithm.model, batch, algorithm.device)
    else:
        for batch in source.batches(8192):
            check_support(algorithm.model, batch)


def _check_stream(algorithm: Any, source: Stream, example: Batch) -> None:
    """Refuse what a stream cannot serve: parameters of single rows, and priors that must be scaled."""
    per_row = rows_of_their_own(algorithm, example)
    if per_row:
        raise Incompatible(
            f"the guide has parameters of its own for every row ({per_row}), and a stream does not say which rows its "
            "batches hold. Use an amortized guide, or pass arrays."
        )
    if source.num_data is None and algorithm.engine == "numpyro" and getattr(algorithm, "uses_prior", True):
        parts = anatomy(bind(algorithm.model, example))
        shared = [n for n in parts.latent if n not in parts.local]
        if shared:
            raise BadData(
                f"the stream does not say how many rows it has in all, and the model has global latents {shared} whose "
                "prior must be counted once. Give the iterable an attribute num_data."
            )


def _next_length(length: int, elapsed: float) -> int:
    if length == 1:
        return 8
    return max(1, min(int(length * SEGMENT_SECONDS / max(elapsed, 1e-6)), 8 * length))


def _non_finite(
    algorithm: Any,
    runner: Runner,
    run: Run,
    segment: Segment,
    source: Any,
    example: Batch,
    capacity: int,
    root: Array,
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
    broken = [n for n, v in segment.metrics.items() if n in WATCHED and not np.isfinite(v).all()]
    what = broken[0].replace("_", " ")
    error = NonFinite(
        f"{program_name(algorithm)}: the {what} is not finite at step {bad_step}{site}. The last good state, of "
        f"step {run.step}, is kept in this error's `.fit`. Lower the step size, clip gradients, or rescale the data."
    )
    error.step = bad_step
    info = run.info(root, runner.mode, True)
    error.fit = assemble(
        algorithm, run.state, run.metrics(), run.kept(), source, example, finish_key, runner.chains, info
    )
    return error


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM while the loop runs, to end it after a whole segment; a second ends it at once."""
    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    watched = (signal.SIGINT, signal.SIGTERM)
    before = {s: signal.signal(s, receive) for s in watched}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
