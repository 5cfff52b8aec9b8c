"""How good a training set do a model's draws make: classifiers of drawn images, on images of the data.

ppl run examples/classification_accuracy.py --data mnist --channels 64 --epochs 10 --prior-epochs 10

On ImageNet (top-1 accuracy of a ResNet-50, in %): BigGAN 42.65, VQ-VAE-2 54.83, VQ-VAE-2's reconstructions 58.74, the
data 73.09. The reconstructions bound what its draws can reach: they lose what the codes leave out, and the draws lose
beside that what the prior over the codes gets wrong.

References
----------
Classification Accuracy Score for Conditional Generative Models (Ravuri & Vinyals, 2019).
Generating Diverse High-Fidelity Images with VQ-VAE-2 (Razavi, van den Oord & Vinyals, 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optax

from guides import ConditionalNormal, HierarchicalVectorQuantized, empty
from inference import SVI, Fit, fit, quality
from inference.objectives import ELBO, MovingCodebook, codebook_moves
from ppl import figures
from ppl.recipe import Result
from ppl_models import Codes, ConditionalVAE, HierarchicalVQVAE, PixelCNN, datasets
from ppl_models.code_priors import PixelCodes
from ppl_models.likelihoods import Categorical, GaussianSharedScale
from ppl_models.networks import MLP, GridDecoder, GridEncoder

Draw = Callable[[np.ndarray, int], np.ndarray]  # of labels and a seed, rows


def main(
    *,
    data: str = "digits",
    levels: int = 17,
    num_codes: int = 64,
    code_dim: int = 8,
    channels: int = 32,
    latent_dim: int = 8,
    epochs: int = 60,
    prior_epochs: int = 60,
    batch_size: int = 100,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> dict[str, Result]:
    """Classifiers that have seen a model's draws alone, tested on images of the data.

    Each model of images and classes draws an image for every label of the training set. One and the same classifier is
    trained on each of these sets, and on the training images themselves.

    Parameters
    ----------
    data
        digits or mnist: images with labels, whose sides are multiples of 4.
    levels
        Grey levels that the PixelCNN draws; digits have 17.
    num_codes
        Vectors in the codebook of each of the VQ-VAE's two levels.
    code_dim
        Their length.
    channels
        Of each convolution.
    latent_dim
        Length of the conditional variational autoencoder's latent.
    epochs
        Passes over the images, of each model.
    prior_epochs
        Passes over the codes.
    batch_size
        Images in a step.
    learning_rate
        Of Adam; it falls exponentially to a tenth.
    seed
        Of runs and draws.
    """
    train, test = datasets.load(data, "none")
    if train.labels is None or test.labels is None or train.image_shape is None:
        raise ValueError(f"{data} has no labels or no images; expected digits or mnist.")
    x, y, shape = train.arrays["x"], train.labels, train.image_shape
    classes = int(y.max()) + 1

    def learn(model: Any, guide: Any, objective: Any, rows: Any, passes: int, moves: Any = lambda adam: adam) -> Fit:
        rate = optax.exponential_decay(learning_rate, passes * -(-len(train) // batch_size), 0.1)
        algorithm = SVI(model, guide, objective, moves(optax.adam(rate)))
        return fit(algorithm, rows, key=seed, num_epochs=passes, batch_size=batch_size)

    # VQ-VAE-2: codes of two levels, then a prior of each, told the class, and of the lower one told the upper.
    grids = tuple((shape[0] // 2**n, shape[1] // 2**n) for n in (2, 1))
    vq = HierarchicalVQVAE(
        num_codes, code_dim, grids, GridDecoder((channels,), image_shape=shape), GaussianSharedScale(0.3)
    )
    encoders = tuple(GridEncoder((channels,) * n, image_shape=shape) for n in (2, 1))
    guide = HierarchicalVectorQuantized(num_codes, code_dim, grids, encoders)
    autoencoder = learn(vq, guide, MovingCodebook(decay=0.9, restart=0.1), train, epochs, codebook_moves)
    z = {n: v[0] for n, v in autoencoder.sample_posterior(train).items()}
    program = Codes(PixelCodes(2 * channels, (3, 3)), classes)
    top = learn(program, empty, ELBO(), {"x": z["z1"], "y": y}, prior_epochs)
    given = {"above": np.asarray(vq.above(z, 2)), "y": y}
    bottom = learn(program, empty, ELBO(), {"x": z["z2"]} | given, prior_epochs)

    def decoded(codes: Mapping[str, Any]) -> np.ndarray:
        return np.asarray(vq.decode(autoencoder.params, dict(codes), x.shape[1]))

    def from_codes(labels: np.ndarray, key: int) -> np.ndarray:
        z1 = top.generate(len(labels), key=key, given={"y": labels})["x"]
        above = np.asarray(vq.above({"z1": z1}, 2))
        z2 = bottom.generate(len(labels), key=key, given={"y": labels, "above": above})["x"]
        return decoded({"z1": z1, "z2": z2})

    grey = np.round((levels - 1) * x) / (levels - 1)
    pixels = learn(
        PixelCNN(channels, (5, 3, 3), shape, Categorical(levels), classes), empty, ELBO(), {"x": grey, "y": y}, epochs
    )
    mlp = MLP((256,), activation="relu")
    conditional = learn(
        ConditionalVAE(classes, latent_dim, mlp, GaussianSharedScale(0.3)),
        ConditionalNormal(classes, latent_dim, mlp),
        ELBO(),
        {"x": x, "y": y},
        epochs,
    )
    ways: dict[str, Draw] = {
        "VQ-VAE-2, priors told the class": from_codes,
        "PixelCNN, told the class": lambda labels, key: pixels.generate(len(labels), key=key, given={"y": labels})["x"],
        "conditional VAE": lambda labels, key: conditional.generate(
            len(labels), key=key, given={"y": labels}, expected=True
        )["x"],
    }
    sets = {"training images": x, "VQ-VAE-2 reconstructions": in_blocks(lambda rows, _: decoded(cut(z, rows)), len(x))}
    sets |= {name: in_blocks(lambda rows, key, way=way: way(y[rows], key), len(x)) for name, way in ways.items()}
    return {
        f"Accuracy on {len(test):,} held-out images of classifiers that saw": [
            score(name, rows, y, test, seed) for name, rows in sets.items()
        ],
        "Images": (
            figures.image_panels(
                {name: of_each_class(rows, y, classes) for name, rows in sets.items()}, shape, columns=classes, across=3
            ),
            "What the classifiers saw; a column for each class.",
        ),
        "Autoencoder": autoencoder,
        "Prior of the upper level": top,
        "Prior of the lower level": bottom,
        "PixelCNN": pixels,
        "Conditional VAE": conditional,
    }


def score(name: str, rows: np.ndarray, y: np.ndarray, test: datasets.Dataset, seed: int) -> dict[str, object]:
    """The accuracy in per cent, and the class that was hardest."""
    found = quality.classification_accuracy(rows, y, test.arrays["x"], test.labels, seed=seed)
    worst = min(found.by_class, key=lambda label: found.by_class[label])
    return {
        "images": name,
        "accuracy %": f"{100 * found.accuracy:.1f} ± {100 * found.standard_error:.1f}",
        "worst class": f"{worst}: {100 * found.by_class[worst]:.0f}",
    }


def in_blocks(draw: Callable[[slice, int], np.ndarray], count: int, size: int = 2000) -> np.ndarray:
    """Rows, a few thousand at a time, each block with a seed of its own."""
    return np.concatenate([draw(slice(i, min(i + size, count)), i) for i in range(0, count, size)])


def cut(arrays: Mapping[str, np.ndarray], rows: slice) -> dict[str, np.ndarray]:
    return {n: v[rows] for n, v in arrays.items()}


def of_each_class(rows: np.ndarray, y: np.ndarray, classes: int, lines: int = 4) -> np.ndarray:
    """The first rows of each class, a column for each."""
    return np.stack([rows[np.flatnonzero(y == c)[:lines]] for c in range(classes)], axis=1).reshape(-1, rows.shape[1])


if __name__ == "__main__":
    from ppl import run

    run(main)
