"""What the loop asks of an algorithm, and what an algorithm asks of a program.

Notation, used throughout the package

=========  ==================================================================
x          observed data, leading axis = rows (observations)
z          latent variables; *local* ones live in the data plate, the others
           are *global*
theta      parameters of the model p(x, z); phi, of the guide q(z | x)
N, B       rows in the data set, rows in a batch; a minibatch scales by N / B
K, S       particles of an importance-weighted bound, posterior draws
nats       unit of every bound and likelihood; ``history`` holds nats per row
=========  ==================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

Arrays = Mapping[str, Any]
State = Any
Program = Callable[..., Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Some rows of the data, and which ones they are.

    Parameters
    ----------
    data
        Named arrays with a leading axis of ``batch`` rows: the keyword arguments of the program.
    rows
        Row numbers in the whole data set, shape ``(batch,)``. They are substituted into the
        program's data plate, so that per-row parameters meet their own rows.
    num_data
        Rows in the whole data set (static). The plate scales by ``num_data / batch``.
    """

    data: dict[str, Array]
    rows: Int[Array, " batch"]
    num_data: int = field(metadata={"static": True})

    def __len__(self) -> int:
        return self.rows.shape[0]

    @property
    def weight(self) -> Any:
        """How many rows the batch counts for: the sum of ``sample_weight``, if there is one, else its length."""
        if "sample_weight" not in self.data:
            return len(self)
        with jax.enable_x64(True):
            return self.data["sample_weight"].astype(jnp.float64).sum()


class Record(NamedTuple):
    """What one step leaves behind.

    ``metrics`` are scalars kept in the history (``bound`` in nats per row, higher is better);
    ``draw`` is a draw kept by the loop (MCMC) or empty; ``done`` ends the run (EM has converged).
    """

    metrics: Mapping[str, Float[ArrayLike, ""]]
    draw: Mapping[str, ArrayLike] = {}
    done: Bool[ArrayLike, ""] = False


class Draws(NamedTuple):
    """What an algorithm hands over when the loop ends; every array leads with the chain axis.

    ``params`` are point estimates ``(chain, *shape)``, arrays or pytrees of them by site name;
    ``posterior`` holds draws of the global latents ``(chain, draw, *event)``, possibly none;
    ``sample_stats`` holds ``lp``, ``diverging``, ``log_weight`` … ``(chain, draw)``.
    """

    params: Mapping[str, Any]
    posterior: Mapping[str, Any]
    sample_stats: Mapping[str, Any]


@runtime_checkable
class Algorithm(Protocol):
    """A frozen dataclass: a value, compared by its fields, that holds no state of its own.

    ``init`` and ``step`` are pure functions of one chain; the loop vectorises them over chains. What else one may have,
    and the loop then makes use of:

    ======================  ==========================================================================================
    ``model``, ``guide``    the programs that get the data
    ``check(batch)``        refuses what does not go together, before anything is compiled
    ``evaluate``            ``(key, state, batch)`` to the bound in nats per row, for validation
    ``params``              ``(state, batch)`` to parameters by site name, which say how a saved fit's arrays nest
    ``explain``             ``(key, state, batch)`` to where a bound stopped being finite, as the end of a sentence
    ``num_warmup``          first steps, whose draws are dropped
    ``max_steps``           how long, where ``fit`` is not told
    ``min_chains``          fewest chains, of those that learn from each other
    ``uses_prior``          False where the prior of globals has no part, so that a stream's length need not be known
    ``pack``, ``unpack``    a state that is no pytree of arrays to one, and back, for checkpoints
    ``answers``             what its fits are asked with, see :class:`Answers`; by default its engine's
    ======================  ==========================================================================================
    """

    engine: ClassVar[str]  # the PPL that runs its programs, "numpyro" or "pyro"

    def init(self, key: Array, batch: Batch) -> State: ...

    def step(self, key: Array, state: State, batch: Batch) -> tuple[State, Record]: ...

    def finish(self, key: Array, state: State, records: Arrays, data: Any) -> Draws: ...


class Answers(Protocol):
    """Functions that question a fit: a module such as :mod:`inference.posterior`.

    ``values`` are parameters and one draw of the globals, by site name; of S draws at once, with as many ``keys``,
    arrays lead with S. ``log_likelihood`` is of a whole data set, an estimate, a bracket or a bound that says so;
    ``row_log_likelihood`` is of each row of a batch, with its Monte-Carlo variance. Both are in nats per row.

    One that answers by Markov chains may have ``chain_free_energies(fit, x)``, in nats ``(chain, draw)``; one whose
    draws say no more of a point estimate than one of them does, ``point_draws = 1``.
    """

    def log_likelihood(self, fit: Any, rows: Any, num_particles: int, key: int) -> Any: ...

    def row_log_likelihood(
        self, model: Program, guide: Program | None, values: Any, key: Array, batch: Batch, num_particles: int
    ) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]: ...

    def local_draws(
        self, model: Program, guide: Program | None, params: Any, draws: Any, keys: Array, batch: Batch
    ) -> dict[str, Array]: ...

    def predict(
        self,
        model: Program,
        guide: Program | None,
        params: Any,
        draws: Any,
        keys: Array,
        batch: Batch,
        *,
        expected: bool,
    ) -> dict[str, Array]: ...

    def generate(
        self, fit: Any, num_samples: int, key: int, *, expected: bool, given: Mapping[str, Any], **options: Any
    ) -> dict[str, Any]: ...


@runtime_checkable
class Conjugate(Protocol):
    """A program whose local posterior is exact, so that EM applies.

    ``initial(key, **data)`` proposes parameters; ``e_step(params, **data)`` returns the summed log
    likelihood in nats and the expected sufficient statistics; ``m_step(statistics)`` maximises.
    ``posterior`` is the exact p(z | x, globals), itself a guide. Parameters are named like the
    program's global sites, so that substituting them conditions the program. They are float64;
    ``single_precision(params)``, which a program may offer besides, rounds them to float32 where doing
    so entry by entry could leave their space (a covariance that is no longer positive definite).
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def initial(self, key: Array, *args: Any, **data: Any) -> dict[str, Array]: ...

    def e_step(self, params: dict[str, Array], *args: Any, **data: Any) -> tuple[Array, Any]: ...

    def m_step(self, statistics: Any) -> dict[str, Array]: ...

    @property
    def posterior(self) -> Program: ...


@runtime_checkable
class BlockedGibbs(Protocol):
    """A program whose blocks have exact conditionals, so that Gibbs applies.

    ``complete(key, params, **data)`` draws the local latents z ~ p(z | x, globals) and returns the sufficient
    statistics of (x, z), summed over rows; ``draw(key, params, statistics)`` draws the globals, block by
    block, from p(globals | x, z). Here ``params`` are values of the program's global sample sites. Chains
    start at ``site_values(initial(key, **data))``. ``log_joint(params, **data)``, which a program may offer
    besides, is log p(x, globals) in nats, with the locals integrated out.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def initial(self, key: Array, *args: Any, **data: Any) -> dict[str, Array]: ...

    def site_values(self, params: dict[str, Array]) -> dict[str, Array]: ...

    def complete(self, key: Array, params: dict[str, Array], *args: Any, **data: Any) -> Any: ...

    def draw(self, key: Array, params: dict[str, Array], statistics: Any) -> dict[str, Array]: ...

    @property
    def posterior(self) -> Program: ...


@runtime_checkable
class ConjugateVariational(Protocol):
    """A program whose coordinate-ascent updates are exact, so that variational Bayes applies.

    ``q`` is a pytree of hyperparameters of q(globals). With g for the globals,

        bound = E_q[log p(x, z | g)] + H[q(z)] - KL(q(g) || p(g))   in nats,

    whose first two terms are the sum over rows of the log normaliser of q(z_n):
    ``variational_e_step(q, **data)`` returns it, at the optimal q(z), with the expected statistics;
    ``variational_m_step(q, statistics)`` is the optimal q(g) given them (block by block, where it
    factorises), ``variational_kl(q)`` the last term. ``variational_initial(key, **data)`` proposes a q;
    ``variational_draw(key, q)`` draws the globals by site name and ``variational_log_prob(q, globals)`` is
    their log density under q, in nats, with respect to the measure of the program's sites.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def variational_initial(self, key: Array, *args: Any, **data: Any) -> Any: ...

    def variational_e_step(self, q: Any, *args: Any, **data: Any) -> tuple[Array, Any]: ...

    def variational_m_step(self, q: Any, statistics: Any) -> Any: ...

    def variational_kl(self, q: Any) -> Array: ...

    def variational_draw(self, key: Array, q: Any) -> dict[str, Array]: ...

    def variational_log_prob(self, q: Any, globals: dict[str, Array]) -> Array: ...

    @property
    def posterior(self) -> Program: ...


@runtime_checkable
class Energy(Protocol):
    """A program p(v, h) = exp(-E(v, h)) / Z of visible units v, a row, and hidden units h: a Boltzmann machine.

    Energies are in nats and leading axes are rows or chains. ``beta`` is an inverse temperature of the joint
    energy, E_beta = (1 - beta) E_base + beta E, from the ``base`` that ``base_rate(x)`` returns, with its log
    partition function: a model of independent visible units, in which the hidden units have no part.
    ``sample_hidden`` draws from p(h | v); ``sample_visible`` leaves p(v | h) invariant, is an exact draw where
    visible units are not coupled, as at the base, and keeps the entries that are ``observed``.
    ``shifted(params, v, h)`` is the machine whose couplings act on units less these offsets. ``log_partition`` is
    exact, and raises ValueError, with the cost, where the machine is too large for that.

    A deep machine, whose hidden units depend on each other given v, draws ``sample_hidden`` from a mean-field q(h | v),
    whose variational free energy is its ``free_energy``. It offers besides ``move_hidden(key, params, v, h, beta)``,
    which leaves p(h | v) invariant, ``as_rbm(params)``, the restricted machine of its two sides with its parameters,
    and ``rbm_units(key, params, v)``, draws of the visible units of that given rows.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def initial(self, key: Array, *args: Any, **data: Any) -> dict[str, Array]: ...

    def energy(self, params: dict[str, Array], v: Array, h: Array, beta: Any = ..., base: Any = ...) -> Array: ...

    def free_energy(self, params: dict[str, Array], v: Array, beta: Any = ..., base: Any = ...) -> Array: ...

    def hidden_mean(self, params: dict[str, Array], v: Array, beta: Any = ...) -> Array: ...

    def visible_mean(self, params: dict[str, Array], v: Array, h: Array, beta: Any = ..., base: Any = ...) -> Array: ...

    def sample_hidden(self, key: Array, params: dict[str, Array], v: Array, beta: Any = ...) -> Array: ...

    def sample_visible(
        self,
        key: Array,
        params: dict[str, Array],
        v: Array,
        h: Array,
        beta: Any = ...,
        base: Any = ...,
        observed: Any = ...,
    ) -> Array: ...

    def base_rate(self, x: Array) -> tuple[Any, Array]: ...

    def shifted(self, params: dict[str, Array], v: Array, h: Array) -> dict[str, Array]: ...

    def log_partition(self, params: dict[str, Array]) -> Array: ...


@runtime_checkable
class Belief(Protocol):
    """A program p(v, h_1, ..., h_L) of rows and hidden layers that is directed but for a restricted machine on top.

    ``as_rbm(params)`` is that machine, an :class:`Energy` program, with its parameters, and
    ``rbm_units(key, params, v)`` its visible units given rows. ``sample_layers`` draws h ~ q(h | v);
    ``layers_given(key, params, u, o)`` the layers below the machine when it stands at (u, o), and
    ``visible_mean(params, layers)`` is E[v | h]. In nats, ``generative_log_prob`` is log p(v, h) + log Z, h_L summed
    out, ``recognition_log_prob`` log q(h | v) of the others, ``log_weight`` their difference, and ``bound`` its mean
    over draws of h with the Monte-Carlo variance of that.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def as_rbm(self, params: Any) -> tuple[Energy, Any]: ...

    def rbm_units(self, key: Array, params: Any, v: Array) -> Array: ...

    def sample_layers(self, key: Array, params: Any, v: Array) -> tuple[Array, ...]: ...

    def layers_given(self, key: Array, params: Any, u: Array, o: Array) -> tuple[Array, ...]: ...

    def visible_mean(self, params: Any, layers: tuple[Array, ...]) -> Array: ...

    def generative_log_prob(self, params: Any, v: Array, layers: tuple[Array, ...]) -> Array: ...

    def recognition_log_prob(self, params: Any, v: Array, layers: tuple[Array, ...]) -> Array: ...

    def log_weight(self, params: Any, v: Array, layers: tuple[Array, ...]) -> Array: ...

    def bound(self, key: Array, params: Any, v: Array, num_particles: int = ...) -> tuple[Array, Array]: ...


class MachineSampler(Protocol):
    """A frozen dataclass: Markov chains of an energy program, whose state is its own pytree.

    ``advance`` leaves the machine's law invariant, or its law given the entries of v that are ``observed``; ``draws``
    are the pairs ``(v, h)`` that follow that law, and ``metrics`` scalars about the last sweep.
    """

    def start(self, key: Array, model: Energy, params: dict[str, Array], v: Array) -> State: ...

    def advance(
        self, key: Array, model: Energy, params: dict[str, Array], chains: State, observed: Any = ...
    ) -> State: ...

    def draws(self, chains: State) -> Any: ...

    def metrics(self, chains: State) -> dict[str, Array]: ...


@runtime_checkable
class NoisingPath(Protocol):
    """The law of a latent path away from the data: a distribution with its rows x and its schedule."""

    @property
    def x(self) -> Float[Array, "batch D"]: ...

    @property
    def schedule(self) -> Any: ...


@runtime_checkable
class DenoisingPath(Protocol):
    """The law of a latent path towards the data, of ``num_steps`` T; its bound with the noising's is a sum over t.

    ``terms(x, t, noise)`` is, at the x_t that this noise makes of each row, the bound's term t in nats and the squared
    error of what the network puts out, each ``(batch,)``; ``last_term(x)`` is what the bound holds of x_T.
    """

    @property
    def schedule(self) -> Any: ...

    @property
    def num_steps(self) -> int: ...

    def terms(self, x: Array, t: Array, noise: Array) -> tuple[Array, Array]: ...

    def last_term(self, x: Array) -> Array: ...


@runtime_checkable
class Denoiser(Protocol):
    """A program whose latent is a path of ``num_evaluations`` steps from noise to the data: a diffusion.

    ``noising`` is the guide, which is fixed. ``bound_terms(key, params, x)`` draws the terms of the bound on log p(x),
    in nats, ``(step, batch)``; ``draw(key, params, shape, y, sampler)`` new rows, without keeping their paths.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    @property
    def noising(self) -> Program: ...

    @property
    def num_evaluations(self) -> int: ...

    def bound_terms(self, key: Array, params: dict[str, Any], x: Array, y: Any = ...) -> Array: ...

    def draw(
        self,
        key: Array,
        params: dict[str, Any],
        shape: tuple[int, int],
        *args: Any,
        expected: bool = ...,
        **kwargs: Any,
    ) -> Array: ...
