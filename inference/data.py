"""Data at the door: named arrays, checked and cast once, and cut into batches.

Accepted: an array (named ``x``), a mapping of arrays, a data set value (``arrays`` plus an optional
``transform(key, arrays)`` applied inside the compiled step), a memory-mapped array, or an iterable of
mappings for data that never is in memory at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from inference.errors import BadData
from inference.protocols import Batch

Transform = Callable[[Array, dict[str, Array]], dict[str, Array]]

# Larger data stay on the host and travel a batch at a time.
DEVICE_BYTES = 4 * 2**30


@dataclass(frozen=True, eq=False)
class Rows:
    """Arrays that share a leading axis of ``num_data`` rows.

    Parameters
    ----------
    arrays
        Host arrays, float32 or int32 (or memory-mapped, cast a batch at a time).
    transform
        Pure function of a key and a batch's arrays, or ``None``.
    name
        Name of the data set, for reports.
    image_shape
        Shape of a row as an image, if it is one.
    """

    arrays: dict[str, np.ndarray]
    transform: Transform | None = None
    name: str = "data"
    image_shape: tuple[int, ...] | None = None

    @property
    def num_data(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def on_host(self) -> bool:
        """Whether batches are cut on the host: memory-mapped, or too large to be resident."""
        mapped = any(isinstance(v, np.memmap) for v in self.arrays.values())
        return mapped or sum(v.nbytes for v in self.arrays.values()) > DEVICE_BYTES

    def batch(self, index: slice | np.ndarray, key: Array | None = None) -> Batch:
        """These rows as a batch, transformed with ``key`` (a fixed one by default)."""
        rows = np.arange(self.num_data)[index] if isinstance(index, slice) else index
        data = {n: jnp.asarray(_cast(np.asarray(v[index]))) for n, v in self.arrays.items()}
        if self.transform is not None:
            data = self.transform(jax.random.key(0) if key is None else key, data)
        return Batch(data, jnp.asarray(rows, dtype=jnp.int32), self.num_data)

    def whole(self) -> Batch:
        """All rows as one batch."""
        return self.batch(slice(None))

    def batches(self, size: int) -> Iterator[Batch]:
        """Consecutive batches of at most ``size`` rows."""
        for i, start in enumerate(range(0, self.num_data, size)):
            yield self.batch(slice(start, start + size), jax.random.key(i))

    def fingerprint(self) -> str:
        """Hash of names, shapes, dtypes and values (of up to a million evenly spaced rows, where there are more)."""
        digest = hashlib.sha256()
        for name, value in sorted(self.arrays.items()):
            digest.update(f"{name}:{value.shape}:{value.dtype}:".encode())
            digest.update(np.ascontiguousarray(value[:: max(1, len(value) // 2**20)]).tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Stream:
    """Batches from an iterable of mappings, started over each time it ends."""

    source: Iterable[Any]
    num_data: int | None
    first: Batch

    def batches(self) -> Iterator[Batch]:
        """Batches without end; stops when the source cannot be started over."""
        while True:
            count = 0
            for count, item in enumerate(self.source, 1):  # noqa: B007
                yield _as_batch(item, self.num_data)
            if not count:
                return


def as_data(data: Any) -> Rows | Stream:
    """Check and cast what the user passed.

    Raises
    ------
    BadData
        Empty, ragged, non-numeric or non-finite data, with the array's name and the first bad row.
    """
    if isinstance(data, (Rows, Stream)):
        return data
    if hasattr(data, "arrays") and isinstance(data.arrays, Mapping):
        extra = {n: getattr(data, n, None) for n in ("transform", "image_shape")}
        return Rows(_checked(data.arrays), name=getattr(data, "name", "data"), **extra)
    if isinstance(data, Mapping):
        return Rows(_checked(data))
    if hasattr(data, "__array__") or isinstance(data, (list, tuple)):
        return Rows(_checked({"x": data}))
    if isinstance(data, Iterable):
        return _as_stream(data)
    raise BadData(
        f"data is a {type(data).__name__}; expected an array, a mapping of arrays, a data set from "
        "ppl_models.datasets, or an iterable of such batches."
    )


def _checked(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    if not arrays:
        raise BadData("data has no arrays; expected at least one, for example {'x': array}.")
    out = {}
    for name, value in arrays.items():
        value = value if isinstance(value, np.memmap) else _to_numpy(name, value)
        if value.ndim == 0:
            raise BadData(f"{name!r} is a scalar; expected an array whose leading axis is the observations.")
        if value.dtype.kind not in "fiub":
            raise BadData(
                f"{name!r} has dtype {value.dtype}; expected numbers (float, integer or boolean). "
                "Encode categories as integers."
            )
        if value.shape[0] == 0 or value.size == 0:
            raise BadData(f"{name!r} is empty (shape {value.shape}); expected at least one row and column.")
        if value.dtype.kind in "iu" and value.dtype.itemsize >= 4:
            low, high = value.min(), value.max()
            if low < -(2**31) or high >= 2**31:
                raise BadData(f"{name!r} ranges over [{low}, {high}], beyond 32-bit integers: rescale, or pass floats.")
        if not isinstance(value, np.memmap):
            value = _cast(value)
        for start in range(0, len(value), 65536):
            _check_finite(name, value[start : start + 65536], start)
        out[name] = value
    lengths = {n: len(v) for n, v in out.items()}
    if len(set(lengths.values())) > 1:
        raise BadData(f"arrays have different numbers of rows: {lengths}; the leading axis must be the same.")
    return out


def _to_numpy(name: str, value: Any) -> np.ndarray:
    if np.ma.is_masked(value):
        raise BadData(f"{name!r} is a masked array, and its mask would be lost: fill or drop the masked rows.")
    if hasattr(value, "detach"):  # a torch tensor that tracks gradients
        value = value.detach().cpu()
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise BadData(f"{name!r} cannot be made into an array: {error}.") from None


def _check_finite(name: str, value: np.ndarray, offset: int = 0) -> None:
    if value.dtype.kind != "f":
        return
    finite = np.isfinite(value)
    if finite.all():
        return
    rows = np.flatnonzero(~finite.reshape(len(value), -1).all(axis=1)) + offset
    nan = int(np.isnan(value).sum())
    raise BadData(
        f"{name!r} has {int((~finite).sum())} values that are not finite ({nan} NaN), first in row {rows[0]}; "
        "expected finite numbers. Drop or impute those rows."
    )


def _cast(value: np.ndarray) -> np.ndarray:
    if value.dtype.kind == "f":
        return value.astype(np.float32, copy=False)
    return value.astype(np.float32 if value.dtype.kind == "b" else np.int32, copy=False)


def _as_stream(source: Iterable[Any]) -> Stream:
    iterator = iter(source)
    first = next(iterator, None)
    if first is None:
        raise BadData("the iterable of batches is empty; expected at least one batch.")
    if iterator is source:  # a generator: put the first batch back
        source = _Resumed(first, iterator)
    num_data = getattr(source, "num_data", None)
    return Stream(source, num_data, _as_batch(first, num_data))


class _Resumed:
    """A one-shot iterator with its first item put back."""

    def __init__(self, first: Any, rest: Iterator[Any]):
        self.items = [first]
        self.rest = rest

    def __iter__(self) -> Iterator[Any]:
        while self.items:
            yield self.items.pop()
        yield from self.rest


def _as_batch(item: Any, num_data: int | None) -> Batch:
    arrays = _checked(item if isinstance(item, Mapping) else {"x": item})
    data = {n: jnp.asarray(v) for n, v in arrays.items()}
    size = len(next(iter(data.values())))
    return Batch(data, jnp.arange(size, dtype=jnp.int32), num_data or size)
