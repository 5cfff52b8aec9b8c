"""Images as codes on several levels: what each level adds, and what it costs.

bits of an image's codes = sum over levels of P_l log2 K        P_l = h_l w_l positions of K codes
"""

from __future__ import annotations

from math import log, log2, prod

import numpy as np
import optax

from guides import HierarchicalVectorQuantized, empty
from inference import SVI, Fit, fit
from inference.objectives import ELBO, MovingCodebook, codebook_moves
from ppl import figures
from ppl.recipe import Result
from ppl_models import Codes, HierarchicalVQVAE, datasets
from ppl_models.code_priors import AutoregressiveCodes
from ppl_models.likelihoods import GaussianSharedScale
from ppl_models.networks import GridDecoder, GridEncoder


def main(
    *,
    data: str = "digits",
    levels: int = 3,
    num_codes: int = 32,
    code_dim: int = 8,
    channels: int = 32,
    epochs: int = 60,
    prior_epochs: int = 40,
    batch_size: int = 100,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> dict[str, Result]:
    """A hierarchy of codes: the top says what the image is about, each level below adds detail.

    The bottom level has codes for patches of 2x2 pixels, the next for 4x4, and so on up. Images are decoded from
    the top level alone, then with one level more at a time, those left out at their prior mean.

    Parameters
    ----------
    data
        digits, mnist, or the path of a .npy, .npz or .csv file.
    levels
        How many; the sides of the images are multiples of 2 to that power.
    num_codes
        Vectors in each level's codebook.
    code_dim
        Their length.
    channels
        Of each convolution.
    epochs
        Passes over the images.
    prior_epochs
        Passes over their codes, for the prior of all levels.
    batch_size
        Images in a step.
    learning_rate
        Of Adam.
    seed
        Of the runs.
    """
    train, test = datasets.load(data, "none")
    image = train.image_shape
    assert image is not None
    halvings = range(levels, 0, -1)  # of each level, from the top down
    shapes = tuple((image[0] // 2**n, image[1] // 2**n) for n in halvings)
    model = HierarchicalVQVAE(
        num_codes, code_dim, shapes, GridDecoder((channels,), image_shape=image), GaussianSharedScale(0.3)
    )
    encoders = tuple(GridEncoder((channels,) * n, image_shape=image) for n in halvings)
    guide = HierarchicalVectorQuantized(num_codes, code_dim, shapes, encoders)
    # The codes of the top are few a batch, and its encoder moves fast at first: a short memory and early restarts.
    objective, optimizer = MovingCodebook(decay=0.9, restart=0.1), codebook_moves(optax.adam(learning_rate))
    run = fit(SVI(model, guide, objective, optimizer), train, key=seed, num_epochs=epochs, batch_size=batch_size)

    codes, new = ({n: v[0] for n, v in run.sample_posterior(part).items()} for part in (train, test))
    algorithm = SVI(Codes(AutoregressiveCodes(256)), empty, ELBO(), optax.adam(2e-3))
    prior = fit(algorithm, np.asarray(model.joined(codes)), key=seed, num_epochs=prior_epochs, batch_size=batch_size)
    drawn = model.split(prior.generate(40)["x"])

    x = test.arrays["x"]
    decoded = {used: np.asarray(model.decode(run.params, new, x.shape[1], used)) for used in range(1, levels + 1)}
    names = {1: "top", levels: "all levels"} | {used: f"top {used}" for used in range(2, levels)}
    rows = {"held out": x[:12]} | {names[used]: image[:12] for used, image in decoded.items()}
    panels = {
        "data": train[:40].arrays["x"],
        "codes from their prior": np.asarray(model.decode(run.params, drawn, x.shape[1])),
    }
    return {
        "What each level adds": added(model, decoded, x),
        "What an image costs": costs(model, train, prior, np.asarray(model.joined(new))),
        "Reconstructions": figures.image_rows(rows, image),
        "Samples": figures.image_panels(panels, image, columns=8, across=2),
        "Autoencoder": run,
        "Prior of all levels": prior,
    }


def added(model: HierarchicalVQVAE, decoded: dict[int, np.ndarray], x: np.ndarray) -> list[dict[str, object]]:
    """Mean squared error a pixel with the first levels, and the bits of their codes."""
    table: list[dict[str, object]] = []
    for used, image in decoded.items():
        positions = [prod(shape) for shape in model.latent_shapes[:used]]
        table.append(
            {
                "levels": used,
                "positions": " + ".join(map(str, positions)),
                "bits": round(sum(positions) * log2(model.num_codes), 1),
                "squared error a pixel": round(float(((image - x) ** 2).mean()), 5),
            }
        )
    return table


def costs(model: HierarchicalVQVAE, train: datasets.Dataset, prior: Fit, codes: np.ndarray) -> list[dict[str, object]]:
    """Bits of a held-out image: as pixels, as codes of equal length, and as codes under the fitted prior."""
    grey, pixels, positions = len(np.unique(train.arrays["x"])), train.arrays["x"].shape[1], codes.shape[1]
    fitted = -prior.log_likelihood(codes).mean / log(2)
    kinds = [
        ("pixels", f"{pixels} log2 {grey}", pixels * log2(grey)),
        ("codes, uniform prior", f"{positions} log2 {model.num_codes}", positions * log2(model.num_codes)),
        ("codes, fitted prior", "-log2 p(z)", fitted),
    ]
    return [{"as": name, "arithmetic": how, "bits": round(bits, 1)} for name, how, bits in kinds]


if __name__ == "__main__":
    from ppl import run

    run(main)
