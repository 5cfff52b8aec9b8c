"""How to infer: one file per algorithm, one loop that drives them all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inference.check import check
from inference.compare import compare
from inference.em import EM
from inference.errors import BadData, CorruptFile, Incompatible, NonFinite
from inference.fit import fit
from inference.maximum_likelihood import MaximumLikelihood
from inference.nuts import NUTS
from inference.result import Fit
from inference.svi import SVI

if TYPE_CHECKING:
    from inference.pyro_nuts import PyroNUTS
    from inference.pyro_svi import PyroSVI

__all__ = [
    "EM",
    "NUTS",
    "SVI",
    "BadData",
    "CorruptFile",
    "Fit",
    "Incompatible",
    "MaximumLikelihood",
    "NonFinite",
    "PyroNUTS",
    "PyroSVI",
    "check",
    "compare",
    "fit",
]


def __getattr__(name: str) -> Any:
    """Load the Pyro algorithms, and torch with them, only when asked for."""
    if name == "PyroSVI":
        from inference.pyro_svi import PyroSVI

        return PyroSVI
    if name == "PyroNUTS":
        from inference.pyro_nuts import PyroNUTS

        return PyroNUTS
    raise AttributeError(f"module 'inference' has no attribute {name!r}")
