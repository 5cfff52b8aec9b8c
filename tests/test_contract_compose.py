"""Contract 4: everything composes or is refused. Models, guides and objectives are discovered, not listed.

Every model with every guide is checked abstractly, and where the guide covers the model's latents each
family with every objective; the outcome must be what mathematics says: a guide must cover the latents that
cannot be summed out, and a pathwise objective must not meet a discrete guide. A covering sample is really
run at a tiny size, through both engines' algorithms, to a well-formed InferenceData.
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
from guides import (
    AmortizedBernoulli,
    AmortizedBoundedNormal,
    AmortizedCategorical,
    AmortizedFlow,
    AmortizedFullNormal,
    AmortizedNormal,
    AutoregressiveBernoulli,
    ConditionalNormal,
    Delta,
    Hamiltonian,
    HierarchicalNormal,
    MeanField,
    SemiAmortized,
    SemiSupervisedNormal,
    TopDownNormal,
)
from inference import (
    EM,
    NUTS,
    SVI,
    Adversarial,
    ChEES,
    ContrastiveDivergence,
    Gibbs,
    Incompatible,
    MaximumLikelihood,
    StepwiseEM,
    Tempering,
    UpDown,
    VariationalBayes,
    check,
    fit,
)
from inference.check import check_guide, check_model, check_objective
from inference.data import as_data
from inference.objectives import (
    ELBO,
    IWAE,
    Denoising,
    EnumeratedELBO,
    MovingCodebook,
    Renyi,
    ScoreFunction,
    VectorQuantization,
    codebook_moves,
)
from ppl_models import MADE
from ppl_models.ar1_prior import AR1Prior
from ppl_models.code_priors import AutoregressiveCodes
from ppl_models.likelihoods import Bernoulli, Gaussian, GaussianPixelScale, GaussianSharedScale
from ppl_models.networks import MLP, ConvDecoder, ConvEncoder, Critic, Planar
from ppl_models.networks.bijections import PlanarFlow
from ppl_models.noise_schedules import LinearSchedule
from ppl_models.priors import FlowPrior, MixturePrior, StandardNormal, VampPrior

ROWS = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
BINARY = (ROWS > 0).astype(np.float32)
LABELLED = np.random.default_rng(1).integers(-1, 2, 24).astype(np.int32)  # of two classes, a third unknown
ADAM = optax.adam(1e-2)
STANDARD = StandardNormal()

# How a discovered class is made small: add a line for a new one (the first test says so).
SMALL = {
    "GaussianMixture": [{"num_components": 2, "covariance": c} for c in ("full", "tied", "diag", "spherical")]
    + [{"num_components": 2, "mean_count": 1.0}],
    "PPCA": [{"latent_dim": 2}],
    "BayesianPCA": [{"latent_dim": 2}],
    "FactorAnalysis": [{"latent_dim": 2}],
    "VAE": [
        {"latent_dim": 2, "decoder": MLP((5,)), "likelihood": likelihood}
        for likelihood in (Bernoulli(), Gaussian(), GaussianSharedScale(), GaussianPixelScale())
    ]
    + [{"latent_dim": 2, "decoder": ConvDecoder((3,)), "likelihood": Bernoulli()}]
    + [
        {"latent_dim": 2, "decoder": MLP((5,)), "likelihood": Gaussian(), "prior": prior}
        for prior in (MixturePrior(2), VampPrior(AmortizedNormal(2, MLP((5,))), 3), FlowPrior(), AR1Prior(0.5))
    ],
    "SigmoidBeliefNetwork": [{"layers": (2,)}, {"layers": (2, 3)}],
    "RBM": [{"num_hidden": 2}],
    "BoltzmannMachine": [{"num_hidden": 1}],
    "ConvolutionalRBM": [{"num_filters": 2, "filter_size": 1, "pool": 1, "image_shape": (2, 2)}],
    "DeepBeliefNetwork": [{"num_hidden": (2, 2)}],
    "DeepBoltzmannMachine": [{"num_hidden": (2, 2)}],
    "GaussianRBM": [{"num_hidden": 2}],
    "Flow": [{"architecture": Planar(2)}],
    "Diffusion": [{"denoiser": MLP((5,)), "schedule": LinearSchedule(3, 0.1, 0.5)}],
    "DiscreteVAE": [{"num_bits": 2, "decoder": MLP((5,)), "likelihood": like} for like in (Bernoulli(), Gaussian())],
    "Generator": [{"latent_dim": 2, "network": MLP((5,))}],
    "CycleGAN": [{"network": MLP((5,))}],
    "PixelVAE": [{"latent_dim": 2, "decoder": MLP((5,)), "pixels": MADE((3,)), "features": 2}],
    "MADE": [{"hidden": (3,)}, {"hidden": (3,), "num_masks": 2, "likelihood": Gaussian()}],
    "PixelCNN": [{"channels": 2, "kernel_sizes": (3,)}],
    "CausalCNN": [{"channels": 2, "dilations": (1,)}],
    "QuantizedFlow": [{"architecture": Planar(2), "levels": 2}],
    "Codes": [{"prior": AutoregressiveCodes(5)}],
    "HierarchicalVQVAE": [
        {
            "num_codes": 2,
            "code_dim": 3,
            "latent_shapes": ((1, 1), (2, 2)),
            "decoder": MLP((5,)),
            "likelihood": Gaussian(),
        }
    ],
    "VQVAE": [{"num_codes": 2, "code_dim": 3, "latent_shape": (2,), "decoder": MLP((5,)), "likelihood": Gaussian()}],
    "CategoricalVAE": [{"num_latents": 2, "num_categories": 3, "decoder": MLP((5,))}],
    "HierarchicalVAE": [{"latent_dims": (2, 2), "decoders": (MLP((5,)), MLP((4,)))}],
    "ConditionalVAE": [{"num_classes": 2, "latent_dim": 2, "decoder": MLP((5,))}],
    "SemiSupervisedVAE": [{"num_classes": 2, "latent_dim": 2, "decoder": MLP((5,))}],
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


def _has_defaults(kind):
    missing = dataclasses.MISSING
    return all(f.default is not missing or f.default_factory is not missing for f in dataclasses.fields(kind))


MODELS = public_classes(ppl_models)
OBJECTIVES = {
    name: value()
    for name, value in vars(inference.objectives).items()
    if name in inference.objectives.__all__ and dataclasses.is_dataclass(value) and _has_defaults(value)
}


def instances():
    return [MODELS[name](**options) for name, choices in SMALL.items() if name in MODELS for options in choices]


def data_for(model):
    family = type(model).__name__
    if family == "Codes":
        return (ROWS == ROWS.max(axis=1, keepdims=True)).astype(np.float32)  # one code of four a row
    binary = family in MACHINES - {"GaussianRBM"} | {"SigmoidBeliefNetwork", "QuantizedFlow", "PixelVAE"}
    likelihood = Bernoulli() if binary else None
    x = BINARY if isinstance(getattr(model, "likelihood", likelihood), Bernoulli) else ROWS
    return {"x": x, "y": LABELLED} if getattr(model, "num_classes", 0) else x


def guides_for(model):
    """Every guide of the zoo on this model, the one made of it, the model's own posterior, and none."""
    found = by_hand(model)
    # Whose rows have no latents for an encoder to guess.
    if type(model).__name__ not in MACHINES | LABELS | EXACT | IMPLICIT | {"Diffusion"}:
        found["amortize"] = guides.amortize(model, data_for(model), network=network_for(model))
    return found | {n: getattr(model, n) for n in ("posterior", "noising") if hasattr(model, n)}


def network_for(model):
    return ConvEncoder((3,)) if isinstance(getattr(model, "decoder", None), ConvDecoder) else MLP((5,))


def by_hand(model):
    """Every guide of the zoo that is a value, so that nothing is computed."""
    network = network_for(model)
    layered = isinstance(model, ppl_models.SigmoidBeliefNetwork)
    return {
        "empty": guides.empty,
        "MeanField": MeanField(model),
        "Delta": Delta(model),
        "AmortizedNormal": AmortizedNormal(2, network),
        "AmortizedBernoulli": AmortizedBernoulli(model.layers) if layered else AmortizedBernoulli((2,), sites=("z",)),
        "AutoregressiveBernoulli": AutoregressiveBernoulli(2, site="z1" if layered else "z"),
        "AmortizedImplicit": guides.AmortizedImplicit(2, network),  # it has no density, and goes with a critic alone
        "UniformDequantization": guides.UniformDequantization(2),
        "VariationalDequantization": guides.VariationalDequantization(2, network),
        "VectorQuantized": guides.VectorQuantized(2, 3, (2,), network),
        "HierarchicalVectorQuantized": guides.HierarchicalVectorQuantized(2, 3, ((1, 1), (2, 2)), (network, network)),
        "AmortizedBoundedNormal": AmortizedBoundedNormal(2, network),
        "AmortizedFullNormal": AmortizedFullNormal(2, network),
        "AmortizedFlow": AmortizedFlow(2, network, PlanarFlow(1), context_dim=2),
        "SemiAmortized": SemiAmortized(model, AmortizedNormal(2, network), num_steps=2, step_size=0.01),
        "Hamiltonian": Hamiltonian(model, AmortizedNormal(2, network), MLP((5,)), num_steps=2),
        "AmortizedCategorical": AmortizedCategorical(2, 3, network),
        "HierarchicalNormal": HierarchicalNormal((2, 2), (MLP((5,)), MLP((5,)))),
        "TopDownNormal": TopDownNormal((2, 2), (MLP((5,)), MLP((5,))), (MLP((5,)), MLP((4,))), width=3),
        "ConditionalNormal": ConditionalNormal(2, 2, network),
        "SemiSupervisedNormal": SemiSupervisedNormal(2, 2, network, MLP((5,))),
    }


def name_of(value):
    return repr(value).replace(" ", "")[:60]


def test_every_discovered_model_has_a_small_instance():
    assert set(MODELS) == set(SMALL), "add the new model to SMALL in this file"


def test_every_exported_guide_is_tried():
    assert {*guides.__all__, "posterior"} == set(guides_for(MODELS["PPCA"](2))), "add the new guide to guides_for"


# The families' latents, by their definitions.
BITS = {"SigmoidBeliefNetwork", "DiscreteVAE"}  # vectors of bits in each row, which enumeration leaves alone
CHOICES = {"CategoricalVAE"}  # likewise of one-hot vectors
LABELS = {"GaussianMixture"}  # one discrete variable a row, which is summed out
DEEP = {"DeepBeliefNetwork", "DeepBoltzmannMachine"}
# They sum hidden units out in the program.
MACHINES = {"RBM", "BoltzmannMachine", "ConvolutionalRBM", "GaussianRBM"} | DEEP
# Deep models with a latent for each row, and the guide that was made for each.
AUTOENCODERS = {
    "VAE": "AmortizedNormal",
    "PixelVAE": "AmortizedNormal",
    "HierarchicalVAE": "TopDownNormal",
    "QuantizedFlow": "VariationalDequantization",
    "ConditionalVAE": "ConditionalNormal",
    "SemiSupervisedVAE": "SemiSupervisedNormal",
}
# Of one real vector a row.
ENCODERS = ("AmortizedBoundedNormal", "AmortizedFullNormal", "AmortizedFlow", "SemiAmortized", "Hamiltonian")
CODES = {"VQVAE": "VectorQuantized", "HierarchicalVQVAE": "HierarchicalVectorQuantized"}  # one-hot, and their guide
IMPLICIT = {"Generator", "CycleGAN"}  # they make rows without a density, so that no guide has a bound
EXACT = {"Flow", "Codes", "MADE", "PixelCNN", "CausalCNN"}  # no latents: the density of a row is a formula
GLOBALS = {"GaussianMixture", "PPCA", "BayesianPCA", "FactorAnalysis"} | MACHINES
QUANTIZING = {"VectorQuantization", "MovingCodebook"}  # objectives for guides that take the nearest code
STEPWISE = {"Denoising", "UnitDenoising"}  # objectives that take a path step by step
LIKELIHOOD_RATIO = {"ScoreFunction", "NVIL", "VIMCO", "ReweightedWakeSleep"}  # objectives for discrete draws


def covers(model, guide):
    """Whether the guide samples all of the model's latents that cannot be summed out, and nothing else."""
    family = type(model).__name__
    if family in IMPLICIT:
        return False
    if family in EXACT:
        return guide in ("empty", "MeanField", "Delta")  # of the latents they sample there are none
    if guide in ("MeanField", "Delta"):
        return family not in BITS | CHOICES | set(CODES)  # they sample what is continuous
    if guide == "UniformDequantization":
        return family == "QuantizedFlow"
    if guide in CODES.values():
        return CODES.get(family) == guide
    if guide == "HierarchicalNormal":
        return family == "HierarchicalVAE"
    if guide == "AmortizedCategorical":
        return family in CHOICES
    if guide in ("AmortizedFullNormal", "AmortizedFlow") and isinstance(getattr(model, "prior", None), VampPrior):
        return False  # their parameter `encoder` is not the one that the prior shares
    if guide in ENCODERS:
        return family in ("VAE", "PixelVAE")
    if guide == "ConditionalNormal" and family == "SemiSupervisedVAE":
        return True  # unknown classes, of which it knows nothing, are summed out
    if guide in AUTOENCODERS.values():
        return AUTOENCODERS.get(family) == guide
    if guide == "AmortizedBernoulli":
        return family in BITS
    if guide == "AutoregressiveBernoulli":
        return family in BITS and len(getattr(model, "layers", (2,))) == 1  # it samples one site
    if guide in ("noising", "amortize"):
        return True
    return guide == "posterior" and family not in MACHINES  # whose posterior is of the rows, and has none to sample


def suits(model, guide, objective):
    """Whether the objective has what it needs of a guide that covers the model's latents."""
    family = type(model).__name__
    if objective in STEPWISE:
        return guide == "noising"
    if guide in CODES.values():
        return objective in LIKELIHOOD_RATIO | QUANTIZING | {"GumbelSoftmax", "StraightThrough"}
    if objective in QUANTIZING:
        return False
    if family in EXACT:  # nothing latent to have a baseline
        return objective != "NVIL"
    if guide in ("AmortizedBernoulli", "AmortizedCategorical") or (
        guide == "amortize" and family in BITS | CHOICES | set(CODES)
    ):
        return objective in LIKELIHOOD_RATIO | {"GumbelSoftmax", "StraightThrough"}
    if guide == "AutoregressiveBernoulli":  # a distribution of its own, which has no relaxation
        return objective in LIKELIHOOD_RATIO
    if guide == "Hamiltonian" and objective in {"STL", "DReG", "ReweightedWakeSleep"}:
        return False  # they ask for the density at a latent, which is known for a draw with its momentum alone
    if guide == "SemiSupervisedNormal":  # it draws one class a row, and has a factor
        return objective in LIKELIHOOD_RATIO - {"ReweightedWakeSleep"} | {"EnumeratedELBO"}
    if family == "SemiSupervisedVAE":  # whose classes the other guides leave to be summed out
        return objective not in {"Beta", "FreeBits", "Capacity"}
    if guide == "posterior":
        if objective == "EnumeratedELBO":  # the labels are summed out, and a Wishart has no pathwise gradient
            return family not in LABELS or model.covariance in ("diag", "spherical")
        if objective == "ReweightedWakeSleep":
            return family not in GLOBALS  # it holds draws fixed, and those of z depend on those of the globals
        return objective in LIKELIHOOD_RATIO or family not in LABELS
    if family in MACHINES:  # no rows of the guide to have a baseline, but globals to have a KL
        return objective != "NVIL"
    # Of a latent that is summed out there is no KL to control, and no row of the guide to have a baseline.
    return family not in LABELS or objective not in {"Beta", "FreeBits", "Capacity", "NVIL"}


def objectives_for(model, guide):
    """Those not tried with another instance of the family; one, where the guide will not do whatever the objective."""
    if not covers(model, guide):
        return {"ELBO": OBJECTIVES["ELBO"]}
    choices = SMALL[type(model).__name__]
    turn = next(i for i, options in enumerate(choices) if type(model)(**options) == model)
    if guide == "AutoregressiveBernoulli":  # it will do for one instance of the layered network
        return OBJECTIVES
    return dict(list(OBJECTIVES.items())[turn :: len(choices)])


# Slow: those that differ from another in their programs, not in what is asked of a guide or an algorithm.
LIKE_OTHERS = {
    "BayesianPCA",
    "FactorAnalysis",
    "Codes",
    "HierarchicalVQVAE",
    "QuantizedFlow",
    "PixelCNN",
    "CausalCNN",
    "PixelVAE",
    "Diffusion",
}
ALIKE = MACHINES - {"RBM"} | LIKE_OTHERS | {"ConditionalVAE", "HierarchicalVAE", "CategoricalVAE"}


def every_model():
    """All instances; what differs from another in its energy, prior or density alone is marked slow."""
    for model in instances():
        alike = type(model).__name__ in ALIKE or getattr(model, "prior", STANDARD) != STANDARD
        yield pytest.param(model, marks=pytest.mark.slow if alike else [], id=name_of(model))


@pytest.mark.parametrize("model", list(every_model()))
def test_all_pairs_are_accepted_or_refused_as_mathematics_says(model):
    """The stages of ``check``, so that what model and guide are is found once for all objectives."""
    batch = as_data(data_for(model), model).whole()
    try:
        parts = check_model(model, batch)
    except Incompatible:  # no likelihood of these rows, whatever the guide
        parts = None
    for guide_name, guide in guides_for(model).items():
        try:
            both = parts and check_guide(model, guide, parts, batch)
        except Incompatible:
            both = None
        for objective_name, objective in objectives_for(model, guide_name).items():
            expected = covers(model, guide_name) and suits(model, guide_name, objective_name)
            try:
                accepted = both is not None
                if accepted:
                    check_objective(objective, model, guide, both, batch)
            except Incompatible:
                accepted = False
            assert accepted == expected, (guide_name, objective_name)


@pytest.mark.parametrize("model", instances(), ids=name_of)
def test_numpyro_objectives_are_checked_too(model):
    if hasattr(model, "posterior") and type(model).__name__ in LABELS:
        with pytest.raises(Incompatible, match="no gradient for"):
            check(model, model.posterior, numpyro.infer.Trace_ELBO(), data_for(model))
        with pytest.raises(Incompatible, match="would draw from the prior"):
            check(model, MeanField(model), numpyro.infer.Trace_ELBO(), data_for(model))


def covering_sample():
    """Each model, each guide, each objective and each algorithm at least once; the first of a family by default."""
    objectives = [ELBO(), IWAE(2), Renyi(0.5, 2), ScoreFunction(2)]
    for i, model in enumerate(instances()):
        options = {"num_steps": 3}
        family = type(model).__name__
        if family in BITS | CHOICES:
            usual = ("AmortizedCategorical", "AmortizedBernoulli", "AutoregressiveBernoulli")
            guide = [n for n in usual if covers(model, n)][-1]
            yield SVI(model, by_hand(model)[guide], ScoreFunction(2), ADAM), options | {"num_chains": 1 + i % 2}
        elif family in IMPLICIT:
            continue
        elif family in EXACT:
            yield SVI(model, guides.empty, ELBO(), ADAM), options | {"batch_size": 7, "num_chains": 2}
        elif family in CODES:
            guide, moving = by_hand(model)[CODES[family]], codebook_moves(ADAM)
            yield SVI(model, guide, VectorQuantization(), ADAM), options
            yield SVI(model, guide, MovingCodebook(), moving), options | {"batch_size": 7, "num_chains": 2}
        elif family == "Diffusion":
            yield SVI(model, model.noising, Denoising(), ADAM), options | {"batch_size": 7}
        elif family in AUTOENCODERS:
            guide = by_hand(model)[AUTOENCODERS[family]]
            objective = EnumeratedELBO() if family == "SemiSupervisedVAE" else objectives[(i + 1) % 4]
            yield SVI(model, guide, objective, ADAM), options | {"batch_size": 7, "num_chains": 1 + i % 2}
            if family == "VAE" and model.likelihood == Gaussian() and model.prior == STANDARD:
                for name in ENCODERS:
                    yield SVI(model, by_hand(model)[name], IWAE(2), ADAM), options | {"batch_size": 7}
        else:
            yield SVI(model, MeanField(model), objectives[i % 4], ADAM), options
            if hasattr(model, "m_step"):
                yield EM(model), options | {"num_chains": 2}
            free = MaximumLikelihood(model)
            guide = guides.empty if family in LABELS else MeanField(free)
            yield SVI(free, guide, ELBO(), ADAM), options
    bits, plane = (MODELS[name](**SMALL[name][-1]) for name in ("DiscreteVAE", "PPCA"))
    yield SVI(bits.marginal, guides.empty, ELBO(), ADAM), {"num_steps": 3}
    yield SVI(plane, Delta(plane), ELBO(), ADAM), {"num_steps": 3}
    yield ChEES(MODELS["GaussianMixture"](2), num_warmup=5), {"num_steps": 4, "num_chains": 4}
    yield Gibbs(MODELS["GaussianMixture"](2), num_warmup=5), {"num_steps": 4, "num_chains": 2}
    yield VariationalBayes(MODELS["GaussianMixture"](2), tolerance=0), {"num_steps": 4, "num_chains": 2}
    yield StepwiseEM(MODELS["GaussianMixture"](2)), {"num_steps": 4, "batch_size": 7}
    for family in ("GaussianMixture", "PPCA", "FactorAnalysis"):
        yield NUTS(MODELS[family](**SMALL[family][0]), num_warmup=5), {"num_steps": 4, "num_chains": 2}
    net = MODELS["DeepBeliefNetwork"](**SMALL["DeepBeliefNetwork"][0])
    yield UpDown(net, net.initial(jax.random.key(0), BINARY)), {"num_steps": 4, "batch_size": 7, "num_chains": 2}
    for family in sorted(MACHINES - {"DeepBeliefNetwork"}):
        machine = MODELS[family](**SMALL[family][0])
        yield ContrastiveDivergence(machine), {"num_steps": 4, "batch_size": 7, "num_chains": 2}
        yield ContrastiveDivergence(machine, k=2, persistent=True, sampler=Tempering(2)), {"num_steps": 3}


def sampled():
    """The covering sample, what is not of the first instance of a family, or machine, marked slow."""
    first = {type(model): model for model in reversed(instances())}
    for algorithm, options in covering_sample():
        model = getattr(algorithm.model, "program", algorithm.model)
        model = getattr(model, "model", model)  # of a marginal
        family = type(model).__name__
        usual = (model == first[type(model)] or family == "DiscreteVAE") and family not in ALIKE
        usual &= not isinstance(algorithm, NUTS) or family in LABELS  # one target is enough
        yield pytest.param(algorithm, options, marks=[] if usual else pytest.mark.slow)


@pytest.mark.parametrize(("algorithm", "options"), list(sampled()), ids=lambda v: name_of(v) if v else "")
def test_a_covering_sample_really_runs(algorithm, options):
    data = data_for(getattr(algorithm.model, "program", algorithm.model))
    run, x = fit(algorithm, data, key=0, **options), data["x"] if isinstance(data, dict) else data
    assert all(np.isfinite(v).all() for v in run.history.values())
    assert all(np.isfinite(np.asarray(v)).all() for v in jax.tree.leaves((run.params, run.draws)))
    assert np.isfinite(run.log_likelihood(data, num_particles=5).rows).all()
    assert run.generate(5, given={"y": 1} if isinstance(data, dict) else None)["x"].shape == (5, 4)
    if type(algorithm.model).__name__ in {"Flow", "Codes"}:
        with pytest.raises(Incompatible, match="no mean in closed form"):
            run.reconstruct(x)
    else:
        assert run.reconstruct(data)["x"].shape == x.shape
    data = run.to_arviz()
    groups = set(data.groups())
    assert {"observed_data", "sample_stats"} <= groups or {"observed_data"} <= groups
    assert data.observed_data["x"].shape == x.shape
    for group in groups & {"posterior", "sample_stats", "posterior_predictive", "prior"}:
        for values in data[group].data_vars.values():
            assert values.dims[:2] == ("chain", "draw")
            assert np.isfinite(values).all()


@pytest.mark.parametrize("family", sorted(IMPLICIT - {"CycleGAN"}))  # which takes two sets and has no latents
@pytest.mark.parametrize("guide", [None, AmortizedNormal(2, MLP((5,)))], ids=["alone", "guide"])
def test_an_implicit_model_runs_without_a_likelihood(family, guide):
    algorithm = Adversarial(MODELS[family](**SMALL[family][0]), Critic(MLP((5,))), guide=guide)
    run = fit(algorithm, ROWS, key=0, num_steps=3, batch_size=7)
    assert all(np.isfinite(v).all() for v in run.history.values())
    assert run.generate(5)["x"].shape == (5, 4)
    with pytest.raises(Incompatible, match="without a density"):
        run.log_likelihood(ROWS)
    data = run.to_arviz()
    assert data.observed_data["x"].shape == ROWS.shape
    assert {v.dims[:2] for v in data.posterior_predictive.data_vars.values()} == {("chain", "draw")}
    assert ("posterior" in data.groups()) == (guide is not None)
