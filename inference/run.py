"""What a run accumulates between segments, and its checkpoint on disk."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from types import CellType, FunctionType, ModuleType
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from inference import checkpoint as files
from inference.data import Rows
from inference.errors import CorruptFile
from inference.execution import Schedule, Segment


@dataclass
class Run:
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
    before: tuple[Any, int, int] | None = None  # state, step and number of draws before the last segment

    def rewind(self) -> int:
        """Undo the last segment; returns how many steps it had."""
        assert self.before is not None
        count = self.step - self.before[1]
        (self.state, self.step, draws), self.before = self.before, None
        self.records.pop()
        del self.draws[draws:]
        return count

    def advance(self, segment: Segment, warmup: int) -> None:
        """Take a segment in; draws of the warmup are dropped."""
        skip = max(0, warmup - self.step)
        self.before = (self.state, self.step, len(self.draws))
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


def identity(
    algorithm: Any, source: Any, held_out: Any, root: Array, num_chains: int, schedule: Schedule, mode: str
) -> dict:
    """What must be the same for a checkpoint to be resumed."""
    versions = {"jax": jax.__version__}
    if algorithm.engine == "pyro":
        versions["torch"] = importlib.metadata.version("torch")

    def data(rows: Any) -> Any:
        return [rows.name, describe(rows.transform), rows.fingerprint()] if isinstance(rows, Rows) else "stream"

    return versions | {
        "algorithm": [describe(algorithm), _held_values(algorithm)],
        "data": data(source),
        "validation": None if held_out is None else data(held_out),
        "key": np.asarray(jax.random.key_data(root)).tolist(),
        "num_chains": num_chains,
        "num_data": schedule.num_data,
        "batch_size": schedule.batch_size,
        "mode": mode,
    }


def describe(value: Any) -> str:
    """Text that is the same in every process for equal programs (no memory addresses)."""
    if is_dataclass(value) and not isinstance(value, type):
        inside = ", ".join(f"{f.name}={describe(getattr(value, f.name))}" for f in fields(value))
        return f"{type(value).__qualname__}({inside})"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(describe, value)) + ")"
    owner: Any = getattr(value, "__self__", None)
    if owner is not None and not isinstance(owner, ModuleType):
        return f"{describe(owner)}.{getattr(value, '__name__', '')}"
    if callable(value) or hasattr(value, "__name__"):
        return getattr(value, "__qualname__", getattr(value, "__name__", type(value).__qualname__))
    return repr(value)


def _held_values(algorithm: Any) -> str:
    """Hash of the numbers that functions close over: what tells adam(1e-3) from adam(1e-2)."""
    seen: set[int] = set()

    def walk(value: Any) -> list[str]:
        if id(value) in seen:
            return []
        if isinstance(value, (bool, int, float, str)):
            return [repr(value)]
        seen.add(id(value))
        inside: list[Any] = []
        if hasattr(value, "__dataclass_fields__"):
            inside = [getattr(value, n) for n in value.__dataclass_fields__]
        elif isinstance(value, (tuple, list)):
            inside = list(value)
        elif isinstance(value, Mapping):
            inside = [part for name in sorted(value, key=str) for part in (name, value[name])]
        elif isinstance(value, FunctionType):
            cells = [cell for cell in value.__closure__ or () if cell != CellType()]
            code = value.__code__
            if not (value.__module__ or "").startswith(("jax", "optax", "numpyro", "equinox")):
                inside.append(hashlib.sha256(code.co_code + repr(code.co_names).encode()).hexdigest())
                inside += [const for const in code.co_consts if isinstance(const, (bool, int, float, str))]
            inside += [*(cell.cell_contents for cell in cells), *(value.__defaults__ or ())]
        elif isinstance(value, partial):
            inside = [value.func, *value.args, value.keywords]
        elif isinstance(value, (np.ndarray, jax.Array)):
            return [hashlib.sha256(np.asarray(value).tobytes()).hexdigest()]
        return [text for part in inside for text in walk(part)]

    return hashlib.sha256("|".join(walk(algorithm)).encode()).hexdigest()[:16]


def save(path: Path, run: Run, identity: dict, algorithm: Any) -> None:
    """Write all of a run to one file, atomically."""
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


def resume(path: Path, fresh: Run, identity: dict, algorithm: Any) -> Run:
    """The run in the file, if there is one and it is this run's; else the fresh one."""
    found = files.read_latest(path)
    if found is None:
        return fresh
    arrays, meta = found
    if "identity" not in meta:
        raise CorruptFile(f"{str(path)!r} holds a finished fit's weights, not a checkpoint: give another file name.")
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
    run = Run(restore("state"), meta["step"], meta["done"], meta["seconds"], group("metrics/"), group("draws/"))
    run.validation = [(int(s), b) for s, b in zip(steps, bounds, strict=True)]
    run.best, run.best_bound, run.patience = best, meta["best_bound"], meta["patience"]
    return run
