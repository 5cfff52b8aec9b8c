"""MNIST's four files: found or downloaded, and checked.

References
----------
Gradient-Based Learning Applied to Document Recognition (LeCun, Bottou, Bengio & Haffner, 1998).
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from pathlib import Path

import numpy as np

URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
# Of the unzipped files, whose MD5s are the published ones; the same content is zipped differently elsewhere.
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def read(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (rows, 28, 28) and labels (rows,) of ``"train"`` or ``"t10k"``, as bytes.

    Raises
    ------
    ValueError
        A file whose checksum is wrong.
    FileNotFoundError
        No file in the folder named by ``PPL_MODELS_DATA``, or no connection to download one.
    """
    images = np.frombuffer(_content(f"{part}-images-idx3-ubyte"), np.uint8, offset=16)
    labels = np.frombuffer(_content(f"{part}-labels-idx1-ubyte"), np.uint8, offset=8)
    return images.reshape(-1, 28, 28), labels


def _content(name: str) -> bytes:
    path = _find(name)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        got = hashlib.sha256(content).hexdigest()
    except (OSError, EOFError, zlib.error) as error:
        content, got = b"", f"a file that cannot be unzipped ({error})"
    if got != SHA256[name]:
        raise ValueError(
            f"{path}: checksum failed; expected SHA-256 {SHA256[name]} of the unzipped content, got {got}. "
            "Delete the file and load again, or replace it."
        )
    return content


def _find(name: str) -> Path:
    folder = os.environ.get("PPL_MODELS_DATA")
    if folder:
        found = [Path(folder, sub, name + end) for sub in ("mnist", "") for end in (".gz", "")]
        for path in found:
            if path.is_file():
                return path
        raise FileNotFoundError(
            f"PPL_MODELS_DATA is {folder}, which has no mnist/{name}.gz; put it there, or unset the variable "
            "to download it."
        )
    import pooch

    pooch.get_logger().setLevel("WARNING")
    cache = pooch.os_cache("ppl-models") / "mnist"
    try:
        return Path(pooch.retrieve(f"{URL}{name}.gz", known_hash=None, path=cache, fname=f"{name}.gz"))
    except OSError as error:
        raise FileNotFoundError(
            f"{URL}{name}.gz could not be downloaded ({error}). Download it elsewhere, and name its folder "
            'in PPL_MODELS_DATA; "digits" needs no download.'
        ) from None
