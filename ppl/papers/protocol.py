"""What a paper's recipe prints: numbers beside those published, and how far the protocol was followed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Published:
    """A number from a paper.

    Parameters
    ----------
    value
        As printed there.
    source
        ``"paper"``: seen quoted; ``"memory"``: recalled, and not to be relied on.
    """

    value: float
    source: Literal["paper", "memory"] = "paper"


def row(what: str, found: float, error: float, published: Published | None, **more: Any) -> dict[str, Any]:
    """A line of the table: the number found and its Monte-Carlo error, the published one, and their difference."""
    line: dict[str, Any] = {"what": what, "found": round(found, 3), "± (Monte Carlo)": round(error, 3)}
    if published is not None:
        line |= {
            "published": published.value,
            "difference": round(found - published.value, 3),
            "quoted from": published.source,
        }
    return line | more


def steps(budget: float, epochs: float, per_epoch: int) -> int:
    """Steps of this share of so many epochs, at least one.

    Raises
    ------
    ValueError
        When the budget is not above 0 and at most 1.
    """
    if not 0 < budget <= 1:
        raise ValueError(f"budget is {budget}; expected a share of the published training, above 0 and at most 1.")
    return max(1, round(budget * epochs * per_epoch))


def differing(**options: tuple[Any, Any]) -> list[str]:
    """Options that are not the protocol's, each ``name=(value, the protocol's)``, in words."""
    changed = [(name.replace("_", " "), *pair) for name, pair in options.items() if pair[0] != pair[1]]
    return [f"{name} {value:,} and not {published:,}" for name, value, published in changed]


def told(budget: float, epochs: float, deviations: list[str]) -> str:
    """How far the protocol was followed, in a sentence or two."""
    if budget < 1:
        deviations = [f"{budget * epochs:,.3g} of {epochs:,.0f} epochs, with the schedule shrunk alike", *deviations]
    if not deviations:
        return "The published protocol, in full."
    return "Not the published protocol: " + "; ".join(deviations) + "."
