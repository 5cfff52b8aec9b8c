r"""Correlation of an image with a kernel, and gradients of it that are fast on a CPU.

    y[m, n] = sum_kl x[m + k, n + dl] W[k, l],      x[m, n]: in,  W[k, l]: (in, out),  y[m, n]: out

This convolution XLA has a fast kernel for on a CPU, in a loop as outside. The two that are its transposes it computes
many times slower, and in the loop of a training run slower still, so they are written here as what is fast: with y' for
the gradient in y,

    dx = correlate(y' padded, W turned round and transposed),
    dW[k, l] = sum_mn x[m + k, n + dl]ᵀ y'[m, n],

the latter as one product of patches for each image, after which the patches are still in the cache; for all images
at once they are nine times the batch in memory for a 3x3 kernel. Each of the three is linear in both arguments and has
the others for gradients, so that gradients of gradients are as fast. The price is forward mode, which JAX refuses here:
``jax.jacrev`` in place of ``jax.jacfwd``. A GPU's library has all three, and takes them as they come.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

Image = Float[Array, "h w in"]
Kernel = Float[Array, "k l in out"]


def correlate(x: Image, weight: Kernel, dilation: int = 1) -> Float[Array, "h2 w2 out"]:
    """Correlation where the kernel lies inside the image: h2 = h - k + 1, w2 = w - dilation (l - 1).

    Parameters
    ----------
    x
        Image, shape ``(h, w, in)``.
    weight
        Kernel, shape ``(k, l, in, out)``.
    dilation
        Columns between the columns of the kernel.
    """
    return _correlate(x, weight, dilation) if jax.default_backend() == "cpu" else _convolve(x, weight, dilation)


def _convolve(x: Image, weight: Kernel, dilation: int) -> Float[Array, "h2 w2 out"]:
    return jax.lax.conv_general_dilated(
        x[None], weight, (1, 1), "VALID", rhs_dilation=(1, dilation), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _correlate(x: Image, weight: Kernel, dilation: int) -> Float[Array, "h2 w2 out"]:
    return _convolve(x, weight, dilation)


def _in_image(y: Float[Array, "h2 w2 out"], weight: Kernel, dilation: int) -> Image:
    """dx: every y' is spread over the window that it was made of."""
    k, n = weight.shape[0] - 1, dilation * (weight.shape[1] - 1)
    return _correlate(jnp.pad(y, ((k, k), (n, n), (0, 0))), weight[::-1, ::-1].swapaxes(2, 3), dilation)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _in_kernel(x: Image, y: Float[Array, "h2 w2 out"], dilation: int) -> Kernel:
    """dW: every y' times its window, summed."""

    @custom_vmap
    def product(x: Any, y: Any) -> Any:
        (h, w, out), (k, n) = y.shape, (x.shape[0] - y.shape[0] + 1, (x.shape[1] - y.shape[1]) // dilation + 1)
        taps = [x[i : i + h, j : j + w] for i in range(k) for j in range(0, dilation * n, dilation)]
        patches = jnp.concatenate(taps, axis=-1).reshape(h * w, -1)
        return (patches.T @ y.reshape(-1, out)).reshape(k, n, -1, out)

    @product.def_vmap
    def one_by_one(size: int, batched: list[bool], *images: Any) -> tuple[Any, bool]:
        each = (a if many else jnp.broadcast_to(a, (size, *a.shape)) for a, many in zip(images, batched, strict=True))
        return jax.lax.map(lambda pair: product(*pair), tuple(each)), True

    return product(x, y)


def _keep(a: Any, b: Any, dilation: int, function: Any) -> tuple[Any, tuple[Any, Any]]:
    return function(a, b, dilation), (a, b)


_correlate.defvjp(
    partial(_keep, function=_correlate),
    lambda dilation, kept, y: (_in_image(y, kept[1], dilation), _in_kernel(kept[0], y, dilation)),
)
_in_kernel.defvjp(
    partial(_keep, function=_in_kernel),
    lambda dilation, kept, weight: (_in_image(kept[1], weight, dilation), _correlate(kept[0], weight, dilation)),
)

__all__ = ["correlate"]
