"""Ways of guessing latents: programs q(z | x), one family a file."""

from __future__ import annotations

from guides.amortized_normal import AmortizedNormal
from guides.empty import empty
from guides.mean_field import MeanField

__all__ = ["AmortizedNormal", "MeanField", "empty"]
