"""The log density of a Pyro program, split at its data plate; discrete latents summed out exactly.

For global latents g and a data plate over rows n,

    log p(x, z, g) = shared(g) + (N / B) * sum_n rows_n(x_n, z_n, g),

as in :mod:`inference.programs`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import config_enumerate
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from inference.errors import Incompatible
from inference.programs import Anatomy
from inference.protocols import Batch, Program
from inference.pyro_anatomy import describe, sample_sites
from inference.pyro_programs import Nodes, Thunk, bind, substitute, trace


class Density(NamedTuple):
    """A log density split at the data plate, in nats: total = shared + scale * sum(rows)."""

    shared: Tensor  # ()
    rows: Tensor  # (batch,), or (1,) without a data plate
    scale: float

    def total(self) -> Tensor:
        return self.shared + self.scale * self.rows.sum()


def density(nodes: Nodes, plate: str | None) -> Density:
    """Log density of a trace at its values, split at the data plate."""
    size, batch = _plate_size(nodes, plate)
    scale = size / batch
    shared, rows = torch.zeros(()), torch.zeros(batch)
    for site in sample_sites(nodes).values():
        values = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
        frame = next((f for f in site["cond_indep_stack"] if f.name == plate), None)
        if frame is None:
            shared = shared + scale_and_mask(values, site["scale"], site["mask"]).sum()
            continue
        values = scale_and_mask(values, site["scale"] / scale, site["mask"])
        others = [d for d in range(-values.dim(), 0) if d != frame.dim]
        rows = rows + (values.sum(others) if others else values)
    return Density(shared, rows, scale)


def _plate_size(nodes: Nodes, plate: str | None) -> tuple[int, int]:
    """N and B of the data plate in this run; 1 and 1 where the run does not meet it."""
    frames = (f for s in sample_sites(nodes).values() for f in s["cond_indep_stack"] if f.name == plate)
    return next(((f.full_size, f.size) for f in frames), (1, 1))


def enumerated_density(thunk: Thunk, values: Mapping[str, Any], parts: Anatomy) -> Density:
    """Log density at ``values`` with the program's other discrete latents summed out exactly.

    The sum-product leaves the data plate open, so that each row keeps its own log evidence. A discrete
    latent outside the data plate ties the rows together; then the whole sum is ``shared``.
    """
    summed = parts.discrete - values.keys()
    plate = parts.plate if summed <= parts.local else None
    enumerated: Any = poutine.enum(config_enumerate(substitute(thunk, values)), first_available_dim=-1 - parts.nesting)
    tr = poutine.trace(enumerated).get_trace()
    tr = prune_subsample_sites(tr)
    size, batch = _plate_size(tr.nodes, parts.plate)
    scale = size / batch
    refuse_tied_rows(summed, parts, scale)
    tr.compute_log_prob()
    tr.pack_tensors()
    symbols = tr.plate_to_symbol
    rows_symbol = symbols[plate] if plate else None
    dims = set(tr.symbol_to_dim) - set(symbols.values())
    factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    for name, site in sample_sites(tr.nodes).items():
        frames = [f.name for f in site["cond_indep_stack"] if f.vectorized]
        term = packed.scale_and_mask(site["packed"]["unscaled_log_prob"], mask=site["packed"]["mask"])
        if name in summed:
            if site["infer"].get("enumerate") != "parallel":
                raise Incompatible(
                    f"site {name!r} cannot be summed out: it has no finite support, or infer={{'enumerate': ...}} is "
                    "not 'parallel'. Leave that out, or let a guide sample the site."
                )
            term = _normalised(term, site["infer"]["_enumerate_symbol"])
        term = packed.scale_and_mask(term, site["scale"] / scale if parts.plate in frames else site["scale"])
        factors.setdefault(frozenset(symbols[name] for name in frames), []).append(term)
    shared, rows = torch.zeros(()), torch.zeros(batch if plate else 1)
    for ordinal, terms in contract_tensor_tree(factors, dims).items():
        for term in terms:
            if rows_symbol is None or rows_symbol not in ordinal:
                shared = shared + term.sum()
                continue
            kept: str = term._pyro_dims  # pyright: ignore[reportAttributeAccessIssue]
            others = [i for i, symbol in enumerate(kept) if symbol != rows_symbol]
            rows = rows + (term.sum(others) if others else term)
    return Density(shared, rows, scale if plate else 1.0)


def _normalised(term: Any, symbol: str) -> Any:
    """log p of a site, that sums to one: where it is masked, and log p is 0, C values would count C times."""
    if symbol not in term._pyro_dims:  # a single value
        return term
    out = term - term.logsumexp(term._pyro_dims.index(symbol), keepdim=True)
    out._pyro_dims = term._pyro_dims
    return out


def refuse_tied_rows(summed: frozenset[str] | set[str], parts: Anatomy, scale: float) -> None:
    """A discrete latent outside the data plate can be summed out over all rows only."""
    if not summed <= parts.local and scale != 1:
        raise Incompatible(
            f"{sorted(summed)} lie outside the data plate and are summed out, which ties all rows together; "
            "a minibatch cannot do that. Use batch_size=None."
        )


def at_values(thunk: Thunk, values: Mapping[str, Any], parts: Anatomy) -> Density:
    """Log density at these values: the discrete latents that have none are summed out."""
    if parts.discrete - values.keys():
        return enumerated_density(thunk, values, parts)
    return density(trace(thunk, values), parts.plate)


def marginal_density(
    model: Program, batch: Batch, values: Mapping[str, Any], device: str = "cpu"
) -> Callable[[Mapping[str, Any]], Density] | None:
    """Log density of data and globals with every local latent integrated out exactly, as a function of values.

    By the program's own ``marginal`` where it has one, else by enumeration; ``None`` where neither
    does. To be called inside ``private``; ``values`` are some of the sites', for a first look.
    """
    thunk = bind(getattr(model, "marginal", model), batch, device)
    parts = describe(trace(thunk, values))
    if not parts.local <= parts.enumerable:
        return None
    return lambda values: at_values(thunk, values, parts)
