"""Stepwise EM: near batch EM's likelihood from arrays, a memory-mapped file and a stream; what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inference import EM, BadData, Incompatible, StepwiseEM, fit
from inference.protocols import Batch
from ppl_models import PPCA, FactorAnalysis, linear_gaussian
from ppl_models.gaussian_mixture import GaussianMixture, random_rows

STRUCTURES = ["full", "tied", "diag", "spherical"]


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """6,000 rows from three overlapping Gaussians, far from zero."""
    rng = np.random.default_rng(0)
    centres = np.array([[-2.0, 0.0], [0.5, 2.0], [2.0, -1.0]])
    return (centres[rng.integers(3, size=6000)] + rng.normal(size=(6000, 2)) * [1.0, 0.5] + 50).astype(np.float32)


class Batches:
    """A stream that can be started over and knows how many rows it has."""

    def __init__(self, batches):
        self.batches, self.num_data = batches, sum(map(len, batches))

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("covariance", [pytest.param("full", marks=pytest.mark.slow), "diag"])
def test_comes_near_batch_em(covariance, x):
    """Ten passes by 200 rows. The last steps average about (t / 2)^0.7 = 50 batches: all rows, nearly, so what
    is lost in nats per row is of the order of parameters / rows = 17 / 6000."""
    model = GaussianMixture(3, covariance)
    batch = fit(EM(model), x, key=0, num_chains=4)
    stepwise = fit(StepwiseEM(model), x, key=0, num_epochs=10, batch_size=200, num_chains=4)
    gap = batch.log_likelihood(x).mean - stepwise.log_likelihood(x).mean
    assert -1e-3 < gap < 4e-3
    assert stepwise.history["bound"].shape == (4, 300)
    lp = stepwise.draws.sample_stats["lp"][0, 0]
    assert lp == pytest.approx(stepwise.log_likelihood(x).mean * 6000, rel=1e-4)


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_moments_about_different_origins_combine(covariance, x):
    """The sum of two batches, each about its own mean, is that of both."""
    model, rows = GaussianMixture(3, covariance), np.concatenate([x[:100], x[100:200] + 1])

    @jax.jit
    def steps():
        params = model.initial(jax.random.key(0), rows)
        one, two, both = (model.e_step(params, part)[1] for part in (rows[:100], rows[100:], rows))
        return one.origin, two.origin, model.m_step(model.combine(one, two, 1.0, 1.0)), model.m_step(both)

    origin, other, new, want = steps()
    assert not np.allclose(origin, other)
    for name in want:
        np.testing.assert_allclose(new[name], want[name], atol=2e-6)  # responsibilities are float32


def test_one_batch_of_all_rows_with_full_steps_is_em(x):
    """With eta = 1 at the first step (delay 1) it is a step of EM."""
    model = GaussianMixture(3)
    start = {n: np.asarray(v) for n, v in model.initial(jax.random.key(0), x).items()}
    one = fit(StepwiseEM(model, delay=1.0, initial=start), x, key=0, num_steps=1)
    other = fit(EM(model, initial=start), x, key=0, num_steps=1)
    for name, value in other.params.items():
        np.testing.assert_allclose(one.params[name], value, rtol=1e-5, atol=1e-6)


def test_runs_from_a_memory_mapped_file_and_from_streams(x, tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, x)
    algorithm = StepwiseEM(GaussianMixture(3), initial=random_rows)
    mapped = fit(algorithm, np.load(path, mmap_mode="r"), key=0, num_steps=20, batch_size=500)
    assert mapped.info["mode"] == "host" and mapped.data is None
    inside = fit(algorithm, x, key=0, num_steps=20, batch_size=500)
    # The same rows in the same order: only the start, on the first batch, and float32 rounding by another program.
    np.testing.assert_allclose(mapped.history["bound"], inside.history["bound"], atol=1e-3)

    for stream in (Batches(np.split(x, 12)), iter(np.split(x, 12) * 2)):  # with and without a length
        run = fit(algorithm, stream, key=0, num_steps=20)
        assert run.history["bound"].shape == (1, 20)
        assert run.history["bound"][0, -5:].mean() > run.history["bound"][0, 0]
        assert np.isfinite(run.log_likelihood(x[:100]).mean)


class EntryByEntry(PPCA):
    """PPCA with statistics about zero, which add up without a method."""

    combine = property()

    def e_step(self, *args, **data):
        log_likelihood, statistics = super().e_step(*args, **data)
        with jax.enable_x64(True):
            return log_likelihood, linear_gaussian.moved(statistics, jnp.zeros(len(statistics.x)))


@pytest.mark.parametrize("family", [PPCA, EntryByEntry])
def test_comes_near_batch_em_in_a_plane(family):
    """Twenty passes go further than ten steps of EM, and near where EM ends (whose steps are slow here: the sum of
    eta over 200 batches is worth about 16 of them)."""
    rng = np.random.default_rng(1)
    rows = (rng.normal(size=(2000, 2)) @ rng.normal(size=(2, 4)) + 0.5 * rng.normal(size=(2000, 4))).astype(np.float32)
    model = family(2)
    assert hasattr(model, "combine") == (family is PPCA)
    batch = fit(EM(model, tolerance=0.0), rows, key=0, num_steps=100).history["bound"][0]
    run = fit(StepwiseEM(model), rows, key=0, num_epochs=20, batch_size=200)
    reached = run.draws.sample_stats["lp"][0, 0] / 2000
    assert batch[10] < reached < batch[-1] + 1e-5 and batch[-1] - reached < 0.05


def test_holes_in_a_stream(x):
    holes = np.where(np.random.default_rng(2).random(x.shape) < 0.3, np.nan, x)
    run = fit(StepwiseEM(GaussianMixture(3)), iter([holes[:500], holes[500:1000]]), key=0, num_steps=2)
    assert np.isfinite(run.history["bound"]).all()


@pytest.mark.parametrize("family", [PPCA, pytest.param(FactorAnalysis, marks=pytest.mark.slow)])
def test_a_stream_whose_batches_differ_in_holes(family, tmp_path):
    """Whole rows first, then a batch without column 1 at all, then rows with holes; resumed where that changes."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(600, 1)) @ rng.normal(size=(1, 4)) + 0.5 * rng.normal(size=(600, 4)) + 3
    rows = rows.astype(np.float32)
    holes = np.where(rng.random(rows.shape) < 0.2, np.nan, rows)
    lacking = np.where(np.arange(4) == 1, np.nan, rows)
    batches = [rows[:200], lacking[200:400], holes[400:]]
    algorithm, best = StepwiseEM(family(1)), fit(EM(family(1)), rows, key=0).log_likelihood(rows).mean
    for first in range(3):
        order = batches[first:] + batches[:first]
        whole = fit(algorithm, Batches(order), key=0, num_steps=60)
        assert whole.log_likelihood(rows).mean > best - 0.05
        path = tmp_path / f"{first}"
        fit(algorithm, Batches(order), key=0, num_steps=2, checkpoint=path)
        resumed = fit(algorithm, Batches(order), key=0, num_steps=60, checkpoint=path)
        np.testing.assert_array_equal(resumed.history["bound"], whole.history["bound"])


def test_a_batch_that_does_not_count_changes_nothing():
    rng = np.random.default_rng(1)
    rows = (rng.normal(size=(300, 1)) @ rng.normal(size=(1, 4)) + 0.5 * rng.normal(size=(300, 4))).astype(np.float32)
    algorithm = StepwiseEM(PPCA(1))

    def run(*weights):
        @jax.jit
        def go():
            state, bounds = algorithm.init(jax.random.key(0), batch(1.0)), []
            for weight in weights:
                state, record = algorithm.step(jax.random.key(0), state, batch(weight))
                bounds.append(record.metrics["bound"])
            return state, jnp.stack(bounds)

        return jax.tree.map(np.asarray, go())

    def batch(weight):
        data = {"x": jnp.asarray(rows), "sample_weight": jnp.full(300, weight, jnp.float32)}
        return Batch(data, jnp.arange(300), 300)

    (state, bounds), (paused, repeated) = run(1.0, 0.5), run(1.0, 0.0, 0.5)
    jax.tree.map(np.testing.assert_array_equal, paused, state)
    np.testing.assert_array_equal(repeated, bounds[[0, 0, 1]])
    # and through fit, where the first rows do not count
    weight = (np.arange(300) >= 100).astype(np.float32)
    found = fit(algorithm, {"x": rows, "sample_weight": weight}, key=0, num_epochs=20, batch_size=50)
    best = fit(EM(PPCA(1)), rows[100:], key=0).log_likelihood(rows[100:]).mean
    assert found.log_likelihood(rows[100:]).mean > best - 0.05


def test_keys_and_resume(x, tmp_path):
    algorithm = StepwiseEM(GaussianMixture(2, "diag"))
    whole = fit(algorithm, x[:300], key=4, num_steps=9, batch_size=100)
    again = fit(algorithm, x[:300], key=4, num_steps=9, batch_size=100, checkpoint=tmp_path / "c")
    resumed = fit(algorithm, x[:300], key=4, num_steps=9, batch_size=100, checkpoint=tmp_path / "c")
    for run in (again, resumed):
        np.testing.assert_array_equal(run.history["bound"], whole.history["bound"])


def test_bad_fields_and_programs_are_refused(x):
    model = GaussianMixture(3)
    for fields, message in (
        ({"decay": 0.5}, "decay is 0.5; give a number above 0.5 and at most 1"),
        ({"decay": 1.5}, "decay is 1.5"),
        ({"delay": 0.5}, "delay is 0.5; give at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            StepwiseEM(model, **fields)
    with pytest.raises(Incompatible, match="StepwiseEM needs a program with exact steps"):
        StepwiseEM(lambda x: None)
    with pytest.raises(Incompatible, match=r"StepwiseEM's initial has shapes .*; GaussianMixture on these rows takes"):
        fit(StepwiseEM(model, initial={"means": np.zeros((3, 2))}), x, key=0, num_steps=1)
    with pytest.raises(ValueError, match="x has 2 rows for 3 components"):
        fit(StepwiseEM(model), x, key=0, num_steps=1, batch_size=2)


def test_a_batch_of_a_stream_may_count_for_nothing():
    """The parameters after it are those before it, and a first batch that counts for nothing is refused."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4, 50, 2)).astype(np.float32)

    def stream(*weights):
        batches = zip(rows, weights, strict=False)
        return ({"x": x, "sample_weight": np.full(50, w, np.float32)} for x, w in batches)

    algorithm = StepwiseEM(GaussianMixture(2))
    with_it, without = (
        fit(algorithm, stream(*weights), key=0, num_steps=len(weights), progress=False)
        for weights in ((1, 1, 0), (1, 1))
    )
    for name, value in without.params.items():
        np.testing.assert_array_equal(with_it.params[name], value)
    with pytest.raises(BadData, match="'sample_weight' is zero in every row"):
        fit(algorithm, stream(0, 1), key=0, num_steps=2, progress=False)
