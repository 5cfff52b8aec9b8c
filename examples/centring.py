"""Centring: a small Boltzmann machine learned with and without it, from images and from their negatives, exactly.

ppl run examples/centring.py --data mnist --num-hidden 16 --batch-size 100 --learning-rate 0.01
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import optax

from inference import ContrastiveDivergence, bracket, fit
from ppl import figures
from ppl.recipe import Result
from ppl_models import RBM, datasets


def main(
    *,
    data: str = "digits",
    num_hidden: int = 8,
    epochs: int = 50,
    batch_size: int = 50,
    learning_rate: float = 0.05,
    seed: int = 0,
) -> dict[str, Result]:
    """A small restricted Boltzmann machine by persistent contrastive divergence, with and without centring.

    A machine of images and one of their negatives are one machine, with other signs: what learns the one well should
    learn the other. The plain gradient does not, because weights and biases pull the same way where units are mostly
    on; in centred units it is all the same. Likelihoods are exact, by enumerating the hidden units.

    Parameters
    ----------
    data
        digits, mnist, or the path of a .npy, .npz or .csv file; grey levels are cut in half.
    num_hidden
        Hidden units, at most 20.
    epochs
        Passes over the data.
    batch_size
        Images in a step, and persistent chains.
    learning_rate
        Of stochastic gradient descent.
    seed
        Of the runs.
    """
    train, test = datasets.load(data, "threshold")
    table, filters, results = [], {}, {}
    for images in ("images", "negatives"):
        rows, held_out = (
            part if images == "images" else replace(part, arrays=dict(part.arrays) | {"x": 1 - part.arrays["x"]})
            for part in (train, test)
        )
        for name, centring in (("centred", 0.01), ("plain", None)):
            algorithm = ContrastiveDivergence(
                RBM(num_hidden), persistent=True, optimizer=optax.sgd(learning_rate), centring=centring
            )
            run = fit(algorithm, rows, key=seed, num_epochs=epochs, batch_size=batch_size)
            nats = {
                part: round(bracket(run, found.arrays["x"]).forward.mean, 2)
                for part, found in (("training", rows), ("held out", held_out))
            }
            table.append({"of": images, "gradient": name} | nats | {"seconds": round(run.info["seconds"], 1)})
            results[f"{name}, {images}"] = run
            filters[f"{name}, {images}"] = np.asarray(run.params["weights"]).T
    found: dict[str, Result] = {f"Log likelihood, nats an image of {train.name}": table}
    if train.image_shape is not None:
        found["Filters"] = (
            figures.image_panels(filters, train.image_shape, columns=4, across=4),
            "Weights from hidden units to pixels.",
        )
    return found | results


if __name__ == "__main__":
    from ppl import run

    run(main)
