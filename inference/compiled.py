"""``jax.jit`` as this package uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

# By default XLA's CPU runtime (jaxlib 0.10) runs what does not depend on each other side by side, and can wait for
# ever: a gradient step of a mixture of ten full covariances in 64 dimensions did so every time, on two cores.
OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def jit(function: Callable[..., Any], **options: int | str) -> Any:
    """``jax.jit`` with a scheduler that does not hang, and these options of the compiler besides."""
    return jax.jit(function, compiler_options=OPTIONS | options)


__all__ = ["jit"]
