"""Effective samples per second of one posterior: Gibbs and NUTS here, NumPyro used bare, PyroNUTS.

The same model file, data, warmup and draws. ``Problem.summary`` says what effective samples are counted over:
functions of the globals that do not depend on what the model cannot tell apart (labels, rotations). Seconds
are wall time of the whole run, warmup and what comes after the last draw included, less what XLA spends on
compiling: a first run is thrown away, and where NumPyro used bare compiles again that time is taken off (Pyro
does not compile). Every run must also agree on the posterior means.

    python benchmarks/gibbs_ess.py
    python benchmarks/gibbs_ess.py --problems mixture --no-with-pyro
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import tyro
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC
from numpyro.infer import NUTS as BareNUTS
from rich.console import Console
from rich.table import Table

from inference import NUTS, Gibbs, fit
from ppl_models import PPCA, BayesianPCA, GaussianMixture

Draws = Mapping[str, np.ndarray]  # globals by site, (chain, draw, *event)


@dataclass(frozen=True)
class Problem:
    """A model, rows, and a start for samplers that have none of their own.

    Attributes
    ----------
    model
        ``ppl`` to the program.
    sites
        Its global sample sites.
    """

    model: Callable[..., Any]
    sites: tuple[str, ...]
    x: np.ndarray

    def summary(self, draws: Draws) -> dict[str, np.ndarray]:
        """The model's invariants of every draw, (chain, draw, *event), that are real numbers; counts may never move."""
        found = {n: np.asarray(draws[n], np.float32) for n in self.sites}
        all_of = jax.jit(jax.vmap(jax.vmap(_named(self.model()))))(found)
        return {n: np.asarray(v) for n, v in all_of.items() if np.issubdtype(v.dtype, np.floating)}


def _named(model: Any) -> Callable[[Draws], Any]:
    return lambda draw: model.invariants(**draw)


def mixture(rows: int) -> Problem:
    """Three overlapping clusters in the plane, K = 3, full covariances."""
    rng = np.random.default_rng(0)
    centres = np.array([[-2.5, 0.0], [0.0, 2.0], [2.5, 0.0]])
    x = (centres[rng.integers(0, 3, rows)] + rng.normal(size=(rows, 2))).astype(np.float32)
    return Problem(lambda **ppl: GaussianMixture(3, "full", scale=1.0, **ppl), ("weights", "means", "precisions"), x)


def plane(rows: int) -> np.ndarray:
    """Five columns, a plane and noise."""
    rng = np.random.default_rng(1)
    loadings = rng.normal(size=(5, 2)) * [2.0, 1.0]
    return (rng.normal(size=(rows, 2)) @ loadings.T + 0.5 * rng.normal(size=(rows, 5))).astype(np.float32)


def ppca(rows: int) -> Problem:
    """Probabilistic PCA of a plane."""
    return Problem(lambda **ppl: PPCA(2, **ppl), ("noise_variance", "loadings", "mean"), plane(rows))


def bayesian_pca(rows: int) -> Problem:
    """Bayesian PCA of the same plane, with a dimension to spare."""
    sites = ("noise_variance", "loadings_precision", "loadings", "mean")
    return Problem(lambda **ppl: BayesianPCA(3, **ppl), sites, plane(rows))


PROBLEMS = {"mixture": mixture, "ppca": ppca, "bayesian_pca": bayesian_pca}


@dataclass(frozen=True)
class Run:
    draws: Draws
    seconds: float


def ours(algorithm: Any, problem: Problem, steps: int, chains: int, compiles: bool = True) -> Run:
    """Through ``fit``; seconds include ``finish``."""
    if compiles:
        fit(algorithm, problem.x, key=1, num_steps=steps, num_chains=chains, progress=False)
    options = {"num_steps": steps, "num_chains": chains, "progress": False}
    found, seconds = timed(lambda: fit(algorithm, problem.x, key=0, **options))
    return Run(found.draws.posterior, seconds)


def bare(problem: Problem, warmup: int, steps: int, chains: int) -> Run:
    """``numpyro.infer.MCMC`` as its documentation has it, chains vectorised.

    On the same program, with labels enumerated or other locals integrated out, as NUTS here has it.
    """
    model = getattr(problem.model(), "marginal", problem.model())
    mcmc = MCMC(BareNUTS(model), num_warmup=warmup, num_samples=steps, num_chains=chains, **_VECTORISED)
    mcmc.run(jax.random.key(1), problem.x)

    def run() -> Draws:
        mcmc.run(jax.random.key(0), problem.x)
        return {n: np.asarray(v) for n, v in mcmc.get_samples(group_by_chain=True).items()}

    return Run(*timed(run))


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """Its result, and wall seconds less those of lowering and compiling."""
    compiling = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event.endswith(("jaxpr_to_mlir_module_duration", "backend_compile_duration")):
            compiling.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    begin = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - begin
    jax.monitoring.unregister_event_duration_listener(listen)
    return result, seconds - sum(compiling)


_VECTORISED = {"chain_method": "vectorized", "progress_bar": False}


def main(
    problems: tuple[str, ...] = tuple(PROBLEMS),
    rows: int = 300,
    num_warmup: int = 500,
    num_draws: int = 1000,
    num_chains: int = 4,
    with_pyro: bool = True,
    pyro_warmup: int = 200,
    pyro_draws: int = 200,
    pyro_chains: int = 1,
) -> None:
    """Sample each posterior with every sampler and print effective samples per second.

    Args:
        problems: Which of them.
        rows: Rows of data.
        num_warmup: Steps of adaptation a chain.
        num_draws: Draws kept a chain.
        num_chains: Chains.
        with_pyro: Also run PyroNUTS, which takes minutes.
        pyro_warmup: Its steps of adaptation.
        pyro_draws: Its draws.
        pyro_chains: Its chains, one after the other.
    """
    for name in problems:
        problem = PROBLEMS[name](rows)
        runs = {
            "Gibbs": ours(Gibbs(problem.model(), num_warmup=num_warmup), problem, num_draws, num_chains),
            "NUTS": ours(NUTS(problem.model(), num_warmup=num_warmup), problem, num_draws, num_chains),
            "NumPyro, bare": bare(problem, num_warmup, num_draws, num_chains),
        }
        if with_pyro:
            import pyro

            from inference import PyroNUTS

            algorithm = PyroNUTS(problem.model(ppl=pyro), num_warmup=pyro_warmup)
            runs["PyroNUTS"] = ours(algorithm, problem, pyro_draws, pyro_chains, compiles=False)
        report(f"{name}, {rows} rows, {num_chains} chains of {num_warmup} + {num_draws}", problem, runs)


def report(title: str, problem: Problem, runs: dict[str, Run]) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("", "seconds", "fewest ESS", "R-hat", "ESS / s", "Gibbs' multiple", "disagreement"):
        table.add_column(column, justify="right")
    summaries = {n: {k: v.astype(np.float64) for k, v in problem.summary(r.draws).items()} for n, r in runs.items()}
    first, rates = summaries["Gibbs"], {}
    for name, run in runs.items():
        found = summaries[name]
        sizes = {k: effective_sample_size(v) for k, v in found.items()}
        r_hat = max(float(np.nanmax(split_gelman_rubin(v))) for v in found.values())
        # In Monte-Carlo errors of the difference to Gibbs' means; the largest of several, so 3 is no alarm.
        gaps = []
        for k, v in found.items():
            error = v.var((0, 1)) / sizes[k] + first[k].var((0, 1)) / effective_sample_size(first[k])
            gaps.append(np.nanmax(np.abs(v.mean((0, 1)) - first[k].mean((0, 1))) / np.sqrt(error)))
        ess = min(float(np.nanmin(s)) for s in sizes.values())
        rates[name] = ess / run.seconds
        multiple = f"{rates['Gibbs'] / rates[name]:.1f}"
        cells = (f"{run.seconds:.2f}", f"{ess:.0f}", f"{r_hat:.3f}", f"{rates[name]:.1f}", multiple, f"{max(gaps):.1f}")
        table.add_row(name, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    tyro.cli(main)
