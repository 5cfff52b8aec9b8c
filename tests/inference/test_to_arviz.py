"""Every algorithm's result in ArviZ: what the groups hold, and that ArviZ's own functions run on them."""

import functools
from dataclasses import dataclass

import arviz as az
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import xarray as xr
from scipy import stats

from guides import MeanField
from guides.empty import empty
from inference import EM, NUTS, SVI, BadData, Fit, Incompatible, MaximumLikelihood, fit, groups
from inference.objectives import ELBO
from inference.to_arviz import loo, psis_resample, to_arviz

matplotlib.use("Agg")

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(40, 2)).astype(np.float32)
LABELS = (RNG.random(40) < 1 / (1 + np.exp(-FEATURES @ [1.0, -1.0]))).astype(np.float32)
REGRESSION = {"x": FEATURES, "y": LABELS}
POINTS = np.concatenate([RNG.normal(-3, 1, 25), RNG.normal(3, 1, 25)]).astype(np.float32)
HEIGHTS = RNG.normal(2.0, 1.5, 30).astype(np.float32)


def regression(x, y=None, num_data=None):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([x.shape[1]]).to_event(1))
    numpyro.deterministic("odds", jnp.exp(w))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        logits = numpyro.deterministic("logits", x @ w)
        numpyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def mixture(x, num_data=None):
    with numpyro.plate("components", 2):
        means = numpyro.sample("means", dist.Normal(jnp.array([-3.0, 3.0]), 1.0))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.5, 0.5])), infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.Normal(means[z], 1.0), obs=x)


@dataclass(frozen=True)
class Heights:
    """mu ~ N(0, 10), z ~ N(mu, 1), x ~ N(z, 1): so z | x ~ N((x + mu) / 2, 1 / 2) and x ~ N(mu, 2)."""

    learned: bool = False  # mu is a parameter

    def __call__(self, x, num_data=None):
        if self.learned:
            mu = numpyro.param("mu", 0.0)
            numpyro.param("network", lambda key: {"bias": jnp.zeros(3)})  # weights, which are not shown
        else:
            mu = numpyro.sample("mu", dist.Normal(0, 10))
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            z = numpyro.sample("z", dist.Normal(mu, 1))
            numpyro.sample("x", dist.Normal(z, 1), obs=x)


@dataclass(frozen=True)
class ExactHeights(Heights):
    def initial(self, key, x):
        return {"mu": jax.random.normal(key)}

    def e_step(self, params, x):
        with jax.enable_x64(True):
            mu, x = params["mu"], x.astype(jnp.float64)
            return -jnp.sum((x - mu) ** 2) / 4 - len(x) * jnp.log(4 * jnp.pi) / 2, jnp.mean((x + mu) / 2)

    def m_step(self, statistics):
        return {"mu": statistics}

    @property
    def marginal(self):
        return marginal

    @property
    def posterior(self):
        return posterior


def marginal(x, num_data=None):
    mu = numpyro.sample("mu", dist.Normal(0, 10))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("x", dist.Normal(mu, jnp.sqrt(2.0)), obs=x)


def posterior(x, num_data=None):
    mu = numpyro.sample("mu", dist.Normal(0, 10))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("z", dist.Normal((x + mu) / 2, jnp.sqrt(0.5)))


def amortized(x, num_data=None):
    slope = numpyro.param("slope", 0.3)
    offset = numpyro.param("offset", 0.0)
    scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("z", dist.Normal(slope * x + offset, scale))


def log_normal(x, mu):
    return stats.norm.logpdf(x, mu, np.sqrt(2))


@pytest.fixture(scope="module")
def nuts():
    # 1,000 draws: of 400, the k-hat of a harmless row may by chance lie above what ArviZ warns of.
    return fit(NUTS(regression, num_warmup=100), REGRESSION, key=0, num_steps=500, num_chains=2)


@pytest.fixture(scope="module")
def guided():
    algorithm = SVI(regression, MeanField(regression), ELBO(), optax.adam(3e-2))
    return fit(algorithm, REGRESSION, key=0, num_steps=800, num_chains=2)


@pytest.fixture(scope="module")
def enumerated():
    return fit(NUTS(mixture, num_warmup=100), POINTS, key=0, num_steps=100, num_chains=2)


@pytest.fixture(scope="module")
def em():
    return fit(EM(ExactHeights()), HEIGHTS, key=0, num_chains=3)


@pytest.fixture(scope="module")
def encoded():
    algorithm = SVI(Heights(learned=True), amortized, ELBO(), optax.adam(3e-2))
    return fit(algorithm, HEIGHTS, key=0, num_steps=800)


cached = functools.cache(to_arviz)  # a fit is equal to itself alone

RUNS = {"nuts": "w", "guided": "w", "enumerated": "means", "em": "mu", "encoded": "mu"}


@pytest.fixture(params=RUNS)
def result(request):
    """Each run with the name of a global latent."""
    return request.getfixturevalue(request.param), RUNS[request.param]


# A point estimate has no spread: ArviZ says so of its density, and divides by it for R-hat.
@pytest.mark.filterwarnings("ignore:Your data appears to have a single value:UserWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_arviz_shows_every_result(result):
    run, name = result
    shown = cached(run)
    summary = az.summary(shown, var_names=[name])
    expected = shown.posterior[name].mean(("chain", "draw")).values.ravel()
    np.testing.assert_allclose(summary["mean"], expected, atol=1e-3)  # ArviZ rounds
    assert az.plot_trace(shown, var_names=[name]).shape == (1, 2)
    assert len(az.plot_forest(shown, var_names=[name])) == 1
    assert az.plot_ppc(shown) is not None
    matplotlib.pyplot.close("all")


def test_forest_plots_put_algorithms_side_by_side(nuts, guided):
    axes = az.plot_forest([cached(nuts), cached(guided)], var_names=["w"], model_names=["NUTS", "SVI"])
    assert len(axes) == 1
    matplotlib.pyplot.close("all")


def test_netcdf_keeps_everything(result, tmp_path):
    run, _ = result
    written = cached(run)
    written.to_netcdf(str(tmp_path / "run.nc"))
    read = az.from_netcdf(str(tmp_path / "run.nc"))
    assert read.groups() == written.groups()
    for group in written.groups():
        xr.testing.assert_identical(read[group].drop_attrs(), written[group].drop_attrs())
        assert read[group].attrs.keys() == written[group].attrs.keys()
    for name, value in written.attrs.items():
        np.testing.assert_array_equal(read.attrs[name], value)


def test_replicates_match_the_data_in_name_shape_and_dtype(result):
    run, _ = result
    shown = cached(run)
    assert set(shown.observed_data) == set(shown.posterior_predictive)
    for name, value in shown.observed_data.items():
        replicated = shown.posterior_predictive[name]
        assert replicated.dims == ("chain", "draw", *value.dims)
        assert replicated.shape[2:] == value.shape
        assert replicated.dtype == value.dtype


def test_attributes_tell_how_it_was_made(nuts):
    attrs = nuts.to_arviz().attrs
    assert attrs["inference_library"] == "numpyro"
    assert attrs["inference_library_version"] == numpyro.__version__
    assert attrs["jax_version"] == jax.__version__
    assert attrs["arviz_version"] == az.__version__
    assert attrs["algorithm"].startswith("NUTS(model=regression")
    assert attrs["seed"].tolist() == [0, 0]
    assert attrs["interrupted"] == 0
    assert attrs["sampling_time"] == nuts.info["seconds"] > 0
    assert "ppl_models_version" in attrs
    assert cached(nuts).posterior.attrs["algorithm"] == attrs["algorithm"]


def test_mcmc_has_its_chains_and_statistics(nuts):
    shown = cached(nuts)
    np.testing.assert_array_equal(shown.posterior["w"], nuts.draws.posterior["w"])
    assert shown.posterior["w"].dims == ("chain", "draw", "w_dim_0")
    assert shown.posterior["logits"].dims == ("chain", "draw", "row")
    wanted = {"lp", "diverging", "energy", "acceptance_rate", "n_steps", "step_size", "tree_depth"}
    assert wanted <= set(shown.sample_stats)
    steps, depth = shown.sample_stats["n_steps"], shown.sample_stats["tree_depth"]
    assert bool(((2 ** (depth - 1) <= steps) & (steps <= 2**depth - 1)).all())
    assert "restarts" not in shown.groups()


def test_log_likelihood_is_that_of_each_row_at_each_draw(nuts):
    shown = cached(nuts)
    logits = np.einsum("nd,csd->csn", FEATURES, nuts.draws.posterior["w"])
    expected = stats.bernoulli.logpmf(LABELS, 1 / (1 + np.exp(-logits)))
    # float32
    np.testing.assert_allclose(shown.log_likelihood["y"], expected, rtol=1e-4, atol=1e-5)
    assert shown.log_likelihood["y"].dims == ("chain", "draw", "row")


def test_log_likelihood_sums_discrete_latents_out(enumerated):
    shown = cached(enumerated)
    means = enumerated.draws.posterior["means"]
    logs = stats.norm.logpdf(POINTS[:, None], means[:, :, None, :], 1.0) + np.log(0.5)
    np.testing.assert_allclose(shown.log_likelihood["x"], np.logaddexp(*np.moveaxis(logs, -1, 0)), rtol=1e-4)
    assert shown.posterior["means"].dims == ("chain", "draw", "components")
    assert shown.posterior["z"].dims == ("chain", "draw", "row")
    # The clusters are six standard deviations apart: each row is of the nearer one, but for the odd draw.
    nearer = np.abs(POINTS[:, None] - means[:, :, None, :]).argmin(-1)
    assert float((shown.posterior["z"] == nearer).mean()) > 0.98


def test_inputs_are_constant_data_and_observed_sites_observed(nuts):
    shown = cached(nuts)
    np.testing.assert_array_equal(shown.constant_data["x"], FEATURES)
    np.testing.assert_array_equal(shown.observed_data["y"], LABELS)
    assert list(shown.constant_data) == ["x"] and list(shown.observed_data) == ["y"]


def test_the_prior_is_the_programs(nuts):
    prior = cached(nuts).prior
    # 1,000 standard Normal numbers; a false alarm once in 10,000
    assert stats.kstest(prior["w"].values.ravel(), "norm").pvalue > 1e-4
    np.testing.assert_allclose(prior["odds"], np.exp(prior["w"]), rtol=1e-5)
    assert "logits" not in prior


def test_deterministic_sites_follow_the_draws_of_a_guide(guided):
    shown = cached(guided)
    np.testing.assert_allclose(shown.posterior["odds"], np.exp(shown.posterior["w"]), rtol=1e-5)
    logits = np.einsum("nd,csd->csn", FEATURES, shown.posterior["w"])
    np.testing.assert_allclose(shown.posterior["logits"], logits, rtol=1e-4, atol=1e-5)


def test_only_the_best_restart_is_in_the_posterior(guided):
    shown = cached(guided)
    assert dict(shown.posterior.sizes)["chain"] == 1
    np.testing.assert_array_equal(shown.posterior["w"][0], guided.draws.posterior["w"][0])
    bounds = shown.restarts["bound"].values
    assert bounds.shape == (2,) and bounds[0] >= bounds[1]


def test_log_weights_of_a_guide_have_a_k_hat(guided):
    shown = cached(guided)
    log_weight = shown.sample_stats["log_weight"]
    # log p(w, y) - log q(w) at the first draw
    w = shown.posterior["w"].values[0, 0].astype(np.float64)
    loc, scale = (np.asarray(guided.params[f"w_{n}"], np.float64) for n in ("loc", "scale"))
    log_p = stats.norm.logpdf(w).sum() + stats.bernoulli.logpmf(LABELS, 1 / (1 + np.exp(-FEATURES @ w))).sum()
    np.testing.assert_allclose(log_weight.values[0, 0], log_p - stats.norm.logpdf(w, loc, scale).sum(), atol=1e-3)
    assert shown.sample_stats.attrs["pareto_k"] == pytest.approx(az.psislw(log_weight.values[0].astype(float))[1])


def test_a_point_estimate_is_repeated_beside_draws_of_the_exact_local_posterior(em):
    shown = cached(em)
    mu = shown.posterior["mu"]
    assert np.unique(mu).size == 1
    np.testing.assert_allclose(mu[0, 0], HEIGHTS.mean(), atol=1e-2)  # EM stopped at 1e-6 nats a row
    z = shown.posterior["z"]
    assert z.dims == ("chain", "draw", "row")
    standard = (z[0] - (HEIGHTS + float(mu[0, 0])) / 2).values.ravel() / np.sqrt(0.5)
    assert stats.kstest(standard, "norm").pvalue > 1e-4
    np.testing.assert_allclose(shown.log_likelihood["x"], log_normal(HEIGHTS, float(mu[0, 0])), rtol=1e-5)
    assert shown.log_likelihood["x"].dims == ("row",)
    assert shown.restarts.sizes["restart"] == 3
    assert "log_weight" not in shown.sample_stats


def test_rows_weights_are_of_the_rows_draws(encoded):
    shown = cached(encoded)
    mu, z = float(encoded.params["mu"]), shown.posterior["z"]
    p = stats.norm.logpdf(z, mu, 1) + stats.norm.logpdf(HEIGHTS, z, 1)
    slope, offset, scale = (float(encoded.params[n]) for n in ("slope", "offset", "scale"))
    q = stats.norm.logpdf(z, slope * HEIGHTS + offset, scale)
    weights = shown.sample_stats["log_weight"]
    assert weights.dims == ("chain", "draw", "row")
    np.testing.assert_allclose(weights, p - q, atol=1e-4)
    # The fitted guide is nearly exact: every k-hat is good, and the likelihood by its weights is right.
    assert (az.psislw(np.moveaxis(weights.values[0].astype(float), 0, -1))[1] < 0.7).all()
    np.testing.assert_allclose(shown.log_likelihood["x"], log_normal(HEIGHTS, mu), atol=0.02)  # 200 weights
    assert set(shown.posterior) == {"mu", "z"}  # neither weights nor the guide's parameters


def test_loo_of_mcmc_is_arvizs(nuts):
    ours, theirs = loo(nuts), az.loo(cached(nuts))
    assert ours.elpd_loo == theirs.elpd_loo
    exact = np.log(1 / 2) * len(LABELS)
    assert exact < ours.elpd_loo < 0  # better than a coin


def test_loo_of_a_guide_agrees_with_mcmc_after_resampling(nuts, guided):
    resampled = psis_resample(cached(guided))
    # 0.1 nats or so is Monte-Carlo error of 1,000 draws each (the estimate's own error is 3).
    assert az.loo(resampled).elpd_loo == pytest.approx(az.loo(cached(nuts)).elpd_loo, abs=0.5)
    # The same draws; `loo` knows their efficiency, which moves the tail that is smoothed.
    assert loo(guided, pointwise=True).elpd_loo == pytest.approx(az.loo(resampled).elpd_loo, abs=0.1)
    assert 0 < resampled.attrs["relative_efficiency"] <= 1


def test_arviz_cannot_take_a_guide_or_a_point_for_a_posterior(guided, em, encoded):
    for run in (guided, em, encoded):
        with pytest.raises(KeyError, match="chain"):
            az.loo(cached(run))


def test_loo_refuses_point_estimates(em, encoded):
    for run in (em, encoded):
        with pytest.raises(Incompatible, match="gave a point estimate.*fit with NUTS"):
            loo(run)
    with pytest.raises(Incompatible, match="no log_weight of each draw"):
        psis_resample(cached(encoded))


def weighted(scale, shift=0.0, count=4000):
    """Draws of N(0, scale) with weights towards N(shift, 1)."""
    z = np.random.default_rng(1).normal(0, scale, (1, count))
    log_weight = stats.norm.logpdf(z, shift, 1) - stats.norm.logpdf(z, 0, scale)
    return az.from_dict(posterior={"z": z}, sample_stats={"log_weight": log_weight})


def test_resampled_draws_are_the_targets():
    out = psis_resample(weighted(1.5, shift=0.5))
    z = out.posterior["z"].values
    size = out.attrs["relative_efficiency"] * z.size
    assert z.mean() == pytest.approx(0.5, abs=4 / np.sqrt(size))  # four standard errors
    assert z.std() == pytest.approx(1.0, abs=4 / np.sqrt(2 * size))


def test_resampling_is_refused_where_weights_have_no_mean():
    # k = 1 - scale² = 0.96 for a proposal that is too narrow
    with pytest.raises(Incompatible, match=r"k-hat of the guide's draws is .*, above 0\.7"):
        psis_resample(weighted(0.2))
    broken = weighted(1.5)
    broken.sample_stats["log_weight"][0, 3] = -np.inf
    with pytest.raises(Incompatible, match="k-hat of the guide's draws is inf"):
        psis_resample(broken)


def test_latents_that_mcmc_moved_leave_no_log_likelihood():
    run = fit(NUTS(Heights(), num_warmup=50), HEIGHTS, key=0, num_steps=50)
    shown = cached(run)
    assert shown.posterior["z"].dims == ("chain", "draw", "row")
    np.testing.assert_array_equal(shown.posterior["z"], run.draws.posterior["z"])
    assert "log_likelihood" not in shown.groups()
    assert "local latents integrated out" in shown.attrs["log_likelihood"]
    with pytest.raises(Incompatible, match="local latents integrated out"):
        loo(run)
    assert "z" not in run.to_arviz(HEIGHTS[:7]).posterior  # they are of the training rows


def test_rows_without_a_plate_cannot_be_told_apart():
    def program(x):
        z = numpyro.sample("z", dist.Normal(numpyro.param("mu", 0.0), jnp.ones(len(x))).to_event(1))
        numpyro.sample("x", dist.Normal(z, 1).to_event(1), obs=x)

    def guide(x):
        numpyro.sample("z", dist.Normal(numpyro.param("slope", 0.5) * x, 1).to_event(1))

    run = fit(SVI(program, guide, ELBO(), optax.adam(1e-2)), HEIGHTS, key=0, num_steps=5)
    shown = run.to_arviz()
    assert "plate" in shown.attrs["log_likelihood"]
    assert "log_likelihood" not in shown.groups()
    assert shown.sample_stats["log_weight"].dims == ("chain", "draw")  # all rows at once
    assert shown.posterior["z"].dims == ("chain", "draw", "row")
    assert shown.posterior_predictive["x"].dims == ("chain", "draw", "row")


def test_weights_of_one_minibatch_are_left_out():
    """After a stream the guide's draws are weighed on its first batch, scaled up: that is said, not used."""
    batches = [{n: v[i : i + 10] for n, v in REGRESSION.items()} for i in range(0, 40, 10)]

    class Stream:
        num_data = 40

        def __iter__(self):
            return iter(batches)

    algorithm = SVI(regression, MeanField(regression), ELBO(), optax.adam(3e-2))
    run = fit(algorithm, Stream(), key=0, num_steps=100)
    shown = run.to_arviz(REGRESSION)
    assert "log_weight" in run.draws.sample_stats and "sample_stats" not in shown.groups()
    assert "of one minibatch" in shown.attrs["log_weight"]
    assert shown.log_likelihood["y"].dims == ("guide_draw", "row")  # still draws of a guide
    with pytest.raises(Incompatible, match="no log_weight of each draw; it was left out: .*of one minibatch"):
        psis_resample(shown)
    with pytest.raises(Incompatible, match="of one minibatch"):
        loo(run, REGRESSION)


def test_what_is_missing_is_not_shown_as_zero():
    def program(x, x_observed=None, num_data=None):
        mu = numpyro.sample("mu", dist.Normal(0, 10))
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            normal = dist.Normal(mu, 1)
            numpyro.sample("x", normal if x_observed is None else normal.mask(x_observed), obs=x)

    holes = np.where(np.arange(30) % 3 == 0, np.nan, HEIGHTS)
    shown = fit(NUTS(program, num_warmup=50), holes, key=0, num_steps=50).to_arviz()
    np.testing.assert_array_equal(shown.observed_data["x"], holes)
    assert (shown.log_likelihood["x"].values[..., ::3] == 0).all()


def test_what_a_guide_leaves_out_is_drawn_and_has_no_weight():
    algorithm = SVI(MaximumLikelihood(mixture), empty, ELBO(), optax.adam(1e-1))
    run = fit(algorithm, POINTS, key=0, num_steps=100)
    shown = run.to_arviz()
    assert set(shown.posterior) == {"means", "z"}
    nearer = np.abs(POINTS[:, None] - run.params["means"]).argmin(-1)
    assert float((shown.posterior["z"] == nearer).mean()) > 0.98
    assert "sample_stats" not in shown.groups() and "prior" not in shown.groups()


def test_large_results_are_thinned_and_say_which_rows_and_draws_are_left(enumerated, monkeypatch):
    full = cached(enumerated)
    monkeypatch.setattr(groups, "MAX_ELEMENTS", 4000)
    some = enumerated.to_arviz()
    rows = some.log_likelihood["row"].values
    assert 1 < len(rows) < len(POINTS) and rows[0] == 0 and rows[-1] == len(POINTS) - 1
    assert some.attrs["num_data"] == len(POINTS)
    xr.testing.assert_allclose(
        some.log_likelihood["x"], full.log_likelihood["x"].sel(row=rows, draw=some.log_likelihood["draw"]), rtol=1e-5
    )
    xr.testing.assert_identical(some.posterior["means"], full.posterior["means"])
    np.testing.assert_array_equal(some.observed_data["x"], POINTS[rows])
    for group, name in (("posterior", "z"), ("log_likelihood", "x"), ("posterior_predictive", "x")):
        assert some[group][name].size <= 4000


def test_other_rows(enumerated, nuts):
    new = np.array([-3.0, 0.0, 3.0], np.float32)
    shown = enumerated.to_arviz(new)
    np.testing.assert_array_equal(shown.observed_data["x"], new)
    assert shown.log_likelihood["x"].shape == (2, 100, 3)
    one = nuts.to_arviz({"x": FEATURES[:1], "y": LABELS[:1]})
    assert one.log_likelihood["y"].shape == (2, 500, 1)


def test_a_loaded_fit_needs_its_rows(em, tmp_path):
    em.save(tmp_path / "em")
    loaded = Fit.load(tmp_path / "em", EM(ExactHeights()))
    with pytest.raises(BadData, match=r"does not hold its rows.*fit.to_arviz\(data\)"):
        loaded.to_arviz()
    xr.testing.assert_identical(loaded.to_arviz(HEIGHTS).posterior["mu"], cached(em).posterior["mu"])


def test_a_site_may_be_called_row():
    def program(x, num_data=None):
        row = numpyro.sample("row", dist.Normal(0, 1))
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            numpyro.sample("x", dist.Normal(row, 1), obs=x)

    shown = to_arviz(fit(NUTS(program, num_warmup=20), HEIGHTS, key=0, num_steps=20))
    assert shown.posterior["row"].dims == ("chain", "draw")
    assert shown.observed_data["x"].dims == ("row_",)


class TestPyro:
    """The same groups from the other engine."""

    @staticmethod
    def regression(x, y, num_data=None):
        import pyro
        import pyro.distributions as dist
        import torch

        w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
        pyro.deterministic("odds", w.exp())
        with pyro.plate("data", num_data or len(x), subsample_size=len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    @staticmethod
    def heights(x, num_data=None):
        import pyro
        import pyro.distributions as dist
        import torch

        mu = pyro.param("mu", lambda: torch.zeros(()))
        with pyro.plate("data", num_data or len(x), subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    @staticmethod
    def encoder(x, num_data=None):
        import pyro
        import pyro.distributions as dist
        import torch

        loc = pyro.param("slope", lambda: torch.tensor(0.5)) * x + pyro.param("offset", lambda: torch.tensor(0.0))
        with pyro.plate("data", num_data or len(x), subsample_size=len(x)):
            pyro.sample("z", dist.Normal(loc, 0.7))

    def test_nuts(self):
        from inference import PyroNUTS

        run = fit(PyroNUTS(self.regression, num_warmup=50), REGRESSION, key=0, num_steps=50, num_chains=2)
        shown = cached(run)
        assert {"posterior", "sample_stats", "log_likelihood", "posterior_predictive", "prior"} <= set(shown.groups())
        logits = np.einsum("nd,csd->csn", FEATURES, run.draws.posterior["w"])
        expected = stats.bernoulli.logpmf(LABELS, 1 / (1 + np.exp(-logits)))
        np.testing.assert_allclose(shown.log_likelihood["y"], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(shown.posterior["odds"], np.exp(shown.posterior["w"]), rtol=1e-5)
        assert shown.attrs["inference_library"] == "pyro-ppl" and "torch_version" in shown.attrs
        assert np.isfinite(loo(run).elpd_loo)
        assert az.plot_ppc(shown) is not None
        matplotlib.pyplot.close("all")

    def test_svi(self, tmp_path):
        import torch

        from inference import PyroSVI

        algorithm = PyroSVI(self.heights, self.encoder, ELBO(), torch.optim.Adam, {"lr": 0.05})
        run = fit(algorithm, HEIGHTS, key=0, num_steps=150)
        shown = cached(run)
        mu, z = float(run.params["mu"]), shown.posterior["z"]
        p = stats.norm.logpdf(z, mu, 1) + stats.norm.logpdf(HEIGHTS, z, 1)
        q = stats.norm.logpdf(z, float(run.params["slope"]) * HEIGHTS + float(run.params["offset"]), 0.7)
        np.testing.assert_allclose(shown.sample_stats["log_weight"], p - q, atol=1e-4)
        np.testing.assert_allclose(shown.log_likelihood["x"], log_normal(HEIGHTS, mu), atol=0.05)
        assert np.unique(shown.posterior["mu"]).size == 1
        shown.to_netcdf(str(tmp_path / "run.nc"))
        assert az.from_netcdf(str(tmp_path / "run.nc")).groups() == shown.groups()
