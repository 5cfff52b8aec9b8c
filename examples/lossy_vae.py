"""What latents hold when pixels can see each other: a variational autoencoder under decoders of growing reach.

ppl run examples/lossy_vae.py --data mnist --epochs 10
"""

from __future__ import annotations

import optax

from guides import AmortizedNormal
from inference import SVI, bits_back, fit
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
    they hold, down to nothing (posterior collapse), although the code of the whole grows shorter.

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
    models = {"no pixels": VAE(latent_dim, MLP((200,)))}
    for kernels in KERNELS:
        seen = PixelCNN(channels, kernels, shape)
        name = f"{sum(k // 2 for k in kernels)} pixels away"
        models[name] = PixelVAE(latent_dim, MLP((200,)), seen, features)
    table, drawn, results = [], {"data": held_out[:12]}, {}
    for name, model in models.items():
        run = fit(SVI(model, encoder, ELBO(), optimizer), train, key=seed, num_epochs=epochs, batch_size=batch_size)
        spent = bits_back(run, held_out)
        table.append(
            {
                "a pixel sees": name,
                "in z": round(spent.latents["z"], 2),
                "in the image given z": round(spent.rest, 2),
                "code, nats per image": round(spent.total, 2),
                "-log p(x)": round(-run.log_likelihood(held_out, num_particles=100).mean, 2),
            }
        )
        results[f"Sees {name}"] = run
        drawn[name] = run.generate(12)["x"]
    found: dict[str, Result] = {f"Bits back of {len(held_out):,} held-out images of {test.name}": table}
    if shape is not None:
        found["Samples"] = (figures.image_rows(drawn, shape), "Draws of each model, latents from their prior.")
    return found | results


if __name__ == "__main__":
    from ppl import run

    run(main)
