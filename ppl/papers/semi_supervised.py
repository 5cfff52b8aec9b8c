"""Semi-supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed and Welling, 2014), M2, table 1.

ppl reproduce semi_supervised --labels 100 --budget 0.05
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import optax

from guides import SemiSupervisedNormal
from inference import SVI, fit
from inference.objectives import EnumeratedELBO
from ppl.papers.protocol import Published, differing, row, steps, told
from ppl.recipe import Result
from ppl_models import SemiSupervisedVAE, datasets
from ppl_models.datasets import Dataset
from ppl_models.networks import MLP

EPOCHS = 1000
PUBLISHED = {  # test error in percent
    100: Published(11.97),
    600: Published(4.94, "memory"),
    1000: Published(3.60),
    3000: Published(3.92, "memory"),
}


def main(
    *,
    data: str = "mnist",
    labels: Literal[100, 600, 1000, 3000] = 100,
    budget: float = 1.0,
    hidden: int = 500,
    batch_size: int = 200,
    learning_rate: float = 3e-4,
    alpha: float = 0.1,
    repeats: int = 1,
    seed: int = 0,
) -> dict[str, Result]:
    """Test error of the classifier inside M2, learned from few labelled images and all the others.

    50 latents, networks of one hidden layer of 500 softplus units; equally many labels a class.

    Parameters
    ----------
    data
        mnist as in the paper, or another data set for trying it out.
    labels
        Images whose class is told.
    budget
        Share of 1,000 epochs.
    hidden
        Units of the hidden layers.
    batch_size
        Images in a step.
    learning_rate
        Of Adam, 3e-4 in the paper; it falls exponentially to a tenth.
    alpha
        Weight of the mean of log q(y | x) over the labelled images, times all images: 0.1 in the paper.
    repeats
        How often each labelled image is among the rows, its label weighted down alike: with few labels a step that
        sees none of them, or one whose weight is that of thousands, is mostly noise.
    seed
        Of the run, and of which images are labelled.
    """
    train, test = datasets.load(data, "dynamic")
    assert train.labels is not None and test.labels is not None
    y = partly_labelled(train.labels, labels, np.random.default_rng(seed))
    partly = Dataset(train.name, dict(train.arrays) | {"y": y}, train.transform, image_shape=train.image_shape)
    partly = partly[np.concatenate([np.arange(len(y)), np.tile(np.flatnonzero(y >= 0), repeats - 1)])]
    classes, num_steps = int(train.labels.max()) + 1, steps(budget, EPOCHS, -(-len(partly) // batch_size))
    dense = MLP((hidden,), "softplus")
    guide = SemiSupervisedNormal(classes, 50, dense, classifier=dense, alpha=alpha * len(train) / (labels * repeats))
    optimizer = optax.adam(optax.exponential_decay(learning_rate, num_steps, 0.1))
    model = SemiSupervisedVAE(classes, 50, decoder=dense)
    run = fit(
        SVI(model, guide, EnumeratedELBO(), optimizer), partly, key=seed, num_steps=num_steps, batch_size=batch_size
    )
    guessed = guide.class_probs(run.params, test.arrays["x"]).argmax(-1)
    share = float(np.mean(guessed != test.labels))
    error = 100 * (share * (1 - share) / len(guessed)) ** 0.5
    changes = {
        f"{data} and not MNIST": data != "mnist",
        "labelled images come among the others as they may, and not so many in every batch": True,
        f"each labelled image is among the rows {repeats} times": repeats != 1,
        "the learning rate falls to a tenth, as many epochs as stated in place of early stopping": True,
    }
    deviations = differing(
        hidden=(hidden, 500), batch_size=(batch_size, 200), learning_rate=(learning_rate, 3e-4), alpha=(alpha, 0.1)
    )
    return {
        f"Test error on {test.name}, percent": [
            row(f"M2, {labels} labels", 100 * share, error, PUBLISHED[labels] if data == "mnist" else None)
        ],
        "Protocol": told(budget, EPOCHS, [what for what, differs in changes.items() if differs] + deviations),
        f"M2, {labels} labels": run,
    }


def partly_labelled(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """The classes of ``count`` rows, equally many of each, and -1 for the others."""
    y, classes = np.full(len(labels), -1, np.int32), np.unique(labels)
    for c in classes:
        told = rng.choice(np.flatnonzero(labels == c), count // len(classes), replace=False)
        y[told] = c
    return y


if __name__ == "__main__":
    from ppl import run

    run(main)
