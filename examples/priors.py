"""One autoencoder under four priors, and under two that are fitted when it is done.

    mean_n ELBO_n = reconstruction - KL(q(z | x_n) || p(z)) averaged over n,

and the prior that makes the average KL least is the aggregate posterior, 1/N sum_n q(z | x_n). The standard normal
pulls the encoder towards itself; a mixture, a VampPrior and a flow go to meet it. What of this can be had afterwards
is shown by fitting a mixture and a flow to the latents of the model that was trained under N(0, I).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from guides import AmortizedNormal, empty
from inference import SVI, Fit, fit, with_model
from inference.objectives import ELBO, Beta
from inference.programs import on_rows
from inference.protocols import Batch
from ppl import figures
from ppl.recipe import Result
from ppl_models import VAE, datasets
from ppl_models.datasets import Binarization, Dataset
from ppl_models.likelihoods import Bernoulli, GaussianPixelScale
from ppl_models.networks import MAF, MLP
from ppl_models.priors import FlowPrior, MixturePrior, Prior, StandardNormal, VampPrior

SHOWN = 1000  # held-out images that are judged, at most


def main(
    *,
    data: str = "digits",
    binarization: Binarization = "dynamic",
    num_rows: int = 60_000,
    latent_dim: int = 20,
    hidden: tuple[int, ...] = (200,),
    num_components: int = 50,
    num_pseudo_inputs: int = 100,
    flow_layers: int = 4,
    epochs: int = 150,
    warm_up: float = 0.9,
    batch_size: int = 100,
    learning_rate: float = 1e-3,
    num_particles: int = 500,
    seed: int = 0,
) -> dict[str, Result]:
    """Standard, mixture, VampPrior and flow priors of one autoencoder.

    All have the same decoder and encoder, the same batches and the same number of steps. Held-out images are judged by
    the bound, its KL, and the log likelihood by importance sampling from the encoder.

    Parameters
    ----------
    data
        digits, mnist, or the path of a .npy, .npz or .csv file.
    binarization
        How grey levels become 0 and 1. With none they stay as they are, under a Gaussian likelihood.
    num_rows
        Images to train on, at most.
    latent_dim
        Length of the latent.
    hidden
        Widths of the hidden layers of encoder and decoder.
    num_components
        Of the mixture.
    num_pseudo_inputs
        Of the VampPrior.
    flow_layers
        Of the flow.
    epochs
        Passes over the data, for each prior.
    warm_up
        Part of the steps in which the weight of the KL rises from 0 to 1. It is long, since with a prior that follows
        the encoder it is cheap for the encoder to say nothing.
    batch_size
        Images in a step.
    learning_rate
        Of Adam; it falls exponentially to a tenth.
    num_particles
        Importance draws an image for the log likelihood.
    seed
        Of the runs.
    """
    train, test = datasets.load(data, binarization)
    train, held_out = train[:num_rows], test[:SHOWN]
    likelihood = GaussianPixelScale() if binarization == "none" else Bernoulli()
    encoder = AmortizedNormal(latent_dim, MLP(hidden))
    vae = VAE(latent_dim, MLP(hidden), likelihood)
    mixture, flow = MixturePrior(num_components), FlowPrior(MAF(flow_layers))
    priors: dict[str, Prior] = {
        "standard": StandardNormal(),
        "mixture": mixture,
        "VampPrior": VampPrior(encoder, num_pseudo_inputs),
        "flow": flow,
    }
    steps = epochs * -(-len(train) // batch_size)
    adam = optax.adam(optax.exponential_decay(learning_rate, steps, 0.1))
    rising = Beta(ELBO(), optax.linear_schedule(0.01, 1.0, max(1, int(warm_up * steps))))
    runs = {
        name: fit(
            SVI(replace(vae, prior=prior), encoder, rising, adam),
            train,
            key=seed,
            num_epochs=epochs,
            batch_size=batch_size,
        )
        for name, prior in priors.items()
    }
    for name, prior in (("mixture", mixture), ("flow", flow)):
        runs[f"{name}, afterwards"] = afterwards(runs["standard"], prior, train, epochs, batch_size, seed)

    title = f"{held_out.name}, {len(held_out):,} held-out images: nats an image"
    table = [{"prior": name} | judged(run, held_out, num_particles) for name, run in runs.items()]
    results: dict[str, Result] = {title: table}
    if train.image_shape is not None:
        panels = {"data": held_out.arrays["x"][:36]} | {
            name: run.generate(36, key=seed, expected=True)["x"] for name, run in runs.items()
        }
        text = "Held-out images, and the decoder's mean images of latents drawn from each prior."
        results["Samples"] = (figures.image_panels(panels, train.image_shape, columns=6), text)
        vamp = runs["VampPrior"]
        results["Pseudo-inputs of the VampPrior"] = figures.image_panels(
            {"pseudo-inputs": jnp.asarray(vamp.params["pseudo_inputs"])[:60]}, train.image_shape, columns=12
        )
    return results


def afterwards(run: Fit, prior: Prior, train: Dataset, epochs: int, batch_size: int, seed: int) -> Fit:
    """The same model under a prior that is fitted, by maximum likelihood, to latents that its encoder draws."""
    z = run.sample_posterior(dict(train.arrays), 1, key=seed)["z"][0]
    vae = replace(run.model, prior=prior)
    adam = optax.adam(optax.exponential_decay(3e-3, epochs * -(-len(z) // batch_size), 0.1))
    density = fit(SVI(vae.prior_density, empty, ELBO(), adam), z, key=seed, num_epochs=epochs, batch_size=batch_size)
    return with_model(run, vae, density.params)


def judged(run: Fit, held_out: Dataset, num_particles: int) -> dict[str, Any]:
    """Bound, KL and log likelihood of held-out images, nats an image."""
    x = jnp.asarray(held_out.arrays["x"])
    batch = Batch({"x": x}, jnp.arange(len(x)), len(x))

    def parts(params: Any, key: Any) -> Any:
        model, guide = on_rows(run.model, batch), on_rows(run.guide, batch)
        out = Beta(ELBO(10)).evaluate(key, params, model, guide, **batch.data)
        return out.bound, out.metrics["kl"]

    bound, kl = (float(value) / len(x) for value in jax.jit(parts)(run.params, jax.random.key(0)))
    likelihood = run.log_likelihood(held_out, num_particles)
    return {"bound": bound, "KL": kl, "NLL": -likelihood.mean, "error of NLL": likelihood.mc_error}


if __name__ == "__main__":
    from ppl import run

    run(main)
