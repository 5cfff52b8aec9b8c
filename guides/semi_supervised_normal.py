r"""The guide of M2: a classifier, and a Normal for the style of a row of a given class.

    q(y | x) = Categorical(classifier(x))                  where the class is not known
    q(z | x, y) = N(loc(x, y), diag(scale(x, y))²)         with the class that is known, or drawn

The classifier has no part in the bound of a row whose class is known, so a factor of the guide gives it one:

    bound + alpha sum over rows whose class is known of log q(y | x).

Since alpha log q <= 0, the sum stays a bound on the evidence. A factor of a guide is a term of the objective; it is no
part of q's density, and importance weights leave it out.

References
----------
Semi-supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed & Welling, 2014).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpyro
from jaxtyping import Float, Int

from ppl_models.networks import (
    beside,
    check_architecture,
    check_count,
    diagonal_normal,
    fitted_network,
    network,
    one_hot,
    where,
)


@dataclass(frozen=True)
class SemiSupervisedNormal:
    """q(y | x) q(z | x, y): parameter sites ``classifier`` and ``encoder``.

    Parameters
    ----------
    num_classes
        C, how many classes there are.
    latent_dim
        Length of z.
    network
        Architecture that maps a row and the one-hot class, side by side, to ``2 * latent_dim`` numbers, locations and
        then scales before their softplus: see :func:`ppl_models.networks.network`.
    classifier
        Architecture that maps a row to the logits of its class.
    alpha
        Weight of log q(y | x) in each row whose class is known, beside the 1 of its bound. The paper's is 0.1 N / N_l,
        with N rows and N_l of known class. With 0, q(y | x) learns from the others alone.
    ppl
        ``numpyro`` or ``pyro``.

    Raises
    ------
    ValueError
        ``num_classes`` or ``latent_dim`` is not a whole number of at least 1, or ``alpha`` is negative.
    TypeError
        ``network`` or ``classifier`` cannot be run by ``ppl``.
    """

    num_classes: int
    latent_dim: int
    network: Any
    classifier: Any
    alpha: float = 1.0
    ppl: ModuleType = numpyro

    def __post_init__(self) -> None:
        check_count(num_classes=self.num_classes, latent_dim=self.latent_dim)
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"alpha is {self.alpha!r}; expected a number of at least 0.")
        check_architecture(self.ppl, "network", self.network)
        check_architecture(self.ppl, "classifier", self.classifier)

    def __call__(self, x: Float[Any, "batch pixels"], y: Int[Any, " batch"], num_data: int | None = None) -> Any:
        """Sample the class of each row where it is not known, and the style.

        Parameters
        ----------
        x
            Rows, shape ``(batch, pixels)``.
        y
            Classes from 0 to C - 1, and -1 where unknown, shape ``(batch,)``.
        num_data
            Rows in the whole data set, ``batch`` by default.

        Returns
        -------
        Array
            Styles z, shape ``(batch, latent_dim)``.
        """
        ppl = self.ppl
        classify = network(ppl, "classifier", self.classifier, x.shape[-1], self.num_classes)
        encode = network(ppl, "encoder", self.network, x.shape[-1] + self.num_classes, 2 * self.latent_dim)
        known = y >= 0
        with ppl.plate("data", num_data or len(x), subsample_size=len(x)):
            q_y = ppl.distributions.Categorical(logits=classify(x))
            if self.alpha:
                log_q = q_y.log_prob(where(known, y, 0 * y))
                # The objective subtracts what a guide's site adds.
                _factor(ppl, "known_classes", -self.alpha * where(known, log_q, 0 * log_q))
            hidden = ppl.sample("y_hidden", q_y.mask(~known))
            y = one_hot(where(known, y, hidden), self.num_classes, x)
            return ppl.sample("z", diagonal_normal(ppl, encode(beside(x, y))))

    def class_probs(self, params: dict[str, Any], x: Float[Any, "rows pixels"]) -> Float[np.ndarray, "rows classes"]:
        """q(y | x) of the classifier that was learned.

        Parameters
        ----------
        params
            Of a fit, ``run.params``, by either engine.
        x
            Rows, shape ``(rows, pixels)``.

        Returns
        -------
        Array
            Probabilities, shape ``(rows, num_classes)``.
        """
        logits = fitted_network(self.ppl, "classifier", self.classifier, self.num_classes, params, x)
        odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return odds / odds.sum(axis=-1, keepdims=True)


def _factor(ppl: ModuleType, name: str, value: Any) -> None:
    """A term that depends on parameters alone: Pyro asks whether it has a pathwise gradient."""
    ppl.factor(name, value) if ppl is numpyro else ppl.factor(name, value, has_rsample=True)
