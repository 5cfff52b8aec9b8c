"""The table of algorithms against a posterior that is known, and what it leaves out."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import matplotlib
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from matplotlib.collections import LineCollection
from scipy import stats

from inference import NUTS, BadData, Fit, Gibbs, VariationalBayes, compare, fit
from inference.compare import Comparison
from inference.data import as_data
from inference.posterior_error import Error
from inference.protocols import Draws
from ppl_models import PPCA

matplotlib.use("Agg")

RNG = np.random.default_rng(0)
X = RNG.normal(2.0, 1.0, (15, 2)).astype(np.float32)
VARIANCE = 1 / (len(X) + 1 / 4)  # of the posterior of each loc, whose mean is VARIANCE * sum x
MEAN, SD = VARIANCE * X.sum(0), VARIANCE**0.5


def normal(x, num_data=None):
    loc = numpyro.sample("loc", dist.Normal(0, 2).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("x", dist.Normal(loc, 1).to_event(1), obs=x)


def other(x, num_data=None):
    normal(x, num_data)


def made(draws, stats, bound=None, model=normal, seconds=2.0):
    """A fit with these draws of ``loc``, of the kind that its statistics say."""
    draws = np.asarray(draws, np.float32)
    history = {} if bound is None else {"bound": np.asarray(bound, np.float32)}
    stats = {n: np.zeros(draws.shape[:2], bool) for n in stats}
    info = {"seed": [0, 0], "num_steps": draws.shape[1], "seconds": seconds, "mode": "loop", "interrupted": False}
    rows = as_data(X)
    shapes = {"x": rows.whole().data["x"]}
    return Fit(NUTS(model), {}, Draws({}, {"loc": draws}, stats), history, info, rows, shapes, len(X))


def exact(chains, draws, shift=0.0, scale=1.0):
    """Independent draws, off by ``shift`` standard deviations and ``scale`` times as wide."""
    return MEAN + SD * (shift + scale * RNG.normal(size=(chains, draws, 2)))


@pytest.fixture(scope="module")
def fits():
    return {
        "short": made(exact(2, 500), ["diverging"]),
        "long": made(exact(4, 1000), ["diverging"]),
        "narrow": made(exact(1, 1000, 0.5, 0.6), ["log_weight"], bound=np.full((3, 40), [[-3.0], [-3.1], [-3.2]])),
        "point": made(np.full((1, 1, 2), MEAN + 2 * SD), ["lp"], bound=[[-4.0, -2.9]]),
    }


@pytest.fixture(scope="module")
def table(fits):
    return compare(list(fits.values()), X, list(fits))


def test_errors_are_those_of_a_known_posterior(table):
    """Means and log deviations of S draws have standard errors S^-½ and (2 S)^-½; both within 4.5 of them."""
    short, long, narrow, point = table.rows
    assert long.reference and not (short.reference or narrow.reference or point.reference)
    noise = (1 / 1000 + 1 / 4000) ** 0.5
    assert short.mean_error < 4.5 * noise and abs(short.sd_error) < 4.5 * noise / 2**0.5
    assert narrow.mean_error == pytest.approx(0.5, abs=4.5 * noise)
    assert narrow.sd_error == pytest.approx(np.log(0.6), abs=4.5 * noise / 2**0.5)  # negative: too narrow
    assert point.mean_error == pytest.approx(2.0, abs=4.5 / 4000**0.5 + 4.5 * 2 * (2 * 4000) ** -0.5)
    assert np.isnan(point.sd_error)
    assert np.isnan(long.mean_error) and not long.errors
    assert narrow.errors.keys() == {"loc"}


def test_the_table_says_what_each_number_is(table):
    text = str(table)
    assert text.count("reference") == 1
    assert table.rows[2].cells()["on"] == "evidence" and table.rows[3].cells()["on"] == "likelihood"
    assert table.rows[0].cells()["on"] == "–"
    assert table.rows[2].spread == pytest.approx(0.1, rel=1e-3)
    assert "(raw)" not in table.cells()[0]  # nothing is left unidentified, so that there is one R-hat
    assert "against long, whose own Monte-Carlo error is 0.01" in table.notes()  # of 4,000 independent draws
    assert table._repr_html_().count("<td>") == 4 * len(table.cells()[0])


def test_a_point_guide_has_neither_a_bound_nor_a_deviation(fits):
    """All draws of MAP's guide are one point: log p(x, z*) bounds nothing, and there is no width to compare."""
    mode = made(np.full((2, 200, 2), MEAN), ["log_weight"], bound=[[-4.0], [-4.1]])
    row = compare([mode, fits["long"]], X).rows[0]
    assert np.isnan([row.bound, row.gap, row.sd_error]).all() and row.mean_error < 0.1


def test_it_fits_a_page(fits):
    names = ["VariationalBayes(GaussianMixture)", "SVI(BayesianPCA, ELBO)", "Gibbs(GaussianMixture)", "point"]
    rows = compare(list(fits.values()), X, names).rows
    full = Comparison(tuple(replace(row, raw_r_hat=1.234) for row in rows))  # as of models that leave something open
    lines = str(full).splitlines()
    assert "(raw)" in lines[1] and max(map(len, lines)) <= 150
    assert names[0] in lines[3]  # not even this name is folded
    for row in rows:  # nothing is cut
        assert all(cell in "\n".join(lines) for name, cell in row.cells().items() if name != "algorithm")


def test_diagnostics_are_of_chains_alone(table):
    short, long, narrow, point = table.rows
    assert short.r_hat < 1.05 and 250 < short.ess_per_second < 750  # 1,000 independent draws in two seconds
    assert np.isnan([narrow.r_hat, narrow.ess_per_second, point.r_hat, long.raw_r_hat]).all()


def test_without_chains_of_the_same_model_there_is_no_reference(fits):
    elsewhere = made(exact(2, 100), ["diverging"], model=other)
    narrow, chains = compare([fits["narrow"], elsewhere], X, ["narrow", "chains"]).rows
    assert not narrow.errors and not chains.errors and not chains.reference
    shown = compare([fits["narrow"], fits["point"]], X, ["narrow", "point"])
    assert not {"mean error", "sd error", "R-hat", "ESS/s"} & shown.cells()[0].keys()
    assert shown.notes() == ""


def test_quantities_without_a_deviation_are_left_out_in_any_order(fits):
    row = compare([fits["narrow"]], X).rows[0]
    found = {"a": Error(0.1, np.nan), "b": Error(0.2, -0.3), "c": Error(0.1, 0.2)}
    for names in permutations(found):
        assert replace(row, errors={n: found[n] for n in names}).sd_error == -0.3
    assert np.isnan(replace(row, errors={"a": found["a"]}).sd_error)


def test_draws_that_are_not_numbers_are_told(fits):
    draws = exact(2, 500)
    draws[0, 3, 1] = np.nan
    table = compare([made(draws, ["diverging"]), fits["long"]], X, ["broken", "long"])
    broken = table.rows[0]
    assert broken.r_hat == np.inf and broken.ess_per_second == 0 and broken.mean_error == np.inf
    assert "broken has draws of ['loc'] that are not numbers." in table.notes()


@pytest.mark.slow
def test_a_program_with_other_steps_has_the_reference_of_its_program():
    """Mean-field variational Bayes beside Gibbs on the same model: compared on what a rotation leaves alone."""
    x = (RNG.normal(size=(40, 1)) * [1.0, -2.0, 0.5] + 0.3 * RNG.normal(size=(40, 3))).astype(np.float32)
    model = PPCA(1)
    factorised = fit(VariationalBayes(model.mean_field), x, key=0)
    chains = fit(Gibbs(model, num_warmup=50), x, key=0, num_steps=100)
    for fits in ([factorised, chains], [chains, factorised]):
        rows = {row.name: row for row in compare(fits, x).rows}
        assert rows["Gibbs(PPCA)"].reference
        found = rows["VariationalBayes(PPCA.mean_field)"]
        assert found.errors.keys() == {"mean", "noise_variance", "communality", "spectrum"}
        assert found.sd_error < -0.1  # a factorised q is too narrow
    assert {"loadings", "spectrum"} <= set(factorised.to_arviz(x).posterior)
    assert model.mean_field.ppl is model.ppl and model.mean_field.rotated == ("loadings",)


def test_the_forest_has_a_line_for_every_quantity_and_algorithm(table, fits):
    figure = table.plot_forest()
    (ax,) = figure.axes
    assert {t.get_text() for t in ax.get_yticklabels()} == {"loc[0]", "[1]"}
    assert [t.get_text() for t in figure.legends[0].get_texts()] == list(fits)
    # Intervals of four algorithms, thin and thick, for two elements: as wide as the exact posterior's.
    segments = [s for c in ax.collections if isinstance(c, LineCollection) for s in c.get_segments()]
    widths = np.sort([np.ptp(s[:, 0]) for s in segments])
    assert len(widths) == 16 and (widths[:4] == 0).all()  # the point estimate's
    wide = 2 * SD * stats.norm.ppf(0.97)
    assert widths[-4:] == pytest.approx(wide, rel=0.15)  # the ends of 1,000 draws' intervals are known to some 4%
    figure.savefig("/dev/null", format="png")
    assert table.plot_forest(["loc"], hdi_prob=0.5)._suptitle.get_text() == "50.0% HDI"
    with pytest.raises(BadData, match="no fit has draws of .*'scale'.*there are .*'loc'"):
        table.plot_forest(["scale"])
    with pytest.raises(BadData, match="no fit has draws of anything"):
        Comparison(()).plot_forest()
    matplotlib.pyplot.close("all")


def test_a_large_quantity_is_thinned_in_the_forest():
    fit = made(RNG.normal(size=(2, 30, 50)), ["diverging"])
    from inference.to_arviz import forest

    figure = forest([("wide", fit.draws.posterior)])
    assert len(figure.axes[0].get_yticklabels()) == 8
    matplotlib.pyplot.close("all")


def test_names_must_be_as_many_as_fits(fits):
    with pytest.raises(BadData, match="1 names for 2 fits"):
        compare([fits["short"], fits["long"]], X, ["one"])
    with pytest.raises(BadData, match="nothing to compare"):
        compare([], X)
