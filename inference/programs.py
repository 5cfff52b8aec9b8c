"""Running a NumPyro program: rows into its data plate, and its log density split at that plate.

For a program with global latents g and a data plate over rows n,

    log p(x, z, g) = shared(g) + (N / B) * sum_n rows_n(x_n, z_n, g),

and every objective, evidence estimate and log likelihood of the package is a few lines over
``shared`` and ``rows``. The data plate is the plate that all observed sites share: the subsampled
one if there is one, else the outermost (rows are the leading axis).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions.util import scale_and_mask
from numpyro.primitives import Messenger

from inference.errors import Incompatible
from inference.protocols import Batch, Program

Thunk = Callable[[], Any]
Trace = dict[str, dict[str, Any]]


class _Rows(Messenger):
    """Give the data plate the rows that the loop chose, in place of rows drawn by the plate."""

    def __init__(self, fn: Program, rows: Array, num_data: int):
        self.rows, self.num_data = rows, num_data
        super().__init__(fn)

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "plate" and msg["value"] is None and msg["args"] == (self.num_data, len(self.rows)):
            msg["value"] = self.rows


class SeedByPlate(Messenger):
    """One stream of keys for global sites and another for sites in the data plate.

    Mapping over the second alone draws the globals once and the locals many times.
    """

    def __init__(self, fn: Thunk, shared: Array, local: Array, plate: str | None):
        self.keys = {False: shared, True: local}
        self.plate = plate
        super().__init__(fn)

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["value"] is None and msg["type"] in ("sample", "prng_key", "plate", "control_flow"):
            if msg["kwargs"].get("rng_key") is None:
                local = any(frame.name == self.plate for frame in msg.get("cond_indep_stack", ()))
                self.keys[local], msg["kwargs"]["rng_key"] = jax.random.split(self.keys[local])


def takes(program: Program, argument: str) -> bool:
    """Whether the program's signature has room for ``argument``."""
    parameters = inspect.signature(program).parameters
    return argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def on_rows(program: Program, batch: Batch) -> Program:
    """The program with its data plate given these rows, still to be called on their data."""
    if takes(program, "num_data"):
        program = partial(program, num_data=batch.num_data)
    return _Rows(program, batch.rows, batch.num_data)


def bind(program: Program, batch: Batch) -> Thunk:
    """The program on these rows: its arguments supplied, its data plate given the rows."""
    return partial(on_rows(program, batch), **batch.data)


def without_factors(thunk: Thunk) -> Thunk:
    """The program less its factors: those of a guide are terms of the objective, and no part of q's density."""
    return handlers.block(thunk, hide_fn=lambda site: isinstance(site.get("fn"), dist.Unit))


def scaled_rows(program: Program, batch: Batch) -> int:
    """Rows that the program's log density stands for: N if it scales by ``num_data``, else B."""
    return batch.num_data if takes(program, "num_data") else len(batch)


def trace(thunk: Thunk, key: Array, values: dict[str, Any] | None = None) -> Trace:
    """Run once, seeded, with these parameters or site values."""
    with handlers.seed(rng_seed=key), handlers.substitute(data=values or {}):
        return dict(handlers.trace(thunk).get_trace())


class Anatomy(NamedTuple):
    """What an abstract run of a program shows (no array is computed)."""

    plate: str | None  # the data plate
    plates: dict[str, tuple[int, int]]  # name -> (size, rows in this run)
    latent: tuple[str, ...]
    local: frozenset[str]  # latent sites in the data plate
    observed: tuple[str, ...]
    discrete: frozenset[str]  # latent sites with discrete support
    enumerable: frozenset[str]  # those of them with finite support
    pathwise: frozenset[str]  # latent sites with reparameterised samplers
    frames: dict[str, tuple[str, ...]]  # the plates that each sample site is in
    shapes: dict[str, tuple[int, ...]]  # of the sites' distributions
    values: dict[str, tuple[int, ...]]  # of the sites' values
    factors: tuple[str, ...]
    supports: dict[str, Any]
    event_dims: dict[str, int]
    params: tuple[str, ...]
    param_plates: dict[str, tuple[str, ...]]  # plates whose rows index a parameter
    nesting: int  # how many plate dimensions there are
    deterministic: tuple[str, ...]
    mutable: tuple[str, ...]  # sites of state that is kept between steps
    points: frozenset[str]  # sample sites with all mass at one value
    weighted: frozenset[str]  # sample sites whose rows count by weights of their own

    @property
    def scale(self) -> float:
        """N / B of the data plate."""
        size, rows = (1, 1) if self.plate is None else self.plates[self.plate]
        return size / rows


def anatomy(thunk: Thunk) -> Anatomy:
    """Trace abstractly and describe the sites."""
    found: list[Anatomy] = []

    def run(key: Array) -> None:
        found.append(_describe(trace(thunk, key)))

    jax.eval_shape(run, jax.random.key(0))
    return found[0]


def _describe(tr: Trace) -> Anatomy:
    samples = {name: site for name, site in tr.items() if site["type"] == "sample"}
    latent = {name: site for name, site in samples.items() if not site["is_observed"]}
    plate = data_plate(tr)
    return Anatomy(
        plate=plate,
        plates={n: (s["args"][0], s["args"][1] or s["args"][0]) for n, s in tr.items() if s["type"] == "plate"},
        latent=tuple(latent),
        local=frozenset(n for n, s in latent.items() if _frame(s, plate) is not None),
        observed=tuple(n for n, s in samples.items() if s["is_observed"] and not isinstance(s["fn"], dist.Unit)),
        discrete=frozenset(n for n, s in latent.items() if s["fn"].support.is_discrete),
        enumerable=frozenset(n for n, s in latent.items() if _is_enumerable(s["fn"])),
        pathwise=frozenset(n for n, s in latent.items() if s["fn"].has_rsample),
        frames={n: tuple(f.name for f in s["cond_indep_stack"]) for n, s in samples.items()},
        shapes={n: tuple(s["fn"].shape()) for n, s in samples.items()},
        values={n: tuple(jnp.shape(s["value"])) for n, s in samples.items()},
        factors=tuple(n for n, s in samples.items() if isinstance(s["fn"], dist.Unit)),
        supports={n: s["fn"].support for n, s in samples.items()},
        event_dims={n: s["fn"].event_dim for n, s in samples.items()},
        params=tuple(n for n, s in tr.items() if s["type"] == "param"),
        param_plates={
            n: tuple(f.name for f in s["cond_indep_stack"])
            for n, s in tr.items()
            if s["type"] == "param" and s["kwargs"].get("event_dim") is not None
        },
        nesting=max((-f.dim for s in samples.values() for f in s["cond_indep_stack"]), default=0),
        deterministic=tuple(n for n, s in tr.items() if s["type"] == "deterministic"),
        mutable=tuple(n for n, s in tr.items() if s["type"] == "mutable"),
        points=frozenset(n for n, s in samples.items() if isinstance(base_of(s["fn"]), dist.Delta)),
        weighted=frozenset(n for n, s in samples.items() if jnp.ndim(s["scale"] if s["scale"] is not None else 1)),
    )


def base_of(fn: Any) -> Any:
    """The distribution inside expansions, masks and reinterpreted dimensions."""
    while isinstance(fn, (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)):
        fn = fn.base_dist
    return fn


def _is_enumerable(fn: Any) -> bool:
    """Whether a site is one variable with finitely many values: ``Bernoulli.to_event(1)`` is a product of many."""
    return fn.has_enumerate_support and fn.event_dim == base_of(fn).event_dim


def row_params(model: Program, guide: Program, batch: Batch) -> list[str]:
    """Parameters of the guide that have a value for every row of the data."""
    plate = anatomy(bind(model, batch)).plate
    return [n for n, plates in anatomy(bind(guide, batch)).param_plates.items() if plate in plates]


def data_plate(tr: Trace) -> str | None:
    """The plate over rows: shared by all observed sites; subsampled if one is, else the outermost."""
    stacks = [
        {f.name: f for f in s["cond_indep_stack"]}
        for s in tr.values()
        if s["type"] == "sample" and s["is_observed"] and not isinstance(s["fn"], dist.Unit)
    ]
    if not stacks:
        return None
    shared = set(stacks[0]).intersection(*stacks)
    subsampled = {n for n in shared if tr[n]["args"][1] not in (None, tr[n]["args"][0])}
    return min(subsampled or shared, key=lambda name: stacks[0][name].dim, default=None)


def row_plates(program: Program, args: tuple, kwargs: dict[str, Any]) -> frozenset[str]:
    """The plates over rows: those that grow when the arguments have one more row."""

    def plates(extra: int) -> dict[str, tuple[int, int]]:
        def grown(value: Any) -> Any:
            if not jnp.ndim(value):
                return value
            return jax.ShapeDtypeStruct((value.shape[0] + extra, *value.shape[1:]), value.dtype)

        fixed = {n: v for n, v in kwargs.items() if not jnp.ndim(v)}
        if fixed.get("num_data") is not None:
            fixed["num_data"] += extra
        arrays = {n: grown(v) for n, v in kwargs.items() if n not in fixed}
        found: dict[str, tuple[int, int]] = {}

        def run(arrays: dict[str, Array], *positional: Array) -> None:
            with handlers.block():
                found.update(
                    _describe(trace(lambda: program(*positional, **arrays, **fixed), jax.random.key(0))).plates
                )

        jax.eval_shape(run, arrays, *map(grown, args))
        return found

    now, more = plates(0), plates(1)
    return frozenset(name for name, size in now.items() if more.get(name) != size)


def plate_scale(tr: Trace, plate: str | None) -> float:
    """N / B of the data plate."""
    if plate is None:
        return 1.0
    size, subsample = tr[plate]["args"]
    return size / (subsample or size)


def _frame(site: dict[str, Any], plate: str | None) -> Any:
    return next((f for f in site["cond_indep_stack"] if f.name == plate), None)


def by_row(values: Array, site: dict[str, Any], plate: str | None, scale: float) -> Array:
    """Sum a site's log density: to ``(batch,)`` inside the data plate (N / B taken out), else to ``()``."""
    frame = _frame(site, plate)
    if frame is None:
        return jnp.sum(scale_and_mask(values, scale=site["scale"]))
    other = None if site["scale"] is None else site["scale"] / scale
    values = scale_and_mask(values, scale=other)
    return jnp.sum(values, axis=tuple(a for a in range(values.ndim) if a != values.ndim + frame.dim))


def site_log_prob(site: dict[str, Any]) -> Array:
    """Elementwise log density at the site's value."""
    extra = (site["intermediates"],) if site["intermediates"] else ()
    return site["fn"].log_prob(site["value"], *extra)


class Density(NamedTuple):
    """A log density split at the data plate, in nats: total = shared + scale * sum(rows)."""

    shared: Float[Array, ""]
    rows: Float[Array, " batch"]
    scale: float

    def total(self) -> Float[Array, ""]:
        return self.shared + self.scale * jnp.sum(self.rows)


def density(thunk: Thunk, key: Array, values: dict[str, Any], plate: str | None) -> Density:
    """Log density of a program at ``values``; sites without a value are drawn."""
    tr = trace(thunk, key, values)
    return split_density({n: site_log_prob(s) for n, s in tr.items() if s["type"] == "sample"}, tr, plate)


def split_density(log_probs: dict[str, Array], tr: Trace, plate: str | None) -> Density:
    """Sum elementwise site terms into shared and per-row parts."""
    scale = plate_scale(tr, plate if plate in tr else None)
    shared, rows = jnp.zeros(()), jnp.zeros((1,))  # broadcasts, where a program has no rows
    for name, values in log_probs.items():
        term = by_row(values, tr[name], plate, scale)
        if term.ndim:
            rows = rows + term
        else:
            shared = shared + term
    return Density(shared, rows, scale)


def enumerated_density(thunk: Thunk, key: Array, values: dict[str, Any], parts: Anatomy) -> Density:
    """Log density with the program's discrete latents summed out exactly, except those in ``values``.

    The sum-product runs over named dimensions (funsor) and leaves the data plate open, so each
    row keeps its own log evidence log sum_z p(x_n, z | g). A discrete latent outside the data
    plate ties the rows together; then the whole sum is ``shared``.
    """
    import funsor
    from numpyro.contrib.funsor import config_enumerate, enum, plate_to_enum_plate
    from numpyro.contrib.funsor.enum_messenger import trace as packed_trace

    summed = parts.discrete.difference(values)
    plate = parts.plate if summed <= parts.local else None
    with handlers.seed(rng_seed=key), handlers.substitute(data=values), plate_to_enum_plate():
        tr = packed_trace(enum(config_enumerate(thunk), first_available_dim=-1 - parts.nesting)).get_trace()

    scale = parts.scale
    if plate is None and scale != 1:
        raise Incompatible(
            f"{sorted(summed)} lie outside the data plate and are summed out, which ties all rows together; "
            "a minibatch cannot do that. Use batch_size=None."
        )
    shared, factors, plates, weights = jnp.zeros(()), [], frozenset(), []
    for name, site in tr.items():
        if site["type"] != "sample":
            continue
        names = {f.name for f in site["cond_indep_stack"]}
        named = site["infer"]["dim_to_name"]
        if not set(named.values()) & summed:
            if plate not in names:
                shared = shared + jnp.sum(scale_and_mask(site_log_prob(site), scale=site["scale"]))
                continue
        other = None if site["scale"] is None else site["scale"] / (scale if plate in names else 1.0)
        if plate in names:
            by_row = other is not None and jnp.ndim(other) > 0
            weights.append(other if by_row else None)
            other = None if by_row else other  # of a row that counts w times, w log sum_z p(x, z)
        log_prob = site_log_prob(site)
        own = tuple(dim for dim, n in named.items() if n == name)
        if name in summed and site["infer"].get("enumerate") != "parallel":
            raise Incompatible(
                f"site {name!r} cannot be summed out: it has no finite support, or infer={{'enumerate': ...}} is not "
                "'parallel'. Leave that out, or let a guide sample the site."
            )
        if own:  # p sums to one: where it is masked, and log p is 0, C values would count C times
            log_prob = log_prob - logsumexp(log_prob, axis=own, keepdims=True)
        log_prob = scale_and_mask(log_prob, scale=other)
        if not named:
            log_prob = log_prob.reshape(())
        factors.append(funsor.to_funsor(log_prob, output=funsor.Real, dim_to_name=named))
        plates |= names
    kept = frozenset() if plate is None else frozenset({plate})
    result = funsor.sum_product.sum_product(
        funsor.ops.logaddexp,
        funsor.ops.add,
        factors,
        eliminate=frozenset(summed | plates) - kept,
        plates=frozenset(plates),
    )
    if plate is None:
        return Density(shared + result.data, jnp.zeros((1,)), 1.0)
    rows = jnp.reshape(funsor.to_data(result, name_to_dim={plate: -1}), (-1,))  # a plate of one row loses its axis
    weight = next((w for w in weights if w is not None), None)
    if weight is not None:
        if any(w is None for w in weights):
            raise Incompatible("some sites in the data plate have a scale for each row, others none: scale all alike.")
        rows = rows * jnp.reshape(weight, (-1,))
    return Density(shared, rows, scale)


def joint_density(thunk: Thunk, key: Array, values: dict[str, Any], parts: Anatomy | None = None) -> Density:
    """Log density at ``values``, discrete latents without a value summed out; others without one are drawn."""
    parts = parts or anatomy(thunk)
    if parts.discrete - values.keys():
        return enumerated_density(thunk, key, values, parts)
    return density(thunk, key, values, parts.plate)


def marginal_density(model: Program, batch: Batch, key: Array, values: dict[str, Any]) -> Density:
    """Log density of data and globals with every local latent integrated out exactly.

    Uses the program's own ``marginal`` where it has one, else enumeration. Check with
    :func:`has_marginal` first.
    """
    return joint_density(bind(getattr(model, "marginal", model), batch), key, values)


def has_marginal(model: Program, batch: Batch) -> bool:
    """Whether the local latents can be integrated out exactly: enumerated, by formula, or absent."""
    parts = anatomy(bind(getattr(model, "marginal", model), batch))
    return parts.local <= parts.enumerable
