"""p(x, z): one file per model family, a plain program written once."""

from ppl_models import datasets
from ppl_models.bayesian_pca import BayesianPCA, effective_dimension
from ppl_models.boltzmann_machine import BoltzmannMachine
from ppl_models.categorical_vae import CategoricalVAE
from ppl_models.causal_cnn import CausalCNN
from ppl_models.code_priors import Codes
from ppl_models.conditional_vae import ConditionalVAE
from ppl_models.convolutional_rbm import ConvolutionalRBM
from ppl_models.cycle_gan import CycleGAN
from ppl_models.deep_belief_network import DeepBeliefNetwork
from ppl_models.deep_boltzmann_machine import DeepBoltzmannMachine
from ppl_models.dequantization import Dequantize, QuantizedFlow, bits_per_dimension
from ppl_models.diffusion import Diffusion
from ppl_models.discrete_vae import DiscreteVAE
from ppl_models.flow import Flow
from ppl_models.gaussian_mixture import GaussianMixture
from ppl_models.gaussian_rbm import GaussianRBM
from ppl_models.generator import Generator
from ppl_models.hierarchical_vae import HierarchicalVAE
from ppl_models.hierarchical_vq_vae import HierarchicalVQVAE
from ppl_models.made import MADE
from ppl_models.pixel_cnn import PixelCNN
from ppl_models.pixel_vae import PixelVAE
from ppl_models.ppca import PPCA, FactorAnalysis
from ppl_models.rbm import RBM
from ppl_models.semi_supervised_vae import SemiSupervisedVAE
from ppl_models.sigmoid_belief_network import SigmoidBeliefNetwork
from ppl_models.vae import VAE
from ppl_models.vq_vae import VQVAE

__all__ = [
    "MADE",
    "PPCA",
    "RBM",
    "VAE",
    "VQVAE",
    "BayesianPCA",
    "BoltzmannMachine",
    "CategoricalVAE",
    "CausalCNN",
    "Codes",
    "ConditionalVAE",
    "ConvolutionalRBM",
    "CycleGAN",
    "DeepBeliefNetwork",
    "DeepBoltzmannMachine",
    "Dequantize",
    "Diffusion",
    "DiscreteVAE",
    "FactorAnalysis",
    "Flow",
    "GaussianMixture",
    "GaussianRBM",
    "Generator",
    "HierarchicalVAE",
    "HierarchicalVQVAE",
    "PixelCNN",
    "PixelVAE",
    "QuantizedFlow",
    "SemiSupervisedVAE",
    "SigmoidBeliefNetwork",
    "bits_per_dimension",
    "datasets",
    "effective_dimension",
]
