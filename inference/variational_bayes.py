"""Variational Bayes by coordinate ascent: exact updates of q(z) and q(globals) in turn.

With g the global latents and q(z, g) = q(z) q(g),

    bound = E_q[log p(x, z | g)] + H[q(z)] - KL(q(g) || p(g))  <=  log p(x).

Given q(g) the best q(z) has a closed form and makes the first two terms a sum over rows of its log
normalisers; given expected sufficient statistics under q(z) the best q(g), or each factor of it, has one
too. So no step lowers the bound (beyond rounding).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro.util import soft_vmap

from inference.conjugate import check_batch, check_globals, check_program, log_joint
from inference.errors import check_whole
from inference.protocols import Batch, ConjugateVariational, Draws, Program, Record

_PARTS = ("initial", "e_step", "m_step", "kl", "draw", "log_prob")
_MOST, _FEWEST, _WORK = 1024, 128, 2**24  # draws of q; rows times draws, between them


@dataclass(frozen=True)
class VariationalBayes:
    """Approximate the posterior of a program's latents, until the bound stops rising.

    Restarts (``num_chains``) find different local optima and come back best first. ``params`` holds
    ``variational``, the hyperparameters of q(globals). A factorised q underestimates the posterior's
    spread: ``log_weight`` in ``sample_stats``, log p(x, g) - log q(g) at draws g of q, tells by its k-hat
    (``to_arviz``, ``psis_resample``) whether reweighing can mend that.

    Parameters
    ----------
    model
        A NumPyro program with ``variational_initial``, ``variational_e_step``, ``variational_m_step``,
        ``variational_kl``, ``variational_draw``, ``variational_log_prob`` and ``posterior``
        (:class:`~inference.protocols.ConjugateVariational`), such as a Gaussian mixture.
    tolerance
        A chain has converged when a step raises the bound by less, in nats per row. With zero none stops
        before the last step.
    max_steps
        Steps at most, unless ``fit`` is given ``num_steps``.

    Raises
    ------
    Incompatible
        When the program does not have these steps.

    References
    ----------
    Variational inference: a review for statisticians (Blei, Kucukelbir and McAuliffe, 2017); Yes, but Did
    It Work?: Evaluating Variational Inference (Yao et al., 2018).
    """

    model: ConjugateVariational
    tolerance: float = 1e-6
    max_steps: int = 1000

    engine: ClassVar[str] = "numpyro"

    def __post_init__(self) -> None:
        if not (isinstance(self.tolerance, Real) and float(self.tolerance) >= 0):
            raise ValueError(
                f"VariationalBayes: tolerance is {self.tolerance!r}; give zero or a positive number of nats per row."
            )
        check_whole("VariationalBayes: max_steps", self.max_steps)
        parts = tuple(f"variational_{part}" for part in _PARTS)
        check_program("VariationalBayes", self.model, (*parts, "posterior"))

    @property
    def guide(self) -> Program:
        """The exact posterior of the locals given the globals, of which there are draws."""
        return self.model.posterior

    def check(self, batch: Batch) -> None:
        """Refuse minibatches, data that are not the program's, and draws that are not its global sites."""
        steps = ("variational_initial", "variational_e_step")
        check_batch("VariationalBayes", self.model, steps, batch)
        jax.eval_shape(lambda key: self.model.variational_initial(key, **batch.data), jax.random.key(0))

        def draw(key: Array) -> dict[str, Array]:
            return self.model.variational_draw(key, self.init(key, batch)["q"])

        check_globals("VariationalBayes", self.model, "variational_draw", draw, batch)

    def init(self, key: Array, batch: Batch) -> dict[str, Any]:
        """The starting q(globals) (float64), with no bound yet."""
        q = self.model.variational_initial(key, **batch.data)
        with jax.enable_x64(True):
            return {
                "q": jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), q),
                "bound": jnp.asarray(-jnp.inf, jnp.float64),
                "done": jnp.asarray(False),
            }

    def step(self, key: Array, state: dict[str, Any], batch: Batch) -> tuple[dict[str, Any], Record]:
        """Update q(z), then q(globals). The record's bound, in nats per row, is between the two."""
        term, statistics = self.model.variational_e_step(state["q"], **batch.data)
        q = self.model.variational_m_step(state["q"], statistics)
        with jax.enable_x64(True):
            bound = (term - self.model.variational_kl(state["q"])) / batch.weight
            # Rounding alone can make a gain negative: a tolerance of zero is not a test.
            done = state["done"] | ((bound - state["bound"] < self.tolerance) & (self.tolerance > 0))
            q = jax.tree.map(lambda old, new: jnp.where(state["done"], old, new), state["q"], q)
            metrics = {"bound": bound.astype(jnp.float32)}
        return {"q": q, "bound": bound, "done": done}, Record(metrics, done=done)

    def evaluate(self, key: Array, state: dict[str, Any], batch: Batch) -> Float[Array, ""]:
        """The bound on these rows in nats per row, without a step; all ``num_data`` rows share the KL."""
        term, _ = self.model.variational_e_step(state["q"], **batch.data)
        with jax.enable_x64(True):
            share = batch.weight / len(batch) * batch.num_data
            return (term / batch.weight - self.model.variational_kl(state["q"]) / share).astype(jnp.float32)

    def params(self, state: dict[str, Any], batch: Batch) -> dict[str, Any]:
        """The hyperparameters of q(globals), float32."""
        return {"variational": jax.tree.map(lambda v: v.astype(jnp.float32), state["q"])}

    def finish(self, key: Array, state: dict[str, Any], records: Mapping[str, Array], batch: Batch) -> Draws:
        """Draws of the globals from q, with ``lp`` = log p(x, g) and ``log_weight`` = lp - log q(g), in nats.

        1,024 draws, fewer of many rows (each is one more pass over them) but at least 128.
        """

        def one(key: Array) -> tuple[dict[str, Array], dict[str, Array]]:
            key_draw, key_joint = jax.random.split(key)
            draw = self.model.variational_draw(key_draw, state["q"])
            draw = {name: value.astype(jnp.float32) for name, value in draw.items()}
            lp = log_joint(self.model, draw, key_joint, batch)
            log_q = self.model.variational_log_prob(state["q"], draw)
            with jax.enable_x64(True):
                stats = {"lp": lp, "log_weight": lp - log_q}
                return draw, {name: value.astype(jnp.float32) for name, value in stats.items()}

        def in_float32(bits: Array) -> tuple[dict[str, Array], dict[str, Array]]:
            with jax.enable_x64(False):
                return one(jax.random.wrap_key_data(bits, impl=jax.random.key_impl(key)))

        at_once = max(1, min(32, 2**13 // len(batch)))  # memory is bounded by draws times rows
        keys = jax.random.split(key, min(_MOST, max(_FEWEST, _WORK // len(batch))))
        with jax.enable_x64(True):  # when chains are vectorised the map is traced again, float64 parts and all
            posterior, stats = soft_vmap(in_float32, jax.random.key_data(keys), chunk_size=at_once)
        return Draws(self.params(state, batch), posterior, stats)


__all__ = ["VariationalBayes"]
