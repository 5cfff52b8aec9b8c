"""A restricted machine, a deep belief network and a deep Boltzmann machine of the same images, side by side.

ppl run examples/deep_boltzmann.py --data mnist --binarization dynamic --layers 500 500 --epochs 30 --k 1
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import optax

from inference import (
    ContrastiveDivergence,
    Tempering,
    UpDown,
    bracket,
    couplings,
    fit,
    greedy,
)
from ppl import figures
from ppl.recipe import Result
from ppl_models import RBM, DeepBeliefNetwork, DeepBoltzmannMachine, datasets
from ppl_models.datasets import Binarization


def main(
    *,
    data: str = "digits",
    binarization: Binarization = "threshold",
    layers: tuple[int, ...] = (64, 64),
    epochs: int = 100,
    batch_size: int = 100,
    learning_rate: float = 0.05,
    fine_tuning_rate: float = 0.01,
    k: int = 5,
    weight_decay: float = 1e-3,
    num_chains: int = 100,
    seed: int = 0,
) -> dict[str, Result]:
    """A restricted machine, a deep belief network and a deep Boltzmann machine of the same images, side by side.

    The first is learned by persistent contrastive divergence, the deep ones start from machines learned layer by layer,
    and are fine-tuned: by contrastive wake-sleep, and by persistent chains with mean field. The restricted machine's
    log likelihood, and the deep ones' lower bounds, lie between annealed importance sampling both ways.

    Parameters
    ----------
    data
        digits, mnist, or the path of a .npy, .npz or .csv file.
    binarization
        How grey levels become 0 and 1, on which the likelihood depends.
    layers
        Hidden units of each layer, from the data upwards; the restricted machine has the first.
    epochs
        Passes over the data, of every machine and of fine-tuning.
    batch_size
        Images in a step, and persistent chains.
    learning_rate
        Of stochastic gradient descent; it falls linearly to a hundredth.
    fine_tuning_rate
        The same, of the deep ones' fine-tuning.
    k
        Gibbs sweeps of the chains in a step.
    weight_decay
        Pull of the weights towards zero.
    num_chains
        Of annealed importance sampling, each way.
    seed
        Of the runs.
    """
    train, test = datasets.load(data, binarization)
    held_out, steps = test.arrays["x"], epochs * -(-len(train) // batch_size)

    def optimizer(rate: float) -> optax.GradientTransformation:
        decay = optax.add_decayed_weights(weight_decay, mask=couplings)
        return optax.chain(decay, optax.sgd(optax.linear_schedule(rate, rate / 100, steps)))

    def learn(rbm: Any) -> ContrastiveDivergence:
        return ContrastiveDivergence(rbm, k=k, persistent=True, optimizer=optimizer(learning_rate))

    options: dict[str, Any] = {"key": seed, "num_epochs": epochs, "batch_size": batch_size}
    net, deep, slow = DeepBeliefNetwork(layers), DeepBoltzmannMachine(layers), optimizer(fine_tuning_rate)
    chains: dict[str, Any] = {"k": k, "persistent": True, "optimizer": slow}
    runs = {
        "RBM": fit(learn(RBM(layers[0])), train, **options),
        "DBN": fit(UpDown(net, greedy(net, train, learn, **options), k=k, optimizer=slow), train, **options),
        "DBM": fit(
            ContrastiveDivergence(deep, initial=greedy(deep, train, learn, **options), **chains), train, **options
        ),
    }
    annealing: dict[str, Any] = {"num_chains": num_chains, "sampler": Tempering(20)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of directions that disagree: the table shows both
        found = {name: bracket(run, held_out, **annealing) for name, run in runs.items()}
    results: dict[str, Result] = {
        f"Log likelihood of {len(held_out):,} held-out images of {test.name}": [
            {
                "model": name,
                "nats per image": "lower bound" if likelihood.is_bound else "log likelihood",
                "log Z by reverse annealing": round(likelihood.reverse.mean, 3),
                "by annealing": round(likelihood.forward.mean, 3),
                "Monte-Carlo error": round(max(likelihood.reverse.mc_error, likelihood.forward.mc_error), 3),
            }
            for name, likelihood in found.items()
        ],
        **{f"{name} with layers of {layers[:1] if name == 'RBM' else layers}": run for name, run in runs.items()},
    }
    if train.image_shape is None:
        return results
    images = np.asarray(runs["RBM"].data.batch(np.arange(40)).data["x"])
    samples = {name: run.generate(40, key=seed, expected=True)["x"] for name, run in runs.items()}
    results["Samples"] = (
        figures.image_panels({"data": images} | samples, train.image_shape, columns=8, across=2),
        "Images beside the pixels' probabilities, after 1,000 sweeps of chains that start from training images.",
    )
    few = held_out[:12]
    results["Reconstructions"] = (
        figures.image_rows(
            {"held out": few} | {name: run.reconstruct(few)["x"] for name, run in runs.items()}, train.image_shape
        ),
        "Held-out images, and the pixels' probabilities given hidden units drawn from (a guess of) their posterior.",
    )
    return results


if __name__ == "__main__":
    from ppl import run

    run(main)
