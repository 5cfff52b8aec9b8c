"""Invertible networks of flowjax: frozen descriptions, weights in a parameter site, and a NumPyro transform.

A description builds a bijection from noise to latents that is fast forwards, so that draws are cheap and their density
is known from the drawing: what a guide needs. A density of data needs the way back, which is fast in
:mod:`ppl_models.networks.flow_architectures`. flowjax is imported when one is built. NumPyro only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Float
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from .flows import split
from .layers import Activation, check_activation, check_sizes, nonlinearity, softplus


@dataclass(frozen=True)
class AutoregressiveFlow:
    """Affine autoregressive layers, the order of the coordinates turned round after each.

        y_i = m_i(x_{<i}, h) + s_i(x_{<i}, h) x_i,    s > 0,    h: the context, if there is one

    Forwards a layer is one pass of a masked network, backwards one for each coordinate. From noise to latents
    forwards, as in a guide, this is inverse autoregressive flow; from data to noise, masked autoregressive flow.

    Parameters
    ----------
    num_layers
        How many layers.
    width, depth
        Units in each hidden layer of a layer's network, and how many of those there are.
    activation
        Nonlinearity of the networks.

    References
    ----------
    Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016).
    """

    num_layers: int = 2
    width: int = 64
    depth: int = 1
    activation: Activation = "tanh"

    def __post_init__(self) -> None:
        for name in ("num_layers", "width", "depth"):
            check_sizes(name, (getattr(self, name),))
        check_activation(self.activation)

    def build(self, dim: int, key: Array, context_dim: int | None = None) -> Any:
        """Bijection of ``(dim,)``, conditional on ``(context_dim,)`` if that is given, with fresh weights."""
        from flowjax.bijections import Affine, Chain, Flip, MaskedAutoregressive
        from paramax import Parameterize

        # s = softplus(raw) + 1e-2, which starts near 1
        least = 1e-2
        scale = Parameterize(lambda raw: softplus(raw) + least, jnp.log(jnp.expm1(1.0 - least)))
        affine = eqx.tree_at(lambda at: at.scale, Affine(), scale)
        layers = []
        for k in jax.random.split(key, self.num_layers):
            layer = MaskedAutoregressive(
                k,
                transformer=affine,
                dim=dim,
                cond_dim=context_dim,
                nn_width=self.width,
                nn_depth=self.depth,
                nn_activation=nonlinearity(self.activation),
            )
            layers += [layer, Flip((dim,))]
        return Chain(layers[:-1])


@dataclass(frozen=True)
class PlanarFlow:
    """Planar layers, each of which moves a row along one direction by how far it is across another.

        y = x + u tanh(wᵀx + b),    wᵀu > -1,    (w, u, b) from the context, if there is one

    The inverse is exact to rounding: along w it is one increasing equation in one unknown.

    Parameters
    ----------
    num_layers
        How many layers.
    width, depth
        Units in each hidden layer of the network from the context to (w, u, b), and how many of those there are.

    References
    ----------
    Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015).
    """

    num_layers: int = 8
    width: int = 32
    depth: int = 1

    def __post_init__(self) -> None:
        for name in ("num_layers", "width", "depth"):
            check_sizes(name, (getattr(self, name),))

    def build(self, dim: int, key: Array, context_dim: int | None = None) -> Any:
        """Bijection of ``(dim,)``, conditional on ``(context_dim,)`` if that is given, with fresh weights."""
        from flowjax.bijections import Chain, NumericalInverse, Planar

        sizes = {} if context_dim is None else {"width_size": self.width, "depth": self.depth}
        layers = [Planar(k, dim=dim, cond_dim=context_dim, **sizes) for k in jax.random.split(key, self.num_layers)]
        return Chain([NumericalInverse(layer, _unplanar, use_implicit_differentation=False) for layer in layers])


def _unplanar(planar: Any, y: Float[Array, " dim"], condition: Any = None) -> Float[Array, " dim"]:
    """The x with x + u tanh(wᵀx + b) = y.

    With a = wᵀx + b it is a + wᵀu tanh(a) = wᵀy + b, increasing in a since wᵀu > -1, and |tanh| < 1 bounds a.
    Halving brackets to rounding needs no derivative; one step of Newton's from there gives the solution its own.
    """
    layer = planar.get_planar(condition)
    w, u = layer.weight, layer.get_act_scale()
    slope, level = w @ u, w @ y + layer.bias

    def halve(_: Any, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        below = middle + slope * jnp.tanh(middle) < level
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    reach = jnp.abs(slope)
    low, high = jax.lax.fori_loop(0, 40, halve, jax.lax.stop_gradient((level - reach, level + reach)))
    a = (low + high) / 2
    a = a - (a + slope * jnp.tanh(a) - level) / jax.lax.stop_gradient(1 + slope * (1 - jnp.tanh(a) ** 2))
    return y - u * jnp.tanh(a)


def bijection(name: str, flow: Any, dim: int, context_dim: int | None = None) -> Any:
    """Give a described flow weights inside a NumPyro program: a list of arrays in the parameter site ``name``.

    Parameters
    ----------
    name
        Name of the parameter site.
    flow
        A description with ``build(dim, key)``, and ``build(dim, key, context_dim)`` if it is to be conditional.
    dim, context_dim
        Length of the vectors, and of what the flow is conditional on.

    Returns
    -------
    flowjax.bijections.AbstractBijection
    """
    build = partial(flow.build, dim) if context_dim is None else partial(flow.build, dim, context_dim=context_dim)
    # Built anew in each run of the program: its masks and functions hold arrays, which must not outlive a trace. Its
    # weights are not used, and what is not used is not computed.
    blank, fixed = split(build(key=jax.random.key(0)))
    weights: Any = numpyro.param(name, lambda key: jax.tree.leaves(split(build(key=key))[0]))
    from paramax import unwrap

    return unwrap(eqx.combine(jax.tree.unflatten(jax.tree.structure(blank), weights), fixed))


class FlowTransform(Transform):
    """A flowjax bijection of vectors as a NumPyro transform, over all leading dimensions.

    Parameters
    ----------
    bijection
        Of vectors ``(dim,)``.
    context
        What it is conditional on, ``(*batch, context_dim)``, with the batch shape of its inputs or one that
        broadcasts to it; None if it is not conditional.
    """

    domain = constraints.real_vector  # pyright: ignore
    codomain = constraints.real_vector  # pyright: ignore

    def __init__(self, bijection: Any, context: Any = None):
        self.arrays, self.static = eqx.partition(bijection, eqx.is_array)
        self.context = context

    def __call__(self, x: Any) -> Any:
        return self.call_with_intermediates(x)[0]

    def call_with_intermediates(self, x: Any) -> Any:
        """The image of x and log|det dy/dx|."""
        return self._over_rows("transform_and_log_det", x)

    def _inverse(self, y: Any) -> Any:
        return self._over_rows("inverse_and_log_det", y)[0]

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Any:
        return self.call_with_intermediates(x)[1] if intermediates is None else intermediates

    def tree_flatten(self) -> Any:
        return (self.arrays, self.context), (("arrays", "context"), {"static": self.static})

    def _over_rows(self, method: str, x: Any) -> tuple[Float[Array, "*batch dim"], Float[Array, "*batch"]]:
        apply = getattr(eqx.combine(self.arrays, self.static), method)
        if self.context is None:
            return jnp.vectorize(apply, signature="(d)->(d),()")(x)
        return jnp.vectorize(apply, signature="(d),(c)->(d),()")(x, self.context)
