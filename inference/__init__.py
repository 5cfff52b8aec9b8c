"""How to infer: one file per algorithm, one loop that drives them all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inference.adversarial import Adversarial
from inference.adversarial_variational_bayes import AdversarialVariationalBayes
from inference.alternating import Alternating, LaggingEncoder
from inference.annealed_evidence import annealed_evidence, simulated_evidence
from inference.bits_back import bits_back
from inference.bracket import Bracket, bracket
from inference.calibrate import calibrate
from inference.check import check
from inference.chees import ChEES
from inference.code_labels import label_codes
from inference.compare import compare
from inference.contrastive_divergence import ContrastiveDivergence, couplings
from inference.denoising_posterior import StepBound, step_bound
from inference.diagnose import diagnose
from inference.disentanglement import mutual_information_gap
from inference.em import EM
from inference.errors import BadData, CorruptFile, Incompatible, NonFinite
from inference.fit import fit
from inference.gibbs import Gibbs
from inference.gradient_report import gradient_report
from inference.greedy import greedy
from inference.inference_gaps import inference_gaps
from inference.maximum_likelihood import MaximumLikelihood
from inference.nuts import NUTS
from inference.result import Fit
from inference.simulate import simulate
from inference.stepwise_em import StepwiseEM
from inference.surgery import elbo_surgery
from inference.svi import SVI
from inference.tempering import Tempering
from inference.up_down import UpDown
from inference.variational_bayes import VariationalBayes
from inference.weight_average import averaged
from inference.with_model import with_model

if TYPE_CHECKING:
    from inference.pyro_nuts import PyroNUTS
    from inference.pyro_svi import PyroSVI

__all__ = [
    "EM",
    "NUTS",
    "SVI",
    "Adversarial",
    "AdversarialVariationalBayes",
    "Alternating",
    "BadData",
    "Bracket",
    "ChEES",
    "ContrastiveDivergence",
    "CorruptFile",
    "Fit",
    "Gibbs",
    "Incompatible",
    "LaggingEncoder",
    "MaximumLikelihood",
    "NonFinite",
    "PyroNUTS",
    "PyroSVI",
    "StepBound",
    "StepwiseEM",
    "Tempering",
    "UpDown",
    "VariationalBayes",
    "annealed_evidence",
    "averaged",
    "bits_back",
    "bracket",
    "calibrate",
    "check",
    "compare",
    "couplings",
    "diagnose",
    "elbo_surgery",
    "fit",
    "gradient_report",
    "greedy",
    "inference_gaps",
    "label_codes",
    "mutual_information_gap",
    "simulate",
    "simulated_evidence",
    "step_bound",
    "with_model",
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
