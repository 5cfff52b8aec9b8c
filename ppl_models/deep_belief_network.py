r"""Deep belief network: layers of a sigmoid belief network under a restricted Boltzmann machine.

    p(v, h_1, ..., h_L) = p(v | h_1) p(h_1 | h_2) ... p(h_{L-2} | h_{L-1}) exp(-E(h_{L-1}, h_L)) / Z,

    p(h_{l-1} = 1 | h_l) = sigma(b_{l-1} + W_l h_l),    E(g, h) = -gᵀ W_L h - b_{L-1}ᵀ g - b_Lᵀ h,

v being layer 0. The posterior is guessed from below by weights of its own, and at the top it is the machine's:

    q(h | v) = prod_{l<L} q(h_l | h_{l-1}) p(h_L | h_{L-1}),    q(h_l = 1 | h_{l-1}) = sigma(r_l + R_lᵀ h_{l-1}).

Stacked restricted machines begin with R_l = W_l. If a new top starts as the machine below it upside down, its weights
transposed and its biases exchanged, the network is that machine and q its posterior, so that the bound is exact; and
whatever raises the new top's likelihood of layers drawn from q raises the bound.

References
----------
A Fast Learning Algorithm for Deep Belief Nets (Hinton, Osindero and Teh, 2006).
On the Quantitative Analysis of Deep Belief Networks (Salakhutdinov and Murray, 2008).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from ppl_models import boltzmann_rows as rows
from ppl_models.binary_draws import bernoulli
from ppl_models.boltzmann_layers import Layers, bias_name, check_layers, prior
from ppl_models.boltzmann_rows import BoltzmannRow, Params
from ppl_models.networks import bits
from ppl_models.rbm import RBM

MAX_UNITS = 10  # of a layer that is summed out: the states of two layers make a table


@dataclass(frozen=True)
class DeepBeliefNetwork:
    """Deep belief network, for binary rows.

    Sites: globals ``weights_l`` W_l (H_{l-1}, H_l), from 1, the visible units being layer 0, ``visible_bias`` b_0 (D,)
    and ``hidden_bias_l`` b_l (H_l,); observed ``x`` (D,), the hidden units summed out. Of q, which is no part of the
    program, ``recognition_weights_l`` R_l (H_{l-1}, H_l) and ``recognition_bias_l`` r_l (H_l,), for l < L.

    Parameters
    ----------
    num_hidden
        Units of each layer, from the data upwards; the last two are the machine. With one layer it is an RBM.
    weight_scale, bias_scale
        Standard deviations of the Normal priors, around zero.

    Raises
    ------
    ValueError
        A field out of range; when an exact likelihood is asked for, more than 10 units in a layer below the top or more
        than 20 on both sides of the machine.
    """

    num_hidden: tuple[int, ...]
    weight_scale: float = 1.0
    bias_scale: float = 3.0

    visible_support = constraints.boolean

    def __post_init__(self) -> None:
        check_layers(self)

    def __call__(self, x: Float[Array, "batch D"], num_data: int | None = None) -> Any:
        """Sample the globals and observe x, whose density is exact: for networks that can be enumerated."""
        params = prior(self, x.shape[-1])
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            numpyro.sample("x", BoltzmannRow(self, params, x.shape[-1]), obs=x)
        return x

    def initial(self, key: Array, x: Float[Array, "N D"]) -> Params:
        """Machines with small random weights, stacked, and visible biases of these rows' base rates; float32."""
        parts = []
        for layer, (machine, below) in enumerate(zip(self.machines, (x.shape[-1], *self.num_hidden[:-1]), strict=True)):
            fair = jnp.full((1, below), 0.5)
            parts.append(machine.initial(jax.random.fold_in(key, layer), x if layer == 0 else fair))
        return self.stacked(parts)

    def as_rbm(self, params: Params) -> tuple[RBM, Params]:
        """The top two layers as a restricted machine, and its parameters."""
        top = len(self.num_hidden)
        names = {"weights": f"weights_{top}", "visible_bias": bias_name(top - 1), "hidden_bias": bias_name(top)}
        return RBM(self.num_hidden[-1]), {name: params[own] for name, own in names.items()}

    def below(self, params: Params, layer: int, h: Float[Array, "*n above"]) -> Float[Array, "*n below"]:
        """Log odds of layer l - 1 given layer l, for l < L."""
        return params[bias_name(layer - 1)] + h @ params[f"weights_{layer}"].T

    def above(self, params: Params, layer: int, h: Float[Array, "*n below"]) -> Float[Array, "*n above"]:
        """Log odds of layer l under q given layer l - 1, for l < L."""
        return params[f"recognition_bias_{layer}"] + h @ params[f"recognition_weights_{layer}"]

    def generative_log_prob(self, params: Params, v: Float[Array, "*n D"], layers: Layers) -> Float[Array, "*n"]:
        """log p(v, h_1, ..., h_{L-1}) + log Z in nats, the top layer summed out."""
        units, (machine, top) = (v, *layers), self.as_rbm(params)
        directed = (log_prob(self.below(params, n, units[n]), units[n - 1]) for n in range(1, len(layers)))
        return sum(directed, -machine.free_energy(top, units[-2]))

    def recognition_log_prob(self, params: Params, v: Float[Array, "*n D"], layers: Layers) -> Float[Array, "*n"]:
        """log q(h_1, ..., h_{L-1} | v) in nats."""
        units = (v, *layers)
        directed = (log_prob(self.above(params, n, units[n - 1]), units[n]) for n in range(1, len(layers)))
        return sum(directed, jnp.zeros(v.shape[:-1], v.dtype))

    def log_weight(self, params: Params, v: Float[Array, "*n D"], layers: Layers) -> Float[Array, "*n"]:
        """log p(v, h) + log Z - log q(h | v) in nats; at the top the two are the same."""
        return self.generative_log_prob(params, v, layers) - self.recognition_log_prob(params, v, layers)

    def bound(
        self, key: Array, params: Params, v: Float[Array, "n D"], num_particles: int = 1
    ) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """E_q[log w], a bound of log p(v) + log Z, by its mean over draws, in nats; and the variance of that mean.

        A single draw tells nothing of its variance, which is then infinite.
        """

        def draw(sums: tuple[Array, Array, Array], key: Array) -> tuple[Any, None]:
            count, mean, squares = sums  # Welford's sums, which lose no digits
            log_w = self.log_weight(params, v, self.sample_layers(key, params, v))
            step = (log_w - mean) / (count + 1)
            return (count + 1, mean + step, squares + (log_w - mean) * (log_w - mean - step)), None

        zeros = jnp.zeros(v.shape[:-1], v.dtype)
        keys = jax.random.split(key, num_particles)
        (_, mean, squares), _ = jax.lax.scan(draw, (jnp.zeros((), v.dtype), zeros, zeros), keys)
        if len(self.num_hidden) == 1:
            return mean, zeros
        degrees = num_particles * (num_particles - 1)
        return mean, squares / degrees if degrees else jnp.full_like(mean, jnp.inf)

    def sample_layers(self, key: Array, params: Params, v: Float[Array, "*n D"]) -> Layers:
        """h_1, ..., h_L ~ q(h | v)."""
        (machine, top), layers = self.as_rbm(params), [v]
        for layer in range(1, len(self.num_hidden)):
            on = jax.nn.sigmoid(self.above(params, layer, layers[-1]))
            layers.append(bernoulli(jax.random.fold_in(key, layer), on))
        return (*layers[1:], machine.sample_hidden(jax.random.fold_in(key, 0), top, layers[-1]))

    def rbm_units(self, key: Array, params: Params, v: Float[Array, "*n D"]) -> Float[Array, "*n U"]:
        """The visible units of :meth:`as_rbm` given rows: layer L - 1, drawn from q."""
        return (v, *self.sample_layers(key, params, v))[-2]

    def layers_given(self, key: Array, params: Params, u: Array, o: Array) -> Layers:
        """h_1, ..., h_L where the chains of :meth:`as_rbm` stand, those below it drawn downwards."""
        if len(self.num_hidden) == 1:
            return (o,)
        layers = [o, u]
        for layer in range(len(self.num_hidden) - 1, 1, -1):
            on = jax.nn.sigmoid(self.below(params, layer, layers[-1]))
            layers.append(bernoulli(jax.random.fold_in(key, layer), on))
        return tuple(reversed(layers))

    def visible_mean(self, params: Params, layers: Layers) -> Float[Array, "*n D"]:
        """p(v_i = 1 | h), which depends on h_1 alone."""
        return jax.nn.sigmoid(self.below(params, 1, layers[0]))

    def free_energy(self, params: Params, v: Float[Array, "*n D"]) -> Float[Array, "*n"]:
        """-log p(v) - log Z in nats, exact: the hidden layers are summed out from the top.

        Raises
        ------
        ValueError
            When a layer below the top has more than 10 units.
        """
        if len(self.num_hidden) == 1:
            machine, top = self.as_rbm(params)
            return machine.free_energy(top, v)
        states, log_weights = self._first_layer(params)
        given = log_prob(self.below(params, 1, states), v[..., None, :])
        return -logsumexp(given + log_weights, -1)

    def log_partition(self, params: Params) -> Float[Array, ""]:
        """log Z of the machine at the top in nats, by the states of its smaller side.

        Raises
        ------
        ValueError
            When both have more than 20 units; it tells the cost.
        """
        machine, top = self.as_rbm(params)
        return machine.log_partition(top)

    def exact_draws(self, key: Array, params: Params, count: int) -> Float[Array, "count D"]:
        """Independent draws of v: the machine's by enumeration, and then downwards."""
        key_top, key_o, key_down, key_v = jax.random.split(key, 4)
        machine, top = self.as_rbm(params)
        u = machine.exact_draws(key_top, top, count)
        if len(self.num_hidden) == 1:
            return u
        layers = self.layers_given(key_down, params, u, machine.sample_hidden(key_o, top, u))
        return bernoulli(key_v, self.visible_mean(params, layers))

    def exact_mean(self, params: Params) -> Float[Array, " D"]:
        """E[v], by enumeration."""
        if len(self.num_hidden) == 1:
            machine, top = self.as_rbm(params)
            return machine.exact_mean(top)
        states, log_weights = self._first_layer(params)
        return jax.nn.softmax(log_weights) @ self.visible_mean(params, (states,))

    def _first_layer(self, params: Params) -> tuple[Float[Array, "states H1"], Float[Array, " states"]]:
        """Every state of h_1, and log p(h_1) + log Z of each."""
        machine, top = self.as_rbm(params)
        large = [units for units in self.num_hidden[:-1] if units > MAX_UNITS]
        if large:
            raise ValueError(
                f"DeepBeliefNetwork is too large to enumerate: log p(v) would be a sum over the 2^{large[0]} states of "
                f"a layer of {large[0]} units, and is made up to {MAX_UNITS}. Learn it by UpDown(model, initial=...), "
                "whose log_likelihood is a lower bound, or use fewer units."
            )
        dtype = params["visible_bias"].dtype
        states = [rows.states(units, jnp.arange(2**units), dtype) for units in self.num_hidden[:-1]]
        log_weights = -machine.free_energy(top, states[-1])
        for layer in range(len(states), 1, -1):  # p(h_{l-1}) = sum_{h_l} p(h_{l-1} | h_l) p(h_l)
            given = log_prob(self.below(params, layer, states[layer - 1]), states[layer - 2][:, None])
            log_weights = logsumexp(given + log_weights, -1)
        return states[0], log_weights

    @property
    def copies(self) -> tuple[tuple[int, int], ...]:
        """How often each machine of the layerwise start has its lower and its upper layer: once."""
        return ((1, 1),) * len(self.num_hidden)

    @property
    def machines(self) -> tuple[RBM, ...]:
        """The machines of two layers of the layerwise start, from the data upwards."""
        return tuple(map(RBM, self.num_hidden))

    def stacked(self, parts: Sequence[Params]) -> Params:
        """Parameters made of those of :attr:`machines`: q has the weights of p, and what each machine had upwards."""
        params = {"visible_bias": parts[0]["visible_bias"], f"hidden_bias_{len(parts)}": parts[-1]["hidden_bias"]}
        params |= {f"weights_{n}": part["weights"] for n, part in enumerate(parts, 1)}
        for layer, (part, above) in enumerate(pairwise(parts), 1):
            params |= {
                f"hidden_bias_{layer}": above["visible_bias"],
                f"recognition_weights_{layer}": part["weights"],
                f"recognition_bias_{layer}": part["hidden_bias"],
            }
        return params

    site_values = rows.site_values

    @property
    def posterior(self) -> Any:
        """The guide of the hidden units given the globals, which has nothing left to sample."""
        return rows.summed_out


def log_prob(log_odds: Float[Array, "*n units"], h: Float[Array, "*n units"]) -> Float[Array, "*n"]:
    """Of independent units with these log odds, in nats."""
    return bits(numpyro, log_odds).log_prob(h).sum(-1)
