"""Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016), table 1, one stochastic layer.

ppl reproduce iwae --k 5 --budget 0.02
"""

from __future__ import annotations

from typing import Literal

import optax

from guides import AmortizedNormal
from inference import SVI, diagnose, fit
from inference.objectives import ELBO, IWAE
from ppl.papers.protocol import Published, row, steps, told
from ppl.recipe import Result
from ppl_models import VAE, datasets
from ppl_models.networks import MLP

STAGES = 8
EPOCHS = sum(3**i for i in range(STAGES))  # 3,280
TABLE = {  # test negative log likelihood in nats, of the VAE's bound with k draws averaged and of the IWAE's
    ("vae", 1): Published(86.76),
    ("vae", 5): Published(86.47, "memory"),
    ("vae", 50): Published(86.35, "memory"),
    ("iwae", 1): Published(86.76),
    ("iwae", 5): Published(85.54),
    ("iwae", 50): Published(84.78),
}


def main(
    *,
    data: str = "mnist",
    bound: Literal["vae", "iwae"] = "iwae",
    k: Literal[1, 5, 50] = 1,
    budget: float = 1.0,
    images: int = 10_000,
    num_particles: int = 5000,
    batch_size: int = 20,
    seed: int = 0,
) -> dict[str, Result]:
    """A cell of the paper's table 1: test NLL of a VAE or an IWAE with 50 latents and two layers of 200 tanh units.

    3^i epochs at a learning rate of 1e-3 · 10^(-i/7), i = 0 … 7, of Adam with epsilon 1e-4, on images made binary
    anew in every step; the likelihood by 5,000 importance draws.

    Parameters
    ----------
    data
        mnist as in the paper, or another data set for trying it out.
    bound
        The VAE's with k draws averaged, or the IWAE's.
    k
        Draws of an image in a step.
    budget
        Share of the 3,280 epochs.
    images
        Held-out images in the number, from the first on.
    num_particles
        Importance draws an image.
    batch_size
        Images in a step; 20 in the paper.
    seed
        Of the run.
    """
    train, test = datasets.load(data, "dynamic")
    held_out, per_epoch = test[:images], -(-len(train) // batch_size)
    objective = ELBO(k) if bound == "vae" or k == 1 else IWAE(k)
    algorithm = SVI(
        VAE(50, decoder=MLP((200, 200), "tanh")),
        AmortizedNormal(50, network=MLP((200, 200), "tanh")),
        objective,
        optax.adam(stages(budget, per_epoch), eps=1e-4),
    )
    num_steps = sum(steps(budget, 3**i, per_epoch) for i in range(STAGES))
    run = fit(algorithm, train, key=seed, num_steps=num_steps, batch_size=batch_size)
    found = run.log_likelihood(held_out, num_particles=num_particles)
    published = TABLE[bound, k] if data == "mnist" else None
    changes = {
        f"{data} and not MNIST": data != "mnist",
        f"the first {len(held_out):,} held-out images": len(held_out) < 10_000,
        f"{num_particles:,} importance draws and not 5,000": num_particles != 5000,
        f"batches of {batch_size} and not 20": batch_size != 20,
        "the decoder's bias starts at zero, and not at the logits of the mean image": True,
    }
    return {
        f"Test NLL on {test.name}, nats per image": [
            row(f"{bound.upper()}, k = {k}", -found.mean, found.mc_error, published)
        ],
        "Protocol": told(budget, EPOCHS, [what for what, differs in changes.items() if differs]),
        f"{bound.upper()}, k = {k}": run,
        "Diagnosis": str(diagnose(run, held_out)),
    }


def stages(budget: float, per_epoch: int) -> optax.Schedule:
    """1e-3 · 10^(-i/7) for 3^i epochs each."""
    lengths = [steps(budget, 3**i, per_epoch) for i in range(STAGES)]
    ends = {sum(lengths[: i + 1]): 10 ** (-1 / 7) for i in range(STAGES - 1)}
    return optax.piecewise_constant_schedule(1e-3, ends)


if __name__ == "__main__":
    from ppl import run

    run(main)
