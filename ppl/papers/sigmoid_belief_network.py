"""Sigmoid belief networks: NVIL (Mnih and Gregor, 2014), reweighted wake-sleep (Bornschein and Bengio, 2015), VIMCO.

ppl reproduce sigmoid_belief_network --estimator vimco --layers 200 --budget 0.1
"""

from __future__ import annotations

from typing import Literal

import optax

from guides import AmortizedBernoulli
from inference import SVI, diagnose, fit
from inference.objectives import NVIL, VIMCO, Objective, ReweightedWakeSleep
from ppl.papers.protocol import Published, differing, row, steps, told
from ppl.recipe import Result
from ppl_models import SigmoidBeliefNetwork, datasets

EPOCHS = 500  # the papers train until validation stops improving: this is of that order
ESTIMATORS: dict[str, Objective] = {"nvil": NVIL(), "rws": ReweightedWakeSleep(5), "vimco": VIMCO(50)}
PUBLISHED = {  # test negative log likelihood in nats, binarized once
    ("nvil", (200,)): Published(113.1, "memory"),
    ("nvil", (200, 200, 200)): Published(96.7, "memory"),
    ("rws", (200,)): Published(103.1, "memory"),
    ("rws", (200, 200, 200)): Published(90.1, "memory"),
    ("vimco", (200, 200, 200)): Published(91.9, "memory"),
}


def main(
    *,
    data: str = "mnist",
    estimator: Literal["nvil", "rws", "vimco"] = "vimco",
    layers: tuple[int, ...] = (200, 200, 200),
    budget: float = 1.0,
    images: int = 10_000,
    num_particles: int = 5000,
    batch_size: int = 100,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> dict[str, Result]:
    """Test NLL of a sigmoid belief network learned by one of the estimators for discrete latents.

    Parameters
    ----------
    data
        mnist as in the papers, or another data set for trying it out.
    estimator
        Of the gradient.
    layers
        Units of each layer, from the data upwards.
    budget
        Share of 500 epochs.
    images
        Held-out images in the number, from the first on.
    num_particles
        Importance draws an image.
    batch_size
        Images in a step.
    learning_rate
        Of Adam; it falls exponentially to a tenth.
    seed
        Of the run.
    """
    train, test = datasets.load(data, "dynamic")
    held_out, num_steps = test[:images], steps(budget, EPOCHS, -(-len(train) // batch_size))
    optimizer = optax.adam(optax.exponential_decay(learning_rate, num_steps, 0.1))
    algorithm = SVI(SigmoidBeliefNetwork(layers), AmortizedBernoulli(layers), ESTIMATORS[estimator], optimizer)
    run = fit(algorithm, train, key=seed, num_steps=num_steps, batch_size=batch_size)
    found = run.log_likelihood(held_out, num_particles=num_particles)
    published = PUBLISHED.get((estimator, tuple(layers))) if data == "mnist" else None
    changes = {
        f"{data} and not MNIST": data != "mnist",
        f"the first {len(held_out):,} held-out images": len(held_out) < 10_000,
        "the published number is of the variational bound, which lies above the NLL": estimator == "nvil"
        and published is not None,
        "training images made binary anew in every step, and not once": True,
        "Adam, and as many epochs as stated in place of early stopping": True,
    }
    deviations = differing(
        num_particles=(num_particles, 5000), batch_size=(batch_size, 100), learning_rate=(learning_rate, 1e-3)
    )
    title = f"{estimator.upper()}, layers of {'-'.join(map(str, layers))}"
    return {
        f"Test NLL on {test.name}, nats per image": [row(title, -found.mean, found.mc_error, published)],
        "Protocol": told(budget, EPOCHS, [what for what, differs in changes.items() if differs] + deviations),
        title: run,
        "Diagnosis": str(diagnose(run, held_out)),
    }


if __name__ == "__main__":
    from ppl import run

    run(main)
