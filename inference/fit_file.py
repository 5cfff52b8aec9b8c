"""A fit in one safetensors file: parameters, draws and history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from inference import checkpoint as files
from inference.errors import CorruptFile
from inference.protocols import Draws
from inference.result import Fit
from inference.run import describe


def save(fit: Fit, path: str | Path) -> None:
    """What :meth:`inference.Fit.save` does."""
    files.check_writable(path, "path")
    arrays = files.flatten(fit.params, "params") | files.flatten(fit.draws.params, "chains")
    arrays |= {f"posterior/{n}": np.asarray(v) for n, v in fit.draws.posterior.items()}
    arrays |= {f"sample_stats/{n}": np.asarray(v) for n, v in fit.draws.sample_stats.items()}
    arrays |= {f"history/{n}": np.asarray(v) for n, v in fit.history.items()}
    shapes = {n: (v.shape, np.dtype(v.dtype).name) for n, v in fit.shapes.items()}
    meta = {
        "info": fit.info,
        "num_data": fit.num_data,
        "shapes": shapes,
        "algorithm": describe(fit.algorithm),
    }
    files.write(path, {n: np.asarray(v, order="C") for n, v in arrays.items()}, meta)


def load(path: str | Path, algorithm: Any) -> Fit:
    """What :meth:`inference.Fit.load` returns."""
    found = files.read_latest(path)
    if found is None:
        raise FileNotFoundError(f"no file {str(path)!r}: expected one written by Fit.save.")
    arrays, meta = found
    if "algorithm" not in meta:
        raise CorruptFile(f"{str(path)!r} holds a checkpoint of a run: end it with fit(..., checkpoint={str(path)!r}).")
    if meta.get("algorithm") != describe(algorithm):
        raise CorruptFile(
            f"{str(path)!r} holds {meta.get('algorithm')}, not {describe(algorithm)}: load it with an equal one."
        )

    def group(prefix: str) -> dict[str, np.ndarray]:
        return {n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)}

    shapes = {n: jax.ShapeDtypeStruct(tuple(s), d) for n, (s, d) in meta["shapes"].items()}
    blank = Fit(algorithm, {}, Draws({}, {}, {}), {}, {}, None, shapes, meta["num_data"])
    template = _params_template(algorithm, blank)
    if template is None:
        params, chains = _flat(arrays, "params"), _flat(arrays, "chains")
    else:
        params = files.unflatten(template, arrays, "params")
        count = next((v.shape[0] for n, v in arrays.items() if n.startswith("chains")), 1)
        stacked = jax.tree.map(lambda v: jax.ShapeDtypeStruct((count, *v.shape), v.dtype), template)
        chains = files.unflatten(stacked, arrays, "chains")
    return Fit(
        algorithm,
        params,
        Draws(chains, group("posterior/"), group("sample_stats/")),
        group("history/"),
        meta["info"],
        None,
        shapes,
        meta["num_data"],
    )


def _flat(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """A flat mapping of arrays as :func:`checkpoint.flatten` named it, ``params['name']``."""
    return {
        n.removeprefix(f"{prefix}['").removesuffix("']"): v for n, v in arrays.items() if n.startswith(prefix + "[")
    }


def _params_template(algorithm: Any, blank: Fit) -> Any:
    if algorithm.engine == "pyro":
        return None

    def params(key: Array) -> Any:
        example = blank.example
        return algorithm.params(algorithm.init(key, example), example)

    return jax.eval_shape(params, jax.random.key(0))


__all__ = ["load", "save"]
