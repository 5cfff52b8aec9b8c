r"""What a critic and a generator play for: each a value with the few lines that tell it from the others.

The critic gives every row a score s. With D = sigma(s) the chance that a row is of the data,

    minimax          V = E_data[log D] + E_model[log(1 - D)],       critic max V, generator min V
    non-saturating   the same critic,                               generator min -E_model[log D]
    Wasserstein      V = E_data[s] - E_model[s],  s 1-Lipschitz,    critic max V, generator min V

At the best critic D* = p_data / (p_data + p_model), and V = 2 JS(p_data, p_model) - log 4: what the minimax generator
descends. The non-saturating generator has the same fixed point, but what it descends is not JS. The best Wasserstein
critic has V = W_1(p_data, p_model); its scores are not probabilities, and nothing squashes them.

In a pair of a model and a guide (ALI, BiGAN) rows are (x, z): the data's with z from the guide, the model's as it drew
them; the guide then plays on the generator's side, with ``encoder`` for its loss.

References
----------
Generative Adversarial Networks (Goodfellow et al., 2014); Wasserstein GAN (Arjovsky, Chintala and Bottou, 2017);
Improved Training of Wasserstein GANs (Gulrajani et al., 2017); On the Regularization of Wasserstein GANs (Petzka,
Fischer and Lukovnikov, 2018), for the one-sided penalty.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid
from jaxtyping import Array, Float

Scores = Float[Array, " batch"]
Scalar = Float[Array, ""]
Rows = dict[str, Array]


class Game(Protocol):
    """A frozen value. ``real`` are scores of the data's rows, ``fake`` of the model's.

    ``critic`` is what the critic climbs, ``generator`` and ``encoder`` what their players descend; ``divergence`` is
    what the critic's value estimates, and ``accuracy`` the share of rows that it tells right. Besides, a game may offer
    ``penalty(key, score, real, fake)``, taken off what the critic climbs, with its score as a function of rows; and
    ``project(params)``, which puts the critic's parameters back where they may be. Where scores are ``log_odds`` that a
    row is of the data, a critic that is sure leaves the generator little to go by; others measure a distance.
    """

    log_odds: ClassVar[bool]

    def critic(self, real: Scores, fake: Scores) -> Scalar: ...

    def generator(self, fake: Scores) -> Scalar: ...

    def encoder(self, real: Scores) -> Scalar: ...

    def divergence(self, real: Scores, fake: Scores) -> Scalar: ...

    def accuracy(self, real: Scores, fake: Scores) -> Scalar: ...


def _log_likelihood(game: Game, real: Scores, fake: Scores) -> Scalar:
    """E_data[log D] + E_model[log(1 - D)], D = sigma(s)."""
    return log_sigmoid(real).mean() + log_sigmoid(-fake).mean()


def _jensen_shannon(game: Game, real: Scores, fake: Scores) -> Scalar:
    return (_log_likelihood(game, real, fake) + math.log(4.0)) / 2


def _at_zero(game: Game, real: Scores, fake: Scores) -> Scalar:
    return _accuracy(real, fake, 0.0)


@dataclass(frozen=True)
class Minimax:
    """The generator descends what the critic climbs; its gradient fades where the critic is sure.

    ``divergence`` is (V + log 4) / 2, a lower bound on the Jensen-Shannon divergence, in nats.
    """

    log_odds: ClassVar[bool] = True
    critic, divergence, accuracy = _log_likelihood, _jensen_shannon, _at_zero

    def generator(self, fake: Scores) -> Scalar:
        return log_sigmoid(-fake).mean()  # log(1 - D)

    def encoder(self, real: Scores) -> Scalar:
        return log_sigmoid(real).mean()  # log D


@dataclass(frozen=True)
class NonSaturating:
    """The generator climbs log D of its rows, whose gradient is large where the critic is sure.

    ``divergence`` is the critic's, as in :class:`Minimax`; it is not what this generator descends.
    """

    log_odds: ClassVar[bool] = True
    critic, divergence, accuracy = _log_likelihood, _jensen_shannon, _at_zero

    def generator(self, fake: Scores) -> Scalar:
        return -log_sigmoid(fake).mean()  # -log D

    def encoder(self, real: Scores) -> Scalar:
        return -log_sigmoid(-real).mean()  # -log(1 - D)


def _difference(game: Game, real: Scores, fake: Scores) -> Scalar:
    """E_data[s] - E_model[s]."""
    return real.mean() - fake.mean()


def _midway(game: Game, real: Scores, fake: Scores) -> Scalar:
    return _accuracy(real, fake, (real.mean() + fake.mean()) / 2)


def _raise(game: Game, fake: Scores) -> Scalar:
    return -fake.mean()


def _lower(game: Game, real: Scores) -> Scalar:
    return real.mean()


@dataclass(frozen=True)
class Wasserstein:
    """A critic with small weights, and so some Lipschitz constant K, which is not known: V estimates K W_1.

    Parameters
    ----------
    clip
        Every parameter of the critic is put back into [-clip, clip] after its step.
    """

    clip: float = 0.01

    log_odds: ClassVar[bool] = False
    critic = divergence = _difference
    generator, encoder, accuracy = _raise, _lower, _midway

    def __post_init__(self) -> None:
        _check_positive("Wasserstein", clip=self.clip)

    def project(self, params: Any) -> Any:
        return jax.tree.map(lambda w: jnp.clip(w, -self.clip, self.clip), params)


@dataclass(frozen=True)
class WassersteinGradientPenalty:
    """A critic whose gradient between data and draws is drawn to length one: V - weight E[(|grad s| - 1)²].

    ``divergence`` exceeds W_1 by a factor of at least 1 + W_1 / (2 weight). On a line, with F and G the distribution
    functions and r the density of the places between, the best slope is 1 + |F - G| / (2 weight r), and
    V = W_1 + integral of (F - G)² / (2 weight r). A slope of the wrong sign can only turn through zero, which costs
    ``weight``: there a critic may be held on the wrong side, where ``divergence`` is negative.
    :class:`WassersteinLipschitzPenalty` does not do that.

    Parameters
    ----------
    weight
        Of the penalty.
    """

    weight: float = 10.0

    log_odds: ClassVar[bool] = False
    critic = divergence = _difference
    generator, encoder, accuracy = _raise, _lower, _midway

    def __post_init__(self) -> None:
        _check_positive("WassersteinGradientPenalty", weight=self.weight)

    def penalty(self, key: Array, score: Callable[[Rows], Scores], real: Rows, fake: Rows) -> Scalar:
        return self.weight * jnp.square(_slopes(key, score, real, fake) - 1).mean()


@dataclass(frozen=True)
class WassersteinLipschitzPenalty:
    """A critic whose gradient may be shorter than one, not longer: V - weight E[max(0, |grad s| - 1)²].

    The best critic, its slope and ``divergence`` are those of :class:`WassersteinGradientPenalty`.

    Parameters
    ----------
    weight
        Of the penalty.
    """

    weight: float = 10.0

    log_odds: ClassVar[bool] = False
    critic = divergence = _difference
    generator, encoder, accuracy = _raise, _lower, _midway

    def __post_init__(self) -> None:
        _check_positive("WassersteinLipschitzPenalty", weight=self.weight)

    def penalty(self, key: Array, score: Callable[[Rows], Scores], real: Rows, fake: Rows) -> Scalar:
        return self.weight * jnp.square(jnp.maximum(_slopes(key, score, real, fake) - 1, 0)).mean()


def _slopes(
    key: Array, score: Callable[[Rows], Float[Array, " batch *critics"]], real: Rows, fake: Rows
) -> Float[Array, "critics batch"]:
    """|grad s| of each critic over all arrays of a row, at a random place on the way from the data to the model."""
    share = jax.random.uniform(key, (len(next(iter(real.values()))),))

    def between(a: Array, b: Array) -> Array:
        t = share.reshape(-1, *(1,) * (a.ndim - 1))
        return t * a + (1 - t) * b

    places = {n: between(real[n], fake[n]) for n in real}
    scores, pull = jax.vjp(lambda rows: score(rows).reshape(len(share), -1), places)  # (batch, critics)
    count = scores.shape[1]
    each = jnp.repeat(jnp.eye(count, dtype=scores.dtype)[:, None], len(share), axis=1)  # (critics, batch, critics)
    (gradient,) = jax.vmap(pull)(each)
    square = sum(jnp.square(v).reshape(count, len(share), -1).sum(-1) for v in gradient.values())
    return jnp.sqrt(square + 1e-12)  # sqrt has no gradient at zero


def _accuracy(real: Scores, fake: Scores, threshold: Any) -> Scalar:
    return ((real > threshold).mean() + (fake <= threshold).mean()) / 2


def _check_positive(game: str, **values: float) -> None:
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{game}: {name} is {value}; expected a positive number.")


__all__ = [
    "Game",
    "Minimax",
    "NonSaturating",
    "Wasserstein",
    "WassersteinGradientPenalty",
    "WassersteinLipschitzPenalty",
]
