r"""Sigmoid belief network: layers of binary units, each a logistic regression on the layer above.

    z_L ~ Bernoulli(sigma(b)),    z_l | z_{l+1} ~ Bernoulli(sigma(f_{l+1}(z_{l+1}))),
    x | z_1 ~ Bernoulli(sigma(f_1(z_1))),    f_l(z) = W_l (2 z - 1) + c_l.

Units enter the affine maps as -1 and 1 (:func:`ppl_models.binary_states.centred`), which is the family
of sigma(W z + c) with other numbers for W and c. Given the layer above, the units of a layer are
independent; given the data they are not (explaining away), so the posterior has to be guessed.

References
----------
Connectionist Learning of Belief Networks (Neal, 1992).
Mean Field Theory for Sigmoid Belief Networks (Saul, Jaakkola and Jordan, 1996).
Neural Variational Inference and Learning in Belief Networks (Mnih and Gregor, 2014).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpyro
from array_api_compat import array_namespace, device
from jaxtyping import Float

from ppl_models.binary_states import all_states, centred, check_bits, mixture
from ppl_models.likelihoods import Bernoulli
from ppl_models.networks import Linear, bits, network, row_shape


@dataclass(frozen=True)
class SigmoidBeliefNetwork:
    """Sigmoid belief network of one to three layers, for binary rows.

    Sites: ``z1``, next to the data, to ``zL``, the top, each a vector of its layer's units; observed
    ``x``. Parameters: ``decoder1`` from z1 to x, ``decoder2`` from z2 to z1 and so on, and
    ``prior_logits``, the logits b of the top layer.

    Parameters
    ----------
    layers
        Units of each layer, from the data upwards: with ``(200, 100)`` z1 has 200 and z2, the top, 100.
    ppl
        ``numpyro`` or ``pyro``.

    Raises
    ------
    ValueError
        ``layers`` is not one to three whole numbers of at least 1.
    """

    layers: tuple[int, ...] = (20,)
    ppl: ModuleType = numpyro

    def __post_init__(self) -> None:
        layers = tuple(self.layers) if isinstance(self.layers, (tuple, list)) else (self.layers,)
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in layers)
        if not whole or not 1 <= len(layers) <= 3:
            raise ValueError(
                f"layers is {self.layers!r}; expected one to three whole numbers of at least 1, from the data upwards."
            )
        object.__setattr__(self, "layers", layers)

    def __call__(self, x: Float[Any, "batch pixels"], num_data: int | None = None) -> Any:
        """Sample the layers from the top down, and observe x.

        Parameters
        ----------
        x
            Rows of zeros and ones, shape ``(batch, pixels)``.
        num_data
            Rows in the whole data set, ``batch`` by default.

        Returns
        -------
        Array
            The observed rows.
        """
        ppl, xp = self.ppl, array_namespace(x)
        prior, decoders = _parameters(self, x)
        zeros = xp.zeros((len(x), self.layers[-1]), dtype=prior.dtype, device=device(x))
        with ppl.plate("data", num_data or len(x), subsample_size=len(x)):
            logits = zeros + prior
            for layer in range(len(self.layers), 0, -1):
                z = ppl.sample(f"z{layer}", bits(ppl, logits).to_event(1))
                logits = decoders[layer](centred(z))
            return ppl.sample("x", bits(ppl, logits).to_event(1), obs=x)

    @property
    def marginal(self) -> _Marginal:
        """The same program with every layer summed out exactly, a value like the model.

        Raises
        ------
        AttributeError
            More than 16 units in all.
        """
        check_bits(self, sum(self.layers))
        return _Marginal(self)


@dataclass(frozen=True)
class _Marginal:
    """The program x ~ p(x), the layers summed out one by one from the top."""

    model: SigmoidBeliefNetwork

    def __call__(self, x: Float[Any, "batch pixels"], num_data: int | None = None) -> Any:
        ppl, layers = self.model.ppl, self.model.layers
        prior, decoders = _parameters(self.model, x)
        states = [all_states(units, prior) for units in layers]
        log_weights = bits(ppl, prior).to_event(1).log_prob(states[-1])  # log p(z_L)
        for layer in range(len(layers), 1, -1):  # log p(z_{l-1}) = log sum_{z_l} p(z_l) p(z_{l-1} | z_l)
            logits = decoders[layer](centred(states[layer - 1]))
            log_weights = mixture(ppl, log_weights, logits, Bernoulli()).log_prob(states[layer - 2])
        row = mixture(ppl, log_weights, decoders[1](centred(states[0])), Bernoulli())
        with ppl.plate("data", num_data or len(x), subsample_size=len(x)):
            return ppl.sample("x", row, obs=x)


def _parameters(model: SigmoidBeliefNetwork, x: Any) -> tuple[Any, dict[int, Callable[[Any], Any]]]:
    """Logits of the top layer, and the map from each layer to the one below."""
    xp, sizes = array_namespace(x), (row_shape(x)[1], *model.layers)
    prior = model.ppl.param("prior_logits", xp.zeros((sizes[-1],), device=device(x)))
    maps = enumerate(pairwise(sizes), 1)
    return prior, {n: network(model.ppl, f"decoder{n}", Linear(), above, below) for n, (below, above) in maps}
