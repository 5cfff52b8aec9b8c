"""What ``fit`` returns: parameters, draws and history, and the questions a user asks of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from inference.check import check_support
from inference.compiled import jit
from inference.data import Rows, as_data, row_shapes
from inference.errors import BadData, Incompatible, NonFinite, check_whole
from inference.estimate import Estimate
from inference.programs import anatomy, bind, row_params
from inference.protocols import Batch, Draws

MAX_DRAWS = 200  # draws of the globals that predictive averages use, evenly spaced


@dataclass(frozen=True, eq=False)
class Fit:
    """The result of a run.

    Attributes
    ----------
    algorithm
        What was run; it holds the model and, if there is one, the guide.
    params
        Point estimates of the best chain by site name (arrays, or pytrees for networks).
    draws
        Of all chains: ``params`` with a leading chain axis, ``posterior`` and ``sample_stats`` with
        (chain, draw) axes. Restarts come best first.
    history
        ``bound`` (nats per row) or ``lp``, arrays ``(chain, step)``; ``validation`` if there was one.
    info
        Seed, steps, seconds, mode of execution, whether a signal ended the run.
    data
        The rows it was fitted to, if they are in memory.
    shapes, num_data
        Shapes and dtypes of a batch, and how many rows there were in all.
    """

    algorithm: Any
    params: dict[str, Any]
    draws: Draws
    history: dict[str, np.ndarray]
    info: dict[str, Any]
    data: Rows | None
    shapes: dict[str, jax.ShapeDtypeStruct]
    num_data: int

    @property
    def example(self) -> Batch:
        """A batch of blank rows, shaped like those of the run."""
        data = {n: jnp.zeros(v.shape, v.dtype) for n, v in self.shapes.items()}
        return Batch(data, jnp.arange(len(next(iter(data.values()))), dtype=jnp.int32), self.num_data)

    @property
    def num_chains(self) -> int:
        return next((v.shape[0] for v in self.history.values() if v.ndim == 2), 1)

    @property
    def model(self) -> Any:
        return self.algorithm.model

    @property
    def guide(self) -> Any:
        return getattr(self.algorithm, "guide", None)

    @property
    def engine(self) -> Any:
        """What it is asked with (:class:`~inference.protocols.Answers`): the algorithm's own, or those of its PPL."""
        if hasattr(self.algorithm, "answers"):
            return self.algorithm.answers
        if self.algorithm.engine == "pyro":
            from inference import pyro_posterior

            return pyro_posterior.on(self.algorithm.device)
        from inference import posterior

        return posterior

    def globals(self, count: int = MAX_DRAWS, seed: int | None = None) -> dict[str, Array]:
        """Draws of the global latents, chains joined, evenly spaced: arrays ``(count, *event)``.

        With a seed, ``count`` draws at random with replacement. Without global latents, empty.
        """
        posterior = self.draws.posterior
        if not posterior:
            return {}
        chains, draws = next(iter(posterior.values())).shape[:2]
        if kind_of(self) != "mcmc":
            chains = 1  # restarts are not one posterior: the best alone
        total = chains * draws
        if seed is None:
            index = np.unique(np.linspace(0, total - 1, min(count, total)).astype(int))
        else:
            index = np.random.default_rng(seed).integers(0, total, count)
        return {
            n: jnp.asarray(np.asarray(v[:chains]).reshape(total, *v.shape[2:])[index]) for n, v in posterior.items()
        }

    def log_likelihood(self, data: Any, num_particles: int = 1000, *, key: int = 0) -> Estimate:
        """log p(row) with local latents integrated out and global ones averaged over their posterior.

        Parameters
        ----------
        data
            Rows as for ``fit``.
        num_particles
            Importance draws a row, where the locals cannot be integrated exactly. Streamed: memory
            does not grow with it.
        key
            Seed.

        Returns
        -------
        Estimate
            Nats per row, with the Monte-Carlo error; of an energy program learned by contrastive divergence a
            :class:`~inference.bracket.Bracket`, since its log Z is estimated.

        Raises
        ------
        Incompatible
            When the locals can be neither integrated nor sampled from a guide.
        BadData
            Rows outside the likelihood's support.
        """
        check_whole("num_particles", num_particles)
        rows = self._rows(data)
        found = self.engine.log_likelihood(self, rows, num_particles, key)
        if self.algorithm.engine == "numpyro" and not np.isfinite(found.rows).all():
            for batch in rows.batches(8192):  # rows outside the likelihood's support, most likely
                check_support(self.model, batch)
        return found

    def _batch_rows(self, rows: Rows) -> int:
        return min(rows.num_data, 1024)

    def _rows(self, data: Any) -> Rows:
        """Rows to ask about, each once: weights say how much a row counts in a fit, and play no part."""
        rows = as_data(data, self.model, self.guide)
        if not isinstance(rows, Rows):
            raise BadData("expected arrays, not a stream.")
        rows = rows.unweighted()
        got, expected = row_shapes(rows.arrays), row_shapes(self.shapes)
        if got != expected:
            raise BadData(f"the data has rows of shape {got}; the fit was made on rows of shape {expected}.")
        self._check_new_rows(rows)
        return rows

    def _check_new_rows(self, rows: Rows) -> None:
        if self.data is not None and rows.fingerprint() == self.data.unweighted().fingerprint():
            return
        per_row = rows_of_their_own(self.algorithm, self.example)
        if per_row:
            raise Incompatible(
                f"the guide has parameters of its own for every training row ({per_row}) and none for these "
                "rows. Use an amortized guide, or ask about the training data."
            )
        if self.guide is not None and self.algorithm.engine == "numpyro":
            # A run on rows that can be seen, of which compiled code would refuse none (classes out of range).
            anatomy(bind(self.model, rows.batch(slice(0, self._batch_rows(rows)))))

    def sample_posterior(self, data: Any, num_samples: int = 1, *, key: int = 0) -> dict[str, np.ndarray]:
        """Draws of the latents of these rows, and of the globals they were drawn under.

        Returns
        -------
        dict
            Local sites ``(sample, row, *event)`` and global sites ``(sample, *event)``.
        """
        check_whole("num_samples", num_samples)
        rows = self._rows(data)
        draws = self.globals(num_samples, seed=key)
        parts = []
        for i, batch in enumerate(rows.batches(self._batch_rows(rows))):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(key), i), num_samples)
            parts.append(self.engine.local_draws(self.model, self.guide, self.params, draws, keys, batch))
        local = {n: np.concatenate([np.asarray(p[n]) for p in parts], axis=1) for n in parts[0] if n not in draws}
        return {n: np.asarray(v) for n, v in draws.items()} | local

    def generate(
        self,
        num_samples: int,
        *,
        key: int = 0,
        expected: bool = False,
        given: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> dict[str, np.ndarray]:
        """New rows from the fitted model, latents from their prior, each under its own draw of the globals.

        Parameters
        ----------
        num_samples
            How many rows.
        key
            Seed.
        expected
            Return the likelihood's mean given the latents (a VAE's image) in place of a draw.
        given
            Inputs of the model, or observed sites, to hold at a value, one for all rows or one a row: ``{"y": 3}``
            for a class. It is not Bayes' rule: what is drawn before a site is not drawn given it.
        options
            Of programs that are drawn from in more than one way: a diffusion's ``sampler``.

        Returns
        -------
        dict
            Observed sites, ``(num_samples, *event)``.

        Raises
        ------
        Incompatible
            When the model has inputs that are not given, or inputs are given to one with global latents.
        BadData
            When there is nothing of a given name, or its values are of another shape.
        """
        check_whole("num_samples", num_samples)
        return self.engine.generate(self, num_samples, key, expected=expected, given=given or {}, **options)

    def complete(self, data: Any, observed: Any, *, num_sweeps: int = 1000, key: int = 0) -> dict[str, np.ndarray]:
        """Rows with the entries that are not observed drawn given those that are: clamped sampling.

        Parameters
        ----------
        data
            Rows as for ``fit``; a chain of an energy program starts at each.
        observed
            Boolean mask of the entries that stay, of the shape of the rows or of one row; none of them, all False,
            draws new rows. An autoregressive program draws exactly, and needs those that stay to come first in its
            order (of an image row by row, the pixels above).
        num_sweeps
            Sweeps of the chains of an energy program.
        key
            Seed.

        Returns
        -------
        dict
            ``x`` completed, ``(row, *event)``.

        Raises
        ------
        Incompatible
            When the program has no energy, and with it no conditionals to clamp, nor draws its rows entry by entry;
            when its parameters were drawn.
        BadData
            When ``observed`` does not fit the rows, or comes too late in the order of an autoregressive program.
        """
        from inference.completion import complete

        return complete(self, self._rows(data), observed, num_sweeps, key)

    def predict(self, data: Any, num_samples: int = 100, *, key: int = 0) -> dict[str, np.ndarray]:
        """Observed sites drawn anew at these rows' inputs, latents from the posterior of the globals.

        Returns
        -------
        dict
            Observed sites, ``(num_samples, row, *event)``.
        """
        return self._replicate(data, num_samples, key, None, expected=False)

    def reconstruct(self, data: Any, *, key: int = 0, num_samples: int = 10) -> dict[str, np.ndarray]:
        """The likelihood's mean averaged over posterior draws of these rows' latents: ``(row, *event)``."""
        guide = self.guide
        out = self._replicate(data, num_samples, key, guide if guide is not None else self._no_guide, expected=True)
        return {n: v.mean(axis=0) for n, v in out.items()}

    @staticmethod
    def _no_guide(**data: Any) -> None:
        """A guide that leaves every latent to be summed out."""

    def _replicate(self, data: Any, count: int, key: int, guide: Any, *, expected: bool) -> dict[str, np.ndarray]:
        check_whole("num_samples", count)
        rows = self._rows(data)
        draws = self.globals(count, seed=key)
        parts = []
        for i, batch in enumerate(rows.batches(self._batch_rows(rows))):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(key), i), count)
            part = self.engine.predict(self.model, guide, self.params, draws, keys, batch, expected=expected)
            parts.append({n: np.asarray(v) for n, v in part.items()})
        return {n: np.concatenate([p[n] for p in parts], axis=1) for n in parts[0]}

    def aic(self, data: Any) -> float:
        """Akaike's criterion of a fit by EM; see :func:`inference.information_criteria.aic`."""
        from inference.information_criteria import aic

        return aic(self, data)

    def bic(self, data: Any) -> float:
        """The Bayesian information criterion of a fit by EM; see :func:`inference.information_criteria.bic`."""
        from inference.information_criteria import bic

        return bic(self, data)

    def to_arviz(self, data: Any = None, results: Any = None) -> Any:
        """As an ArviZ ``InferenceData``; see :func:`inference.to_arviz.to_arviz`."""
        from inference.to_arviz import to_arviz

        return to_arviz(self, data, results)

    def save(self, path: str | Path) -> None:
        """Write parameters, draws and history to one safetensors file, atomically."""
        from inference.fit_file import save

        save(self, path)

    @classmethod
    def load(cls, path: str | Path, algorithm: Any) -> Fit:
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        path
            The file; when it is damaged the one before it, ``path.previous``, is read with a warning.
        algorithm
            An algorithm equal to the one that was fitted; it says how arrays become parameters.

        Raises
        ------
        FileNotFoundError, CorruptFile
            No such file; truncated, altered, or written by another algorithm.
        """
        from inference.fit_file import load

        return load(path, algorithm)


def kind_of(fit: Fit) -> Literal["mcmc", "guide", "point"]:
    """What its draws are: of the posterior, of a guide, or none but a point estimate."""
    if "diverging" in fit.draws.sample_stats:
        return "mcmc"
    return "guide" if "log_weight" in fit.draws.sample_stats else "point"


def rows_of_their_own(algorithm: Any, batch: Batch) -> list[str]:
    """Parameters of the algorithm's guide that have a value for every training row."""
    guide = getattr(algorithm, "guide", None)
    if guide is None:
        return []
    if algorithm.engine == "pyro":
        from inference.pyro_anatomy import row_params as torch_row_params

        return torch_row_params(algorithm.model, guide, batch, algorithm.device)
    return row_params(algorithm.model, guide, batch)


def final_bound(bound: np.ndarray) -> np.ndarray:
    """Each chain's bound at the end: the mean of the last twentieth of its steps, at most 50 (SVI's are noisy)."""
    return bound[:, -min(50, max(1, bound.shape[1] // 20)) :].mean(axis=1)


@lru_cache(maxsize=32)
def _finish(algorithm: Any) -> Any:
    return jit(jax.vmap(algorithm.finish, in_axes=(0, 0, 0, None)))


def assemble(
    algorithm: Any,
    state: Any,
    history: dict[str, np.ndarray],
    records: dict[str, np.ndarray],
    source: Any,
    example: Batch,
    key: Array,
    num_chains: int,
    info: dict[str, Any],
    *,
    best_by_validation: bool = False,
) -> Fit:
    """Let the algorithm finish on all rows (a batch, if they are not in memory), and order restarts."""
    resident = isinstance(source, Rows) and not source.on_host
    batch = source.whole() if resident else example
    if algorithm.engine == "pyro":
        draws = algorithm.finish(key, state, records, batch)
    else:
        stacked = state if num_chains > 1 else jax.tree.map(lambda v: v[None], state)
        draws = _finish(algorithm)(jax.random.split(key, num_chains), stacked, records, batch)
        draws = Draws(draws.params, *({n: np.asarray(v) for n, v in group.items()} for group in draws[1:]))
    if "diverging" not in draws.sample_stats and num_chains > 1 and "bound" in history:
        # Restarts come best first: by held-out rows if they chose the state, else by the bound at the end.
        score = history["validation"].max(axis=1) if best_by_validation else final_bound(history["bound"])
        order = np.argsort(-score, kind="stable")
        draws = jax.tree.map(lambda v: v[order], draws)
        history = {n: v[order] if v.ndim == 2 else v for n, v in history.items()}
    params = jax.tree.map(lambda v: v[0], draws.params)
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not np.isfinite(np.asarray(leaf)).all():
            raise NonFinite(
                f"parameter {jax.tree_util.keystr(path)} is not finite in float32: rescale the data to about unit size."
            )
    asked = row_shapes(example.data)
    shapes = {n: jax.ShapeDtypeStruct(v.shape, v.dtype) for n, v in example.data.items() if n in asked}
    return Fit(algorithm, params, draws, history, info, source if resident else None, shapes, example.num_data)
