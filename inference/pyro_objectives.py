"""The project's objectives in Pyro: one of Pyro's own estimators where it is right, ours where it is not.

An estimator has ``loss(model, guide)`` and ``loss_and_grads(model, guide)``, minus the bound in nats for
the whole data set, as every ``pyro.infer.ELBO`` has.

==================  ==========================================================================
``ELBO``            ``TraceMeanField_ELBO`` (analytic KL) if model and guide draw their latents in
                    the same order: then no parent of a site in the model descends from it in the
                    guide. Otherwise ``Trace_ELBO``.
``ScoreFunction``   ``TraceGraph_ELBO``
``NVIL``            ``TraceGraph_ELBO`` with a network as baseline (:mod:`inference.pyro_baseline`)
the first two               ``TraceEnum_ELBO`` if the guide leaves out discrete latents to be summed out
``IWAE, Renyi``     :class:`_Renyi`. Pyro's ``RenyiELBO`` puts N / B inside the logsumexp, weighs
                    the whole data set jointly when there are globals, and sums nothing out.
``Reweighted…``     :class:`_WakeSleep`. Pyro's ``ReweightedWakeSleep`` gives the whole batch one
                    weight, the sum over its rows, so that one draw in K takes it all.
==================  ==========================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyro.infer
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor

from inference.errors import Incompatible
from inference.objectives import ELBO, IWAE, NVIL, Pair, Renyi, ReweightedWakeSleep, ScoreFunction
from inference.objectives.pair import refuse_discrete, refuse_split_globals
from inference.objectives.wake_sleep import refuse_factors
from inference.programs import Anatomy
from inference.pyro_density import at_values, density, refuse_tied_rows
from inference.pyro_programs import Thunk, trace


def estimator(objective: Any, both: Pair) -> Any:
    """What estimates this objective for a pair with these sites.

    Raises
    ------
    Incompatible
        When it would train to a wrong answer.
    """
    if isinstance(objective, pyro.infer.ELBO):
        _check_native(objective, both)
        return _Native(objective, bool(both.left_out))
    if not isinstance(objective, (ELBO, IWAE, NVIL, Renyi, ReweightedWakeSleep, ScoreFunction)):
        raise Incompatible(
            f"{objective!r} is not an objective that Pyro can run: expected ELBO, IWAE, Renyi, ScoreFunction, NVIL or "
            "ReweightedWakeSleep of inference.objectives, or an ELBO of pyro.infer. SVI (NumPyro) runs them all."
        )
    if isinstance(objective, ScoreFunction) and objective.decay:
        raise Incompatible(
            "pyro's moving average keeps a number for each place in a batch, and other rows come to stand there: use "
            "ScoreFunction() or NVIL() with PyroSVI; SVI has the average."
        )
    if isinstance(objective, ReweightedWakeSleep):
        return _wake_sleep(objective, both)
    if not isinstance(objective, (NVIL, ScoreFunction)):
        refuse_discrete(both, type(objective).__name__)
    refuse_tied_rows(both.left_out, both.parts, both.parts.scale)
    if isinstance(objective, (IWAE, Renyi)):
        if both.guide_parts.latent:
            refuse_split_globals(both, type(objective).__name__)
        alpha = objective.alpha if isinstance(objective, Renyi) else 0.0
        return _Renyi(alpha, objective.num_particles, both.parts, both.guide_parts.latent)
    return _Native(_native(objective, both), bool(both.left_out))


def _native(objective: ELBO | NVIL | ScoreFunction, both: Pair) -> pyro.infer.ELBO:
    if both.left_out:
        nesting = max(both.parts.nesting, both.guide_parts.nesting)
        return TraceEnum_ELBO(num_particles=objective.num_particles, max_plate_nesting=nesting)
    if isinstance(objective, (NVIL, ScoreFunction)):
        return pyro.infer.TraceGraph_ELBO(num_particles=objective.num_particles)
    kind = pyro.infer.TraceMeanField_ELBO if _same_order(both) else pyro.infer.Trace_ELBO
    return kind(num_particles=objective.num_particles)


def _same_order(both: Pair) -> bool:
    shared = [n for n in both.parts.latent if n in both.guide_parts.latent]
    return shared == list(both.guide_parts.latent)


@dataclass(frozen=True)
class _Native:
    """One of Pyro's estimators, on a model whose discrete latents are marked for summing out if they must be."""

    elbo: Any  # pyro.infer.ELBO
    sum_out: bool

    def loss(self, model: Thunk, guide: Thunk) -> float:
        """Minus the bound."""
        return self.elbo.loss(config_enumerate(model) if self.sum_out else model, guide)

    def loss_and_grads(self, model: Thunk, guide: Thunk) -> float:
        """Minus the bound; its gradient is added to the parameters'."""
        return self.elbo.loss_and_grads(config_enumerate(model) if self.sum_out else model, guide)


@dataclass(frozen=True)
class _Renyi:
    """Renyi's bound nested inside the expectation over globals; alpha = 0 is IWAE.

    shared + (N / B) sum_n (logsumexp_k (1 - a) rows[k, n] - log K) / (1 - a), one draw of the globals
    and K of the locals, with shared = log p(g) - log q(g) and rows[k, n] = log p(x_n, z_nk | g) - log q(z_nk).
    """

    alpha: float
    num_particles: int
    parts: Anatomy
    guessed: tuple[str, ...]  # latent sites of the guide

    def loss(self, model: Thunk, guide: Thunk) -> float:
        """Minus the bound."""
        with torch.no_grad():
            return -float(self.bound(model, guide))

    def loss_and_grads(self, model: Thunk, guide: Thunk) -> float:
        """Minus the bound; its gradient is added to the parameters'."""
        loss = -self.bound(model, guide)
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())

    def bound(self, model: Thunk, guide: Thunk) -> Tensor:
        """An estimate of the bound, nats for the whole data set."""
        # A guide over globals alone is one joint draw a particle: the whole data set is then a single row.
        joint = bool(self.guessed) and not self.parts.local & set(self.guessed)
        shared, scale, weights, globals_ = torch.zeros(()), 1.0, [], {}
        for k in range(self.num_particles):
            q = trace(guide, globals_)
            values = {n: q[n]["value"] for n in self.guessed}
            log_p, log_q = at_values(model, values, self.parts), density(q, self.parts.plate)
            if joint:
                weights.append((log_p.total() - log_q.total())[None])
                continue
            if k == 0:
                shared, scale = log_p.shared - log_q.shared, log_p.scale
                globals_ = {n: v for n, v in values.items() if n not in self.parts.local}
            weights.append(log_p.rows - log_q.rows)
        order = 1 - self.alpha
        rows = (torch.logsumexp(order * torch.stack(weights), 0) - math.log(self.num_particles)) / order
        return shared + scale * rows.sum()


def _wake_sleep(objective: ReweightedWakeSleep, both: Pair) -> _WakeSleep:
    refuse_factors(both)
    shared = [n for n in both.guide_parts.latent if n not in both.parts.local]
    if objective.sleep or shared or both.left_out:
        what = "a sleep phase" if objective.sleep else f"global latents {shared}" if shared else "latents summed out"
        raise Incompatible(f"ReweightedWakeSleep with {what} runs under NumPyro (SVI), not under Pyro.")
    return _WakeSleep(objective.num_particles, both.parts, both.guide_parts.latent)


@dataclass(frozen=True)
class _WakeSleep:
    """Wake phases of reweighted wake-sleep, a weight for each row; nothing is differentiated through a draw.

    (N / B) sum_n logsumexp_k rows[k, n] - log K for the model, sum_k w~[k, n] log q(z_nk | x_n) for the guide.
    """

    num_particles: int
    parts: Anatomy
    guessed: tuple[str, ...]

    def loss(self, model: Thunk, guide: Thunk) -> float:
        """Minus the K-sample bound."""
        with torch.no_grad():
            return -float(self._bound(model, guide)[0])

    def loss_and_grads(self, model: Thunk, guide: Thunk) -> float:
        """Minus the K-sample bound; the gradients of both phases are added to the parameters'."""
        bound, learned = self._bound(model, guide)
        loss = -bound - learned
        if loss.requires_grad:
            loss.backward()
        return -float(bound.detach())

    def _bound(self, model: Thunk, guide: Thunk) -> tuple[Tensor, Tensor]:
        ps, qs, scale, shared = [], [], 1.0, torch.zeros(())
        for _ in range(self.num_particles):
            with torch.no_grad():
                q = trace(guide)
                values = {n: q[n]["value"] for n in self.guessed}
            p = at_values(model, values, self.parts)
            ps.append(p.rows)
            qs.append(density(trace(guide, values), self.parts.plate).rows)
            shared, scale = p.shared, p.scale
        log_p, log_q = torch.stack(ps), torch.stack(qs)
        rows = log_p - log_q.detach()
        bound = shared + scale * (torch.logsumexp(rows, 0) - math.log(self.num_particles)).sum()
        return bound, scale * (torch.softmax(rows, 0).detach() * log_q).sum()


def _check_native(objective: pyro.infer.ELBO, both: Pair) -> None:
    """Pyro's own estimators, where they would go wrong without a word."""
    name = type(objective).__name__
    if name.startswith("Jit"):
        raise Incompatible(
            f"pyro's {name} compiles the first batch into itself. Use {name.removeprefix('Jit')}, or ELBO()."
        )
    if isinstance(objective, pyro.infer.ReweightedWakeSleep):
        raise Incompatible(
            "pyro's ReweightedWakeSleep gives a whole batch one weight, the sum over its rows, so that one draw takes "
            "it all. Use ReweightedWakeSleep() of inference.objectives, which weighs each row."
        )
    discrete = [n for n in both.guide_parts.latent if n not in both.guide_parts.pathwise]
    if discrete and isinstance(objective, (pyro.infer.RenyiELBO, pyro.infer.TraceMeanField_ELBO)):
        raise Incompatible(
            f"pyro's {name} has no gradient for {discrete}, which have no reparameterised sampler. "
            "Use ScoreFunction(), or leave discrete sites out of the guide and use ELBO()."
        )
    if isinstance(objective, pyro.infer.RenyiELBO) and both.parts.scale != 1:
        raise Incompatible(
            "pyro's RenyiELBO puts the factor N / B of minibatches inside its logsumexp. Use IWAE() or Renyi(), or "
            "batch_size=None."
        )
    if isinstance(objective, pyro.infer.TraceMeanField_ELBO) and not _same_order(both):
        raise Incompatible(
            f"pyro's {name} may be another quantity when the guide draws {list(both.guide_parts.latent)} in another "
            f"order than the model, {list(both.parts.latent)}. Use ELBO()."
        )
    if both.left_out and not isinstance(objective, TraceEnum_ELBO):
        raise Incompatible(
            f"the guide leaves out {sorted(both.left_out)}, which pyro's {name} would draw from the prior. "
            "Use ELBO(), which sums them out."
        )
    refuse_tied_rows(both.left_out, both.parts, both.parts.scale)


__all__ = ["estimator"]
