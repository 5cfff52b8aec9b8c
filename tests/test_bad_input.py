# ruff: noqa: E501
"""Bad input gets a clear error before anything is compiled: what it is, what came, what to do."""

from __future__ import annotations

import traceback

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from numpyro.infer.autoguide import AutoNormal

from guides import AmortizedNormal, MeanField, empty
from inference import EM, NUTS, SVI, Alternating, BadData, CorruptFile, Fit, Incompatible, NonFinite, check, fit
from inference.objectives import ELBO, IWAE, Renyi, ScoreFunction
from ppl_models import PPCA, VAE, GaussianMixture
from ppl_models.networks import MLP

ADAM = optax.adam(1e-2)
GOOD = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)


def with_value(value):
    x = GOOD.copy()
    x[3, 1] = value
    return x


def program(x, num_data=None):
    loc = numpyro.sample("loc", dist.Normal(0, 1).expand([2]).to_event(1))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("x", dist.Normal(loc, 1).to_event(1), obs=x)


def mean_field_svi(model=program, objective=None):
    return SVI(model, MeanField(model), objective or ELBO(), ADAM)


def vae_svi():
    return SVI(VAE(2, MLP((8,))), AmortizedNormal(2, MLP((8,))), ELBO(), ADAM)


def discrete(x, num_data=None):
    loc = numpyro.sample("loc", dist.Normal(0, 3).expand([2]).to_event(1))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.Normal(loc * z[..., None], 1).to_event(1), obs=x)


def discrete_guide(x, num_data=None):
    loc = numpyro.param("m", jnp.zeros(2))
    numpyro.sample("loc", dist.Normal(loc, 1.0).to_event(1))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("l", 0.1) * x[:, 0]))


def counts(x, num_data=None):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        n = numpyro.sample("n", dist.Poisson(rate))
        numpyro.sample("x", dist.Normal(n, 1), obs=x[:, 0])


def wrong_name(x, num_data=None):
    numpyro.sample("location", dist.Normal(numpyro.param("m", jnp.zeros(2)), 1.0).to_event(1))


def wrong_shape(x, num_data=None):
    numpyro.sample("loc", dist.Normal(numpyro.param("m", jnp.zeros(3)), 1.0).to_event(1))


def positive(x, num_data=None):
    scale = numpyro.sample("scale", dist.Gamma(2.0, 1.0))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("x", dist.Normal(0, scale).expand([2]).to_event(1), obs=x)


def wrong_support(x, num_data=None):
    numpyro.sample("scale", dist.Normal(numpyro.param("m", 0.0), 1.0))


def fixed_plate(x, num_data=None):
    loc = numpyro.sample("loc", dist.Normal(0, 1))
    with numpyro.plate("data", 1):
        numpyro.sample("x", dist.Normal(loc, 1).expand([1, 2]).to_event(1), obs=x.mean(0)[None])


def unscaled(x):
    loc = numpyro.sample("loc", dist.Normal(0, 1))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(loc, 1).expand([2]).to_event(1), obs=x)


def local(x, num_data=None):
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.sample("x", dist.Normal(z, 1).to_event(1), obs=x)


def column(x, num_data=None):
    loc = numpyro.sample("loc", dist.Normal(0, 1))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("x", dist.Normal(loc, 1), obs=x)


def indexing(x, num_data=None):
    loc = numpyro.sample("loc", dist.Normal(0, 1))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)) as rows:
        numpyro.sample("x", dist.Normal(loc, 1), obs=x[rows, 0])


def penalised(x):
    loc = numpyro.param("loc", jnp.zeros(2))
    numpyro.factor("pen", -30 * jnp.sum(loc**2))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(loc, 1).to_event(1), obs=x)


def broken(x, num_data=None):
    numpyro.sample("x", dist.Normal(x @ x, 1), obs=x)


STEPS = {"key": 0, "num_steps": 5}
CASES = {
    "nan": (lambda: fit(mean_field_svi(), with_value(np.nan), **STEPS), BadData, r"'x' has 1 values that are not finite \(1 NaN\), first in row 3"),
    "infinite": (lambda: fit(EM(GaussianMixture(2)), with_value(np.inf), **STEPS), BadData, "not finite .*first in row 3.*Drop or impute"),
    "text": (lambda: fit(mean_field_svi(), np.array([["a", "b"]]), **STEPS), BadData, "dtype <U1; expected numbers"),
    "objects": (lambda: fit(mean_field_svi(), np.array([[None, 1]]), **STEPS), BadData, "dtype object; expected numbers"),
    "complex": (lambda: fit(mean_field_svi(), GOOD.astype(complex), **STEPS), BadData, "dtype complex128; expected numbers"),
    "ragged": (lambda: fit(mean_field_svi(), [[1.0, 2.0], [3.0]], **STEPS), BadData, "'x' cannot be made into an array"),
    "scalar": (lambda: fit(mean_field_svi(), np.float32(3), **STEPS), BadData, "'x' is a scalar; expected an array whose leading axis"),
    "empty": (lambda: fit(mean_field_svi(), np.zeros((0, 2)), **STEPS), BadData, r"'x' is empty \(shape \(0, 2\)\)"),
    "no arrays": (lambda: fit(mean_field_svi(), {}, **STEPS), BadData, "data has no arrays"),
    "unequal rows": (lambda: fit(mean_field_svi(), {"x": GOOD, "y": GOOD[:3]}, **STEPS), BadData, "different numbers of rows"),
    "not data": (lambda: fit(mean_field_svi(), 3.5j, **STEPS), BadData, "data is a complex; expected an array"),
    "empty stream": (lambda: fit(mean_field_svi(), iter([]), **STEPS), BadData, "iterable of batches is empty"),
    "rank for a mixture": (lambda: fit(EM(GaussianMixture(2)), GOOD[:, 0], **STEPS), ValueError, r"x has shape \(20,\), not \(rows, columns\)"),
    "rank for ppca": (lambda: fit(EM(PPCA(1)), GOOD[:, 0], **STEPS), ValueError, r"x has shape \(20,\)"),
    "bernoulli support": (lambda: fit(vae_svi(), with_value(2.0).clip(0, 2).round(), **STEPS), BadData, "site 'x' is observed outside its likelihood's support, boolean: row .* holds 2"),
    "fewer rows than components": (lambda: fit(EM(GaussianMixture(30)), GOOD, **STEPS), ValueError, "20 rows for 30 components"),
    "no components": (lambda: GaussianMixture(0), ValueError, "num_components is 0"),
    "no factors": (lambda: PPCA(0), ValueError, "latent_dim"),
    "no latents": (lambda: VAE(0, MLP((8,))), ValueError, "latent_dim is 0; expected"),
    "no particles": (lambda: IWAE(0), ValueError, "num_particles is 0; expected a whole number of at least 1"),
    "alpha one": (lambda: Renyi(alpha=1), ValueError, r"use ELBO\(\)"),
    "guide site name": (lambda: fit(SVI(program, wrong_name, ELBO(), ADAM), GOOD, **STEPS), Incompatible, r"guide samples \['location'\], which the model does not.*\['loc'\]"),
    "guide site shape": (lambda: fit(SVI(program, wrong_shape, ELBO(), ADAM), GOOD, **STEPS), Incompatible, r"'loc' has shape \(2,\) in the model but \(3,\) in the guide"),
    "guide leaves out": (lambda: fit(SVI(program, empty, ELBO(), ADAM), GOOD, **STEPS), Incompatible, r"leaves out \['loc'\], which cannot be summed out"),
    "guide support": (lambda: fit(SVI(positive, wrong_support, ELBO(), ADAM), GOOD, **STEPS), Incompatible, "draws 'scale' from real, outside its support in the model, positive"),
    "pathwise over discrete": (lambda: fit(SVI(discrete, discrete_guide, ELBO(), ADAM), GOOD, **STEPS), Incompatible, r"\['z'\] have no reparameterised sampler.*leave \['z'\] out.*ScoreFunction\(\)"),
    "iwae over discrete": (lambda: fit(SVI(discrete, discrete_guide, IWAE(3), ADAM), GOOD, **STEPS), Incompatible, r"IWAE differentiates through the guide's draws, but \['z'\]"),
    "numpyro pathwise over discrete": (lambda: fit(SVI(discrete, discrete_guide, Trace_ELBO(), ADAM), GOOD, **STEPS), Incompatible, "Trace_ELBO has no gradient for"),
    "numpyro renyi over discrete": (lambda: fit(SVI(discrete, discrete_guide, RenyiELBO(), ADAM), GOOD, **STEPS), Incompatible, "RenyiELBO has no gradient for"),
    "numpyro tracegraph on minibatches": (lambda: fit(SVI(discrete, discrete_guide, TraceGraph_ELBO(), ADAM), GOOD, batch_size=5, **STEPS), Incompatible, r"N / B twice.*ScoreFunction\(\)"),
    "iwae of globals on minibatches": (lambda: fit(mean_field_svi(objective=IWAE(3)), GOOD, batch_size=5, **STEPS), Incompatible, "5 of 20 rows"),
    "unscaled globals": (lambda: fit(mean_field_svi(unscaled), GOOD, batch_size=5, **STEPS), Incompatible, r"global sites \['loc'\] but takes no num_data.*4 times too much"),
    "plate of fixed size": (lambda: fit(mean_field_svi(fixed_plate), GOOD, **STEPS), Incompatible, "plate 'data' of fixed_plate has 1 rows whatever the data: the batch has 20"),
    "infinite discrete under nuts": (lambda: fit(NUTS(counts), GOOD, **STEPS), Incompatible, r"\['n'\] are discrete and cannot be summed out"),
    "minibatch nuts": (lambda: fit(NUTS(program), GOOD, batch_size=5, **STEPS), Incompatible, "NUTS needs all rows"),
    "minibatch em": (lambda: fit(EM(GaussianMixture(2)), GOOD, batch_size=5, **STEPS), Incompatible, "EM needs all rows"),
    "em of a plain program": (lambda: EM(program), Incompatible, "EM needs a program with exact steps, and program has no initial"),
    "argument names": (lambda: fit(mean_field_svi(), {"features": GOOD}, **STEPS), Incompatible, "program takes .*no argument 'features'"),
    "missing argument": (lambda: fit(mean_field_svi(lambda x, y: None), GOOD, **STEPS), Incompatible, "needs an argument 'y'"),
    "error inside the model": (lambda: fit(mean_field_svi(broken), GOOD, **STEPS), Incompatible, r"broken on arrays of shape .* could not be run: TypeError"),
    "not an objective": (lambda: fit(SVI(program, MeanField(program), "elbo", ADAM), GOOD, **STEPS), Incompatible, "'elbo' is not an objective"),
    "not an algorithm": (lambda: fit(program, GOOD, **STEPS), Incompatible, "is not an algorithm.*Wrap the model"),
    "whole numbers overflow": (lambda: fit(EM(GaussianMixture(2)), np.array([[1, 2], [3, 4]]) * 10**10, **STEPS), BadData, "beyond 32-bit integers"),
    "masked array": (lambda: fit(mean_field_svi(), np.ma.masked_array(GOOD, mask=GOOD > 1), **STEPS), BadData, "masked array"),
    "column for a vector": (lambda: fit(mean_field_svi(column), GOOD[:, :1], **STEPS), Incompatible, r"observed with shape \(20, 1\), but its distribution in column has shape \(20,\)"),
    "indexing a cut batch": (lambda: fit(mean_field_svi(indexing), GOOD, batch_size=5, **STEPS), Incompatible, r"observe x, not x\[rows\]"),
    "unscaled factor": (lambda: fit(SVI(penalised, empty, ELBO(), ADAM), GOOD, batch_size=5, **STEPS), Incompatible, r"global sites \['pen'\] but takes no num_data"),
    "autoguide": (lambda: fit(SVI(program, AutoNormal(program), ELBO(), ADAM), GOOD, **STEPS), Incompatible, r"AutoNormal keeps state.*MeanField"),
    "per-row guide on a stream": (lambda: fit(mean_field_svi(local), iter([GOOD]), **STEPS), Incompatible, "a stream does not say which rows"),
    "globals on a stream of unknown length": (lambda: fit(mean_field_svi(), iter([GOOD]), **STEPS), BadData, "an attribute num_data"),
    "key": (lambda: fit(mean_field_svi(), GOOD, key="a", num_steps=1), BadData, "key is 'a'; expected a seed"),
    "half a step": (lambda: fit(mean_field_svi(), GOOD, key=0, num_steps=1.5), BadData, "num_steps is 1.5"),
    "checkpoint folder": (lambda: fit(mean_field_svi(), GOOD, checkpoint="/tmp", **STEPS), BadData, "'/tmp' is a folder; expected a file name"),
    "validation columns": (lambda: fit(mean_field_svi(), GOOD, validation=GOOD[:, :1], **STEPS), BadData, r"validation rows have shape"),
    "infinite in float32": (lambda: fit(EM(GaussianMixture(2)), GOOD * 1e25, **STEPS), NonFinite, "covariances.*rescale the data"),
    "no length": (lambda: fit(mean_field_svi(), GOOD, key=0), BadData, "give one of num_steps and num_epochs"),
    "two lengths": (lambda: fit(mean_field_svi(), GOOD, key=0, num_steps=3, num_epochs=2), BadData, "give one of num_steps and num_epochs"),
    "zero steps": (lambda: fit(mean_field_svi(), GOOD, key=0, num_steps=0), BadData, "num_steps is 0; expected a whole number of at least 1"),
    "zero chains": (lambda: fit(mean_field_svi(), GOOD, num_chains=0, **STEPS), BadData, "num_chains is 0"),
    "negative batch": (lambda: fit(mean_field_svi(), GOOD, batch_size=-1, **STEPS), BadData, "batch_size is -1"),
    "class for a model": (lambda: fit(SVI(VAE, AmortizedNormal(2, MLP((8,))), ELBO(), ADAM), GOOD, **STEPS), Incompatible, r"VAE is a class; expected a value of it, VAE\(...\)"),
    "class for a guide": (lambda: fit(SVI(VAE(2, MLP((8,))), AmortizedNormal, ELBO(), ADAM), 0 * GOOD, **STEPS), Incompatible, "AmortizedNormal is a class"),
    "class for an objective": (lambda: fit(mean_field_svi(objective=ELBO), GOOD, **STEPS), Incompatible, "ELBO'> is not an objective"),
    "number for an optimizer": (lambda: fit(SVI(program, MeanField(program), ELBO(), 1e-3), GOOD, **STEPS), Incompatible, "optimizer is 0.001; expected one of optax"),
    "model for an svi": (lambda: Alternating(VAE(2, MLP((8,)))), Incompatible, "expected an SVI, whose players take turns"),
    "name of a data set": (lambda: fit(mean_field_svi(), "digits", **STEPS), BadData, "data is a str; expected an array"),
    "images that are no rows": (lambda: fit(vae_svi(), np.zeros((20, 4, 4)), **STEPS), Incompatible, r"x has shape \(20, 4, 4\); expected rows of pixels.*reshape\(len\(x\), -1\)"),
    "patience without validation": (lambda: fit(mean_field_svi(), GOOD, early_stopping=2, **STEPS), BadData, "early_stopping watches the validation bound"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_message(name):
    call, kind, message = CASES[name]
    with pytest.raises(kind, match=message) as caught:
        call()
    # Ours from top to bottom: the error is raised by the package, and chains no error from inside JAX.
    assert caught.value.__cause__ is None
    last = traceback.extract_tb(caught.value.__traceback__)[-1].filename
    assert "site-packages" not in last, last


def test_per_row_guide_is_refused_on_other_rows():
    run = fit(mean_field_svi(local), GOOD, batch_size=5, **STEPS)
    assert np.isfinite(run.log_likelihood(GOOD, 10).mean)
    with pytest.raises(Incompatible, match="parameters of its own for every training row"):
        run.log_likelihood(GOOD + 1, 10)
    with pytest.raises(Incompatible, match="none for validation rows"):
        fit(mean_field_svi(local), GOOD, validation=GOOD + 1, **STEPS)


def test_regression_inputs_are_not_generated():
    def regression(x, y=None, num_data=None):
        w = numpyro.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            numpyro.sample("y", dist.Normal(x @ w, 1), obs=y)

    run = fit(mean_field_svi(regression), {"x": GOOD, "y": GOOD[:, 0]}, **STEPS)
    with pytest.raises(Incompatible, match=r"\['x'\] are inputs of the model that it does not generate: give them"):
        run.generate(3)
    assert run.predict({"x": GOOD, "y": GOOD[:, 0]}, 7)["y"].shape == (7, 20)


def test_non_finite_bound_stops_with_step_site_and_the_last_good_state():
    def fragile(x, num_data=None):
        loc = numpyro.param("loc", 10.0)
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            # log(loc) is NaN once a step takes loc below zero.
            numpyro.sample("x", dist.Normal(jnp.log(loc), 1).expand([2]).to_event(1), obs=x)

    with pytest.raises(NonFinite, match=r"not finite at step \d+.*site 'x'.*kept in this error's `.fit`") as caught:
        fit(SVI(fragile, empty, ELBO(), optax.sgd(1.0)), 0 * GOOD - 3, key=0, num_steps=200)
    error = caught.value
    assert np.isfinite(error.fit.params["loc"]) and error.fit.params["loc"] > 0
    assert error.fit.history["bound"].shape == (1, error.step - 1)
    assert np.isfinite(error.fit.history["bound"]).all()


def test_check_passes_what_is_right():
    check(program, MeanField(program), ELBO(), GOOD)
    check(discrete, discrete_guide, ScoreFunction(), GOOD)
    check(discrete, MeanField(discrete), ELBO(), GOOD)


def test_whole_numbers_are_fitted_as_their_float_values():
    x = np.round(GOOD * 10).astype(int)
    whole, real = (fit(EM(GaussianMixture(2)), data, key=0) for data in (x, x.astype(np.float32)))
    np.testing.assert_array_equal(whole.history["bound"], real.history["bound"])


def test_other_columns_than_trained_on_are_refused():
    run = fit(mean_field_svi(), GOOD, **STEPS)
    for ask in (run.log_likelihood, run.reconstruct, run.sample_posterior, run.predict):
        with pytest.raises(BadData, match=r"rows of shape \{'x': \(1,\)\}; the fit was made on rows of shape"):
            ask(GOOD[:, :1])


def test_what_a_fit_cannot_be_asked(tmp_path):
    run = fit(vae_svi(), GOOD > 0, **STEPS)
    with pytest.raises(BadData, match="observed outside its likelihood's support, boolean: row 0 holds 0.5"):
        run.log_likelihood(np.full_like(GOOD, 0.5), 10)
    asked = (run.generate, lambda n: run.sample_posterior(GOOD > 0, n), lambda n: run.predict(GOOD > 0, n))
    for ask in (*asked, lambda n: run.log_likelihood(GOOD > 0, n)):
        for count in (0, -1, 2.5, True):
            with pytest.raises(BadData, match=f"is {count}; expected a whole number of at least 1"):
                ask(count)
    with pytest.raises(BadData, match=r"given is \['z'\]; expected names of arrays of the data, \['x'\]"):
        run.generate(3, given={"z": [0.0, 0.0]})
    with pytest.raises(BadData, match=r"given is \['y'\]; expected a mapping from names to values"):
        run.generate(3, given=["y"])
    with pytest.raises(BadData, match="is a folder; expected a file name"):
        run.save(tmp_path)
    fit(vae_svi(), GOOD > 0, checkpoint=tmp_path / "run", **STEPS)
    with pytest.raises(CorruptFile, match="holds a checkpoint of a run"):
        Fit.load(tmp_path / "run", vae_svi())


def test_one_row_has_a_likelihood():
    run = fit(mean_field_svi(discrete), GOOD, **STEPS)
    rows = run.log_likelihood(GOOD).rows
    np.testing.assert_allclose(run.log_likelihood(GOOD[:1]).rows, rows[:1], rtol=1e-5)
