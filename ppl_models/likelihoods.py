"""p(x | outputs of a decoder): what stands on a row of pixels, given the numbers that a network put out.

A likelihood is a value that says how many decoder outputs it needs per pixel, and makes of them a
distribution over rows, in either engine. Several outputs per pixel come as whole rows, one after
the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpyro
from array_api_compat import array_namespace

from ppl_models.networks import bits, check_count, check_levels, softplus


@runtime_checkable
class Likelihood(Protocol):
    """A frozen value: decoder outputs to a distribution over rows of pixels.

    ``outputs_per_pixel`` sizes the decoder. ``likelihood(ppl, outputs)`` takes outputs of shape
    ``(..., outputs_per_pixel * pixels)`` and returns a distribution with event shape ``(pixels,)``;
    it may have parameter sites of its own.
    """

    @property
    def outputs_per_pixel(self) -> int: ...

    def __call__(self, ppl: ModuleType, outputs: Any) -> Any: ...


def check_likelihood(likelihood: Any) -> None:
    """Refuse, when a program is made, what is no likelihood."""
    if isinstance(likelihood, type) or not isinstance(likelihood, Likelihood):
        raise TypeError(f"likelihood is {likelihood!r}; expected a value such as Bernoulli().")


@dataclass(frozen=True)
class Bernoulli:
    """x_d ~ Bernoulli(sigmoid(output_d)), for binary images."""

    @property
    def outputs_per_pixel(self) -> int:
        return 1

    def __call__(self, ppl: ModuleType, outputs: Any) -> Any:
        """Distribution over rows; ``outputs`` are logits, shape ``(..., pixels)``."""
        return bits(ppl, outputs).to_event(1)


@dataclass(frozen=True)
class Gaussian:
    """x_d ~ N(output_d, scale²) with a scale that is given.

    Parameters
    ----------
    scale
        Standard deviation of every pixel, in the unit of x. Minimising squared error plus beta
        times the KL divergence is this with scale² = beta / 2.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(scale=self.scale)

    @property
    def outputs_per_pixel(self) -> int:
        return 1

    def __call__(self, ppl: ModuleType, outputs: Any) -> Any:
        """Distribution over rows; ``outputs`` are means, shape ``(..., pixels)``."""
        return ppl.distributions.Normal(outputs, self.scale).to_event(1)


@dataclass(frozen=True)
class GaussianSharedScale:
    """x_d ~ N(output_d, scale²) with one scale for all pixels, learned: parameter site ``scale``.

    Parameters
    ----------
    init_scale
        Standard deviation to start from, in the unit of x.
    floor
        The scale stays above this. A density has no upper bound when its scale may vanish.

    References
    ----------
    Simple and Effective VAE Training with Calibrated Decoders (Rybkin, Daniilidis & Levine, 2021).
    """

    init_scale: float = 0.5
    floor: float = 1e-2

    def __post_init__(self) -> None:
        _check_positive(init_scale=self.init_scale, floor=self.floor)
        if self.init_scale <= self.floor:
            raise ValueError(f"init_scale is {self.init_scale}; expected more than the floor, {self.floor}.")

    @property
    def outputs_per_pixel(self) -> int:
        return 1

    def __call__(self, ppl: ModuleType, outputs: Any) -> Any:
        """Distribution over rows; ``outputs`` are means, shape ``(..., pixels)``."""
        above_floor = ppl.distributions.constraints.greater_than(self.floor)
        start = array_namespace(outputs).full_like(outputs.reshape(-1)[0], self.init_scale)
        scale = ppl.param("scale", start, constraint=above_floor)
        return ppl.distributions.Normal(outputs, scale).to_event(1)


@dataclass(frozen=True)
class GaussianPixelScale:
    """x_d ~ N(output_d, scale_d²) with scale_d = floor + softplus(output_{D+d}).

    Parameters
    ----------
    floor
        Least standard deviation, in the unit of x. Without it a pixel that never changes (a corner
        of every digit) takes the scale to zero and the density to infinity, and the rest of the
        image stops to matter. The default is about 2.5 of 256 grey levels of an image in [0, 1].
    """

    floor: float = 1e-2

    def __post_init__(self) -> None:
        _check_positive(floor=self.floor)

    @property
    def outputs_per_pixel(self) -> int:
        return 2

    def __call__(self, ppl: ModuleType, outputs: Any) -> Any:
        """Distribution over rows; ``outputs`` are means, then raw scales, shape ``(..., 2 * pixels)``."""
        pixels = outputs.shape[-1] // 2
        loc, raw = outputs[..., :pixels], outputs[..., pixels:]
        return ppl.distributions.Normal(loc, self.floor + softplus(raw)).to_event(1)


@dataclass(frozen=True)
class Categorical:
    """x_d ~ any distribution over the grey levels 0, 1/(L-1), ..., 1, its logits the outputs.

    A level knows nothing of its neighbours, and a pixel needs L outputs: for few levels, as scikit-learn's digits have.

    Parameters
    ----------
    levels
        L, at least 2.
    """

    levels: int

    def __post_init__(self) -> None:
        check_levels(self.levels)

    @property
    def outputs_per_pixel(self) -> int:
        return self.levels

    def __call__(self, ppl: ModuleType, outputs: Any) -> Any:
        """Distribution over rows; ``outputs`` are logits, the lowest level's first, ``(..., levels * pixels)``."""
        return _grey_levels(ppl).GreyLevels(_by_pixel(outputs, self.levels)).to_event(1)


@dataclass(frozen=True)
class DiscretizedLogisticMixture:
    """x_d ~ sum_k w_dk Logistic(m_dk, s_dk), rounded to the grey levels 0, 1/(L-1), ..., 1 and cut off at their ends.

    Unlike a density of grey levels it is a likelihood of the images as they are, in nats, bounded by zero.

    Parameters
    ----------
    num_mixtures
        Logistics of a pixel, each with a logit, a location, and a scale before its softplus, in the unit of x.
    levels
        L, at least 2.
    floor
        The scales stay above this, in the unit of x.

    References
    ----------
    PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other Modifications (Salimans,
    Karpathy, Chen & Kingma, 2017).
    """

    num_mixtures: int = 5
    levels: int = 256
    floor: float = 1e-3

    def __post_init__(self) -> None:
        check_count(num_mixtures=self.num_mixtures)
        check_levels(self.levels)
        _check_positive(floor=self.floor)

    @property
    def outputs_per_pixel(self) -> int:
        return 3 * self.num_mixtures

    def __call__(self, ppl: ModuleType, outputs: Any) -> Any:
        """Distribution over rows; ``outputs``: logits, locations, raw scales, ``(..., 3 * num_mixtures * pixels)``."""
        k, values = self.num_mixtures, _by_pixel(outputs, self.outputs_per_pixel)
        logits, loc, scale = values[..., :k], values[..., k : 2 * k], self.floor + softplus(values[..., 2 * k :])
        return _grey_levels(ppl).LogisticLevels(logits, loc, scale, self.levels).to_event(1)


def _by_pixel(outputs: Any, count: int) -> Any:
    """Rows one after the other, ``(..., count * pixels)``, as ``(..., pixels, count)``."""
    rows = outputs.reshape((*outputs.shape[:-1], count, outputs.shape[-1] // count))
    return array_namespace(outputs).permute_dims(rows, (*range(rows.ndim - 2), rows.ndim - 1, rows.ndim - 2))


def _grey_levels(ppl: ModuleType) -> Any:
    """The engine's distributions over grey levels."""
    if ppl.distributions is numpyro.distributions:
        from ppl_models import grey_levels
    else:
        from ppl_models import grey_levels_torch as grey_levels
    return grey_levels


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} is {value}; expected a positive number.")
