r"""Vector quantization: the nearest code in place of a draw, and a gradient straight through it.

With z_e the encoder's vector, e = E[k] the nearest vector of the codebook and sg = stop gradient, minimised per row:

    -log p(x | z_q) - log p(z) + |sg[z_e] - e|² + β |z_e - sg[e]|²,    the decoder fed z_e + sg[e - z_e],

squared distances summed over positions. The first two terms are minus the bound: the guide is the limit in which all
of q(z | x) is at the nearest code, whose entropy is zero, so that log p(x | z) + log p(z) is the ELBO. The third moves
the codebook, the fourth keeps the encoder near it. :class:`MovingCodebook` puts in the place of the third a moving
average of the vectors that each code is nearest to, and restarts codes that are not used.

A guide's site can be trained so if its distribution shows ``encoded``, ``codebook`` and ``nearest``
(``guides.VectorQuantized`` does); programs read the vectors of a site ``z`` from a deterministic site ``z_quantized``,
which is where the gradient goes straight through.

References
----------
Neural Discrete Representation Learning (van den Oord, Vinyals & Kavukcuoglu, 2017), with its appendix on moving
averages; Jukebox: A Generative Model for Music (Dhariwal et al., 2020), for restarts.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.primitives import Messenger

from inference.errors import Incompatible
from inference.objectives.elbo import refuse_left_out
from inference.objectives.objective import Estimate, Objective, State, keep, surrogate
from inference.objectives.pair import Pair, draw, drawn_values
from inference.programs import base_of, site_log_prob, split_density
from inference.protocols import Program

USAGE = "codebook_usage"


@dataclass(frozen=True)
class VectorQuantization(Objective):
    """The bound at the nearest codes; codebook by its loss, encoder straight through.

    The history holds besides the ``bound`` the ``perplexity`` of the codes of each batch, at most the number of codes
    (all used alike), and the ``distance``, the squared distance between encoder and code, per row.

    Parameters
    ----------
    beta
        Weight of the commitment, at least 0.
    """

    beta: float = 0.25

    def __post_init__(self) -> None:
        _check_beta(self.beta)

    def estimate(self, key: Array, both: Pair, state: State) -> Estimate:
        bound, codes, metrics = _at_nearest(key, both, "VectorQuantization")
        apart = sum((jnp.sum((stop_gradient(c.encoded) - c.vectors) ** 2) for c in codes.values()), jnp.zeros(()))
        loss = -bound + both.scale * (apart + self.beta * _commitment(codes))
        return Estimate(loss, bound, metrics)


@dataclass(frozen=True)
class MovingCodebook(Objective):
    """The bound at the nearest codes; each vector of the codebook a moving average of what it is nearest to.

    With n the share of positions at a code in this batch, S the sum of their vectors over the number of positions, and
    u the moving average of n, a step moves

        u ← γ u + (1 - γ) n,    E ← E + (1 - γ) (S - n E) / u,

    which makes E the ratio of the moving averages of S and n. Where K u falls below ``restart`` the code is put
    at a vector of the batch picked at random, and u at 1 / K. The gradient of the codebook is minus its step: use
    an optimizer that takes it as it is, ``codebook_moves(optax.adam(1e-3))``.

    Parameters
    ----------
    beta
        Weight of the commitment, at least 0.
    decay
        γ.
    restart
        Least use of a code, as a share of even use; 0 never restarts.
    """

    beta: float = 0.25
    decay: float = 0.99
    restart: float = 0.03

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        for name in ("decay", "restart"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 0 and less than 1.")

    def guide(self, guide: Program) -> Program:
        return _Counted(guide)

    def estimate(self, key: Array, both: Pair, state: State) -> Estimate:
        if USAGE not in state:
            raise Incompatible(
                "MovingCodebook keeps the use of codes beside the guide: pass objective.guide(guide) to "
                "numpyro.infer.SVI (inference.SVI does)."
            )
        key, key_restart = jax.random.split(key)
        bound, codes, metrics = _at_nearest(key, both, "MovingCodebook")
        rows = both.parts.plates[both.parts.plate][0] if both.parts.plate else 1  # that the loss stands for
        use, moves, restarted = {}, jnp.zeros(()), jnp.zeros(())
        for i, (name, c) in enumerate(codes.items()):
            step, use[name], dead = self._step(jax.random.fold_in(key_restart, i), c, state[USAGE][name])
            moves = moves - rows * jnp.sum(c.codebook * step)
            restarted = restarted + jnp.sum(dead)
        loss = -bound + both.scale * self.beta * _commitment(codes) + surrogate(moves)
        return Estimate(loss, bound, metrics | {"restarted": rows * restarted}, {USAGE: use})

    def _step(self, key: Array, c: Nearest, use: Float[Array, " codes"]) -> tuple[Array, Array, Array]:
        """Where each vector of the codebook goes, the use of the codes after that, and which were restarted."""
        c = jax.tree.map(stop_gradient, c)
        encoded, one_hot = c.encoded.reshape(-1, c.encoded.shape[-1]), c.one_hot.reshape(-1, len(c.codebook))
        n, total = jnp.mean(one_hot, axis=0), one_hot.T @ encoded / len(encoded)  # n, S
        use = self.decay * use + (1 - self.decay) * n
        step = (1 - self.decay) * (total - n[:, None] * c.codebook) / jnp.maximum(use, 1e-12)[:, None]
        dead = len(use) * use < self.restart
        picked = encoded[jax.random.randint(key, (len(use),), 0, len(encoded))]
        return jnp.where(dead[:, None], picked - c.codebook, step), jnp.where(dead, 1 / len(use), use), dead


def codebook_moves(optimizer: optax.GradientTransformation, prefix: str = "codebook") -> optax.GradientTransformation:
    """An optimizer that moves codebooks by minus their gradient, as ``MovingCodebook`` wants, and all else by another.

    Parameters
    ----------
    optimizer
        Of the other parameters.
    prefix
        What the names of codebooks begin with.
    """

    def labels(params: dict[str, Any]) -> dict[str, str]:
        return {name: "codebook" if name.startswith(prefix) else "other" for name in params}

    return optax.partition({"codebook": optax.sgd(1.0), "other": optimizer}, labels)


class Nearest(NamedTuple):
    """A site's encoder vectors z_e, the codebook, and the nearest codes."""

    encoded: Float[Array, "batch ... dim"]
    codebook: Float[Array, "codes dim"]
    one_hot: Float[Array, "batch ... codes"]

    @property
    def vectors(self) -> Float[Array, "batch ... dim"]:
        return self.one_hot @ self.codebook


def _at_nearest(key: Array, both: Pair, name: str) -> tuple[Array, dict[str, Nearest], dict[str, Array]]:
    """The bound at the nearest codes, with a straight-through gradient; the codes; what to report of them."""
    refuse_left_out(both, name)
    quantize = _Quantize()
    with quantize:
        guided = draw(both.guide, key, key, both.parts.plate)
        codes = quantize.found
        others = sorted(set(both.guide_parts.latent) - codes.keys())
        if others or not codes:
            raise Incompatible(
                f"{name} trains guides that take the nearest code of a codebook, and this one samples "
                f"{others or 'nothing'} in another way. Use guides.VectorQuantized with ppl_models.VQVAE, or ELBO()."
            )
        with handlers.seed(rng_seed=key), handlers.substitute(data=drawn_values(guided)):
            p = dict(handlers.trace(both.model).get_trace())
    missing = [n for n in codes if f"{n}_quantized" not in p]
    if missing:
        raise Incompatible(
            f"{name} sends the gradient through the vectors of {missing}, and the model has no deterministic site "
            f"{missing[0] + '_quantized'!r}. Write numpyro.deterministic({missing[0] + '_quantized'!r}, z @ codebook)."
        )
    terms = {n: site_log_prob(s) for n, s in p.items() if s["type"] == "sample"}
    rows = both.parts.plates[both.parts.plate][0] if both.parts.plate else 1
    metrics = {"distance": both.scale * _commitment(codes)}
    for site, c in codes.items():
        metrics["perplexity" if len(codes) == 1 else f"perplexity.{site}"] = rows * _perplexity(c.one_hot)
    return split_density(terms, p, both.parts.plate).total(), codes, jax.tree.map(stop_gradient, metrics)


class _Quantize(Messenger):
    """Give quantizing sites their nearest code, and their vectors the gradient of the encoder's."""

    def __init__(self) -> None:
        self.found: dict[str, Nearest] = {}
        super().__init__()

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and not msg["is_observed"] and msg["value"] is None:
            fn = base_of(msg["fn"])
            if _quantizes(fn):
                one_hot = stop_gradient(fn.nearest)
                self.found[msg["name"]] = Nearest(fn.encoded, fn.codebook, one_hot)
                msg["value"] = one_hot
        elif msg["type"] == "deterministic" and (name := msg["name"].removesuffix("_quantized")) in self.found:
            c = self.found[name]
            msg["value"] = c.encoded + stop_gradient(c.vectors - c.encoded)


@dataclass(frozen=True)
class _Counted:
    """A guide with the moving average of the use of its codes beside it."""

    counted: Program

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with handlers.trace() as tr:
            out = self.counted(*args, **kwargs)
        sizes = {
            n: len(base_of(s["fn"]).codebook)
            for n, s in tr.items()
            if s["type"] == "sample" and _quantizes(base_of(s["fn"]))
        }
        keep(USAGE, {n: jnp.full(k, 1 / k) for n, k in sizes.items()})
        return out

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.counted)


def _quantizes(fn: Any) -> bool:
    return all(hasattr(fn, name) for name in ("encoded", "codebook", "nearest"))


def _commitment(codes: dict[str, Nearest]) -> Array:
    """Sum of |z_e - sg[e]|²."""
    return sum((jnp.sum((c.encoded - stop_gradient(c.vectors)) ** 2) for c in codes.values()), jnp.zeros(()))


def _perplexity(one_hot: Float[Array, "batch ... codes"]) -> Array:
    """exp of the entropy of the frequencies of the codes."""
    share = jnp.mean(one_hot.reshape(-1, one_hot.shape[-1]), axis=0)
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share)))


def _check_beta(beta: float) -> None:
    if not 0 <= beta < float("inf"):
        raise ValueError(f"beta is {beta}; expected a number of at least 0.")


__all__ = ["MovingCodebook", "VectorQuantization", "codebook_moves"]
