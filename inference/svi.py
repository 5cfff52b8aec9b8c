"""Stochastic variational inference: one optimizer step on a bound, and draws from the fitted guide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro
import optax
from jaxtyping import Array
from numpyro import handlers
from numpyro.distributions import biject_to, constraints

from inference import denoising_posterior, posterior
from inference.check import check
from inference.errors import Incompatible
from inference.objectives.objective import Estimate, Objective, State
from inference.programs import bind, on_rows, scaled_rows, site_log_prob, trace
from inference.protocols import Batch, Denoiser, Draws, Program, Record
from inference.weight_average import average

Params = dict[str, Any]


@dataclass(frozen=True)
class SVI:
    """Maximise a bound over the parameters of a model and a guide.

    Parameters
    ----------
    model, guide
        NumPyro programs. Discrete latents that the guide leaves out are summed out exactly; a guide
        that samples nothing (``guides.empty``) makes this maximum likelihood.
    objective
        From :mod:`inference.objectives`, or any ``numpyro.infer`` ELBO. State that it keeps between steps
        (a count for schedules, moving averages) is part of the algorithm's state.
    optimizer
        An optax transformation. It sees the gradient of minus the bound *per row* (nats), so step
        sizes do not depend on the size of the data set. :func:`~inference.weight_average.averaged` around it
        reports averages of the weights.

    References
    ----------
    Stochastic Variational Inference (Hoffman, Blei, Wang and Paisley, 2013).
    """

    model: Program
    guide: Program
    objective: Any
    optimizer: optax.GradientTransformation

    engine: ClassVar[str] = "numpyro"

    def check(self, batch: Batch) -> None:
        """Refuse a model, guide, objective and data that do not go together, and what is no optimizer."""
        if not (hasattr(self.optimizer, "init") and hasattr(self.optimizer, "update")):
            raise Incompatible(f"optimizer is {self.optimizer!r}; expected one of optax, such as optax.adam(1e-3).")
        check(self.model, self.guide, self.objective, batch)

    def init(self, key: Array, batch: Batch) -> dict[str, Any]:
        """Parameters (unconstrained) drawn from ``key``, the optimizer's state, and what the objective keeps."""
        key_guide, key_model = jax.random.split(key)
        guide = trace(bind(self._trained_guide, batch), key_guide)
        latents = {n: s["value"] for n, s in guide.items() if s["type"] == "sample"}
        model = trace(bind(self.model, batch), key_model, latents)
        values = {n: s["value"] for n, s in (model | guide).items() if s["type"] == "param"}
        params = {n: _transform(model | guide, n).inv(v) for n, v in values.items()}
        kept = {n: s["value"] for n, s in guide.items() if s["type"] == "mutable"}
        return {"params": params, "optimizer": self.optimizer.init(params), "kept": kept}

    def init_shapes(self, batch: Batch) -> Params:
        """Shapes of the parameters, by name."""
        return jax.eval_shape(self.init, jax.random.key(0), batch)["params"]

    def step(self, key: Array, state: dict[str, Any], batch: Batch) -> tuple[dict[str, Any], Record]:
        """One gradient step on this batch; the record is of the parameters before it, in nats per row."""
        gradient, estimate = self.gradient(key, state, batch)
        updates, optimizer = self.optimizer.update(gradient, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "optimizer": optimizer, "kept": estimate.state}, self.record(estimate, batch)

    def gradient(
        self, key: Array, state: dict[str, Any], batch: Batch, wrt: frozenset[str] | None = None
    ) -> tuple[Params, Estimate]:
        """The gradient of the loss per row in the named parameters (all by default), and what was estimated."""
        params = state["params"]
        moving = {n: v for n, v in params.items() if wrt is None or n in wrt}

        def loss(moving: Params) -> tuple[Array, Estimate]:
            estimate = self._estimate(key, params | moving, state["kept"], batch)
            return estimate.loss / scaled_rows(self.model, batch), estimate

        return jax.grad(loss, has_aux=True)(moving)

    def record(self, estimate: Estimate, batch: Batch) -> Record:
        """What the history keeps of an estimate: the bound and its parts, in nats per row."""
        rows = scaled_rows(self.model, batch)
        return Record({"bound": estimate.bound / rows} | {n: v / rows for n, v in estimate.metrics.items()})

    def evaluate(self, key: Array, state: dict[str, Any], batch: Batch) -> Array:
        """The bound on this batch in nats per row, without a step."""
        params = average(state["optimizer"], state["params"])
        return self._estimate(key, params, state["kept"], batch).bound / scaled_rows(self.model, batch)

    def params(self, state: dict[str, Any], batch: Batch) -> Params:
        """Parameters in their own spaces, by site name: their averages, where the optimizer keeps them."""
        return constrain(self, average(state["optimizer"], state["params"]), batch)

    def finish(self, key: Array, state: dict[str, Any], records: dict[str, Array], batch: Batch) -> Draws:
        """Parameters, and draws of the global latents from the guide with their log weights (one chain)."""
        params = self.params(state, batch)
        return Draws(params, *posterior.guide_draws(self.model, self.guide, params, key, batch))

    def explain(self, key: Array, state: dict[str, Any], batch: Batch) -> str:
        """Where the bound stops being finite, at this state or one step on, for the error message."""
        with numpyro.validation_enabled(False):  # something is known to be wrong: find where
            if bool(jnp.isfinite(self.evaluate(key, state, batch))):
                state, _ = self.step(key, state, batch)
            params = self.params(state, batch)
            guide = trace(bind(self.guide, batch), key, params)
            latents = {n: s["value"] for n, s in guide.items() if s["type"] == "sample"}
            model = trace(bind(self.model, batch), key, params | latents)
        for where, tr in (("guide", guide), ("model", model)):
            for name, site in tr.items():
                if site["type"] == "param" and not _finite(site["value"]):
                    return f", where parameter {name!r} of the {where} is not"
                if site["type"] == "sample" and not (_finite(site["value"]) and _finite(site_log_prob(site))):
                    return f", where site {name!r} of the {where} has a log density that is not"
        return ""

    @property
    def answers(self) -> Any:
        """What a fit is asked with: of a diffusion scans over its steps, of other programs their runs."""
        return denoising_posterior if isinstance(self.model, Denoiser) else posterior

    @property
    def _trained_guide(self) -> Program:
        """The guide with what the objective keeps beside it."""
        return self.objective.guide(self.guide) if hasattr(self.objective, "guide") else self.guide

    def _estimate(self, key: Array, unconstrained: Params, kept: State, batch: Batch) -> Estimate:
        params = constrain(self, unconstrained, batch)
        model, guide = on_rows(self.model, batch), on_rows(self._trained_guide, batch)
        if isinstance(self.objective, Objective):
            return self.objective.evaluate(key, params | kept, model, guide, **batch.data)
        if not kept:
            loss = self.objective.loss(key, params, model, guide, **batch.data)
            return Estimate(loss, -loss)
        out = self.objective.loss_with_mutable_state(key, params | kept, model, guide, **batch.data)
        return Estimate(out["loss"], -out["loss"], {}, out["mutable_state"])


def constrain(algorithm: SVI, unconstrained: Params, batch: Batch) -> Params:
    """Map parameters into their constraints, found by an abstract run of both programs."""
    found: dict[str, Any] = {}

    def run(key: Array) -> None:
        with handlers.seed(rng_seed=key):
            guide = handlers.trace(bind(algorithm._trained_guide, batch)).get_trace()
        latents = {n: s["value"] for n, s in guide.items() if s["type"] == "sample"}
        model = trace(bind(algorithm.model, batch), key, latents)
        found.update({n: _transform(model | guide, n) for n in unconstrained})

    jax.eval_shape(run, jax.random.key(0))
    return {n: found[n](v) for n, v in unconstrained.items()}


def _finite(value: Any) -> bool:
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(value))


def _transform(tr: dict[str, Any], name: str) -> Any:
    return biject_to(tr[name]["kwargs"].get("constraint", constraints.real))


__all__ = ["SVI", "constrain"]
