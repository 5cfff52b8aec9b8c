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

from guides.sites import Site, initial_values, latent_sites, open_plates
from guides.unconstrained import biject_to, full, is_real, uniform


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
        sites = latent_sites(self.ppl, self.model, args, kwargs)
        inside, proposed = open_plates(self.ppl, sites), initial_values(self.ppl, self.model, args, kwargs)
        for site in sites:
            with inside(site):
                self.sample(site, lambda site=site: proposed().get(site.name))

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.model)

    def sample(self, site: Site, proposed: Callable[[], Any]) -> None:
        """Sample one site, its location at what ``proposed`` returns to start from, if anything."""
        ppl, dist = self.ppl, self.ppl.distributions
        transform = biject_to(ppl, site.support)
        event = tuple(transform.inverse_shape(site.event_shape))
        shape = site.batch_shape + event

        def start(key: Any = None) -> Any:
            value = proposed()
            return uniform(ppl, key, shape) if value is None else transform.inv(value)

        # event_dim tells the plates which rows of a per-row parameter belong to this batch.
        loc = ppl.param(f"{site.name}_loc", start, event_dim=len(event))
        scale = ppl.param(
            f"{site.name}_scale",
            lambda key=None: full(ppl, shape, self.init_scale),
            constraint=dist.constraints.positive,
            event_dim=len(event),
        )
        normal = dist.Normal(loc, scale).to_event(len(event))
        ppl.sample(site.name, normal if is_real(site.support) else dist.TransformedDistribution(normal, transform))
