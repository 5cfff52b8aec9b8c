"""What unsupervised codes stand for: each is given the label that it goes with most often.

    label(k) = argmax_l #{positions with code k and label l},    purity: share of positions with the label of their code

The labels play no part in learning the codes. On rows that the majorities were not counted on, the share is an
accuracy, to be held beside that of always saying the most frequent label.

References
----------
Neural Discrete Representation Learning (van den Oord, Vinyals & Kavukcuoglu, 2017), which labels codes of speech with
phonemes so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from inference.errors import BadData


@dataclass(frozen=True)
class CodeLabels:
    """A label for each code.

    Attributes
    ----------
    label
        The most frequent label of each code; of a code that was not used, the most frequent of all.
    purity
        Share of the positions counted whose label is that of their code.
    most_frequent
        The most frequent label of all.
    """

    label: Int[np.ndarray, " codes"]
    purity: float
    most_frequent: int

    def accuracy(self, codes: Any, labels: Any) -> float:
        """Share of other positions whose label is that of their code."""
        codes, labels = _pairs(codes, labels, len(self.label))
        return float(np.mean(self.label[codes] == labels))

    def chance(self, labels: Any) -> float:
        """What always saying the most frequent label gets right."""
        return float(np.mean(np.asarray(labels) == self.most_frequent))


def label_codes(codes: Any, labels: Any, num_codes: int) -> CodeLabels:
    """Count which label each code goes with.

    Parameters
    ----------
    codes
        Whole numbers below ``num_codes``, of any shape: one-hot codes' ``argmax(-1)``.
    labels
        Whole numbers from 0, of the same shape.
    num_codes
        K.
    """
    codes, labels = _pairs(codes, labels, num_codes)
    counts = np.zeros((num_codes, labels.max() + 1), int)
    np.add.at(counts, (codes, labels), 1)
    most = int(counts.sum(axis=0).argmax())
    return CodeLabels(
        np.where(counts.any(axis=1), counts.argmax(axis=1), most), counts.max(axis=1).sum() / labels.size, most
    )


def _pairs(codes: Any, labels: Any, num_codes: int) -> tuple[np.ndarray, np.ndarray]:
    codes, labels = np.asarray(codes), np.asarray(labels)
    if codes.shape != labels.shape or not codes.size:
        raise BadData(f"codes have shape {codes.shape} and labels {labels.shape}; expected one label for each code.")
    for name, value in (("codes", codes), ("labels", labels)):
        if value.dtype.kind not in "iu" or value.min() < 0:
            raise BadData(f"{name} are {value.dtype}, from {value.min()}; expected whole numbers from 0.")
    if codes.max() >= num_codes:
        raise BadData(f"codes go up to {codes.max()}; expected numbers below {num_codes}.")
    return codes.ravel(), labels.ravel()


__all__ = ["CodeLabels", "label_codes"]
