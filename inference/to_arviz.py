"""Fits as ArviZ ``InferenceData``, and leave-one-out cross-validation where it means something."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from jaxtyping import Float

from inference import groups
from inference.errors import BadData, Incompatible
from inference.groups import Group, View
from inference.result import Fit, kind_of
from inference.run import describe

FOREST_ELEMENTS = 8  # of one quantity, in a forest plot
K_HAT = 0.7  # above it the smoothed weights are no use (Vehtari et al., 2024)


def to_arviz(fit: Fit, data: Any = None, results: Mapping[str, Any] | None = None) -> Any:
    """The result as an ArviZ ``InferenceData``.

    ==================== ========================================================================
    posterior            global latents and deterministic sites, ``(chain, draw, *event)``: MCMC's chains, or
                         draws from the guide of the best restart. A point estimate (EM; parameters of a
                         model) stands in each of the draws, 200 where there are no others; networks are
                         left out. Latents of rows, under each draw, from MCMC, guide or enumeration.
                         MCMC's components and loadings (and rows' labels and factors with them) are
                         aligned across draws and chains, as :func:`inference.align.align` does it; and
                         what the model offers as its ``invariants``, which need no aligning
    posterior_raw        MCMC's draws of the sites that were aligned, as they came
    sample_stats         what the algorithm recorded: ``lp``, ``diverging``, …; for draws of globals from a
                         guide ``log_weight`` = log p - log q, with its ``pareto_k`` among the attributes;
                         where only rows have latents, ``log_weight`` is ``(chain, draw, row)``. Left out
                         where they are of one minibatch: after SVI on a stream or on data on the host
    log_likelihood       of each row, its latents integrated out (by 200 importance draws where that has no
                         closed form; 100, under 50 draws of globals), nats: ``(chain, draw, row)`` for
                         MCMC, ``(guide_draw, row)`` for draws from a guide, ``(row)`` for a point estimate
    posterior_predictive observed sites drawn anew, at most 200 times, latents of rows from their prior
    prior                500 draws of the global latents and deterministic sites
    observed_data        observed sites
    constant_data        inputs that no site observes
    machine              of contrastive divergence, ``free_energy`` in nats of 200 draws of 20 chains of the machine,
                         five sweeps apart: R-hat and effective draws say how its sampler mixes
    elbo_surgery         of fits whose latents are all of rows: ``reconstruction``, ``mutual_information``,
                         ``marginal_kl`` and ``elbo`` of at most 500 rows, ``(row)``, the aggregate posterior
                         being that of these; see :func:`inference.surgery.elbo_surgery`
    restarts             final ``bound`` of each, nats per row, best first: not chains of one posterior
    ==================== ========================================================================

    Dimensions are called ``row``, after plates, or ``SITE_dim_0`` …. What would hold more than 2**22
    numbers, or take more than 2**33 multiplications, is thinned, draws before rows (draws of globals are
    all kept); the coordinates ``draw`` and ``row`` tell which are left.

    The dimensions of ``log_likelihood`` keep ``az.loo`` from taking a guide's draws or a point
    estimate for a posterior: it stops with ``KeyError: 'chain'``. Use :func:`loo`, or
    :func:`psis_resample` first.

    Parameters
    ----------
    fit
        What :func:`inference.fit` returned.
    data
        Rows that the groups are about; by default those of the fit.
    results
        What else was found out about rows, by name of a group: of :func:`~inference.elbo_surgery`,
        :func:`~inference.inference_gaps`, :func:`~inference.annealed_evidence`, or any estimate by row.

    Returns
    -------
    arviz.InferenceData
        Attributes tell versions, seed, algorithm, seconds, and whether the run was interrupted.

    Raises
    ------
    BadData
        When the fit holds no rows (loaded from a file, or fitted to a stream) and none are passed.
    Incompatible
        When the guide has parameters of its own for every training row, and other rows are passed.
    """
    import arviz as az

    if fit.data is data is None:
        raise BadData(
            "the fit does not hold its rows (it was loaded from a file, or fitted to a stream or to data larger than "
            "memory): pass them, as in fit.to_arviz(data)."
        )
    view = groups.view(fit, fit._rows(fit.data if data is None else data))
    attrs = _attributes(view)
    if view.kind == "guide" and not view.weighed:
        attrs["log_weight"] = (
            "left out: the fit did not end on all rows at once (a stream, data on the host, or a file), so the weights "
            "are of one minibatch, scaled up: their noise, not the guide, would decide."
        )
    posterior, predictive = groups.posterior_group(view), groups.predictive_group(view)
    observed, constant = groups.data_groups(view, predictive)
    try:
        log_likelihood = groups.log_likelihood_group(view)
    except Incompatible as error:
        log_likelihood = Group()
        attrs["log_likelihood"] = f"left out: {error}"
    found = {
        "posterior": _dataset(posterior, attrs),
        "posterior_raw": _dataset(groups.raw_group(view)),
        "sample_stats": _dataset(groups.sample_stats_group(view, posterior)),
        "log_likelihood": _dataset(log_likelihood),
        "posterior_predictive": _dataset(predictive),
        "prior": _dataset(groups.prior_group(view)),
        "observed_data": _dataset(observed),
        "constant_data": _dataset(constant),
        "elbo_surgery": _dataset(groups.surgery_group(view)),
        "machine": _dataset(groups.machine_group(view)),
        "restarts": _dataset(groups.restarts_group(fit)),
    }
    for name, result in (results or {}).items():
        if found.get(name) and name != "elbo_surgery":
            raise BadData(f"results has a group {name!r}, which the fit has already: give it another name.")
        found[name] = _dataset(groups.result_group(name, result))
    if view.kind == "guide" and view.weighed:
        found["sample_stats"].attrs["pareto_k"] = _smooth(found["sample_stats"])[1]
    return az.InferenceData(attrs=attrs, **{n: v for n, v in found.items() if v.data_vars})


def loo(fit: Fit, data: Any = None, **options: Any) -> Any:
    """Leave-one-out cross-validation by ``az.loo``: draws of MCMC, or of a guide after :func:`psis_resample`.

    Parameters
    ----------
    fit
        A result with draws of global latents.
    data
        The rows it was fitted to, where the fit does not hold them. Of more rows than
        :func:`to_arviz` keeps, those kept are scored.
    options
        For ``az.loo``, such as ``pointwise=True``.

    Returns
    -------
    arviz.ELPDData
        Expected log predictive density in nats, summed over rows.

    Raises
    ------
    Incompatible
        For a point estimate; for a guide too far from the posterior (k-hat above 0.7); where a row's
        log likelihood cannot be had.

    References
    ----------
    Practical Bayesian Model Evaluation Using Leave-One-Out Cross-Validation and WAIC (Vehtari, Gelman
    and Gabry, 2017); Yes, but Did It Work?: Evaluating Variational Inference (Yao et al., 2018).
    """
    import arviz as az

    kind = kind_of(fit)
    if kind == "point":
        raise Incompatible(
            f"{type(fit.algorithm).__name__} gave a point estimate here, and leave-one-out reweighs draws of a "
            "posterior: one value cannot tell how the fit would change without a row. Use log_likelihood on held-out "
            "rows, or fit with NUTS."
        )
    inference_data = to_arviz(fit, data)
    if "log_likelihood" not in inference_data.groups():
        raise Incompatible("the log likelihood was " + inference_data.attrs["log_likelihood"])
    if kind == "guide":
        inference_data = psis_resample(inference_data)
        options = {"reff": inference_data.attrs["relative_efficiency"]} | options
    return az.loo(inference_data, **options)


def psis_resample(inference_data: Any, seed: int = 0) -> Any:
    """Draws of a guide turned into draws of the posterior, by Pareto-smoothed importance resampling.

    Parameters
    ----------
    inference_data
        Of SVI, with a ``log_weight`` for each draw of the global latents.
    seed
        Of the resampling, which is systematic: a draw of weight w comes S w times, rounded up or down.

    Returns
    -------
    arviz.InferenceData
        ``posterior``, ``posterior_predictive`` and ``log_likelihood`` resampled, so that ``az.loo``
        runs. The attribute ``relative_efficiency`` is the effective share of draws.

    Raises
    ------
    Incompatible
        Without weights of whole draws; when k-hat is above 0.7.

    References
    ----------
    Pareto Smoothed Importance Sampling (Vehtari, Simpson, Gelman, Yao and Gabry, 2024).
    """
    import arviz as az

    stats = inference_data.get("sample_stats", {})
    if "log_weight" not in stats or stats["log_weight"].dims != ("chain", "draw"):
        dropped = inference_data.attrs.get("log_weight")
        if dropped:
            raise Incompatible(f"there is no log_weight of each draw; it was {dropped}")
        raise Incompatible(
            "there is no log_weight of each draw: draws of global latents from a guide (SVI) can be resampled. Those "
            "of MCMC are the posterior's as they are, and a point estimate has none."
        )
    weights, k_hat = _smooth(stats)
    if not k_hat <= K_HAT:
        raise Incompatible(
            f"k-hat of the guide's draws is {k_hat:.2f}, above {K_HAT}: the guide is too far from the posterior for "
            "importance resampling. Use a richer guide or more steps, or fit with NUTS."
        )
    offset = np.random.default_rng(seed).uniform()

    def resample(group: Any) -> Any:
        w = weights[np.searchsorted(stats["draw"].values, group["draw"].values)]
        size = len(w)
        index = np.searchsorted(np.cumsum(w / w.sum()), (np.arange(size) + offset) / size)
        return group.isel(draw=np.minimum(index, size - 1)).assign_coords(draw=np.arange(size))

    out = dict(inference_data.items())
    if "log_likelihood" in out:
        as_draws = out["log_likelihood"].rename(guide_draw="draw")
        out["log_likelihood"] = as_draws.expand_dims("chain").assign_coords(chain=[0])
    for name in {"posterior", "posterior_predictive", "log_likelihood"} & out.keys():
        out[name] = resample(out[name])
    out["sample_stats"] = resample(stats.drop_vars("log_weight"))
    efficiency = float(1 / np.sum(weights**2) / len(weights))
    return az.InferenceData(attrs={**inference_data.attrs, "relative_efficiency": efficiency}, **out)


def forest(
    fits: Sequence[tuple[str, Mapping[str, Any]]], var_names: Sequence[str] | None = None, **options: Any
) -> Any:
    """A forest plot of several fits' draws ``(chain, draw, *event)``; see ``Comparison.plot_forest``.

    Each quantity has a panel, and a scale, of its own.
    """
    import arviz as az
    from matplotlib.figure import Figure

    found = dict.fromkeys(name for _, draws in fits for name in draws)
    shared = [n for n in found if all(n in draws for _, draws in fits)]
    names = list(var_names) if var_names is not None else shared or list(found)
    missing = [n for n in names if n not in found]
    if missing or not names:
        raise BadData(f"no fit has draws of {missing or 'anything'} to show; there are {list(found)}.")
    heights = [min(FOREST_ELEMENTS, max(v[n][0, 0].size for _, v in fits if n in v)) for n in names]
    inches = 0.3 + 0.14 * len(fits)  # of an element
    size = (8, 1 + 0.25 * len(fits) + sum(inches * h + 0.3 for h in heights))
    figure = Figure(figsize=size, layout="constrained")  # pyright: ignore[reportArgumentType]
    axes = figure.subplots(len(names), 1, squeeze=False, height_ratios=heights)[:, 0]
    colours = {label: f"C{i % 10}" for i, (label, _) in enumerate(fits)}
    common: dict[str, Any] = {"combined": True, "textsize": 10, "markersize": 5, "linewidth": 1.5}
    for ax, name in zip(axes, names, strict=True):
        shown = {label: _few(name, draws[name]) for label, draws in fits if name in draws}
        own = {"model_names": list(shown), "colors": [colours[label] for label in shown], "ax": ax}
        az.plot_forest(list(shown.values()), **common | own | options)
        title = ax.get_title()
        ax.set_title("")
        if ax.get_legend() is not None:
            ax.get_legend().remove()  # one for all panels
    figure.suptitle(title, fontsize=11)
    handles = [axes[0].plot([], [], color=colour, linewidth=2, label=label)[0] for label, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=max(1, min(len(fits), 3)), frameon=False)
    return figure


def _few(name: str, values: Any) -> Any:
    """Evenly spaced elements of a quantity; a point estimate twice, so that it has an interval."""
    import xarray as xr

    values = np.asarray(values)
    event = values.shape[2:]
    if values.shape[0] * values.shape[1] == 1:
        values = np.repeat(values, 2, axis=1)
    index = groups.evenly(math.prod(event), FOREST_ELEMENTS)
    flat = values.reshape(*values.shape[:2], -1)[..., index]
    dims, coords = ["chain", "draw"], {}
    if event:
        dims.append(f"{name}_dim")
        coords[dims[-1]] = [", ".join(map(str, i)) for i in zip(*np.unravel_index(index, event), strict=True)]
    return xr.Dataset({name: xr.DataArray(flat if event else flat[..., 0], coords, dims)})


def _smooth(stats: Any) -> tuple[np.ndarray, float]:
    """Smoothed weights of the draws, which sum to one, and k-hat (infinite where a weight is not finite)."""
    import arviz as az

    log_weight = stats["log_weight"].values.astype(np.float64).ravel()
    if not np.isfinite(log_weight).all():
        return np.full(len(log_weight), 1 / len(log_weight)), float("inf")
    smoothed, k_hat = az.psislw(log_weight)
    return np.exp(smoothed), float(k_hat)


def pareto_k(log_weights: Float[np.ndarray, "row draw"]) -> Float[np.ndarray, " row"]:
    """k-hat of the importance weights of each row: above 0.7 their mean is not to be trusted."""
    import arviz as az

    finite = np.isfinite(log_weights).all(axis=1)
    k_hat = np.full(len(log_weights), np.inf)
    if finite.any():
        k_hat[finite] = np.ravel(az.psislw(log_weights[finite])[1])
    return k_hat


def _dataset(group: Group, attrs: dict[str, Any] | None = None) -> Any:
    import xarray as xr

    sizes = {d: n for dims, v in group.variables.values() for d, n in zip(dims, np.shape(v), strict=True)}
    coords = {d: np.asarray(group.coords.get(d, np.arange(n))) for d, n in sizes.items()}
    variables = {n: (dims, np.asarray(v)) for n, (dims, v) in group.variables.items()}
    return xr.Dataset(variables, coords, {**group.attrs, **(attrs or {})})


def _attributes(view: View) -> dict[str, Any]:
    """Text and numbers: netCDF takes nothing else."""
    fit = view.fit
    library, backend = ("pyro-ppl", "torch") if fit.algorithm.engine == "pyro" else ("numpyro", "jax")
    return {
        "inference_library": library,
        "inference_library_version": _version(library),
        f"{backend}_version": _version(backend),
        "arviz_version": _version("arviz"),
        "ppl_models_version": _version("ppl-models"),
        "algorithm": describe(fit.algorithm),
        "seed": np.ravel(fit.info["seed"]).astype(np.int64),
        "num_steps": int(fit.info["num_steps"]),
        "sampling_time": float(fit.info["seconds"]),
        "interrupted": int(fit.info["interrupted"]),
        "num_data": view.num_data,
    }


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # used from its folder, not installed
        return "unknown"


__all__ = ["loo", "pareto_k", "psis_resample", "to_arviz"]
