"""A network with weights inside a program: one parameter site in NumPyro, one per tensor in Pyro."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache, partial
from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import numpyro


def network(ppl: ModuleType, name: str, architecture: Any, in_size: int, out_size: int) -> Callable[[Any], Any]:
    """Give an architecture weights, and apply it over all leading dimensions.

    NumPyro: the weights are one pytree in the parameter site ``name``, drawn from the program's
    key. Pyro: each tensor is a parameter ``name.tensor`` on the device of the input; weights are
    drawn from torch's generator, or copied from a module that has them already.

    Parameters
    ----------
    ppl
        ``numpyro`` or ``pyro``.
    name
        Name of the parameter site.
    architecture
        A description with ``build(in_size, out_size, key)`` and ``build_torch(in_size, out_size)``,
        or a function in the place of the one that the engine needs. NumPyro's gives an Equinox
        module that maps one row; Pyro's a ``torch.nn.Module`` that maps rows. Pyro also takes a
        ``torch.nn.Module`` itself: its weights are where a run starts, and are not changed.
    in_size, out_size
        Values of a row that go in and come out.

    Returns
    -------
    Callable
        From ``(..., in_size)`` to ``(..., out_size)``.

    Raises
    ------
    TypeError
        An architecture that the engine cannot run.
    ValueError
        A network that takes or gives rows of another size.
    """
    check_architecture(ppl, name, architecture)
    apply = (_equinox if ppl is numpyro else _torch)(name, architecture, in_size, out_size)

    def over_rows(x: Any) -> Any:
        if x.shape[-1] != in_size:
            raise ValueError(f"network {name!r} was given rows of {x.shape[-1]} values; expected {in_size}.")
        rows = x.reshape((-1, in_size))
        out = apply(rows)
        if tuple(out.shape) != (rows.shape[0], out_size):
            raise ValueError(
                f"network {name!r} returned shape {tuple(out.shape)} for {rows.shape[0]} rows; "
                f"expected {(rows.shape[0], out_size)}. Make its last layer {out_size} wide."
            )
        return out.reshape((*x.shape[:-1], out_size))

    return over_rows


def check_architecture(ppl: ModuleType, name: str, architecture: Any) -> None:
    """Refuse, when a program is made, an architecture that its engine cannot run."""
    if ppl is numpyro:
        has_weights = hasattr(architecture, "named_parameters") or isinstance(architecture, eqx.Module)
        usable = hasattr(architecture, "build") or (callable(architecture) and not has_weights)
        wanted = "a description with build(in_size, out_size, key), such as MLP((200, 200))"
        hint = " A torch module runs with ppl=pyro." if hasattr(architecture, "named_parameters") else ""
    else:
        usable = hasattr(architecture, "build_torch") or (
            callable(architecture) and not isinstance(architecture, eqx.Module)
        )
        wanted = "a torch.nn.Module, or a description with build_torch(in_size, out_size), such as MLP((200, 200))"
        hint = ""
    if not usable:
        raise TypeError(f"{name} is a {type(architecture).__name__}; {ppl.__name__} needs {wanted}.{hint}")


def module(name: str, build: Callable[[Any], Any]) -> Any:
    """An Equinox module inside a NumPyro program, its weights drawn from the program's key.

    Parameters
    ----------
    name
        Name of the parameter site, which holds the weights as one pytree.
    build
        From a key to a module with fresh weights.

    Returns
    -------
    equinox.Module
        What ``build`` makes, with the site's weights.
    """
    return eqx.combine(_weights(name, build), _outline(build))


def _equinox(name: str, architecture: Any, in_size: int, out_size: int) -> Callable[[Any], Any]:
    build = partial(getattr(architecture, "build", architecture), in_size, out_size)
    kept = _is_constant(architecture)
    outline = _kept_outline(architecture, in_size, out_size) if kept else _outline(build)
    return partial(_traced_once if kept and _hashable(outline) else _over_rows, outline, _weights(name, build))


def _weights(name: str, build: Callable[[Any], Any]) -> Any:
    return numpyro.param(name, lambda key: eqx.filter(build(key), eqx.is_array))


def _is_constant(architecture: Any) -> bool:
    """Whether equal descriptions make equal networks, now and later."""
    frozen = getattr(getattr(architecture, "__dataclass_params__", None), "frozen", False)
    return frozen and hasattr(architecture, "build") and _hashable(architecture)


def _outline(build: Callable[[Any], Any]) -> Any:
    """What is made, without its weights."""
    abstract = eqx.filter_eval_shape(build, jax.random.key(0))
    return eqx.partition(abstract, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))[1]


@lru_cache(maxsize=64)
def _kept_outline(architecture: Any, in_size: int, out_size: int) -> Any:
    """The same object for the same frozen description, by which it is known to have been traced."""
    return _outline(partial(architecture.build, in_size, out_size))


def _over_rows(outline: Any, weights: Any, rows: Any) -> Any:
    return jax.vmap(eqx.combine(weights, outline))(rows)


# A program is run a dozen times before a fit, and a deep network takes a second to trace.
_traced_once = jax.jit(_over_rows, static_argnums=0)


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _torch(name: str, architecture: Any, in_size: int, out_size: int) -> Callable[[Any], Any]:
    import pyro
    import torch

    build = getattr(architecture, "build_torch", architecture)
    if isinstance(architecture, torch.nn.Module):
        skeleton, fresh = architecture, lambda: architecture
    else:
        skeleton, fresh = _skeleton(build, in_size, out_size), lambda: build(in_size, out_size)

    def apply(rows: torch.Tensor) -> torch.Tensor:
        start = cache(lambda: dict(fresh().named_parameters()))
        values = {k: v.detach().to(rows.device, copy=True) for k, v in skeleton.named_buffers()}
        for k, v in skeleton.named_parameters():
            if v.requires_grad:
                values[k] = pyro.param(f"{name}.{k}", lambda k=k: start()[k].detach().to(rows.device, copy=True))
            else:
                values[k] = v.to(rows.device)
        return torch.func.functional_call(skeleton, values, (rows,))

    return apply


@lru_cache(maxsize=64)
def _skeleton(build: Callable[[int, int], Any], in_size: int, out_size: int) -> Any:
    # Only its structure is used. Whether it is cached must not change what the run's seed draws.
    import torch

    with torch.random.fork_rng(devices=[]):
        return build(in_size, out_size)
