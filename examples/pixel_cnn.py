"""A gated PixelCNN of images of a few grey levels or of two, of classes if it is told them.

ppl run examples/pixel_cnn.py --data mnist --binarization dynamic --classes False --channels 32 --epochs 30
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import optax

import guides
from inference import SVI, fit
from inference.objectives import ELBO
from ppl import figures
from ppl.recipe import Result
from ppl_models import PixelCNN, datasets
from ppl_models.datasets import Binarization, Dataset
from ppl_models.likelihoods import Bernoulli, Categorical


def main(
    *,
    data: str = "digits",
    binarization: Binarization = "none",
    levels: int = 4,
    classes: bool = True,
    channels: int = 16,
    kernel_sizes: tuple[int, ...] = (5, 3, 3),
    epochs: int = 40,
    batch_size: int = 100,
    learning_rate: float = 5e-3,
    seed: int = 0,
) -> dict[str, Result]:
    """A gated PixelCNN of images, by maximum likelihood.

    Grey levels are rounded to so many. Told the classes of images, the model is of pairs: log p(x, y) is the log
    likelihood of an image in its class, less the log of how many classes there are.

    Parameters
    ----------
    data
        digits, mnist, or the path of a .npy, .npz or .csv file.
    binarization
        How grey levels become 0 and 1, or none.
    levels
        Grey levels of a pixel, 2 to 256, where they do not.
    classes
        Whether the model is told labels, where the data have them.
    channels
        Channels of each layer.
    kernel_sizes
        Odd widths of the kernels.
    epochs
        Passes over the data.
    batch_size
        Images in a step.
    learning_rate
        Of Adam; it falls exponentially to a tenth.
    seed
        Of the run.
    """
    train, test = datasets.load(data, binarization)
    levels = levels if binarization == "none" else 2
    shape = train.image_shape
    if shape is None or len(shape) != 2:
        raise ValueError(f"{data} has image shape {shape}; expected grey images, (height, width).")
    told = classes and train.labels is not None
    count = int(train.labels.max()) + 1 if told else 0

    def pixels_and_class(dataset: Dataset) -> Dataset:
        x = dataset.arrays["x"] if binarization != "none" else np.round((levels - 1) * dataset.arrays["x"])
        return replace(dataset, arrays={"x": x, "y": dataset.labels} if told else {"x": x})

    train, test = pixels_and_class(train), pixels_and_class(test)
    likelihood = Bernoulli() if levels == 2 else Categorical(levels)
    model = PixelCNN(channels, kernel_sizes, shape, likelihood, count)
    steps = epochs * -(-len(train) // batch_size)
    algorithm = SVI(model, guides.empty, ELBO(), optax.adam(optax.exponential_decay(learning_rate, steps, 0.1)))
    run = fit(algorithm, train, key=seed, num_epochs=epochs, batch_size=batch_size, validation=test[:1000])
    found = run.log_likelihood(test)
    line = {"nats per image": round(found.mean, 3), "standard error": round(found.standard_error, 3)}
    if told:
        line |= {"given its class": round(found.mean + float(np.log(count)), 3)}
    results: dict[str, Result] = {
        f"Log likelihood of {len(test):,} held-out images of {test.name}, {levels} levels": [line],
        "PixelCNN": run,
    }
    size, pixels = 8 * max(count, 5), shape[0] * shape[1]
    blank = {"x": np.zeros((size, pixels), np.float32)}
    if told:
        blank["y"] = np.repeat(np.arange(count), 8)
    drawn = run.complete(blank, observed=False, key=seed)["x"]
    results["Samples"] = (
        figures.image_panels({"samples": drawn / (levels - 1)}, shape, columns=16 if told else 8),
        "Draws of the model, pixel after pixel" + ("; eight of each class." if told else "."),
    )
    few = test[:12].arrays
    upper = np.arange(pixels) < pixels // 2
    shown = {"held out": few["x"], "given": np.where(upper, few["x"], (levels - 1) / 2)}
    shown |= {f"completed {i + 1}": run.complete(few, observed=upper, key=i)["x"] for i in range(3)}
    results["Completion"] = (
        figures.image_rows({n: v / (levels - 1) for n, v in shown.items()}, shape),
        "The lower half of held-out images drawn given the upper half, exactly, three times.",
    )
    return results


if __name__ == "__main__":
    from ppl import run

    run(main)
