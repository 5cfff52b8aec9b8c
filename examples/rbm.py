"""Restricted Boltzmann machines of binary images, with likelihoods between two estimates.

ppl run examples/rbm.py --data mnist --binarization dynamic --machine.num-hidden 500 --epochs 100
ppl run examples/rbm.py --data mnist --machine convolutionalrbm --machine.num-filters 40 --machine.filter-size 9
ppl run examples/rbm.py --data mnist --machine deep-boltzmann-machine --machine.num-hidden 500 500 --epochs 100
"""

from __future__ import annotations

from math import isqrt

import jax
import numpy as np
import optax

from inference import ContrastiveDivergence, Tempering, bracket, couplings, fit, simulate
from ppl import figures
from ppl.recipe import Result
from ppl_models import RBM, ConvolutionalRBM, DeepBoltzmannMachine, datasets
from ppl_models.datasets import Binarization


def main(
    *,
    data: str = "digits",
    binarization: Binarization = "threshold",
    machine: RBM | ConvolutionalRBM | DeepBoltzmannMachine = RBM(64),
    epochs: int = 200,
    batch_size: int = 100,
    learning_rate: float = 0.05,
    k: int = 1,
    weight_decay: float = 1e-4,
    num_chains: int = 100,
    seed: int = 0,
) -> dict[str, Result]:
    """A restricted Boltzmann machine of binary images, learned by persistent contrastive divergence.

    Its log likelihood is that of free energies, which are exact, less log Z, which is enclosed by annealed
    importance sampling in both directions; where one side has at most 20 units it is exact.

    Parameters
    ----------
    data
        digits, mnist, or the path of a .npy, .npz or .csv file.
    binarization
        How grey levels become 0 and 1, on which the likelihood depends.
    machine
        With hidden units that see all pixels, with filters, or with several layers.
    epochs
        Passes over the data.
    batch_size
        Images in a step, and persistent chains.
    learning_rate
        Of stochastic gradient descent, centred; it falls linearly to a hundredth.
    k
        Gibbs sweeps of the chains in a step.
    weight_decay
        Pull of the weights towards zero.
    num_chains
        Of annealed importance sampling, each way.
    seed
        Of the run.
    """
    train, test = datasets.load(data, binarization)
    shape, held_out = train.image_shape, test.arrays["x"]
    steps = epochs * -(-len(train) // batch_size)
    optimizer = optax.chain(
        optax.add_decayed_weights(weight_decay, mask=couplings),
        optax.sgd(optax.linear_schedule(learning_rate, learning_rate / 100, steps)),
    )
    algorithm = ContrastiveDivergence(machine, k=k, persistent=True, optimizer=optimizer)
    run = fit(algorithm, train, key=seed, num_epochs=epochs, batch_size=batch_size, validation=test[:1000])
    found = bracket(run, held_out, num_chains=num_chains)
    ends = {"enumeration": found.forward}
    if not found.is_exact:
        ends = {"reverse annealing": found.reverse, "annealing": found.forward}
    what = "Bound on the log likelihood" if found.is_bound else "Log likelihood"
    results: dict[str, Result] = {
        f"{what} of {len(held_out):,} held-out images of {test.name}": [
            {"log Z by": name, "nats per image": round(e.mean, 3), "Monte-Carlo error": round(e.mc_error, 3)}
            for name, e in ends.items()
        ],
        type(machine).__name__: run,
    }
    if shape is None:
        return results
    deep = isinstance(machine, DeepBoltzmannMachine)
    weights = np.asarray(run.params["weights_1" if deep else "weights"]).T
    strongest = weights[np.argsort(-(weights**2).sum(1))[:60]]
    side = isqrt(weights.shape[1])
    results["Filters"] = (
        figures.image_panels(
            {"Weights of hidden units": strongest},
            (side, side) if isinstance(machine, ConvolutionalRBM) else shape,
            columns=15,
        ),
        "Weights from hidden units to pixels, those with the largest first.",
    )
    few = held_out[:12]
    results["Reconstructions"] = (
        figures.image_rows({"held out": few, "reconstructed": run.reconstruct(few)["x"]}, shape),
        "Held-out images, and what the machine expects of pixels given hidden units drawn from them.",
    )
    images = np.asarray(run.data.batch(np.arange(40)).data["x"])
    tempering = Tempering(20)
    draws = simulate(machine, run.params, images, key=jax.random.key(seed), sampler=tempering, num_sweeps=500)
    expected = machine.visible_mean(run.params, draws.v[0], draws.h[0])
    results["Samples"] = (
        figures.image_panels({"data": images, "samples": expected}, shape, columns=8, across=2),
        "Images beside the pixels expected in chains of the machine, tempered so that they leave their start.",
    )
    upper = np.arange(few.shape[1]) < few.shape[1] // 2
    completed = run.complete(np.where(upper, few, 0), observed=upper, num_sweeps=500)["x"]
    rows = {"held out": few, "clamped": np.where(upper, few, few.max() / 2), "completed": completed}
    results["Inpainting"] = (
        figures.image_rows(rows, shape),
        "The upper half of held-out images is clamped, and the lower half drawn by Gibbs sweeps given it.",
    )
    return results


if __name__ == "__main__":
    from ppl import run

    run(main)
