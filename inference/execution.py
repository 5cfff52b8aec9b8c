"""How steps are run: many in one compiled loop, one compiled call per batch, or eagerly (torch).

All three do the same arithmetic in the same order for the same keys; which is used is decided by
rule (:func:`choose`) and is part of a checkpoint, since compiled code may round differently.
Row order is a function of (key, epoch) and chain c's randomness one of (key, c, step), so that
cutting a run into segments, or resuming it, changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from inference.compiled import jit
from inference.data import Rows, Stream
from inference.protocols import Algorithm, Batch, Record, State

# A segment's records are kept on the device until it ends; no more than this many numbers.
RECORD_ELEMENTS = 2**22
WATCHED = ("bound", "lp", "free_energy", "critic_loss")  # metrics that must stay finite
# A convolution of a jaxpr that is not of (batch, height, width, channels) with a kernel (height, width, in, out): those
# XLA has a fast kernel for on a CPU.
SLOW_CONVOLUTION = (
    r"conv_general_dilated\[(?!\s*batch_group_count=1\s+dimension_numbers=ConvDimensionNumbers"
    r"\(lhs_spec=\(0, 3, 1, 2\), rhs_spec=\(3, 2, 0, 1\))"
)
CHAINS = "chains"  # name of the mapped axis, over which algorithms that adapt across chains gather


@dataclass(frozen=True)
class Schedule:
    """Cutting N rows into batches of B; the last batch of an epoch may be smaller."""

    num_data: int
    batch_size: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_data // self.batch_size)

    @property
    def remainder(self) -> int:
        return self.num_data % self.batch_size

    @property
    def whole(self) -> bool:
        return self.batch_size == self.num_data


class Segment(NamedTuple):
    """What a run of consecutive steps leaves: arrays ``(steps, chains, ...)``, on the host."""

    state: State
    metrics: dict[str, np.ndarray]
    draws: dict[str, np.ndarray]
    count: int
    done: bool
    finite: bool


class Keys(NamedTuple):
    """The randomness of a run: one key per chain, one for the order of rows, one for transforms."""

    chains: Array
    order: Array
    transform: Array


def make_keys(root: Array, num_chains: int) -> Keys:
    """Keys that do not depend on how many chains there are."""
    chains, order, transform = jax.random.split(root, 3)
    return Keys(jax.vmap(lambda c: jax.random.fold_in(chains, c))(jnp.arange(num_chains)), order, transform)


def epoch_order(keys: Keys, schedule: Schedule, epoch: Any) -> Array:
    """The order of rows in an epoch."""
    return jax.random.permutation(jax.random.fold_in(keys.order, epoch), schedule.num_data).astype(jnp.int32)


def _fold(keys: Array, data: Any) -> Array:
    """Fold a number into one key or into each of several."""
    fold = jax.random.fold_in
    return jax.vmap(fold, in_axes=(0, None))(keys, data) if keys.ndim else fold(keys, data)


def vectorised(function: Callable, chains: int, in_axes: tuple) -> Callable:
    """Map over chains; a single chain is left alone, since a vmap over one costs time."""
    return function if chains == 1 else jax.vmap(function, in_axes=in_axes, axis_name=CHAINS)


def _squeeze(keys: Keys) -> Keys:
    return keys._replace(chains=keys.chains[0]) if len(keys.chains) == 1 else keys


@lru_cache(maxsize=32)
def _init(algorithm: Algorithm, chains: int) -> Any:
    return jit(vectorised(algorithm.init, chains, (0, None)))


@lru_cache(maxsize=32)
def _step(algorithm: Algorithm, transform: Any, chains: int, num_data: int) -> Any:
    """One step on given arrays and rows."""
    advance = vectorised(algorithm.step, chains, (0, 0, None))

    def run(state: State, keys: Keys, step: Array, data: dict[str, Array], rows: Array) -> tuple[State, Record]:
        if transform is not None:
            data = transform(jax.random.fold_in(keys.transform, step), data)
        return advance(_fold(keys.chains, step + 1), state, Batch(data, rows, num_data))

    return run


@lru_cache(maxsize=32)
def _jit_step(algorithm: Algorithm, transform: Any, chains: int, num_data: int) -> Any:
    return jit(_step(algorithm, transform, chains, num_data))


@lru_cache(maxsize=32)
def _jit_gather_step(algorithm: Algorithm, transform: Any, chains: int, num_data: int) -> Any:
    run = _step(algorithm, transform, chains, num_data)

    def gathered(state: State, keys: Keys, step: Array, arrays: dict[str, Array], rows: Array) -> Any:
        return run(state, keys, step, _take(arrays, rows), rows)

    return jit(gathered)


def _take(arrays: dict[str, Array], rows: Array) -> dict[str, Array]:
    return {n: v.at[rows].get(mode="promise_in_bounds") for n, v in arrays.items()}


@lru_cache(maxsize=32)
def _loop(algorithm: Algorithm, transform: Any, schedule: Schedule, chains: int, capacity: int) -> Any:
    """Up to ``capacity`` steps in one compiled loop; how many is an argument, so it compiles once."""
    run = _step(algorithm, transform, chains, schedule.num_data)
    size, per_epoch, remainder = schedule.batch_size, schedule.steps_per_epoch, schedule.remainder

    def on_rows(count: int) -> Callable:
        def step(state: State, keys: Keys, order: Array, step: Array, arrays: dict[str, Array]) -> Any:
            rows = lax.dynamic_slice(order, ((step % per_epoch) * size,), (count,))
            return run(state, keys, step, _take(arrays, rows), rows)

        return step

    def on_all(state: State, keys: Keys, order: Array, step: Array, arrays: dict[str, Array]) -> Any:
        return run(state, keys, step, arrays, order)

    def segment(state: State, keys: Keys, first: Array, count: Array, arrays: dict[str, Array]) -> Any:
        all_rows = jnp.arange(schedule.num_data, dtype=jnp.int32)
        one = on_all if schedule.whole else on_rows(size)
        record = jax.eval_shape(one, state, keys, all_rows, first, arrays)[1]
        buffers = jax.tree.map(
            lambda s: jnp.zeros((capacity, *s.shape), s.dtype),
            {"metrics": record.metrics, "draws": record.draw},
        )

        def advance(one: Callable, order: Array, carry: Any) -> Any:
            i, state, buffers, _ = carry
            state, record = one(state, keys, order, first + i, arrays)
            new = {"metrics": record.metrics, "draws": record.draw}
            buffers = jax.tree.map(lambda b, v: b.at[i].set(v), buffers, new)
            stop = jnp.all(jnp.asarray(record.done)) | ~_finite(record.metrics)
            return i + 1, state, buffers, stop

        def before(end: Array) -> Callable[[Any], Array]:
            return lambda carry: (carry[0] < jnp.minimum(end, count)) & ~carry[-1]

        def epoch(carry: Any) -> Any:
            number = (first + carry[0]) // per_epoch
            order, end = epoch_order(keys, schedule, number), (number + 1) * per_epoch - first
            if not remainder:
                return lax.while_loop(before(end), partial(advance, one, order), carry)
            # The smaller last batch has a branch to itself outside the loop: a branch copies the whole state.
            carry = lax.while_loop(before(end - 1), partial(advance, one, order), carry)
            return lax.cond(before(end)(carry), partial(advance, on_rows(remainder), order), lambda carry: carry, carry)

        body = partial(advance, one, all_rows) if schedule.whole else epoch
        start = (jnp.int32(0), state, buffers, jnp.bool_(False))
        i, state, buffers, stop = lax.while_loop(before(count), body, start)
        return state, buffers, i, stop

    return jit(segment)


def _finite(metrics: dict[str, Array]) -> Array:
    ok = [jnp.all(jnp.isfinite(v)) for n, v in metrics.items() if n in WATCHED]
    return jnp.all(jnp.stack(ok)) if ok else jnp.bool_(True)


@dataclass
class Runner:
    """Runs segments of one algorithm on one data set in one mode."""

    algorithm: Any
    source: Rows | Stream
    schedule: Schedule
    keys: Keys
    mode: str  # "loop", "step", "host", "stream" or "eager"

    def __post_init__(self) -> None:
        self.chains = len(self.keys.chains)
        self.transform = getattr(self.source, "transform", None)
        self._arrays: dict[str, Array] | None = None
        self._stream: Iterator[Batch] | None = None
        self._streamed = 0
        self._order: tuple[int, Any] = (-1, None)

    @property
    def arrays(self) -> dict[str, Array]:
        """The data on the device, put there once."""
        if self._arrays is None:
            assert isinstance(self.source, Rows)
            self._arrays = {n: jnp.asarray(v) for n, v in self.source.arrays.items()}
        return self._arrays

    def init(self, example: Batch) -> State:
        """Initial state, with a leading chain axis if there are several chains."""
        keys = _squeeze(self.keys)
        if self.mode == "eager":
            return [self.algorithm.init(self._seed(c, 0), example) for c in range(self.chains)]
        return _init(self.algorithm, self.chains)(_fold(keys.chains, 0), example)

    def capacity(self, state: State, example: Batch) -> int:
        """The most steps whose records fit."""
        if self.mode != "loop":
            return 4096
        keys = _squeeze(self.keys)
        run = _step(self.algorithm, None, self.chains, self.schedule.num_data)
        record = jax.eval_shape(run, state, keys, jnp.int32(0), example.data, example.rows)[1]
        elements = sum(int(np.prod(s.shape)) for s in jax.tree.leaves((record.metrics, record.draw)))
        return int(np.clip(RECORD_ELEMENTS // max(elements, 1), 1, 1024))

    def run(self, state: State, first: int, count: int, capacity: int) -> Segment:
        """Steps ``first`` to ``first + count`` (fewer when done or not finite)."""
        if self.mode == "loop":
            return self._run_loop(state, first, count, capacity)
        if self.mode == "eager":
            return self._run_eager(state, first, count)
        return self._run_steps(state, first, count)

    def _run_loop(self, state: State, first: int, count: int, capacity: int) -> Segment:
        loop = _loop(self.algorithm, self.transform, self.schedule, self.chains, capacity)
        arguments = (_squeeze(self.keys), jnp.int32(first), jnp.int32(count), self.arrays)
        state, buffers, taken, stop = loop(state, *arguments)
        taken = int(taken)
        metrics, draws = (
            {n: self._chain_axis(np.array(np.asarray(v)[:taken])) for n, v in buffers[group].items()}
            for group in ("metrics", "draws")
        )
        finite = _host_finite(metrics)
        return Segment(state, metrics, draws, taken, bool(stop) and finite, finite)

    def _run_steps(self, state: State, first: int, count: int) -> Segment:
        records, done, taken = [], False, 0
        keys = _squeeze(self.keys)
        for step in range(first, first + count):
            if self.mode == "step":
                run = _jit_gather_step(self.algorithm, self.transform, self.chains, self.schedule.num_data)
                arguments = (self.arrays, jnp.asarray(self._rows(step)))
            else:
                batch = self._batch(step)
                if batch is None:
                    done = True
                    break
                run = _jit_step(self.algorithm, self.transform, self.chains, batch.num_data)
                arguments = (batch.data, batch.rows)
            state, record = run(state, keys, jnp.int32(step), *arguments)
            records.append(record)
            taken += 1
            # Only an algorithm that stops by itself is asked after every step: asking waits for the device.
            if hasattr(self.algorithm, "max_steps") and bool(np.all(np.asarray(record.done))):
                done = True
                break
        for i, record in enumerate(records):  # nothing counts after the first bound that is not finite
            if not _host_finite({n: np.asarray(v) for n, v in record.metrics.items()}):
                records, taken = records[: i + 1], i + 1
                break
        return self._gather(state, records, taken, done)

    def _run_eager(self, state: State, first: int, count: int) -> Segment:
        records, taken = [], 0
        for step in range(first, first + count):
            batch = self._batch(step)
            if batch is None:
                break
            if self.transform is not None:
                data = self.transform(jax.random.fold_in(self.keys.transform, step), dict(batch.data))
                batch = Batch(data, batch.rows, batch.num_data)
            new, per_chain = [], []
            for c, chain in enumerate(state):
                chain, record = self.algorithm.step(self._seed(c, step + 1), chain, batch)
                new.append(chain)
                per_chain.append(record)
            state, taken = new, taken + 1
            metrics, draws = _stacked([r.metrics for r in per_chain]), _stacked([r.draw for r in per_chain])
            records.append(Record(metrics, draws, all(bool(r.done) for r in per_chain)))
            if not _host_finite(metrics) or records[-1].done:
                break
        done = taken < count or bool(records and records[-1].done)
        return self._gather(state, records, taken, done)

    def _gather(self, state: State, records: list[Record], taken: int, done: bool) -> Segment:
        metrics, draws = (
            {n: self._chain_axis(v) for n, v in _stacked(group).items()}
            for group in ([r.metrics for r in records], [r.draw for r in records])
        )
        finite = _host_finite(metrics)
        return Segment(state, metrics, draws, taken, done and finite, finite)

    def _chain_axis(self, value: np.ndarray) -> np.ndarray:
        return value[:, None] if self.chains == 1 and self.mode != "eager" else value

    def _seed(self, chain: int, number: int) -> int:
        """A torch seed for (chain, step)."""
        root = np.asarray(jax.random.key_data(self.keys.chains[chain])).tolist()
        return int(np.random.SeedSequence([*root, number]).generate_state(1)[0])

    def _rows(self, step: int) -> np.ndarray:
        schedule = self.schedule
        if schedule.whole:
            return np.arange(schedule.num_data, dtype=np.int32)
        epoch, position = divmod(step, schedule.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, np.asarray(epoch_order(self.keys, schedule, epoch)))
        return self._order[1][position * schedule.batch_size : (position + 1) * schedule.batch_size]

    def _batch(self, step: int) -> Batch | None:
        if isinstance(self.source, Rows):
            rows = self._rows(step)
            return Rows(self.source.arrays).batch(rows)
        if self._stream is None:
            self._stream = self.source.batches()
        while self._streamed <= step:
            item = next(self._stream, None)
            self._streamed += 1
            if item is None:
                return None
        return item


def _stacked(parts: list[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Join named arrays along a new leading axis."""
    return {n: np.stack([np.asarray(p[n]) for p in parts]) for n in parts[0]} if parts else {}


def _host_finite(metrics: dict[str, np.ndarray]) -> bool:
    return all(bool(np.isfinite(v).all()) for n, v in metrics.items() if n in WATCHED)


def choose(algorithm: Any, source: Rows | Stream, state_and_batch: Callable[[], tuple[State, Batch]]) -> str:
    """The mode, by rule: eager for torch, batches from the host for data that do not fit, a jitted
    step per batch for convolutions on a CPU (in a loop XLA runs them several times slower, but for the
    one whose axes are in the order of its fast kernel), and one compiled loop for everything else.
    """
    if algorithm.engine == "pyro":
        return "eager"
    if isinstance(source, Stream):
        return "stream"
    if source.on_host:
        return "host"
    state, batch = state_and_batch()
    if jax.default_backend() == "cpu":
        jaxpr = jax.make_jaxpr(algorithm.step, axis_env=[(CHAINS, 2)])(jax.random.key(0), state, batch)
        if re.search(SLOW_CONVOLUTION, str(jaxpr)):
            return "step"
    return "loop"
