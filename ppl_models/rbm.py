r"""Restricted Boltzmann machine: binary visible and hidden units, coupled across and not within.

    p(v, h) = exp(-E(v, h)) / Z,    E(v, h) = -vᵀ W h - bᵀ v - cᵀ h,    v in {0, 1}^D, h in {0, 1}^H,

    p(h_j = 1 | v) = sigma(c_j + (Wᵀ v)_j),    p(v_i = 1 | h) = sigma(b_i + (W h)_i),
    F(v) = -log sum_h exp(-E(v, h)) = -bᵀ v - sum_j softplus(c_j + (Wᵀ v)_j).

Tempering is of the joint energy, from the base-rate model, whose visible units have log odds b0 and whose hidden
units are fair coins, to the machine:  E_beta = (1 - beta) (-b0ᵀ v) + beta E.

References
----------
Information Processing in Dynamical Systems: Foundations of Harmony Theory (Smolensky, 1986).
Training Products of Experts by Minimizing Contrastive Divergence (Hinton, 2002).
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
from ppl_models.boltzmann_rows import Params, normal
from ppl_models.networks import softplus


@dataclass(frozen=True)
class RBM:
    """Restricted Boltzmann machine, for binary rows; an energy program.

    Sites: globals ``weights`` W (D, H), ``visible_bias`` b (D,), ``hidden_bias`` c (H,); observed ``x`` (D,), the
    hidden units summed out; of each row, deterministic, ``free_energy`` in nats and ``hidden``, the probabilities
    of its hidden units.

    Parameters
    ----------
    num_hidden
        H, at least 1.
    weight_scale, bias_scale
        Standard deviations of the Normal priors, around zero.

    Raises
    ------
    ValueError
        A field out of range; when a likelihood is asked for, more than 20 units on both sides.
    """

    num_hidden: int
    weight_scale: float = 1.0
    bias_scale: float = 3.0

    visible_support = constraints.boolean

    def __post_init__(self) -> None:
        rows.check_fields(self, 1, "weight_scale", "bias_scale")

    def __call__(self, x: Float[Array, "batch D"], num_data: int | None = None) -> Any:
        """Sample the globals and observe x, whose density is exact."""
        columns = x.shape[-1]
        params = {
            "weights": normal("weights", (columns, self.num_hidden), self.weight_scale),
            "visible_bias": normal("visible_bias", (columns,), self.bias_scale),
            "hidden_bias": normal("hidden_bias", (self.num_hidden,), self.bias_scale),
        }
        return rows.observe(self, params, x, num_data)

    def initial(self, key: Array, x: Float[Array, "N D"]) -> Params:
        """Small random weights, and visible biases that give the base rates of these rows; float32."""
        return {
            "weights": rows.uniform_weights(key, x.shape[-1], self.num_hidden),
            "visible_bias": rows.log_odds(jnp.mean(x, axis=0, dtype=jnp.float32)),
            "hidden_bias": jnp.zeros(self.num_hidden, jnp.float32),
        }

    def energy(
        self, params: Params, v: Float[Array, "*n D"], h: Float[Array, "*n H"], beta: Any = 1.0, base: Any = 0.0
    ) -> Float[Array, "*n"]:
        """E_beta(v, h) in nats."""
        coupled = jnp.sum((v @ params["weights"] + params["hidden_bias"]) * h, -1)
        return -beta * coupled - v @ (beta * params["visible_bias"] + (1 - beta) * base)

    def free_energy(
        self, params: Params, v: Float[Array, "*n D"], beta: Any = 1.0, base: Any = 0.0
    ) -> Float[Array, "*n"]:
        """-log sum_h exp(-E_beta(v, h)) in nats."""
        inputs = beta * (v @ params["weights"] + params["hidden_bias"])
        return -v @ (beta * params["visible_bias"] + (1 - beta) * base) - softplus(inputs).sum(-1)

    def hidden_mean(self, params: Params, v: Float[Array, "*n D"], beta: Any = 1.0) -> Float[Array, "*n H"]:
        """p(h_j = 1 | v)."""
        return jax.nn.sigmoid(beta * (v @ params["weights"] + params["hidden_bias"]))

    def visible_mean(
        self, params: Params, v: Float[Array, "*n D"], h: Float[Array, "*n H"], beta: Any = 1.0, base: Any = 0.0
    ) -> Float[Array, "*n D"]:
        """p(v_i = 1 | h); the visible units do not depend on each other."""
        return jax.nn.sigmoid(beta * (h @ params["weights"].T + params["visible_bias"]) + (1 - beta) * base)

    def base_rate(self, x: Float[Array, "N D"]) -> tuple[Float[Array, " D"], Float[Array, ""]]:
        """Log odds of the base-rate model of these rows, and its log partition function in nats."""
        return rows.coins(x, self.num_hidden)

    def shifted(self, params: Params, v: Float[Array, " D"], h: Float[Array, " H"]) -> Params:
        """The machine whose couplings act on (v - offset, h - offset), in place of (v, h), up to a constant."""
        # -(v - m)ᵀ W (h - l) = -vᵀ W h + vᵀ W l + mᵀ W h + const
        weights = params["weights"]
        return params | {
            "visible_bias": params["visible_bias"] - weights @ h,
            "hidden_bias": params["hidden_bias"] - v @ weights,
        }

    def log_partition(self, params: Params) -> Float[Array, ""]:
        """log Z in nats, by the states of the smaller side.

        Raises
        ------
        ValueError
            When both sides have more than 20 units; it tells the cost.
        """
        log_weight, units = self._smaller(params)
        return logsumexp(rows.table(log_weight, units, params["weights"].dtype))

    def exact_draws(self, key: Array, params: Params, count: int) -> Float[Array, "count D"]:
        """Independent draws of v from the machine, by enumeration."""
        log_weight, units = self._smaller(params)
        key_state, key_v = jax.random.split(key)
        state = rows.draw_states(key_state, rows.table(log_weight, units, jnp.float32), units, count)
        visible, hidden = params["weights"].shape
        if hidden <= visible:  # the state is of the hidden units
            return self.sample_visible(key_v, params, jnp.zeros((count, visible), jnp.float32), state)
        return state

    def _smaller(self, params: Params) -> tuple[Any, int]:
        """log of the sum over the larger side, as a function of states of the smaller one."""
        weights, b, c = (params[n] for n in ("weights", "visible_bias", "hidden_bias"))
        visible, hidden = weights.shape
        rows.check_units(self, min(visible, hidden), "hidden units" if hidden <= visible else "visible units")
        if hidden <= visible:
            return lambda h: h @ c + softplus(b + h @ weights.T).sum(-1), hidden
        return lambda v: -self.free_energy(params, v), visible

    site_values = rows.site_values
    exact_mean = rows.exact_mean
    sample_visible = rows.sample_visible
    sample_hidden = rows.sample_hidden
    e_step = em.e_step
    m_step = em.m_step
    combine = em.combine
    posterior = rows.posterior
