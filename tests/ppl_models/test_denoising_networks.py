"""Networks that are told the time: embeddings by their formula, layers against torch, sizes that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ppl_models.networks import FourierTime, SinusoidalTime, TimeMLP, UNet
from ppl_models.networks.unet import Convolution, _Attention

KEY = jax.random.key(0)


def test_sinusoidal_time_by_its_formula():
    found = SinusoidalTime(6, max_period=100.0).build_time(KEY)(jnp.float32(0.25))
    frequencies = 1000 * 100.0 ** (-np.arange(3) / 3)
    expected = np.concatenate([np.sin(0.25 * frequencies), np.cos(0.25 * frequencies)])
    np.testing.assert_allclose(found, expected, atol=2e-4)  # float32 angles of up to 250


def test_fourier_time_has_frequencies_of_the_scale_and_leaves_them():
    module = FourierTime(4000, scale=3.0).build_time(KEY)
    # 4.5 standard errors of a standard deviation over 2,000 frequencies
    assert np.std(module.frequencies) / (2 * np.pi) == pytest.approx(3.0, abs=4.5 * 3 / np.sqrt(2 * 2000))
    gradient = jax.grad(lambda m: m(jnp.float32(0.3)).sum())(module)
    assert not np.any(gradient.frequencies)
    np.testing.assert_allclose(jnp.square(module(jnp.float32(0.3))).sum(), 2000, rtol=1e-4)  # sin² + cos²


def test_convolution_is_torchs():
    layer = Convolution(2, 5, KEY)
    image = np.random.default_rng(0).normal(size=(6, 4, 2)).astype(np.float32)
    theirs = torch.nn.functional.conv2d(
        torch.tensor(image).permute(2, 0, 1)[None], torch.tensor(np.asarray(layer.weight)), padding=1
    )
    np.testing.assert_allclose(layer(image), theirs[0].permute(1, 2, 0), atol=1e-5)
    assert not np.any(Convolution(2, 5, KEY, zero=True)(image))


def filled(module, scale=0.1):
    """The module with all weights drawn, those that start at zero too."""
    leaves, tree = jax.tree.flatten(module)
    rng = np.random.default_rng(1)
    drawn = [jnp.asarray(rng.normal(0, scale, v.shape), jnp.float32) if hasattr(v, "shape") else v for v in leaves]
    return jax.tree.unflatten(tree, drawn)


def test_attention_and_normalisation_are_torchs():
    net = UNet((8,), num_heads=2, num_groups=4)
    ours = filled(_Attention(net, 8, KEY), 0.5)
    image = np.random.default_rng(0).normal(size=(3, 5, 8)).astype(np.float32)
    normalise = torch.nn.GroupNorm(4, 8)
    attend = torch.nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
    parts = [ours.attend.query_proj.weight, ours.attend.key_proj.weight, ours.attend.value_proj.weight]
    with torch.no_grad():
        normalise.weight.copy_(torch.tensor(np.asarray(ours.norm.weight)))
        normalise.bias.copy_(torch.tensor(np.asarray(ours.norm.bias)))
        attend.in_proj_weight.copy_(torch.tensor(np.concatenate(parts)))
        attend.out_proj.weight.copy_(torch.tensor(np.asarray(ours.attend.output_proj.weight)))
        pixels = normalise(torch.tensor(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).reshape(1, 15, 8)
        expected = image + attend(pixels, pixels, pixels)[0].reshape(3, 5, 8).numpy()
    np.testing.assert_allclose(ours(image), expected, atol=1e-4)  # float32


@pytest.mark.parametrize(
    "network",
    [TimeMLP((6, 5)), pytest.param(UNet((4, 8), num_heads=2, image_shape=(4, 6)), marks=pytest.mark.slow)],
)
def test_time_class_and_every_number_reach_the_output(network):
    size = 24
    rng = np.random.default_rng(0)
    row, direction = (jnp.asarray(rng.normal(size=n), jnp.float32) for n in (size + 4, size))
    module = filled(network.build(size + 1 + 3, size, KEY), 0.3)
    gradient = jax.jit(jax.grad(lambda row: module(row) @ direction))(row)
    assert np.abs(gradient).min() > 0


def test_what_starts_at_zero_in_the_unet():
    module = UNet((4, 8)).build(65, 64, KEY)
    blocks = [*module.middle, *(block for level in (*module.down, *module.up) for block in level)]
    still = [module.last, *(block.convolutions[1] for block in blocks)]
    moving = [module.first, *(block.convolutions[0] for block in blocks)]
    assert not any(np.any(layer.weight) for layer in still) and all(np.any(layer.weight) for layer in moving)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: UNet((4, 4, 4)).build(50, 49, KEY), "a 7x7 image cannot be halved 2 times.*pad images to 8x8"),
        (lambda: UNet((4, 4), image_shape=(4, 5)).build(21, 20, KEY), "a 4x5 image cannot be halved 1 times"),
        (lambda: UNet((4,), image_shape=(4, 4)).build(21, 20, KEY), "image_shape"),
        (lambda: UNet((4,)).build(21, 20, KEY), "no square grey image"),
        (lambda: UNet((4,)).build(16, 16, KEY), "a time and a one-hot class"),
        (lambda: UNet(()), "channels is empty"),
        (lambda: UNet((6,)), "num_heads is 4; the last 6 channels"),
        (lambda: SinusoidalTime(5), "size is 5; expected an even"),
        (lambda: FourierTime(scale=0.0), "scale is 0.0"),
        (lambda: TimeMLP(()), "hidden is empty"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
