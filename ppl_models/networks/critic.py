r"""Critics: a score for each row, large where the row looks like data; also of one that classifies rows as it scores.

A classifier of K classes has logits l_k, of which softmax sees differences alone; their size is free to tell data from
draws (Salimans et al.): with a logit of zero for "drawn",

    D = sum_k exp l_k / (sum_k exp l_k + 1) = sigma(s),    s = log sum_k exp l_k,    p(y = k | x, data) = softmax_k(l)

References
----------
Improved Techniques for Training GANs (Salimans, Goodfellow, Zaremba, Cheung, Radford and Chen, 2016).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from .apply import check_architecture, network
from .rows import check_count


@dataclass(frozen=True)
class Critic:
    """A network over whole rows, a program with parameter ``critic``.

    Parameters
    ----------
    network
        Architecture that maps the numbers of a row to one: see :func:`network`.

    Raises
    ------
    TypeError
        ``network`` cannot be run by NumPyro.
    """

    network: Any

    def __post_init__(self) -> None:
        check_architecture(numpyro, "network", self.network)

    def __call__(self, **rows: Float[Array, "batch *event"]) -> Float[Array, " batch"]:
        """Scores of rows, by the name of the site or input: ``x``, and ``z`` or ``y`` where there are such."""
        return _outputs(self.network, 1, rows)[:, 0]


@dataclass(frozen=True)
class ClassifyingCritic:
    """A critic that learns the classes of the rows that are told one, a program with site ``label``.

    Semi-supervised: a generator from noise alone (a program that takes ``y`` and does not use it) makes the other
    rows. For logistic games: the score is a log odds.

    Parameters
    ----------
    network
        Architecture that maps the numbers of a row to one logit for each class.
    num_classes
        K, at least 2.

    Raises
    ------
    ValueError
        ``num_classes`` is not a whole number of at least 2.
    TypeError
        ``network`` cannot be run by NumPyro.
    """

    network: Any
    num_classes: int

    def __post_init__(self) -> None:
        check_count(num_classes=self.num_classes)
        if self.num_classes < 2:
            raise ValueError(f"num_classes is {self.num_classes}; expected at least 2, or Critic for rows of no class.")
        check_architecture(numpyro, "network", self.network)

    def __call__(self, y: Int[Array, " batch"], **rows: Float[Array, "batch *event"]) -> Float[Array, " batch"]:
        """Scores of rows, and their classes observed where ``y`` is not -1."""
        logits = self.logits(**rows)
        told: Any = dist.Categorical(logits=logits)
        numpyro.sample("label", told.mask(y >= 0), obs=jnp.maximum(y, 0))
        return jax.nn.logsumexp(logits, axis=-1)  # s = log sum_k exp l_k

    def logits(self, **rows: Float[Array, "batch *event"]) -> Float[Array, "batch classes"]:
        """l, of which the largest is the row's likeliest class."""
        return _outputs(self.network, self.num_classes, rows)


def _outputs(architecture: Any, count: int, rows: dict[str, Any]) -> Float[Array, "batch outputs"]:
    """Of the network over all numbers of a row, arrays in the order of their names."""
    row = jnp.concatenate([rows[n].reshape(len(rows[n]), -1) for n in sorted(rows)], axis=-1)
    return network(numpyro, "critic", architecture, row.shape[-1], count)(row)
