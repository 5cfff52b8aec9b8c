"""Vector quantization: bounds by brute force, gradients by hand, codebooks in motion, priors that sum to one."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from numpyro import handlers
from scipy import stats

from guides import VectorQuantized, empty
from inference import SVI, Incompatible, fit
from inference.objectives import ELBO, MovingCodebook, ScoreFunction, VectorQuantization, codebook_moves
from ppl_models import VQVAE, Codes
from ppl_models.code_priors import AutoregressiveCodes, FactorizedCodes, PixelCodes, UniformCodes
from ppl_models.likelihoods import Bernoulli, Gaussian
from ppl_models.networks import MLP, GridDecoder, GridEncoder, SequenceDecoder, SequenceEncoder
from ppl_models.networks.sequence import Double, Halve

K, DIM, POSITIONS, PIXELS, ROWS = 3, 2, 2, 4, 5
MODEL = VQVAE(K, DIM, (POSITIONS,), MLP((6,)), Gaussian(0.5))
GUIDE = VectorQuantized(K, DIM, (POSITIONS,), MLP((6,)))


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(ROWS, PIXELS)).astype(np.float32)


@pytest.fixture(scope="module")
def params(x):
    found = handlers.trace(handlers.seed(GUIDE, 0)).get_trace(x)
    found |= handlers.trace(handlers.seed(handlers.substitute(MODEL, data={"z": found["z"]["value"]}), 1)).get_trace(x)
    values = {n: s["value"] for n, s in found.items() if s["type"] == "param"}
    return values | {"codebook": np.random.default_rng(1).normal(size=(K, DIM)).astype(np.float32)}


def apply(weights, rows):
    """A network of one hidden layer by hand, float64."""
    w1, b1, w2, b2 = map(np.float64, jax.tree.leaves(weights))
    return np.tanh(rows @ w1.T + b1) @ w2.T + b2


def log_joint(params, x):
    """log p(x, z) of every row and all K^P codes, by hand, and the codes."""
    codes = np.array(list(itertools.product(range(K), repeat=POSITIONS)))
    means = apply(params["decoder"], np.float64(params["codebook"])[codes].reshape(len(codes), -1))
    return stats.norm(means, 0.5).logpdf(x[:, None]).sum(-1) - POSITIONS * np.log(K), codes


def encoded_by_hand(params, x):
    return apply(params["encoder"], np.float64(x)).reshape(ROWS, POSITIONS, DIM)


def distances_by_hand(params, x):
    return ((encoded_by_hand(params, x)[:, :, None] - np.float64(params["codebook"])) ** 2).sum(
        -1
    )  # (row, position, k)


def test_the_bound_is_the_joint_at_the_nearest_codes(params, x):
    joint, codes = log_joint(params, x)
    nearest = distances_by_hand(params, x).argmin(-1)
    row = [np.flatnonzero((codes == z).all(1))[0] for z in nearest]
    bound = joint[np.arange(ROWS), row]
    evaluated = VectorQuantization().evaluate(jax.random.key(0), params, MODEL, GUIDE, x=x)
    assert float(evaluated.bound) == pytest.approx(bound.sum(), rel=1e-5)
    apart = distances_by_hand(params, x).min(-1).sum()
    assert float(evaluated.loss) == pytest.approx(-bound.sum() + 1.25 * apart, rel=1e-5)
    assert float(evaluated.metrics["distance"]) == pytest.approx(apart, rel=1e-4)
    share = np.bincount(nearest.ravel(), minlength=K) / nearest.size
    perplexity = np.exp(-sum(s * np.log(s) for s in share if s))
    assert float(evaluated.metrics["perplexity"]) / ROWS == pytest.approx(perplexity, rel=1e-5)
    assert (bound <= np.logaddexp.reduce(joint, axis=1)).all()  # of the evidence


def test_minibatches_scale(params, x):
    objective = VectorQuantization()
    whole = objective.evaluate(jax.random.key(0), params, MODEL, GUIDE, x=x)
    scaled = objective.evaluate(jax.random.key(0), params, MODEL, GUIDE, x=x, num_data=4 * ROWS)
    assert float(scaled.loss) == pytest.approx(4 * float(whole.loss), rel=1e-5)


def test_marginal_and_soft_draws_by_enumeration(params, x):
    joint, codes = log_joint(params, x)
    evidence = np.logaddexp.reduce(joint, axis=1)
    marginal = handlers.trace(handlers.substitute(MODEL.marginal, data=params)).get_trace(x)["x"]
    np.testing.assert_allclose(marginal["fn"].log_prob(x), evidence, rtol=1e-5)

    distances = distances_by_hand(params, x)
    book = np.float64(params["codebook"])
    apart = ((book[:, None] - book) ** 2).sum(-1) + np.diag([np.inf] * K)
    logits = -distances / (0.1 * apart.min(1).mean())
    q = np.exp(logits - logits.max(-1, keepdims=True))
    q /= q.sum(-1, keepdims=True)
    site = handlers.trace(handlers.seed(handlers.substitute(GUIDE, data=params), 0)).get_trace(x)["z"]
    ours = np.stack(
        [np.exp(site["fn"].log_prob(np.broadcast_to(np.eye(K)[z], (ROWS, POSITIONS, K)))) for z in codes], 1
    )
    by_hand = q[:, 0][:, codes[:, 0]] * q[:, 1][:, codes[:, 1]]
    np.testing.assert_allclose(ours, by_hand, atol=1e-5)
    # The soft guide is a guide like any other: its ELBO by enumeration, within 5 standard errors.
    terms = np.where(by_hand > 0, by_hand * (joint - np.log(np.maximum(by_hand, 1e-300))), 0).sum(1)
    draws = jax.vmap(lambda k: -ScoreFunction().loss(k, params, MODEL, GUIDE, x=x))(
        jax.random.split(jax.random.key(2), 400)
    )
    assert float(draws.mean()) == pytest.approx(terms.sum(), abs=5 * float(draws.std()) / 20 + 1e-3)


def test_the_gradient_goes_straight_through(params, x):
    """Encoder: d/de of -log p at the codes' vectors, plus 2 beta (z_e - e). Codebook: 2 (e - z_e). Decoder: its own."""
    gradient = jax.grad(lambda p: VectorQuantization(0.25).loss(jax.random.key(0), p, MODEL, GUIDE, x=x))(params)
    nearest = distances_by_hand(params, x).argmin(-1)
    e = np.float64(params["codebook"])[nearest]

    def decoder_loss(e, weights):
        w1, b1, w2, b2 = jax.tree.leaves(weights)
        mean = jnp.tanh(e.reshape(ROWS, -1) @ w1.T + b1) @ w2.T + b2
        return 0.5 * jnp.sum((x - mean) ** 2) / 0.5**2

    of_e, of_decoder = jax.grad(decoder_loss, (0, 1))(jnp.asarray(e, jnp.float32), params["decoder"])
    z_e = encoded_by_hand(params, x)
    upstream = of_e + 2 * 0.25 * (z_e - e)

    def encoder_output(weights):
        w1, b1, w2, b2 = jax.tree.leaves(weights)
        return (jnp.tanh(x @ w1.T + b1) @ w2.T + b2).reshape(ROWS, POSITIONS, DIM)

    expected = jax.vjp(encoder_output, params["encoder"])[1](jnp.asarray(upstream, jnp.float32))[0]
    for ours, theirs in ((gradient["encoder"], expected), (gradient["decoder"], of_decoder)):
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    book = np.zeros((K, DIM))
    np.add.at(book, nearest, 2 * (e - z_e))
    np.testing.assert_allclose(gradient["codebook"], book, rtol=1e-4, atol=1e-4)


def test_a_moving_codebook_is_the_ratio_of_moving_averages(params, x):
    """Three steps with the other parameters held, against the averages of counts and sums themselves."""
    objective = MovingCodebook(decay=0.8, restart=0.0)
    algorithm = SVI(MODEL, GUIDE, objective, codebook_moves(optax.set_to_zero()))
    from inference.protocols import Batch

    batch = Batch({"x": jnp.asarray(x)}, jnp.arange(ROWS), ROWS)
    state = jax.jit(algorithm.init)(jax.random.key(0), batch)
    state["params"] |= {"codebook": jnp.asarray(params["codebook"]), "encoder": params["encoder"]}
    z_e = encoded_by_hand(params, x).reshape(-1, DIM)
    counts, sums = np.full(K, 1 / K), np.float64(params["codebook"]) / K
    step = jax.jit(algorithm.step)
    for _ in range(3):
        one_hot = np.eye(K)[((z_e[:, None] - sums / counts[:, None]) ** 2).sum(-1).argmin(-1)]
        counts = 0.8 * counts + 0.2 * one_hot.mean(0)
        sums = 0.8 * sums + 0.2 * one_hot.T @ z_e / len(z_e)
        state, record = step(jax.random.key(1), state, batch)
        # The codebook is the ratio s / u only if it was before the step: E_0 u_0 = s_0.
        np.testing.assert_allclose(state["params"]["codebook"], sums / counts[:, None], rtol=1e-4, atol=1e-5)
    assert float(record.metrics["restarted"]) == 0


@pytest.mark.slow
def test_dead_codes_are_restarted_at_vectors_of_the_encoder():
    rng = np.random.default_rng(0)
    centres = np.array([[-3.0, 0], [0, 3.0], [3.0, 0], [0, -3.0]])
    x = (centres[rng.integers(4, size=200)] + 0.1 * rng.normal(size=(200, 2))).astype(np.float32)
    model = VQVAE(4, 2, (), MLP((8,)), Gaussian(0.3))
    guide = VectorQuantized(4, 2, (), MLP((8,)))
    runs = {}
    for restart in (0.0, 0.1):
        algorithm = SVI(
            model, _FarCodebook(guide), MovingCodebook(decay=0.9, restart=restart), codebook_moves(optax.adam(1e-2))
        )
        runs[restart] = fit(algorithm, x, key=0, num_steps=150, batch_size=50)
    used = {r: run.history["perplexity"][0, -10:].mean() for r, run in runs.items()}
    assert used[0.0] < 1.5 and used[0.1] > 2.5, used  # three of the four codes start out of reach
    assert runs[0.1].history["restarted"].sum() > 0 == runs[0.0].history["restarted"].sum()


class _FarCodebook:
    """A guide whose codebook starts with one vector near the encoder's and three far off."""

    def __init__(self, guide):
        self.guide = guide

    def __call__(self, x, num_data=None):
        start = jnp.concatenate([jnp.zeros((1, 2)), jnp.full((3, 2), 100.0) * jnp.arange(1, 4)[:, None]])
        numpyro_param = numpyro.param("codebook", start)
        with handlers.block(hide=["codebook"]), handlers.substitute(data={"codebook": numpyro_param}):
            return self.guide(x, num_data)


@pytest.mark.parametrize(
    ("prior", "shape"),
    [
        (prior, shape)
        for prior in (UniformCodes(), FactorizedCodes(), AutoregressiveCodes(7, 2), PixelCodes(4, (3, 3)))
        for shape in ((), (3,), (2, 2))
        if shape or not isinstance(prior, PixelCodes)
    ],
    ids=str,
)
def test_priors_sum_to_one_and_draw_what_they_say(prior, shape):
    k, positions = 2, int(np.prod(shape))
    with handlers.seed(rng_seed=0), handlers.trace() as tr:
        p = prior(shape, k)
    values = {
        n: jax.tree.map(lambda v: v + np.random.default_rng(1).normal(size=v.shape), s["value"]) for n, s in tr.items()
    }
    with handlers.substitute(data=values):
        p = prior(shape, k)
    assert p.event_shape == (*shape, k)
    states = np.array(list(itertools.product(range(k), repeat=positions)))
    mass = np.exp(
        np.asarray(jax.jit(p.log_prob)(np.eye(k, dtype=np.float32)[states].reshape(-1, *shape, k)), np.float64)
    )
    assert mass.sum() == pytest.approx(1, abs=1e-5)
    draws = (
        np.asarray(jax.jit(lambda key: p.sample(key, (2000,)))(jax.random.key(0)))
        .reshape(2000, positions, k)
        .argmax(-1)
    )
    counts = np.bincount(draws @ k ** np.arange(positions)[::-1], minlength=len(states))
    assert stats.chisquare(counts, mass / mass.sum() * 2000).pvalue > 1e-4  # false alarm: 1 in 10,000 a case


def test_a_prior_is_fitted_to_codes_and_goes_into_the_model():
    rng = np.random.default_rng(0)
    first = rng.integers(2, size=500)
    codes = np.stack([first, np.where(rng.random(500) < 0.9, first, 1 - first)], 1)  # the second follows the first
    z = np.eye(2, dtype=np.float32)[codes]
    run = fit(SVI(Codes(AutoregressiveCodes(16)), empty, ELBO(), optax.adam(2e-2)), z, key=0, num_steps=200)
    share = np.bincount(2 * codes[:, 0] + codes[:, 1], minlength=4) / 500
    entropy = -(share * np.log(share)).sum()
    assert run.log_likelihood(z).mean == pytest.approx(-entropy, abs=0.01)  # four states, and parameters enough
    assert set(run.params) == {"prior"}
    model = VQVAE(2, 3, (2,), MLP((4,)), Bernoulli(), prior=AutoregressiveCodes(16))
    p = handlers.trace(handlers.seed(handlers.substitute(model, data=run.params), 0)).get_trace(z[:, 0])["z"]["fn"]
    np.testing.assert_allclose(p.log_prob(z), run.log_likelihood(z).rows, atol=1e-5)


@pytest.mark.parametrize("prior", [AutoregressiveCodes(7), PixelCodes(4, (3,))], ids=lambda p: type(p).__name__)
def test_priors_given_a_class_and_codes_above_sum_to_one_and_draw_what_they_say(prior):
    """A grid of 1 x 3 codes: the mass under each class and each of two grids above, and draws of all at once."""
    program, k, shape = Codes(prior, num_classes=2), 2, (1, 3)
    states = np.eye(k, dtype=np.float32)[np.array(list(itertools.product(range(k), repeat=3)))].reshape(8, *shape, k)
    y, above = np.repeat([0, 1], 16).astype(np.int32), np.tile(np.repeat([[[0, 0, 0]], [[0, 1, 0]]], 8, 0), (2, 1, 1))
    data = {"x": np.tile(states, (4, 1, 1, 1)), "y": y, "above": np.eye(k, dtype=np.float32)[above]}
    start = handlers.trace(handlers.seed(program, 0)).get_trace(**data)["prior"]["value"]
    rng = np.random.default_rng(2)  # weights under which class and codes above matter: see the assertion below
    weights = jax.tree.map(lambda v: v + rng.normal(size=v.shape).astype(np.float32), start)
    found = handlers.trace(handlers.seed(handlers.substitute(program, data={"prior": weights}), 0)).get_trace(**data)
    fn, log_prob = found["x"]["fn"], np.asarray(found["x"]["fn"].log_prob(data["x"]), np.float64)
    assert fn.batch_shape == (32,) and float(found["y"]["fn"].log_prob(y)[0]) == pytest.approx(-np.log(2))
    mass = np.exp(log_prob).reshape(4, 8)
    np.testing.assert_allclose(mass.sum(axis=1), 1, atol=1e-5)
    assert min(np.abs(mass[a] - mass[b]).max() for a, b in itertools.combinations(range(4), 2)) > 0.02
    draws = np.asarray(jax.jit(lambda key: fn.sample(key, (500,)))(jax.random.key(0))).argmax(-1).reshape(500, 4, 8, 3)
    for i, p in enumerate(mass):  # eight rows of each kind; 1 false alarm in 10,000 each
        counts = np.bincount(draws[:, i].reshape(-1, 3) @ [4, 2, 1], minlength=8)
        assert stats.chisquare(counts, p / p.sum() * 4000).pvalue > 1e-4


def test_what_a_prior_cannot_depend_on_is_refused():
    x = np.eye(2, dtype=np.float32)[np.zeros((4, 1, 3), int)]
    with pytest.raises(TypeError, match="depends on nothing; with classes expected PixelCodes"):
        Codes(UniformCodes(), num_classes=2)
    with pytest.raises(ValueError, match=r"above has shape \(4, 3, 1\); expected \(4, 1, 3\)"):
        handlers.seed(Codes(PixelCodes(4, (3,))), 0)(x, above=x[:, 0, :, :1])
    with pytest.raises(ValueError, match="one code for the row; expected a sequence or a grid"):
        handlers.seed(Codes(PixelCodes(4, (3,))), 0)(x[:, 0, 0])
    with pytest.raises(ValueError, match=r"kernel_sizes is \(4,\); expected odd numbers"):
        PixelCodes(kernel_sizes=(4,))


def test_a_decoder_that_is_told_the_class(x):
    """The joint by hand, with the class beside each vector; the codes are of x alone; a class may be exchanged."""
    model = VQVAE(K, DIM, (POSITIONS,), MLP((6,)), Gaussian(0.5), num_classes=2)
    y = np.array([0, 1, 1, 0, 1], np.int32)
    run = fit(SVI(model, GUIDE, VectorQuantization(), optax.adam(1e-2)), {"x": x, "y": y}, key=0, num_steps=2)
    nearest = distances_by_hand(run.params, x).argmin(-1)
    e = np.float64(run.params["codebook"])[nearest]
    bounds = {}
    for name, told in (("own", y), ("other", 1 - y)):
        beside = np.broadcast_to(np.eye(2)[told][:, None], (ROWS, POSITIONS, 2))
        mean = apply(run.params["decoder"], np.concatenate([e, beside], -1).reshape(ROWS, -1))
        bounds[name] = stats.norm(mean, 0.5).logpdf(x).sum() - ROWS * POSITIONS * np.log(K)
        out = VectorQuantization().evaluate(jax.random.key(0), run.params, model, GUIDE, x=x, y=told)
        assert float(out.bound) == pytest.approx(bounds[name], rel=1e-5)
    assert abs(bounds["own"] - bounds["other"]) > 1e-2
    assert run.reconstruct({"x": x, "y": 1 - y})["x"].shape == x.shape
    with pytest.raises(Incompatible, match="num_classes is 2 and there are no labels y"):
        fit(SVI(model, GUIDE, VectorQuantization(), optax.adam(1e-2)), x, key=0, num_steps=1)
    with pytest.raises(AttributeError, match="no marginal with 2 classes"):
        _ = model.marginal


def test_stretches_of_a_sequence():
    """The decoder's layer is the adjoint of the encoder's, and a code hears the steps around its own alone."""
    down, up = Halve(3, 2, jax.random.key(0)), Double(2, 3, jax.random.key(1))
    up = eqx.tree_at(lambda layer: layer.weight, up, down.weight.transpose(1, 0, 2))
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(10, 3)).astype(np.float32), rng.normal(size=(5, 2)).astype(np.float32)
    assert float((down(a) * b).sum()) == pytest.approx(float((a * up(b)).sum()), rel=1e-5)
    assert float(down(a)[2, 1]) == pytest.approx(float(np.sum(down.weight[1] * a[3:7].T)), rel=1e-5)
    encoder = SequenceEncoder((4, 5)).build(32, 8 * 3, jax.random.key(2))
    decoder = SequenceDecoder((4, 5)).build(8 * 3, 32, jax.random.key(3))
    row = jnp.asarray(rng.normal(size=32), jnp.float32)
    assert encoder(row).shape == (24,) and decoder(encoder(row)).shape == (32,)
    moved = np.abs(jax.jacfwd(encoder)(row)).reshape(8, 3, 32).sum(1)
    assert set(np.flatnonzero(moved[4])) <= set(range(13, 23)) and moved[4, 16:20].min() > 0


def test_grids_of_an_image():
    """A code sees its own patch alone: a pixel moves the vectors of at most the patches around it."""
    encoder = GridEncoder((4, 5)).build(64, 2 * 2 * 3, jax.random.key(0))
    decoder = GridDecoder((4, 5)).build(2 * 2 * 3, 64, jax.random.key(1))
    x = jnp.asarray(np.random.default_rng(0).random(64), jnp.float32)
    assert encoder(x).shape == (12,) and decoder(encoder(x)).shape == (64,)
    moved = np.abs(jax.jacrev(encoder)(x)).reshape(2, 2, 3, 8, 8).sum((2,))
    assert moved[0, 0, 0, 0] > 0 and moved[0, 0, 7, 7] == 0 and moved[1, 1, 7, 7] > 0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: VQVAE(0, 2, (2,), MLP((3,))), ValueError, "num_codes is 0; expected a whole number of at least 1"),
        (lambda: VQVAE(4, 0, (2,), MLP((3,))), ValueError, "code_dim is 0"),
        (lambda: VQVAE(4, 2, (2, 0), MLP((3,))), ValueError, r"latent_shape is \(2, 0\)"),
        (lambda: VQVAE(4, 2, (2, 2, 2), MLP((3,))), ValueError, "expected .* a row"),
        (lambda: VQVAE(4, 2, (2,), MLP((3,)), Bernoulli), TypeError, "expected a value such as Bernoulli()"),
        (lambda: VQVAE(4, 2, (2,), MLP((3,)), prior=3), TypeError, "prior is 3; expected a value such as UniformCodes"),
        (lambda: VQVAE(4, 2, (2,), 3), TypeError, "decoder is a int; numpyro needs"),
        (lambda: VectorQuantized(0, 2, (2,), MLP((3,))), ValueError, "num_codes is 0"),
        (lambda: VectorQuantized(4, 2, (2,), MLP((3,)), softness=0), ValueError, "softness is 0"),
        (lambda: VectorQuantization(beta=-1), ValueError, "beta is -1"),
        (lambda: MovingCodebook(decay=1.0), ValueError, "decay is 1.0"),
        (lambda: VQVAE(64, 2, (4,), MLP((3,))).marginal, AttributeError, "would sum over 64\\^4 states"),
        (
            lambda: SequenceEncoder((4, 5)).build(6, 2, jax.random.key(0)),
            ValueError,
            "6 steps cannot be halved 2 times",
        ),
        (lambda: SequenceDecoder((4,)).build(7, 8, jax.random.key(0)), ValueError, "4 positions, and 7 values to take"),
        (lambda: SequenceEncoder(()), ValueError, "channels is empty"),
        (lambda: GridEncoder((4, 5)).build(49, 8, jax.random.key(0)), ValueError, "7x7 image cannot be halved 2 times"),
        (lambda: GridEncoder((4,)).build(64, 17, jax.random.key(0)), ValueError, "the grid is 4x4, and 17 values"),
        (lambda: GridDecoder((4,)).build(8, 64, jax.random.key(0)), ValueError, "the grid is 4x4, and 8 values"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_what_does_not_quantize_is_refused(x):
    from guides import AmortizedNormal
    from ppl_models import VAE

    algorithm = SVI(VAE(2, MLP((3,)), Gaussian()), AmortizedNormal(2, MLP((3,))), VectorQuantization(), optax.sgd(0.1))
    with pytest.raises(Incompatible, match="trains guides that take the nearest code"):
        fit(algorithm, x, key=0, num_steps=1)
    with pytest.raises(Incompatible, match="site 'z' has shape"):
        fit(
            SVI(MODEL, VectorQuantized(K + 1, DIM, (POSITIONS,), MLP((6,))), VectorQuantization(), optax.sgd(0.1)),
            x,
            key=0,
            num_steps=1,
        )
    with pytest.raises(Incompatible, match="ELBO differentiates through"):
        fit(SVI(MODEL, GUIDE, ELBO(), optax.sgd(0.1)), x, key=0, num_steps=1)
