"""What ``metrics.json`` says: numbers of fits and comparisons, versions, hardware."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.result import final_bound
from ppl.values import setting

if TYPE_CHECKING:
    from inference import Fit
    from inference.compare import Row

PACKAGES = ("ppl-models", "jax", "numpyro", "equinox", "optax", "torch", "pyro-ppl", "arviz", "numpy", "scikit-learn")


def summary(run: Fit, row: Row | None) -> dict[str, Any]:
    """What ``metrics.json`` says of a fit; bounds and likelihoods in nats per row."""
    bounds = run.history.get("bound")
    last = None if bounds is None else final_bound(bounds)
    held_out = run.history.get("validation")
    return {
        "algorithm": setting(run.algorithm),
        "bound": None if last is None else float(last[0]),
        "spread": float(np.std(last, ddof=1)) if last is not None and len(last) > 1 else None,
        "validation": None if held_out is None else float(np.asarray(held_out)[0, -1]),
        "log_likelihood": None if row is None else numbers(row)["log_likelihood"],
        "seconds": run.info.get("seconds"),
        "steps": run.info.get("num_steps"),
        "chains": run.num_chains,
        "seed": run.info.get("seed"),
        "mode": run.info.get("mode"),
        "interrupted": run.info.get("interrupted", False),
    }


def numbers(row: Row) -> dict[str, Any]:
    """A row of a comparison, nats per row of data."""
    ll = row.log_likelihood
    return {
        "name": row.name,
        "log_likelihood": {
            "mean": ll.mean,
            "standard_error": ll.standard_error,
            "monte_carlo_error": ll.mc_error,
            "rows": len(ll.rows),
        },
        "bound": row.bound,
        "gap": row.gap,
        "r_hat": row.r_hat,
        "raw_r_hat": row.raw_r_hat,
        "mean_error": row.mean_error,
        "sd_error": row.sd_error,
        "reference": row.reference,
        "ess_per_second": row.ess_per_second,
        "spread": row.spread,
        "seconds": row.seconds,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run may use."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> str:
    """Processor, cores that this process may use, and JAX's devices where they are not the processor."""
    import jax

    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = [d.device_kind for d in jax.devices() if d.platform != "cpu"]
    return ", ".join([model, f"{cores} core{'s' if cores != 1 else ''}", platform.system(), *devices])
