"""p(x, z): one file per model family, a plain program written once."""

from ppl_models import datasets
from ppl_models.gaussian_mixture import GaussianMixture
from ppl_models.ppca import PPCA, FactorAnalysis
from ppl_models.vae import VAE

__all__ = ["PPCA", "VAE", "FactorAnalysis", "GaussianMixture", "datasets"]
