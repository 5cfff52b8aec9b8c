"""Expectation-maximisation: exact local posterior, then the parameters that maximise under it.

    log p(x | theta) = ELBO(q, theta) + KL(q || p(z | x, theta)).

The E-step takes q = p(z | x, theta), which closes the gap; the M-step raises the ELBO in theta. So no
step lowers the log likelihood (beyond rounding, and what a program's regularisation takes).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from inference.check import check, program_name
from inference.compiled import jit
from inference.errors import Incompatible, check_whole
from inference.protocols import Batch, Conjugate, Draws, Program, Record

Params = dict[str, Array]
Initial = Callable[..., Mapping[str, ArrayLike]]  # (model, key, **data) -> parameters


class Start(Mapping[str, np.ndarray]):
    """Arrays by name that do not change, equal when their names, dtypes, shapes and bytes are.

    Parameters
    ----------
    arrays
        Parameters by site name; they are copied.
    """

    def __init__(self, arrays: Mapping[str, ArrayLike]):
        self._arrays = {name: np.array(arrays[name]) for name in sorted(arrays)}
        digest = hashlib.sha256()
        for name, value in self._arrays.items():
            value.flags.writeable = False
            digest.update(f"{name}|{value.dtype.str}|{value.shape}|".encode() + value.tobytes())
        self._digest = digest.hexdigest()

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Start) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def __repr__(self) -> str:
        arrays = ", ".join(f"{name}: {value.dtype}{list(value.shape)}" for name, value in self._arrays.items())
        return f"Start({arrays}; sha256 {self._digest[:16]})"


@dataclass(frozen=True)
class EM:
    """Maximum likelihood by expectation-maximisation, until the bound stops rising.

    Parameters
    ----------
    model
        A NumPyro program with ``initial``, ``e_step``, ``m_step`` and ``posterior``
        (:class:`~inference.protocols.Conjugate`), such as a Gaussian mixture or probabilistic PCA.
    tolerance
        A chain has converged when a step raises the mean log likelihood by less, in nats per row.
        Converged chains stay as they are while others go on. With zero none stops before the last step.
    max_steps
        Steps at most, unless ``fit`` is given ``num_steps``.
    initial
        Where to start, in place of ``model.initial``: parameters by site name, for every chain the same
        (those of another fit, ``run.params``, are a warm start); or a function ``(model, key, **data)`` to
        such parameters, as :mod:`ppl_models.gaussian_mixture` has four of.

    Raises
    ------
    Incompatible
        When the program does not fit EM, or ``initial`` does not fit the program.

    References
    ----------
    Maximum Likelihood from Incomplete Data via the EM Algorithm (Dempster, Laird and Rubin, 1977).
    """

    model: Conjugate
    tolerance: float = 1e-6
    max_steps: int = 1000
    initial: Mapping[str, ArrayLike] | Initial | None = None

    engine: ClassVar[str] = "numpyro"
    uses_prior: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (isinstance(self.tolerance, Real) and float(self.tolerance) >= 0):
            raise ValueError(f"EM: tolerance is {self.tolerance!r}; give zero or a positive number of nats per row.")
        check_whole("EM: max_steps", self.max_steps)
        check_program(self.model, "EM")
        object.__setattr__(self, "initial", frozen(self.initial))

    @property
    def guide(self) -> Program:
        """The exact posterior of the local latents given the parameters."""
        return self.model.posterior

    def check(self, batch: Batch) -> None:
        """Refuse minibatches, data that are not the program's, and a given start of other shapes."""
        _check_whole(batch)
        check(self.model, data=batch)
        check_start(self.model, self.initial, batch, "EM")

    def init(self, key: Array, batch: Batch) -> dict[str, Any]:
        """The starting parameters (float64), with no bound yet."""
        _check_whole(batch)
        params = start(self.model, self.initial, key, batch)
        with jax.enable_x64(True):
            return {
                "params": params,
                "bound": jnp.asarray(-jnp.inf, jnp.float64),
                "done": jnp.asarray(False),
            }

    def step(self, key: Array, state: dict[str, Any], batch: Batch) -> tuple[dict[str, Any], Record]:
        """An E-step and an M-step. The record's bound, in nats per row, is of the parameters before it."""
        log_likelihood, statistics = self.model.e_step(state["params"], **batch.data)
        params = self.model.m_step(statistics)
        with jax.enable_x64(True):
            bound = log_likelihood / batch.weight
            # Rounding alone can make a gain negative: a tolerance of zero is not a test.
            done = state["done"] | ((bound - state["bound"] < self.tolerance) & (self.tolerance > 0))
            params = jax.tree.map(lambda old, new: jnp.where(state["done"], old, new), state["params"], params)
            metrics = {"bound": bound.astype(jnp.float32)}
        return {"params": params, "bound": bound, "done": done}, Record(metrics, done=done)

    def evaluate(self, key: Array, state: dict[str, Any], batch: Batch) -> Array:
        """Mean log likelihood of these rows in nats, without a step."""
        return mean_log_likelihood(self.model, state["params"], batch)

    def params(self, state: dict[str, Any], batch: Batch) -> dict[str, Array]:
        """Parameters by site name, float32."""
        return single_precision(self.model, state["params"])

    def finish(self, key: Array, state: dict[str, Any], records: Mapping[str, Array], batch: Batch) -> Draws:
        """The point estimate, also as a single draw, with ``lp`` the log likelihood of these rows in nats.

        The draw has a value for every global site of a program that offers ``site_values``.
        """
        return point_estimate(self.model, state["params"], batch)

    def explain(self, key: Array, state: dict[str, Any], batch: Batch) -> str:
        """Which parameters stop being finite, at this state or one or two steps on, for the error message."""
        step = jit(jax.vmap(self.step, (None, 0, None)) if state["done"].ndim else self.step)
        for _ in range(3):
            bad = [name for name, value in state["params"].items() if not np.isfinite(np.asarray(value)).all()]
            if bad:
                return (
                    f", where the parameters {bad} stop being finite: some covariance is singular. Give a mixture "
                    "fewer components or a larger reg_covar"
                )
            state, _ = step(key, state, batch)
        return ""


def frozen(initial: Mapping[str, ArrayLike] | Initial | None) -> Mapping[str, ArrayLike] | Initial | None:
    """Parameters to start from as a value.

    Raises
    ------
    Incompatible
        When they are no finite arrays by name.
    """
    if initial is None or callable(initial):
        return initial
    if not isinstance(initial, Mapping):
        raise Incompatible(f"initial is a {type(initial).__name__}; expected parameters by site name, as run.params.")
    start = Start(initial)
    bad = [n for n, v in start.items() if v.dtype.kind not in "fiub" or not np.isfinite(v).all()]
    if bad:
        raise Incompatible(f"initial has values that are not finite numbers in {bad}; give others to start from.")
    return start


def start(model: Conjugate, initial: Mapping[str, ArrayLike] | Initial | None, key: Array, batch: Batch) -> Params:
    """Parameters to start from, float64."""
    if initial is None:
        params: Mapping[str, ArrayLike] = model.initial(key, **batch.data)
    else:
        params = initial(model, key, **batch.data) if callable(initial) else initial
    with jax.enable_x64(True):
        return {name: jnp.asarray(value, jnp.float64) for name, value in params.items()}


def check_start(
    model: Conjugate, initial: Mapping[str, ArrayLike] | Initial | None, batch: Batch, algorithm: str
) -> None:
    """Refuse data that are not the program's, and a start of other shapes than the program's own."""
    want, got = (_shapes(model, given, batch) for given in (None, initial))
    if want != got:
        raise Incompatible(f"{algorithm}'s initial has shapes {got}; {program_name(model)} on these rows takes {want}.")


def _shapes(model: Conjugate, initial: Any, batch: Batch) -> dict[str, tuple[int, ...]]:
    params = jax.eval_shape(lambda key: start(model, initial, key, batch), jax.random.key(0))
    return {name: tuple(value.shape) for name, value in params.items()}


def mean_log_likelihood(model: Conjugate, params: Params, batch: Batch) -> Array:
    """Of these rows, in nats, each counted as often as its weight says; float32."""
    log_likelihood, _ = model.e_step(params, **batch.data)
    with jax.enable_x64(True):
        return (log_likelihood / batch.weight).astype(jnp.float32)


def point_estimate(model: Conjugate, params: Params, batch: Batch) -> Draws:
    """Parameters as draws, with ``lp`` the log likelihood in nats of all rows, for which these may stand."""
    params = single_precision(model, params)
    site_values = getattr(model, "site_values", lambda params: {})
    lp = mean_log_likelihood(model, params, batch) * jnp.float32(batch.weight) * (batch.num_data / len(batch))
    return Draws(params, {n: v[None] for n, v in (site_values(params) | params).items()}, {"lp": lp[None]})


def single_precision(model: Conjugate, params: Params) -> Params:
    """Parameters as float32: by the model, where rounding could leave their space, else entry by entry."""
    rounded = getattr(model, "single_precision", None)
    return rounded(params) if rounded else {name: value.astype(jnp.float32) for name, value in params.items()}


def _check_whole(batch: Batch) -> None:
    if len(batch) < batch.num_data:
        raise Incompatible(
            f"EM needs all rows in every step, and the batch has {len(batch)} of {batch.num_data}: use "
            "batch_size=None, or StepwiseEM for minibatches."
        )


def check_program(model: Any, algorithm: str) -> None:
    """Refuse a program without exact steps, or of another engine."""
    name = program_name(model)
    missing = [part for part in ("initial", "e_step", "m_step", "posterior") if not hasattr(model, part)]
    if missing:
        raise Incompatible(
            f"{algorithm} needs a program with exact steps, and {name} has no {', '.join(missing)}: use "
            "SVI(model, guide, ELBO(), optimizer), or NUTS(model). GaussianMixture, PPCA and FactorAnalysis have them."
        )
    ppl = getattr(model, "ppl", None)
    if getattr(ppl, "__name__", "numpyro") == "pyro":
        raise Incompatible(
            f"{algorithm} runs on NumPyro, and this {name} has ppl=pyro: leave ppl out, or use PyroSVI for Pyro "
            "programs."
        )


__all__ = ["EM", "Start"]
