"""Networks: both engines alike, over any leading dimensions, one product a layer; weights seeded, never shared."""

from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import torch
from numpyro import handlers

from ppl_models.networks import MLP, ConvDecoder, ConvEncoder, Linear, network
from ppl_models.networks.layers import Downsample, Upsample

# float32 sums of at most a few hundred terms, in another order
close = partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)

NETWORKS = {
    "linear": (Linear(), 7, 3),
    "mlp": (MLP((5, 4), activation="softplus"), 7, 3),
    "square": (ConvEncoder((3, 4)), 64, 6),
    "odd": (ConvEncoder((3, 4), image_shape=(7, 5)), 35, 6),
    "colour": (ConvEncoder((3,), activation="silu", image_shape=(4, 6, 3)), 72, 6),
    "square decoder": (ConvDecoder((4, 3)), 6, 64),
    "odd decoder": (ConvDecoder((4, 3), image_shape=(7, 5)), 6, 35),
    "colour decoder": (ConvDecoder((3,), activation="elu", image_shape=(4, 6, 3)), 6, 72),
    "two maps": (ConvDecoder((3,)), 6, 2 * 64),
    "two colour maps": (ConvDecoder((3, 2), image_shape=(5, 4, 3)), 6, 2 * 60),
}
everywhere = pytest.mark.parametrize(("architecture", "in_size", "out_size"), NETWORKS.values(), ids=NETWORKS)


def random_weights(architecture, in_size, out_size, seed=0):
    """Weights with biases that are not zero, so that a bias in the wrong place shows."""
    module = architecture.build(in_size, out_size, jax.random.key(seed))
    leaves, tree = jax.tree.flatten(eqx.filter(module, eqx.is_array))
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [jnp.asarray(rng.normal(0, 0.3, w.shape), jnp.float32) for w in leaves])


def run_numpyro(architecture, in_size, out_size, x, weights=None, seed=0):
    @jax.jit
    def program(x, given):
        with handlers.seed(rng_seed=seed), handlers.substitute(data=given), handlers.trace() as trace:
            return network(numpyro, "f", architecture, in_size, out_size)(x), trace["f"]["value"]

    return program(x, {} if weights is None else {"f": weights})


def run_pyro(architecture, in_size, out_size, x, seed=0):
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    out = network(pyro, "f", architecture, in_size, out_size)(torch.tensor(x))
    return out.detach().numpy(), {k: v.detach().numpy() for k, v in pyro.get_param_store().items()}


@everywhere
def test_engines_agree(architecture, in_size, out_size):
    weights = random_weights(architecture, in_size, out_size)
    module = architecture.build_torch(in_size, out_size)
    with torch.no_grad():
        for tensor, leaf in zip(module.parameters(), jax.tree.leaves(weights), strict=True):
            tensor.copy_(torch.tensor(np.asarray(leaf)))  # same order; a wrong shape raises
    x = np.random.default_rng(1).normal(size=(5, in_size)).astype(np.float32)
    out, _ = run_numpyro(architecture, in_size, out_size, x, weights)
    close(out, run_pyro(module, in_size, out_size, x)[0])
    assert np.std(out) > 0.1


@everywhere
def test_leading_dimensions_are_rows(architecture, in_size, out_size):
    x = np.random.default_rng(1).normal(size=(2, 3, in_size)).astype(np.float32)
    weights = random_weights(architecture, in_size, out_size)
    apply = partial(run_numpyro, architecture, in_size, out_size, weights=weights)
    assert apply(x)[0].shape == (2, 3, out_size)
    close(apply(x)[0][1, 2], apply(x[1, 2])[0])
    out, _ = run_pyro(architecture, in_size, out_size, x)
    assert out.shape == (2, 3, out_size)
    close(out[1], run_pyro(architecture, in_size, out_size, x[1])[0])


@everywhere
def test_one_product_per_layer(architecture, in_size, out_size):
    """Of the whole batch, whatever the layer."""
    x = np.zeros((5, in_size), np.float32)
    weights = random_weights(architecture, in_size, out_size)
    run = jax.jit(lambda w: run_numpyro(architecture, in_size, out_size, x, w)[0])
    program = run.lower(weights).as_text()
    products = program.count("stablehlo.dot_general") + program.count("stablehlo.convolution")
    assert products == len(jax.tree.leaves(weights)) // 2
    assert "stablehlo.while" not in program


@pytest.mark.parametrize("shape", [(8, 8, 3), (7, 5, 2), (1, 4, 1)])
def test_layers_are_the_convolutions_of_stride_two(shape):
    h, w, c = shape
    keys = jax.random.split(jax.random.key(0), 3)
    image = jax.random.normal(keys[0], shape)
    conv = partial(jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "OIHW", "NHWC"))

    down = Downsample(c, 4, keys[1])
    padding = ((1, 1 + h % 2), (1, 1 + w % 2))
    close(down(image), conv(image[None], down.weight, (2, 2), padding)[0])

    up = Upsample(c, 4, (2 * h - 1, 2 * w), keys[2])
    kernel = up.weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    full = conv(image[None], kernel, (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2))[0]
    close(up(image), full[: 2 * h - 1])


@everywhere
def test_initial_weights_follow_one_law(architecture, in_size, out_size):
    wide = {"hidden": (200, 300)} if isinstance(architecture, MLP) else {}
    if hasattr(architecture, "channels"):
        wide = {"channels": tuple(20 * c for c in architecture.channels)}
    architecture = type(architecture)(**vars(architecture) | wide)
    x = np.zeros((1, in_size), np.float32)
    leaves = jax.tree.leaves(run_numpyro(architecture, in_size, out_size, x)[1])
    tensors = run_pyro(architecture, in_size, out_size, x)[1].values()
    for pair in zip(leaves, tensors, strict=True):
        for value in map(np.asarray, pair):
            if value.ndim == 1:
                assert not value.any()
                continue
            # U(-a, a), a = sqrt(6 / (fan_in + fan_out)): variance a²/3, relative error of its estimate
            # sqrt(0.8 / n); 5 standard errors are a false alarm of 6e-7 a tensor
            fan = (value.shape[0] + value.shape[1]) * value[0, 0].size
            a = np.sqrt(6 / fan)
            assert np.abs(value).max() <= a * (1 + 1e-6)
            assert abs(value.var() / (a**2 / 3) - 1) < 5 * np.sqrt(0.8 / value.size)
    assert not np.allclose(leaves[0], next(iter(tensors)))


def test_activations_agree():
    x = np.linspace(-30, 30, 101, dtype=np.float32)[:, None]
    eye = [jnp.ones((1, 1)), jnp.zeros(1)] * 2
    for name in ("tanh", "relu", "sigmoid", "softplus", "silu", "elu"):
        architecture = MLP((1,), activation=name)
        tree = jax.tree.structure(random_weights(architecture, 1, 1))
        ours, _ = run_numpyro(architecture, 1, 1, x, jax.tree.unflatten(tree, eye))
        module = architecture.build_torch(1, 1)
        with torch.no_grad():
            for tensor, leaf in zip(module.parameters(), eye, strict=True):
                tensor.copy_(torch.tensor(np.asarray(leaf)))
        close(ours, run_pyro(module, 1, 1, x)[0], err_msg=name)


def test_weights_come_from_the_seed():
    x = np.ones((2, 7), np.float32)
    for run in (run_numpyro, run_pyro):
        first, again, other = (run(MLP((5,)), 7, 3, x, seed=s)[0] for s in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert not np.allclose(first, other)


def test_a_users_own_networks():
    x = np.ones((2, 7), np.float32)
    own = lambda in_size, out_size, key: eqx.nn.MLP(in_size, out_size, 5, 1, key=key)  # noqa: E731
    out, weights = run_numpyro(own, 7, 3, x)
    close(out, jax.vmap(eqx.combine(weights, own(7, 3, jax.random.key(0))))(x))

    def own_torch(in_size, out_size):
        return torch.nn.Sequential(torch.nn.Linear(in_size, 5), torch.nn.Tanh(), torch.nn.Linear(5, out_size))

    first, again, other = (run_pyro(own_torch, 7, 3, x, seed=s)[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (2, 3) and not np.allclose(first, other)


def test_a_torch_module_is_where_a_run_starts_and_is_not_changed():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3))
    module[0].bias.requires_grad_(False)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    x = torch.randn(4, 7)

    pyro.clear_param_store()
    apply = network(pyro, "f", module, 7, 3)
    start = apply(x)
    assert sorted(pyro.get_param_store()) == ["f.0.weight", "f.1.bias", "f.1.weight", "f.2.bias", "f.2.weight"]
    start.square().sum().backward()
    for value in pyro.get_param_store().values():
        value.data -= 0.1 * value.grad
    assert not torch.allclose(apply(x), start)
    for k, v in module.state_dict().items():
        torch.testing.assert_close(v, before[k], rtol=0, atol=0)

    pyro.clear_param_store()
    torch.testing.assert_close(apply(x), start)


def test_descriptions_are_values():
    assert MLP([5, 4]) == MLP((5, 4)) and hash(MLP([5, 4])) == hash(MLP((5, 4)))
    assert MLP(5) == MLP((5,)) != MLP((5,), activation="relu")
    assert ConvEncoder([3], image_shape=[4, 4]) == ConvEncoder((3,), image_shape=(4, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(()), "hidden is empty"),
        (lambda: MLP((5, 0)), r"hidden is \(5, 0\); expected whole numbers"),
        (lambda: MLP((5.0,)), "expected whole numbers"),
        (lambda: MLP((5,), activation="gelu"), "activation is 'gelu'; expected one of tanh"),
        (lambda: ConvEncoder(()), "channels is empty"),
        (lambda: ConvDecoder((0,)), "channels is"),
        (lambda: ConvEncoder(image_shape=(8,)), "image_shape is"),
        (lambda: ConvEncoder().build(63, 3, jax.random.key(0)), "63 values are no square grey image"),
        (lambda: ConvDecoder().build_torch(3, 63), "63 values are no square grey image"),
        (lambda: ConvEncoder(image_shape=(8, 8)).build(2 * 64, 3, jax.random.key(0)), "has 64 values"),
        (lambda: ConvEncoder((2,) * 4).build(64, 3, jax.random.key(0)), "no pixels to halve"),
    ],
)
def test_bad_descriptions(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_networks():
    x = np.ones((2, 7), np.float32)
    with pytest.raises(TypeError, match="f is a Linear; numpyro needs .* A torch module runs with ppl=pyro"):
        run_numpyro(torch.nn.Linear(7, 3), 7, 3, x)
    with pytest.raises(TypeError, match="f is a Linear; numpyro needs a description"):
        run_numpyro(eqx.nn.Linear(7, 3, key=jax.random.key(0)), 7, 3, x)  # its weights are baked in
    with pytest.raises(TypeError, match="pyro needs a torch.nn.Module"):
        run_pyro(eqx.nn.Linear(7, 3, key=jax.random.key(0)), 7, 3, x)
    with pytest.raises(TypeError, match="f is a tuple"):
        run_numpyro((200, 200), 7, 3, x)
    with pytest.raises(ValueError, match=r"'f' returned shape \(2, 4\) for 2 rows; expected \(2, 3\)"):
        run_pyro(torch.nn.Linear(7, 4), 7, 3, x)
    with pytest.raises(ValueError, match="was given rows of 7 values; expected 8"):
        run_numpyro(MLP((5,)), 8, 3, x)


def test_a_description_is_traced_once_and_one_that_may_change_every_time():
    traced = []

    class Net(eqx.Module):
        layer: eqx.nn.Linear
        names: list[str] = eqx.field(static=True)

        def __call__(self, row):
            traced.append(self.names)
            return self.layer(row)

    class Build:
        def build(self, in_size, out_size, key):
            return Net(eqx.nn.Linear(in_size, out_size, key=key), self.names)

    @dataclass(frozen=True)
    class Constant(Build):
        names = ("constant",)

    @dataclass(frozen=True)
    class OfLists(Build):
        names: list[str]

    class Mutable(Build):
        names = ("mutable",)

    x = np.ones((2, 3), np.float32)
    for architecture, times in ((Constant(), 1), (OfLists(["a"]), 3), (Mutable(), 3)):
        traced.clear()
        for _ in range(3):
            run_numpyro(architecture, 3, 2, x)
        assert traced == [architecture.names] * times
