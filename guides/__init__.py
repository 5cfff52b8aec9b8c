"""Ways of guessing latents: programs q(z | x), one family a file."""

from __future__ import annotations

from guides.amortize import amortize
from guides.amortized_bernoulli import AmortizedBernoulli
from guides.amortized_bounded_normal import AmortizedBoundedNormal
from guides.amortized_categorical import AmortizedCategorical
from guides.amortized_flow import AmortizedFlow
from guides.amortized_full_normal import AmortizedFullNormal
from guides.amortized_implicit import AmortizedImplicit
from guides.amortized_normal import AmortizedNormal
from guides.autoregressive_bernoulli import AutoregressiveBernoulli
from guides.conditional_normal import ConditionalNormal
from guides.delta import Delta
from guides.dequantization import UniformDequantization, VariationalDequantization
from guides.empty import empty
from guides.hamiltonian import Hamiltonian
from guides.hierarchical_normal import HierarchicalNormal
from guides.hierarchical_vector_quantized import HierarchicalVectorQuantized
from guides.mean_field import MeanField
from guides.semi_amortized import SemiAmortized
from guides.semi_supervised_normal import SemiSupervisedNormal
from guides.top_down_normal import TopDownNormal
from guides.vector_quantized import VectorQuantized

__all__ = [
    "AmortizedBernoulli",
    "AmortizedBoundedNormal",
    "AmortizedCategorical",
    "AmortizedFlow",
    "AmortizedFullNormal",
    "AmortizedImplicit",
    "AmortizedNormal",
    "AutoregressiveBernoulli",
    "ConditionalNormal",
    "Delta",
    "Hamiltonian",
    "HierarchicalNormal",
    "HierarchicalVectorQuantized",
    "MeanField",
    "SemiAmortized",
    "SemiSupervisedNormal",
    "TopDownNormal",
    "UniformDequantization",
    "VariationalDequantization",
    "VectorQuantized",
    "amortize",
    "empty",
]
