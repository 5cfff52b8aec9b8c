"""Simulation-based calibration: whether an algorithm draws from the posterior that the model implies.

For globals g* ~ p(g), data x ~ p(x | g*) and draws g_1 … g_L ~ p(g | x), the truth is one more draw from the
posterior: for any function f(g, x) the rank of f(g*, x) among f(g_1, x) … f(g_L, x) is uniform. A rank that is not
shows a sampler that is wrong, or one that does not converge in the steps it is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int
from numpyro import handlers
from numpyro.diagnostics import effective_sample_size
from numpyro.util import soft_vmap

from inference.calibration import Calibration
from inference.check import program_name
from inference.compiled import jit
from inference.data import MASK, WEIGHT, Rows, as_data
from inference.errors import BadData, Incompatible, NonFinite, check_whole
from inference.execution import vectorised
from inference.fit import as_key
from inference.programs import anatomy, bind, has_marginal, marginal_density, takes, trace
from inference.progress import Bar
from inference.protocols import Batch, Program
from inference.target import target

AT_ONCE = 100  # simulations in one call of the compiled program
ROUNDING = 1e-6  # of the largest number of an array, some ulps of float32
LIKELIHOOD = "log likelihood"


def calibrate(
    model: Program,
    algorithm: Callable[[Program], Any],
    *,
    num_simulations: int = 200,
    num_rows: int = 50,
    num_columns: int | None = 2,
    data: Any = None,
    num_steps: int = 500,
    num_chains: int = 1,
    false_alarm: float = 0.01,
    key: int | Array = 0,
    progress: bool = True,
) -> Calibration:
    """Simulation-based calibration of an algorithm on a model, all fits in one compiled program.

    Ranked are the scalars of ``model.invariants(**globals)`` where the model offers it, else of its global
    latents, but for those that the prior does not move; and the log likelihood of the data, which depends on
    the data and so catches an algorithm that ignores them. Chains start where the algorithm starts them, so a
    posterior whose modes it does not leave is rejected too, as it should be.

    Parameters
    ----------
    model
        A NumPyro program with proper priors; its observed sites are named like the data they observe.
    algorithm
        Makes the algorithm of a model: ``NUTS``, or ``lambda m: NUTS(m, num_warmup=200)``.
    num_simulations
        Data sets drawn and fitted, at least 2. More find smaller faults.
    num_rows, num_columns
        Shape of each data set, an array ``x``; with ``num_columns=None`` it has one axis.
    data
        Rows as for ``fit``, in place of that shape. Arrays that the model observes are drawn anew, the
        others are inputs and stay, and so do holes. Rows count once: there are no weights.
    num_steps
        Steps kept, at least 2, of MCMC after its warmup; other algorithms take their own ``max_steps`` where
        they have them.
    num_chains
        Chains a simulation, whose draws are pooled.
    false_alarm
        Chance that a calibrated algorithm has any quantity rejected.
    key
        Seed, or a JAX random key.
    progress
        Show a progress bar, if on a terminal.

    Returns
    -------
    Calibration
        Print it, ``plot()`` it.

    Raises
    ------
    BadData
        Numbers out of range, weighted rows, or a stream.
    Incompatible
        When the algorithm does not fit the model or was made for another, or there is nothing to rank.
    NonFinite
        When prior draws or posterior draws overflow.

    References
    ----------
    Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts, Betancourt, Simpson,
    Vehtari and Gelman, 2018); Simulation-Based Calibration Checking for Bayesian Computation: The Choice of
    Test Quantities Shapes Sensitivity (Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman and Vehtari, 2023).
    """
    started = time.perf_counter()
    check_whole("num_simulations", num_simulations, 2)
    check_whole("num_steps", num_steps, 2)
    check_whole("num_chains", num_chains, 1)
    if not 0 < false_alarm < 1:
        raise BadData(f"false_alarm is {false_alarm!r}; expected a number between 0 and 1, such as 0.01.")
    if not callable(algorithm):
        raise Incompatible(
            f"algorithm is {algorithm!r}; give what makes one of a model: a class such as NUTS, or "
            "lambda m: NUTS(m, num_warmup=200)."
        )
    made = algorithm(model)
    blank = _blank(num_rows, num_columns) if data is None else _whole(data, model)
    _check(made, model, blank, num_chains)

    keys = jax.random.split(as_key(key), num_simulations)
    size = min(num_simulations, AT_ONCE)
    run = _compiled(made, model, num_chains, _steps(made, num_steps))
    parts = []
    with Bar(f"calibrate {program_name(made)}", num_simulations, progress) as bar:
        for first in range(0, num_simulations, size):
            begin = time.perf_counter()
            some = keys[jnp.minimum(jnp.arange(first, first + size), num_simulations - 1)]  # the last call is padded
            parts.append(jax.tree.map(np.asarray, run(some, blank)))
            bar.update(min(first + size, num_simulations), "", size / (time.perf_counter() - begin))
    truth, draws, markov = (
        {n: np.concatenate([p[i][n] for p in parts])[:num_simulations] for n in parts[0][i]} for i in range(3)
    )
    names, truth, size_of = _scalars(truth, 1)
    _, draws, _ = _scalars(draws, 3)  # (simulation, chain, draw, quantity)
    _check_finite(names, truth, "drawn from the prior")
    _check_finite(names, draws, "of the algorithm's draws")
    moving = truth.std(0) > ROUNDING * size_of
    new = [i for i in np.flatnonzero(moving).tolist() if not _repeated(truth, i)]
    if not new:
        raise Incompatible(f"the prior of {program_name(model)} moves none of {list(names)}: there is nothing to rank.")
    names, truth, draws = tuple(names[i] for i in new), truth[:, new], draws[..., new]
    kept = _kept(draws) if markov else np.full(num_simulations, draws.shape[1] * draws.shape[2])
    ranks = _ranks(truth, draws, kept, np.random.default_rng(0))
    title = f"{type(made).__name__}({program_name(model)})"
    return Calibration(title, names, ranks, kept, false_alarm, time.perf_counter() - started)


def _blank(num_rows: int, num_columns: int | None) -> Batch:
    check_whole("num_rows", num_rows, 1)
    if num_columns is not None:
        check_whole("num_columns", num_columns, 1)
    shape = (num_rows,) if num_columns is None else (num_rows, num_columns)
    return Rows({"x": np.zeros(shape, np.float32)}).whole()


def _whole(data: Any, model: Program) -> Batch:
    source = as_data(data, model)
    if not isinstance(source, Rows):
        raise BadData("data is a stream; expected arrays, whose shapes the simulated data take.")
    if WEIGHT in source.arrays:
        raise BadData(
            f"data has {WEIGHT!r}, and rows are simulated once each, so that under weights the posterior is another "
            "than the ranks are tested against. Leave it out."
        )
    return source.whole()


def _check(made: Any, model: Program, blank: Batch, num_chains: int) -> None:
    """Refuse what cannot be simulated or ranked, before compiling."""
    missing = [n for n in ("init", "step", "finish", "engine") if not hasattr(made, n)]
    if missing or made.engine != "numpyro":
        raise Incompatible(f"{made!r} is not an algorithm for NumPyro programs, which calibration needs.")
    theirs = getattr(made, "model", model)
    if model not in (theirs, getattr(theirs, "model", theirs)):  # or one that has other steps for the same program
        raise Incompatible(
            f"{made!r} is made for {program_name(theirs)}, and data are simulated from {program_name(model)}: use the "
            "argument of the function, as in lambda m: NUTS(m)."
        )
    if num_chains < getattr(made, "min_chains", 1):
        raise Incompatible(f"{type(made).__name__} learns from its chains together: give num_chains={made.min_chains}.")
    parts = anatomy(bind(model, blank))
    unknown = sorted(set(parts.observed) - set(blank.data))
    if unknown or not parts.observed:
        raise Incompatible(
            f"the model observes {sorted(parts.observed)} and the data are named {sorted(blank.data)}: each observed "
            "site must be named like the data it observes, so that simulated data can take their place."
        )
    if not set(parts.latent) - parts.local:
        raise Incompatible("the model has no global latents to rank: calibration draws them from their prior.")
    if hasattr(made, "check"):
        made.check(_simulate(model, jax.random.key(0), blank)[1])


def _steps(made: Any, num_steps: int) -> tuple[int, int]:
    """Steps in all, and how many of them are warmup."""
    if hasattr(made, "num_warmup"):
        return made.num_warmup + num_steps, made.num_warmup
    return getattr(made, "max_steps", num_steps), 0


@lru_cache(maxsize=8)
def _compiled(made: Any, model: Program, num_chains: int, steps: tuple[int, int]) -> Any:
    """Simulations for several keys: the truth's quantities, the draws', and ``diverging`` of MCMC.

    What is mapped over simulations stands inside each loop, not around it: a step with float64 parts
    (``jax.enable_x64``) is then batched where they are traced.
    """
    total, warmup = steps
    init = jax.vmap(vectorised(made.init, num_chains, (0, None)))
    step = jax.vmap(vectorised(made.step, num_chains, (0, 0, None)))
    finish = jax.vmap(jax.vmap(made.finish, in_axes=(0, 0, 0, None)))
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))

    def chains(keys: Array) -> Array:
        return jax.vmap(lambda key: jax.random.split(key, num_chains))(keys) if num_chains > 1 else keys

    def run(keys: Array, blank: Batch) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
        key_data, key_init, key_steps, key_finish, key_density = (fold(keys, i) for i in range(5))
        values, batch = jax.vmap(lambda key: _simulate(model, key, blank))(key_data)

        def advance(state: Any, i: Array) -> tuple[Any, Any]:
            state, record = step(chains(fold(key_steps, i)), state, batch)
            return state, dict(record.draw)

        state, records = lax.scan(advance, init(chains(key_init), batch), jnp.arange(total))
        if num_chains == 1:
            state = jax.tree.map(lambda v: jnp.expand_dims(v, 1), state)
            records = {n: jnp.expand_dims(v, 2) for n, v in records.items()}
        records = {n: jnp.moveaxis(v[warmup:], 0, 2) for n, v in records.items()}  # (simulation, chain, draw, ...)
        keys_finish = jax.vmap(lambda key: jax.random.split(key, num_chains))(key_finish)
        found = finish(keys_finish, state, records, batch)
        known = {n: v for n, v in found.posterior.items() if n in values}
        shape = next((v.shape[:3] for v in known.values()), (len(keys), 1, 1))
        if shape[2] < 2:
            raise Incompatible(
                f"{type(made).__name__} gives no draws of the globals, only a point estimate: there is nothing to rank "
                "the truth among. Use NUTS, Gibbs, or a guide that samples them."
            )

        def quantities(values: dict[str, Array]) -> dict[str, Array]:
            return jax.vmap(lambda batch, key, values: _quantities(model, batch, key, values))(
                batch, key_density, values
            )

        flat = {n: jnp.moveaxis(v.reshape(len(keys), -1, *v.shape[3:]), 1, 0) for n, v in known.items()}
        drawn = soft_vmap(quantities, flat, chunk_size=16)
        drawn = {n: jnp.moveaxis(v, 0, 1).reshape(*shape, *v.shape[2:]) for n, v in drawn.items()}
        markov = {n: v for n, v in found.sample_stats.items() if n == "diverging"}
        return quantities({n: values[n] for n in known}), drawn, markov

    return jit(run)


def _simulate(model: Program, key: Array, blank: Batch) -> tuple[dict[str, Array], Batch]:
    """Globals and deterministic sites from the prior, and rows of data under them."""
    tr = trace(handlers.uncondition(bind(model, blank)), key)
    parts = anatomy(bind(model, blank))
    data = dict(blank.data)
    for name in parts.observed:
        value, mask = tr[name]["value"], blank.data.get(f"{name}{MASK}")
        value = value.astype(jnp.promote_types(value.dtype, data[name].dtype))  # a real number stays one
        data[name] = value if mask is None else jnp.where(mask, value, 0)
    names = [n for n in (*parts.latent, *parts.deterministic) if n not in parts.local]
    return {n: tr[n]["value"] for n in names}, Batch(data, blank.rows, blank.num_data)


def _quantities(model: Program, batch: Batch, key: Array, values: dict[str, Array]) -> dict[str, Array]:
    """What is ranked, of one draw of the globals."""
    parts = anatomy(bind(target(model), batch))
    latent = {n: v for n, v in values.items() if n in parts.latent}
    invariants = getattr(model, "invariants", None)
    if invariants is None:
        found = latent
    else:
        found = dict(invariants(**{n: v for n, v in values.items() if takes(invariants, n)}))
    if parts.plate is not None and has_marginal(model, batch):
        found = found | {LIKELIHOOD: marginal_density(model, batch, key, latent).rows.sum()}
    return found


def _scalars(arrays: dict[str, np.ndarray], leading: int) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Arrays side by side along a last axis of scalars, their names, and the largest size in the array of each."""
    names, columns, sizes = [], [], []
    for name, value in sorted(arrays.items(), key=lambda item: item[0] == LIKELIHOOD):  # it comes last
        for index in np.ndindex(*value.shape[leading:]):
            names.append(name + (f"[{', '.join(map(str, index))}]" if index else ""))
        columns.append(np.asarray(value, np.float64).reshape(*value.shape[:leading], -1))
        sizes.append(np.full(columns[-1].shape[-1], np.abs(columns[-1]).max(initial=0)))
    return tuple(names), np.concatenate(columns, axis=-1), np.concatenate(sizes)


def _check_finite(names: tuple[str, ...], values: np.ndarray, what: str) -> None:
    bad = ~np.isfinite(values).reshape(len(values), -1, len(names)).all(1)  # (simulation, quantity)
    if bad.any():
        where, failed = names[int(bad.any(0).argmax())], np.count_nonzero(bad.sum(1))
        raise NonFinite(
            f"{where!r} {what} is not finite in {failed} of {len(values)} simulations: give priors with lighter tails "
            "or another scale, so that what they imply stays within float32."
        )


def _repeated(truth: np.ndarray, column: int) -> bool:
    """Whether an earlier column holds the same numbers up to rounding: the other half of a symmetric matrix."""
    difference = abs(truth[:, :column] - truth[:, [column]]).max(0)
    return bool((difference < 1e-4 * truth[:, column].std()).any())


def _kept(draws: Float[np.ndarray, "simulation chain draw quantity"]) -> Int[np.ndarray, " simulation"]:
    """How many draws are worth ranking among: half the smallest effective sample size, evenly from all chains.

    At that distance what is left of the autocorrelation, about exp(-4), does not show in the ranks.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        ess = effective_sample_size(np.moveaxis(draws, 0, 2))  # (simulation, quantity)
    ess = np.nan_to_num(np.asarray(ess), nan=1.0).min(1)  # a chain that does not move counts once
    chains, count = draws.shape[1:3]
    return chains * np.clip(ess // (2 * chains), 1, max(1, count // 2)).astype(int)


def _ranks(truth: np.ndarray, draws: np.ndarray, kept: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(draws below the truth + U (ties + 1)) / (L + 1), exactly uniform for every L."""
    ranks = np.empty_like(truth)
    chains, count = draws.shape[1:3]
    for s, total in enumerate(kept):
        index = np.linspace(count - 1, 0, total // chains).round().astype(int)
        some = draws[s][:, index].reshape(-1, truth.shape[1])
        below, ties = (some < truth[s]).sum(0), (some == truth[s]).sum(0)
        ranks[s] = (below + rng.uniform(size=truth.shape[1]) * (ties + 1)) / (len(some) + 1)
    return ranks


__all__ = ["calibrate"]
