"""What machines of many layers share: the names and shapes of their parameters, and copies of a layer."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Float

from ppl_models import boltzmann_rows as rows
from ppl_models.boltzmann_rows import Params
from ppl_models.networks.layers import check_sizes

Layers = tuple[Float[Array, "*n units"], ...]  # h_1, ..., h_L, leading axes alike


def check_layers(machine: Any) -> None:
    """Store the layers as a tuple; refuse sizes that are not whole numbers of at least 1, and scales not positive."""
    kind, sizes = type(machine).__name__, machine.num_hidden
    if not isinstance(sizes, (tuple, list)) or not sizes:
        raise ValueError(
            f"{kind}: num_hidden is {sizes!r}; give the units of one layer or more, from the data upwards, such as "
            "(500, 1000)."
        )
    object.__setattr__(machine, "num_hidden", tuple(sizes))
    check_sizes(f"{kind}: num_hidden", machine.num_hidden)
    rows.check_scales(machine, "weight_scale", "bias_scale")


def bias_name(layer: int) -> str:
    """Of the biases of a layer, the visible units being layer 0."""
    return f"hidden_bias_{layer}" if layer else "visible_bias"


def shapes(columns: int, num_hidden: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of ``weights_l`` (units below, units of l), from 1, and of the biases of all layers."""
    sizes = (columns, *num_hidden)
    weights = {f"weights_{layer}": sizes[layer - 1 : layer + 1] for layer in range(1, len(sizes))}
    return weights | {bias_name(layer): (size,) for layer, size in enumerate(sizes)}


def prior(machine: Any, columns: int) -> Params:
    """The global sites, with independent Normal entries."""
    return {
        name: rows.normal(name, shape, machine.weight_scale if "weights" in name else machine.bias_scale)
        for name, shape in shapes(columns, machine.num_hidden).items()
    }


def single(params: Params, below: int, above: int) -> Params:
    """A restricted machine with this many copies of either side, as one with one copy: the mean over copies."""
    weights = params["weights"]
    visible, hidden = (size // copies for size, copies in zip(weights.shape, (below, above), strict=True))
    return {
        "weights": weights.reshape(below, visible, above, hidden).mean((0, 2)),
        "visible_bias": params["visible_bias"].reshape(below, visible).mean(0),
        "hidden_bias": params["hidden_bias"].reshape(above, hidden).mean(0),
    }
