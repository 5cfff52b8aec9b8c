"""Expectation-maximisation: exact local posterior, then the parameters that maximise under it.

    log p(x | theta) = ELBO(q, theta) + KL(q || p(z | x, theta)).

The E-step takes q = p(z | x, theta), which closes the gap; the M-step raises the ELBO in theta. So no
step lowers the log likelihood (beyond rounding, and what a program's regularisation takes).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from inference.check import check, program_name
from inference.errors import Incompatible
from inference.protocols import Batch, Conjugate, Draws, Program, Record


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
        Parameters to start from, by site name, in place of ``model.initial``: every chain starts there.

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
    initial: Mapping[str, ArrayLike] | None = None

    engine: ClassVar[str] = "numpyro"

    def __post_init__(self) -> None:
        if not self.tolerance >= 0:
            raise ValueError(f"EM: tolerance is {self.tolerance!r}; give zero or a positive number of nats per row.")
        if self.max_steps < 1:
            raise ValueError(f"EM: max_steps is {self.max_steps!r}; give at least 1.")
        _check_program(self.model)
        if self.initial is not None:
            object.__setattr__(self, "initial", Start(self.initial))

    @property
    def guide(self) -> Program:
        """The exact posterior of the local latents given the parameters."""
        return self.model.posterior

    def check(self, batch: Batch) -> None:
        """Refuse minibatches, data that are not the program's, and a given start of other shapes."""
        _check_whole(batch)
        check(self.model, data=batch)
        expected = jax.eval_shape(lambda key: self.model.initial(key, **batch.data), jax.random.key(0))
        if self.initial is None:
            return
        want = {name: tuple(value.shape) for name, value in expected.items()}
        got = {name: np.shape(value) for name, value in self.initial.items()}
        if want != got:
            raise Incompatible(f"EM's initial has shapes {got}; {program_name(self.model)} on these rows takes {want}.")

    def init(self, key: Array, batch: Batch) -> dict[str, Any]:
        """The starting parameters (float64), with no bound yet."""
        _check_whole(batch)
        start = self.model.initial(key, **batch.data) if self.initial is None else self.initial
        with jax.enable_x64(True):
            return {
                "params": {name: jnp.asarray(value, jnp.float64) for name, value in start.items()},
                "bound": jnp.asarray(-jnp.inf, jnp.float64),
                "done": jnp.asarray(False),
            }

    def step(self, key: Array, state: dict[str, Any], batch: Batch) -> tuple[dict[str, Any], Record]:
        """An E-step and an M-step. The record's bound, in nats per row, is of the parameters before it."""
        log_likelihood, statistics = self.model.e_step(state["params"], **batch.data)
        params = self.model.m_step(statistics)
        with jax.enable_x64(True):
            bound = log_likelihood / len(batch)
            # Rounding alone can make a gain negative: a tolerance of zero is not a test.
            done = state["done"] | ((bound - state["bound"] < self.tolerance) & (self.tolerance > 0))
            params = jax.tree.map(lambda old, new: jnp.where(state["done"], old, new), state["params"], params)
            metrics = {"bound": bound.astype(jnp.float32)}
        return {"params": params, "bound": bound, "done": done}, Record(metrics, done=done)

    def evaluate(self, key: Array, state: dict[str, Any], batch: Batch) -> Array:
        """Mean log likelihood of these rows in nats, without a step."""
        log_likelihood, _ = self.model.e_step(state["params"], **batch.data)
        return log_likelihood.astype(jnp.float32) / len(batch)

    def params(self, state: dict[str, Any], batch: Batch) -> dict[str, Array]:
        """Parameters by site name, float32."""
        return {name: value.astype(jnp.float32) for name, value in state["params"].items()}

    def finish(self, key: Array, state: dict[str, Any], records: Mapping[str, Array], batch: Batch) -> Draws:
        """The point estimate, also as a single draw, with ``lp`` the log likelihood of these rows in nats.

        The draw has a value for every global site of a program that offers ``site_values``.
        """
        params = self.params(state, batch)
        site_values = getattr(self.model, "site_values", lambda params: {})
        draw = site_values(state["params"]) | params
        lp = self.evaluate(key, state, batch) * len(batch)
        return Draws(params, {name: value[None] for name, value in draw.items()}, {"lp": lp[None]})


def _check_whole(batch: Batch) -> None:
    if len(batch) < batch.num_data:
        raise Incompatible(
            f"EM needs all rows in every step, and the batch has {len(batch)} of {batch.num_data}: use "
            "batch_size=None, or SVI for minibatches."
        )


def _check_program(model: Any) -> None:
    name = program_name(model)
    missing = [part for part in ("initial", "e_step", "m_step", "posterior") if not hasattr(model, part)]
    if missing:
        raise Incompatible(
            f"EM needs a program with exact steps, and {name} has no {', '.join(missing)}: use "
            "SVI(model, guide, ELBO(), optimizer), or NUTS(model). GaussianMixture, PPCA and FactorAnalysis have them."
        )
    ppl = getattr(model, "ppl", None)
    if getattr(ppl, "__name__", "numpyro") == "pyro":
        raise Incompatible(
            f"EM runs on NumPyro, and this {name} has ppl=pyro: leave ppl out, or use PyroSVI for Pyro programs."
        )


__all__ = ["EM", "Start"]
