"""Data sets as values: digits, MNIST, or a file or array of your own, split into train and test.

Rows are flat float32, grey levels in [0, 1]: in a compiled step that binarizes 100 MNIST images,
gathering float32 rows takes no longer than gathering bytes and converting them. Binarization is part
of a data set's name, because likelihoods under different ones cannot be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from . import files, mnist

Binarization = Literal["none", "threshold", "dynamic"]
Transform = Callable[[Any, dict[str, Any]], dict[str, Any]]

SEED = 0  # of the held-out split, and of the one binarization of test rows


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows, and what is known of them.

    Parameters
    ----------
    name
        Name, binarization included (``mnist-dynamic``).
    arrays
        Keyword arguments of a program, each with a leading axis of rows. ``x`` has shape
        ``(rows, pixels)``.
    transform
        Function of a JAX key and a batch's arrays, applied anew to every batch, or ``None``.
    labels
        Classes, shape ``(rows,)``, for plots; not given to the program.
    image_shape
        ``(height, width)`` or ``(height, width, channels)`` of a row, or ``None``.
    """

    name: str
    arrays: Mapping[str, np.ndarray]
    transform: Transform | None = None
    labels: np.ndarray | None = None
    image_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        lengths = {k: len(v) for k, v in self.arrays.items()}
        if self.labels is not None:
            lengths["labels"] = len(self.labels)
        if len(set(lengths.values())) != 1:
            raise ValueError(f"{self.name}: expected arrays with equally many rows, got {lengths}.")

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, rows: slice | np.ndarray | list[int]) -> Dataset:
        """The data set of these rows: a slice, an index array or a mask."""
        if isinstance(rows, (int, np.integer)):
            raise TypeError(f"{self.name}[{rows}]: a data set is cut by rows; write [{rows}:{int(rows) + 1}].")
        return replace(
            self,
            arrays={k: v[rows] for k, v in self.arrays.items()},
            labels=None if self.labels is None else self.labels[rows],
        )

    def shuffled(self, seed: int = 0) -> Dataset:
        """The same rows in an order drawn with the seed: the first thousand test images of MNIST are by few hands, and
        two-sample tests tell them from training images.
        """
        return self[np.random.default_rng(seed).permutation(len(self))]


def load(
    source: Any, binarization: Binarization = "none", *, array: str | None = None, test_fraction: float = 0.2
) -> tuple[Dataset, Dataset]:
    """Load a data set and split it into train and test.

    Parameters
    ----------
    source
        ``"digits"``: scikit-learn's 8x8 digits, 1,437 and 360 rows, no download. ``"mnist"``: 60,000
        and 10,000 rows, from the folder named by ``PPL_MODELS_DATA`` or downloaded and kept. The path
        of a ``.npy``, ``.npz`` or ``.csv`` file (a header row is skipped, an empty cell is NaN), or an
        array, with the leading axis as rows; bytes of rank 3 and 4 are images and are divided by 255.
    binarization
        ``"none"``; ``"threshold"``: 1 where a value is at least 0.5; ``"dynamic"``: x ~ Bernoulli(grey
        level), anew for every batch of train. Test rows are drawn once, with seed 0.
    array
        Which array of an ``.npz`` file holds the rows, where it has several.
    test_fraction
        Part of the rows that is held out, rounded up: the last ones of a permutation with seed 0.
        Not used for MNIST, whose split is given.

    Returns
    -------
    tuple of Dataset
        Train and test.

    Raises
    ------
    ValueError
        Unknown name or kind of file, wrong checksum, unreadable or empty data, wrong rank or dtype,
        values outside [0, 1] to be binarized, or nothing left to train or test on.
    FileNotFoundError
        A file or folder that is not there.

    References
    ----------
    Gradient-Based Learning Applied to Document Recognition (LeCun, Bottou, Bengio & Haffner, 1998).
    On the Quantitative Analysis of Deep Belief Networks (Salakhutdinov & Murray, 2008), for dynamic
    binarization.
    """
    if binarization not in get_args(Binarization):
        choices = ", ".join(get_args(Binarization))
        raise ValueError(f"binarization is {binarization!r}; expected one of {choices}.")
    name = source if isinstance(source, str) else None
    if name == "mnist":
        train, test = _mnist("train"), _mnist("t10k")
    else:
        train, test = _split(_digits() if name == "digits" else _own(source, array), test_fraction)
    if binarization == "none":
        return train, test
    return _binarized(train, binarization, once=False), _binarized(test, binarization, once=True)


def sample_binary(key: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """x ~ Bernoulli(x): the transform of dynamic binarization."""
    import jax

    x = batch["x"]
    return batch | {"x": jax.random.bernoulli(key, x).astype(x.dtype)}


def _binarized(data: Dataset, binarization: Binarization, once: bool) -> Dataset:
    x = data.arrays["x"]
    if not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(f"{data.name}: values from {x.min()} to {x.max()}; binarization needs them in [0, 1].")
    name = f"{data.name}-{binarization}"
    if binarization == "dynamic" and not once:
        return replace(data, name=name, transform=sample_binary)
    level = np.random.default_rng(SEED).random(x.shape, np.float32) if binarization == "dynamic" else None
    binary = x >= 0.5 if level is None else level < x
    return replace(data, name=name, arrays={"x": binary.astype(np.float32)})


def _split(data: Dataset, test_fraction: float) -> tuple[Dataset, Dataset]:
    rows, test = len(data), int(np.ceil(test_fraction * len(data)))
    if not 0 < test < rows:
        raise ValueError(f"{data.name}: {rows} rows with test_fraction={test_fraction} leave no train or test rows.")
    order = np.random.default_rng(SEED).permutation(rows)
    return data[order[:-test]], data[order[-test:]]


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    grey, labels = map(np.asarray, load_digits(return_X_y=True))
    x = (grey / 16).astype(np.float32)
    return Dataset("digits", {"x": x}, labels=labels.astype(np.int32), image_shape=(8, 8))


def _mnist(part: str) -> Dataset:
    images, labels = mnist.read(part)
    x = images.reshape(len(images), -1).astype(np.float32) / 255
    return Dataset("mnist", {"x": x}, labels=labels.astype(np.int32), image_shape=(28, 28))


def _own(source: Any, array: str | None) -> Dataset:
    name, values = ("array", source) if not isinstance(source, (str, Path)) else files.read(Path(source), array)
    try:
        values = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name}: rows of different lengths ({error}).") from None
    if values.dtype.kind not in "fiub":
        raise ValueError(f"{name}: dtype {values.dtype}; expected real numbers. Encode categories as integers.")
    if values.size == 0:
        raise ValueError(f"{name}: empty, shape {values.shape}; expected at least two rows.")
    if values.ndim not in (2, 3, 4):
        raise ValueError(
            f"{name}: rank {values.ndim}, shape {values.shape}; expected (rows, columns), or images "
            "(rows, height, width) or (rows, height, width, channels). One column is array[:, None]."
        )
    is_image = values.ndim > 2
    scale = 255 if is_image and values.dtype == np.uint8 else 1
    x = values.reshape(len(values), -1).astype(np.float32) / np.float32(scale)
    return Dataset(name, {"x": x}, image_shape=values.shape[1:] if is_image else None)
