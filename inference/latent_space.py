"""Walking through the latents of a fit: codes of rows, what codes decode to, and paths between them.

A code is a value of one latent site of the rows, ``(code, *event)``. Latents that a model has besides it are drawn
given it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.distributions.kl import kl_divergence
from scipy import stats

from inference.compiled import jit
from inference.errors import BadData, Incompatible
from inference.programs import anatomy, base_of, bind, trace
from inference.protocols import Batch, Program
from inference.result import Fit
from inference.row_target import values_of

Codes = Float[np.ndarray, "code *event"]


def code_site(fit: Fit, site: str | None = None) -> str:
    """The latent of rows that is meant: the named one, or the only continuous one that the guide samples.

    Raises
    ------
    Incompatible
        When there is none, or several and none is named.
    """
    if fit.guide is None or fit.algorithm.engine == "pyro":
        raise Incompatible("codes of rows are those of a NumPyro guide: fit with SVI and an amortized guide.")
    parts, guided = anatomy(bind(fit.model, fit.example)), anatomy(bind(fit.guide, fit.example))
    names = [n for n in guided.latent if n in parts.local and n not in parts.discrete]
    if site is not None and site in names:
        return site
    if site is not None or len(names) != 1:
        raise Incompatible(f"site is {site!r}; expected one of the guide's continuous latents of rows, {names}.")
    return names[0]


def code_shape(fit: Fit, site: str | None = None) -> tuple[int, ...]:
    """Shape of one code."""
    return anatomy(bind(fit.model, fit.example)).values[code_site(fit, site)][1:]


def encode(fit: Fit, data: Any, site: str | None = None) -> Codes:
    """The mean of q(z | x) of each row (of 200 draws, where it has no closed form)."""
    name, rows, values = code_site(fit, site), fit._rows(data), values_of(fit)
    try:
        means = [_means(fit.guide, name)(values, batch) for batch in rows.batches(1024)]
    except NotImplementedError:
        return fit.sample_posterior(data, 200)[name].mean(axis=0)
    return np.concatenate([np.asarray(v) for v in means])


@lru_cache(maxsize=32)
def _means(guide: Program, name: str) -> Any:
    return jit(lambda values, batch: trace(bind(guide, batch), jax.random.key(0), values)[name]["fn"].mean)


def decode(fit: Fit, codes: Any, site: str | None = None, *, inputs: Mapping[str, Any] | None = None) -> np.ndarray:
    """The mean of p(x | z) at codes: images, ``(code, *event)``.

    Parameters
    ----------
    fit
        A NumPyro fit with one observed site.
    codes
        Values of the latent, ``(code, *event)``.
    site
        Which latent, where there are several.
    inputs
        Values of the model's other arguments, one for all codes (a label) or one for each.

    Raises
    ------
    BadData
        For codes of another shape, or inputs that the model does not have.
    """
    name, shape, codes = code_site(fit, site), code_shape(fit, site), jnp.asarray(codes)
    if codes.ndim != len(shape) + 1 or codes.shape[1:] != shape:
        raise BadData(f"codes have shape {codes.shape}; expected (codes, *{shape}), values of {name!r}.")
    data = {n: jnp.zeros((len(codes), *v.shape[1:]), v.dtype) for n, v in fit.shapes.items()}
    for key, value in (inputs or {}).items():
        if key not in data:
            raise BadData(f"inputs has {key!r}; the model's arrays are {list(data)}.")
        data[key] = jnp.broadcast_to(jnp.asarray(value, data[key].dtype), data[key].shape)
    batch = Batch(data, jnp.arange(len(codes), dtype=jnp.int32), len(codes))
    draws = {n: v[:1] for n, v in fit.globals(1).items()} | {name: codes[None]}
    out = fit.engine.predict(
        fit.model, None, fit.params, draws, jax.random.split(jax.random.key(0), 1), batch, expected=True
    )
    return np.asarray(next(iter(out.values())))[0]


def linear(start: Any, end: Any, t: Any) -> Codes:
    """(1 - t) start + t end, for t ``(steps,)``: codes ``(steps, d)``."""
    start, end, t = np.asarray(start), np.asarray(end), np.asarray(t)[:, None]
    return (1 - t) * start + t * end


def spherical(start: Any, end: Any, t: Any) -> Codes:
    """Along the great circle, the length going evenly from one to the other: where a Normal in many dimensions lives.

    sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b, w the angle between the unit vectors a and b.

    References
    ----------
    Animating Rotation with Quaternion Curves (Shoemake, 1985); Sampling Generative Networks (White, 2016).
    """
    start, end, t = np.asarray(start, float), np.asarray(end, float), np.asarray(t)[:, None]
    lengths = np.linalg.norm(start), np.linalg.norm(end)
    if min(lengths) == 0:
        return linear(start, end, t[:, 0])
    a, b = start / lengths[0], end / lengths[1]
    angle = np.arccos(np.clip(a @ b, -1, 1))
    if np.sin(angle) < 1e-6:  # the same direction, or opposite ones, between which no circle is the shortest
        return linear(start, end, t[:, 0])
    direction = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
    return ((1 - t) * lengths[0] + t * lengths[1]) * direction


def normal_grid(size: int) -> Float[np.ndarray, "cells 2"]:
    """Codes of the plane at quantiles of the standard Normal, (i + 1/2) / size, rows of an image from the top."""
    ticks = stats.norm.ppf((np.arange(size) + 0.5) / size)
    across, up = np.meshgrid(ticks, ticks[::-1])
    return np.stack([across.ravel(), up.ravel()], axis=1)


def unit_kl(fit: Fit, data: Any, site: str | None = None) -> Float[np.ndarray, " unit"]:
    """KL(q(z_j | x) || p(z_j)) of each unit, averaged over rows, in nats.

    Raises
    ------
    Incompatible
        Where the units are not independent in guide and prior, or their KL is not known in closed form.
    """
    name, rows, values = code_site(fit, site), fit._rows(data), values_of(fit)
    try:
        parts = [_unit_kl(fit.model, fit.guide, name)(values, batch) for batch in rows.batches(1024)]
    except NotImplementedError:
        raise Incompatible(
            f"the KL of the units of {name!r} has no closed form: guide and prior are no Normals."
        ) from None
    return np.concatenate([np.asarray(v).reshape(len(v), -1) for v in parts]).mean(axis=0)


@lru_cache(maxsize=32)
def _unit_kl(model: Program, guide: Program, name: str) -> Any:
    def run(values: Any, batch: Batch) -> Array:
        q = trace(bind(guide, batch), jax.random.key(0), values)
        z = {n: s["value"] for n, s in q.items() if s["type"] == "sample"}
        p = trace(bind(model, batch), jax.random.key(0), values | z)
        return jnp.broadcast_to(kl_divergence(base_of(q[name]["fn"]), base_of(p[name]["fn"])), z[name].shape)

    return jit(run)


def holes(
    points: Float[np.ndarray, "point 2"],
    log_prior: Float[np.ndarray, " point"],
    log_aggregate: Float[np.ndarray, " point"],
    count: int,
    apart: float = 0.7,
) -> list[int]:
    """Points where the prior has most that the aggregate posterior lacks: largest log p(z) - log q(z), not too close.

    Of the half of the points where the prior is densest.
    """
    gap = np.where(log_prior >= np.median(log_prior), log_prior - log_aggregate, -np.inf)
    found: list[int] = []
    for i in np.argsort(-gap):
        if len(found) == count or not np.isfinite(gap[i]):
            break
        if all(np.linalg.norm(points[i] - points[j]) >= apart for j in found):
            found.append(int(i))
    return found


__all__ = ["code_shape", "code_site", "decode", "encode", "holes", "linear", "normal_grid", "spherical", "unit_kl"]
