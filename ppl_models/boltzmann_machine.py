r"""General Boltzmann machine: binary units, any two of them coupled, some hidden.

    p(v, h) = exp(-E(v, h)) / Z,    E(v, h) = -vᵀ R v - vᵀ W h - hᵀ S h - bᵀ v - cᵀ h,

with R and S symmetric and zero on the diagonal, so that every pair within a side counts twice:

    p(v_i = 1 | rest) = sigma(b_i + 2 (R v)_i + (W h)_i),

and the visible units are drawn one after the other. The hidden units, few, are summed out and drawn jointly, by
their 2^H states. Parameters are the triangles above the diagonals, which are free: R_ij for i < j, row by row.

Tempering is of the joint energy, from the base-rate model to the machine, as of the restricted machine.

References
----------
A Learning Algorithm for Boltzmann Machines (Ackley, Hinton and Sejnowski, 1985).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from ppl_models import boltzmann_em as em
from ppl_models import boltzmann_rows as rows
from ppl_models.binary_draws import uniform
from ppl_models.boltzmann_rows import Params, normal

MAX_HIDDEN = 12  # every free energy is a sum over their states


def symmetric(upper: Float[Array, " pairs"], units: int) -> Float[Array, "units units"]:
    """The matrix with this triangle above its diagonal, row by row, the same below, and zeros on it."""
    i, j = jnp.triu_indices(units, 1)
    full = jnp.zeros((units, units), upper.dtype).at[i, j].set(upper)
    return full + full.T


@dataclass(frozen=True)
class BoltzmannMachine:
    """General Boltzmann machine, for binary rows; an energy program.

    Sites: globals ``visible_couplings`` (D (D - 1) / 2,), ``visible_bias`` b (D,) and, with hidden units, ``weights``
    W (D, H), ``hidden_bias`` c (H,) and ``hidden_couplings`` (H (H - 1) / 2,), couplings for two units and more of a
    side; observed ``x`` (D,),
    the hidden units summed out; of each row, deterministic, ``free_energy`` in nats and ``hidden``, the
    probabilities of its hidden units if it has any.

    Parameters
    ----------
    num_hidden
        H, from 0 (fully visible) to 12.
    coupling_scale, bias_scale
        Standard deviations of the Normal priors, around zero.

    Raises
    ------
    ValueError
        A field out of range; when a likelihood is asked for, more than 20 units in all.
    """

    num_hidden: int = 0
    coupling_scale: float = 1.0
    bias_scale: float = 3.0

    visible_support = constraints.boolean

    def __post_init__(self) -> None:
        rows.check_fields(self, 0, "coupling_scale", "bias_scale")
        if self.num_hidden > MAX_HIDDEN:
            raise ValueError(
                f"BoltzmannMachine: num_hidden is {self.num_hidden}; its hidden units are coupled, so that every free "
                f"energy is a sum over 2^{self.num_hidden} states. Give at most {MAX_HIDDEN}, or use RBM."
            )

    def __call__(self, x: Float[Array, "batch D"], num_data: int | None = None) -> Any:
        """Sample the globals and observe x, whose density is exact."""
        scales = {"visible_bias": self.bias_scale, "hidden_bias": self.bias_scale}
        shapes = self._shapes(x.shape[-1])
        params = {name: normal(name, shape, scales.get(name, self.coupling_scale)) for name, shape in shapes.items()}
        return rows.observe(self, params, x, num_data)

    def initial(self, key: Array, x: Float[Array, "N D"]) -> Params:
        """Small random weights, and visible biases that give the base rates of these rows; float32."""
        params = {name: jnp.zeros(shape, jnp.float32) for name, shape in self._shapes(x.shape[-1]).items()}
        params["visible_bias"] = rows.log_odds(jnp.mean(x, axis=0, dtype=jnp.float32))
        if self.num_hidden:
            params["weights"] = rows.uniform_weights(key, x.shape[-1], self.num_hidden)
        return params

    def energy(
        self, params: Params, v: Float[Array, "*n D"], h: Float[Array, "*n H"], beta: Any = 1.0, base: Any = 0.0
    ) -> Float[Array, "*n"]:
        """E_beta(v, h) in nats."""
        weights, hidden, hidden_bias = self._hidden(params)
        coupled = jnp.sum((v @ weights + h @ hidden + hidden_bias) * h, -1)
        return self._visible_energy(params, v, beta, base) - beta * coupled

    def free_energy(
        self, params: Params, v: Float[Array, "*n D"], beta: Any = 1.0, base: Any = 0.0
    ) -> Float[Array, "*n"]:
        """-log sum_h exp(-E_beta(v, h)) in nats."""
        return self._visible_energy(params, v, beta, base) - logsumexp(self._log_weights(params, v, beta), -1)

    def hidden_mean(self, params: Params, v: Float[Array, "*n D"], beta: Any = 1.0) -> Float[Array, "*n H"]:
        """p(h_j = 1 | v)."""
        return jax.nn.softmax(self._log_weights(params, v, beta), -1) @ self._states(v.dtype)

    def visible_mean(
        self, params: Params, v: Float[Array, "*n D"], h: Float[Array, "*n H"], beta: Any = 1.0, base: Any = 0.0
    ) -> Float[Array, "*n D"]:
        """p(v_i = 1 | h and the other visible units)."""
        weights, _, _ = self._hidden(params)
        couplings = self._visible(params)
        inputs = params["visible_bias"] + 2 * v @ couplings + h @ weights.T
        return jax.nn.sigmoid(beta * inputs + (1 - beta) * base)

    def sample_hidden(
        self, key: Array, params: Params, v: Float[Array, "*n D"], beta: Any = 1.0
    ) -> Float[Array, "*n H"]:
        """h ~ p(h | v), jointly."""
        state = jax.random.categorical(key, self._log_weights(params, v, beta))
        return self._states(v.dtype)[state]

    def sample_visible(
        self,
        key: Array,
        params: Params,
        v: Float[Array, "*n D"],
        h: Float[Array, "*n H"],
        beta: Any = 1.0,
        base: Any = 0.0,
        observed: Any = False,
    ) -> Float[Array, "*n D"]:
        """One sweep v_i ~ p(v_i | h and the other visible units), in order; observed entries stay as they are."""
        weights, _, _ = self._hidden(params)
        couplings = self._visible(params)
        fixed = beta * (params["visible_bias"] + h @ weights.T) + (1 - beta) * base
        noise, observed = uniform(key, v.shape), jnp.broadcast_to(observed, v.shape)

        def update(i: Array, v: Array) -> Array:
            on = noise[..., i] < jax.nn.sigmoid(fixed[..., i] + beta * 2 * (v @ couplings[i]))
            return v.at[..., i].set(jnp.where(observed[..., i], v[..., i], on.astype(v.dtype)))

        return jax.lax.fori_loop(0, v.shape[-1], update, v)

    def base_rate(self, x: Float[Array, "N D"]) -> tuple[Float[Array, " D"], Float[Array, ""]]:
        """Log odds of the base-rate model of these rows, and its log partition function in nats."""
        return rows.coins(x, self.num_hidden)

    def shifted(self, params: Params, v: Float[Array, " D"], h: Float[Array, " H"]) -> Params:
        """The machine whose couplings act on (v - offset, h - offset), in place of (v, h), up to a constant."""
        # -(v - m)ᵀ R (v - m) = -vᵀ R v + 2 vᵀ R m + const, and so on
        weights, hidden, hidden_bias = self._hidden(params)
        visible = self._visible(params)
        shifted = params | {"visible_bias": params["visible_bias"] - 2 * visible @ v - weights @ h}
        return shifted | ({"hidden_bias": hidden_bias - 2 * hidden @ h - v @ weights} if self.num_hidden else {})

    def log_partition(self, params: Params) -> Float[Array, ""]:
        """log Z in nats, by the states of all units.

        Raises
        ------
        ValueError
            When there are more than 20 units in all; it tells the cost.
        """
        return logsumexp(self._visible_table(params))

    def _visible_table(self, params: Params) -> Float[Array, " states"]:
        """-F(v) of every state of the visible units."""
        bias = params["visible_bias"]
        rows.check_units(self, len(bias) + self.num_hidden, "units")
        return rows.table(lambda v: -self.free_energy(params, v), len(bias), bias.dtype)

    def _shapes(self, columns: int) -> dict[str, tuple[int, ...]]:
        """Of the parameters, those without entries left out."""
        pairs = [(n * (n - 1) // 2,) for n in (columns, self.num_hidden)]
        shapes = {"visible_couplings": pairs[0], "visible_bias": (columns,)}
        shapes |= {"weights": (columns, self.num_hidden), "hidden_bias": (self.num_hidden,)}
        shapes["hidden_couplings"] = pairs[1]
        return {name: shape for name, shape in shapes.items() if 0 not in shape}

    def _visible(self, params: Params) -> Float[Array, "D D"]:
        """R, of a single unit zero."""
        bias = params["visible_bias"]
        return symmetric(params.get("visible_couplings", jnp.zeros((0,), bias.dtype)), len(bias))

    def _hidden(self, params: Params) -> tuple[Array, Array, Array]:
        """W (D, H), S (H, H) and c (H,)."""
        bias = params["visible_bias"]
        weights = params.get("weights", jnp.zeros((len(bias), 0), bias.dtype))
        units = weights.shape[1]
        hidden = symmetric(params.get("hidden_couplings", jnp.zeros((0,), bias.dtype)), units)
        return weights, hidden, params.get("hidden_bias", jnp.zeros((units,), bias.dtype))

    def _visible_energy(self, params: Params, v: Any, beta: Any, base: Any) -> Float[Array, "*n"]:
        couplings = self._visible(params)
        bias = beta * params["visible_bias"] + (1 - beta) * base
        return -v @ bias - beta * jnp.sum((v @ couplings) * v, -1)

    def _states(self, dtype: Any) -> Float[Array, "states H"]:
        return rows.states(self.num_hidden, jnp.arange(2**self.num_hidden), dtype)

    def _log_weights(self, params: Params, v: Any, beta: Any) -> Float[Array, "*n states"]:
        """beta (vᵀ W h + hᵀ S h + cᵀ h) for every state of the hidden units."""
        weights, hidden, bias = self._hidden(params)
        h = self._states(v.dtype)
        return beta * (v @ weights @ h.T + h @ bias + jnp.sum((h @ hidden) * h, -1))

    site_values = rows.site_values
    exact_draws = rows.exact_draws
    exact_mean = rows.exact_mean
    e_step = em.e_step
    m_step = em.m_step
    combine = em.combine
    posterior = rows.posterior
