r"""Diffusion: rows of numbers from noise, by a network that takes a little of the noise away at every step.

    x_T ~ N(0, I),    x_{t-1} | x_t ~ N(mu(x_t, t), sigma_t² I)  for t = T … 2,    x | x_1 ~ N(mu(x_1, 1), sigma_1² I)

The latent is the whole path z = (x_1, …, x_T), and the guide is fixed: it adds noise to the data, and has nothing to
learn (``noising``). The bound of the two is an ELBO like any other, and ``SVI(model, model.noising, ELBO(), …)`` is
right, but runs the network T times a row. It is a sum over steps, of which ``Denoising()`` draws one a row.

The data are continuous, of about unit size (images in [-1, 1], dequantized).

References
----------
Deep Unsupervised Learning using Nonequilibrium Thermodynamics (Sohl-Dickstein et al., 2015).
Denoising Diffusion Probabilistic Models (Ho, Jain and Abbeel, 2020).
Classifier-Free Diffusion Guidance (Ho and Salimans, 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpyro
from jax import lax
from jaxtyping import Array, Float, Int
from numpyro import handlers

from ppl_models.diffusion_samplers import Ancestral, Sampler
from ppl_models.networks import check_architecture, check_classes, network
from ppl_models.noise_chains import DenoisingChain, NoisingChain
from ppl_models.noise_schedules import LinearSchedule, NoiseSchedule, Variance
from ppl_models.predictions import Prediction, PredictNoise


@dataclass(frozen=True)
class Diffusion:
    """Denoising diffusion, a program with sites ``z`` (T, D), ``x`` (D,) and parameter ``denoiser``. JAX only.

    Parameters
    ----------
    denoiser
        Architecture that maps x_t, then t / T, then the class as a one-hot vector (zeros: not told) to D numbers,
        such as :class:`ppl_models.networks.TimeMLP` or :class:`ppl_models.networks.UNet`.
    schedule
        Variances of the noise that the steps add: ``LinearSchedule(T)``, ``CosineSchedule(T)``, ``FixedSchedule``.
    prediction
        What the network puts out: ``PredictNoise()``, ``PredictData()`` or ``PredictVelocity()``.
    variance
        sigma_t² of the reverse steps. ``"forward"``, beta_t, is right where the data have a density: the bound
        then closes as steps get smaller. ``"posterior"``, btilde_t, is right where they are one point, and at the
        first steps too small for others: however many steps, some tenths of a nat a dimension stay lost.
    num_classes
        Where rows come with a class ``y``, 0 … num_classes - 1 (or -1: not told); 0 where they do not.

    Raises
    ------
    ValueError
        A field out of range.
    TypeError
        ``denoiser`` is no architecture, or ``schedule`` or ``prediction`` none of those.
    """

    denoiser: Any
    schedule: NoiseSchedule = LinearSchedule()
    prediction: Prediction = PredictNoise()
    variance: Variance = "forward"
    num_classes: int = 0

    def __post_init__(self) -> None:
        check_architecture(numpyro, "denoiser", self.denoiser)
        for name, kind in (("schedule", NoiseSchedule), ("prediction", Prediction)):
            value = getattr(self, name)
            if isinstance(value, type) or not isinstance(value, kind):
                raise TypeError(f"{name} is {value!r}; expected a value such as {kind.__name__}'s in ppl_models.")
        if self.variance not in get_args(Variance):
            raise ValueError(f"variance is {self.variance!r}; expected one of {', '.join(get_args(Variance))}.")
        if isinstance(self.num_classes, bool) or not isinstance(self.num_classes, int) or self.num_classes < 0:
            raise ValueError(f"num_classes is {self.num_classes!r}; expected a whole number of at least 0.")

    def __call__(
        self, x: Float[Array, "batch D"], y: Int[Array, " batch"] | None = None, num_data: int | None = None
    ) -> Any:
        """Sample the path and observe x.

        Parameters
        ----------
        x
            Rows, shape ``(batch, D)``.
        y
            Their classes, shape ``(batch,)``; -1 where they are not told.
        num_data
            Rows in the whole data set, ``batch`` by default.

        Returns
        -------
        Array
            The observed rows.
        """
        chain = self.chain(x.shape, y)
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            z: Any = numpyro.sample("z", chain)  # x_T … x_1
            decoder = chain.step(z[..., 0, :], jnp.ones(z.shape[:-2], jnp.int32))
            return numpyro.sample("x", decoder.to_event(1), obs=x)  # x | x_1

    @property
    def noising(self) -> _Noising:
        """The guide q(z | x), which has no parameters: a value, like the model."""
        return _Noising(self.schedule)

    @property
    def num_evaluations(self) -> int:
        """How often the network is run to draw a row or score a path: T."""
        return len(self.schedule.betas)

    def chain(self, shape: tuple[int, ...], y: Int[Array, " batch"] | None) -> DenoisingChain:
        """The reverse chain of rows of this shape and these classes, inside a program."""
        batch, dim = shape
        if y is not None and not self.num_classes:
            raise ValueError("rows come with classes y, and num_classes is 0: say how many classes there are.")
        if y is not None:
            check_classes(y, self.num_classes, unknown=True)
        run = network(numpyro, "denoiser", self.denoiser, dim + 1 + self.num_classes, dim)
        label = jax.nn.one_hot(jnp.full(batch, -1) if y is None else y, self.num_classes)

        def denoise(x_t: Float[Array, "*rows D"], t: Int[Array, "*rows"]) -> Float[Array, "*rows D"]:
            *rows, _ = x_t.shape
            told = [x_t, jnp.asarray(t, x_t.dtype)[..., None] / self.num_evaluations]
            if self.num_classes:  # rows come first, then perhaps their steps
                steps = (1,) * (len(rows) - 1)
                told += [jnp.broadcast_to(label.reshape(batch, *steps, -1), (*rows, self.num_classes))]
            return run(jnp.concatenate(told, axis=-1))

        return DenoisingChain(denoise, self.schedule, self.prediction, self.variance, (batch,), dim)

    def fitted(self, params: dict[str, Any], shape: tuple[int, ...], y: Int[Array, " batch"] | None) -> DenoisingChain:
        """The reverse chain at these parameters."""
        with handlers.block(), handlers.substitute(data=params):
            return self.chain(shape, y)

    def draw(
        self,
        key: Array,
        params: dict[str, Any],
        shape: tuple[int, int],
        y: Int[Array, " batch"] | None = None,
        sampler: Sampler = Ancestral(),
        *,
        expected: bool = False,
    ) -> Float[Array, "batch D"]:
        """New rows, by one scan over the steps, of which only the last state is kept.

        Parameters
        ----------
        key, params
            Randomness and weights.
        shape
            ``(batch, D)``.
        y
            Their classes.
        sampler
            ``Ancestral()`` follows the model; ``DDIM(50)`` takes 50 larger steps.
        expected
            The mean of x given x_1, without the noise of the last step.
        """
        key_start, key_steps = jax.random.split(key)
        start = jax.random.normal(key_start, shape)
        return sampler(key_steps, self._guided(params, shape, y, sampler.guidance), start, expected=expected)

    def bound_terms(
        self, key: Array, params: dict[str, Any], x: Float[Array, "batch D"], y: Int[Array, " batch"] | None = None
    ) -> Float[Array, "steps batch"]:
        """The terms of the bound on log p(x) in nats, one draw of the noise at each: their sum over steps is the bound.

        Returns
        -------
        Array
            Shape ``(T + 1, batch)``: log p(x | x_1), then minus the KL divergence of each step t = 2 … T, and
            that of q(x_T | x) from N(0, I), which has no noise.
        """
        chain = self.fitted(params, x.shape, y)

        def term(_: None, given: tuple[Array, Array]) -> tuple[None, Array]:
            t, key = given
            noise = jax.random.normal(key, x.shape, x.dtype)
            return None, chain.terms(x, jnp.full(len(x), t), noise)[0]

        steps = jnp.arange(1, self.num_evaluations + 1)
        _, terms = lax.scan(term, None, (steps, jax.random.split(key, len(steps))))
        return jnp.concatenate([terms, chain.last_term(x)[None]])

    def _guided(
        self, params: dict[str, Any], shape: tuple[int, ...], y: Int[Array, " batch"] | None, guidance: float
    ) -> DenoisingChain:
        """The reverse chain whose noise is (1 + w) e(x_t, t, y) - w e(x_t, t), for guidance w."""
        chain = self.fitted(params, shape, y)
        if not guidance:
            return chain
        if y is None:
            raise ValueError(f"guidance is {guidance}, which strengthens a class: give the classes y of the rows.")
        free = self.fitted(params, shape, None)

        def denoise(x_t: Array, t: Array) -> Array:  # of noise, data and velocity alike: each is affine in the noise
            return (1 + guidance) * chain.network(x_t, t) - guidance * free.network(x_t, t)

        return DenoisingChain(denoise, self.schedule, self.prediction, self.variance, chain.batch_shape, chain.dim)


@dataclass(frozen=True)
class _Noising:
    """The guide q(z | x) = prod_t N(x_t | sqrt(alpha_t) x_{t-1}, beta_t I)."""

    schedule: NoiseSchedule

    def __call__(
        self, x: Float[Array, "batch D"], y: Int[Array, " batch"] | None = None, num_data: int | None = None
    ) -> Any:
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            return numpyro.sample("z", NoisingChain(x, self.schedule))


__all__ = ["Diffusion"]
