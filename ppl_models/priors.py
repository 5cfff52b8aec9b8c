r"""p(z): what a row's latent is drawn from before the row is seen, as a piece to be swapped.

A prior is a value that makes a distribution over vectors of a given length, in either engine. The prior with
the highest mean ELBO for a given encoder is the aggregate posterior,

    mean_n ELBO_n = reconstruction - I(n; z) - KL(q(z) || p(z)),    q(z) = 1/N sum_n q(z | x_n),

so that each of the richer priors here is a way of coming near q(z) without a term for every row (all N of them
would be the training set's optimum, and overfit it).

References
----------
ELBO surgery: yet another way to carve up the variational evidence lower bound (Hoffman & Johnson, 2016).
VAE with a VampPrior (Tomczak & Welling, 2018).
Variational Lossy Autoencoder (Chen et al., 2017), for flows as priors.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import jax
import numpyro
from array_api_compat import array_namespace, device

from ppl_models.networks import MAF, check_count, check_flow, flow


@runtime_checkable
class Prior(Protocol):
    """A frozen value: the length of z to a distribution over z.

    ``prior(ppl, latent_dim, rows)`` is called inside a program, on the rows it observes, and returns a distribution
    with event shape ``(latent_dim,)``, its batch shape empty or that of the rows; it may have parameter sites of its
    own. Of the rows it uses the number of columns, the dtype and the device, and the values only to start from.
    """

    def __call__(self, ppl: ModuleType, latent_dim: int, rows: Any) -> Any: ...


@dataclass(frozen=True)
class StandardNormal:
    """z ~ N(0, I)."""

    def __call__(self, ppl: ModuleType, latent_dim: int, rows: Any) -> Any:
        """Distribution over z, one for each row."""
        zeros = array_namespace(rows).zeros((len(rows), latent_dim), dtype=rows.dtype, device=device(rows))
        return ppl.distributions.Normal(zeros, 1.0).to_event(1)


@dataclass(frozen=True)
class MixturePrior:
    """z ~ sum_k w_k N(m_k, diag(s_k)²): parameter sites ``prior_logits``, ``prior_loc`` and ``prior_scale``.

    It starts near N(0, I): equal weights, m_k ~ N(0, I / 2) and s_k² = 1 / 2.

    Parameters
    ----------
    num_components
        K, at least 1.
    """

    num_components: int

    def __post_init__(self) -> None:
        check_count(num_components=self.num_components)

    def __call__(self, ppl: ModuleType, latent_dim: int, rows: Any) -> Any:
        """Distribution over z; the batch shape is empty."""
        xp, shape = array_namespace(rows), (self.num_components, latent_dim)
        like, half = {"dtype": rows.dtype, "device": device(rows)}, 0.5**0.5
        logits = ppl.param("prior_logits", xp.zeros(shape[:1], **like))
        loc = ppl.param("prior_loc", _start(ppl, lambda noise: half * noise(shape), rows))
        positive = ppl.distributions.constraints.positive
        scale = ppl.param("prior_scale", xp.full(shape, half, **like), constraint=positive)
        return _mixture(ppl, logits, ppl.distributions.Normal(loc, scale).to_event(1))


@dataclass(frozen=True)
class VampPrior:
    """z ~ 1/K sum_k q(z | u_k): the encoder's own guesses at learned pseudo-inputs, parameter site ``pseudo_inputs``.

    The encoder is that of the guide: with ``encoder = AmortizedNormal(...)`` write
    ``SVI(VAE(..., prior=VampPrior(encoder)), encoder, ...)``. Its parameter site has one name in both programs and is
    one parameter. (An objective for each player, or taking turns, counts it to the model.)

    Pseudo-inputs start at the mean row of the first batch, with a little noise, so that the prior starts as one broad
    component and no two pseudo-inputs are equal. While it is broad, an encoder that says nothing costs nothing: raise
    the weight of the KL from 0 over a good part of the run (``Beta(ELBO(), optax.linear_schedule(...))``).

    Parameters
    ----------
    encoder
        A guide with ``conditional(x)``, which returns q(z | x) over vectors of the model's ``latent_dim``.
    num_pseudo_inputs
        K, at least 1.
    bounds
        Least and greatest value of a pixel, between which the pseudo-inputs stay; None for the whole real line.

    Raises
    ------
    ValueError
        Not a whole number of pseudo-inputs, bounds that are not two increasing numbers, or, when called, an encoder
        of latents of another length.
    TypeError
        An encoder without ``conditional``.

    References
    ----------
    VAE with a VampPrior (Tomczak & Welling, 2018).
    """

    encoder: Any
    num_pseudo_inputs: int = 500
    bounds: tuple[float, float] | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_count(num_pseudo_inputs=self.num_pseudo_inputs)
        if isinstance(self.encoder, type) or not callable(getattr(self.encoder, "conditional", None)):
            raise TypeError(
                f"encoder is {self.encoder!r}; expected a guide with conditional(x), such as AmortizedNormal(...)."
            )
        if self.bounds is not None:
            low, high = self.bounds
            if not low < high:
                raise ValueError(f"bounds is {self.bounds}; expected (least, greatest), or None for the real line.")
            object.__setattr__(self, "bounds", (float(low), float(high)))

    def __call__(self, ppl: ModuleType, latent_dim: int, rows: Any) -> Any:
        """Distribution over z; the batch shape is empty."""
        u = ppl.param("pseudo_inputs", _start(ppl, lambda noise: self._initial(rows, noise), rows), **self._within(ppl))
        q = self.encoder.conditional(u)  # K distributions over z
        if tuple(q.event_shape) != (latent_dim,):
            raise ValueError(
                f"the encoder of VampPrior guesses latents of shape {tuple(q.event_shape)}; the model's have "
                f"{(latent_dim,)}. Give both the same latent_dim."
            )
        equal = array_namespace(rows).zeros((self.num_pseudo_inputs,), dtype=rows.dtype, device=device(rows))
        return _mixture(ppl, equal, q)

    def _within(self, ppl: ModuleType) -> dict[str, Any]:
        return {} if self.bounds is None else {"constraint": ppl.distributions.constraints.interval(*self.bounds)}

    def _initial(self, rows: Any, noise: Any) -> Any:
        xp, spread = array_namespace(rows), 0.02
        shape = (self.num_pseudo_inputs, rows.shape[-1])
        if self.bounds is None:
            return xp.mean(rows, axis=0) + spread * xp.std(rows) * noise(shape)
        low, high = self.bounds
        start = (xp.mean(rows, axis=0) - low) / (high - low)
        return low + (high - low) * xp.clip(0.05 + 0.9 * start + spread * noise(shape), 0.01, 0.99)


@dataclass(frozen=True)
class FlowPrior:
    """z ~ a normalizing flow: parameter site ``prior_flow``. NumPyro only.

    Parameters
    ----------
    flow
        Its architecture: see :func:`ppl_models.networks.flow`. Training takes one pass through it.

    References
    ----------
    Masked Autoregressive Flow for Density Estimation (Papamakarios, Pavlakou & Murray, 2017).
    """

    flow: Any = MAF(2)
    ppl = numpyro  # no field: there is no other

    def __post_init__(self) -> None:
        check_flow("flow", self.flow)

    def __call__(self, ppl: ModuleType, latent_dim: int, rows: Any) -> Any:
        """Distribution over z; the batch shape is empty."""
        if ppl is not numpyro:
            raise TypeError(f"FlowPrior runs in NumPyro alone, and this program has ppl={ppl.__name__}.")
        return flow("prior_flow", self.flow, latent_dim)


def _mixture(ppl: ModuleType, logits: Any, components: Any) -> Any:
    dist = ppl.distributions
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), components)


def _start(ppl: ModuleType, initial: Any, like: Any) -> Any:
    """An initialiser: ``initial`` called with a sampler of standard normals, seeded as the engine seeds parameters."""
    if ppl is numpyro:
        return lambda key: initial(lambda shape: jax.random.normal(key, shape, like.dtype))
    import torch

    return lambda: initial(lambda shape: torch.randn(shape, dtype=like.dtype, device=like.device))
