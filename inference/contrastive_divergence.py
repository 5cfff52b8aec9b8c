r"""Contrastive divergence: stochastic gradient of an energy program's likelihood, its expectation over short chains.

    grad log p(v) = -grad F(v) + E_model[grad F(v')],    F(v) = -log sum_h exp(-E(v, h)),

with v' from a few Gibbs sweeps: started at the batch (CD-k, biased), or where they stood after the last step
(persistent: PCD, which is stochastic maximum likelihood, and follows the machine as long as it moves slowly).
Hidden units are summed out in both terms.

Centring: the step is taken in the parameters of the machine whose couplings act on v - m and h - l, m and l moving
averages of the units' means over data, and carried back; the model is the same, but no longer do weights and biases
pull the same way, and flipping bits of the data changes nothing.

References
----------
Training Products of Experts by Minimizing Contrastive Divergence (Hinton, 2002).
Training Restricted Boltzmann Machines Using Approximations to the Likelihood Gradient (Tieleman, 2008).
How to Center Deep Boltzmann Machines (Melchior, Fischer and Wiskott, 2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike

from inference import energy_posterior
from inference.block_gibbs import BlockGibbs, Chains
from inference.check import check, program_name
from inference.em import frozen
from inference.errors import Incompatible, check_whole
from inference.protocols import Batch, Draws, Energy, MachineSampler, Record

SHOWN = 16  # rows of a batch whose reconstruction is recorded
FORGET = 0.01  # weight of a new batch in the average free energy of training rows
DEFAULT = optax.sgd(0.05)

Centre = tuple[Array, Array]  # mean visible and hidden units, m and l


@dataclass(frozen=True)
class ContrastiveDivergence:
    """Learn an energy program by the gradient over short Markov chains.

    Parameters
    ----------
    model
        An :class:`~inference.protocols.Energy` program, such as an RBM.
    k
        Sweeps of the chains a step.
    persistent
        Go on with the chains of the step before, in place of starting at the batch.
    num_particles
        Persistent chains; as many as rows in a batch by default.
    optimizer
        An optax transformation. It sees the gradient of minus the log likelihood per row; momentum is
        ``optax.sgd(rate, momentum=0.5)``, weight decay (of the couplings, not the biases)
        ``optax.chain(optax.add_decayed_weights(2e-4, mask=inference.couplings), optax.sgd(rate))``.
    centring
        Weight of a new batch in the moving averages that units are centred on; zero leaves the first batch's.
        None is the plain gradient.
    sampler
        :class:`~inference.block_gibbs.BlockGibbs` or :class:`~inference.tempering.Tempering` (persistent).
    initial
        Parameters to start from, by name, such as those of :func:`inference.greedy`; ``model.initial`` by default.

    Notes
    -----
    ``history`` holds ``reconstruction_error``, the mean square over units of a row less its mean after half a sweep
    each way (of 16 rows), and ``free_energy``, the mean over the batch in nats, without log Z; with Tempering also
    ``swap_rate``. With validation rows,
    ``validation`` is the average free energy of training rows less that of theirs, in nats per row: an estimate of
    mean log p(validation) - mean log p(train), about zero until the machine overfits, and then falling. It is no
    bound, so that ``early_stopping`` means nothing here.

    Raises
    ------
    ValueError
        A field out of range.
    Incompatible
        When the program has no energy, the optimizer is none of optax, the sampler none of machines, or ``initial``
        does not fit the program.
    """

    model: Energy
    k: int = 1
    persistent: bool = False
    num_particles: int | None = None
    optimizer: optax.GradientTransformation = DEFAULT
    centring: float | None = 0.01
    sampler: MachineSampler = BlockGibbs()
    initial: Mapping[str, ArrayLike] | None = None

    engine: ClassVar[str] = "numpyro"
    answers: ClassVar[Any] = energy_posterior
    uses_prior: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, value in (("k", self.k), ("num_particles", self.num_particles)):
            if value is not None or name == "k":
                check_whole(f"ContrastiveDivergence: {name}", value)
        if self.centring is not None and not (isinstance(self.centring, Real) and 0 <= float(self.centring) <= 1):
            raise ValueError(f"ContrastiveDivergence: centring is {self.centring!r}; expected 0 to 1, or None.")
        if not self.persistent and (self.num_particles is not None or not isinstance(self.sampler, BlockGibbs)):
            raise ValueError(
                "ContrastiveDivergence: num_particles and tempering are of persistent chains, and these start at "
                "every batch anew: give persistent=True, or leave them out."
            )
        missing = [n for n in ("initial", "energy", "free_energy", "shifted") if not hasattr(self.model, n)]
        if missing:
            raise Incompatible(
                f"ContrastiveDivergence needs an energy program, and {program_name(self.model)} has no "
                f"{', '.join(missing)}: RBM, GaussianRBM and BoltzmannMachine have them."
            )
        check_optimizer("ContrastiveDivergence", self.optimizer)
        if isinstance(self.sampler, type) or not all(hasattr(self.sampler, n) for n in ("start", "advance", "draws")):
            raise Incompatible(
                f"ContrastiveDivergence: sampler is {self.sampler!r}; give BlockGibbs() or Tempering(num_temperatures)."
            )
        object.__setattr__(self, "initial", frozen(self.initial))

    def check(self, batch: Batch) -> None:
        """Refuse data that are not the program's, and a start of other shapes than its own."""
        check(self.model, data=batch)
        check_initial(self.model, self.initial, batch, "ContrastiveDivergence")

    def init(self, key: Array, batch: Batch) -> dict[str, Any]:
        """The program's initial parameters, fresh chains at the rows of the batch, and centres there."""
        key_params, key_chains = jax.random.split(key)
        x = _rows(batch)
        params = self.model.initial(key_params, x) if self.initial is None else float32(self.initial)
        state = {
            "params": params,
            "optimizer": self.optimizer.init(params),
            "centre": (x.mean(0), self.model.hidden_mean(params, x).mean(0)),
            "free_energy": self.model.free_energy(params, x).mean(),
        }
        if self.persistent:
            v = x[jnp.arange(self.num_particles or len(x)) % len(x)]
            state["chains"] = self.sampler.start(key_chains, self.model, params, v)
        return state

    def step(self, key: Array, state: dict[str, Any], batch: Batch) -> tuple[dict[str, Any], Record]:
        """Advance the chains k sweeps, and the parameters one step of the optimizer."""
        model, params, x = self.model, state["params"], _rows(batch)
        key_start, key_sweeps = jax.random.split(key)
        chains = state["chains"] if self.persistent else self.sampler.start(key_start, model, params, x)
        keys = jax.random.split(key_sweeps, self.k)
        if self.k > 1:
            advance = self.sampler.advance
            chains, _ = jax.lax.scan(lambda c, key: (advance(key, model, params, c), None), chains, keys[1:])
        chains = self.sampler.advance(keys[0], model, params, chains)  # its last product is the gradient's too

        gradient, free_energy = self.gradient(params, x, self.sampler.draws(chains))
        centred, centre = self._centred(params, state["centre"]), state["centre"]
        _, pull_back = jax.vjp(lambda centred: self._plain(centred, centre), centred)
        (gradient,) = pull_back(gradient)
        updates, optimizer = self.optimizer.update(gradient, state["optimizer"], centred)
        moved = self._plain(optax.apply_updates(centred, updates), centre)

        hidden = model.hidden_mean(params, x)
        shown = model.visible_mean(params, x[:SHOWN], hidden[:SHOWN])
        metrics = {
            "reconstruction_error": jnp.square(x[:SHOWN] - shown).mean(),
            "free_energy": free_energy,
            **self.sampler.metrics(chains),
        }
        new = {
            "params": moved,
            "optimizer": optimizer,
            "centre": self._follow(state["centre"], (x.mean(0), hidden.mean(0))),
            "free_energy": state["free_energy"] + FORGET * (free_energy - state["free_energy"]),
        }
        return new | ({"chains": chains} if self.persistent else {}), Record(metrics)

    def gradient(self, params: Any, x: Array, chains: Chains) -> tuple[Any, Array]:
        """Of minus the log likelihood per row, with draws from the machine; and the mean free energy of x.

        Where the free energy is a mean-field bound (deep machines), that of draws would bias the other term, whose
        energies are taken instead.
        """

        def loss(params: Any) -> tuple[Array, Array]:
            data = self.model.free_energy(params, x).mean()
            deep = hasattr(self.model, "as_rbm")
            drawn = self.model.energy(params, *chains) if deep else self.model.free_energy(params, chains.v)
            return data - drawn.mean(), data

        return jax.grad(loss, has_aux=True)(params)

    def evaluate(self, key: Array, state: dict[str, Any], batch: Batch) -> Array:
        """Average free energy of training rows less that of these, in nats per row."""
        return state["free_energy"] - self.model.free_energy(state["params"], _rows(batch)).mean()

    def params(self, state: dict[str, Any], batch: Batch) -> dict[str, Array]:
        """Parameters by site name."""
        return state["params"]

    def finish(self, key: Array, state: dict[str, Any], records: Mapping[str, Array], batch: Batch) -> Draws:
        """The point estimate, also as a single draw."""
        return Draws(state["params"], {n: v[None] for n, v in state["params"].items()}, {})

    def explain(self, key: Array, state: dict[str, Any], batch: Batch) -> str:
        """Which entry of the parameters has grown the most, for the error message."""
        sizes = {n: np.abs(v) for n, v in state["params"].items() if v.size}
        name = max(sizes, key=lambda n: sizes[n].max())
        index = np.unravel_index(sizes[name].argmax(), sizes[name].shape)
        return (
            f", after {name}[{', '.join(map(str, index))}] had come to {np.asarray(state['params'][name])[index]:.3g}"
        )

    def _centred(self, params: Any, centre: Centre) -> Any:
        """The parameters of couplings between v - m and h - l that make the machine with these of v and h."""
        return params if self.centring is None else self.model.shifted(params, *(-units for units in centre))

    def _plain(self, centred: Any, centre: Centre) -> Any:
        """And back."""
        return centred if self.centring is None else self.model.shifted(centred, *centre)

    def _follow(self, centre: Centre, means: Centre) -> Centre:
        rate = self.centring or 0.0
        return jax.tree.map(lambda old, new: old + rate * (new - old), centre, means)


def check_optimizer(algorithm: str, optimizer: Any) -> None:
    """Refuse what is no optax transformation.

    Raises
    ------
    Incompatible
        With what it is.
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        raise Incompatible(f"{algorithm}: optimizer is {optimizer!r}; give an optax one, such as optax.sgd(0.05).")


def check_initial(model: Any, initial: Mapping[str, ArrayLike] | None, batch: Batch, algorithm: str) -> None:
    """Refuse a start whose names or shapes are not the program's own.

    Raises
    ------
    Incompatible
        With both.
    """
    if initial is None:
        return
    proposed = jax.eval_shape(lambda key: model.initial(key, _rows(batch)), jax.random.key(0))
    want, got = ({n: jnp.shape(v) for n, v in sorted(p.items())} for p in (proposed, initial))
    if want != got:
        raise Incompatible(f"{algorithm}'s initial has shapes {got}; {program_name(model)} on these rows takes {want}.")


def float32(params: Mapping[str, ArrayLike]) -> dict[str, Array]:
    """Parameters by name, float32."""
    return {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}


def couplings(params: dict[str, Any]) -> dict[str, bool]:
    """Which parameters weight decay is for: those that couple units, not biases or variances."""
    return {name: "weights" in name or "couplings" in name for name in params}


def _rows(batch: Batch) -> Array:
    return jnp.asarray(batch.data["x"], jnp.float32)


__all__ = ["ContrastiveDivergence", "check_initial", "check_optimizer", "couplings", "float32"]
