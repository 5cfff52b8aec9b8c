"""Autoregressive models: densities by enumeration, cached draws against full forward passes, exact completion.

Weights are drawn, not learned, and large enough that pixels depend on each other.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.special import logsumexp
from numpyro import handlers
from scipy import stats

import guides
from inference import SVI, BadData, Incompatible, fit
from inference.objectives import ELBO
from ppl_models import MADE, CausalCNN, PixelCNN
from ppl_models.autoregressive import Centre
from ppl_models.likelihoods import (
    Bernoulli,
    Categorical,
    DiscretizedLogisticMixture,
    Gaussian,
    GaussianPixelScale,
    GaussianSharedScale,
)

ADAM = optax.adam(1e-2)
IMAGES = PixelCNN(3, (3, 3), (3, 4))
CASES = {  # model, levels, pixels
    "made": (MADE((7,)), 2, 6),
    "made, two layers": (MADE((6, 5), activation="tanh"), 2, 6),
    "made, three orders": (MADE((7, 6), num_masks=3), 2, 6),
    "made, three levels": (MADE((8,), likelihood=Categorical(3)), 3, 4),
    "pixels": (IMAGES, 2, 12),
    "pixels, three levels": (PixelCNN(3, (5, 3, 1), (2, 3), Categorical(3)), 3, 6),
    "colours": (PixelCNN(3, (3, 3), (2, 1, 3)), 2, 6),
    "colours, logistics": (PixelCNN(3, (3,), (1, 2, 2), DiscretizedLogisticMixture(2, 3, 0.1)), 3, 4),
    "bytes": (PixelCNN(2, (3,), (1, 2), DiscretizedLogisticMixture(2, 256)), 256, 2),
    "steps": (CausalCNN(3, 2, (1, 2)), 2, 9),
    "steps, three levels": (CausalCNN(3, 3, (1,), Categorical(3)), 3, 5),
}
LONG = {"made, two layers", "pixels, three levels", "steps, three levels", "bytes"}  # of which others show the same


def of(names):
    marked = [pytest.param(name, marks=pytest.mark.slow if name in LONG else []) for name in names]
    return pytest.mark.parametrize("name", marked)


cases = of(CASES)


def states(levels, pixels):
    return np.array(list(itertools.product(range(levels), repeat=pixels)), np.float32) / (levels - 1)


def params_of(model, x, y=None):
    """Weights of the size of a trained network's; what else there is as it starts."""

    def start(key):
        return handlers.trace(handlers.seed(model, key)).get_trace(x, *(() if y is None else (y,)))

    made = {n: s["value"] for n, s in start(jax.random.key(1)).items() if s["type"] == "param"}
    leaves, tree = jax.tree.flatten(made["network"])
    keys = jax.random.split(jax.random.key(2), len(leaves))
    shaken = [w + 0.7 * jax.random.normal(k, w.shape) for w, k in zip(leaves, keys, strict=True)]
    return made | {"network": jax.tree.unflatten(tree, shaken)}


def row(model, params, x, y=None):
    """The distribution of the program's site x."""
    with handlers.seed(rng_seed=0), handlers.substitute(data=params):
        return handlers.trace(model).get_trace(x, *(() if y is None else (y,)))["x"]["fn"]


@pytest.fixture(scope="module")
def enumerated():
    """Weights, states and log probabilities of each case, computed once."""
    found = {}

    def get(name):
        if name not in found:
            model, levels, pixels = CASES[name]
            x = states(levels, pixels)
            params = params_of(model, x[:1])
            found[name] = params, x, np.asarray(jax.jit(row(model, params, x).log_prob)(x), np.float64)
        return found[name]

    return get


@cases
def test_densities_sum_to_one(name, enumerated):
    _, _, log_prob = enumerated(name)
    # Float32 log probabilities of a few nats are good to 1e-6 or so, and the sum averages over thousands.
    np.testing.assert_allclose(np.exp(log_prob).sum(), 1, atol=1e-5)
    assert log_prob.std() > 0.3  # not near uniform, where masks would not matter


@cases
def test_draws_follow_the_density(name, enumerated):
    params, x, log_prob = enumerated(name)
    model, levels, pixels = CASES[name]
    draws = jax.jit(lambda key: row(model, params, x[:1]).sample(key, (10_000,)))(jax.random.key(3))[:, 0]
    assert draws.dtype == jnp.float32
    index = np.rint(np.asarray(draws) * (levels - 1)).astype(int) @ levels ** np.arange(pixels)[::-1]
    check_counts(index, np.exp(log_prob))


def check_counts(numbers, probabilities):
    """Chi-square over states expected at least five times, the others as one: a false alarm in 10^5."""
    expected = probabilities * len(numbers)
    observed = np.bincount(numbers.astype(int), minlength=len(expected))
    often = expected >= 5
    lumped = [np.append(v[often], v[~often].sum()) for v in (observed, expected)]
    if lumped[1][-1] < 5:
        lumped = [np.append(v[:-2], v[-2:].sum()) for v in lumped]
    statistic = ((lumped[0] - lumped[1]) ** 2 / lumped[1]).sum()
    assert stats.chi2(len(lumped[0]) - 1).sf(statistic) > 1e-5


@of([name for name in CASES if "orders" not in name])
def test_cached_draws_are_those_of_full_forward_passes(name, enumerated):
    """The same keys give the same pixels: a rounding of the logits would have to straddle a uniform, 1 in 10^5."""
    params, x, _ = enumerated(name)
    model, _, pixels = CASES[name]
    fn, keys = row(model, params, x[:1]), jax.random.split(jax.random.key(4), 20)

    def naive(key):
        drawn = jnp.zeros(pixels)
        for i in range(pixels):
            outputs = fn.network(drawn, fn.context[0])[i]
            drawn = drawn.at[i].set(fn.emission(outputs).sample(jax.random.fold_in(key, i))[0])
        return drawn

    blank = jnp.zeros((1, pixels))
    cached = jax.vmap(lambda key: fn.complete(key, blank, blank > 0)[0])(keys)
    naive_keys = jax.vmap(lambda key: jax.random.split(key, 1)[0])(keys)
    np.testing.assert_array_equal(cached, jax.jit(jax.vmap(naive))(naive_keys))


@pytest.mark.parametrize(
    "likelihood",
    [pytest.param(Gaussian(0.5), marks=pytest.mark.slow), GaussianSharedScale(), GaussianPixelScale()],
    ids=str,
)
def test_means_along_draws_average_to_the_mean_of_draws(likelihood):
    """E[E[x_i | x_<i]] = E[x_i], of a density whose draws have no closed mean."""
    model, x = MADE((5,), likelihood=likelihood), np.zeros((3, 4), np.float32)
    fn = row(model, params_of(model, x), x)
    assert fn.has_rsample
    draws = fn.sample(jax.random.key(1), (4000,))
    difference = np.asarray(draws - fn.mean_along(draws))[:, 0]
    # Four z-tests at 5 standard errors, each a false alarm in 10^6.
    assert (np.abs(difference.mean(0)) < 5 * difference.std(0) / np.sqrt(4000)).all()


@pytest.mark.parametrize(
    "model",
    [MADE((5,), num_classes=2), pytest.param(PixelCNN(2, (3,), (2, 2), num_classes=2), marks=pytest.mark.slow)],
    ids=str,
)
def test_each_class_has_its_own_density(model):
    x = np.tile(states(2, 4), (2, 1))
    y = np.repeat([0, 1], 16).astype(np.int32)
    params = params_of(model, x, y)
    log_prob = np.asarray(row(model, params, x, y).log_prob(x)).reshape(2, 16)
    np.testing.assert_allclose(logsumexp(log_prob, axis=1), 0, atol=1e-5)
    assert np.abs(log_prob[0] - log_prob[1]).max() > 0.1


def test_orders_are_averaged_as_probabilities(enumerated):
    """p = mean_m p_m, each of them normalised, and of different orders."""
    params, x, log_prob = enumerated("made, three orders")
    fn = row(CASES["made, three orders"][0], params, x)
    each = np.stack([np.asarray(fn._under(m, fn.row.context).log_prob(x)) for m in range(3)])
    np.testing.assert_allclose(logsumexp(each, axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(logsumexp(each, axis=0) - np.log(3), log_prob, atol=1e-5)
    orders = {tuple(fn.row.network.with_masks(m).position) for m in range(3)}
    assert len(orders) == 3 and tuple(range(6)) in orders


def reach(network, pixels, target):
    """Which pixels move the outputs of one."""
    x, context = jax.random.normal(jax.random.key(5), (pixels,)), jnp.zeros((1, 0))
    return np.asarray(jnp.abs(jax.jacobian(lambda x: network(x, context)[target, 0])(x)) > 0)


@pytest.mark.parametrize(("kernels", "far"), [((5, 3), 3), pytest.param((3, 3, 1), 2, marks=pytest.mark.slow)])
def test_an_image_is_seen_without_a_blind_spot(kernels, far):
    shape, (r, c) = (6, 9), (4, 4)
    network = PixelCNN(9, kernels, shape).build(54, 1, 0, Centre(0.0, 1.0), jax.random.key(0))
    rows, columns = np.indices(shape)
    near = (np.abs(columns - c) <= far) & (rows >= r - far)
    expected = near & ((rows < r) | ((rows == r) & (columns < c)))
    np.testing.assert_array_equal(reach(network, 54, r * 9 + c).reshape(shape), expected)


def test_a_colour_sees_the_colours_of_its_pixel_that_come_before():
    network = PixelCNN(9, (3,), (3, 3, 3)).build(27, 1, 0, Centre(0.0, 1.0), jax.random.key(0))
    seen = reach(network, 27, (1 * 3 + 1) * 3 + 1).reshape(3, 3, 3)  # the second colour in the middle
    expected = np.zeros((3, 3, 3), bool)
    expected[0], expected[1, 0], expected[1, 1, 0] = True, True, True
    np.testing.assert_array_equal(seen, expected)


def test_a_latent_says_something_of_each_pixel_whatever_its_colours():
    assert PixelCNN(image_shape=(4, 5, 3)).positions(60) == 20 == PixelCNN(image_shape=(4, 5)).positions(20)


def test_a_sequence_is_seen_as_far_back_as_its_dilations_say():
    network = CausalCNN(9, 3, (1, 2)).build(12, 1, 0, Centre(0.0, 1.0), jax.random.key(0))
    np.testing.assert_array_equal(np.flatnonzero(reach(network, 12, 10)), np.arange(3, 10))  # 1 + 2 (1 + 2) back


@pytest.fixture(scope="module")
def run():
    x = (np.random.default_rng(0).random((40, 12)) < 0.4).astype(np.float32)
    return fit(SVI(IMAGES, guides.empty, ELBO(), ADAM), x, key=0, num_steps=3, progress=False)


def test_half_an_image_is_completed_exactly(run):
    upper = np.arange(12) < 4
    x = np.tile((np.arange(12) % 3 == 0).astype(np.float32), (4000, 1))
    drawn = run.complete(x, observed=upper)["x"]
    assert (drawn[:, upper] == x[:, upper]).all()
    below = states(2, 8)
    whole = np.concatenate([np.tile(x[0, upper], (256, 1)), below], axis=1).astype(np.float32)
    log_prob = run.log_likelihood(whole).rows
    check_counts(drawn[:, ~upper].astype(int) @ 2 ** np.arange(8)[::-1], np.exp(log_prob - logsumexp(log_prob)))
    some = run.complete(x[:3], observed=np.stack([upper, ~np.zeros(12, bool), np.zeros(12, bool)]))["x"]
    assert (some[1] == x[1]).all()


def test_what_cannot_be_completed_is_refused(run):
    x = np.zeros((2, 12), np.float32)
    with pytest.raises(BadData, match="observed has entry 4, which is drawn after entries that are not observed"):
        run.complete(x, observed=np.arange(12) >= 4)
    with pytest.raises(BadData, match="observed has dtype float64 and shape"):
        run.complete(x, observed=np.ones(12))
    several = fit(SVI(MADE((3,), num_masks=2), guides.empty, ELBO(), ADAM), x, key=0, num_steps=1, progress=False)
    with pytest.raises(BadData, match="drawn in 2 orders"):
        several.complete(x, observed=np.arange(12) < 4)
    assert several.complete(x, observed=False)["x"].shape == (2, 12)


def test_a_pixel_that_is_always_off_is_learned():
    """Its logit, the first's, is a bias alone and starts even: nothing else can tell it."""
    x = np.random.default_rng(0).integers(2, size=(256, 4)).astype(np.float32) * np.array([0, 1, 1, 1], np.float32)
    run = fit(SVI(MADE((5,)), guides.empty, ELBO(), optax.adam(5e-2)), x, key=0, num_steps=200)
    # The other three are fair coins, and of 256 rows their law is known to a few hundredths.
    assert run.log_likelihood(x).mean == pytest.approx(-3 * np.log(2), abs=0.1)


def test_a_fit_with_an_empty_guide_is_maximum_likelihood():
    """No density is above the entropy of the rows' own frequencies, which a flexible one attains."""
    rng = np.random.default_rng(1)
    patterns, counts = states(2, 5)[rng.choice(32, 6, replace=False)], np.array([20, 10, 5, 5, 5, 5])
    x = np.repeat(patterns, counts, axis=0)
    ceiling = float((counts / 50 * np.log(counts / 50)).sum())
    run = fit(SVI(MADE((30,)), guides.empty, ELBO(), optax.adam(3e-2)), x, key=0, num_steps=600, progress=False)
    found = run.log_likelihood(x)
    assert not found.variance.any()  # exact
    assert ceiling - 0.05 < found.mean < ceiling + 1e-5


X = (np.random.default_rng(0).random((10, 4)) < 0.5).astype(np.float32)
LABELS = np.arange(10) % 3


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (MADE((3,)), 2 * X, "outside its likelihood's support, boolean: row 0 holds 2"),
        (MADE((3,), likelihood=Categorical(4)), 255 * X, "grey levels 0, 1/3, … 1: row 0 holds 255"),
        (MADE((3,), likelihood=Categorical(4)), X / 2, "grey levels 0, 1/3, … 1: row 0 holds 0.5"),
        (MADE((3,), num_classes=2), {"x": X, "y": LABELS}, "site 'y' .* whole numbers from 0 to 1: row 2 holds 2"),
        (MADE((3,), num_classes=2), X, "num_classes is 2 and there are no labels y; expected one a row"),
        (MADE((3,)), {"x": X, "y": LABELS}, "num_classes is 0 and there are labels y"),
        (PixelCNN(2, (3,)), X[:, :3], "rows have 3 pixels and no image_shape was given"),
        (PixelCNN(2, (3,), (3, 3)), X, r"rows have 4 pixels and image_shape is \(3, 3\)"),
    ],
    ids=lambda v: v[:40] if isinstance(v, str) else "",
)
def test_data_that_do_not_fit_are_refused(model, data, message):
    with pytest.raises((BadData, Incompatible), match=message):
        fit(SVI(model, guides.empty, ELBO(), ADAM), data, key=0, num_steps=1, progress=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MADE(()), "hidden is empty"),
        (lambda: MADE((0,)), r"hidden is \(0,\)"),
        (lambda: MADE(num_masks=0), r"num_masks is \(0,\)"),
        (lambda: MADE(activation="gelu"), "activation is 'gelu'"),
        (lambda: MADE(likelihood=Bernoulli), "expected a value such as Bernoulli"),
        (lambda: MADE(num_classes=-1), "num_classes is -1"),
        (lambda: PixelCNN(kernel_sizes=(4,)), r"kernel_sizes is \(4,\); expected odd numbers"),
        (lambda: PixelCNN(kernel_sizes=(1, 3)), "the first at least 3"),
        (lambda: PixelCNN(image_shape=(8,)), r"image_shape is \(8,\); expected \(height, width\)"),
        (lambda: CausalCNN(kernel_size=1), "kernel_size is 1"),
        (lambda: CausalCNN(dilations=()), r"dilations \(\)"),
        (lambda: Categorical(1), "levels is 1; expected a whole number"),
    ],
)
def test_models_that_cannot_be_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
