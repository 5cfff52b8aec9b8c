"""A gated PixelCNN of images, grey or in colour, of two levels or of 256, of classes if it is told them.

ppl run examples/pixel_cnn.py --data mnist --binarization dynamic --no-classes --channels 32 --epochs 30
ppl run examples/pixel_cnn.py --data photographs.npy --levels 256 --logistics 5
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
from ppl_models import PixelCNN, bits_per_dimension, datasets
from ppl_models.datasets import Binarization, Dataset
from ppl_models.likelihoods import Bernoulli, Categorical, DiscretizedLogisticMixture


def main(
    *,
    data: str = "digits",
    binarization: Binarization = "none",
    levels: int = 4,
    logistics: int = 0,
    classes: bool = True,
    channels: int = 16,
    kernel_sizes: tuple[int, ...] = (5, 3, 3),
    epochs: int = 40,
    batch_size: int = 100,
    learning_rate: float = 5e-3,
    seed: int = 0,
) -> dict[str, Result]:
    """A gated PixelCNN of images, by maximum likelihood.

    Pixels are rounded to so many levels. Told the classes of images, the model is of pairs: log p(x, y) is the log
    likelihood of an image in its class, less the log of how many classes there are.

    Parameters
    ----------
    data
        digits, mnist, or the path of a .npy, .npz or .csv file.
    binarization
        How grey levels become 0 and 1, or none.
    levels
        Of a pixel, or of each of its colours, 2 to 256, where they do not.
    logistics
        How many rounded logistics the levels are a mixture of; with none, any distribution over them.
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
    if shape is None:
        raise ValueError(f"{data} are rows of {train.arrays['x'].shape[1]} numbers; expected images.")
    told = classes and train.labels is not None
    count = int(np.max(train.labels)) + 1 if told else 0

    def pixels_and_class(dataset: Dataset) -> Dataset:
        x = dataset.arrays["x"]
        x = np.round((levels - 1) * x) / (levels - 1) if binarization == "none" else x
        return replace(dataset, arrays={"x": x, "y": dataset.labels} if told else {"x": x})

    train, test = pixels_and_class(train), pixels_and_class(test)
    likelihood = Bernoulli() if levels == 2 else Categorical(levels)
    if logistics:
        likelihood = DiscretizedLogisticMixture(logistics, levels)
    model = PixelCNN(channels, kernel_sizes, shape, likelihood, count)
    steps, pixels = epochs * -(-len(train) // batch_size), train.arrays["x"].shape[1]
    algorithm = SVI(model, guides.empty, ELBO(), optax.adam(optax.exponential_decay(learning_rate, steps, 0.1)))
    run = fit(algorithm, train, key=seed, num_epochs=epochs, batch_size=batch_size, validation=test[:1000])
    found = run.log_likelihood(test)
    line = {"nats per image": round(found.mean, 3), "standard error": round(found.standard_error, 3)}
    if told:
        line |= {"given its class": round(found.mean + float(np.log(count)), 3)}
    bits = bits_per_dimension(found.mean + (np.log(count) if told else 0.0), pixels)
    line |= {"bits a value": round(bits, 3)}
    results: dict[str, Result] = {
        f"Log likelihood of {len(test):,} held-out images of {test.name}, {levels} levels": [line],
        "PixelCNN": run,
    }
    blank = {"x": np.zeros((8 * max(count, 5), pixels), np.float32)}
    if told:
        blank["y"] = np.repeat(np.arange(count), 8)
    drawn = run.complete(blank, observed=False, key=seed)["x"]
    results["Samples"] = (
        figures.image_panels({"samples": drawn}, shape, columns=16 if told else 8),
        "Draws of the model, pixel after pixel" + ("; eight of each class." if told else "."),
    )
    few = test[:12].arrays
    upper = np.arange(pixels) < pixels // 2
    shown = {"held out": few["x"], "given": np.where(upper, few["x"], 0.5)}
    shown |= {f"completed {i + 1}": run.complete(few, observed=upper, key=i)["x"] for i in range(3)}
    results["Completion"] = (
        figures.image_rows(shown, shape),
        "The lower half of held-out images drawn given the upper half, exactly, three times.",
    )
    return results


if __name__ == "__main__":
    from ppl import run

    run(main)
