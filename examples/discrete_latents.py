"""A sigmoid belief network under the gradient estimators for discrete latents, in one table.

ppl run examples/discrete_latents.py                                  # 20 units on digits
ppl run examples/discrete_latents.py --data mnist --units 200 --epochs 50 --batch-size 100
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from numpyro import handlers

from guides import AmortizedBernoulli
from inference import SVI, Fit, compare, diagnose, fit, gradient_report
from inference.objectives import NVIL, VIMCO, GumbelSoftmax, Objective, ReweightedWakeSleep, ScoreFunction
from ppl import figures
from ppl.recipe import Result
from ppl_models import SigmoidBeliefNetwork, datasets


def main(
    *,
    data: str = "digits",
    units: int = 20,
    epochs: int = 100,
    batch_size: int = 50,
    learning_rate: float = 3e-3,
    num_particles: int = 1000,
    seed: int = 0,
) -> dict[str, Result]:
    """One belief network and one guide under five estimators of the gradient.

    Binary latents have no pathwise gradient. Scores weigh log q by how good a draw was: NVIL learns what to
    expect of a row, VIMCO compares ten draws of it, reweighted wake-sleep pulls the guide towards the
    better ones, and a relaxation lets the gradient through at the price of a bias. All fits see the same
    batches; the log likelihood of held-out images is estimated in the same way for all, by importance
    sampling from the (discrete) guide.

    Parameters
    ----------
    data
        digits, mnist, or the path of a .npy, .npz or .csv file; made binary anew in every step.
    units
        Of the latent layer.
    epochs
        Passes over the data.
    batch_size
        Images in a step.
    learning_rate
        Of Adam; it falls exponentially to a tenth.
    num_particles
        Importance draws an image for the log likelihood.
    seed
        Of every run.
    """
    train, test = datasets.load(data, "dynamic")
    sbn, guide = SigmoidBeliefNetwork(layers=(units,)), AmortizedBernoulli(layers=(units,))
    steps = epochs * -(-len(train) // batch_size)
    optimizer = optax.adam(optax.exponential_decay(learning_rate, steps, 0.1))
    cooling = optax.exponential_decay(1.0, steps, 0.3)
    objectives: dict[str, Objective] = {
        "Scores, average as baseline": ScoreFunction(decay=0.9),
        "NVIL": NVIL(),
        "VIMCO(10)": VIMCO(10),
        "Wake-sleep(10)": ReweightedWakeSleep(10),
        "Gumbel-softmax": GumbelSoftmax(temperature=cooling),
    }
    held_out = test[:1000]
    fits = {
        name: fit(
            SVI(sbn, guide, objective, optimizer),
            train,
            key=seed,
            num_epochs=epochs,
            batch_size=batch_size,
        )
        for name, objective in objectives.items()
    }
    title = f"The first {len(held_out):,} held-out images of {test.name}"
    best = fits["VIMCO(10)"]
    several = [ScoreFunction(2), ScoreFunction(10), NVIL(), VIMCO(2), VIMCO(10), ReweightedWakeSleep(10)]
    report = gradient_report(sbn, guide, several, train[:200], params=best.params, num_replicates=200, batch_size=50)
    results: dict[str, Result] = {
        title: compare(list(fits.values()), held_out, names=list(fits), num_particles=num_particles),
        **fits,
        "Gradients at the end": (str(report), report.plot()),
        "Diagnosis": str(diagnose(best, held_out)),
    }
    if train.image_shape is not None:
        dreams = {name: expected_images(run, 40) for name, run in fits.items()}
        results["Samples"] = (
            figures.image_panels({"data": train[:40].arrays["x"]} | dreams, train.image_shape, columns=8, across=3),
            "Mean images given latents drawn from their prior.",
        )
        results["Units"] = (
            units_of(best, train.image_shape),
            "What each unit adds to the log odds of the pixels when it turns on (VIMCO).",
        )
    return results


def expected_images(run: Fit, count: int) -> np.ndarray:
    return np.asarray(run.generate(count, expected=True)["x"])


def units_of(run: Fit, image_shape: tuple[int, ...]) -> Figure:
    """Difference of the pixels' logits between each unit on and off, the others off."""
    units = run.model.layers[0]
    pixels = int(np.prod(image_shape))

    def logits(z: jnp.ndarray) -> jnp.ndarray:
        with handlers.seed(rng_seed=0), handlers.substitute(data=run.params | {"z1": z}):
            tr = handlers.trace(run.model).get_trace(jnp.zeros((len(z), pixels)))
        return tr["x"]["fn"].base_dist.logits

    on = logits(jnp.eye(units)) - logits(jnp.zeros((units, units)))
    shown = {f"unit {i + 1}": np.asarray(on[i])[None] for i in range(min(units, 20))}
    return figures.image_panels(shown, image_shape, columns=1, across=10, same_scale=False)


if __name__ == "__main__":
    from ppl import run

    run(main)
