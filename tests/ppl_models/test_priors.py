"""Priors: densities by quadrature and by hand in both engines, one encoder in two programs, fitted with and after."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pyro
import pytest
import torch
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import special, stats

from guides import AmortizedNormal, empty
from inference import SVI, Fit, Incompatible, check, fit, with_model
from inference.objectives import ELBO
from inference.programs import on_rows
from inference.protocols import Batch
from ppl_models import VAE
from ppl_models.likelihoods import Gaussian
from ppl_models.networks import MAF, MLP, Linear
from ppl_models.priors import FlowPrior, MixturePrior, Prior, StandardNormal, VampPrior

PIXELS = 4
ENCODER = AmortizedNormal(2, MLP((5,)))
PRIORS = [StandardNormal(), MixturePrior(3), VampPrior(ENCODER, 3), FlowPrior(MAF(2, 8))]
every_prior = pytest.mark.parametrize("prior", PRIORS, ids=lambda value: type(value).__name__)


@pytest.fixture
def x():
    return np.random.default_rng(0).random((6, PIXELS)).astype(np.float32)


def shaken(params, seed=1):
    """Parameters away from where they start; those on an interval stay inside it, a flow's tails within the grid."""
    rng = np.random.default_rng(seed)

    def shake(path, value):
        size = 0.2 if "prior_flow" in jax.tree_util.keystr(path) else 0.5
        step = rng.normal(0, size, np.shape(value)).astype(np.float32)
        if "scale" in jax.tree_util.keystr(path):
            return jnp.asarray(value) * np.exp(step)
        return value if "pseudo" in jax.tree_util.keystr(path) else jnp.asarray(value) + step

    return jax.tree_util.tree_map_with_path(shake, params)


def parameters(program, *args):
    trace = handlers.trace(handlers.seed(program, rng_seed=0)).get_trace(*args)
    return {n: s["value"] for n, s in trace.items() if s["type"] == "param"}


def distribution(prior, x, params, latent_dim=2):
    with handlers.seed(rng_seed=0), handlers.substitute(data=params):
        return prior(numpyro, latent_dim, x)


def grid(half=9.0, points=401):
    axis = np.linspace(-half, half, points)
    z = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    return z.astype(np.float32), (axis[1] - axis[0]) ** 2


@every_prior
def test_density_integrates_to_one(prior, x):
    params = shaken(parameters(prior, numpyro, 2, x[:1]))
    z, cell = grid()
    p = distribution(prior, x[:1], params)
    assert isinstance(prior, Prior) and p.event_shape == (2,)
    density = np.exp(np.float64(jax.jit(p.log_prob)(z)))
    # A smooth density on a grid of a tenth of its scales: the sum is exact to float32 and to what lies beyond 9.
    assert density.sum() * cell == pytest.approx(1.0, abs=2e-3)


def by_hand(params, x, z):
    """log p(z) of the mixture, and of the VampPrior, of which the guide itself is asked."""
    if "prior_loc" in params:
        log_weights = special.log_softmax(np.float64(params["prior_logits"]))
        loc, scale = np.float64(params["prior_loc"]), np.float64(params["prior_scale"])
    else:
        u = params["pseudo_inputs"]
        tr = handlers.trace(handlers.seed(handlers.substitute(ENCODER, data=params), rng_seed=0)).get_trace(u)
        loc, scale = (np.float64(getattr(tr["z"]["fn"].base_dist, n)) for n in ("loc", "scale"))
        log_weights = np.full(len(u), -np.log(len(u)))
    terms = stats.norm(loc, scale).logpdf(z[:, None]).sum(-1) + log_weights
    return special.logsumexp(terms, axis=1)


@pytest.mark.parametrize("prior", PRIORS[:3], ids=lambda value: type(value).__name__)
def test_density_by_hand_and_in_both_engines(prior, x):
    vae = VAE(2, MLP((5,)), Gaussian(0.5), prior)
    params = shaken(parameters(vae, x))
    z = np.random.default_rng(3).normal(size=(len(x), 2)).astype(np.float32)
    ours, trace = log_density(handlers.seed(vae, rng_seed=0), (x,), {"num_data": 12}, params | {"z": z})
    expected = stats.norm.logpdf(z).sum(-1) if isinstance(prior, StandardNormal) else by_hand(params, x, z)
    np.testing.assert_allclose(trace["z"]["fn"].log_prob(z), expected, rtol=1e-5)  # float32 sums of a few terms

    theirs = replace(vae, ppl=pyro)
    if isinstance(prior, VampPrior):
        theirs = replace(theirs, prior=replace(prior, encoder=replace(ENCODER, ppl=pyro)))
    pyro.clear_param_store()
    theirs(torch.tensor(x))
    store = pyro.get_param_store()
    for name, value in params.items():
        own = [n for n in store if n == name or n.startswith(name + ".")]
        for n, leaf in zip(own, jax.tree.leaves(value), strict=True):
            assert tuple(store[n].shape) == leaf.shape
            store[n] = torch.tensor(np.asarray(leaf))
    conditioned = pyro.poutine.condition(theirs, {"z": torch.tensor(z)})
    total = pyro.poutine.trace(conditioned).get_trace(torch.tensor(x), num_data=12).log_prob_sum().item()
    assert float(ours) == pytest.approx(total, rel=1e-5)


def test_starts(x):
    p = distribution(MixturePrior(2000), x, {}, latent_dim=1)  # mean 0 and variance 1, of 2000 means: 5 deviations
    assert abs(float(p.mean[0])) < 5 * np.sqrt(0.5 / 2000) and abs(float(p.variance[0]) - 1) < 5 * 0.5 * np.sqrt(
        2 / 2000
    )
    u = np.asarray(parameters(VampPrior(ENCODER, 8), numpyro, 2, x)["pseudo_inputs"])
    assert u.shape == (8, PIXELS) and (u > 0).all() and (u < 1).all()
    assert np.abs(u - x.mean(0)).max() < 0.05 + 5 * 0.02 and len(np.unique(u, axis=0)) == 8
    free = np.asarray(parameters(VampPrior(ENCODER, 8, bounds=None), numpyro, 2, 100 * x)["pseudo_inputs"])
    assert np.abs(free - 100 * x.mean(0)).max() < 5 * 2 * x.std() and len(np.unique(free, axis=0)) == 8


def test_evidence_of_a_linear_decoder_under_a_mixture_prior(x):
    """p(x) = sum_k w_k N(x; W m_k + b, W S_k Wᵀ + s² I), against the program summed over a grid of z."""
    vae = VAE(2, Linear(), Gaussian(0.7), MixturePrior(3))
    params = shaken(parameters(vae, x))
    w, b = (np.float64(leaf) for leaf in jax.tree.leaves(params["decoder"]))
    m, s = np.float64(params["prior_loc"]), np.float64(params["prior_scale"])
    terms = [stats.multivariate_normal(w @ m[k] + b, (w * s[k] ** 2) @ w.T + 0.49 * np.eye(PIXELS)) for k in range(3)]
    log_weights = special.log_softmax(np.float64(params["prior_logits"]))
    exact = special.logsumexp([lw + t.logpdf(x[0]) for lw, t in zip(log_weights, terms, strict=True)])
    z, cell = grid(6.0, 241)
    rows = np.broadcast_to(x[0], (len(z), PIXELS))
    with handlers.substitute(data=params | {"z": z}):
        tr = handlers.trace(handlers.seed(vae, rng_seed=0)).get_trace(rows)
    joint = np.float64(tr["z"]["fn"].log_prob(z)) + np.float64(tr["x"]["fn"].log_prob(rows))
    assert special.logsumexp(joint) + np.log(cell) == pytest.approx(exact, abs=1e-4)  # float32 log densities


def test_the_encoder_of_model_and_guide_is_one_parameter(x, tmp_path):
    """Its gradient counts both uses, and it is saved, loaded and generated from as one."""
    vae = VAE(2, MLP((5,)), Gaussian(0.5), VampPrior(ENCODER, 3))
    algorithm = SVI(vae, ENCODER, ELBO(), optax.adam(1e-2))
    check(vae, ENCODER, ELBO(), x)
    batch = Batch({"x": jnp.asarray(x)}, jnp.arange(len(x)), len(x))
    state = algorithm.init(jax.random.key(0), batch)
    assert sorted(state["params"]) == ["decoder", "encoder", "pseudo_inputs"]

    leaves, tree = jax.tree.flatten(state["params"]["encoder"])
    rng = np.random.default_rng(4)
    directions = [rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    evaluate = jax.jit(algorithm.evaluate)

    def bound(step):
        moved = jax.tree.unflatten(tree, [v + step * d for v, d in zip(leaves, directions, strict=True)])
        moved = state | {"params": state["params"] | {"encoder": moved}}
        return float(evaluate(jax.random.key(1), moved, batch))

    gradient, _ = jax.jit(algorithm.gradient)(jax.random.key(1), state, batch)
    slope = -sum(float((g * d).sum()) for g, d in zip(jax.tree.leaves(gradient["encoder"]), directions, strict=True))
    # Of a central difference with step 1e-2 the error is 1e-4 of the third derivative, and float32 rounding 1e-4.
    assert (bound(1e-2) - bound(-1e-2)) / 2e-2 == pytest.approx(slope, rel=2e-2)

    run = fit(algorithm, x, key=0, num_steps=3, progress=False)
    run.save(tmp_path / "run")
    again = Fit.load(tmp_path / "run", algorithm)
    assert sorted(again.params) == sorted(run.params) == ["decoder", "encoder", "pseudo_inputs"]
    np.testing.assert_array_equal(run.generate(5)["x"], again.generate(5)["x"])


def clustered_vae():
    """A linear decoder, and rows whose exact latents lie in two clusters."""
    rng = np.random.default_rng(5)
    z = np.where(rng.random((400, 1)) < 0.5, -2.0, 2.0) + 0.2 * rng.normal(size=(400, 2))
    rows = (z @ rng.normal(size=(2, PIXELS)) + 0.3 * rng.normal(size=(400, PIXELS))).astype(np.float32)
    vae = VAE(2, Linear(), Gaussian(0.3))
    return fit(SVI(vae, AmortizedNormal(2, Linear()), ELBO(), optax.adam(2e-2)), rows, key=0, num_steps=600), rows


@pytest.mark.slow
def test_a_prior_fitted_afterwards_raises_the_bound_by_what_it_gains_on_the_latents():
    run, rows = clustered_vae()
    z = run.sample_posterior(rows, 1, key=1)["z"][0]
    vae = replace(run.model, prior=MixturePrior(4))
    density = fit(SVI(vae.prior_density, empty, ELBO(), optax.adam(3e-2)), z, key=2, num_steps=400)
    better = with_model(run, vae, density.params)
    assert sorted(better.params) == sorted([*run.params, *density.params])
    fresh = run.sample_posterior(rows, 20, key=3)["z"].reshape(-1, 2)  # rows that the prior was not fitted to
    gain = density.log_likelihood(fresh).rows - stats.norm.logpdf(fresh).sum(-1)

    batch = Batch({"x": jnp.asarray(rows)}, jnp.arange(len(rows)), len(rows))
    keys = jax.random.split(jax.random.key(4), 100)

    def bounds(run):
        def bound(key):
            model, guide = on_rows(run.model, batch), on_rows(run.guide, batch)
            return ELBO(20).evaluate(key, run.params, model, guide, **batch.data).bound / len(rows)

        return np.asarray(jax.lax.map(bound, keys))

    before, after = bounds(run), bounds(better)
    error = np.sqrt((before.var() + after.var()) / 100 + gain.var() / len(gain))
    assert abs(after.mean() - before.mean() - gain.mean()) < 4 * error  # false alarm 6e-5
    assert gain.mean() > 0.3  # the clusters' log 2 nats, less what their widths take
    assert better.log_likelihood(rows, 200).mean > run.log_likelihood(rows, 200).mean + 0.2
    assert better.generate(7)["x"].shape == (7, PIXELS) and "observed_data" in better.to_arviz().groups()


def test_with_model_refuses_what_is_missing(x):
    run = fit(SVI(VAE(2, MLP((5,)), Gaussian()), ENCODER, ELBO(), optax.adam(1e-2)), x, key=0, num_steps=2)
    vae = replace(run.model, prior=MixturePrior(3))
    with pytest.raises(Incompatible, match=r"neither the fit nor params has a value of \['prior_loc'"):
        with_model(run, vae, {})
    wrong = parameters(replace(vae, prior=MixturePrior(2)), x)
    with pytest.raises(Incompatible, match="'prior_loc' has shape"):
        with_model(run, vae, wrong)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MixturePrior(0), ValueError, "num_components is 0; expected a whole number of at least 1"),
        (lambda: VampPrior(ENCODER, 2.5), ValueError, "num_pseudo_inputs is 2.5"),
        (lambda: VampPrior(MLP((5,))), TypeError, r"expected a guide with conditional\(x\)"),
        (lambda: VampPrior(ENCODER, 3, bounds=(1, 0)), ValueError, r"bounds is \(1, 0\)"),
        (lambda: FlowPrior(flow=MLP), TypeError, "such as RealNVP"),
        (lambda: MAF(num_layers=0), ValueError, "num_layers is"),
        (lambda: VAE(2, MLP((5,)), prior=StandardNormal), TypeError, "expected a value such as StandardNormal"),
        (lambda: VAE(2, MLP((5,)), prior=VampPrior(ENCODER)).prior_density, TypeError, "rows of data, not latents"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_priors_that_do_not_fit_are_refused_by_name(x):
    three = AmortizedNormal(3, MLP((5,)))
    with pytest.raises(Incompatible, match=r"guesses latents of shape \(3,\); the model's have \(2,\)"):
        check(VAE(2, MLP((5,)), prior=VampPrior(three)), three, ELBO(), np.round(x))
    with pytest.raises(Incompatible, match=r"both have the parameter 'encoder'.*\(7, 4\).*\(5, 4\)"):
        check(VAE(2, MLP((5,)), prior=VampPrior(AmortizedNormal(2, MLP((7,))))), ENCODER, ELBO(), np.round(x))
    with pytest.raises(Incompatible, match="rows of 4 values; expected latents, of 2"):
        check(VAE(2, MLP((5,)), prior=MixturePrior(2)).prior_density, empty, ELBO(), x)
    with pytest.raises(Incompatible, match="written for ppl=pyro"):
        check(VAE(2, MLP((5,)), prior=VampPrior(replace(ENCODER, ppl=pyro))), ENCODER, ELBO(), x)
    with pytest.raises(TypeError, match="FlowPrior runs in NumPyro alone"):
        VAE(2, MLP((5,)), prior=FlowPrior(), ppl=pyro)(torch.tensor(x))
