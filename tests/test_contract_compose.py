"""Contract 4: everything composes or is refused. Models, guides and objectives are discovered, not listed.

All pairs are checked abstractly; the outcome must be what mathematics says: a guide must cover the
latents that cannot be summed out, and a pathwise objective must not meet a discrete guide. A covering
sample is really run at a tiny size, through both engines' algorithms, to a well-formed InferenceData.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil

import jax
import numpy as np
import numpyro.infer
import optax
import pytest

import guides
import inference.objectives
import ppl_models
from guides import AmortizedNormal, MeanField
from inference import EM, NUTS, SVI, Incompatible, MaximumLikelihood, check, fit
from inference.objectives import ELBO, IWAE, Renyi, ScoreFunction
from ppl_models.likelihoods import Bernoulli, Gaussian, GaussianPixelScale, GaussianSharedScale
from ppl_models.networks import MLP, ConvDecoder, ConvEncoder

ROWS = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
BINARY = (ROWS > 0).astype(np.float32)
ADAM = optax.adam(1e-2)

# How a discovered class is made small: add a line for a new one (the first test says so).
SMALL = {
    "GaussianMixture": [{"num_components": 2, "covariance": c} for c in ("full", "tied", "diag", "spherical")],
    "PPCA": [{"latent_dim": 2}],
    "FactorAnalysis": [{"latent_dim": 2}],
    "VAE": [
        {"latent_dim": 2, "decoder": MLP((5,)), "likelihood": likelihood}
        for likelihood in (Bernoulli(), Gaussian(), GaussianSharedScale(), GaussianPixelScale())
    ]
    + [{"latent_dim": 2, "decoder": ConvDecoder((3,)), "likelihood": Bernoulli()}],
}


def public_classes(package):
    """Dataclasses that the package exports and that can be called as programs."""
    found = {}
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            own = inspect.isclass(value) and dataclasses.is_dataclass(value) and value.__module__ == info.name
            if own and not name.startswith("_") and "x" in inspect.signature(value.__call__).parameters:
                found[name] = value
    return found


MODELS = public_classes(ppl_models)
OBJECTIVES = {
    name: value()
    for name, value in vars(inference.objectives).items()
    if name in inference.objectives.__all__ and inspect.isclass(value)
}


def instances():
    return [MODELS[name](**options) for name, choices in SMALL.items() if name in MODELS for options in choices]


def data_for(model):
    return BINARY if isinstance(getattr(model, "likelihood", None), Bernoulli) else ROWS


def guides_for(model):
    """Every guide of the zoo on this model, the model's own posterior, and none."""
    network = ConvEncoder((3,)) if isinstance(getattr(model, "decoder", None), ConvDecoder) else MLP((5,))
    found = {"empty": guides.empty, "MeanField": MeanField(model), "AmortizedNormal": AmortizedNormal(2, network)}
    return found | ({"posterior": model.posterior} if hasattr(model, "posterior") else {})


def name_of(value):
    return repr(value).replace(" ", "")[:60]


def test_every_discovered_model_has_a_small_instance():
    assert set(MODELS) == set(SMALL), "add the new model to SMALL in this file"


# What each guide samples of each model's latents, by the families' definitions.
GLOBALS = {"GaussianMixture": True, "PPCA": True, "FactorAnalysis": True, "VAE": False}
DISCRETE_LOCAL = {"GaussianMixture": True, "PPCA": False, "FactorAnalysis": False, "VAE": False}


def valid(model, guide, objective):
    """What should hold, from the definitions of the three alone."""
    family = type(model).__name__
    if guide == "empty":
        return False  # globals, or continuous locals, are left uncovered in every family
    if guide == "AmortizedNormal":
        return not GLOBALS[family] and not DISCRETE_LOCAL[family]  # it samples z and nothing else
    if guide == "posterior":
        return objective == "ScoreFunction" or not DISCRETE_LOCAL[family]
    return True


@pytest.mark.parametrize("model", instances(), ids=name_of)
def test_all_pairs_are_accepted_or_refused_as_mathematics_says(model):
    for guide_name, guide in guides_for(model).items():
        for objective_name, objective in OBJECTIVES.items():
            expected = valid(model, guide_name, objective_name)
            try:
                check(model, guide, objective, data_for(model))
                accepted = True
            except Incompatible:
                accepted = False
            assert accepted == expected, (guide_name, objective_name)


@pytest.mark.parametrize("model", instances(), ids=name_of)
def test_numpyro_objectives_are_checked_too(model):
    if hasattr(model, "posterior") and DISCRETE_LOCAL[type(model).__name__]:
        with pytest.raises(Incompatible, match="no gradient for"):
            check(model, model.posterior, numpyro.infer.Trace_ELBO(), data_for(model))
        with pytest.raises(Incompatible, match="would draw from the prior"):
            check(model, MeanField(model), numpyro.infer.Trace_ELBO(), data_for(model))


def covering_sample():
    """Each model, each guide, each objective and each algorithm at least once."""
    objectives = [ELBO(), IWAE(2), Renyi(0.5, 2), ScoreFunction(2)]
    for i, model in enumerate(instances()):
        options = {"num_steps": 3}
        yield SVI(model, MeanField(model), objectives[i % 4], ADAM), options
        if not GLOBALS[type(model).__name__]:
            guide = guides_for(model)["AmortizedNormal"]
            yield SVI(model, guide, objectives[(i + 1) % 4], ADAM), options | {"batch_size": 7, "num_chains": 1 + i % 2}
        else:
            yield EM(model), options | {"num_chains": 2}
            free = MaximumLikelihood(model)
            guide = guides.empty if DISCRETE_LOCAL[type(model).__name__] else MeanField(free)
            yield SVI(free, guide, ELBO(), ADAM), options
    for family in ("GaussianMixture", "PPCA", "FactorAnalysis"):
        yield NUTS(MODELS[family](**SMALL[family][-1]), num_warmup=5), {"num_steps": 4, "num_chains": 2}


@pytest.mark.parametrize(("algorithm", "options"), list(covering_sample()), ids=lambda v: name_of(v) if v else "")
def test_a_covering_sample_really_runs(algorithm, options):
    x = data_for(getattr(algorithm.model, "program", algorithm.model))
    run = fit(algorithm, x, key=0, **options)
    assert all(np.isfinite(v).all() for v in run.history.values())
    assert all(np.isfinite(np.asarray(v)).all() for v in jax.tree.leaves((run.params, run.draws)))
    assert np.isfinite(run.log_likelihood(x, num_particles=5).rows).all()
    assert run.generate(5)["x"].shape == (5, 4)
    assert run.reconstruct(x)["x"].shape == x.shape
    data = run.to_arviz()
    groups = set(data.groups())
    assert {"observed_data", "sample_stats"} <= groups or {"observed_data"} <= groups
    assert data.observed_data["x"].shape == x.shape
    for group in groups & {"posterior", "sample_stats", "posterior_predictive", "prior"}:
        for values in data[group].data_vars.values():
            assert values.dims[:2] == ("chain", "draw")
            assert np.isfinite(values).all()
