r"""Convolutional restricted Boltzmann machine with probabilistic max-pooling, for binary images.

Filter k is laid over every place of the image, and has a hidden unit there; hidden units of one map are pooled in
C x C blocks, in each of which at most one is on:

    E(v, h) = -sum_k sum_ij h_kij ((W_k ⋆ v)_ij + c_k) - bᵀ v,    sum_{ij in block} h_kij <= 1,

⋆ being the cross-correlation at the places where the filter lies within the image. With I = W_k ⋆ v + c_k,

    p(h_kij = 1 | v) = exp(I_kij) / (1 + sum_{block of ij} exp(I)),    p(v = 1 | h) = sigma(b + sum_k W_k * h_k),
    F(v) = -bᵀ v - sum_blocks log(1 + sum_block exp(I)),

where W * h is the full convolution, the transpose of ⋆. The pooling unit of a block is on when one of its units is:
the layer above sees maps C times smaller.

Visible biases are one a pixel, which keeps the family closed under centring: with visible offsets equal over the
image and hidden ones equal over a map, filters that lie within the image move every hidden unit of a map alike.

Tempering is of the joint energy, from the base-rate model, whose pixels have log odds b0 and whose blocks are
uniform over their C² + 1 states.

References
----------
Convolutional Deep Belief Networks for Scalable Unsupervised Learning of Hierarchical Representations (Lee, Grosse,
Ranganath and Ng, 2009).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from ppl_models import boltzmann_rows as rows
from ppl_models.boltzmann_rows import Params, normal
from ppl_models.networks.layers import check_sizes, softplus


@dataclass(frozen=True)
class ConvolutionalRBM:
    """Convolutional RBM with probabilistic max-pooling, for binary images as flat rows; an energy program.

    Sites: globals ``weights`` W (filter_size², K), ``visible_bias`` b (D,), ``hidden_bias`` c (K,); observed ``x``
    (D,), the hidden units summed out; of each row, deterministic, ``free_energy`` in nats and ``hidden``, the
    probabilities of its hidden units, ``(K, rows, columns)`` flattened, of which :meth:`maps` makes images.

    Parameters
    ----------
    num_filters
        K, at least 1.
    filter_size
        Side of a filter, in pixels.
    pool
        Side C of a pooling block, in hidden units; 1 pools nothing.
    image_shape
        ``(height, width)`` of a row; square by default.
    weight_scale, bias_scale
        Standard deviations of the Normal priors, around zero.

    Raises
    ------
    ValueError
        A field out of range; when run, rows that are no such image, or maps that do not part into blocks; when a
        likelihood is asked for, more than 20 pixels.
    """

    num_filters: int
    filter_size: int
    pool: int = 1
    image_shape: tuple[int, int] | None = None
    weight_scale: float = 1.0
    bias_scale: float = 3.0

    visible_support = constraints.boolean

    def __post_init__(self) -> None:
        check_sizes(
            "ConvolutionalRBM: (num_filters, filter_size, pool)", (self.num_filters, self.filter_size, self.pool)
        )
        rows.check_scales(self, "weight_scale", "bias_scale")
        shape = self.image_shape
        if shape is not None and (not isinstance(shape, tuple) or len(shape) != 2):
            raise ValueError(f"ConvolutionalRBM: image_shape is {shape!r}; give (height, width), as a tuple.")
        check_sizes("ConvolutionalRBM: image_shape", shape or ())

    def __call__(self, x: Float[Array, "batch D"], num_data: int | None = None) -> Any:
        """Sample the globals and observe x, whose density is exact."""
        self._shape(x.shape[-1])
        params = {
            "weights": normal("weights", (self.filter_size**2, self.num_filters), self.weight_scale),
            "visible_bias": normal("visible_bias", (x.shape[-1],), self.bias_scale),
            "hidden_bias": normal("hidden_bias", (self.num_filters,), self.bias_scale),
        }
        return rows.observe(self, params, x, num_data)

    def initial(self, key: Array, x: Float[Array, "N D"]) -> Params:
        """Small random filters, and visible biases that give the base rates of these rows; float32."""
        self._shape(x.shape[-1])
        return {
            "weights": rows.uniform_weights(key, self.filter_size**2, self.num_filters),
            "visible_bias": rows.log_odds(jnp.mean(x, axis=0, dtype=jnp.float32)),
            "hidden_bias": jnp.zeros(self.num_filters, jnp.float32),
        }

    def energy(
        self, params: Params, v: Float[Array, "*n D"], h: Float[Array, "*n H"], beta: Any = 1.0, base: Any = 0.0
    ) -> Float[Array, "*n"]:
        """E_beta(v, h) in nats, of hidden units of which no two in a block are on."""
        coupled = jnp.sum(self._flat(self._inputs(params, v)) * h, -1)
        return -beta * coupled - v @ (beta * params["visible_bias"] + (1 - beta) * base)

    def free_energy(
        self, params: Params, v: Float[Array, "*n D"], beta: Any = 1.0, base: Any = 0.0
    ) -> Float[Array, "*n"]:
        """-log sum_h exp(-E_beta(v, h)) in nats."""
        blocks = logsumexp(self._with_off(beta * self._inputs(params, v)), -1).sum((-3, -2, -1))
        return -v @ (beta * params["visible_bias"] + (1 - beta) * base) - blocks

    def hidden_mean(self, params: Params, v: Float[Array, "*n D"], beta: Any = 1.0) -> Float[Array, "*n H"]:
        """p(h_kij = 1 | v)."""
        on = jax.nn.softmax(self._with_off(beta * self._inputs(params, v)), -1)[..., :-1]
        return self._flat(self._unpooled(on))

    def visible_mean(
        self, params: Params, v: Float[Array, "*n D"], h: Float[Array, "*n H"], beta: Any = 1.0, base: Any = 0.0
    ) -> Float[Array, "*n D"]:
        """p(v_i = 1 | h); pixels do not depend on each other."""
        inputs = params["visible_bias"] + self._convolved(params, h, v.shape[-1])
        return jax.nn.sigmoid(beta * inputs + (1 - beta) * base)

    def sample_hidden(
        self, key: Array, params: Params, v: Float[Array, "*n D"], beta: Any = 1.0
    ) -> Float[Array, "*n H"]:
        """h ~ p(h | v), a state for every block."""
        logits = self._with_off(beta * self._inputs(params, v))
        state = jax.random.categorical(key, logits)  # the last is off
        return self._flat(self._unpooled(jax.nn.one_hot(state, logits.shape[-1], dtype=v.dtype)[..., :-1]))

    def maps(self, h: Float[Array, "*n H"], columns: int) -> Float[Array, "*n K P Q"]:
        """Hidden units as images, for rows of so many columns."""
        height, width = self._map_shape(columns)
        return jnp.reshape(h, (*h.shape[:-1], self.num_filters, height, width))

    def pooled(self, h: Float[Array, "*n H"], columns: int) -> Float[Array, "*n K P/C Q/C"]:
        """Pooling units of hidden units, or their probabilities: the sum over each block."""
        return self._blocks(self.maps(h, columns)).sum(-1)

    def base_rate(self, x: Float[Array, "N D"]) -> tuple[Float[Array, " D"], Float[Array, ""]]:
        """Log odds of the base-rate model of these rows, and its log partition function in nats."""
        base = rows.log_odds(jnp.mean(x, axis=0, dtype=jnp.float32))
        height, width = self._map_shape(x.shape[-1])
        blocks = self.num_filters * (height // self.pool) * (width // self.pool)
        return base, softplus(base).sum() + blocks * jnp.log(self.pool**2 + 1.0)

    def shifted(self, params: Params, v: Float[Array, " D"], h: Float[Array, " H"]) -> Params:
        """The machine whose couplings act on (v - offset, h - offset), in place of (v, h), up to a constant.

        Offsets are the mean of ``v`` over the image, and those of ``h`` over each map.
        """
        maps = self.maps(h, v.shape[-1])
        even = jnp.broadcast_to(maps.mean((-2, -1), keepdims=True), maps.shape).ravel()
        return params | {
            "visible_bias": params["visible_bias"] - self._convolved(params, even, v.shape[-1]),
            "hidden_bias": params["hidden_bias"] - v.mean() * params["weights"].sum(0),
        }

    def log_partition(self, params: Params) -> Float[Array, ""]:
        """log Z in nats, by the states of the pixels.

        Raises
        ------
        ValueError
            When there are more than 20 pixels; it tells the cost.
        """
        return logsumexp(self._visible_table(params))

    def _visible_table(self, params: Params) -> Float[Array, " states"]:
        """-F(v) of every state of the pixels."""
        bias = params["visible_bias"]
        rows.check_units(self, len(bias), "pixels")
        return rows.table(lambda v: -self.free_energy(params, v), len(bias), bias.dtype)

    def _shape(self, columns: int) -> tuple[int, int]:
        """Height and width of a row of so many columns."""
        shape = self.image_shape or (isqrt(columns), isqrt(columns))
        if shape[0] * shape[1] != columns:
            raise ValueError(
                f"ConvolutionalRBM: x has {columns} columns, which are no image of shape {shape}; give "
                "image_shape=(height, width) and flatten each image to a row."
            )
        sides = [side - self.filter_size + 1 for side in shape]
        if min(sides) < 1 or any(side % self.pool for side in sides):
            raise ValueError(
                f"ConvolutionalRBM: filters of size {self.filter_size} have maps of {sides[0]} x {sides[1]} on images "
                f"of {shape[0]} x {shape[1]}, which do not part into blocks of {self.pool} x {self.pool}; choose "
                "filter_size and pool so that side - filter_size + 1 is a multiple of pool."
            )
        return shape

    def _map_shape(self, columns: int) -> tuple[int, int]:
        height, width = self._shape(columns)
        return height - self.filter_size + 1, width - self.filter_size + 1

    def _patches(self, v: Float[Array, "*n D"]) -> Float[Array, "*n P Q size"]:
        """What the filter sees at each of its places: a matmul on these is a convolution, and as fast in a scan."""
        (height, width), (p, q) = self._shape(v.shape[-1]), self._map_shape(v.shape[-1])
        image = jnp.reshape(v, (*v.shape[:-1], height, width))
        size = range(self.filter_size)
        return jnp.stack([image[..., i : i + p, j : j + q] for i in size for j in size], -1)

    def _inputs(self, params: Params, v: Float[Array, "*n D"]) -> Float[Array, "*n K P Q"]:
        """I = W ⋆ v + c."""
        return jnp.moveaxis(self._patches(v) @ params["weights"] + params["hidden_bias"], -1, -3)

    def _convolved(self, params: Params, h: Float[Array, "*n H"], columns: int) -> Float[Array, "*n D"]:
        """sum_k W_k * h_k, the transpose of ⋆."""
        blank = jax.ShapeDtypeStruct((*h.shape[:-1], columns), h.dtype)
        transpose = jax.linear_transpose(self._patches, blank)
        return transpose(jnp.moveaxis(self.maps(h, columns), -3, -1) @ params["weights"].T)[0]

    def _blocks(self, maps: Float[Array, "*n K P Q"]) -> Float[Array, "*n K P/C Q/C C²"]:
        """The units of each block."""
        *lead, p, q = maps.shape
        c = self.pool
        parts = maps.reshape(*lead, p // c, c, q // c, c).swapaxes(-3, -2)
        return parts.reshape(*lead, p // c, q // c, c * c)

    def _unpooled(self, blocks: Float[Array, "*n K P/C Q/C C²"]) -> Float[Array, "*n K P Q"]:
        """And back."""
        *lead, p, q, _ = blocks.shape
        c = self.pool
        parts = blocks.reshape(*lead, p, q, c, c).swapaxes(-3, -2)
        return parts.reshape(*lead, p * c, q * c)

    def _with_off(self, inputs: Float[Array, "*n K P Q"]) -> Float[Array, "*n K P/C Q/C C²+1"]:
        """Log odds of a block's states: each of its units on, and last, none."""
        blocks = self._blocks(inputs)
        return jnp.concatenate([blocks, jnp.zeros_like(blocks[..., :1])], -1)

    def _flat(self, maps: Float[Array, "*n K P Q"]) -> Float[Array, "*n H"]:
        return maps.reshape(*maps.shape[:-3], -1)

    site_values = rows.site_values
    exact_draws = rows.exact_draws
    exact_mean = rows.exact_mean
    sample_visible = rows.sample_visible
    posterior = rows.posterior
