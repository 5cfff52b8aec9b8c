r"""What a denoising network is asked for: the noise, the data, or a rotation of the two.

    x_t = a x_0 + s e,    a = sqrt(abar_t), s = sqrt(1 - abar_t), e ~ N(0, I)

Each answer gives the other two: for the velocity v = a e - s x_0, with a² + s² = 1, the noise is s x_t + a v and the
data are a x_t - s v. A network that is
off by d in what it is asked for is off by ``ratio`` times d in the noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Prediction(Protocol):
    """A frozen value: arrays a and s broadcast against rows."""

    def target(self, x_0: Any, noise: Any, a: Any, s: Any) -> Any: ...

    def noise(self, output: Any, x_t: Any, a: Any, s: Any) -> Any: ...

    def data(self, output: Any, x_t: Any, a: Any, s: Any) -> Any: ...

    def ratio(self, a: Any, s: Any) -> Any: ...


@dataclass(frozen=True)
class PredictNoise:
    """The network puts out e, which is hard to tell where there is little of it.

    What it says of the data, (x_t - s e) / a, is worth little where a is near 0, as at the end of ``CosineSchedule``:
    take ``PredictVelocity()`` for large steps of DDIM there.

    References
    ----------
    Denoising Diffusion Probabilistic Models (Ho, Jain and Abbeel, 2020).
    """

    def target(self, x_0: Any, noise: Any, a: Any, s: Any) -> Any:
        return noise

    def noise(self, output: Any, x_t: Any, a: Any, s: Any) -> Any:
        return output

    def data(self, output: Any, x_t: Any, a: Any, s: Any) -> Any:
        return (x_t - s * output) / a

    def ratio(self, a: Any, s: Any) -> Any:
        return 1.0 + 0.0 * a


@dataclass(frozen=True)
class PredictData:
    """The network puts out x_0."""

    def target(self, x_0: Any, noise: Any, a: Any, s: Any) -> Any:
        return x_0

    def noise(self, output: Any, x_t: Any, a: Any, s: Any) -> Any:
        return (x_t - a * output) / s

    def data(self, output: Any, x_t: Any, a: Any, s: Any) -> Any:
        return output

    def ratio(self, a: Any, s: Any) -> Any:
        return a / s


@dataclass(frozen=True)
class PredictVelocity:
    """The network puts out v = a e - s x_0, of the same size at every t.

    References
    ----------
    Progressive Distillation for Fast Sampling of Diffusion Models (Salimans and Ho, 2022).
    """

    def target(self, x_0: Any, noise: Any, a: Any, s: Any) -> Any:
        return a * noise - s * x_0

    def noise(self, output: Any, x_t: Any, a: Any, s: Any) -> Any:
        return s * x_t + a * output

    def data(self, output: Any, x_t: Any, a: Any, s: Any) -> Any:
        return a * x_t - s * output

    def ratio(self, a: Any, s: Any) -> Any:
        return a


__all__ = ["PredictData", "PredictNoise", "PredictVelocity", "Prediction"]
