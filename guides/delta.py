r"""Delta guide: one value for every latent, the mode of the posterior (maximum a posteriori).

    q(z) = delta(z - z*),    so the bound is log p(x, z*), and SVI maximises it over z*.

The mode is that of the density on the latents' own supports, without the Jacobian of any transform.
Global latents have one value; latents in the data plate one per row (not amortized), so that they exist
for training rows only. Discrete latents are left out, to be summed out exactly.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpyro

from guides.mean_field import _batch_shape, _biject_to, _uniform
from guides.sites import Site, visit


@dataclass(frozen=True)
class Delta:
    """A point on the continuous latents of a model: parameters ``SITE_value``, on the support of SITE.

    Points start at values the model proposes from the data, if it does (``GaussianMixture``: one k-means),
    else uniformly in (-2, 2), moved onto the support.

    Parameters
    ----------
    model
        The program whose continuous latents are guessed.
    ppl
        ``numpyro`` or ``pyro``.
    """

    model: Callable[..., Any]
    ppl: ModuleType = numpyro

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Set every continuous latent of the model on these arguments."""
        visit(self.ppl, self.model, args, kwargs, self._sample)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.model)

    def _sample(self, site: Site, proposed: Callable[[], Any]) -> None:
        ppl, transform = self.ppl, _biject_to(self.ppl, site.support)

        def start(key: Any = None) -> Any:
            value = proposed()
            if value is not None:
                return value
            return transform(
                _uniform(ppl, key, _batch_shape(site) + tuple(transform.inverse_shape(site.event_shape)), 2.0)
            )

        # event_dim tells the plates which rows of a per-row parameter belong to this batch.
        event_dim = len(site.event_shape)
        value = ppl.param(f"{site.name}_value", start, constraint=site.support, event_dim=event_dim)
        ppl.sample(site.name, ppl.distributions.Delta(value, event_dim=event_dim))
