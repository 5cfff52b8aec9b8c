"""What a classifier that is trained here says of rows: its features, and how good a training set draws make.

The classification accuracy score of a model of rows and labels is the accuracy on held-out rows of a classifier that
has seen its draws alone. Draws of the data's own law score what the training rows do; a model that drops part of a
class, draws what is not there, or mistakes labels scores less, which distances of unlabelled rows may not show.

References
----------
Classification Accuracy Score for Conditional Generative Models (Ravuri & Vinyals, 2019).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from inference.errors import BadData
from inference.two_sample import Rows, as_rows


@dataclass(frozen=True)
class ClassificationAccuracy:
    """Which held-out rows a classifier got right that was trained on draws.

    Attributes
    ----------
    right
        Of each held-out row.
    labels
        Its label.
    """

    right: Bool[np.ndarray, " rows"]
    labels: np.ndarray

    @property
    def accuracy(self) -> float:
        """The share of them."""
        return float(self.right.mean())

    @property
    def standard_error(self) -> float:
        """Of the accuracy, over held-out rows: binomial."""
        return float(np.sqrt(self.accuracy * (1 - self.accuracy) / len(self.right)))

    @property
    def by_class(self) -> dict[Any, float]:
        """The share of each label's rows: a class that was dropped stands out."""
        return {label.item(): float(self.right[self.labels == label].mean()) for label in np.unique(self.labels)}


def classification_accuracy(
    draws: Any, labels: Any, held_out: Any, held_out_labels: Any, *, classifier: Any = None, seed: int = 0
) -> ClassificationAccuracy:
    """How well a classifier trained on a model's draws does on held-out rows of the data.

    Parameters
    ----------
    draws, labels
        Rows of the model, and the label that each was drawn for. For the number to compare with, the training rows and
        their own labels; draw as many.
    held_out, held_out_labels
        Rows of the data that neither the model nor a classifier has seen.
    classifier
        Of scikit-learn's kind; by default a network of 64 hidden units. Scores are comparable under the same one alone.
    seed
        Of the network.

    Raises
    ------
    BadData
        Rows of different lengths, or not a label for each.
    """
    draws = as_rows("draws", draws)
    held_out = as_rows("held_out", held_out, like=draws)
    labels, truth = _labels("labels", labels, draws), _labels("held_out_labels", held_out_labels, held_out)
    network = _network(64, seed) if classifier is None else classifier
    return ClassificationAccuracy(np.asarray(network.fit(draws, labels).predict(held_out) == truth), truth)


def classifier_features(x: Any, labels: Any, *, hidden: int = 64, seed: int = 0) -> Callable[[Any], np.ndarray]:
    """The hidden units of a network that is trained here to tell the labels of these rows.

    Parameters
    ----------
    x, labels
        Rows and a label for each.
    hidden
        How many units, and features.
    seed
        Of the network.

    Returns
    -------
    Callable
        From rows to features; its attribute ``classify`` gives labels, for
        :func:`inference.quality.mode_coverage`.
    """
    x = as_rows("x", x)
    network = _network(hidden, seed).fit(x, np.asarray(labels))

    def features(rows: Any) -> np.ndarray:
        return np.maximum(as_rows("rows", rows, like=x) @ network.coefs_[0] + network.intercepts_[0], 0)

    features.classify = lambda rows: network.predict(as_rows("rows", rows, like=x))  # pyright: ignore
    return features


def _network(hidden: int, seed: int) -> Any:
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier((hidden,), early_stopping=True, max_iter=300, random_state=seed)


def _labels(name: str, labels: Any, rows: Rows) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (len(rows),):
        raise BadData(f"{name} has shape {labels.shape}; expected ({len(rows)},), a label for each row.")
    return labels


__all__ = ["ClassificationAccuracy", "classification_accuracy", "classifier_features"]
