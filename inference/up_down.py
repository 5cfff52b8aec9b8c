r"""Fine-tuning of a deep belief network: contrastive wake-sleep, up with q, some sweeps of the machine, down with p.

    wake:  grad E_q[log p(v, h)], layers h drawn from q(h | v) at rows v, the machine's log Z by contrastive divergence,
    sleep: grad E_p[log q(h | v)], layers and rows drawn downwards from where the machine's sweeps have ended.

Generative and recognition weights each learn from the other's draws. The sleep phase learns q where p puts its mass,
which for few sweeps is near rows, and not the bound's own gradient of q.

References
----------
A Fast Learning Algorithm for Deep Belief Nets (Hinton, Osindero and Teh, 2006).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike

from inference import belief_posterior
from inference.block_gibbs import BlockGibbs
from inference.check import check, program_name
from inference.contrastive_divergence import DEFAULT, FORGET, check_initial, check_optimizer, float32
from inference.em import frozen
from inference.errors import Incompatible, check_whole
from inference.protocols import Batch, Belief, Draws, Record

Layers = tuple[Array, ...]  # h_1, ..., h_L


@dataclass(frozen=True)
class UpDown:
    """Fine-tune a deep belief network.

    Parameters
    ----------
    model
        A :class:`~inference.protocols.Belief` program, such as ``DeepBeliefNetwork``.
    initial
        Where to start: parameters by name, such as those of :func:`inference.greedy`. It must be given: from random
        weights both phases learn from noise.
    k
        Sweeps of the machine between up and down.
    optimizer
        An optax transformation, of the gradient of minus log p and log q per row.

    Notes
    -----
    ``history`` holds ``free_energy``, the mean over the batch of minus the bound of log p(v) + log Z by one draw of h,
    in nats. With validation rows, ``validation`` is the average of training rows less theirs, in nats per row: about
    zero until the network overfits, and then falling.

    Raises
    ------
    ValueError
        A field out of range, or no start.
    Incompatible
        When the program is of another kind, or ``initial`` does not fit it.
    """

    model: Belief
    initial: Mapping[str, ArrayLike] | None = None
    k: int = 1
    optimizer: optax.GradientTransformation = DEFAULT

    engine: ClassVar[str] = "numpyro"
    answers: ClassVar[Any] = belief_posterior
    uses_prior: ClassVar[bool] = False

    def __post_init__(self) -> None:
        missing = [n for n in ("generative_log_prob", "recognition_log_prob") if not hasattr(self.model, n)]
        if missing:
            raise Incompatible(
                f"UpDown needs a deep belief network, and {program_name(self.model)} has no {', '.join(missing)}: "
                "DeepBeliefNetwork has them."
            )
        check_whole("UpDown: k", self.k)
        check_optimizer("UpDown", self.optimizer)
        if self.initial is None:
            raise ValueError(
                "UpDown: initial is None; it fine-tunes what layerwise learning has found. Give "
                "initial=inference.greedy(model, data, lambda rbm: ContrastiveDivergence(rbm), key=0, num_epochs=...), "
                "or the params of another fit."
            )
        object.__setattr__(self, "initial", frozen(self.initial))

    def check(self, batch: Batch) -> None:
        """Refuse data that are not the program's, and a start of other shapes than its own."""
        check(self.model, data=batch)
        check_initial(self.model, self.initial, batch, "UpDown")

    def init(self, key: Array, batch: Batch) -> dict[str, Any]:
        """Where to start."""
        assert self.initial is not None
        params = float32(self.initial)
        free_energy = self._free_energy(key, params, _rows(batch))
        return {"params": params, "optimizer": self.optimizer.init(params), "free_energy": free_energy}

    def step(self, key: Array, state: dict[str, Any], batch: Batch) -> tuple[dict[str, Any], Record]:
        """Up, some sweeps, down, and one step of the optimizer."""
        model, params, x = self.model, state["params"], _rows(batch)
        key_up, key_down = jax.random.split(key)
        awake = model.sample_layers(key_up, params, x)
        dream = self.dream(key_down, params, top_units(x, awake))
        gradient = self.gradient(params, x, awake, *dream)
        updates, optimizer = self.optimizer.update(gradient, state["optimizer"], params)
        free_energy = -model.log_weight(params, x, awake).mean()
        new = {
            "params": optax.apply_updates(params, updates),
            "optimizer": optimizer,
            "free_energy": state["free_energy"] + FORGET * (free_energy - state["free_energy"]),
        }
        return new, Record({"free_energy": free_energy})

    def dream(self, key: Array, params: Any, u: Array) -> tuple[Array, Layers]:
        """Rows and their layers, k sweeps of the machine away from its units u."""
        key_start, key_sweeps, key_layers, key_rows = jax.random.split(key, 4)
        (machine, of_machine), sampler = self.model.as_rbm(params), BlockGibbs()
        chains = sampler.start(key_start, machine, of_machine, u)
        for sweep in jax.random.split(key_sweeps, self.k):
            chains = sampler.advance(sweep, machine, of_machine, chains)
        layers = self.model.layers_given(key_layers, params, *chains)
        mean = self.model.visible_mean(params, layers)
        if len(layers) == 1:  # the machine holds the rows
            return chains.v, layers
        return jax.random.bernoulli(key_rows, mean).astype(mean.dtype), layers

    def gradient(self, params: Any, x: Array, awake: Layers, v: Array, dream: Layers) -> Any:
        """Of minus log p(x, awake) and log q(dream | v) per row, with the machine's log Z at the dream's units."""

        def loss(params: Any) -> Array:
            machine, of_machine = self.model.as_rbm(params)
            wake = self.model.generative_log_prob(params, x, awake).mean()
            log_z = -machine.free_energy(of_machine, top_units(v, dream)).mean()  # in its gradient
            return log_z - wake - self.model.recognition_log_prob(params, v, dream).mean()

        return jax.grad(loss)(params)

    def _free_energy(self, key: Array, params: Any, x: Array) -> Array:
        return -self.model.log_weight(params, x, self.model.sample_layers(key, params, x)).mean()

    def evaluate(self, key: Array, state: dict[str, Any], batch: Batch) -> Array:
        """Average free energy of training rows less that of these, in nats per row."""
        return state["free_energy"] - self._free_energy(key, state["params"], _rows(batch))

    def params(self, state: dict[str, Any], batch: Batch) -> dict[str, Array]:
        """Parameters by name."""
        return state["params"]

    def finish(self, key: Array, state: dict[str, Any], records: Mapping[str, Array], batch: Batch) -> Draws:
        """The point estimate, also as a single draw."""
        return Draws(state["params"], {n: v[None] for n, v in state["params"].items()}, {})


def top_units(v: Array, layers: Layers) -> Array:
    """The visible units of the machine on top: layer L - 1."""
    return (v, *layers)[-2]


def _rows(batch: Batch) -> Array:
    return jnp.asarray(batch.data["x"], jnp.float32)


__all__ = ["UpDown"]
