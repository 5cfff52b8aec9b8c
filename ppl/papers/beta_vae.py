"""beta-VAE (Higgins et al., 2017) on sprites, and its mutual information gap (Chen et al., 2018).

ppl reproduce beta_vae --betas 1 4 --positions 8 --budget 0.02
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import optax

from guides import AmortizedNormal
from inference import SVI, Fit, fit, mutual_information_gap
from inference.latent_space import decode, encode, unit_kl
from inference.objectives import ELBO, Beta
from ppl import figures
from ppl.papers.protocol import differing, steps, told
from ppl.recipe import Result
from ppl_models import VAE
from ppl_models.datasets import Dataset
from ppl_models.datasets.sprites import FACTORS, SHAPES, sprites
from ppl_models.networks import MLP

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPOCHS, IMAGES = 50, 737_280  # of dSprites: an epoch here is of as many
LATENTS = 10
ROWS = 10_000  # images over which bound and KL are averaged


def main(
    *,
    betas: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0),
    side: int = 32,
    scales: int = 6,
    orientations: int = 20,
    positions: int = 16,
    hidden: int = 1200,
    budget: float = 1.0,
    batch_size: int = 2048,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> dict[str, Result]:
    """Reconstruction, KL and mutual information gap (MIG) of VAEs whose KL weighs beta times as much.

    The dense networks of Higgins et al.: two hidden layers of 1200 relu units to 10 latents, three of 1200 tanh units
    back; trained as in the code of Chen et al., by Adam at 1e-3, in batches of 2048, for 50 epochs. Their MIG is in
    figures alone, so that no number stands beside those found. As theirs, the MIG is the mean over scale, orientation
    and place, without the shape.

    Parameters
    ----------
    betas
        Weights of the KL, each a run.
    side
        Pixels of a side of an image.
    scales, orientations, positions
        Values of the factors; places across, and as many down.
    hidden
        Units of the hidden layers.
    budget
        Share of 50 epochs of 737,280 images.
    batch_size
        Images in a step.
    learning_rate
        Of Adam.
    seed
        Of the runs.
    """
    if max(scales, orientations, positions) < 2:
        raise ValueError("scales, orientations and positions are all 1; expected a factor beside the shape to vary.")
    data, factors = sprites(side, scales=scales, orientations=orientations, positions=positions)
    num_steps = steps(budget, EPOCHS, -(-IMAGES // batch_size))
    encoder = AmortizedNormal(LATENTS, MLP((hidden, hidden), "relu"))
    vae = VAE(LATENTS, MLP((hidden, hidden, hidden), "tanh"))
    some = data[np.random.default_rng(seed).permutation(len(data))[:ROWS]]
    table, runs, walks = [], {}, []
    for beta in betas:
        svi = SVI(vae, encoder, Beta(ELBO(), beta), optax.adam(learning_rate))
        run = fit(svi, data, key=seed, num_steps=num_steps, batch_size=min(batch_size, len(data)))
        kl = unit_kl(run, some)
        table.append({"beta": beta} | measured(run, data, factors, some, kl))
        runs[f"beta = {beta:g}"] = run
        walks += [traversals(run, example(data, factors), kl), f"beta = {beta:g}: units of the largest KL first."]
    changes = {
        f"{len(data):,} images drawn here, and not the {IMAGES:,} of dSprites": True,
        f"{side} × {side} pixels and not 64 × 64: the fewer they are, the more a beta weighs": side != 64,
        "MIG by bins of draws, and not by their density": True,
    }
    deviations = differing(
        hidden=(hidden, 1200),
        batch_size=(min(batch_size, len(data)), 2048),
        learning_rate=(learning_rate, 1e-3),
    )
    return {
        "Reconstruction and KL in nats per image, and what units tell of factors": table,
        "Protocol": told(budget, EPOCHS, [what for what, differs in changes.items() if differs] + deviations),
        "Traversals": tuple(walks),
        **runs,
    }


def measured(run: Fit, data: Dataset, factors: np.ndarray, some: Dataset, kl: np.ndarray) -> dict[str, Any]:
    """A line of the table: the terms of the plain bound, and the gaps."""
    bound = run.log_likelihood(some, num_particles=1).mean  # of one draw it is the bound
    varied = [k for k, values in enumerate(factors.T) if values.any()]
    gap = mutual_information_gap(run.sample_posterior(data)["z"][0], factors[:, varied])
    gaps = dict(zip([FACTORS[k] for k in varied], gap.gaps, strict=True))
    without_shape = [v for name, v in gaps.items() if name != "shape"]
    return {
        "reconstruction": round(float(bound + kl.sum()), 2),
        "KL": round(float(kl.sum()), 2),
        "bound": round(float(bound), 2),
        "MIG": round(float(np.mean(without_shape)), 3),
        **{f"gap, {name}": round(float(v), 3) for name, v in gaps.items()},
    }


def example(data: Dataset, factors: np.ndarray) -> Dataset:
    """A heart, large and upright, in the middle."""
    middle = factors.max(axis=0) // 2
    wanted = (SHAPES.index("heart"), factors[:, 1].max(), 0, middle[3], middle[4])
    return data[(factors == wanted).all(axis=1)]


def traversals(run: Fit, start: Dataset, kl: np.ndarray) -> Figure:
    """One unit moved at a time from the code of an image, those of the largest KL first."""
    code, rows = encode(run, start)[0], {}
    for j in np.argsort(-kl):
        codes = np.tile(code, (9, 1))
        codes[:, j] = np.linspace(-2.5, 2.5, 9)
        rows[f"unit {j}, {kl[j]:.2f} nats"] = decode(run, codes)
    assert start.image_shape is not None
    greys = np.linspace(0, 1, start.arrays["x"].shape[1])  # all of them: light on dark, as dSprites are
    return figures.image_rows(rows, start.image_shape, like=greys)


if __name__ == "__main__":
    from ppl import run

    run(main)
