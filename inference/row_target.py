"""The density of each row's latents in unconstrained coordinates: what is optimised, and annealed, row by row.

With T_l : R^d -> support of site l and u = (u_1, u_2, ...), z_l = T_l(u_l),

    log_joint(u) = log p(x, z) + sum_l log |det T_l'(u_l)|,    log_prior(u) likewise with p(z).

Rows do not know of each other, so one gradient of the sum over rows is every row's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.distributions import biject_to
from numpyro.primitives import Messenger

from inference.errors import Incompatible
from inference.programs import Thunk, anatomy, bind, joint_density, trace
from inference.protocols import Batch, Program
from inference.result import Fit
from inference.sites import sites

Values = dict[str, Any]
Unconstrained = dict[str, Float[Array, "batch ..."]]  # rows first
Axes = tuple[tuple[str, int], ...]  # latents of rows, and the axis of their values that is over rows


class RowTarget(NamedTuple):
    """Log densities ``(batch,)`` of unconstrained latents, rows first, and the maps between them and values."""

    log_joint: Callable[[Unconstrained], Float[Array, " batch"]]
    log_prior: Callable[[Unconstrained], Float[Array, " batch"]]
    log_jacobian: Callable[[Unconstrained], Float[Array, " batch"]]
    unconstrain: Callable[[Values], Unconstrained]
    draw_prior: Callable[[Array], Unconstrained]


def row_latents(fit: Fit) -> tuple[Axes, dict[str, Any]]:
    """The rows' continuous latents with their row axes, and their supports (pytrees).

    Raises
    ------
    Incompatible
        When there are none, other latents of rows cannot be summed out, a support depends on other latents, or the
        fit is Pyro's.
    """
    if fit.algorithm.engine == "pyro":
        raise Incompatible("the densities of rows are followed for NumPyro fits: write the model with ppl=numpyro.")
    blank = {n: jnp.zeros((3, *v.shape[1:]), v.dtype) for n, v in fit.shapes.items()}
    three = Batch(blank, jnp.arange(3), 3)
    parts = anatomy(bind(fit.model, three))
    stuck = sorted((parts.local & parts.discrete) - parts.enumerable)
    if stuck:
        raise Incompatible(
            f"{stuck} are discrete and cannot be summed out, and gradients follow continuous latents alone: use "
            "log_likelihood, by importance draws from the guide."
        )
    found = sites(fit, three)
    axes = tuple((n, found[n].dims.index(None)) for n in parts.latent if n in parts.local - parts.discrete)
    if not axes:
        raise Incompatible("the rows have no continuous latents: log_likelihood is exact.")
    first, second = (trace(bind(fit.model, three), jax.random.key(seed), values_of(fit)) for seed in (0, 1))
    supports = {n: first[n]["fn"].support for n, _ in axes}
    for name, support in supports.items():
        for a, b in zip(jax.tree.leaves(support), jax.tree.leaves(second[name]["fn"].support), strict=True):
            if not np.array_equal(a, b) or np.ndim(a) > len(first[name]["fn"].event_shape):
                raise Incompatible(
                    f"the support of {name!r} depends on other latents or on the row: sample it on a fixed support, "
                    "and scale it in the model."
                )
    return axes, supports


def values_of(fit: Fit) -> Values:
    """Parameters, and one draw of the globals."""
    return fit.params | {n: v[0] for n, v in fit.globals(1).items()}


def row_target(model: Program, axes: Axes, supports: dict[str, Any], values: Values, batch: Batch) -> RowTarget:
    """The target of these rows."""
    thunk = bind(model, batch)
    parts = anatomy(thunk)
    transforms = {n: biject_to(supports[n]) for n, _ in axes}
    key = jax.random.key(0)  # nothing is drawn: what has no value is summed out

    def log_jacobian(u: Unconstrained) -> Array:
        terms = [transforms[n].log_abs_det_jacobian(u[n], transforms[n](u[n])) for n, _ in axes]
        return sum((t.reshape(len(batch), -1).sum(-1) for t in terms), jnp.zeros(len(batch)))

    def log_density(program: Thunk) -> Callable[[Unconstrained], Array]:
        def of(u: Unconstrained) -> Array:
            z = {n: jnp.moveaxis(transforms[n](u[n]), 0, axis) for n, axis in axes}
            return joint_density(program, key, values | z, parts).rows + log_jacobian(u)

        return of

    def unconstrain(z: Values) -> Unconstrained:
        return {n: transforms[n].inv(jnp.moveaxis(z[n], axis, 0)) for n, axis in axes}

    def draw_prior(key: Array) -> Unconstrained:
        tr = trace(thunk, key, values)
        return unconstrain({n: tr[n]["value"] for n, _ in axes})

    return RowTarget(log_density(thunk), log_density(hide_observed(thunk)), log_jacobian, unconstrain, draw_prior)


class _HideObserved(Messenger):
    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and msg["is_observed"]:
            msg["fn"] = msg["fn"].mask(False)


def hide_observed(thunk: Thunk) -> Thunk:
    """The program with its observed sites, and factors, left out of its log density: that of the latents' prior."""
    return _HideObserved(thunk)


__all__ = ["Axes", "RowTarget", "hide_observed", "row_latents", "row_target", "values_of"]
