"""A restricted Boltzmann machine on bars and stripes, exactly: every likelihood is a sum over all states.

    E(v, h) = -vᵀ W h - bᵀ v - cᵀ h,    log p(v) = -F(v) - log Z

No machine scores above the entropy of the patterns, -2.599 nats for 3x3. What is left to that ceiling is the gap.
"""

from __future__ import annotations

import jax
import numpy as np
import optax
from jaxtyping import Float
from matplotlib.figure import Figure

from guides import empty
from inference import EM, SVI, ContrastiveDivergence, Fit, MaximumLikelihood, Tempering, fit
from inference.objectives import ELBO
from ppl import figures
from ppl.figures import COLOURS, WIDTH
from ppl.recipe import Result
from ppl_models import RBM


def patterns(size: int) -> Float[np.ndarray, "rows pixels"]:
    """Images whose rows, or whose columns, are each of one colour; blank and full ones come twice. Float32."""
    lines = (np.arange(2**size)[:, None] >> np.arange(size)) & 1
    across = np.repeat(lines[:, :, None], size, axis=2)
    return np.concatenate([across, across.swapaxes(1, 2)]).reshape(-1, size**2).astype(np.float32)


def main(*, size: int = 3, num_hidden: int = 12, num_steps: int = 4000, seed: int = 0) -> dict[str, Result]:
    """Four ways of learning one machine, and what each leaves to the ceiling.

    The exact gradient and EM know log Z. Contrastive divergence takes its gradient from Gibbs chains: one sweep from
    the data sees each pattern's surroundings, but not how likely the patterns are beside each other; chains that go
    on, at several temperatures that swap, move between them, and find that too.

    Annealed importance sampling is then asked for the log Z that is known here.

    Parameters
    ----------
    size
        Pixels of a side, at most 4.
    num_hidden
        Hidden units, at most 20.
    num_steps
        Steps of each gradient; EM takes a twentieth, of ten steps each.
    seed
        Of the starts and chains.
    """
    x = patterns(size)
    machine = RBM(num_hidden)
    falling = optax.sgd(optax.linear_schedule(0.2, 0.0, num_steps), momentum=0.5)
    adam = optax.adam(optax.cosine_decay_schedule(0.05, num_steps))
    chains = {"num_particles": 500, "sampler": Tempering(8)}
    algorithms = {
        "exact gradient": (SVI(MaximumLikelihood(machine), empty, ELBO(), adam), num_steps),
        "EM": (EM(machine), num_steps // 20),
        "CD-1": (ContrastiveDivergence(machine, optimizer=falling), num_steps),
        "tempered PCD": (ContrastiveDivergence(machine, persistent=True, optimizer=falling, **chains), num_steps),
    }
    fits = {name: fit(how, x, key=seed, num_steps=steps) for name, (how, steps) in algorithms.items()}

    rows, counts = np.unique(x, axis=0, return_counts=True)
    share = counts / len(x)
    ceiling = float(share @ np.log(share))
    table = []
    for name, run in fits.items():
        score = run.log_likelihood(x).mean
        kept = float(np.exp(run.log_likelihood(rows).rows).sum())
        table.append({"": name, "log likelihood, nats per row": score, "gap": ceiling - score, "on patterns": kept})
    table.append({"": "ceiling", "log likelihood, nats per row": ceiling, "gap": 0.0, "on patterns": 1.0})
    side = (size, size)
    half = np.tile(np.arange(size) < 1, size)  # the first column stays
    best = fits["tempered PCD"]
    completed = best.complete(x[:24], half)["x"]
    samples = {name: np.asarray(run.generate(40, key=seed)["x"]) for name, run in fits.items()}
    return {
        f"Exact log likelihoods of {len(x)} images": table,
        **fits,
        "Probability of each pattern": (
            probabilities(fits, rows, share),
            "In the data (line) and under each machine (bars); blank and full images come twice.",
        ),
        "Samples": (
            figures.image_panels({"data": x} | samples, side, columns=8, across=3),
            "Independent draws by enumeration, or after 1,000 sweeps each; a gap is a blank image.",
        ),
        "Weights": figures.image_panels(
            {f"unit {i + 1}": np.asarray(best.params["weights"])[None, :, i] for i in range(num_hidden)},
            side,
            columns=1,
            across=6,
            same_scale=False,
        ),
        "Completed": (
            figures.image_panels({"rows": x[:24], "completed": completed}, side, columns=8),
            "The first column of pixels is kept, and the others are drawn given it.",
        ),
        "Annealed importance sampling": estimates(best, x),
    }


def probabilities(fits: dict[str, Fit], rows: np.ndarray, share: np.ndarray) -> Figure:
    """Of each pattern under each machine, in bars beside the data's."""
    figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
    ax, width = figure.subplots(), 0.8 / len(fits)
    place = np.arange(len(rows))
    for i, (name, run) in enumerate(fits.items()):
        p = np.exp(run.log_likelihood(rows).rows)
        ax.bar(place + (i + 0.5) * width - 0.4, p, width, label=name, color=COLOURS[i % len(COLOURS)])
    ax.hlines(share, place - 0.45, place + 0.45, colors="black", linewidth=1.5, label="data")
    ax.set(xlabel="pattern", ylabel="probability", xticks=place)
    figure.legend(loc="outside upper center", ncols=len(fits) + 1, frameon=False)
    return figure


def estimates(run: Fit, x: np.ndarray) -> list[dict[str, object]]:
    """log Z by annealed importance sampling, both ways, less the exact value; nats, with three errors each way."""
    from inference.ais import annealed, reverse_annealed

    exact = float(jax.jit(run.model.log_partition)(run.params))
    draws = jax.jit(run.model.exact_draws, static_argnums=2)(jax.random.key(2), run.params, 100)
    out: list[dict[str, object]] = []
    for count in (10, 100, 1000):
        options = {"betas": np.linspace(0, 1, count)}
        forward = annealed(run.model, run.params, x, key=jax.random.key(0), **options)
        reverse = reverse_annealed(run.model, run.params, x, draws, key=jax.random.key(1), **options)
        found = {"AIS": forward, "reverse AIS": reverse}
        shown = {name: f"{z.value - exact:+.3f} ± {3 * z.error:.3f}" for name, z in found.items()}
        out.append({"inverse temperatures": count} | shown)
    return out


if __name__ == "__main__":
    from ppl import run

    run(main)
