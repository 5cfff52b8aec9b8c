"""The latent space of a variational autoencoder: manifold, holes, paths, directions, and what the bound is made of.

ppl run examples/latent_space.py --data freyfaces.npz
"""

from __future__ import annotations

from typing import Any

import numpy as np
import optax

from guides import amortize
from inference import SVI, annealed_evidence, elbo_surgery, fit, inference_gaps, plots, simulated_evidence
from inference.annealed_evidence import sigmoid_schedule
from inference.latent_space import linear, spherical
from inference.objectives import ELBO
from ppl.recipe import Result
from ppl_models import VAE, datasets
from ppl_models.likelihoods import GaussianSharedScale
from ppl_models.networks import MLP

ROWS = 200  # held-out rows whose gaps and evidence are computed
CHAINS = 8


def main(
    *,
    data: str = "digits",
    image_shape: tuple[int, ...] | None = None,
    latent_dim: int = 10,
    hidden: tuple[int, ...] = (200, 200),
    epochs: int = 150,
    batch_size: int = 100,
    learning_rate: float = 1e-3,
    num_betas: int = 300,
    seed: int = 0,
) -> dict[str, Result]:
    """The latent space of a variational autoencoder of grey images.

    Two are fitted: one with a plane of latents, whose manifold and holes can be drawn, and one with more. Their
    encoders are made from the model by `amortize`.

    Parameters
    ----------
    data
        digits, mnist, or the path of a .npy, .npz or .csv file of images.
    image_shape
        Height and width of an image, where the data do not say.
    latent_dim
        Length of the latent of the second.
    hidden
        Widths of the decoder's hidden layers.
    epochs
        Passes over the data.
    batch_size
        Images in a step.
    learning_rate
        Of Adam.
    num_betas
        Inverse temperatures of annealed importance sampling.
    seed
        Of the runs.
    """
    train, test = datasets.load(data)

    def learned(dim: int, num_epochs: int):
        vae = VAE(dim, MLP(hidden), GaussianSharedScale())
        svi = SVI(vae, amortize(vae, train), ELBO(), optax.adam(learning_rate))
        return fit(svi, train, key=seed, num_epochs=num_epochs, batch_size=batch_size)

    ages = sorted({1, max(2, epochs // 20), max(3, epochs // 4)})
    plane, wide = learned(2, epochs), learned(latent_dim, epochs)
    x, some = test.arrays["x"], test[:ROWS]
    betas = sigmoid_schedule(num_betas)
    surgery, gaps = elbo_surgery(wide, train, test), inference_gaps(wide, some)
    evidence = annealed_evidence(wide, some, num_chains=CHAINS, betas=betas)
    both = simulated_evidence(wide, min(ROWS, 64), num_chains=CHAINS, betas=betas)

    bold = x.mean(axis=1) > np.median(x.mean(axis=1))  # an attribute that every data set of images has
    thin, rows = np.flatnonzero(~bold)[:10], len(x) // 2
    look: dict[str, Any] = {"image_shape": image_shape}
    return {
        f"{latent_dim} latents": wide,
        "2 latents": plane,
        "What the bound is made of, nats per image": [
            _line("reconstruction", surgery.reconstruction, "training images"),
            _line("index-code mutual information", surgery.mutual_information, f"at most {np.log(len(train)):.2f}"),
            _line("KL of aggregate posterior to prior", surgery.marginal_kl, "what the optimal prior gains"),
            _line("the same, gained on held-out images", surgery.held_out_gain, "the rest is its overfit"),
        ],
        f"What it loses, nats per image, {len(some)} held-out images": [
            _line("log p(x), 5,000 importance draws", gaps.evidence, "low rather than high"),
            _line("log p(x), annealed", evidence, f"low rather than high; on simulated images off by < {both.gap:.3f}"),
            _line("lost by independent Normals", gaps.approximation, "the best one of each image"),
            _line("lost by the encoder", gaps.amortization, "against the best one of each image"),
        ],
        "Manifold": (plots.manifold(plane, **look), "What the plane decodes to, at quantiles of the prior."),
        "Aggregate posterior": (
            plots.aggregate_posterior(plane, train, train.labels, **look),
            "Where images are encoded to, where the prior expects them, and what decodes from the holes between.",
        ),
        "Reconstructions": (plots.reconstructions(wide, test[:10], **look), "Held-out images."),
        "Samples by epoch": (
            plots.samples_by_epoch({age: learned(latent_dim, age) for age in ages} | {epochs: wide}, **look),
            "The same latents, decoded after so many passes over the data.",
        ),
        "Interpolation, spherical": (
            plots.interpolations(wide, x[:6], x[rows : rows + 6], path=spherical, **look),
            "Along great circles between the codes of held-out images.",
        ),
        "Interpolation, linear": (
            plots.interpolations(wide, x[:6], x[rows : rows + 6], path=linear, **look),
            "Straight through: closer to the mean half way, where high-dimensional Normals have no mass.",
        ),
        "Traversals": (
            plots.traversals(wide, test, **look),
            "One unit moved at a time, those that tell most of the image first; the last ones tell nothing.",
        ),
        "An attribute": (
            plots.attribute(wide, test, bold, x[thin], **look),
            "Bright images less dark ones, as a direction: dark held-out images moved along it.",
        ),
        "Analogies": (
            plots.analogies(wide, x[thin], x[np.flatnonzero(bold)[:10]], x[thin[::-1]], **look),
            "a is to b as c is to the last row.",
        ),
    }


def _line(name: str, estimate, note: str) -> dict[str, float | str]:
    return {"": name, "mean": round(estimate.mean, 3), "Monte-Carlo error": f"{estimate.mc_error:.2g}", "note": note}


if __name__ == "__main__":
    from ppl import run

    run(main)
