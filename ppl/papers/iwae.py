"""Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016), table 1: one and two stochastic layers.

ppl reproduce iwae --layers 2 --k 5 --budget 0.02
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from guides import AmortizedNormal, HierarchicalNormal
from inference import SVI, diagnose, fit
from inference.objectives import ELBO, IWAE
from ppl.papers.protocol import Published, differing, row, steps, told
from ppl.recipe import Result
from ppl_models import VAE, HierarchicalVAE, datasets
from ppl_models.networks import MLP

STAGES = 8
EPOCHS = sum(3**i for i in range(STAGES))  # 3,280
TABLE = {  # test negative log likelihood in nats, by layers, bound and k
    (1, "vae", 1): Published(86.76),
    (1, "vae", 5): Published(86.47, "memory"),
    (1, "vae", 50): Published(86.35, "memory"),
    (1, "iwae", 1): Published(86.76),
    (1, "iwae", 5): Published(85.54),
    (1, "iwae", 50): Published(84.78),
    (2, "vae", 1): Published(85.33, "memory"),
    (2, "vae", 5): Published(85.01, "memory"),
    (2, "vae", 50): Published(84.78, "memory"),
    (2, "iwae", 1): Published(85.33, "memory"),
    (2, "iwae", 5): Published(83.89, "memory"),
    (2, "iwae", 50): Published(82.90, "memory"),
}
NEAR, FAR = MLP((200, 200), "tanh"), MLP((100, 100), "tanh")  # between the image and its latents, between latents


def main(
    *,
    data: str = "mnist",
    layers: Literal[1, 2] = 1,
    bound: Literal["vae", "iwae"] = "iwae",
    k: Literal[1, 5, 50] = 1,
    budget: float = 1.0,
    images: int = 10_000,
    num_particles: int = 5000,
    batch_size: int = 20,
    seed: int = 0,
) -> dict[str, Result]:
    """A cell of the paper's table 1: test NLL of a VAE or an IWAE with one or two layers of latents.

    With one, 50 latents, and two hidden layers of 200 tanh units on either side. With two, 100 latents next to the
    image, and 50 above them through two hidden layers of 100. 3^i epochs at a learning rate of 1e-3 · 10^(-i/7),
    i = 0 … 7, of Adam with epsilon 1e-4, on images made binary anew in every step; the likelihood by 5,000 importance
    draws.

    Parameters
    ----------
    data
        mnist as in the paper, or another data set for trying it out.
    layers
        Of latents.
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
    decoder = Around(NEAR, logits(train.arrays["x"].mean(axis=0)))
    if layers == 1:
        model, guide = VAE(50, decoder), AmortizedNormal(50, NEAR)
    else:
        model, guide = HierarchicalVAE((100, 50), (decoder, FAR)), HierarchicalNormal((100, 50), (NEAR, FAR))
    algorithm = SVI(model, guide, objective, optax.adam(stages(budget, per_epoch), eps=1e-4))
    num_steps = sum(steps(budget, 3**i, per_epoch) for i in range(STAGES))
    run = fit(algorithm, train, key=seed, num_steps=num_steps, batch_size=batch_size)
    found = run.log_likelihood(held_out, num_particles=num_particles)
    published = TABLE[layers, bound, k] if data == "mnist" else None
    changes = {
        f"{data} and not MNIST": data != "mnist",
        f"the first {len(held_out):,} held-out images": len(held_out) < 10_000,
        "standard deviations through a softplus, and not an exponential": True,
    }
    deviations = differing(num_particles=(num_particles, 5000), batch_size=(batch_size, 20))
    title = f"{bound.upper()}, {layers} layer{'s' * (layers - 1)}, k = {k}"
    return {
        f"Test NLL on {test.name}, nats per image": [row(title, -found.mean, found.mc_error, published)],
        "Protocol": told(
            num_steps / (EPOCHS * per_epoch),
            EPOCHS,
            [what for what, differs in changes.items() if differs] + deviations,
        ),
        title: run,
        "Diagnosis": str(diagnose(run, held_out)),
    }


@dataclass(frozen=True, eq=False)
class Around:
    """A dense network whose outputs start around given values: those its last bias starts at.

    Parameters
    ----------
    network
        The architecture.
    bias
        Shape ``(out_size,)``.
    """

    network: MLP
    bias: Float[np.ndarray, " out_size"]

    def build(self, in_size: int, out_size: int, key: Array) -> Any:
        """Equinox module that maps one row ``(in_size,)`` to ``(out_size,)``, with fresh weights."""
        return eqx.tree_at(
            lambda m: m.layers[-1].bias, self.network.build(in_size, out_size, key), jnp.array(self.bias)
        )


def logits(mean: Float[np.ndarray, " pixels"]) -> Float[np.ndarray, " pixels"]:
    """Of grey levels a thousandth or more away from 0 and 1."""
    mean = np.clip(mean, 1e-3, 1 - 1e-3)
    return np.log(mean / (1 - mean)).astype(np.float32)


def stages(budget: float, per_epoch: int) -> optax.Schedule:
    """1e-3 · 10^(-i/7) for 3^i epochs each."""
    lengths = [steps(budget, 3**i, per_epoch) for i in range(STAGES)]
    ends = {sum(lengths[: i + 1]): 10 ** (-1 / 7) for i in range(STAGES - 1)}
    return optax.piecewise_constant_schedule(1e-3, ends)


if __name__ == "__main__":
    from ppl import run

    run(main)
