"""What is done to a batch inside the compiled step, as values: data that are the same have equal transforms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class HiddenClasses:
    """A share of the rows is not told its class: y is -1 there, so that a model also learns to do without.

    Parameters
    ----------
    rate
        The share, from 0 to 1.

    References
    ----------
    Classifier-Free Diffusion Guidance (Ho and Salimans, 2022).
    """

    rate: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate is {self.rate!r}; expected a share from 0 to 1.")

    def __call__(self, key: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with some of its ``y`` at -1."""
        import jax
        import jax.numpy as jnp

        y = batch["y"]
        return batch | {"y": jnp.where(jax.random.bernoulli(key, self.rate, y.shape), -1, y)}


@dataclass(frozen=True)
class InTurn:
    """Several transforms, one after the other.

    Parameters
    ----------
    transforms
        Functions of a key and a batch.
    """

    transforms: tuple[Callable[[Any, dict[str, Any]], dict[str, Any]], ...]

    def __call__(self, key: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch after all of them, each with a key of its own."""
        import jax

        for transform, one in zip(self.transforms, jax.random.split(key, len(self.transforms)), strict=True):
            batch = transform(one, batch)
        return batch


__all__ = ["HiddenClasses", "InTurn"]
