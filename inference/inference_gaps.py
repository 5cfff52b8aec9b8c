r"""What a bound loses, and to whom: the encoder, or the family of its distributions.

    log p(x) - ELBO  =  [log p(x) - max_q ELBO(q)]  +  [max_q ELBO(q) - ELBO(q(z | x))]
                        approximation gap              amortization gap

with q over the Normals with independent coordinates (in unconstrained space). The maximum is found for each row by
itself, by gradient steps from the encoder's own moments, all rows at once. A guide of another family may lie above it:
then its amortization gap is negative, and says what the family is worth.

References
----------
Inference Suboptimality in Variational Autoencoders (Cremer, Li and Duvenaud, 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from inference.compiled import jit
from inference.data import Rows
from inference.errors import BadData, Incompatible
from inference.estimate import Estimate
from inference.programs import Trace, anatomy, bind, site_log_prob, split_density, trace
from inference.protocols import Batch, Program
from inference.result import Fit
from inference.row_target import Axes, row_latents, row_target, values_of
from inference.surgery import estimate

CHUNK = 256  # rows at once
START, PER_STEP, FINAL = 64, 8, 256  # draws: for the moments to start from, of a step, for the bounds at the end
RATE = 0.05  # of Adam, down to 0 along a cosine

Values = dict[str, Any]


@dataclass(frozen=True)
class InferenceGaps:
    """Three numbers for each row, in nats, and their differences; prints as a table.

    Attributes
    ----------
    evidence
        log p(x), by importance draws where it has no closed form: on average low, never high.
    best
        The bound at the best Normal of each row; after finitely many steps, low rather than high.
    amortized
        The bound at the guide.
    """

    evidence: Estimate
    best: Estimate
    amortized: Estimate

    @property
    def approximation(self) -> Estimate:
        """What the best Normal loses: evidence less best."""
        return _difference(self.evidence, self.best)

    @property
    def amortization(self) -> Estimate:
        """What the guide loses against the best Normal of each row."""
        return _difference(self.best, self.amortized)

    def __str__(self) -> str:
        rows = (
            ("log p(x)", self.evidence),
            ("bound, best Normal of each row", self.best),
            ("bound, amortized", self.amortized),
            ("approximation gap", self.approximation),
            ("amortization gap", self.amortization),
        )
        out = [f"{f'Inference gaps of {len(self.best.rows)} rows, nats':<36} {'mean':>9} {'MC error':>9}"]
        return "\n".join([*out, *(f"{name:<36} {v.mean:>9.3f} {v.mc_error:>9.2g}" for name, v in rows)])


def inference_gaps(
    fit: Fit, data: Any = None, *, num_steps: int = 500, num_particles: int = 5000, key: int = 0
) -> InferenceGaps:
    """Amortization and approximation gap of a fit's guide, row by row.

    Parameters
    ----------
    fit
        Of a model whose rows have continuous latents that a guide samples (NumPyro).
    data
        Rows to look at; by default those of the fit.
    num_steps
        Gradient steps for the best Normal of a row.
    num_particles
        Importance draws a row for log p(x), streamed: memory does not grow with them.
    key
        Seed.

    Returns
    -------
    InferenceGaps
        Globals, where there are some, are at one draw; enumerable latents are summed out.

    Raises
    ------
    Incompatible
        Without a guide, or where it samples discrete latents, or all mass is at one value.
    BadData
        When the fit holds no rows and none are passed.
    """
    axes, supports = row_latents(fit)
    guided = _check_guide(fit, axes)
    rows = fit.data if data is None else fit._rows(data)
    if rows is None:
        raise BadData("the fit does not hold its rows: pass some, as in inference_gaps(fit, data).")
    values, model, guide = values_of(fit), fit.model, fit.guide
    run = _optimised(model, guide, axes, guided, num_steps)
    parts: dict[str, list[np.ndarray]] = {"best": [], "amortized": [], "evidence": [], "variance": []}
    for i, (batch, counted) in enumerate(chunks(rows, CHUNK)):
        key_run, key_evidence = jax.random.split(jax.random.fold_in(jax.random.key(key), i))
        best, amortized = run(values, supports, key_run, batch)
        evidence = fit.engine.row_log_likelihood(model, guide, values, key_evidence, batch, num_particles)
        for name, value in zip(parts, (best, amortized, *evidence), strict=True):
            parts[name].append(np.asarray(value, np.float64).T[:counted])
    found = {n: np.concatenate(v) for n, v in parts.items()}
    error = float(np.sqrt(found["variance"].sum()) / len(found["variance"]))
    evidence = Estimate(found["evidence"], found["variance"], error)
    return InferenceGaps(evidence, estimate(found["best"]), estimate(found["amortized"]))


def chunks(rows: Rows, size: int) -> Any:
    """Batches of one size, the last filled up with repeated rows, and how many of each count."""
    size = min(size, rows.num_data)
    whole = rows.whole()
    for start in range(0, rows.num_data, size):
        index = np.arange(start, start + size) % rows.num_data
        yield (
            Batch({n: v[index] for n, v in whole.data.items()}, whole.rows[index], whole.num_data),
            min(size, rows.num_data - start),
        )


def _check_guide(fit: Fit, axes: Axes) -> tuple[str, ...]:
    """The rows' latents that the guide samples: all continuous ones, and no others."""
    if fit.guide is None:
        raise Incompatible(f"{type(fit.algorithm).__name__} has no guide, so nothing is amortized: fit with SVI.")
    parts, guided = anatomy(bind(fit.model, fit.example)), anatomy(bind(fit.guide, fit.example))
    names = tuple(n for n in guided.latent if n in parts.local)
    if set(names) != {n for n, _ in axes} or guided.points & parts.local:
        raise Incompatible(
            f"the guide samples {list(names)} of the rows' latents, and a Normal is fitted to {[n for n, _ in axes]}: "
            "expected a guide with a density on just these."
        )
    return names


@lru_cache(maxsize=32)
def _optimised(model: Program, guide: Program, axes: Axes, guided: tuple[str, ...], num_steps: int) -> Any:
    """Draws (draw, batch) of the bound at the best Normal, and of that at the guide."""

    def run(values: Values, supports: Values, key: Array, batch: Batch) -> tuple[Array, Array]:
        target = row_target(model, axes, supports, values, batch)
        key_start, key_steps, key_best, key_guide = jax.random.split(key, 4)

        def drawn(tr: Trace) -> Values:
            return {n: tr[n]["value"] for n in guided}

        def weight(key: Array) -> Array:
            tr = trace(bind(guide, batch), key, values)
            # Of the draw at hand, whose density some guides know and no other's; factors are no part of it.
            q = split_density({n: site_log_prob(tr[n]) for n in guided}, tr, anatomy(bind(model, batch)).plate)
            u = target.unconstrain(drawn(tr))
            # log p(x, z) - log q(z | x), the Jacobian taken out of the target again
            return target.log_joint(u) - target.log_jacobian(u) - q.rows

        def bound(q: Any, key: Array) -> Array:
            """log p(x, u) + H[q], with u ~ q by the reparameterisation."""
            loc, log_scale = q
            keys = dict(zip(loc, jax.random.split(key, len(loc)), strict=True))
            u = {n: loc[n] + jnp.exp(log_scale[n]) * jax.random.normal(keys[n], loc[n].shape) for n in loc}
            size = sum(v[0].size for v in loc.values())
            spread = sum(v.reshape(len(batch), -1).sum(-1) for v in log_scale.values())
            return target.log_joint(u) + spread + 0.5 * size * (1 + jnp.log(2 * jnp.pi))

        def loss(q: Any, key: Array) -> Array:
            return -jax.vmap(bound, in_axes=(None, 0))(q, jax.random.split(key, PER_STEP)).mean(0).sum()

        starts = jax.random.split(key_start, START)
        u = jax.vmap(lambda k: target.unconstrain(drawn(trace(bind(guide, batch), k, values))))(starts)
        q = {n: v.mean(0) for n, v in u.items()}, {n: jnp.log(v.std(0) + 1e-4) for n, v in u.items()}
        optimizer = optax.adam(optax.cosine_decay_schedule(RATE, num_steps))

        def step(carry: tuple[Any, Any], key: Array) -> tuple[tuple[Any, Any], None]:
            q, state = carry
            updates, state = optimizer.update(jax.grad(loss)(q, key), state)
            return (optax.apply_updates(q, updates), state), None

        (q, _), _ = jax.lax.scan(step, (q, optimizer.init(q)), jax.random.split(key_steps, num_steps))
        best = jax.lax.map(lambda k: bound(q, k), jax.random.split(key_best, FINAL))
        return best, jax.lax.map(weight, jax.random.split(key_guide, FINAL))

    return jit(run)


def _difference(upper: Estimate, lower: Estimate) -> Estimate:
    """Of estimates whose draws are independent."""
    error = float(np.hypot(upper.mc_error, lower.mc_error))
    return Estimate(upper.rows - lower.rows, upper.variance + lower.variance, error)


__all__ = ["InferenceGaps", "inference_gaps"]
