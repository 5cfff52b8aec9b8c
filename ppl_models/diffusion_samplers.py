r"""Ways from noise to a row: all the model's steps with their noise, or fewer and larger ones with less of it.

    x0 = (x_t - s_t e) / a_t                                   the data that the network sees in x_t
    Ancestral   x_{t-1} = mu(x_t, t) + sigma_t xi              the model itself
    DDIM        x_u = a_u x0 + sqrt(s_u² - tau²) e + tau xi    for any u < t

with a_t = sqrt(abar_t), s_t² = 1 - abar_t and tau = eta s_u / s_t sqrt(1 - abar_t / abar_u). At eta = 1, one step at a
time, DDIM is the model with variances btilde_t; at eta = 0 it is a map, which has an inverse as far as small steps go:
it gives a row a latent x_T, from which it is had back (``encode``), and between which one can interpolate.

References
----------
Denoising Diffusion Implicit Models (Song, Meng and Ermon, 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from ppl_models.noise_chains import DenoisingChain, at, mean
from ppl_models.noise_schedules import levels


@runtime_checkable
class Sampler(Protocol):
    """A frozen value: from x_T and the reverse chain to rows, by one scan."""

    @property
    def guidance(self) -> float: ...

    def __call__(
        self, key: Array, chain: DenoisingChain, start: Float[Array, "batch D"], *, expected: bool = False
    ) -> Float[Array, "batch D"]: ...


@dataclass(frozen=True)
class Ancestral:
    """The model's own steps, t = T … 1.

    Parameters
    ----------
    guidance
        w of classifier-free guidance; above 0 draws are more typical of their class, and less varied, and no longer
        the model's.
    limits
        What the network sees as the data is held between these, such as ``(-1, 1)`` of pixels: a draw that has left
        their range is led back, where by itself it may run off. Nor are draws then the model's.
    """

    guidance: float = 0.0
    limits: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _check(self)

    def __call__(
        self, key: Array, chain: DenoisingChain, start: Float[Array, "batch D"], *, expected: bool = False
    ) -> Float[Array, "batch D"]:
        """Rows from x_T; ``expected`` leaves out the noise of the last step."""

        def step(x_t: Array, given: tuple[Array, Array]) -> tuple[Array, None]:
            t, key = given
            steps = jnp.full(len(x_t), t)
            spread = jnp.where((t == 1) & expected, 0.0, at(np.sqrt(chain.variances), steps))
            centre = mean(levels(chain.schedule), x_t, steps, _seen(chain, x_t, steps, self.limits)[1])
            return centre + spread * jax.random.normal(key, x_t.shape, x_t.dtype), None

        steps = jnp.arange(chain.num_steps, 0, -1)
        return lax.scan(step, start, (steps, jax.random.split(key, len(steps))))[0]


@dataclass(frozen=True)
class DDIM:
    """``num_steps`` steps, spread evenly over T, to the data that the network sees at the last.

    Parameters
    ----------
    num_steps
        At most T.
    eta
        Share of noise, from 0 (none: a map) to 1.
    guidance
        w of classifier-free guidance.
    limits
        Between which the data that the network sees are held: see :class:`Ancestral`.
    """

    num_steps: int = 50
    eta: float = 0.0
    guidance: float = 0.0
    limits: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.num_steps, bool) or not isinstance(self.num_steps, int) or self.num_steps < 1:
            raise ValueError(f"DDIM: num_steps is {self.num_steps!r}; expected a whole number of at least 1.")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"DDIM: eta is {self.eta!r}; expected 0 to 1.")
        _check(self)

    def __call__(
        self, key: Array, chain: DenoisingChain, start: Float[Array, "batch D"], *, expected: bool = False
    ) -> Float[Array, "batch D"]:
        """Rows from x_T; the last step has no noise, ``expected`` or not."""
        steps = self._steps(chain)
        return self._walk(key, chain, start, steps[::-1])

    def encode(self, chain: DenoisingChain, x: Float[Array, "batch D"]) -> Float[Array, "batch D"]:
        """The latent x_T of rows: the steps taken the other way, without noise."""
        return DDIM(self.num_steps)._walk(jax.random.key(0), chain, x, self._steps(chain))

    def _steps(self, chain: DenoisingChain) -> Int[np.ndarray, " levels"]:
        """0 = t_0 < … < t_n = T."""
        if self.num_steps > chain.num_steps:
            raise ValueError(f"DDIM: num_steps is {self.num_steps}; the model has {chain.num_steps}, so take fewer.")
        return np.round(np.linspace(0, chain.num_steps, self.num_steps + 1)).astype(int)

    def _walk(self, key: Array, chain: DenoisingChain, x: Array, steps: Int[np.ndarray, " levels"]) -> Array:
        known = levels(chain.schedule)
        t, u = np.maximum(steps[:-1], 1), steps[1:]  # from, to; the data, without noise, pass for x_1 to the network
        a, s = known.signal, known.noise
        down = steps[1:] < steps[:-1]
        tau = np.where(down, self.eta * s[u] / s[t] * np.sqrt(np.maximum(1 - (a[t] / a[u]) ** 2, 0)), 0.0)
        turn = np.sqrt(np.maximum(s[u] ** 2 - tau**2, 0))

        def step(x: Array, given: tuple[Array, ...]) -> tuple[Array, None]:
            t, key, keep, turn, tau = given
            data, noise = _seen(chain, x, jnp.full(len(x), t), self.limits)
            x = keep * data + turn * noise
            return (x + tau * jax.random.normal(key, x.shape, x.dtype) if self.eta else x), None

        given = tuple(jnp.asarray(v, x.dtype) for v in (a[u], turn, tau))
        return lax.scan(step, x, (jnp.asarray(t), jax.random.split(key, len(t)), *given))[0]


def interpolate(
    first: Float[Array, "batch D"], last: Float[Array, "batch D"], num_points: int
) -> Float[Array, "num_points batch D"]:
    """Points on the arc between latents x_T, both ends included: on a straight line they would be too near zero.

    sin(share angle) / sin(angle), the weight of ``last``, tends to ``share`` where both ends have one direction.

    References
    ----------
    Denoising Diffusion Implicit Models (Song, Meng and Ermon, 2021), section 5.3.
    """
    sizes = jnp.linalg.norm(first, axis=-1) * jnp.linalg.norm(last, axis=-1)
    angle = jnp.arccos(jnp.clip((first * last).sum(-1) / sizes, -1, 1))[:, None]
    share = jnp.linspace(0.0, 1.0, num_points)[:, None, None]

    def weight(part: Array) -> Array:
        return part * jnp.sinc(part * angle / np.pi) / jnp.sinc(angle / np.pi)  # sinc(u) = sin(pi u) / (pi u), 1 at 0

    return weight(1 - share) * first + weight(share) * last


def _seen(chain: DenoisingChain, x_t: Array, t: Array, limits: tuple[float, float] | None) -> tuple[Array, Array]:
    """The data that the network sees in x_t, within the limits, and the noise that is left."""
    data, noise = chain.found(x_t, t)
    if limits is None:
        return data, noise
    known, data = levels(chain.schedule), jnp.clip(data, *limits)
    return data, (x_t - at(known.signal, t) * data) / at(known.noise, t)


def _check(sampler: Ancestral | DDIM) -> None:
    if not 0 <= sampler.guidance < float("inf"):
        raise ValueError(f"guidance is {sampler.guidance!r}; expected a number of at least 0.")
    if sampler.limits is not None and not sampler.limits[0] < sampler.limits[1]:
        raise ValueError(f"limits are {sampler.limits}; expected the lower one first, such as (-1, 1).")


__all__ = ["DDIM", "Ancestral", "Sampler", "interpolate"]
