"""Arrays from files: ``.npy``, ``.npz`` and ``.csv``. Nothing is ever unpickled."""

from __future__ import annotations

import csv
import zipfile
import zlib
from pathlib import Path

import numpy as np


def read(source: Path, array: str | None = None) -> tuple[str, np.ndarray]:
    """Name and content of a file.

    Parameters
    ----------
    source
        Path of a ``.npy``, ``.npz`` or ``.csv`` file.
    array
        Which array of an ``.npz`` file, where it has several.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        Another kind of file, or one that cannot be read.
    """
    path = source.expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"{source!s} is no data set and no file; expected 'digits', 'mnist', an array, or the path of a "
            f".npy, .npz or .csv file (looked for {path.absolute()})."
        )
    if path.suffix not in (".npy", ".npz", ".csv"):
        raise ValueError(f"{path}: unknown kind of file {path.suffix!r}; expected .npy, .npz or .csv.")
    return path.stem, _read_csv(path) if path.suffix == ".csv" else _read_numpy(path, array)


def _read_numpy(path: Path, array: str | None) -> np.ndarray:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            names = loaded.files
            if array is None and len(names) == 1:
                array = names[0]
            if array in names:
                return loaded[array]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: cannot be read ({error}). The file is damaged, or holds Python objects, which are never "
            "unpickled; save numeric arrays with numpy.save or numpy.savez."
        ) from None
    raise ValueError(f"{path}: has the arrays {names}; expected array= to name one of them, got {array!r}.")


def _read_csv(path: Path) -> np.ndarray:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [(i, cells) for i, cells in enumerate(csv.reader(file), 1) if cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: no comma-separated text ({error}).") from None
    if lines and not all(_number(cell) is not None for cell in lines[0][1]):
        lines = lines[1:]  # the header
    rows = []
    for i, cells in lines:
        if len(cells) != len(lines[0][1]):
            raise ValueError(f"{path}, line {i}: {len(cells)} cells; expected {len(lines[0][1])} as before.")
        rows.append([_number(cell) for cell in cells])
        if None in rows[-1]:
            bad = rows[-1].index(None)
            raise ValueError(f"{path}, line {i}, column {bad + 1}: {cells[bad]!r}; expected a number.")
    return np.array(rows, np.float32) if rows else np.empty((0, 0))


def _number(cell: str) -> float | None:
    try:
        return float(cell) if cell.strip() else float("nan")
    except ValueError:
        return None
