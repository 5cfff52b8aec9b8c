r"""ELBO surgery: what a bound is made of, and what a better prior would gain.

Over n rows, each with its guide q(z | x_i), and with the aggregate posterior q(z) = (1/n) sum_i q(z | x_i),

    mean ELBO = reconstruction - I[i; z] - KL(q(z) || p(z)),

    reconstruction   (1/n) sum_i E_q(z | x_i) [log p(x_i | z)]
    I[i; z]          (1/n) sum_i E_q(z | x_i) [log q(z | x_i) - log q(z)], between 0 and log n:
                     what a code tells about which row it is of
    KL(q(z) || p)    (1/n) sum_i E_q(z | x_i) [log q(z) - log p(z)]

The prior enters the last term alone, so the best one for these rows is q(z) itself, and gains exactly that KL; what it
gains on rows that were held out is smaller, and what is missing is its overfit.

Every expectation is a mean over draws, and log q(z) at a draw is the log mean of all n encoders, computed in chunks: no
term has a bias. (With an aggregate of m < n encoders, the own one among them, I could not exceed log m, and what it
lacks would be counted as KL.)

References
----------
ELBO Surgery: Yet Another Way to Carve Up the Variational Evidence Lower Bound (Hoffman and Johnson, 2016).
VAE with a VampPrior (Tomczak and Welling, 2018), for the optimal prior.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float

from inference.compiled import jit
from inference.data import Rows
from inference.errors import BadData, Incompatible, check_whole
from inference.estimate import Estimate
from inference.programs import anatomy, bind, density, joint_density, trace, without_factors
from inference.protocols import Batch, Program
from inference.result import Fit
from inference.row_target import Axes, hide_observed, values_of
from inference.sites import sites

CHUNK = 256  # rows, and encoders, at once
Values = dict[str, Any]


@dataclass(frozen=True)
class Surgery:
    """The terms of the ELBO, each by row and unbiased, in nats per row; prints as a table.

    Attributes
    ----------
    reconstruction
        log p(x | z).
    mutual_information
        Of a row's number and its code; at most log of the number of rows.
    marginal_kl
        Of the aggregate posterior to the prior; by row, what the optimal prior gains there.
    elbo
        Reconstruction less the other two.
    held_out_gain
        What the same aggregate posterior would gain as the prior of rows that were held out; None without those.
    """

    reconstruction: Estimate
    mutual_information: Estimate
    marginal_kl: Estimate
    elbo: Estimate
    held_out_gain: Estimate | None = None

    def __str__(self) -> str:
        n = len(self.elbo.rows)
        lines = [
            ("reconstruction", self.reconstruction, "log p(x | z)"),
            ("index-code mutual information", self.mutual_information, f"at most log {n} = {np.log(n):.2f}"),
            ("KL of aggregate posterior to prior", self.marginal_kl, "gained here by the optimal prior"),
            ("ELBO", self.elbo, "reconstruction - information - KL"),
        ]
        if self.held_out_gain is not None:
            lines.append(("gain of that prior on held-out rows", self.held_out_gain, "what is less is its overfit"))
        out = [f"{'ELBO surgery, nats per row':<36} {'mean':>9} {'MC error':>9}"]
        out += [f"{name:<36} {value.mean:>9.3f} {value.mc_error:>9.2g}   {note}" for name, value, note in lines]
        return "\n".join([*out, f"Means over draws, the aggregate that of all {n} rows: no term has a bias."])


def elbo_surgery(fit: Fit, data: Any = None, held_out: Any = None, *, num_samples: int = 8, key: int = 0) -> Surgery:
    """The terms of a fit's ELBO, and what the optimal prior would gain.

    Parameters
    ----------
    fit
        Of a model whose rows have latents that a guide samples (NumPyro).
    data
        The n rows whose aggregate posterior is meant; by default those of the fit.
    held_out
        Other rows, on which that aggregate is tried as a prior.
    num_samples
        Draws of a row's latents, at least 2, whose spread is the Monte-Carlo error. The cost grows with n², the memory
        not.
    key
        Seed.

    Returns
    -------
    Surgery
        Globals, where there are some, are at one draw; latents that the guide leaves out are summed out of p.

    Raises
    ------
    Incompatible
        Without a guide that samples latents of rows, where it puts all mass at one value, or for a Pyro fit.
    BadData
        When the fit holds no rows and none are passed.
    ValueError
        When ``num_samples`` is not at least 2.
    """
    check_whole("num_samples", num_samples, 2, "whose spread is the error")
    axes = guided_axes(fit)
    rows = fit.data if data is None else fit._rows(data)
    if rows is None:
        raise BadData("the fit does not hold its rows: pass some, as in elbo_surgery(fit, data).")
    values = values_of(fit)
    run = _terms(fit.model, fit.guide, axes, num_samples)

    def terms(some: Rows, seed: int) -> dict[str, np.ndarray]:
        drawn = _chunks(some)
        parts, keep = run(values, jax.random.key(seed), drawn, _chunks(rows)), drawn[1].ravel()
        return {
            n: np.moveaxis(np.asarray(v, np.float64), 1, 2).reshape(-1, num_samples)[keep] for n, v in parts.items()
        }

    found = terms(rows, key)
    gain = None
    if held_out is not None:
        other = terms(fit._rows(held_out), key + 1)
        gain = estimate(other["aggregate"] - other["prior"])
    return Surgery(
        estimate(found["joint"] - found["prior"]),
        estimate(found["guide"] - found["aggregate"]),
        estimate(found["aggregate"] - found["prior"]),
        estimate(found["joint"] - found["guide"]),
        gain,
    )


def guided_axes(fit: Fit) -> Axes:
    """The rows' latents that the guide samples, each with the axis of its values that is over rows.

    Raises
    ------
    Incompatible
        When there are none, or they have no density to compare.
    """
    if fit.algorithm.engine == "pyro":
        raise Incompatible(
            "the terms of the ELBO are computed for NumPyro fits: write model and guide with ppl=numpyro."
        )
    if fit.guide is None:
        raise Incompatible(
            f"{type(fit.algorithm).__name__} has no guide q(z | x), and the terms of the ELBO are of one: fit with SVI "
            "and a guide such as guides.amortize(model, data)."
        )
    example = fit.example
    guided = anatomy(bind(fit.guide, example))
    local = anatomy(bind(fit.model, example)).local
    if guided.points & local:
        raise Incompatible(
            f"the guide puts all mass of {sorted(guided.points & local)} at one value, which has no density: use a "
            "guide with a spread for the rows' latents."
        )
    found = sites(
        fit, Batch({n: jnp.zeros((3, *v.shape[1:]), v.dtype) for n, v in fit.shapes.items()}, jnp.arange(3), 3)
    )
    axes = tuple((n, found[n].dims.index(None)) for n in guided.latent if n in local)
    if not axes:
        raise Incompatible("the guide samples no latents of rows: there is no aggregate posterior to look at.")
    _check_density(fit.guide, example)
    return axes


def _check_density(guide: Program, example: Batch) -> None:
    """Refuse a guide that does not know q(z | x) at a draw that is not its own."""

    def at_other_values(key: Array) -> Array:
        tr = trace(bind(guide, example), key)
        values = {n: s["value"] for n, s in tr.items() if s["type"] in ("param", "sample") and not s.get("is_observed")}
        return density(bind(guide, example), key, values, None).total()

    try:
        jax.eval_shape(at_other_values, jax.random.key(0))
    except NotImplementedError:
        raise Incompatible(
            "the guide knows the density of its own draws alone, and the aggregate posterior asks for that of each "
            "row's codes under every other row: use a guide such as guides.amortize(model, data)."
        ) from None


def _chunks(rows: Rows) -> tuple[Batch, Bool[np.ndarray, "chunk row"]]:
    """All rows as stacked batches of equal length, and which of them are no repetition."""
    size = min(CHUNK, rows.num_data)
    count = -(-rows.num_data // size)
    index = np.resize(np.arange(rows.num_data), count * size)
    whole = rows.whole()
    stacked = {n: v[index].reshape(count, size, *v.shape[1:]) for n, v in whole.data.items()}
    counted = np.arange(count * size).reshape(count, size) < rows.num_data
    return Batch(stacked, whole.rows[index].reshape(count, size), whole.num_data), counted


@lru_cache(maxsize=32)
def _terms(model: Program, guide: Program, axes: Axes, num_samples: int) -> Any:
    """Log densities (chunk, sample, row) of draws of the rows' latents: of guide, aggregate, prior, and model."""

    def own(values: Values, key: Array, batch: Batch) -> tuple[Values, Values]:
        """Draws of these rows' latents, and their densities."""
        tr = trace(bind(guide, batch), key, values)
        z = {n: tr[n]["value"] for n, _ in axes}
        thunk = bind(model, batch)
        parts = anatomy(thunk)
        logs = {
            "guide": density(without_factors(bind(guide, batch)), key, values | z, parts.plate).rows,
            "prior": joint_density(hide_observed(thunk), key, values | z, parts).rows,
            "joint": joint_density(thunk, key, values | z, parts).rows,
        }
        return {n: jnp.moveaxis(z[n], axis, 0) for n, axis in axes}, logs

    def run(values: Values, key: Array, drawn: tuple[Batch, Array], encoders: tuple[Batch, Array]) -> Values:
        def chunk(inputs: tuple[Array, Batch]) -> Values:
            key, batch = inputs
            z, logs = jax.vmap(own, in_axes=(None, 0, None))(values, jax.random.split(key, num_samples), batch)
            codes = {n: v.reshape(-1, *v.shape[2:]) for n, v in z.items()}  # (sample * row, ...)
            aggregate = _aggregate(model, guide, axes, values, codes, encoders)
            return logs | {"aggregate": aggregate.reshape(num_samples, -1)}

        return jax.lax.map(chunk, (jax.random.split(key, len(drawn[1])), drawn[0]))

    return jit(run)


def _aggregate(
    model: Program, guide: Program, axes: Axes, values: Values, codes: Values, encoders: tuple[Batch, Array]
) -> Float[Array, " code"]:
    """log (1/n) sum_m q(z | x_m) of codes ``(code, ...)``, in nats, a chunk of encoders after the other."""
    count = len(next(iter(codes.values())))

    def guided(z: Values, batch: Batch) -> Array:
        """log q(z | x_m) of one code under each row of a batch."""
        repeated = {n: jnp.broadcast_to(z[n], (len(batch), *z[n].shape)) for n, _ in axes}
        placed = {n: jnp.moveaxis(repeated[n], 0, axis) for n, axis in axes}
        plate = anatomy(bind(model, batch)).plate
        return density(without_factors(bind(guide, batch)), jax.random.key(0), values | placed, plate).rows

    def add(sum_: Array, some: tuple[Batch, Array]) -> tuple[Array, None]:
        others, counted = some
        log_q = jax.vmap(lambda code: guided(code, others))(codes)  # (code, encoder)
        return jnp.logaddexp(sum_, logsumexp(jnp.where(counted, log_q, -jnp.inf), axis=1)), None

    sum_, _ = jax.lax.scan(add, jnp.full(count, -jnp.inf), encoders)
    return sum_ - jnp.log(encoders[1].sum())


def log_aggregate(fit: Fit, data: Any, codes: Values) -> Float[np.ndarray, " code"]:
    """Log density of the aggregate posterior of some rows at given latents, in nats.

    Parameters
    ----------
    fit, data
        As of :func:`elbo_surgery`.
    codes
        Values ``(code, *event)`` of every latent of rows that the guide samples.
    """
    axes, values = guided_axes(fit), values_of(fit)
    codes = {n: jnp.asarray(v) for n, v in codes.items()}
    return np.asarray(_aggregate_at(fit.model, fit.guide, axes)(values, codes, _chunks(fit._rows(data))))


@lru_cache(maxsize=32)
def _aggregate_at(model: Program, guide: Program, axes: Axes) -> Any:
    return jit(lambda values, codes, encoders: _aggregate(model, guide, axes, values, codes, encoders))


def estimate(draws: np.ndarray) -> Estimate:
    """Means by row of independent draws (row, draw), and their errors."""
    variance = draws.var(axis=1, ddof=1) / draws.shape[1]
    return Estimate(draws.mean(axis=1), variance, float(np.sqrt(variance.sum()) / len(draws)))


__all__ = ["Surgery", "elbo_surgery", "estimate", "guided_axes", "log_aggregate"]
