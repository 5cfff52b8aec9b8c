"""p(z) over codes: what stands on a vector, a sequence or a grid of K-valued latents before a row is seen.

A prior is a value, called inside a program with the shape of the latents and K. It returns a distribution over
one-hot codes, event shape ``(*latent_shape, K)``, and may have parameter sites of its own.

A prior with parameters may be learned with the model, or afterwards from codes alone: :class:`Codes` is the program
whose rows are codes. Of a hierarchy a prior of each level is learned given the levels above,

    p(z_1, ..., z_L | y) = prod_l p(z_l | z_1, ..., z_{l-1}, y),    y: the class, if there is one.

References
----------
Generating Diverse High-Fidelity Images with VQ-VAE-2 (Razavi, van den Oord & Vinyals, 2019).
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from ppl_models.autoregressive import Centre, check_num_classes, class_context, flat_context
from ppl_models.networks import module
from ppl_models.networks.causal import GatedPixelNetwork, check_kernels
from ppl_models.networks.layers import check_sizes
from ppl_models.networks.masked_codes import MaskedCodeNetwork


@runtime_checkable
class CodePrior(Protocol):
    """A frozen value: the shape of the latents and K to a distribution over one-hot codes.

    One that can depend on something takes it as ``context``, of shape ``(batch, positions, features)``, or
    ``(batch, 1, features)`` where it is the same for all positions.
    """

    def __call__(self, latent_shape: tuple[int, ...], num_codes: int) -> Any: ...


@dataclass(frozen=True)
class UniformCodes:
    """Every code as likely as any other, at every position."""

    def __call__(self, latent_shape: tuple[int, ...], num_codes: int) -> Any:
        """log p(z) = -P log K, with P positions."""
        return one_hot(jnp.zeros((*latent_shape, num_codes)))


@dataclass(frozen=True)
class FactorizedCodes:
    """Positions independent, each with frequencies of its own: parameter ``prior_logits``."""

    def __call__(self, latent_shape: tuple[int, ...], num_codes: int) -> Any:
        """log p(z) = sum_p log softmax(b_p)_{z_p}."""
        logits: Any = numpyro.param("prior_logits", jnp.zeros((*latent_shape, num_codes)))
        return one_hot(logits)


@dataclass(frozen=True)
class AutoregressiveCodes:
    """Each position given those before it, row by row, by a masked dense network: parameter ``prior``.

    Parameters
    ----------
    width, depth
        Hidden width, and hidden layers.

    References
    ----------
    MADE: Masked Autoencoder for Distribution Estimation (Germain, Gregor, Murray & Larochelle, 2015).
    """

    width: int = 256
    depth: int = 1

    def __post_init__(self) -> None:
        check_sizes("width", (self.width,))
        check_sizes("depth", (self.depth,))

    def __call__(self, latent_shape: tuple[int, ...], num_codes: int, context: Any = None) -> Any:
        """log p(z | c) = sum_p log softmax(f_p(z_1, ..., z_{p-1}, c))_{z_p}."""
        given = _no_context() if context is None else context
        sizes = (prod(latent_shape), num_codes, prod(given.shape[-2:]), (self.width,) * self.depth)
        return OneHotInTurn(module("prior", partial(MaskedCodeNetwork, *sizes)), given, latent_shape, num_codes)


@dataclass(frozen=True)
class PixelCodes:
    """Each position given those above and to the left, by a gated PixelCNN over the codes: parameter ``prior``.

    Its weights serve every position of the grid; a position has nothing of its own but biases in the first layer. A
    sequence is a grid of one row.

    Parameters
    ----------
    channels, kernel_sizes
        As of :class:`ppl_models.PixelCNN`.

    References
    ----------
    Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016).
    """

    channels: int = 64
    kernel_sizes: tuple[int, ...] = (5, 3, 3)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kernel_sizes", tuple(self.kernel_sizes))
        check_sizes("channels", (self.channels,))
        check_kernels(self.kernel_sizes)

    def __call__(self, latent_shape: tuple[int, ...], num_codes: int, context: Any = None) -> Any:
        """log p(z | c) = sum_p log softmax(f_p(z_1, ..., z_{p-1}, c_p))_{z_p}."""
        if not latent_shape:
            raise ValueError("latent_shape is (), one code for the row; expected a sequence or a grid for PixelCodes.")
        given = _no_context() if context is None else context
        build = partial(
            GatedPixelNetwork,
            prod(latent_shape),
            num_codes,
            given.shape[-1],
            Centre(0.0, 1.0),  # one-hot codes enter as they are
            image_shape=(1, *latent_shape)[-2:],
            channels=self.channels,
            kernel_sizes=self.kernel_sizes,
            entry=num_codes,
        )
        return OneHotInTurn(module("prior", build), given, latent_shape, num_codes)


@dataclass(frozen=True)
class Codes:
    """The program of a prior by itself: rows of one-hot codes, site ``x``, and their class ``y`` if there are any.

    Parameters
    ----------
    prior
        A value such as ``AutoregressiveCodes()``; its parameters have the names they have in a model with that prior.
    num_classes
        With classes, rows come with labels ``y`` below this number, each class as likely as the others:
        p(x, y) = p(x | y) / num_classes.

    Raises
    ------
    TypeError
        ``prior`` is none, or depends on nothing and there are classes.
    """

    prior: CodePrior = AutoregressiveCodes()
    num_classes: int = 0

    def __post_init__(self) -> None:
        check_prior(self.prior)
        check_num_classes(self.num_classes)
        if self.num_classes:
            self._check_conditional("classes")

    def __call__(
        self, x: Float[Array, "batch ... codes"], y: Any = None, above: Any = None, num_data: int | None = None
    ) -> Any:
        """Observe codes.

        Parameters
        ----------
        x
            One-hot codes, shape ``(batch, *latent_shape, num_codes)``.
        y
            Labels, whole numbers below ``num_classes``, shape ``(batch,)``; none without classes.
        above
            What else is known at each position, shape ``(batch, *latent_shape, features)``: of a hierarchy the codes
            of the levels above (:meth:`ppl_models.HierarchicalVQVAE.above`).
        num_data
            Rows in the whole data set, ``batch`` by default.

        Returns
        -------
        Array
            The observed codes.
        """
        batch, *shape, num_codes = x.shape
        shape = tuple(shape)
        with numpyro.plate("data", num_data or batch, subsample_size=batch):
            given = class_context(self.num_classes, x, y)  # (batch, 1, classes)
            if above is not None:
                self._check_conditional("codes above")
                if above.shape[:-1] != x.shape[:-1]:
                    raise ValueError(f"above has shape {above.shape}; expected {x.shape[:-1]}, then features, as x.")
                above = above.reshape(batch, prod(shape), -1)
                given = jnp.concatenate([jnp.broadcast_to(given, (batch, prod(shape), given.shape[-1])), above], -1)
            prior: Any = self.prior
            return numpyro.sample("x", prior(shape, num_codes, *([given] if given.shape[-1] else [])), obs=x)

    def _check_conditional(self, what: str) -> None:
        if "context" not in inspect.signature(self.prior).parameters:
            raise TypeError(
                f"prior is {self.prior!r}, which depends on nothing; with {what} expected PixelCodes() or such."
            )


def one_hot(logits: Any) -> Any:
    """Independent one-hot codes, event shape that of the logits."""
    return dist.Multinomial(1, logits=logits, total_count_max=1).to_event(jnp.ndim(logits) - 1)


def check_prior(prior: Any) -> None:
    """Refuse, when a program is made, what makes no distribution over codes."""
    if isinstance(prior, type) or not callable(prior):
        raise TypeError(f"prior is {prior!r}; expected a value such as UniformCodes() or AutoregressiveCodes().")


class OneHotInTurn(dist.Distribution):
    """One-hot codes of which each has logits that a network makes of those before it.

    Parameters
    ----------
    network
        ``network(codes, context)`` gives the logits of all positions, ``(positions, num_codes)``;
        ``unroll(choose, context)`` draws them in turn. Positions are ordered as in memory.
    context
        What the codes depend on, shape ``(*batch, positions or 1, features)``.
    latent_shape
        Shape of the latents.
    num_codes
        K.
    """

    arg_constraints = {}
    pytree_data_fields = ("network", "context")
    pytree_aux_fields = ("latent_shape", "num_codes")

    def __init__(
        self,
        network: Any,
        context: Float[Array, "*batch positions features"],
        latent_shape: tuple[int, ...],
        num_codes: int,
        *,
        validate_args: bool | None = None,
    ):
        self.network, self.context = network, context
        self.latent_shape, self.num_codes = latent_shape, num_codes
        super().__init__(context.shape[:-2], (*latent_shape, num_codes), validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:
        return False

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.multinomial(1), len(self.latent_shape))

    def log_prob(self, value: Any, intermediates: Any = None) -> Float[Array, "..."]:
        batch = jnp.broadcast_shapes(jnp.shape(value)[: jnp.ndim(value) - self.event_dim], self.batch_shape)
        z = jnp.broadcast_to(value, batch + self.event_shape).reshape(-1, prod(self.latent_shape), self.num_codes)
        logits = jax.vmap(self.network)(z, self._contexts(batch))
        return jnp.sum(z * jax.nn.log_softmax(logits), axis=(-2, -1)).reshape(batch)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        batch = sample_shape + self.batch_shape

        def row(key: Array, context: Array) -> Array:
            def choose(p: Array, logits: Array) -> Array:
                return jax.nn.one_hot(jax.random.categorical(jax.random.fold_in(key, p), logits), self.num_codes)

            return self.network.unroll(choose, context)

        z = jax.vmap(row)(jax.random.split(key, prod(batch)), self._contexts(batch))
        return z.reshape(batch + self.event_shape)

    def _contexts(self, batch: tuple[int, ...]) -> Float[Array, "rows positions features"]:
        return flat_context(jnp.broadcast_to(self.context, batch + self.context.shape[-2:]))


def _no_context() -> Float[Array, "1 0"]:
    """The context of codes that depend on nothing else, whatever their batch."""
    return jnp.zeros((1, 0))
