"""One file per checkpoint: safetensors with a SHA-256 of its own contents, written atomically.

The digest covers every name, dtype, shape, byte and the metadata, and lies in the file's header, so
a truncated or altered file is never mistaken for a good one. The file before it is kept beside it as
``NAME.previous`` and used when the newer one is damaged. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from inference.errors import BadData, CorruptFile


def flatten(tree: Any, prefix: str) -> dict[str, np.ndarray]:
    """Leaves of a pytree by path, random keys as their data."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {prefix + jax.tree_util.keystr(path): _to_numpy(leaf) for path, leaf in leaves}


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)


def _to_numpy(leaf: Any) -> np.ndarray:
    return np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf, order="C")


def unflatten(template: Any, arrays: dict[str, np.ndarray], prefix: str) -> Any:
    """Put arrays back into the structure of ``template`` (its leaves may be abstract).

    Raises
    ------
    CorruptFile
        When a leaf is missing or has another shape: the file belongs to another algorithm.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(template)
    out = []
    for path, leaf in leaves:
        name = prefix + jax.tree_util.keystr(path)
        if name not in arrays:
            raise CorruptFile(f"the file has no {name!r}: it was written by another model, guide or algorithm.")
        value = arrays[name]
        if _is_key(leaf):
            out.append(jax.random.wrap_key_data(jnp.asarray(value)))
            continue
        if tuple(value.shape) != tuple(np.shape(leaf)):
            raise CorruptFile(
                f"{name!r} has shape {tuple(value.shape)} in the file and {tuple(np.shape(leaf))} in this algorithm: "
                "they differ in size. Load it with the algorithm that wrote it."
            )
        with jax.enable_x64(True):  # float64 leaves (EM) stay float64 inside float32 code
            out.append(jnp.asarray(value) if isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)) else value)
    return jax.tree_util.tree_unflatten(treedef, out)


def write(path: str | Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Write atomically: a temporary file, synced, then renamed; the last file is kept as ``.previous``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(meta, sort_keys=True)
    content = save(arrays, metadata={"meta": text, "sha256": _digest(arrays, text)})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        _replace_link(path, previous(path))
    os.replace(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def check_writable(path: str | Path, what: str = "checkpoint") -> None:
    """Refuse, before hours are spent, a place that cannot be written to.

    Raises
    ------
    BadData
        A directory, or a folder that does not exist and cannot be made or written in.
    """
    if not isinstance(path, (str, Path)) or not str(path):
        raise BadData(f"{what} is {path!r}; expected a file name.")
    path = Path(path)
    if path.is_dir():
        raise BadData(f"{what} {str(path)!r} is a folder; expected a file name, for example {str(path / 'run')!r}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadData(f"{what} {str(path)!r} cannot be written: {error}.") from None
    if not os.access(path.parent, os.W_OK):
        raise BadData(f"{what} {str(path)!r} cannot be written: no permission in {str(path.parent)!r}.")


def previous(path: Path) -> Path:
    """Where the file before the last is kept."""
    return path.with_name(path.name + ".previous")


def _replace_link(source: Path, target: Path) -> None:
    """Make ``target`` a second name of ``source``, so that no moment has neither file."""
    link = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(source, link)
    except OSError:  # a file system without hard links
        link.write_bytes(source.read_bytes())
    os.replace(link, target)


def read(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read and verify one file.

    Raises
    ------
    FileNotFoundError
        When there is none.
    CorruptFile
        When it is truncated, altered, or not a file of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}.")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, ValueError, OSError) as error:
        raise CorruptFile(f"{str(path)!r} is truncated or not a checkpoint: {error}.") from None
    if "sha256" not in header or "meta" not in header:
        raise CorruptFile(f"{str(path)!r} was not written by ppl-models: its header has no digest.")
    if _digest(arrays, header["meta"]) != header["sha256"]:
        raise CorruptFile(f"{str(path)!r} was altered after it was written: its SHA-256 does not match.")
    return arrays, json.loads(header["meta"])


def read_latest(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """The file, with a warning the one before it where it is damaged, or ``None`` when there is no file.

    (No moment of writing has no file, so that one that is missing was deleted, to start over.)

    Raises
    ------
    CorruptFile
        When neither of the two is good.
    """
    path = Path(path)
    if not path.is_file():
        return None
    problems = []
    for candidate in (path, previous(path)):
        try:
            found = read(candidate)
        except FileNotFoundError:
            continue
        except CorruptFile as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(f"{problems[0]} Reading the one before it, {str(candidate)!r}.", stacklevel=2)
        return found
    raise CorruptFile(" ".join(problems) + " No good checkpoint is left; delete it to start over.")


def _digest(arrays: dict[str, np.ndarray], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        value = np.asarray(arrays[name], order="C")
        digest.update(f"{name}|{value.dtype.str}|{value.shape}|".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
