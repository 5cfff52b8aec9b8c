"""A generator of images against a critic, and how good its draws are without a likelihood.

ppl run examples/gan.py --data mnist --steps 20000
ppl run examples/gan.py --classes
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import optax

from inference import Adversarial, diagnose, fit, quality
from inference.games import Minimax, NonSaturating, WassersteinGradientPenalty
from ppl import figures
from ppl.recipe import Result
from ppl_models import Generator, datasets
from ppl_models.networks import MLP, Critic, SpectralNorm


def main(
    *,
    data: str = "digits",
    game: NonSaturating | Minimax | WassersteinGradientPenalty = NonSaturating(),
    classes: bool = False,
    latent_dim: int = 32,
    hidden: int = 256,
    spectral: bool = True,
    critic_steps: int = 1,
    steps: int = 5000,
    batch_size: int = 64,
    learning_rate: float = 5e-4,
    size: int = 500,
    seed: int = 0,
) -> dict[str, Result]:
    """A generator of images against a critic.

    The losses say how the players do against each other, not how good the images are. So draws are put beside
    held-out images: two-sample tests, the Fréchet distance on features of a classifier trained here (not the FID),
    precision and recall, how many draws the classifier takes for each digit, and the training images nearest to draws.

    Parameters
    ----------
    data
        digits, mnist, or the path of a .npy, .npz or .csv file.
    game
        What the two play for.
    classes
        Tell both players the label of an image (a conditional GAN), where the data have them.
    latent_dim
        Length of the noise.
    hidden
        Units in each of two hidden layers, of both players.
    spectral
        Normalise the critic's weights by their largest singular value.
    critic_steps
        Of the critic to one of the generator.
    steps
        Of the critic.
    batch_size
        Images in a step.
    learning_rate
        Of the generator's Adam; the critic's is twice that. Both fall to a tenth.
    size
        Images in each comparison.
    seed
        Of the run.
    """
    train, test = datasets.load(data, "none")
    test = test.shuffled()[:2000]
    x, held_out = (np.asarray(part.arrays["x"], np.float32) for part in (train, test))
    rows, given = train, {}
    if classes and train.labels is not None and test.labels is not None:
        one_hot = np.eye(train.labels.max() + 1, dtype=np.float32)
        rows = replace(train, arrays=dict(train.arrays) | {"y": one_hot[train.labels]})
        given = {"y": one_hot[test.labels]}
    network = MLP((hidden, hidden), "relu")
    critic = Critic(SpectralNorm(network, 5) if spectral else network)
    slow = optax.adam(optax.cosine_decay_schedule(learning_rate, -(-steps // critic_steps), 0.1), b1=0.5)
    fast = optax.adam(optax.cosine_decay_schedule(2 * learning_rate, steps, 0.1), b1=0.5)
    generator = Generator(latent_dim, network, output="sigmoid")
    run = fit(
        Adversarial(generator, critic, game, slow, fast, critic_steps),
        rows,
        key=seed,
        num_steps=steps,
        batch_size=batch_size,
    )
    made = run.generate(len(held_out), key=seed, given=given)["x"]
    samples = {"draws": made, "training images": np.random.default_rng(seed).permutation(x)[: len(held_out)]}
    table: list[dict[str, Any]] = [
        {"": name} | quality.summary(sample, held_out, x, size=size, seed=seed) for name, sample in samples.items()
    ]
    results: dict[str, Result] = {}
    if train.labels is not None:
        features = quality.classifier_features(x, np.asarray(train.labels), seed=seed)
        for row, sample in zip(table, samples.values(), strict=True):
            row["Fréchet distance, features trained here"] = quality.frechet_distance(held_out, sample, features)
        results["What the classifier takes them for"] = counts(features, samples)
        if given:
            share = np.mean(features.classify(made) == given["y"].argmax(1))
            results["Draws that the classifier takes for the digit that was asked for"] = f"{share:.1%}"
    nearest = quality.nearest_rows(made[:12], x)
    if train.image_shape is not None:
        shown = {"data": x[:40], "draws": made[:40]}
        results["Draws"] = figures.image_panels(shown, train.image_shape, columns=8, across=2)
        beside = {"draws": made[:12], "nearest training image": x[nearest.rows]}
        results["Memorisation"] = figures.image_rows(beside, train.image_shape)
    return {"Beside held-out images": table, **results, "Diagnosis": str(diagnose(run)), type(game).__name__: run}


def counts(features: Any, rows: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """How many images of each sample the classifier gives each label."""
    labels = np.unique(np.concatenate([features.classify(sample) for sample in rows.values()]))
    return [
        {"": name} | {str(label): int(np.sum(features.classify(sample) == label)) for label in labels}
        for name, sample in rows.items()
    ]


if __name__ == "__main__":
    from ppl import run

    run(main)
