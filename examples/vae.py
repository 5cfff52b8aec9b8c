"""A variational autoencoder of images, its objective and networks chosen on the command line.

ppl run examples/vae.py --data mnist --objective iwae --objective.num-particles 50
"""

from __future__ import annotations

from dataclasses import dataclass

import optax

from guides import AmortizedNormal
from inference import SVI, compare, fit
from inference.objectives import ELBO, IWAE, Renyi
from ppl import figures
from ppl.recipe import Result
from ppl_models import VAE, datasets
from ppl_models.datasets import Binarization
from ppl_models.likelihoods import Bernoulli, GaussianPixelScale
from ppl_models.networks import MLP, ConvDecoder, ConvEncoder


@dataclass(frozen=True)
class Dense:
    """Fully connected layers in encoder and decoder.

    Parameters
    ----------
    hidden
        Widths of the hidden layers.
    """

    hidden: tuple[int, ...] = (200, 200)

    def encoder(self, image_shape: tuple[int, ...] | None) -> MLP:
        return MLP(self.hidden, activation="tanh")

    decoder = encoder


@dataclass(frozen=True)
class Convolutional:
    """Convolutions that halve the image in the encoder, and double it in the decoder.

    Parameters
    ----------
    channels
        Channels after each convolution of the encoder; the decoder has them in reverse.
    """

    channels: tuple[int, ...] = (16, 32)

    def encoder(self, image_shape: tuple[int, ...] | None) -> ConvEncoder:
        return ConvEncoder(self.channels, image_shape=image_shape)

    def decoder(self, image_shape: tuple[int, ...] | None) -> ConvDecoder:
        return ConvDecoder(self.channels[::-1], image_shape=image_shape)


def main(
    *,
    data: str = "digits",
    binarization: Binarization = "dynamic",
    objective: ELBO | IWAE | Renyi = ELBO(),
    network: Dense | Convolutional = Dense(),
    latent_dim: int = 50,
    epochs: int = 60,
    batch_size: int = 100,
    learning_rate: float = 1e-3,
    num_held_out: int = 1000,
    num_particles: int = 1000,
    seed: int = 0,
) -> dict[str, Result]:
    """A variational autoencoder of images.

    The bound that trains it is the objective's; the log likelihood of held-out images is estimated by
    importance sampling from the encoder, whatever the objective. It depends on how the images were
    made binary, so it is compared only with others under the same binarization.

    Parameters
    ----------
    data
        digits, mnist, or the path of a .npy, .npz or .csv file.
    binarization
        How grey levels become 0 and 1. With none they stay as they are, under a Gaussian likelihood
        with a scale for each pixel.
    objective
        The bound to maximise.
    network
        Encoder and decoder.
    latent_dim
        Length of the latent.
    epochs
        Passes over the data.
    batch_size
        Images in a step.
    learning_rate
        Of Adam; it falls exponentially to a tenth.
    num_held_out
        Held-out images in the log likelihood, from the first on.
    num_particles
        Importance draws an image for the log likelihood.
    seed
        Of the run.
    """
    train, test = datasets.load(data, binarization)
    shape = train.image_shape
    likelihood = GaussianPixelScale() if binarization == "none" else Bernoulli()
    vae = VAE(latent_dim, decoder=network.decoder(shape), likelihood=likelihood)
    encoder = AmortizedNormal(latent_dim, network=network.encoder(shape))
    steps = epochs * -(-len(train) // batch_size)
    optimizer = optax.adam(optax.exponential_decay(learning_rate, steps, 0.1))
    held_out = test[:num_held_out]
    run = fit(
        SVI(vae, encoder, objective, optimizer),
        train,
        key=seed,
        num_epochs=epochs,
        batch_size=batch_size,
        validation=held_out[:1000],
    )
    title = f"{type(objective).__name__} on {train.name}"
    results: dict[str, Result] = {
        f"The first {len(held_out):,} held-out images of {test.name}": compare(
            [run], held_out, names=[title], num_particles=num_particles
        ),
        title: run,
    }
    if shape is not None:
        few = test[:12].arrays["x"]
        rebuilt = {"held out": few, "reconstructed": run.reconstruct(few)["x"]}
        prior = {"data": train[:40].arrays["x"], "samples": run.generate(40, expected=True)["x"]}
        results["Samples"] = (
            figures.image_panels(prior, shape, columns=8, across=2),
            "Images beside the decoder's mean images of latents drawn from their prior.",
        )
        results["Reconstructions"] = (
            figures.image_rows(rebuilt, shape),
            "Held-out images, and the decoder's mean images of latents drawn by the encoder.",
        )
    if test.labels is not None:
        shown = held_out[:1000]
        latents = run.sample_posterior(shown, 20)["z"].mean(axis=0)
        results["Latents"] = (
            figures.latent_plane(latents, shown.labels),
            "Posterior means of held-out images, in the plane where they vary most; no label was used in fitting.",
        )
    return results


if __name__ == "__main__":
    from ppl import run

    run(main)
