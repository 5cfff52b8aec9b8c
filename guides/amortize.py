r"""Automatic amortization: writing p is enough. The encoder is built from what a run of the model shows.

    q(g, z | x) = q(g) prod_n prod_l q(z_nl | x_n, z_n1, ..., z_n,l-1)

For each local latent z_l of a row, in the order in which the model draws them, a network maps the row and the
latents before z_l to the parameters of one distribution on its support:

- continuous: T # N(loc, diag(scale)²), with T : R^d -> support, the identity where the support is R^d;
- vectors of bits, or of variables with K values, whole numbers or one-hot: a logit for each bit, K for each variable;
- one discrete variable with finitely many values: nothing, since it can be summed out exactly.

Since every site is conditioned on those before it, dependence between sites is followed; coordinates of a site
are independent given those. Globals g have a mean-field Normal each, as in :class:`~guides.MeanField`.

References
----------
Auto-Encoding Variational Bayes (Kingma and Welling, 2014).
Automatic Differentiation Variational Inference (Kucukelbir et al., 2017), for the supports.
Automated Variational Inference in Probabilistic Programming (Wingate and Weber, 2013).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array, Float

from guides.amortized_heads import Head, head
from guides.mean_field import MeanField
from guides.row_inputs import RowInput, arrays_of, row_inputs
from guides.sites import Site, abstract_sites, all_sites, initial_values, open_plates
from ppl_models.networks import MLP, check_architecture, network

NETWORK = MLP((200, 200))


def amortize(model: Callable[..., Any], data: Any, *, network: Any = NETWORK, init_scale: float = 0.1) -> _Amortized:
    """The guide of a model with local latents, encoder included: a frozen value, equal for equal models and data.

    Parameters
    ----------
    model
        A NumPyro program whose rows have latents of their own, in a plate over rows.
    data
        What ``fit`` will get: an array (named ``x``), a mapping of arrays, or a data set. Arrays whose entries all lie
        in [0, 1], bits and grey levels, enter the encoder as 2 x - 1; others standardised column by column, by the
        mean and deviation found here; missing entries as 0, with a mask beside.
    network
        Architecture that maps a row, and the latents before this one, to the numbers that a distribution needs: see
        :func:`ppl_models.networks.network`.
    init_scale
        Initial standard deviation of the globals, in unconstrained space.

    Returns
    -------
    Guide
        Called like the model. Parameters are ``SITE_encoder``, and ``SITE_loc`` and ``SITE_scale`` of globals.

    Raises
    ------
    ValueError
        When the rows have no latents to encode (the message says which guide to use), or one whose support has no
        distribution here: discrete, but neither bits, nor 0 ... K - 1, nor one-hot; tied to other latents; or outside
        the plate over rows.
    TypeError
        When ``network`` cannot be run, or the model is written for Pyro.
    """
    ppl = getattr(model, "ppl", numpyro)
    if ppl is not numpyro:
        raise TypeError(
            f"{type(model).__name__} is written for ppl={ppl.__name__}, and amortize reads NumPyro programs: make it "
            "with ppl=numpyro, or write its guide by hand (guides.AmortizedNormal runs on both)."
        )
    check_architecture(numpyro, "network", network)
    if not init_scale > 0:
        raise ValueError(f"init_scale is {init_scale}; expected a positive number.")
    arrays = arrays_of(data, model)
    name = getattr(model, "__name__", type(model).__name__)
    plate, local = _local_sites(model, arrays, name)
    heads = tuple(head(site) for site in local if not site.enumerable)
    if not heads:
        raise ValueError(
            f"{name} has no latents of rows for an encoder to guess: {[s.name for s in local] or 'none'} are in its "
            "plate over rows, and discrete ones are summed out. Use guides.MeanField(model), which guesses its "
            "globals, or guides.empty where it has none."
        )
    return _Amortized(model, network, row_inputs(arrays, model), plate, init_scale, heads)


@dataclass(frozen=True)
class _Amortized:
    """What :func:`amortize` returns."""

    model: Callable[..., Any]
    network: Any
    inputs: tuple[RowInput, ...]
    plate: str
    init_scale: float
    heads: tuple[Head, ...] = field(compare=False)  # follow from the model and the data

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Sample the globals, then the latents of each row."""
        data = inspect.signature(self.model).bind(*args, **kwargs).arguments
        data = data | data.pop("kwargs", {})
        sites = {site.name: site for site in abstract_sites(self.model, args, kwargs)}
        inside = open_plates(numpyro, sites.values())
        mean_field, proposed = MeanField(self.model, self.init_scale), initial_values(numpyro, self.model, args, kwargs)
        for site in sites.values():
            if not site.support.is_discrete and all(frame.name != self.plate for frame in site.plates):
                with inside(site):
                    mean_field.sample(site, lambda site=site: proposed().get(site.name))
        features = jnp.concatenate([row_input(data) for row_input in self.inputs], axis=-1)
        for one in self.heads:
            features = self._sample_local(one, sites[one.site], inside, features)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.model)

    def _sample_local(
        self, one: Head, site: Site, inside: Callable[[Site], Any], features: Float[Array, "batch inputs"]
    ) -> Float[Array, "batch more"]:
        """Sample a site; return what the sites after it are guessed from."""
        shape, axis = _batch_shape(site, self.plate)
        others = (*shape[:axis], *shape[axis + 1 :])  # cells of other plates, all guessed at once
        encode = network(numpyro, f"{one.site}_encoder", self.network, features.shape[-1], prod(others) * one.size)
        outputs = encode(features).reshape(shape[axis], *others, one.size)
        distribution = one.distribution(jnp.moveaxis(outputs, 0, axis))
        with inside(site):
            value = numpyro.sample(one.site, distribution)
        seen = jnp.moveaxis(one.features(value), axis, 0).reshape(shape[axis], -1)
        return jnp.concatenate([features, seen], axis=-1)


def _batch_shape(site: Site, plate: str) -> tuple[list[int], int]:
    """Rows of this batch and of other plates at their dimensions, and the axis of the plate over rows."""
    shape = [1] * max(-frame.dim for frame in site.plates)
    for frame in site.plates:
        shape[frame.dim] = frame.subsample_size
    return shape, next(len(shape) + frame.dim for frame in site.plates if frame.name == plate)


def _local_sites(model: Callable[..., Any], arrays: Mapping[str, np.ndarray], name: str) -> tuple[str, list[Site]]:
    """The plate over rows, and the latents in it, their supports as arrays.

    The plate is the one that has three rows on three rows and two on two; supports are those of two runs with
    other draws, and must be the same.
    """

    def some(count: int) -> dict[str, Any]:
        return {n: jnp.asarray(np.resize(v, (count, *v.shape[1:]))) for n, v in arrays.items()}

    two, other = (all_sites(model, (), some(2), jax.random.key(seed)) for seed in (0, 1))
    three = {site.name: site for site in abstract_sites(model, (), some(3))}
    growing = {
        before.name
        for site in two
        for before, after in zip(site.plates, three[site.name].plates, strict=True)
        if before.size != after.size
    }
    for site in two:
        if site.event_shape != three[site.name].event_shape:
            raise ValueError(
                f"site {site.name!r} of {name} has an event of shape {site.event_shape} on two rows and "
                f"{three[site.name].event_shape} on three: its latents of rows are no plate's. Sample it in "
                "numpyro.plate(name, num_data or len(x), subsample_size=len(x))."
            )
    local = [
        site._replace(support=_constant(site, again))
        for site, again in zip(two, other, strict=True)
        if any(frame.name in growing for frame in site.plates)
    ]
    if len(growing) > 1:
        raise ValueError(f"{name} has latents in several plates that grow with the rows: {sorted(growing)}.")
    return next(iter(growing), ""), local


def _constant(site: Site, again: Site) -> Any:
    """The support with NumPy bounds, the same for all rows and draws."""

    def leaf(first: Any, second: Any) -> Any:
        first, second = np.asarray(first), np.asarray(second)
        same = first.shape == second.shape and np.array_equal(first, second)
        while same and first.ndim > len(site.event_shape):
            same, first = bool((first == first[:1]).all()), first[0]
        if not same:
            raise ValueError(
                f"the support of site {site.name!r}, {site.support}, depends on other latents or on the row: an "
                "encoder needs a fixed one. Sample a variable on a fixed support, and scale it in the model."
            )
        return first

    return jax.tree.map(leaf, site.support, again.support)
