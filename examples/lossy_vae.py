"""What latents hold when pixels can see each other: a variational autoencoder under decoders of growing reach.

ppl run examples/lossy_vae.py --data mnist --epochs 10
"""

from __future__ import annotations

from typing import Any

import optax

from guides import AmortizedNormal, empty
from inference import SVI, Fit, bits_back, elbo_surgery, fit
from inference.objectives import ELBO
from ppl import figures
from ppl.recipe import Result
from ppl_models import VAE, PixelCNN, PixelVAE, datasets
from ppl_models.datasets import Binarization
from ppl_models.networks import MLP

KERNELS = ((3,), (3, 3), (5, 3, 3, 3))


def main(
    *,
    data: str = "digits",
    binarization: Binarization = "threshold",
    latent_dim: int = 8,
    channels: int = 16,
    features: int = 8,
    epochs: int = 100,
    batch_size: int = 100,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> dict[str, Result]:
    """A variational autoencoder whose decoder draws pixels one after the other, each seeing further.

    A code with bits back spends on an image what its latents hold, KL(q || p), and what they leave unsaid. Of what
    pixels can see for themselves the latents need not speak, and to speak costs: the further a pixel sees, the less
    they hold, down to nothing (posterior collapse), although the code of the whole grows shorter. Beside is what the
    same decoder makes of pixels without latents, and what a latent tells of which image it is, at most the log of
    their number.

    Parameters
    ----------
    data
        digits, mnist, or the path of a .npy, .npz or .csv file.
    binarization
        How grey levels become 0 and 1.
    latent_dim
        Length of the latent.
    channels
        Channels of the layers that draw pixels.
    features
        How much the decoder says of each pixel.
    epochs
        Passes over the data.
    batch_size
        Images in a step.
    learning_rate
        Of Adam; it falls exponentially to a tenth.
    seed
        Of the runs.
    """
    train, test = datasets.load(data, binarization)
    shape, held_out = train.image_shape, test.arrays["x"][:1000]
    encoder = AmortizedNormal(latent_dim, MLP((200,)))
    steps = epochs * -(-len(train) // batch_size)
    optimizer = optax.adam(optax.exponential_decay(learning_rate, steps, 0.1))

    def run_of(model: Any, guide: Any) -> Fit:
        return fit(SVI(model, guide, ELBO(), optimizer), train, key=seed, num_epochs=epochs, batch_size=batch_size)

    decoders = {f"{sum(k // 2 for k in sizes)} pixels away": PixelCNN(channels, sizes, shape) for sizes in KERNELS}
    table, drawn, results = [], {"data": held_out[:12]}, {}
    for name, decoder in {"no pixels": None, **decoders}.items():
        says = MLP((200,))
        model = PixelVAE(latent_dim, says, decoder, features) if decoder else VAE(latent_dim, says)
        run = run_of(model, encoder)
        spent = bits_back(run, held_out)
        alone = -run_of(decoder, empty).log_likelihood(held_out).mean if decoder else float("nan")
        row = {
            "in z": spent.latents["z"],
            "index-code information": elbo_surgery(run, held_out).mutual_information.mean,
            "in the image given z": spent.rest,
            "code, nats per image": spent.total,
            "-log p(x)": -run.log_likelihood(held_out, num_particles=100).mean,
            "-log p(x), no latents": alone,
        }
        table.append({"a pixel sees": name} | {column: round(value, 2) for column, value in row.items()})
        results[f"Sees {name}"] = run
        drawn[name] = run.generate(12)["x"]
    found: dict[str, Result] = {f"Bits back of {len(held_out):,} held-out images of {test.name}": table}
    if shape is not None:
        found["Samples"] = (figures.image_rows(drawn, shape), "Draws of each model, latents from their prior.")
    return found | results


if __name__ == "__main__":
    from ppl import run

    run(main)
