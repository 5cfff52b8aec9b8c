"""Semi-supervised learning of digits: M2, M1+M2, and a classifier that has the labels alone.

ppl run examples/semi_supervised.py --data mnist --num-labels 100 --latent-dim 50 --hidden 500 --alpha 0.1
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

from guides import AmortizedNormal, SemiSupervisedNormal, empty
from inference import SVI, Fit, fit
from inference.objectives import ELBO, EnumeratedELBO
from ppl import figures
from ppl.recipe import Result
from ppl_models import VAE, SemiSupervisedVAE, datasets
from ppl_models.datasets import Dataset
from ppl_models.likelihoods import GaussianSharedScale
from ppl_models.networks import MLP, fitted_network, network


def main(
    *,
    data: str = "digits",
    num_labels: int = 20,
    latent_dim: int = 5,
    hidden: tuple[int, ...] = (100,),
    alpha: float = 1.0,
    epochs: int = 250,
    batch_size: int = 100,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> dict[str, Result]:
    """Digits of which few have their class, learned by M2 and M1+M2, and by a classifier that sees those few alone.

    All three classifiers are the same network of the same binarized images. M2 models image and class together, its
    unknown classes summed out; M1+M2 is M2 on the latents of a variational autoencoder, drawn anew in every batch. Of
    digits as small as these 100 labels are enough by themselves; with 20 the unlabelled images are worth a lot.

    Parameters
    ----------
    data
        digits or mnist.
    num_labels
        Images whose class is known, equally many of each.
    latent_dim
        Length of the style z; M1 has three times as many.
    hidden
        Widths of the hidden layers of every network.
    alpha
        Weight of log q(y | x) where the class is known, times all images over those of known class (0.1 in the paper).
    epochs
        Passes over the data.
    batch_size
        Images in a step.
    learning_rate
        Of Adam; it falls exponentially to a tenth.
    seed
        Of the runs, and of which images keep their class.
    """
    train, test = datasets.load(data, "dynamic")
    assert train.labels is not None and test.labels is not None
    y = few_labels(train.labels, num_labels, seed)
    classes, known = int(train.labels.max()) + 1, y >= 0
    mlp, weight = MLP(hidden, activation="relu"), alpha * len(y) / known.sum()

    def run(model: Any, guide: Any, objective: Any, rows: Any) -> Fit:
        steps = epochs * -(-len(y) // batch_size)
        optimizer = optax.adam(optax.exponential_decay(learning_rate, steps, 0.1))
        return fit(SVI(model, guide, objective, optimizer), rows, key=seed, num_steps=steps, batch_size=batch_size)

    def m2(rows: Any, likelihood: Any = None) -> Fit:
        options = {} if likelihood is None else {"likelihood": likelihood}
        model = SemiSupervisedVAE(classes, latent_dim, mlp, **options)
        return run(model, SemiSupervisedNormal(classes, latent_dim, mlp, mlp, alpha=weight), EnumeratedELBO(), rows)

    labelled = replace(train, arrays={**train.arrays, "y": y})
    alone = run(Classifier(classes, mlp), empty, ELBO(), labelled[known])
    second = m2(labelled)
    first = run(VAE(3 * latent_dim, mlp), AmortizedNormal(3 * latent_dim, mlp), ELBO(), train)
    latents = [moments(first, part) for part in (train, test)]
    both = m2(Dataset("latents", {**latents[0], "y": y}, transform=draw), GaussianSharedScale())

    x = test.arrays["x"]
    predicted = {
        f"the {known.sum()} labels alone": alone.model.class_probs(alone.params, x),
        "M2": second.guide.class_probs(second.params, x),
        "M1+M2": both.guide.class_probs(both.params, latents[1]["x"]),
    }
    results: dict[str, Result] = {
        f"Errors on {len(test):,} held-out images of {test.name}, {known.sum()} labels": [
            {"classifier": name, "error %": f"{100 * error:.1f} ± {100 * np.sqrt(error * (1 - error) / len(test)):.1f}"}
            for name, error in ((n, float((p.argmax(axis=1) != test.labels).mean())) for n, p in predicted.items())
        ],
        "Labels alone": alone,
        "M2": second,
        "M1": first,
        "M1+M2": both,
    }
    if train.image_shape is not None:
        results["Classes and styles"] = (
            figures.image_panels(styles(second, classes, 8), train.image_shape, columns=8, across=2),
            "M2's mean images of each class; a column has the same style z in all classes.",
        )
    return results


@dataclass(frozen=True)
class Classifier:
    """y ~ Categorical(logits = classifier(x)), what the guide's classifier is when nothing else is learned."""

    num_classes: int
    network: Any

    def __call__(self, x: Any, y: Any, num_data: int | None = None) -> None:
        logits = network(numpyro, "classifier", self.network, x.shape[-1], self.num_classes)(x)
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            numpyro.sample("y", dist.Categorical(logits=logits), obs=y)

    def class_probs(self, params: dict[str, Any], x: np.ndarray) -> np.ndarray:
        logits = fitted_network(numpyro, "classifier", self.network, self.num_classes, params, x)
        return np.asarray(dist.Categorical(logits=logits).probs)


def moments(run: Fit, rows: Dataset) -> dict[str, np.ndarray]:
    """Mean and standard deviation of the latents of each row, from 50 draws."""
    draws = run.sample_posterior(rows, 50)["z"]
    return {"x": draws.mean(axis=0), "scale": draws.std(axis=0)}


def draw(key: jax.Array, batch: dict[str, Any]) -> dict[str, Any]:
    """Latents of M1 in place of their moments."""
    x = batch["x"] + batch["scale"] * jax.random.normal(key, batch["x"].shape)
    return {"x": x, "y": batch["y"]}


def few_labels(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The labels of ``count`` rows, equally many of each class, and -1 for the others."""
    rng, classes = np.random.default_rng(seed), np.unique(labels)
    each = [rng.permutation(np.flatnonzero(labels == c))[: -(-count // len(classes))] for c in classes]
    kept = np.stack(each, axis=1).ravel()[:count]
    return np.where(np.isin(np.arange(len(labels)), kept), labels, -1).astype(np.int32)


def styles(run: Fit, classes: int, columns: int) -> dict[str, np.ndarray]:
    """Mean images of every class at the same styles: draws are a function of the key, whatever the class."""
    return {
        f"class {c}": run.generate(columns, key=0, expected=True, given={"y": c})["x"].reshape(columns, -1)
        for c in range(classes)
    }


if __name__ == "__main__":
    from ppl import run

    run(main)
