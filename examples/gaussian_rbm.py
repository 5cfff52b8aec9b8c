"""A Gaussian-Bernoulli restricted Boltzmann machine of grey images, beside models with one Gaussian.

ppl run examples/gaussian_rbm.py --data freyfaces.npz --hidden 200
"""

from __future__ import annotations

import jax
import numpy as np
import optax

from inference import EM, ContrastiveDivergence, Tempering, bracket, couplings, fit, simulate
from ppl import figures
from ppl.recipe import Result
from ppl_models import PPCA, GaussianRBM, datasets


def main(
    *,
    data: str = "digits",
    hidden: int = 60,
    epochs: int = 200,
    batch_size: int = 100,
    learning_rate: float = 0.005,
    weight_decay: float = 1e-3,
    num_chains: int = 100,
    latent_dim: int = 10,
    seed: int = 0,
) -> dict[str, Result]:
    """A Gaussian-Bernoulli machine of grey images, learned by persistent contrastive divergence.

    A little noise is added to the grey levels, without which their density has no upper limit, and pixels are then
    standardised. The machine is a mixture of 2^hidden Gaussians with one diagonal
    covariance; independent Gaussians and probabilistic PCA are what it should surpass.

    Parameters
    ----------
    data
        digits, mnist, or the path of a .npy, .npz or .csv file.
    hidden
        Hidden units.
    epochs
        Passes over the data.
    batch_size
        Images in a step, and persistent chains.
    learning_rate
        Of stochastic gradient descent, centred; it falls linearly to a hundredth.
    weight_decay
        Pull of the weights towards zero.
    num_chains
        Of annealed importance sampling, each way.
    latent_dim
        Of probabilistic PCA.
    seed
        Of the run.
    """
    train, test = datasets.load(data)
    shape, rng = train.image_shape, np.random.default_rng(seed)
    noisy = [part.arrays["x"] + rng.normal(0, 0.05, part.arrays["x"].shape) for part in (train, test)]
    loc, scale = noisy[0].mean(0), noisy[0].std(0)
    x, held_out = (((part - loc) / scale).astype(np.float32) for part in noisy)

    steps = epochs * -(-len(x) // batch_size)
    optimizer = optax.chain(
        optax.add_decayed_weights(weight_decay, mask=couplings),
        optax.sgd(optax.linear_schedule(learning_rate, learning_rate / 100, steps)),
    )
    machine = GaussianRBM(hidden)
    algorithm = ContrastiveDivergence(machine, persistent=True, optimizer=optimizer)
    run = fit(algorithm, x, key=seed, num_epochs=epochs, batch_size=batch_size, validation=held_out)
    found = bracket(run, held_out, num_chains=num_chains)
    ppca = fit(EM(PPCA(latent_dim)), x, key=seed)
    independent = -0.5 * (held_out**2 + np.log(2 * np.pi)).sum(1).mean()  # of standardised pixels
    rows = {
        "independent Gaussians": (independent, 0.0),
        f"PPCA, {latent_dim} components": (ppca.log_likelihood(held_out).mean, 0.0),
        "machine, log Z by reverse annealing": (found.reverse.mean, found.reverse.mc_error),
        "machine, log Z by annealing": (found.forward.mean, found.forward.mc_error),
    }
    results: dict[str, Result] = {
        f"Log likelihood of {len(held_out):,} held-out images of {test.name}, standardised": [
            {"model": name, "nats per image": round(mean, 2), "Monte-Carlo error": round(error, 3)}
            for name, (mean, error) in rows.items()
        ],
        "Gaussian-Bernoulli RBM": run,
        "PPCA": ppca,
    }
    if shape is None:
        return results

    def grey(v) -> np.ndarray:
        return np.clip(np.asarray(v) * scale + loc, 0, 1)

    weights = np.asarray(run.params["weights"]).T
    results["Filters"] = (
        figures.image_panels(
            {"Weights of hidden units": weights[np.argsort(-(weights**2).sum(1))[:45]]}, shape, columns=15
        ),
        "Weights from hidden units to pixels, those with the largest first.",
    )
    draws = simulate(machine, run.params, x[:40], key=jax.random.key(seed), sampler=Tempering(20), num_sweeps=500)
    expected = machine.visible_mean(run.params, draws.v[0], draws.h[0])
    results["Samples"] = (
        figures.image_panels({"data": grey(x[:40]), "samples": grey(expected)}, shape, columns=8, across=2),
        "Images beside the pixels expected in tempered chains of the machine.",
    )
    few = held_out[:12]
    upper = np.arange(few.shape[1]) < few.shape[1] // 2
    completed = run.complete(np.where(upper, few, 0), observed=upper, num_sweeps=500)["x"]
    panels = {"held out": few, "clamped": np.where(upper, few, 0), "completed": completed}
    results["Inpainting"] = (
        figures.image_rows({name: grey(v) for name, v in panels.items()}, shape),
        "The upper half of held-out images is clamped (below, the mean image), and the lower half drawn given it.",
    )
    return results


if __name__ == "__main__":
    from ppl import run

    run(main)
