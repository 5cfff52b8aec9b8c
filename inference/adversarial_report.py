"""What goes wrong between a generator and its critic, from one fit: findings for :func:`inference.diagnose`.

*Mode dropping*: data that no draw is near. *Critic collapse*: a critic that cannot tell apart what a kernel two-sample
test can, so that its generator learns from nothing. Neither shows in the losses, which say how the players do against
each other.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inference import quality
from inference.diagnose import Finding
from inference.implicit import generated
from inference.protocols import Batch
from inference.result import Fit

FEWEST = 40  # rows without which nothing can be said
SURE = 0.95  # accuracy of a logistic critic that leaves its generator little to go by
CHANCE = 0.55  # accuracy of a critic that can hardly tell
LEVEL = 0.01  # of the kernel test
DROPPED = 0.75  # share of the recall of new rows of the data, below which modes are missing


def findings(fit: Fit, batch: Batch, key: int) -> Iterator[Finding]:
    """The critic's part, and what draws at these rows' inputs show of the generator's."""
    last = {n: float(v[0, -max(1, v.shape[1] // 10) :].mean()) for n, v in fit.history.items() if v.ndim == 2}
    accuracy = last["critic_accuracy"]
    pair = _beside(fit, batch, key) if len(batch) >= FEWEST else None
    test = None if pair is None else quality.mmd_test(*pair, num_permutations=199, seed=key)
    found = f"the critic tells {accuracy:.0%} right, over the last tenth of the steps"
    log_odds = fit.algorithm.game.log_odds
    if accuracy > SURE and log_odds:
        yield Finding(
            "critic",
            found,
            "look",
            "it is sure, and a generator learns little from that: NonSaturating() or a gradient penalty, a slower "
            "critic, fewer critic_steps, or more steps.",
        )
    elif test is not None and accuracy < CHANCE and test.p_value < LEVEL:
        yield Finding(
            "critic",
            f"{found}, where a kernel test tells draws and data apart (p {test.p_value:.3f})",
            "bad",
            "it has collapsed or lags behind: a faster or larger critic, more critic_steps, a gradient penalty.",
        )
    else:
        yield Finding("critic", found, "good")
    if not log_odds and test is not None and test.p_value < LEVEL:
        if last["divergence"] < 0:
            yield Finding(
                "divergence",
                f"{last['divergence']:.3f}: the critic scores draws above data",
                "bad",
                "it is held on the wrong side: WassersteinLipschitzPenalty(), a smaller weight, or a faster critic.",
            )
    if pair is not None and test is not None:
        yield Finding(
            "draws beside data",
            f"kernel two-sample test, p {test.p_value:.3f} (of {len(batch)} rows)",
            "look" if test.p_value < LEVEL else "good",
            "the laws differ: more steps, a richer generator.",
        )
        yield _modes(*pair)


def _beside(fit: Fit, batch: Batch, key: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the data and of the model, at the same inputs, each as one row of numbers."""
    rows = {n: np.asarray(v) for n, v in batch.data.items()}
    drawn = fit.predict(rows, 1, key=key)
    made = generated(fit.model, batch)
    flat = [
        np.concatenate([v[n].reshape(len(batch), -1) for n in made], 1) for v in (rows, {n: drawn[n][0] for n in made})
    ]
    order = np.random.default_rng(key).permutation(len(batch))
    return flat[0][order], flat[1][order]


def _modes(data: np.ndarray, draws: np.ndarray) -> Finding:
    """Recall of half of the data among draws, beside that among the other half."""
    half = len(data) // 2
    among_draws = quality.precision_recall(data[:half], draws[:half])
    among_data = quality.precision_recall(data[:half], data[half : 2 * half])
    found = f"{among_draws.recall:.0%} of the data lie among draws, {among_data.recall:.0%} among as many new rows"
    dropped = among_draws.recall < DROPPED * among_data.recall
    advice = (
        "modes are missing, or too little spread: WassersteinGradientPenalty(), more critic_steps, smaller steps of "
        "the generator."
    )
    return Finding("modes", found, "bad" if dropped else "good", advice)


__all__ = ["findings"]
