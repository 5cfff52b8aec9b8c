"""One and two layers of latents, and bottom-up against top-down guides.

ppl run examples/hierarchical_vae.py --data mnist --latent-dims 100 50 --objective iwae --objective.num-particles 5
"""

from __future__ import annotations

from typing import Any

import optax

from guides import HierarchicalNormal, TopDownNormal
from inference import SVI, Fit, compare, fit
from inference.objectives import ELBO, IWAE, Beta
from ppl import figures
from ppl.recipe import Result
from ppl_models import HierarchicalVAE, datasets
from ppl_models.networks import MLP


def main(
    *,
    data: str = "digits",
    objective: ELBO | IWAE = ELBO(),
    latent_dims: tuple[int, ...] = (20, 10),
    hidden: int = 100,
    warm_up: float = 0.3,
    epochs: int = 100,
    batch_size: int = 100,
    learning_rate: float = 2e-3,
    num_particles: int = 500,
    seed: int = 0,
) -> dict[str, Result]:
    """Hierarchical variational autoencoders of images: what a second layer of latents is worth, and to whom.

    A layer that the guide does not use costs no KL and says nothing. The KL's weight rises from 0 at the start, as the
    ladder's authors do; without it a layer may die early and stay so.

    Parameters
    ----------
    data
        digits or mnist, made binary anew in every batch.
    objective
        The bound to maximise.
    latent_dims
        Length of each layer, from the data upwards.
    hidden
        Widths of both hidden layers next to the data; half of it between latents.
    warm_up
        Share of the steps in which the weight of the KL rises to 1, where the objective is the ELBO.
    epochs
        Passes over the data.
    batch_size
        Images in a step.
    learning_rate
        Of Adam; it falls exponentially to a tenth.
    num_particles
        Importance draws an image for the log likelihood.
    seed
        Of the runs.
    """
    train, test = datasets.load(data, "dynamic")
    held_out = test[:1000]
    steps = epochs * -(-len(train) // batch_size)
    optimizer = optax.adam(optax.exponential_decay(learning_rate, steps, 0.1))
    warmed = isinstance(objective, ELBO) and warm_up > 0
    climbed = Beta(objective, optax.linear_schedule(0.0, 1.0, int(warm_up * steps))) if warmed else objective

    def train_with(dims: tuple[int, ...], guide: Any) -> Fit:
        model = HierarchicalVAE(dims, networks(hidden, len(dims)))
        return fit(SVI(model, guide, climbed, optimizer), train, key=seed, num_steps=steps, batch_size=batch_size)

    one, several = latent_dims[:1], networks(hidden, len(latent_dims))
    fits = {
        "One layer": train_with(one, HierarchicalNormal(one, networks(hidden, 1))),
        "Bottom-up": train_with(latent_dims, HierarchicalNormal(latent_dims, several)),
        "Top-down": train_with(latent_dims, TopDownNormal(latent_dims, several, several, width=hidden)),
    }
    title = f"The first {len(held_out):,} held-out images of {test.name}"
    results: dict[str, Result] = {
        title: compare(list(fits.values()), held_out, names=list(fits), num_particles=num_particles),
        **fits,
    }
    if warmed:
        blank = {f"z{n}": "–" for n in range(1, len(latent_dims) + 1)}
        results["KL of each layer, nats per image"] = [
            {"model": name} | blank | {layer: f"{kl:.2f}" for layer, kl in layers(run).items()}
            for name, run in fits.items()
        ]
    if train.image_shape is not None:
        dreams = {name: fitted.generate(40, expected=True)["x"] for name, fitted in fits.items()}
        results["Samples"] = (
            figures.image_panels({"data": train[:40].arrays["x"]} | dreams, train.image_shape, columns=8, across=2),
            "Mean images given latents drawn from their prior.",
        )
    return results


def networks(hidden: int, layers: int) -> tuple[MLP, ...]:
    """Two hidden layers for each arrow, the arrows between latents half as wide."""
    wide, narrow = MLP((hidden, hidden)), MLP((max(1, hidden // 2),) * 2)
    return (wide, *[narrow] * (layers - 1))


def layers(run: Fit) -> dict[str, float]:
    """KL of each layer, over the last twentieth of the steps; of a single layer it is the whole KL."""
    found = {n.removeprefix("kl."): v for n, v in run.history.items() if n.startswith("kl.")}
    found = found or {"z1": run.history["kl"]}
    return {n: float(v[0, -max(1, v.shape[1] // 20) :].mean()) for n, v in sorted(found.items())}


if __name__ == "__main__":
    from ppl import run

    run(main)
