"""What a classifier that is trained here says of rows: its features, and how good a training set draws make.

The classification accuracy score of a model of rows and labels is the accuracy on held-out rows of a classifier that
has seen its draws alone. Draws of the data's own law score what the training rows do; a model that drops part of a
class, draws what is not there, or mistakes labels scores less, which distances of unlabelled rows may not show.

References
----------
Classification Accuracy Score for Conditional Generative Models (Ravuri & Vinyals, 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

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


@dataclass(frozen=True)
class ClassifierFeatures:
    """What a network that tells labels makes of rows; called with rows, it gives its hidden units, (rows, hidden)."""

    network: Any

    def __call__(self, rows: Any) -> Float[np.ndarray, "rows hidden"]:
        return np.maximum(self._rows(rows) @ self.network.coefs_[0] + self.network.intercepts_[0], 0)

    def classify(self, rows: Any) -> Shaped[np.ndarray, " rows"]:
        """The label that it gives each row, for :func:`inference.quality.mode_coverage`."""
        return self.network.predict(self._rows(rows))

    def confidence(self, rows: Any) -> Float[np.ndarray, " rows"]:
        """The probability that it gives that label. Networks are surer than they are right: compare with real rows."""
        return self.network.predict_proba(self._rows(rows)).max(axis=1)

    def _rows(self, rows: Any) -> Rows:
        rows = as_rows("rows", rows)
        if rows.shape[1] != self.network.n_features_in_:
            raise BadData(f"rows has rows of {rows.shape[1]} numbers; expected {self.network.n_features_in_}.")
        return rows


def classifier_features(x: Any, labels: Any, *, hidden: int = 64, seed: int = 0) -> ClassifierFeatures:
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
    ClassifierFeatures
        From rows to features; its ``classify`` and ``confidence`` give labels, and how sure it is of them.

    Raises
    ------
    BadData
        Not a label for each row; and, when it is called, rows of another length.
    """
    x = as_rows("x", x)
    return ClassifierFeatures(_network(hidden, seed).fit(x, _labels("labels", labels, x)))


def _network(hidden: int, seed: int) -> Any:
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier((hidden,), early_stopping=True, max_iter=300, random_state=seed)


def _labels(name: str, labels: Any, rows: Rows) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (len(rows),):
        raise BadData(f"{name} has shape {labels.shape}; expected ({len(rows)},), a label for each row.")
    return labels


__all__ = ["ClassificationAccuracy", "ClassifierFeatures", "classification_accuracy", "classifier_features"]
