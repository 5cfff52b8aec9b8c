"""What is wrong with a fit, and what to try: from one result, in plain words.

Each check is a function that looks at one thing and returns what it found; what does not apply returns
nothing. Numbers are in nats per row where they are bounds.

References
----------
Yes, but Did It Work?: Evaluating Variational Inference (Yao, Vehtari, Simpson and Gelman, 2018); Importance
Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016), for active units; ELBO Surgery (Hoffman and Johnson,
2016); Inference Suboptimality in Variational Autoencoders (Cremer, Li and Duvenaud, 2018), for the two gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.special import logsumexp

from inference.align import identified
from inference.compare import label
from inference.denoising_posterior import step_bound
from inference.errors import BadData, Incompatible
from inference.gradient_report import gradient_report
from inference.inference_gaps import inference_gaps
from inference.objectives import ELBO, IWAE, NVIL, STL, VIMCO, DReG, ScoreFunction
from inference.posterior_error import diagnose_site
from inference.programs import Anatomy, anatomy, bind, trace
from inference.protocols import Batch, Denoiser
from inference.result import Fit, final_bound, kind_of, rows_of_their_own
from inference.sites import row_weights
from inference.surgery import elbo_surgery

Verdict = Literal["good", "look", "bad"]

MAX_ROWS = 500
DRAWS = 200
GAP_ROWS, GAP_STEPS = 64, 300  # rows whose best Normal is looked for
PATHS = 100  # rows whose diffusion is bounded
ACTIVE = 0.01  # variance over rows of a unit's posterior mean, below which it says nothing (Burda et al.)
CERTAIN = 0.01  # nats of entropy, below which a binary unit is as good as decided
PRIOR_GAIN = 1.0  # nats that another prior would gain
WIDE_GAP = 1.0  # nats that encoder, or family, lose
K_HAT = 0.7
R_HAT = 1.01
FEW = 400  # effective draws in all that a mean and its error need


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes
    ----------
    what, found
        What was looked at, and what it showed.
    verdict
        ``good``, ``look`` (worth knowing) or ``bad``.
    advice
        What to try when it is not good.
    """

    what: str
    found: str
    verdict: Verdict
    advice: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Findings of :func:`diagnose`; prints as a table and what to try."""

    name: str
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing is bad."""
        return all(f.verdict != "bad" for f in self.findings)

    def __str__(self) -> str:
        table = Table(title=self.name, title_justify="left", show_header=False, box=None, pad_edge=False)
        for _ in range(3):
            table.add_column()
        for f in self.findings:
            table.add_row({"good": "ok", "look": "note", "bad": "BAD"}[f.verdict], f.what, f.found)
        console = Console(width=118, force_terminal=False, color_system=None)
        with console.capture() as capture:
            console.print(table)
            advice = [f for f in self.findings if f.advice and f.verdict != "good"]
            if advice:
                console.print("\nWhat to try")
            for f in advice:
                console.print(f"- {f.what}: {f.advice}", soft_wrap=False)
        return capture.get().rstrip()


def diagnose(fit: Fit, data: Any = None, *, key: int = 0) -> Diagnosis:
    """Look at a fit from every side that applies to it.

    Parameters
    ----------
    fit
        What :func:`inference.fit` returned.
    data
        Rows to look at it on, held-out ones best; by default those of the fit. Of more than 500, 500
        evenly spaced are used.
    key
        Seed of the draws.

    Returns
    -------
    Diagnosis
        Prints in plain words: convergence; the gap between bound and likelihood, and whether encoder or family loses
        it; ELBO surgery; k-hat of the guide, per row and for globals; units of the latents that say nothing or are
        decided; noise of the gradient, and what would have less; R-hat, effective draws and divergences of chains.

    Raises
    ------
    BadData
        When the fit holds no rows and none are passed.
    """
    rows = fit.data if data is None else fit._rows(data)
    if rows is None:
        raise BadData("the fit does not hold its rows: pass some, as in diagnose(fit, data).")
    index = np.unique(np.linspace(0, rows.num_data - 1, min(rows.num_data, MAX_ROWS)).astype(int))
    batch = rows.batch(index)
    batch = Batch(batch.data, batch.rows, rows.num_data)
    checks: list[Callable[..., Iterator[Finding]]] = [_chains] if kind_of(fit) == "mcmc" else [_convergence, _restarts]
    if isinstance(fit.model, Denoiser):  # a path is too long to weigh draws of it
        checks += [_path]
    elif kind_of(fit) != "mcmc" and fit.guide is not None and hasattr(fit.algorithm, "objective"):
        checks += [_globals, _weights]
        if fit.algorithm.engine == "numpyro":
            checks += [_surgery, _gaps, _units, _choice, _noise]
    if hasattr(fit.algorithm, "game"):
        from inference.adversarial_report import findings

        checks.append(findings)
    return Diagnosis(label(fit), tuple(f for check in checks for f in check(fit, batch, key)))


def _convergence(fit: Fit, batch: Batch, key: int) -> Iterator[Finding]:
    """Whether the bound still rises: a line through the last fifth of the steps, in means of blocks."""
    bound = fit.history.get("bound")
    if bound is None or bound.shape[1] < 40:
        return
    last = bound[0, -(bound.shape[1] // 5) :]
    # Twenty means, so that noise of neighbouring steps may be alike; the line takes out the trend itself.
    blocks = [b.mean() for b in np.array_split(last, min(20, len(last)))]
    (slope, _), covariance = np.polyfit(np.arange(len(blocks)), blocks, 1, cov=True)
    rise, error = slope * len(blocks) / 2, covariance[0, 0] ** 0.5 * len(blocks) / 2
    found = f"rose by {rise:.3f} ± {error:.3f} nats per row over the last tenth of {bound.shape[1]} steps"
    if rise > 4 * error and rise > 1e-3 * max(1.0, abs(last.mean())):
        yield Finding("convergence", found, "bad", "it has not converged: more steps, or a larger step size.")
    elif rise < -4 * error and not hasattr(fit.algorithm, "tolerance"):
        yield Finding("convergence", found, "bad", "the bound falls: a smaller step size, or a decaying one.")
    else:
        yield Finding("convergence", found, "good")


def _restarts(fit: Fit, batch: Batch, key: int) -> Iterator[Finding]:
    """Whether restarts agree on the bound."""
    bound = fit.history.get("bound")
    if bound is None or len(bound) < 2:
        return
    last = final_bound(bound)
    spread = float(last.max() - np.median(last))
    verdict: Verdict = "look" if spread > 0.05 * max(1.0, abs(last.max())) else "good"
    advice = "the optimum depends on the start: more restarts (num_chains)."
    found = f"best of {len(last)} is {spread:.3f} nats per row above the median"
    yield Finding("restarts", found, verdict, advice)


def _chains(fit: Fit, batch: Batch, key: int) -> Iterator[Finding]:
    """R-hat, effective draws, divergences, trees that were cut."""
    stats = fit.draws.sample_stats
    sites = {n: diagnose_site(v) for n, v in identified(fit).items()}
    sites = {n: v for n, v in sites.items() if not np.isnan(v[1])}
    if sites:
        worst = max(sites, key=lambda n: sites[n][1])
        r_hat, ess = sites[worst][1], min(v[0] for v in sites.values())
        bad = r_hat > R_HAT
        yield Finding(
            "R-hat",
            f"{r_hat:.3f}, of {worst!r}",
            "bad" if bad else "good",
            "the chains disagree: more warmup and draws; start from several places; a reparameterised model."
            if bad
            else "",
        )
        few = ess < FEW
        error = 1 / np.sqrt(max(ess, 1))
        advice = f"means have a Monte-Carlo error of {error:.0%} of the posterior's deviation: more draws."
        yield Finding("effective draws", f"{ess:.0f} at least", "look" if few else "good", advice)
    divergent = int(np.sum(stats["diverging"]))
    yield Finding(
        "divergences",
        f"{divergent} of {np.size(stats['diverging'])} draws",
        "bad" if divergent else "good",
        "regions of the posterior are not reached: raise target_accept_prob, or reparameterise.",
    )
    depth = getattr(fit.algorithm, "max_tree_depth", None)
    if depth is not None and "n_steps" in stats:
        cut = float(np.mean(np.asarray(stats["n_steps"]) >= 2**depth - 1))
        if cut > 0.05:
            yield Finding(
                "trees",
                f"{cut:.0%} of draws stopped at depth {depth}",
                "look",
                "raise max_tree_depth, or dense_mass=True.",
            )


def _globals(fit: Fit, batch: Batch, key: int) -> Iterator[Finding]:
    """k-hat of draws of the globals."""
    from inference.to_arviz import pareto_k

    weights = fit.draws.sample_stats.get("log_weight")
    if weights is None:
        return
    k_hat = float(pareto_k(np.asarray(weights[:1], np.float64))[0])
    bad = not k_hat <= K_HAT
    yield Finding(
        "guide of the globals",
        f"k-hat {k_hat:.2f}",
        "bad" if bad else "good",
        "it is too far from the posterior to trust its spread: a richer guide, or NUTS for comparison.",
    )


def _weights(fit: Fit, batch: Batch, key: int) -> Iterator[Finding]:
    """Bound, likelihood and k-hat of each row, from draws of its latents."""
    from inference.to_arviz import pareto_k

    try:
        drawn = fit.sample_posterior({n: np.asarray(v) for n, v in batch.data.items()}, DRAWS, key=key)
        weights = row_weights(fit, drawn, batch)
    except Incompatible:
        return
    if weights is None:
        return
    weights = np.asarray(weights, np.float64)
    bound = weights.mean(axis=0)
    likelihood = logsumexp(weights, axis=0) - np.log(len(weights))
    gap = float(np.mean(likelihood - bound))
    wide = gap > max(1.0, 0.02 * abs(float(likelihood.mean())))
    yield Finding(
        "gap of the ELBO",
        f"{gap:.2f} nats per row below the {len(weights)}-draw bound, {likelihood.mean():.2f}",
        "look" if wide else "good",
        "the guide misses the posterior's shape: IWAE(10) (VIMCO(10) for discrete latents), a larger encoder, or a "
        "guide that couples the latents.",
    )
    k_hat = pareto_k(weights.T)
    share = float(np.mean(~(k_hat <= K_HAT)))
    yield Finding(
        "k-hat of rows",
        f"above {K_HAT} for {share:.0%} of {len(k_hat)} rows, median {np.median(k_hat):.2f}",
        "bad" if share > 0.5 else "look" if share > 0.1 else "good",
        "importance-weighted likelihoods of those rows are too low: more particles, or a wider guide "
        "(IWAE and ReweightedWakeSleep widen it).",
    )


def _surgery(fit: Fit, batch: Batch, key: int) -> Iterator[Finding]:
    """What the ELBO of these rows is made of."""
    try:
        terms = elbo_surgery(fit, {n: np.asarray(v) for n, v in batch.data.items()}, key=key)
    except Incompatible:
        return
    information, kl, ceiling = terms.mutual_information.mean, terms.marginal_kl.mean, np.log(len(batch))
    found = (
        f"reconstruction {terms.reconstruction.mean:.2f}; codes tell {information:.2f} nats (at most {ceiling:.2f}) of "
        f"which row it is; KL of their aggregate to the prior {kl:.2f}"
    )
    advice = (
        f"a prior like the aggregate posterior would gain up to {kl:.2f} nats: a mixture of encoders, or a flow. "
        "elbo_surgery(run, train, test) says what of it is overfit."
    )
    if information > ceiling - 0.5:
        advice += " Codes tell nearly all rows apart, so that more rows would show more information and less KL."
    yield Finding("ELBO surgery", found, "look" if kl > PRIOR_GAIN else "good", advice)


def _gaps(fit: Fit, batch: Batch, key: int) -> Iterator[Finding]:
    """Whether the encoder loses it, or the family of its distributions."""
    some = np.linspace(0, len(batch) - 1, min(len(batch), GAP_ROWS)).astype(int)
    data = {n: np.asarray(v)[some] for n, v in batch.data.items()}
    try:
        gaps = inference_gaps(fit, data, num_steps=GAP_STEPS, num_particles=1000, key=key)
    except Incompatible:
        return
    encoder, family = gaps.amortization.mean, gaps.approximation.mean
    advice = (
        "a larger encoder, or LaggingEncoder."
        if encoder > family
        else "a guide that couples the latents, or IWAE(10): no encoder of independent Normals closes it."
    )
    found = f"{encoder:.2f} nats lost by the encoder, {family:.2f} by independent Normals ({len(some)} rows)"
    yield Finding("inference gaps", found, "look" if max(encoder, family) > WIDE_GAP else "good", advice)


def _path(fit: Fit, batch: Batch, key: int) -> Iterator[Finding]:
    """What is left of the row at the end of a diffusion's path, where draws begin."""
    bound = step_bound(fit, {n: np.asarray(v[:PATHS]) for n, v in batch.data.items()}, key=key)
    left = -float(bound.by_step[-1])
    yield Finding(
        "end of the path",
        f"KL(q(x_T | x) || N(0, I)) is {left:.2g} nats per row, of a bound of {bound.rows.mean():.2f}",
        "bad" if left > 1 else "look" if left > 0.1 else "good",
        "x_T still tells of its row, and draws begin at N(0, I): more steps, or a schedule that adds more noise.",
    )


def _units(fit: Fit, batch: Batch, key: int) -> Iterator[Finding]:
    """Units of each local latent that say nothing of the row, and binary ones that are always decided."""
    parts = anatomy(bind(fit.model, batch))
    tr = trace(bind(fit.guide, batch), jax.random.key(key), fit.params | {n: v[0] for n, v in fit.globals(1).items()})
    for name, site in tr.items():
        if site["type"] != "sample" or name not in parts.local:
            continue
        try:
            mean = np.asarray(site["fn"].mean, np.float64)
        except NotImplementedError:
            continue
        mean = mean.reshape(len(batch), -1)
        quiet = mean.var(axis=0) < ACTIVE
        collapsed = float(quiet.mean())
        found = f"{int((~quiet).sum())} of {len(quiet)} units are active"
        if name in parts.discrete and np.all((mean >= 0) & (mean <= 1)):
            entropy = -(mean * np.log(mean + 1e-12) + (1 - mean) * np.log1p(-mean + 1e-12))
            decided = float(np.mean(entropy.mean(axis=0) < CERTAIN))
            found += f", {decided:.0%} are decided by the row (entropy below {CERTAIN} nats)"
        yield Finding(
            f"latent {name!r}",
            found,
            "bad" if collapsed == 1 else "look" if collapsed > 0.5 else "good",
            "the guide ignores the data there (posterior collapse): Beta(ELBO(), a warm-up schedule), FreeBits, "
            "LaggingEncoder; or fewer units.",
        )


def _choice(fit: Fit, batch: Batch, key: int) -> Iterator[Finding]:
    """Whether another kind of objective suits the guide's sites."""
    objective = fit.algorithm.objective
    parts, guided = anatomy(bind(fit.model, batch)), anatomy(bind(fit.guide, batch))
    scored = [n for n in guided.latent if n not in guided.pathwise]
    summable = [n for n in scored if n in parts.enumerable]
    if summable:
        yield Finding(
            "choice of objective",
            f"{summable} are drawn, and could be summed out",
            "look",
            f"leave {summable} out of the guide: ELBO() then sums them exactly, without the noise of their draws.",
        )
    if guided.latent and not scored and isinstance(objective, (ScoreFunction, NVIL, VIMCO)):
        yield Finding(
            "choice of objective",
            f"{objective} takes scores, and every site has pathwise gradients",
            "bad",
            "use ELBO() or STL(), or IWAE(K) or DReG(K): their gradients have far less noise.",
        )


def _noise(fit: Fit, batch: Batch, key: int) -> Iterator[Finding]:
    """Signal and noise of the gradient at the end, beside objectives that suit the same sites."""
    objective = fit.algorithm.objective
    guided = anatomy(bind(fit.guide, batch))
    if not guided.latent or not guided.params or rows_of_their_own(fit.algorithm, batch):
        return
    candidates = [objective, *_alternatives(objective, guided)]
    data = {n: np.asarray(v) for n, v in batch.data.items()}
    try:
        report = gradient_report(
            fit.model, fit.guide, candidates, data, params=fit.params, num_replicates=100, batch_size=50, key=key
        )
    except Incompatible:
        return
    own, *others = report.rows
    if not np.isfinite(own.snr[1]):
        return
    found = f"signal-to-noise {own.snr[1]:.3f} a step for the guide, with {objective}"
    worth = [r for r in others if r.snr[1] ** 2 / r.milliseconds > 2 * own.snr[1] ** 2 / own.milliseconds]
    if not worth:
        yield Finding("noise of the gradient", found, "good")
        return
    best = max(worth, key=lambda r: r.snr[1] ** 2 / r.milliseconds)
    yield Finding(
        "noise of the gradient",
        f"{found}; {best.snr[1]:.3f} with {best.objective}",
        "look",
        f"try {best.objective}. gradient_report(...) shows more of them.",
    )


def _alternatives(objective: Any, guided: Anatomy) -> list[Any]:
    """Unbiased objectives of the same target that suit these sites."""
    if not set(guided.latent) <= guided.pathwise:
        several = max(2, getattr(objective, "num_particles", 2))
        return [o for o in (ScoreFunction(several), VIMCO(several)) if o != objective]
    if isinstance(objective, ELBO):
        return [STL(objective.num_particles)]
    if isinstance(objective, IWAE):
        return [DReG(objective.num_particles)]
    return []


__all__ = ["Diagnosis", "Finding", "diagnose"]
