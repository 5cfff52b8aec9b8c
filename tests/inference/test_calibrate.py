"""Simulation-based calibration: right samplers pass, wrong ones are rejected and told apart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from guides import MeanField
from inference import EM, NUTS, SVI, BadData, ChEES, Gibbs, Incompatible, NonFinite, VariationalBayes, calibrate
from inference.calibrate import _check_finite, _kept, _ranks, _simulate
from inference.data import as_data
from inference.objectives import ELBO
from inference.protocols import Draws, Record
from ppl_models import PPCA, GaussianMixture

pytestmark = pytest.mark.slow  # hundreds of small fits each

RIGHT = {"shift": 0.0, "spread": 1.0, "prior": 0.0}


def conjugate(x, fault=None, num_data=None):
    """loc ~ N(0, 1), rows x ~ N(loc, 1): the posterior is N(sum x / (N + 1), 1 / (N + 1))."""
    loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("x", dist.Normal(loc, 1.0), obs=x)


@dataclass(frozen=True)
class Conjugate:
    """Draws from the posterior, shifted and spread as the input ``fault`` says, or from the prior."""

    model: Any

    engine: ClassVar[str] = "numpyro"
    num_warmup: ClassVar[int] = 0

    def init(self, key, batch):
        return jnp.int32(0)

    def step(self, key, state, batch):
        x, n, (shift, spread, prior) = batch.data["x"], len(batch), batch.data["fault"][:3]
        noise = jax.random.normal(key)
        draw = shift + x.sum() / (n + 1) + spread * noise / (n + 1) ** 0.5
        return state, Record({}, {"loc": jnp.where(prior > 0, noise, draw)})

    def finish(self, key, state, records, batch):
        return Draws({}, {"loc": records["loc"]}, {"diverging": jnp.zeros(records["loc"].shape, bool)})


def of_conjugate(**fault):
    """300 simulations of six rows; faults are inputs, so that one compiled program serves them all."""
    values = np.array([*(RIGHT | fault).values(), 0, 0, 0], np.float32)
    data = {"x": np.zeros(6, np.float32), "fault": values}
    return calibrate(conjugate, Conjugate, num_simulations=300, data=data, num_steps=60)


@pytest.fixture(scope="module")
def exact():
    return of_conjugate()


def test_an_exact_sampler_passes(exact):
    """False alarm 1%, by construction; that of the seed is nil."""
    assert exact.quantities == ("loc", "log likelihood")
    assert exact.calibrated and exact.p_values.min() > 0.01
    assert exact.ranks.shape == (300, 2)
    # independent draws: half of the (estimated) sixty
    assert 15 <= np.median(exact.num_draws) <= 30
    assert "no quantity rejected at p <= 0.005, family-wise false-alarm rate 0.01." in str(exact)
    assert "<td>loc</td>" in exact._repr_html_()


@pytest.mark.parametrize(
    ("fault", "quantity", "verdict"),
    [
        ({"spread": 0.5**0.5}, "loc", "draws too narrow"),  # variance halved
        ({"spread": 1.6}, "loc", "draws too wide"),
        ({"shift": -0.15}, "loc", "draws too low"),  # 0.4 posterior standard deviations
        ({"shift": 0.15}, "loc", "draws too high"),
        ({"prior": 1.0}, "log likelihood", "draws too low"),  # marginal ranks are uniform all the same
    ],
)
def test_a_wrong_sampler_is_rejected(fault, quantity, verdict):
    """Each fault is 4.5 standard errors or more at 300 simulations, against a level of 0.005."""
    found = of_conjugate(**fault)
    assert quantity in found.rejected
    rows = {row["quantity"]: row for row in found.cells()}
    assert rows[quantity]["verdict"] == verdict
    if "prior" in fault:
        assert found.rejected == (quantity,)


def test_nuts_is_calibrated_and_compiled_once():
    """False alarm 1%, with a fixed seed. A regression, whose covariates stay."""
    rng = np.random.default_rng(0)
    data = {"features": rng.normal(size=(8, 2)).astype(np.float32), "y": np.zeros(8, np.float32)}

    def regression(features, y, num_data=None):
        w = numpyro.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
        scale = numpyro.sample("scale", dist.Gamma(3.0, 3.0))
        with numpyro.plate("data", num_data or len(y), subsample_size=len(y)):
            numpyro.sample("y", dist.Normal(features @ w, scale), obs=y)

    events = []
    listen = lambda event, duration, **_: events.append(event) if "jaxpr_to_mlir" in event else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)
    options = {"data": data, "num_simulations": 100, "num_steps": 100}
    found = calibrate(regression, lambda m: NUTS(m, num_warmup=80), **options)
    assert found.quantities == ("scale", "w[0]", "w[1]", "log likelihood")
    assert found.calibrated, str(found)
    assert found.num_draws.max() <= 50 and np.median(found.num_draws) > 10
    events.clear()
    again = calibrate(regression, lambda m: NUTS(m, num_warmup=80), **options)
    jax.monitoring.unregister_event_duration_listener(listen)
    assert np.array_equal(again.ranks, found.ranks)
    assert len(events) <= 3  # the big program is not compiled anew


@pytest.mark.slow
def test_a_guide_that_is_too_narrow_is_seen():
    """Mean-field on two correlated globals: the variance of each is 1 - 0.94² of the true one."""

    def correlated(x, num_data=None):
        a = numpyro.sample("a", dist.Normal(0, 1))
        b = numpyro.sample("b", dist.Normal(0, 1))
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            numpyro.sample("x", dist.Normal(a + b, 0.5), obs=x)

    adam = optax.adam(5e-2)
    found = calibrate(
        correlated,
        lambda m: SVI(m, MeanField(m), ELBO(), adam),
        num_simulations=100,
        num_rows=4,
        num_columns=None,
        num_steps=300,
    )
    assert {"a", "b"} <= set(found.rejected)
    assert {row["verdict"] for row in found.cells() if row["quantity"] in "ab"} == {"draws too narrow"}


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [Gibbs, lambda model: NUTS(model, num_warmup=200)], ids=["gibbs", "nuts"])
def test_the_samplers_are_calibrated_on_a_mixture(algorithm):
    """On what relabelling leaves alone, and the log likelihood. False alarm 1% each, with a fixed seed."""
    mixture = GaussianMixture(2, covariance="diag", mean_scale=2.0, scale=0.7)
    found = calibrate(mixture, algorithm, num_simulations=200, num_rows=30, num_columns=1)
    assert {"log likelihood", "sorted_weights[0]"} <= set(found.quantities)
    assert found.calibrated, str(found)
    assert np.median(found.num_draws) > 20


def test_ranks_of_ties_and_thinning():
    """Ties are broken evenly; what is kept is half of the smallest effective sample size."""
    rng = np.random.default_rng(0)
    truth, draws = np.zeros((4000, 1)), np.zeros((4000, 1, 5, 1))
    u = _ranks(truth, draws, np.full(4000, 5), rng)[:, 0]
    assert abs(u.mean() - 0.5) < 4.5 * (1 / 12 / 4000) ** 0.5
    assert abs(((u - 0.5) ** 2).mean() - 1 / 12) < 4.5 * (1 / 180 / 4000) ** 0.5

    noise = rng.normal(size=(3, 2, 2000, 1))
    walk = np.zeros_like(noise)
    for t in range(1, 2000):  # an AR(1) has 4,000 (1 - r) / (1 + r) effective draws: 444 at r = 0.8
        walk[:, :, t] = 0.8 * walk[:, :, t - 1] + noise[:, :, t]
    assert (abs(_kept(walk) / 222 - 1) < 0.35).all()
    assert (_kept(np.ones((3, 1, 50, 1))) == 1).all()  # a chain that does not move


@pytest.mark.parametrize("chains", [1, 3, 4, 7])
def test_as_many_draws_are_ranked_among_as_are_reported(chains):
    """A truth above all L draws has the rank (L + U) / (L + 1)."""
    draws = np.random.default_rng(0).normal(size=(5, chains, 40, 1)).cumsum(2)  # of some effective draws only
    nought: Any = SimpleNamespace(uniform=lambda size: np.zeros(size))
    for some in (draws, draws[:, :, :2], np.sign(draws)):
        kept = _kept(some)
        np.testing.assert_array_equal(_ranks(np.full((5, 1), 1e3), some, kept, nought)[:, 0], kept / (kept + 1))


@dataclass(frozen=True)
class WithZero:
    """``conjugate``, and beside its location a number that is zero but for rounding, and one that is 1 up to it."""

    def __call__(self, x, num_data=None):
        conjugate(x, num_data=num_data)

    def invariants(self, loc):
        rounding = 1e-8 * (loc > 2.0)
        return {"loc": jnp.stack([loc, rounding, 1 + 10 * rounding])}


def test_what_the_prior_does_not_move_is_not_ranked():
    """It would look like a chain that is stuck, and leave a single draw to rank among."""

    def exact_on(model):
        fault = np.array([*RIGHT.values(), 0, 0, 0], np.float32)

        @dataclass(frozen=True)
        class Exact(Conjugate):
            def step(self, key, state, batch):
                return super().step(key, state, replace(batch, data=batch.data | {"fault": fault}))

        return Exact(model)

    options = {"num_simulations": 150, "num_rows": 6, "num_columns": None, "num_steps": 60}
    found = calibrate(WithZero(), exact_on, **options)
    assert found.quantities == ("loc[0]", "log likelihood")
    assert 15 <= np.median(found.num_draws) <= 30


def test_data_are_simulated_as_the_model_draws_them():
    def model(x, count, label, size, num_data=None):
        loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            numpyro.sample("x", dist.Normal(loc, size), obs=x)
            numpyro.sample("count", dist.Poisson(3.0), obs=count)
            numpyro.sample("label", dist.Bernoulli(0.5), obs=label)

    whole = np.arange(1, 9)
    rows = as_data({"x": whole, "count": whole, "label": whole * 0.0, "size": whole})
    _, batch = _simulate(model, jax.random.key(0), rows.whole())
    assert {n: v.dtype.name for n, v in batch.data.items()} == {
        "x": "float32",  # whole numbers, but of a site that draws any
        "count": "int32",
        "label": "float32",
        "size": "int32",
    }
    x = np.asarray(batch.data["x"])
    assert (x != x.round()).all() and (batch.data["size"] == whole).all()


def test_holes_in_the_data_stay():
    mixture, x = GaussianMixture(2, "diag"), np.ones((20, 2), np.float32)
    x[::3, 1] = np.nan
    _, batch = _simulate(mixture, jax.random.key(0), as_data(x, mixture).whole())
    np.testing.assert_array_equal(batch.data["x_observed"], ~np.isnan(x))
    np.testing.assert_array_equal(np.asarray(batch.data["x"]) == 0, np.isnan(x))
    found = calibrate(mixture, lambda m: Gibbs(m, num_warmup=5), data=x, num_simulations=3, num_steps=10)
    assert found.ranks.shape[0] == 3


def test_a_figure_with_a_panel_for_each_quantity(exact):
    figure = exact.plot()
    assert [ax.get_title(loc="left").split(",")[0] for ax in figure.axes] == ["loc", "log likelihood"]
    with_fault = of_conjugate(spread=0.5**0.5)
    colours = {ax.lines[-1].get_color() for ax in with_fault.plot().axes}
    assert colours >= {"#D55E00"}


def test_refused():
    with pytest.raises(Incompatible, match="give what makes one of a model"):
        calibrate(conjugate, NUTS(conjugate), num_columns=None)
    with pytest.raises(Incompatible, match="EM gives no draws of the globals"):
        calibrate(GaussianMixture(2), EM, num_simulations=2)
    with pytest.raises(Incompatible, match="give num_chains=4"):
        calibrate(conjugate, ChEES, num_columns=None)

    def renamed(x, num_data=None):
        loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            numpyro.sample("observed", dist.Normal(loc, 1.0), obs=x)

    with pytest.raises(Incompatible, match=r"observes \['observed'\] and the data are named \['x'\]"):
        calibrate(renamed, NUTS, num_columns=None)

    def without_globals(x, num_data=None):
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(Incompatible, match="no global latents to rank"):
        calibrate(without_globals, Conjugate, num_columns=None)

    for name in ("num_simulations", "num_steps"):
        with pytest.raises(BadData, match=f"{name} is 1; expected a whole number of at least 2"):
            calibrate(conjugate, Conjugate, **{name: 1})
    for name in ("num_rows", "num_columns", "num_chains"):
        with pytest.raises(BadData, match=f"{name} is 0; expected a whole number of at least 1"):
            calibrate(conjugate, Conjugate, **{name: 0})
    weighted = {"x": np.zeros(6), "sample_weight": np.ones(6)}
    with pytest.raises(BadData, match="data has 'sample_weight'.*rows are simulated once each"):
        calibrate(conjugate, Conjugate, data=weighted)
    with pytest.raises(Incompatible, match="made for without_globals, and data are simulated from conjugate"):
        calibrate(conjugate, lambda m: NUTS(without_globals), num_columns=None)
    calibrate(PPCA(1), lambda m: VariationalBayes(m.mean_field, max_steps=2), num_simulations=2)  # of the same program

    def fixed(x, num_data=None):
        loc = numpyro.sample("loc", dist.Normal(1.0, 1e-9))
        numpyro.sample("x", dist.Normal(loc, 1.0).expand(x.shape), obs=x)

    with pytest.raises(Incompatible, match=r"the prior of fixed moves none of \['loc'\]"):
        calibrate(fixed, lambda m: NUTS(m, num_warmup=2), num_simulations=2, num_steps=4, num_columns=None)

    with pytest.raises(NonFinite, match="'b' drawn from the prior is not finite in 1 of 3 simulations"):
        _check_finite(("a", "b"), np.array([[0.0, 1.0], [2.0, np.inf], [0.0, 0.0]]), "drawn from the prior")
