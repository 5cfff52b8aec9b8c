r"""Gaussian-Bernoulli restricted Boltzmann machine: real visible units with learned variances, binary hidden ones.

    E(v, h) = sum_i (v_i - b_i)² / (2 sigma_i²) - sum_ij v_i W_ij h_j / sigma_i² - cᵀ h,

    p(h_j = 1 | v) = sigma(c_j + sum_i W_ij v_i / sigma_i²),    p(v_i | h) = N(b_i + (W h)_i, sigma_i²),

so that the marginal p(v) is a mixture of 2^H Gaussians whose means share their offsets. The variances are learned
by their logarithms, which keeps them positive and their gradients of one size (Cho, Ilin and Raiko).

Tempering is of the joint energy, from the base-rate model N(m0, s0²) of each visible unit and fair hidden coins:
E_beta = (1 - beta) sum_i (v_i - m0_i)² / (2 s0_i²) + beta E, whose visible units stay Gaussian given h, with
precision lambda_i = (1 - beta) / s0_i² + beta / sigma_i².

References
----------
Improved Learning of Gaussian-Bernoulli Restricted Boltzmann Machines (Cho, Ilin and Raiko, 2011).
Gaussian-Binary Restricted Boltzmann Machines for Modeling Natural Image Statistics (Melchior, Wang and Wiskott, 2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from ppl_models import boltzmann_rows as rows
from ppl_models.boltzmann_rows import Params, normal
from ppl_models.networks import softplus

SMALLEST = 0.01  # variance of a column at the start, of the average column's; 1 where none varies
LOG_2_PI = 1.8378770664093453


@dataclass(frozen=True)
class GaussianRBM:
    """Gaussian-Bernoulli RBM, for real rows of about unit size; an energy program.

    Sites: globals ``weights`` W (D, H), ``visible_bias`` b (D,), ``hidden_bias`` c (H,) and ``log_variance``
    log sigma² (D,); observed ``x`` (D,), the hidden units summed out; of each row, deterministic, ``free_energy``
    in nats and ``hidden``, the probabilities of its hidden units.

    Parameters
    ----------
    num_hidden
        H, at least 1.
    weight_scale, bias_scale, log_variance_scale
        Standard deviations of the Normal priors, around zero.

    Raises
    ------
    ValueError
        A field out of range; when a likelihood is asked for, more than 20 hidden units.
    """

    num_hidden: int
    weight_scale: float = 1.0
    bias_scale: float = 3.0
    log_variance_scale: float = 1.0

    visible_support = constraints.real

    def __post_init__(self) -> None:
        rows.check_fields(self, 1, "weight_scale", "bias_scale", "log_variance_scale")

    def __call__(self, x: Float[Array, "batch D"], num_data: int | None = None) -> Any:
        """Sample the globals and observe x, whose density is exact."""
        columns = x.shape[-1]
        params = {
            "weights": normal("weights", (columns, self.num_hidden), self.weight_scale),
            "visible_bias": normal("visible_bias", (columns,), self.bias_scale),
            "hidden_bias": normal("hidden_bias", (self.num_hidden,), self.bias_scale),
            "log_variance": normal("log_variance", (columns,), self.log_variance_scale),
        }
        return rows.observe(self, params, x, num_data)

    def initial(self, key: Array, x: Float[Array, "N D"]) -> Params:
        """Small random weights, and the means and variances of these rows; float32."""
        mean, log_variance = self.base_rate(x)[0]
        return {
            "weights": rows.uniform_weights(key, x.shape[-1], self.num_hidden),
            "visible_bias": mean,
            "hidden_bias": jnp.zeros(self.num_hidden, jnp.float32),
            "log_variance": log_variance,
        }

    def energy(
        self, params: Params, v: Float[Array, "*n D"], h: Float[Array, "*n H"], beta: Any = 1.0, base: Any = (0.0, 0.0)
    ) -> Float[Array, "*n"]:
        """E_beta(v, h) in nats."""
        coupled = jnp.sum(self._inputs(params, v) * h, -1)
        return self._visible_energy(params, v, beta, base) - beta * coupled

    def free_energy(
        self, params: Params, v: Float[Array, "*n D"], beta: Any = 1.0, base: Any = (0.0, 0.0)
    ) -> Float[Array, "*n"]:
        """-log sum_h exp(-E_beta(v, h)) in nats."""
        inputs = beta * self._inputs(params, v)
        return self._visible_energy(params, v, beta, base) - softplus(inputs).sum(-1)

    def hidden_mean(self, params: Params, v: Float[Array, "*n D"], beta: Any = 1.0) -> Float[Array, "*n H"]:
        """p(h_j = 1 | v)."""
        return jax.nn.sigmoid(beta * self._inputs(params, v))

    def visible_mean(
        self, params: Params, v: Float[Array, "*n D"], h: Float[Array, "*n H"], beta: Any = 1.0, base: Any = (0.0, 0.0)
    ) -> Float[Array, "*n D"]:
        """E[v_i | h]; the visible units do not depend on each other."""
        pull, precision = self._given_hidden(params, h, beta, base)
        return pull / precision

    def sample_visible(
        self,
        key: Array,
        params: Params,
        v: Float[Array, "*n D"],
        h: Float[Array, "*n H"],
        beta: Any = 1.0,
        base: Any = (0.0, 0.0),
        observed: Any = False,
    ) -> Float[Array, "*n D"]:
        """v ~ p(v | h), entries of v that are observed left as they are."""
        pull, precision = self._given_hidden(params, h, beta, base)
        noise = jax.random.normal(key, pull.shape, pull.dtype)
        return jnp.where(observed, v, pull / precision + noise * precision**-0.5)

    def base_rate(self, x: Float[Array, "N D"]) -> tuple[Any, Float[Array, ""]]:
        """Mean and log variance of the base-rate model of these rows, and its log partition function in nats."""
        x = jnp.asarray(x, jnp.float32)
        variance = x.var(0)
        least = SMALLEST * variance.mean()
        base = x.mean(0), jnp.log(jnp.where(least > 0, jnp.maximum(variance, least), 1.0))
        return base, 0.5 * (base[1] + LOG_2_PI).sum() + self.num_hidden * jnp.log(2.0)

    def shifted(self, params: Params, v: Float[Array, " D"], h: Float[Array, " H"]) -> Params:
        """The machine whose couplings act on (v - offset, h - offset), in place of (v, h), up to a constant."""
        scaled = v * jnp.exp(-params["log_variance"])
        return params | {
            "visible_bias": params["visible_bias"] - params["weights"] @ h,
            "hidden_bias": params["hidden_bias"] - scaled @ params["weights"],
        }

    def log_partition(self, params: Params) -> Float[Array, ""]:
        """log Z in nats, by the states of the hidden units.

        Raises
        ------
        ValueError
            When there are more than 20 hidden units; it tells the cost.
        """
        return logsumexp(self._hidden_table(params))

    def exact_draws(self, key: Array, params: Params, count: int) -> Float[Array, "count D"]:
        """Independent draws of v from the machine, by enumeration."""
        key_h, key_v = jax.random.split(key)
        h = rows.draw_states(key_h, self._hidden_table(params), self.num_hidden, count)
        return self.sample_visible(key_v, params, jnp.zeros((count, len(params["visible_bias"])), jnp.float32), h)

    def exact_mean(self, params: Params) -> Float[Array, " D"]:
        """E[v] = b + W E[h], by enumeration: E[h] is the gradient of log Z in the hidden biases."""
        return params["visible_bias"] + params["weights"] @ jax.grad(self.log_partition)(params)["hidden_bias"]

    def _hidden_table(self, params: Params) -> Float[Array, " states"]:
        """log of the integral over v, for every state of the hidden units.

        ∫ exp(-E(v, h)) dv = exp(cᵀh) prod_i sqrt(2 pi) sigma_i exp(((b_i + (W h)_i)² - b_i²) / (2 sigma_i²))
        """
        weights, b, c, z = (params[n] for n in ("weights", "visible_bias", "hidden_bias", "log_variance"))
        rows.check_units(self, weights.shape[1], "hidden units")

        def log_weight(h: Array) -> Array:
            moved = h @ weights.T  # (b + W h)² - b² = W h (2 b + W h)
            return h @ c + 0.5 * (moved * (2 * b + moved) * jnp.exp(-z) + z + LOG_2_PI).sum(-1)

        return rows.table(log_weight, weights.shape[1], weights.dtype)

    def _inputs(self, params: Params, v: Any) -> Float[Array, "*n H"]:
        return (v * jnp.exp(-params["log_variance"])) @ params["weights"] + params["hidden_bias"]

    def _visible_energy(self, params: Params, v: Any, beta: Any, base: Any) -> Float[Array, "*n"]:
        mean, log_variance = base
        machine = (v - params["visible_bias"]) ** 2 * jnp.exp(-params["log_variance"])
        return 0.5 * (beta * machine + (1 - beta) * (v - mean) ** 2 * jnp.exp(-log_variance)).sum(-1)

    def _given_hidden(self, params: Params, h: Any, beta: Any, base: Any) -> tuple[Array, Array]:
        """Precision times mean (*n, D), and precision (D,), of v given h."""
        own, rest = beta * jnp.exp(-params["log_variance"]), (1 - beta) * jnp.exp(-jnp.asarray(base[1]))
        pull = own * (params["visible_bias"] + h @ params["weights"].T) + rest * base[0]
        return pull, own + rest

    site_values = rows.site_values
    sample_hidden = rows.sample_hidden
