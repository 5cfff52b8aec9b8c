r"""Deep Boltzmann machine: layers of binary units, each coupled with the next one and not within.

    E(v, h) = -sum_l h_{l-1}ᵀ W_l h_l - bᵀ v - sum_l c_lᵀ h_l,    h_0 = v,    l = 1 … L

    p(h_l = 1 | h_{l-1}, h_{l+1}) = sigma(c_l + W_lᵀ h_{l-1} + W_{l+1} h_{l+1})

Given a row, hidden layers depend on each other. Mean field takes q(h | v) = prod Bernoulli(mu), with mu at a fixed
point of the same equation, reached by turns of the odd and the even layers, each of which is optimal given the
other, so that none lowers

    log p(v) >= E_q[-E(v, h)] + H(q) - log Z = -E(v, mu) + H(mu) - log Z.

(E is linear in every layer, so its expectation is its value at mu.) ``free_energy`` is E(v, mu) - H(mu): not below
the true one, and its gradient at fixed mu is that of the bound.

Odd layers do not depend on each other given the even ones, v among them, and the other way round: the machine is a
restricted one between the two sides, with blocks of weights (:meth:`as_rbm`). So log Z, sweeps of all layers in two
halves, and exact sums for small machines are those of the RBM.

References
----------
Deep Boltzmann Machines (Salakhutdinov and Hinton, 2009).
Deep Boltzmann Machines and the Centering Trick (Montavon and Müller, 2012): learning without pretraining.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax.scipy.special import entr, logsumexp
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from ppl_models import boltzmann_rows as rows
from ppl_models.binary_draws import bernoulli
from ppl_models.boltzmann_layers import bias_name, check_layers, prior, shapes, single
from ppl_models.boltzmann_machine import MAX_HIDDEN
from ppl_models.boltzmann_rows import BoltzmannRow, Params
from ppl_models.networks import softplus
from ppl_models.rbm import RBM

MEAN_FIELD_TURNS = 30


@dataclass(frozen=True)
class DeepBoltzmannMachine:
    """Deep Boltzmann machine, for binary rows; an energy program.

    Sites: globals ``visible_bias`` b (D,) and, of each layer l, ``weights_l`` W_l (units below, H_l) and
    ``hidden_bias_l`` c_l (H_l,); observed ``x`` (D,), the hidden units summed out (exactly, up to 12 in the odd
    layers); of each row, deterministic, ``hidden``, the mean-field probabilities of its hidden units, layers joined.

    Parameters
    ----------
    num_hidden
        Units of the hidden layers, H_1 to H_L; with a single one it is an RBM, and mean field exact.
    weight_scale, bias_scale
        Standard deviations of the Normal priors, around zero.

    Raises
    ------
    ValueError
        A field out of range; when a likelihood is asked for, a machine too large to enumerate.
    """

    num_hidden: tuple[int, ...]
    weight_scale: float = 1.0
    bias_scale: float = 3.0

    visible_support = constraints.boolean

    def __post_init__(self) -> None:
        check_layers(self)

    def __call__(self, x: Float[Array, "batch D"], num_data: int | None = None) -> Any:
        """Sample the globals and observe x."""
        params = prior(self, x.shape[-1])
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            row: Any = numpyro.sample("x", BoltzmannRow(_Exact(self), params, x.shape[-1]), obs=x)
            numpyro.deterministic("hidden", self.hidden_mean(params, row))
        return row

    def initial(self, key: Array, x: Float[Array, "N D"]) -> Params:
        """Small random weights, and visible biases that give the base rates of these rows; float32."""
        sites = shapes(x.shape[-1], self.num_hidden)
        params: Params = {name: jnp.zeros(shape, jnp.float32) for name, shape in sites.items()}
        for i, weights in enumerate(self._weights(params), 1):
            params[f"weights_{i}"] = rows.uniform_weights(jax.random.fold_in(key, i), *weights.shape)
        return params | {"visible_bias": rows.log_odds(jnp.mean(x, axis=0, dtype=jnp.float32))}

    def energy(
        self, params: Params, v: Float[Array, "*n D"], h: Float[Array, "*n H"], beta: Any = 1.0, base: Any = 0.0
    ) -> Float[Array, "*n"]:
        """E_beta(v, h) in nats, tempered from log odds ``base`` of the visible units; h holds the layers, joined."""
        layers = [v, *self.layers(h)]
        total: Any = 0.0
        for units, bias in zip(layers, self._biases(params), strict=True):
            total = total + units @ bias
        for below, weights, above in zip(layers[:-1], self._weights(params), layers[1:], strict=True):
            total = total + jnp.sum((below @ weights) * above, -1)
        return -beta * total - (1 - beta) * jnp.sum(v * base, -1)

    def free_energy(
        self, params: Params, v: Float[Array, "*n D"], beta: Any = 1.0, base: Any = 0.0
    ) -> Float[Array, "*n"]:
        """E_beta(v, mu) - H(mu) in nats, at mean-field mu: an upper bound. Gradients hold mu fixed, as they may."""
        mu = jax.lax.stop_gradient(self.hidden_mean(params, v, beta))
        return self.energy(params, v, mu, beta, base) - (entr(mu) + entr(1 - mu)).sum(-1)

    def hidden_mean(self, params: Params, v: Float[Array, "*n D"], beta: Any = 1.0) -> Float[Array, "*n H"]:
        """Mean-field probabilities mu of the hidden units, layers joined."""
        below, mu = v, []
        for weights, bias in zip(self._weights(params), self._biases(params)[1:], strict=True):
            below = jax.nn.sigmoid(beta * (below @ weights + bias))  # a first guess, bottom-up
            mu.append(below)

        def turn(mu: list[Array], _: None) -> tuple[list[Array], None]:
            for parity in (1, 0):
                mu = self._half(params, v, mu, parity, lambda p: p, beta)
            return mu, None

        return jnp.concatenate(jax.lax.scan(turn, mu, length=MEAN_FIELD_TURNS)[0], -1)

    def visible_mean(
        self, params: Params, v: Float[Array, "*n D"], h: Float[Array, "*n H"], beta: Any = 1.0, base: Any = 0.0
    ) -> Float[Array, "*n D"]:
        """p(v_i = 1 | h), which the first hidden layer decides."""
        inputs = self.layers(h)[0] @ params["weights_1"].T + params["visible_bias"]
        return jax.nn.sigmoid(beta * inputs + (1 - beta) * base)

    def move_hidden(
        self, key: Array, params: Params, v: Float[Array, "*n D"], h: Float[Array, "*n H"], beta: Any = 1.0
    ) -> Float[Array, "*n H"]:
        """The even layers of h given the odd ones, and then the odd ones: leaves p(h | v) invariant."""
        units = self.layers(h)
        for parity, half in zip((0, 1), jax.random.split(key), strict=True):
            units = self._half(params, v, units, parity, lambda p, half=half: bernoulli(half, p), beta)
        return jnp.concatenate(units, -1)

    def layers(self, h: Float[Array, "*n H"]) -> list[Float[Array, "*n H_l"]]:
        """The hidden layers, first to last."""
        return jnp.split(h, list(accumulate(self.num_hidden))[:-1], axis=-1)

    def base_rate(self, x: Float[Array, "N D"]) -> tuple[Float[Array, " D"], Float[Array, ""]]:
        """Log odds of the base-rate model of these rows, and its log partition function in nats."""
        return rows.coins(x, sum(self.num_hidden))

    def shifted(self, params: Params, v: Float[Array, " D"], h: Float[Array, " H"]) -> Params:
        """The machine whose couplings act on units less these offsets, in place of units, up to a constant."""
        offsets, biases = [v, *self.layers(h)], self._biases(params)
        for i, weights in enumerate(self._weights(params)):
            biases[i] = biases[i] - weights @ offsets[i + 1]
            biases[i + 1] = biases[i + 1] - offsets[i] @ weights
        return params | dict(zip(self._bias_names(), biases, strict=True))

    def as_rbm(self, params: Params) -> tuple[RBM, Params]:
        """The machine as an RBM: the odd layers as its visible units, v and the even layers as its hidden ones."""
        biases = self._biases(params)
        couplings = {(i, i + 1): w for i, w in enumerate(self._weights(params))}
        blocks = [
            [
                couplings[even, odd].T if (even, odd) in couplings else
                couplings.get((odd, even), jnp.zeros((len(biases[odd]), len(biases[even]))))
                for even in range(0, len(biases), 2)
            ]
            for odd in range(1, len(biases), 2)
        ]  # fmt: skip
        sides = {"visible_bias": jnp.concatenate(biases[1::2]), "hidden_bias": jnp.concatenate(biases[::2])}
        return RBM(sides["hidden_bias"].shape[0]), {"weights": jnp.block(blocks), **sides}

    def rbm_units(self, key: Array, params: Params, v: Float[Array, "*n D"]) -> Float[Array, "*n odd"]:
        """The visible units of :meth:`as_rbm` given rows: the odd layers, drawn from the mean-field q(h | v)."""
        return jnp.concatenate(self.layers(self.sample_hidden(key, params, v))[::2], -1)

    def log_partition(self, params: Params) -> Float[Array, ""]:
        """log Z in nats, by the states of the smaller side.

        Raises
        ------
        ValueError
            When both sides have more than 20 units; it tells the cost.
        """
        rbm, sides = self.as_rbm(params)
        return rbm.log_partition(sides)

    def exact_free_energy(self, params: Params, v: Float[Array, "*n D"]) -> Float[Array, "*n"]:
        """-log sum_h exp(-E(v, h)) in nats, by the states of the odd layers, the even ones summed out.

        Raises
        ------
        ValueError
            When the odd layers have more than 12 units.
        """
        rbm, sides = self.as_rbm(params)
        units, columns = sides["visible_bias"].shape[0], v.shape[-1]
        if units > MAX_HIDDEN:
            raise ValueError(
                f"DeepBoltzmannMachine is too large to enumerate: an exact likelihood would be a sum over the "
                f"2^{units} states of its odd layers for every row, and is made up to 2^{MAX_HIDDEN}. Learn it by "
                "ContrastiveDivergence(model, persistent=True), whose log_likelihood encloses a lower bound."
            )
        odd = rows.states(units, jnp.arange(2**units), v.dtype)
        inputs = sides["hidden_bias"] + odd @ sides["weights"]  # of v and the even layers, (states, even)
        log_weight = odd @ sides["visible_bias"] + softplus(inputs[:, columns:]).sum(-1)
        return -logsumexp(v @ inputs[:, :columns].T + log_weight, -1)

    def _half(self, params: Params, v: Array, units: list[Array], parity: int, draw: Any, beta: Any) -> list[Array]:
        """Layers 1, 3, … (parity 1) or 2, 4, … (parity 0) given the others: ``draw`` of their probabilities, joined."""
        below, weights, biases = [v, *units], self._weights(params), self._biases(params)
        moved, means = range(2 - parity, len(biases), 2), []
        for layer in moved:
            inputs = below[layer - 1] @ weights[layer - 1] + biases[layer]
            if layer < len(units):
                inputs = inputs + units[layer] @ weights[layer].T
            means.append(jax.nn.sigmoid(beta * inputs))
        if not means:  # of one layer, no even ones
            return units
        ends = list(accumulate(mean.shape[-1] for mean in means))
        drawn = iter(jnp.split(draw(jnp.concatenate(means, -1)), ends[:-1], -1))
        return [next(drawn) if layer in moved else h for layer, h in enumerate(units, 1)]

    def _bias_names(self) -> list[str]:
        return [bias_name(layer) for layer in range(len(self.num_hidden) + 1)]

    def _biases(self, params: Params) -> list[Array]:
        return [params[name] for name in self._bias_names()]

    def _weights(self, params: Params) -> list[Array]:
        return [params[f"weights_{i + 1}"] for i in range(len(self.num_hidden))]

    @property
    def copies(self) -> tuple[tuple[int, int], ...]:
        """How often each machine of a layerwise start has its lower and its upper layer, with tied weights.

        In the deep machine an inner layer gets input from both sides, and in a machine of two layers from one. That is
        made up for by doubling: of the lower layer where the upper one will have another above, and the reverse.
        """
        top = len(self.num_hidden) - 1
        return tuple((1 + (layer < top), 1 + (layer > 0)) for layer in range(top + 1))

    @property
    def machines(self) -> tuple[RBM, ...]:
        """The machines of two layers of a layerwise start, from the data upwards."""
        return tuple(RBM(units * above) for units, (_, above) in zip(self.num_hidden, self.copies, strict=True))

    def stacked(self, parts: Sequence[Params]) -> Params:
        """Parameters made of those of :attr:`machines`: means over copies, and of biases that two machines have."""
        parts = [single(part, *copies) for part, copies in zip(parts, self.copies, strict=True)]
        params = {"visible_bias": parts[0]["visible_bias"]}
        for layer, part in enumerate(parts, 1):
            biases = [part["hidden_bias"], *(p["visible_bias"] for p in parts[layer : layer + 1])]
            params |= {f"weights_{layer}": part["weights"], bias_name(layer): jnp.mean(jnp.stack(biases), 0)}
        return params

    site_values = rows.site_values
    sample_visible = rows.sample_visible
    sample_hidden = rows.sample_hidden
    posterior = rows.posterior


@dataclass(frozen=True)
class _Exact:
    """The machine with its true free energy, for the densities of its rows."""

    machine: DeepBoltzmannMachine

    visible_support = DeepBoltzmannMachine.visible_support

    def free_energy(self, params: Params, v: Float[Array, "*n D"]) -> Float[Array, "*n"]:
        return self.machine.exact_free_energy(params, v)

    def log_partition(self, params: Params) -> Float[Array, ""]:
        return self.machine.log_partition(params)

    def exact_draws(self, key: Array, params: Params, count: int) -> Float[Array, "count D"]:
        rbm, sides = self.machine.as_rbm(params)
        key_odd, key_v = jax.random.split(key)
        even = rbm.sample_hidden(key_v, sides, rbm.exact_draws(key_odd, sides, count))
        return even[:, : len(params["visible_bias"])]

    exact_mean = rows.exact_mean
