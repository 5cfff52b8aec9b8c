"""The guide that guesses nothing: what is left is summed out, or there is nothing to guess."""

from __future__ import annotations

from typing import Any


def empty(*args: Any, **kwargs: Any) -> None:
    """Sample nothing. With ``SVI`` this is maximum likelihood (discrete latents summed out exactly)."""
