"""The neural blocks that models and guides share: frozen descriptions, and one helper that runs them.

A description says how a network is built once its input and output sizes are known; it holds no
weights. ``network`` gives it weights inside a program, in either engine. Both engines draw them from
the same law: weights U(-a, a) with a = sqrt(6 / (fan_in + fan_out)), biases zero.

References
----------
Understanding the difficulty of training deep feedforward neural networks (Glorot & Bengio, 2010).
"""

from .apply import check_architecture, module, network
from .bits import bits
from .codes import check_code_levels, check_codes, first_codebook, refined
from .conv import ConvDecoder, ConvEncoder
from .critic import ClassifyingCritic, Critic
from .fitted import fitted_network
from .flow_architectures import MAF, NeuralSpline, Planar, RealNVP
from .flows import check_flow, flow
from .grey_levels import check_levels, levels_of
from .grid import GridDecoder, GridEncoder
from .layers import softplus
from .mlp import MLP, Linear
from .rows import (
    beside,
    check_classes,
    check_count,
    check_layers,
    diagonal_normal,
    loc_scale,
    one_hot,
    row_shape,
    where,
)
from .sequence import SequenceDecoder, SequenceEncoder
from .spectral import SpectralNorm
from .time_embedding import FourierTime, SinusoidalTime, TimeMLP
from .unet import UNet

__all__ = [
    "MAF",
    "MLP",
    "ClassifyingCritic",
    "ConvDecoder",
    "ConvEncoder",
    "Critic",
    "FourierTime",
    "GridDecoder",
    "GridEncoder",
    "Linear",
    "NeuralSpline",
    "Planar",
    "RealNVP",
    "SequenceDecoder",
    "SequenceEncoder",
    "SinusoidalTime",
    "SpectralNorm",
    "TimeMLP",
    "UNet",
    "beside",
    "bits",
    "check_architecture",
    "check_classes",
    "check_code_levels",
    "check_codes",
    "check_count",
    "check_flow",
    "check_layers",
    "check_levels",
    "diagonal_normal",
    "first_codebook",
    "fitted_network",
    "flow",
    "levels_of",
    "loc_scale",
    "module",
    "network",
    "one_hot",
    "refined",
    "row_shape",
    "softplus",
    "where",
]
