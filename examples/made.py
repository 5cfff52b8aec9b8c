"""A masked autoencoder of binary images: exact likelihoods, and images completed from their upper half.

ppl run examples/made.py --data mnist --binarization dynamic --hidden 500 --learning-rate 3e-3
"""

from __future__ import annotations

import numpy as np
import optax

import guides
from inference import SVI, fit
from inference.objectives import ELBO
from ppl import figures
from ppl.recipe import Result
from ppl_models import MADE, datasets
from ppl_models.datasets import Binarization


def main(
    *,
    data: str = "digits",
    binarization: Binarization = "dynamic",
    hidden: tuple[int, ...] = (500,),
    num_masks: int = 1,
    epochs: int = 100,
    batch_size: int = 100,
    learning_rate: float = 1e-2,
    seed: int = 0,
) -> dict[str, Result]:
    """A masked autoencoder of binary images, by maximum likelihood.

    There is nothing to guess: the guide is empty, the bound is the log likelihood, and that of held-out images is
    exact. It depends on how the images were made binary, so it is compared only with others under the same
    binarization.

    Parameters
    ----------
    data
        digits, mnist, or the path of a .npy, .npz or .csv file.
    binarization
        How grey levels become 0 and 1.
    hidden
        Widths of the hidden layers.
    num_masks
        Orders of the pixels whose densities are averaged; with one, halves of images can be completed.
    epochs
        Passes over the data.
    batch_size
        Images in a step.
    learning_rate
        Of Adam; it falls exponentially to a hundredth.
    seed
        Of the run.
    """
    train, test = datasets.load(data, binarization)
    shape, held_out = train.image_shape, test.arrays["x"]
    steps = epochs * -(-len(train) // batch_size)
    optimizer = optax.adam(optax.exponential_decay(learning_rate, steps, 0.01))
    algorithm = SVI(MADE(hidden, num_masks), guides.empty, ELBO(), optimizer)
    run = fit(algorithm, train, key=seed, num_epochs=epochs, batch_size=batch_size, validation=test[:1000])
    found = run.log_likelihood(held_out)
    results: dict[str, Result] = {
        f"Log likelihood of {len(held_out):,} held-out images of {test.name}": [
            {"nats per image": round(found.mean, 3), "standard error": round(found.standard_error, 3)}
        ],
        "MADE": run,
    }
    if shape is None:
        return results
    images = {"held out": held_out[:40], "samples": run.generate(40)["x"]}
    results["Samples"] = (
        figures.image_panels(images, shape, columns=8, across=2),
        "Images beside draws of the model, pixel after pixel.",
    )
    if num_masks == 1:
        few = held_out[:12]
        upper = np.arange(few.shape[1]) < few.shape[1] // 2
        rows = {"held out": few, "given": np.where(upper, few, 0.5)}
        rows |= {f"completed {i + 1}": run.complete(few, observed=upper, key=i)["x"] for i in range(3)}
        results["Completion"] = (
            figures.image_rows(rows, shape),
            "The lower half of held-out images drawn given the upper half, exactly, three times.",
        )
    return results


if __name__ == "__main__":
    from ppl import run

    run(main)
