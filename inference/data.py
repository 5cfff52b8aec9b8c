"""Data at the door: named arrays, checked and cast once, and cut into batches.

Accepted: an array (named ``x``), a mapping of arrays, a data set value (``arrays`` plus an optional
``transform(key, arrays)`` applied inside the compiled step), a memory-mapped array, or an iterable of
mappings for data that never is in memory at once.

NaN in a float array ``x`` stand for missing entries, if the model has an argument ``x_observed``: it gets ``x``
with zeros in their place, and a boolean mask ``x_observed``. An array ``sample_weight`` says how many times
each row counts, to a model with that argument.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from inference.errors import BadData
from inference.programs import takes
from inference.protocols import Batch, Program
from inference.rounding import check_rounding

Transform = Callable[[Array, dict[str, Array]], dict[str, Array]]

# Larger data stay on the host and travel a batch at a time.
DEVICE_BYTES = 4 * 2**30

WEIGHT, MASK = "sample_weight", "_observed"


@dataclass(frozen=True, eq=False)
class Mapped:
    """A memory-mapped array seen through a function of its entries, computed for a batch at a time."""

    source: np.memmap
    function: Callable[[np.ndarray], np.ndarray]
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def ndim(self) -> int:
        return self.source.ndim

    @property
    def nbytes(self) -> int:
        return self.source.size * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.function(np.asarray(self.source[index]))


def is_mask(name: str, arrays: Mapping[str, Any]) -> bool:
    """Whether this array says which entries of another are observed."""
    return name.endswith(MASK) and name.removesuffix(MASK) in arrays


def row_shapes(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of a row of each array; masks and weights, which may come and go, are left out."""
    return {n: tuple(v.shape[1:]) for n, v in arrays.items() if n != WEIGHT and not is_mask(n, arrays)}


@dataclass(frozen=True, eq=False)
class Rows:
    """Arrays that share a leading axis of ``num_data`` rows.

    Parameters
    ----------
    arrays
        Host arrays, float32 or int32, masks boolean (or memory-mapped, cast a batch at a time).
    transform
        Pure function of a key and a batch's arrays, or ``None``.
    name
        Name of the data set, for reports.
    image_shape
        Shape of a row as an image, if it is one.
    """

    arrays: dict[str, Any]
    transform: Transform | None = None
    name: str = "data"
    image_shape: tuple[int, ...] | None = None

    @property
    def num_data(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def on_host(self) -> bool:
        """Whether batches are cut on the host: memory-mapped, or too large to be resident."""
        mapped = any(isinstance(v, (np.memmap, Mapped)) for v in self.arrays.values())
        return mapped or sum(v.nbytes for v in self.arrays.values()) > DEVICE_BYTES

    def batch(self, index: slice | np.ndarray, key: Array | None = None) -> Batch:
        """These rows as a batch, transformed with ``key`` (a fixed one by default)."""
        rows = np.arange(self.num_data)[index] if isinstance(index, slice) else index
        data = {}
        for name, value in self.arrays.items():
            part = np.asarray(value[index])
            data[name] = jnp.asarray(part if is_mask(name, self.arrays) else _cast(part))
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

    def unweighted(self) -> Rows:
        """The same rows, each counted once."""
        return replace(self, arrays={n: v for n, v in self.arrays.items() if n != WEIGHT})

    def check_columns(self) -> None:
        """Raise BadData where nothing of a column is observed, so that nothing can be learned about it."""
        for mask in (n for n in self.arrays if is_mask(n, self.arrays)):
            seen = np.zeros(self.arrays[mask].shape[1:], bool)
            for start in range(0, self.num_data, 65536):
                seen |= self.arrays[mask][start : start + 65536].any(axis=0)
            if not seen.all():
                raise BadData(
                    f"{mask.removesuffix(MASK)!r} has no number at all in column {np.argwhere(~seen)[0].tolist()}: "
                    "nothing can be learned about it. Drop that column."
                )

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
    programs: tuple[Program | None, Program | None] = (None, None)

    def batches(self) -> Iterator[Batch]:
        """Batches without end; stops when the source cannot be started over."""
        while True:
            empty = True
            for item in self.source:
                empty = False
                yield _as_batch(item, self.num_data, *self.programs)
            if empty:
                return


def as_data(data: Any, model: Program | None = None, guide: Program | None = None) -> Rows | Stream:
    """Check and cast what the user passed.

    Parameters
    ----------
    data
        As described above.
    model, guide
        Who will get it. NaN are missing entries where the model's argument says so, and the guide has it too.

    Raises
    ------
    BadData
        Empty, ragged, non-numeric or infinite data, NaN that the model does not take, columns that float32
        does not hold, weights that are negative or all zero; with the array's name and the first bad row or column.
    """
    programs = model, guide
    if isinstance(data, (Rows, Stream)):
        return data
    if hasattr(data, "arrays") and isinstance(data.arrays, Mapping):
        extra = {n: getattr(data, n, None) for n in ("transform", "image_shape")}
        return Rows(_held(data.arrays, _checked(data.arrays, *programs)), name=getattr(data, "name", "data"), **extra)
    if isinstance(data, Mapping):
        return Rows(_held(data, _checked(data, *programs)))
    if hasattr(data, "__array__") or isinstance(data, (list, tuple)):
        return Rows(_held({"x": data}, _checked({"x": data}, *programs)))
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes)):
        return _as_stream(data, programs)
    raise BadData(
        f"data is a {type(data).__name__}; expected an array, a mapping of arrays, a data set from "
        "ppl_models.datasets, or an iterable of such batches."
    )


def _held(arrays: Mapping[str, Any], checked: dict[str, Any]) -> dict[str, Any]:
    """What was checked, unless no row of it counts, or float32 does not hold a column."""
    if WEIGHT in checked and not checked[WEIGHT].max() > 0:
        raise BadData(f"{WEIGHT!r} is zero in every row; expected at least one row that counts.")
    for name in row_shapes(checked):
        check_rounding(name, _to_numpy(name, arrays[name]), checked.get(f"{name}{MASK}"))
    return checked


def _checked(arrays: Mapping[str, Any], model: Program | None, guide: Program | None) -> dict[str, Any]:
    if not arrays:
        raise BadData("data has no arrays; expected at least one, for example {'x': array}.")
    out: dict[str, Any] = {}
    for name, value in arrays.items():
        if is_mask(name, arrays):
            continue
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
        mask = f"{name}{MASK}"
        refusal = f"put zeros where {mask!r} is False" if mask in arrays else _no_holes(mask, model, guide)
        holes = False
        for start in range(0, len(value), 65536):
            holes |= _check_finite(name, value[start : start + 65536], start, refusal)
        if holes:
            out |= {name: _seen(value, np.nan_to_num, value.dtype), mask: _seen(value, _is_number, np.dtype(bool))}
        elif mask in arrays:
            out |= _masked(name, value, _to_numpy(mask, arrays[mask]))
        else:
            out[name] = value
    if WEIGHT in out:
        _check_weights(out[WEIGHT])
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


def _check_finite(name: str, value: np.ndarray, offset: int, refusal: str | None) -> bool:
    """Whether there are NaN. They are refused for the reason given, if there is one; what is infinite always."""
    if value.dtype.kind != "f":
        return False
    finite = np.isfinite(value)
    if finite.all():
        return False
    nan = np.isnan(value)
    bad = ~finite if refusal else np.isinf(value)
    if not bad.any():
        return True
    rows = np.flatnonzero(bad.reshape(len(value), -1).any(axis=1)) + offset
    reason = f" ({refusal})" if refusal and nan.any() else ""
    raise BadData(
        f"{name!r} has {int(bad.sum())} values that are not finite ({int(nan.sum())} NaN), first in row {rows[0]}; "
        f"expected finite numbers{reason}. Drop or impute those rows."
    )


def _no_holes(mask: str, model: Program | None, guide: Program | None) -> str | None:
    """Why NaN cannot be passed on as missing, if so."""
    if model is None or mask not in inspect.signature(model).parameters:
        return f"missing ones can be left as NaN for models with an argument {mask!r}, as the Gaussian mixture has"
    if guide is not None and not takes(guide, mask):
        return f"the model takes missing ones as NaN, but its guide has no argument {mask!r}"
    return None


def _is_number(value: np.ndarray) -> np.ndarray:
    return ~np.isnan(value)


def _seen(value: np.ndarray, function: Callable[[np.ndarray], np.ndarray], dtype: np.dtype) -> Any:
    return Mapped(value, function, dtype) if isinstance(value, np.memmap) else function(value)


def _masked(name: str, value: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    if mask.shape != value.shape or mask.dtype != bool:
        raise BadData(
            f"{name + MASK!r} has dtype {mask.dtype} and shape {mask.shape}; expected a boolean for each entry of "
            f"{name!r}, shape {value.shape}."
        )
    return {name: np.where(mask, value, 0), name + MASK: mask}


def _check_weights(weight: np.ndarray) -> None:
    if weight.ndim != 1:
        raise BadData(f"{WEIGHT!r} has shape {weight.shape}; expected one number a row.")
    low = np.argmin(weight)
    if weight[low] < 0:
        raise BadData(
            f"{WEIGHT!r} is {weight[low]:g} in row {low}; expected how many times each row counts, zero or more."
        )


def _cast(value: np.ndarray) -> np.ndarray:
    if value.dtype.kind == "f":
        return value.astype(np.float32, copy=False)
    return value.astype(np.float32 if value.dtype.kind == "b" else np.int32, copy=False)


def _as_stream(source: Iterable[Any], programs: tuple[Program | None, Program | None]) -> Stream:
    iterator = iter(source)
    first = next(iterator, None)
    if first is None:
        raise BadData("the iterable of batches is empty; expected at least one batch.")
    if iterator is source:  # a generator: put the first batch back
        source = _Resumed(first, iterator)
    num_data = getattr(source, "num_data", None)
    batch = _as_batch(first, num_data, *programs)
    _held(_named(first), batch.data)  # of the first alone: rows of others may be alike, or count for nothing
    return Stream(source, num_data, batch, programs)


class _Resumed:
    """A one-shot iterator with its first item put back."""

    def __init__(self, first: Any, rest: Iterator[Any]):
        self.items = [first]
        self.rest = rest

    def __iter__(self) -> Iterator[Any]:
        while self.items:
            yield self.items.pop()
        yield from self.rest


def _named(item: Any) -> Mapping[str, Any]:
    return item if isinstance(item, Mapping) else {"x": item}


def _as_batch(item: Any, num_data: int | None, model: Program | None, guide: Program | None) -> Batch:
    arrays = _checked(_named(item), model, guide)
    data = {n: jnp.asarray(np.asarray(v[:])) for n, v in arrays.items()}
    size = len(next(iter(data.values())))
    return Batch(data, jnp.arange(size, dtype=jnp.int32), num_data or size)
