"""Mean-field guide: an independent Normal for every latent, moved onto its support.

    q(z) = prod_j T_j # Normal(loc_j, diag(scale_j)^2),     T_j : R^d -> support of site j

Global latents have one (loc, scale); latents in the data plate one per row (not amortized), so that
they exist for training rows only. Discrete latents are left out, to be summed out exactly.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpyro

from guides.sites import Site, visit


@dataclass(frozen=True)
class MeanField:
    """Independent Normals on the unconstrained latents of a model.

    Locations start at values the model proposes from the data, if it does (``GaussianMixture``: one
    k-means), else uniformly in (-2, 2).

    Parameters
    ----------
    model
        The program whose continuous latents are guessed.
    init_scale
        Initial standard deviation in unconstrained space.
    ppl
        ``numpyro`` or ``pyro``.

    References
    ----------
    Automatic Differentiation Variational Inference (Kucukelbir et al., 2017).
    """

    model: Callable[..., Any]
    init_scale: float = 0.1
    ppl: ModuleType = numpyro

    def __post_init__(self) -> None:
        if not self.init_scale > 0:
            raise ValueError(f"init_scale is {self.init_scale}; expected a positive number.")

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Sample every continuous latent of the model on these arguments."""
        visit(self.ppl, self.model, args, kwargs, self._sample)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.model)

    def _sample(self, site: Site, proposed: Callable[[], Any]) -> None:
        ppl, dist = self.ppl, self.ppl.distributions
        transform = _biject_to(ppl, site.support)
        event = tuple(transform.inverse_shape(site.event_shape))
        shape = _batch_shape(site) + event

        def start(key: Any = None) -> Any:
            value = proposed()
            if value is not None:
                return transform.inv(value)
            return _uniform(ppl, key, shape, 2.0)

        # event_dim tells the plates which rows of a per-row parameter belong to this batch.
        loc = ppl.param(f"{site.name}_loc", start, event_dim=len(event))
        scale = ppl.param(
            f"{site.name}_scale",
            lambda key=None: _uniform(ppl, key, shape, 0.0) + self.init_scale,
            constraint=dist.constraints.positive,
            event_dim=len(event),
        )
        normal = dist.Normal(loc, scale).to_event(len(event))
        ppl.sample(site.name, normal if _is_real(site.support) else dist.TransformedDistribution(normal, transform))


def _batch_shape(site: Site) -> tuple[int, ...]:
    """All rows of each plate, at its dimension."""
    shape = [1] * max((-frame.dim for frame in site.plates), default=0)
    for frame in site.plates:
        shape[frame.dim] = frame.size
    return tuple(shape)


def _biject_to(ppl: ModuleType, support: Any) -> Any:
    if ppl is numpyro:
        return numpyro.distributions.biject_to(support)
    from torch.distributions import biject_to

    return biject_to(support)


def _is_real(support: Any) -> bool:
    """Whether the support is all of R^d, so that a plain Normal (and its closed-form KL) will do."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return type(support).__name__.strip("_").lower() in ("real", "realvector")


def _uniform(ppl: ModuleType, key: Any, shape: tuple[int, ...], radius: float) -> Any:
    if ppl is numpyro:
        import jax

        return jax.random.uniform(key, shape, minval=-radius, maxval=radius) if radius else jax.numpy.zeros(shape)
    import torch

    return (2 * torch.rand(shape) - 1) * radius
