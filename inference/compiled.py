"""``jax.jit`` as this package uses it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer

# By default XLA's CPU runtime (jaxlib 0.10) runs what does not depend on each other side by side, and can wait for
# ever: a gradient step of a mixture of ten full covariances in 64 dimensions did so every time, on two cores.
# And it gives convolutions to a library that uses one core for them; without it they use all, and so do the products
# beside them: a gradient step through 3x3 convolutions takes half the time (benchmarks/convolution_step.py).
OPTIONS = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
}


def jit(function: Callable[..., Any], **options: int | str) -> Callable[..., Any]:
    """``jax.jit`` with ``OPTIONS``, and these options of the compiler besides.

    Inside another compiled function it is that one's options that hold.
    """
    compiled, nested = jax.jit(function, compiler_options=OPTIONS | options), jax.jit(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        inside = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((args, kwargs)))
        return (nested if inside else compiled)(*args, **kwargs)

    return call


__all__ = ["jit"]
