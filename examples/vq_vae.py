"""Images as a few whole numbers: a vector-quantized autoencoder, what its codes cost, and new images from them.

    bits of an image's codes = P log2 K                          under the uniform prior, P positions of K codes
                             = -log2 p(z)                        under a prior fitted to the codes
    bits of its pixels       = D log2 L                          D pixels of L grey levels, as they are stored

The codes leave out what the decoder's mean does not show: the rest of the image costs -log2 p(x | z) more.
"""

from __future__ import annotations

from dataclasses import replace
from math import log, log2, prod

import numpy as np
import optax

from guides import VectorQuantized, empty
from inference import SVI, fit
from inference.objectives import ELBO, MovingCodebook, VectorQuantization, codebook_moves
from ppl import figures
from ppl.recipe import Result
from ppl_models import VQVAE, Codes, datasets
from ppl_models.code_priors import AutoregressiveCodes, PixelCodes
from ppl_models.likelihoods import GaussianSharedScale
from ppl_models.networks import GridDecoder, GridEncoder

DENSE = AutoregressiveCodes(256)


def main(
    *,
    data: str = "digits",
    codebook: str = "moving",
    prior: AutoregressiveCodes | PixelCodes = DENSE,
    num_codes: int = 64,
    code_dim: int = 8,
    halvings: int = 1,
    channels: int = 32,
    epochs: int = 60,
    prior_epochs: int = 40,
    batch_size: int = 100,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> dict[str, Result]:
    """A vector-quantized autoencoder of images, and an autoregressive prior over its codes.

    The encoder puts a vector on each patch of the image, of which the nearest vector of the codebook is kept. The prior
    is fitted to the codes of the training images once encoder and decoder are: it draws new codes, and says how many
    bits they are worth.

    Parameters
    ----------
    data
        digits, mnist, or the path of a .npy, .npz or .csv file.
    codebook
        How it is learned: moving (averages, with restarts of unused codes) or loss.
    prior
        Over the codes: a masked dense network, or a PixelCNN, whose weights serve every position of a large grid.
    num_codes
        Vectors in the codebook, K.
    code_dim
        Their length.
    halvings
        Stride-2 convolutions of the encoder: codes stand for patches of 2ⁿ x 2ⁿ pixels.
    channels
        Of each convolution.
    epochs
        Passes over the images.
    prior_epochs
        Passes over their codes.
    batch_size
        Images in a step.
    learning_rate
        Of Adam.
    seed
        Of the runs.
    """
    train, test = datasets.load(data, "none")
    assert train.image_shape is not None
    height, width = train.image_shape[:2]
    shape = (height // 2**halvings, width // 2**halvings)
    layers = (channels,) * halvings
    model = VQVAE(
        num_codes, code_dim, shape, GridDecoder(layers, image_shape=train.image_shape), GaussianSharedScale(0.3)
    )
    guide = VectorQuantized(num_codes, code_dim, shape, GridEncoder(layers, image_shape=train.image_shape))
    adam = optax.adam(learning_rate)
    objective = MovingCodebook(decay=0.9, restart=0.1) if codebook == "moving" else VectorQuantization()
    optimizer = codebook_moves(adam) if codebook == "moving" else adam
    run = fit(SVI(model, guide, objective, optimizer), train, key=seed, num_epochs=epochs, batch_size=batch_size)

    codes, new_codes = (run.sample_posterior(part)["z"][0] for part in (train, test))
    over_codes = fit(
        SVI(Codes(prior), empty, ELBO(), optax.adam(2e-3)),
        codes,
        key=seed,
        num_epochs=prior_epochs,
        batch_size=batch_size,
    )
    # The same model with the fitted prior in the place of the uniform one.
    algorithm = replace(run.algorithm, model=replace(model, prior=prior))
    with_prior = replace(run, algorithm=algorithm, params=run.params | over_codes.params)

    few = test[:12].arrays["x"]
    panels = {
        "data": train[:40].arrays["x"],
        "codes from the uniform prior": run.generate(40, expected=True)["x"],
        "from the fitted prior": with_prior.generate(40, expected=True)["x"],
    }
    return {
        "What an image costs": costs(train, new_codes, over_codes.log_likelihood(new_codes).mean, num_codes),
        "Reconstructions": figures.image_rows(
            {"held out": few, "from codes": run.reconstruct(few)["x"]}, train.image_shape
        ),
        "Samples": figures.image_panels(panels, train.image_shape, columns=8, across=3),
        "Autoencoder": run,
        "Prior": over_codes,
    }


def costs(train: datasets.Dataset, codes: np.ndarray, log_prior: float, num_codes: int) -> list[dict[str, object]]:
    """Bits of a held-out image: as pixels, as codes of equal length, and as codes under the fitted prior."""
    levels, pixels, positions = len(np.unique(train.arrays["x"])), train.arrays["x"].shape[1], prod(codes.shape[1:-1])
    stored = pixels * log2(levels)
    kinds = [
        ("pixels", f"{pixels} log2 {levels}", stored),
        ("codes, uniform prior", f"{positions} log2 {num_codes}", positions * log2(num_codes)),
        ("codes, fitted prior", "-log2 p(z)", -log_prior / log(2)),
    ]
    return [
        {"as": name, "arithmetic": how, "bits": round(bits, 1), "of the pixels": f"{bits / stored:.1%}"}
        for name, how, bits in kinds
    ]


if __name__ == "__main__":
    from ppl import run

    run(main)
