"""Two levels of codes: the bound by hand, decoding level by level, and levels that do not fit."""

import jax
import numpy as np
import pytest
from numpyro import handlers
from scipy import stats

from guides import HierarchicalVectorQuantized
from inference.objectives import VectorQuantization
from ppl_models import HierarchicalVQVAE
from ppl_models.likelihoods import Gaussian
from ppl_models.networks import MLP

K, DIM, SHAPES, PIXELS, ROWS = 3, 2, ((1, 1), (2, 2)), 5, 6
MODEL = HierarchicalVQVAE(K, DIM, SHAPES, MLP((6,)), Gaussian(0.5))
GUIDE = HierarchicalVectorQuantized(K, DIM, SHAPES, (MLP((4,)), MLP((4,))))


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(ROWS, PIXELS)).astype(np.float32)


@pytest.fixture(scope="module")
def params(x):
    found = handlers.trace(handlers.seed(GUIDE, 0)).get_trace(x)
    latents = {n: found[n]["value"] for n in ("z1", "z2")}
    found |= handlers.trace(handlers.seed(handlers.substitute(MODEL, data=latents), 1)).get_trace(x)
    rng = np.random.default_rng(1)
    values = {n: s["value"] for n, s in found.items() if s["type"] == "param"}
    return values | {n: rng.normal(size=(K, DIM)).astype(np.float32) for n in ("codebook1", "codebook2")}


def apply(weights, rows):
    w1, b1, w2, b2 = map(np.float64, jax.tree.leaves(weights))
    return np.tanh(rows @ w1.T + b1) @ w2.T + b2


def by_hand(params, x):
    """Nearest codes from the top down, the mean of x, and the squared distances."""
    top = apply(params["encoder1"], np.float64(x)).reshape(ROWS, 1, 1, DIM)
    books = [np.float64(params[n]) for n in ("codebook1", "codebook2")]
    z1 = ((top[..., None, :] - books[0]) ** 2).sum(-1).argmin(-1)
    e1 = books[0][z1]
    weight, bias = map(np.float64, jax.tree.leaves(params["above2"]))
    bottom = apply(params["encoder2"], np.float64(x)).reshape(ROWS, 2, 2, DIM) + e1 @ weight.T + bias
    z2 = ((bottom[..., None, :] - books[1]) ** 2).sum(-1).argmin(-1)
    e2 = books[1][z2]
    both = np.concatenate([np.broadcast_to(e1, e2.shape), e2], -1)
    mean = apply(params["decoder"], both.reshape(ROWS, -1))
    return (z1, z2), mean, ((top - e1) ** 2).sum() + ((bottom - e2) ** 2).sum(), e1


def test_the_bound_is_the_joint_at_the_nearest_codes(params, x):
    _, mean, apart, _ = by_hand(params, x)
    bound = stats.norm(mean, 0.5).logpdf(x).sum() - ROWS * 5 * np.log(K)  # 1 + 4 positions
    out = VectorQuantization(0.25).evaluate(jax.random.key(0), params, MODEL, GUIDE, x=x)
    assert float(out.bound) == pytest.approx(bound, rel=1e-5)
    assert float(out.loss) == pytest.approx(-bound + 1.25 * apart, rel=1e-5)
    assert {"perplexity.z1", "perplexity.z2", "distance"} == set(out.metrics)


def test_the_gradient_reaches_the_top_through_both_ways(params, x):
    """The encoder on top moves x by its own vectors, and by those of the level below that are given them."""
    gradient = jax.grad(lambda p: VectorQuantization(0.0).loss(jax.random.key(0), p, MODEL, GUIDE, x=x))(params)
    weights = dict(params)

    def through(above):
        """With the way from the top to the level below cut, another gradient."""
        return jax.grad(
            lambda p: VectorQuantization(0.0).loss(jax.random.key(0), p | {"above2": above}, MODEL, GUIDE, x=x)
        )(weights)

    cut = through(jax.tree.map(np.zeros_like, params["above2"]))
    norms = [np.sqrt(sum(float((v**2).sum()) for v in jax.tree.leaves(g["encoder1"]))) for g in (gradient, cut)]
    assert min(norms) > 1e-3 and abs(norms[0] - norms[1]) > 1e-3
    assert all(np.abs(v).max() > 0 for v in jax.tree.leaves(gradient["above2"]))


def test_decoding_level_by_level(params, x):
    (z1, z2), mean, _, e1 = by_hand(params, x)
    latents = {"z1": np.eye(K, dtype=np.float32)[z1], "z2": np.eye(K, dtype=np.float32)[z2]}
    np.testing.assert_allclose(MODEL.decode(params, latents, PIXELS), mean, rtol=1e-4, atol=1e-5)
    below = np.float64(params["codebook2"]).mean(0)
    both = np.concatenate([np.broadcast_to(e1, (ROWS, 2, 2, DIM)), np.broadcast_to(below, (ROWS, 2, 2, DIM))], -1)
    top = apply(params["decoder"], both.reshape(ROWS, -1))
    np.testing.assert_allclose(MODEL.decode(params, latents, PIXELS, levels=1), top, rtol=1e-4, atol=1e-5)
    codes = MODEL.joined(latents)
    assert codes.shape == (ROWS, 5, K) and (np.asarray(codes).argmax(-1)[:, 0] == z1.ravel()).all()
    for name, value in MODEL.split(codes).items():
        np.testing.assert_array_equal(value, latents[name])
    np.testing.assert_array_equal(MODEL.above(latents, 2), np.broadcast_to(latents["z1"], (ROWS, 2, 2, K)))
    with pytest.raises(ValueError, match="level is 1; expected 2 to 2"):
        MODEL.above(latents, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HierarchicalVQVAE(0, 2, SHAPES, MLP((3,))), "num_codes is 0"),
        (lambda: HierarchicalVQVAE(3, 2, (), MLP((3,))), r"latent_shapes is \(\); expected the \(height, width\)"),
        (lambda: HierarchicalVQVAE(3, 2, ((2, 2), (3, 4)), MLP((3,))), r"a grid of \(3, 4\) does not divide into"),
        (lambda: HierarchicalVQVAE(3, 2, ((2,),), MLP((3,))), "expected the"),
        (lambda: HierarchicalVectorQuantized(3, 2, SHAPES, (MLP((3,)),)), "1 networks were given for 2 levels"),
    ],
)
def test_levels_that_do_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()
