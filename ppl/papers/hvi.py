"""MCMC and Variational Inference: Bridging the Gap (Salimans, Kingma and Welling, 2015), table 1, dense networks.

ppl reproduce hvi --leapfrog-steps 4 --budget 0.02
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import optax

from guides import AmortizedNormal, Hamiltonian
from inference import SVI, diagnose, fit
from inference.objectives import ELBO
from ppl.papers.protocol import Published, differing, row, steps, told
from ppl.recipe import Result
from ppl_models import VAE, datasets
from ppl_models.networks import MLP

EPOCHS = 500  # the paper does not say: this is of the order that such networks take
BOUNDS = {n: Published(v, "memory") for n, v in {0: 94.18, 1: 91.70, 4: 89.82, 8: 88.30}.items()}  # by leapfrog steps
PUBLISHED = {  # test negative log likelihood in nats
    0: Published(88.95, "memory"),
    1: Published(88.08, "memory"),
    4: Published(86.40),
    8: Published(85.51, "memory"),
}


def main(
    *,
    data: str = "mnist",
    leapfrog_steps: Literal[0, 1, 4, 8] = 4,
    budget: float = 1.0,
    images: int = 10_000,
    num_particles: int = 1000,
    hidden: int = 300,
    init_step_size: float = 0.05,
    batch_size: int = 100,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> dict[str, Result]:
    """Bound and NLL of a VAE whose encoder's draws are moved by leapfrog steps of the model's own density.

    The rows of table 1 "with inference network": 32 latents, networks of two hidden layers of 300 softplus units, and a
    reverse model of the momentum with one. The more steps, the nearer the bound to the likelihood, and the better both.

    Parameters
    ----------
    data
        mnist as in the paper, or another data set for trying it out.
    leapfrog_steps
        L; with 0 it is the VAE itself.
    budget
        Share of 500 epochs.
    images
        Held-out images in the number, from the first on.
    num_particles
        Importance draws an image.
    hidden
        Units of the hidden layers.
    init_step_size
        Where the step sizes start, which are learned.
    batch_size
        Images in a step.
    learning_rate
        Of Adam; it falls exponentially to a tenth.
    seed
        Of the run.
    """
    train, test = datasets.load(data, "dynamic")
    held_out, num_steps = test[:images], steps(budget, EPOCHS, -(-len(train) // batch_size))
    one, two = MLP((hidden,), "softplus"), MLP((hidden, hidden), "softplus")
    vae = VAE(32, decoder=two)
    guide = Hamiltonian(vae, AmortizedNormal(32, two), one, num_steps=leapfrog_steps, init_step_size=init_step_size)
    optimizer = optax.adam(optax.exponential_decay(learning_rate, num_steps, 0.1))
    run = fit(SVI(vae, guide, ELBO(), optimizer), train, key=seed, num_steps=num_steps, batch_size=batch_size)
    # Of one draw the importance-weighted likelihood is the bound.
    bounds = [run.log_likelihood(held_out, num_particles=1, key=k).mean for k in range(10)]
    found = run.log_likelihood(held_out, num_particles=num_particles)
    changes = {
        f"{data} and not MNIST": data != "mnist",
        f"the first {len(held_out):,} held-out images": len(held_out) < 10_000,
        "training images made binary anew in every step, and not once": True,
        "sizes of networks as remembered; the paper's learning rate, epochs and importance draws are not known": True,
    }
    deviations = differing(
        hidden=(hidden, 300),
        init_step_size=(init_step_size, 0.05),
        num_particles=(num_particles, 1000),
        batch_size=(batch_size, 100),
        learning_rate=(learning_rate, 1e-3),
    )
    title = f"{leapfrog_steps} leapfrog step{'s' * (leapfrog_steps != 1)}"
    published = (PUBLISHED[leapfrog_steps], BOUNDS[leapfrog_steps]) if data == "mnist" else (None, None)
    error = float(np.std(bounds, ddof=1) / np.sqrt(len(bounds)))
    return {
        f"Test NLL and its bound on {test.name}, nats per image": [
            row(f"NLL, {title}", -found.mean, found.mc_error, published[0]),
            row(f"bound, {title}", -float(np.mean(bounds)), error, published[1]),
        ],
        "Protocol": told(budget, EPOCHS, [what for what, differs in changes.items() if differs] + deviations),
        title: run,
        "Diagnosis": str(diagnose(run, held_out)),
    }


if __name__ == "__main__":
    from ppl import run

    run(main)
