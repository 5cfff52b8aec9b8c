"""Distributions with pathwise gradients where NumPyro's have none, for guides (and models)."""

from __future__ import annotations

from guides.distributions.normal_mixtures import MixtureOfDiagonalNormals, MixtureOfNormals
from guides.distributions.von_mises import VonMises

__all__ = ["MixtureOfDiagonalNormals", "MixtureOfNormals", "VonMises"]
