"""VAE with a VampPrior (Tomczak and Welling, 2018), table 2: one stochastic layer on dynamically binarized MNIST.

ppl reproduce vampprior --prior vamp --budget 0.05
"""

from __future__ import annotations

from typing import Literal

import optax

from guides import AmortizedNormal
from inference import SVI, fit
from inference.objectives import ELBO, Beta
from ppl import figures
from ppl.papers.protocol import Published, differing, row, steps, told
from ppl.recipe import Result
from ppl_models import VAE, datasets
from ppl_models.networks import MLP
from ppl_models.priors import Prior, StandardNormal, VampPrior

EPOCHS, WARM_UP = 1000, 100
PUBLISHED = {"standard": Published(84.50, "memory"), "vamp": Published(82.38, "memory")}  # test NLL in nats


def main(
    *,
    data: str = "mnist",
    prior: Literal["standard", "vamp", "both"] = "both",
    pseudo_inputs: int = 500,
    hidden: int = 300,
    budget: float = 1.0,
    images: int = 10_000,
    num_particles: int = 5000,
    batch_size: int = 100,
    learning_rate: float = 5e-4,
    seed: int = 0,
) -> dict[str, Result]:
    """Test NLL of a VAE of 40 latents under a standard Normal and under a mixture of encoders at pseudo-inputs.

    Two hidden layers of 300 units, Adam at 5e-4, batches of 100, the KL warmed up over 100 epochs.

    Parameters
    ----------
    data
        mnist as in the paper, or another data set for trying it out.
    prior
        Which prior, or both on the same batches.
    pseudo_inputs
        Components of the VampPrior.
    hidden
        Width of the hidden layers.
    budget
        Share of 1,000 epochs.
    images
        Held-out images in the number, from the first on.
    num_particles
        Importance draws an image.
    batch_size
        Images in a step.
    learning_rate
        Of Adam.
    seed
        Of the runs.
    """
    train, test = datasets.load(data, "dynamic")
    held_out, per_epoch = test[:images], -(-len(train) // batch_size)
    dense = MLP((hidden, hidden), "silu")
    encoder = AmortizedNormal(40, network=dense)
    warm_up = optax.linear_schedule(1e-3, 1.0, steps(budget, WARM_UP, per_epoch))
    priors: dict[str, Prior] = {"standard": StandardNormal(), "vamp": VampPrior(encoder, pseudo_inputs)}
    runs, table = {}, []
    for name in priors if prior == "both" else [prior]:
        svi = SVI(VAE(40, decoder=dense, prior=priors[name]), encoder, Beta(ELBO(), warm_up), optax.adam(learning_rate))
        num_steps = steps(budget, EPOCHS, per_epoch)
        runs[name] = fit(svi, train, key=seed, num_steps=num_steps, batch_size=batch_size)
        found = runs[name].log_likelihood(held_out, num_particles=num_particles)
        table.append(row(name, -found.mean, found.mc_error, PUBLISHED[name] if data == "mnist" else None))
    changes = {
        f"{data} and not MNIST": data != "mnist",
        f"the first {len(held_out):,} held-out images": len(held_out) < 10_000,
        "layers without gates, of silu units": True,
        "as many epochs as stated in place of early stopping": True,
    }
    deviations = differing(
        pseudo_inputs=(pseudo_inputs, 500),
        hidden=(hidden, 300),
        num_particles=(num_particles, 5000),
        batch_size=(batch_size, 100),
        learning_rate=(learning_rate, 5e-4),
    )
    results: dict[str, Result] = {
        f"Test NLL on {test.name}, nats per image": table,
        "Protocol": told(budget, EPOCHS, [what for what, differs in changes.items() if differs] + deviations),
        **{f"VAE, {name} prior": run for name, run in runs.items()},
    }
    if train.image_shape is not None:
        samples = {name: run.generate(40, expected=True)["x"] for name, run in runs.items()}
        if "vamp" in runs:
            samples["pseudo-inputs"] = runs["vamp"].params["pseudo_inputs"][:40]
        results["Samples"] = (
            figures.image_panels(samples, train.image_shape, columns=8, across=2),
            "Mean images of latents drawn from each prior, and what the VampPrior's encoders look at.",
        )
    return results


if __name__ == "__main__":
    from ppl import run

    run(main)
