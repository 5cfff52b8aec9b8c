"""Three model families on scikit-learn's digits, each fitted in two or three ways, in one table.

Run it with ``ppl run examples/digits.py`` (or ``make run``); the report is left in ``runs/digits/``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import arviz as az
import numpy as np
import optax
from matplotlib.figure import Figure

from guides import AmortizedNormal, MeanField
from inference import EM, NUTS, SVI, Fit, Gibbs, compare, fit
from inference.compare import Comparison
from inference.objectives import ELBO, IWAE
from ppl import figures
from ppl.recipe import Result
from ppl_models import PPCA, VAE, GaussianMixture, datasets
from ppl_models.datasets import Dataset
from ppl_models.likelihoods import GaussianPixelScale
from ppl_models.networks import MLP


def main(
    *,
    components: int = 20,
    factors: int = 5,
    latent_dim: int = 10,
    svi_steps: int = 1200,
    sweeps: int = 2000,
    draws: int = 500,
    epochs: int = 120,
    seed: int = 0,
) -> dict[str, Result]:
    """Seven fits of handwritten digits: three models, each inferred in two or three ways.

    A mixture of Gaussians, probabilistic PCA and a variational autoencoder are densities of the same
    8 x 8 images, so all rows of the table can be compared. Grey levels are whole numbers from 0 to 16,
    and a density of whole numbers has no upper bound; uniform noise of one level is added, once, and
    the sum divided by 17. The mean log density of the noisy images, less 64 log 17 = 181.3 nats, is then
    a lower bound on the log probability of the levels themselves.

    Parameters
    ----------
    components
        Of the mixture.
    factors
        Latent dimensions of PPCA.
    latent_dim
        Latent dimensions of the autoencoder.
    svi_steps
        Steps of SVI on the mixture, of 256 images each.
    sweeps
        Kept draws of each of four Gibbs chains, after a quarter as many of warmup.
    draws
        Kept draws of each of four NUTS chains, after half as many of warmup.
    epochs
        Passes of the autoencoder over the data.
    seed
        Of the noise and of every run.
    """
    train, test = (dequantized(part, seed + i) for i, part in enumerate(datasets.load("digits")))

    # Priors for pixels in [0, 1]; a pixel that is always blank varies by the noise alone, 1/17/sqrt(12) = 0.017.
    mixture = GaussianMixture(components, "diag", mean_loc=0.5, mean_scale=0.5, degrees_of_freedom=1.0, scale=0.05)
    ppca = PPCA(factors)
    vae = VAE(latent_dim, decoder=MLP((128, 128), "relu"), likelihood=GaussianPixelScale())
    encoder = AmortizedNormal(latent_dim, network=MLP((128, 128), "relu"))
    around_means = MeanField(mixture, init_scale=0.01)

    restarts = {"key": seed, "num_chains": 5}
    batches = {"key": seed, "num_chains": 3, "num_steps": svi_steps, "batch_size": 256}
    epochs_of = {"key": seed, "num_chains": 2, "num_epochs": epochs, "batch_size": 100}
    chains = {"key": seed, "num_chains": 4}
    fast = optax.adam(optax.cosine_decay_schedule(2e-2, svi_steps, 0.1))
    slow = optax.adam(optax.cosine_decay_schedule(5e-3, epochs * -(-len(train) // 100), 0.05))
    fits = {
        "Mixture, EM": fit(EM(mixture), train, **restarts),
        "Mixture, SVI": fit(SVI(mixture, around_means, ELBO(), fast), train, **batches),
        "PPCA, EM": fit(EM(ppca), train, **restarts),
        "PPCA, Gibbs": fit(Gibbs(ppca, num_warmup=sweeps // 4), train, num_steps=sweeps, **chains),
        "PPCA, NUTS": fit(NUTS(ppca, num_warmup=draws // 2, max_tree_depth=5), train, num_steps=draws, **chains),
        "VAE, ELBO": fit(SVI(vae, encoder, ELBO(), slow), train, **epochs_of),
        "VAE, IWAE": fit(SVI(vae, encoder, IWAE(num_particles=5), slow), train, **epochs_of),
    }
    return {
        "Held-out digits, nats per image": table(fits, test),
        **fits,
        "Samples": (samples(fits, train), "Images drawn from each fit, noise included, beside some it was fitted to."),
        "Reconstructions": (
            reconstructions(fits, test),
            "Held-out digits, and what each fit makes of them: the mean image over draws of their latents.",
        ),
        "The mixture's components": (
            components_of(fits["Mixture, EM"], fits["Mixture, SVI"]),
            "Mean images, the most frequent component first; for SVI averaged over its posterior.",
        ),
        "The posterior of PPCA": (
            communality(fits["PPCA, EM"], fits["PPCA, Gibbs"]),
            "Variance that each pixel shares with the others: the estimate by EM, the posterior's mean and "
            "standard deviation by Gibbs (each on its own grey scale).",
            traces(fits["PPCA, Gibbs"]),
            "Its four chains: the noise variance, and the communality of the three pixels that share most.",
        ),
        "The autoencoder's latents": (
            figures.latent_plane(fits["VAE, IWAE"].sample_posterior(test, 50)["z"].mean(axis=0), test.labels),
            "Posterior means of held-out digits, in the plane where they vary most. No label was used in fitting.",
        ),
    }


def dequantized(data: Dataset, seed: int) -> Dataset:
    """Grey levels 0 … 16 with uniform noise, over 17: x = (level + u) / 17."""
    level = np.round(16 * data.arrays["x"])
    x = (level + np.random.default_rng(seed).random(level.shape)) / 17
    return replace(data, name=f"{data.name}-dequantized", arrays={"x": x.astype(np.float32)})


def table(fits: dict[str, Fit], test: Dataset) -> Comparison:
    """All fits on held-out images; R-hat and effective draws of PPCA are of what rotations leave alone."""
    return compare(list(fits.values()), test, names=list(fits))


def samples(fits: dict[str, Fit], train: Dataset) -> Figure:
    drawn = {name: run.generate(30)["x"] for name, run in fits.items()}
    return figures.image_panels({"data": train[:30].arrays["x"]} | drawn, train.image_shape)


def reconstructions(fits: dict[str, Fit], test: Dataset) -> Figure:
    few = test[:14].arrays["x"]
    return figures.image_rows({"held out": few} | {n: f.reconstruct(few)["x"] for n, f in fits.items()}, (8, 8))


def components_of(em: Fit, svi: Fit) -> Figure:
    def by_weight(weights: Any, means: Any) -> Any:
        return np.asarray(means)[np.argsort(-np.asarray(weights))]

    draws = svi.draws.posterior
    svi_means = by_weight(draws["weights"][0].mean(axis=0), draws["means"][0].mean(axis=0))
    return figures.image_rows({"EM": by_weight(em.params["weights"], em.params["means"]), "SVI": svi_means}, (8, 8))


def communality(em: Fit, gibbs: Fit) -> Figure:
    draws = gibbs.draws.posterior["communality"]
    images = {"EM": (np.asarray(em.params["loadings"]) ** 2).sum(axis=-1)}
    images |= {"Gibbs, mean": draws.mean(axis=(0, 1)), "Gibbs, std. deviation": draws.std(axis=(0, 1))}
    return figures.image_panels(images, (8, 8), across=3, width=7, same_scale=False)


def traces(gibbs: Fit) -> Figure:
    draws = gibbs.draws.posterior
    pixels = np.argsort(-draws["communality"].mean(axis=(0, 1)))[:3]
    shown = {"noise variance": draws["noise_variance"]}
    shown |= {f"communality of pixel ({p // 8}, {p % 8})": draws["communality"][:, :, p] for p in pixels}
    colours = {"color": figures.COLOURS[: gibbs.num_chains]}
    axes = az.plot_trace(az.from_dict(shown), figsize=(9, 7), chain_prop=colours, trace_kwargs={"linewidth": 0.9})
    return axes[0, 0].figure


if __name__ == "__main__":
    from ppl import run

    run(main)
