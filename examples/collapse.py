r"""Posterior collapse, made and cured: a decoder that can do without its latents, and what makes them hold something.

    mean ELBO = reconstruction - KL(q(z | x) || p(z)),    KL = I[index; z] + KL(q(z) || p(z)),

so that a decoder which draws every pixel from those before it gains nothing from z and saves its KL by q(z | x) = p(z).

ppl run examples/collapse.py --data mnist --epochs 5 --units 500
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import optax
from matplotlib.figure import Figure
from scipy.optimize import brentq

from guides import AmortizedBoundedNormal, AmortizedNormal, SemiAmortized
from inference import SVI, Fit, LaggingEncoder, elbo_surgery, fit, with_model
from inference.latent_space import encode
from inference.objectives import ELBO, Beta, Capacity, FreeBits, cyclical
from ppl import figures
from ppl.figures import COLOURS, INK, PALE
from ppl.recipe import Result
from ppl_models import MADE, VAE, PixelCNN, PixelVAE, datasets
from ppl_models.ar1_prior import AR1Prior
from ppl_models.datasets import Binarization, Dataset
from ppl_models.hidden_pixels import HiddenPixels
from ppl_models.networks import MLP

KERNELS = {"1 away": (3, 1), "2 away": (3, 3), "4 away": (5, 5)}  # of two layers, by what a pixel sees
BLIND, FIELD, WHOLE = "nothing", "1 away", "all before"
SHOWN = 500  # held-out images that are judged, at most
ACTIVE = 0.01  # variance over images of a unit's posterior mean, below which it says nothing (Burda et al., 2016)
Row = dict[str, Any]


def main(
    *,
    data: str = "digits",
    binarization: Binarization = "threshold",
    latent_dim: int = 8,
    channels: int = 16,
    units: int = 200,
    features: int = 2,
    nats: float = 3.0,
    hidden: float = 0.5,
    refinements: int = 4,
    epochs: int = 60,
    batch_size: int = 100,
    learning_rate: float = 3e-3,
    num_particles: int = 500,
    seed: int = 0,
) -> dict[str, Result]:
    """Posterior collapse under decoders of growing reach, and its cures side by side.

    First the decoder's context grows, and the latent of the same autoencoder falls silent, while the likelihood stays.
    Then the decoder that sees everything is trained again under what was proposed against it. Held-out images are
    judged by the two parts of the bound, by what the code tells of which image it is (at most the log of their number),
    by units that are active, and by the log likelihood, by importance sampling from the encoder; seconds are those of
    the training, compilation included.

    Parameters
    ----------
    data
        digits, mnist, or the path of a .npy, .npz or .csv file of images.
    binarization
        How grey levels become 0 and 1.
    latent_dim
        Length of the latent.
    channels
        Channels of the decoders that see so far and no further, which are convolutions (PixelCNN).
    units
        Hidden units of the one that sees all pixels before (MADE).
    features
        How much z says of each pixel (of all of them together, where everything before is seen).
    nats
        The KL that free bits leave free, that capacity holds, and that both delta-VAEs commit themselves to.
    hidden
        Share of the pixels hidden from those after them, while the decoder with dropout learns.
    refinements
        Gradient steps on each image's own bound that the semi-amortized guide takes.
    epochs
        Passes over the data. The lagging encoder gets as many steps again, most of them for itself.
    batch_size
        Images in a step.
    learning_rate
        Of Adam; it falls exponentially to a tenth.
    num_particles
        Importance draws an image for the log likelihood.
    seed
        Of the runs.
    """
    train, test = datasets.load(data, binarization)
    held_out, shape = test[:SHOWN], train.image_shape
    if shape is None:
        raise ValueError(f"{train.name} does not say how its rows are images; expected an array (rows, height, width).")
    steps = epochs * -(-len(train) // batch_size)
    adam = optax.adam(optax.exponential_decay(learning_rate, steps, 0.1))
    encoder = AmortizedNormal(latent_dim, MLP((200,)))

    def tried(algorithm: Any) -> tuple[Fit, Row]:
        longer = 2 if isinstance(algorithm, LaggingEncoder) else 1
        run = seeing(fit(algorithm, train, key=seed, num_steps=longer * steps, batch_size=batch_size))
        return run, judged(run, held_out, num_particles)

    says = MLP((50,))
    models: dict[str, Any] = {BLIND: VAE(latent_dim, says)}
    for name, kernels in KERNELS.items():
        models[name] = PixelVAE(latent_dim, says, PixelCNN(channels, kernels, (shape[0], shape[1])), features)
    models[WHOLE] = PixelVAE(latent_dim, says, MADE((units,)), features)
    grown = {name: tried(SVI(model, encoder, ELBO(), adam)) for name, model in models.items()}
    proposed = cures(models[WHOLE], encoder, adam, steps, nats, hidden, refinements)
    cured = {"none": grown[WHOLE]} | {name: tried(algorithm) for name, algorithm in proposed.items()}
    cured["a field of one pixel"] = grown[FIELD]
    seen, table = ({name: row for name, (_, row) in rows.items()} for rows in (grown, cured))

    few = held_out[:14]
    drawn = {name: run.reconstruct(few, num_samples=1)["x"] for name, (run, _) in cured.items()}
    title = f"{len(held_out):,} held-out images of {test.name}, nats an image"
    ceiling = f"Index-code information is at most log {len(held_out)} = {np.log(len(held_out)):.2f} nats."
    return {
        f"What pixels see: {title}": [{"pixels see": name} | row for name, row in seen.items()],
        "The latent falls silent": (growing(seen), "The further a pixel sees, the less is left for z to say."),
        f"Cures: {title}": [{"cure": name} | row for name, row in table.items()],
        "Cures": (
            beside(table, nats),
            f"{ceiling} Dotted: the KL given to free bits, capacity and delta-VAEs.",
        ),
        "What the code keeps of an image": (
            figures.image_rows({"data": few.arrays["x"]} | drawn, shape),
            "Probabilities along one draw from the code of the image on top; all lines share their random numbers.",
        ),
    }


def cures(
    model: PixelVAE,
    encoder: AmortizedNormal,
    adam: optax.GradientTransformation,
    steps: int,
    nats: float,
    hidden: float,
    refinements: int,
) -> dict[str, Any]:
    """What was proposed against collapse, each an algorithm for the same decoder, and the same steps."""
    length = model.latent_dim
    # Correlation, and largest scale under N(0, I), at which no guide with independent coordinates costs less than nats.
    correlation = brentq(lambda a: AR1Prior(a).minimal_kl(length) - nats, 0, 1 - 1e-9)
    scale = brentq(lambda s: AR1Prior(0.0).minimal_kl(length, (0.0, s)) - nats, 1e-9, 1)
    bounded = AmortizedBoundedNormal(length, encoder.network, (0.0, scale))
    plain = SVI(model, encoder, ELBO(), adam)
    return {
        "KL warm-up": replace(plain, objective=Beta(ELBO(), optax.linear_schedule(0.0, 1.0, max(1, steps // 2)))),
        "cyclical annealing": replace(plain, objective=Beta(ELBO(), cyclical(max(2, steps // 4)))),
        "free bits": replace(plain, objective=FreeBits(ELBO(), nats)),
        "capacity": replace(plain, objective=Capacity(ELBO(), nats, gamma=10.0)),
        "delta-VAE, AR(1) prior": replace(plain, model=replace(model, prior=AR1Prior(correlation))),
        "delta-VAE, bounded scale": replace(plain, guide=bounded),
        "lagging encoder": LaggingEncoder(plain, aggressive_steps=steps, window=5, max_inner=50),
        "semi-amortized": replace(plain, guide=SemiAmortized(model, encoder, refinements)),
        "dropout of pixels": replace(plain, model=replace(model, pixels=HiddenPixels(model.pixels, hidden))),
    }


def seeing(run: Fit) -> Fit:
    """The fit with no pixel hidden."""
    pixels = getattr(run.model, "pixels", None)
    return with_model(run, replace(run.model, pixels=pixels.pixels), {}) if isinstance(pixels, HiddenPixels) else run


def judged(run: Fit, held_out: Dataset, num_particles: int) -> Row:
    """The parts of the bound, what codes tell, and the log likelihood with its Monte-Carlo error."""
    terms, codes = elbo_surgery(run, held_out), encode(run, held_out)
    likelihood = run.log_likelihood(held_out, num_particles)
    row: Row = {
        "reconstruction": terms.reconstruction.mean,
        "KL": terms.mutual_information.mean + terms.marginal_kl.mean,
        "index-code information": terms.mutual_information.mean,
        "active units": int((codes.var(axis=0) > ACTIVE).sum()),
        "NLL": -likelihood.mean,
        "error of NLL": likelihood.mc_error,
        "seconds": run.info["seconds"],
    }
    return {name: round(value, 3) + 0 for name, value in row.items()}  # which has no -0


def growing(rows: dict[str, Row]) -> Figure:
    """KL and index-code information, and the two lengths of code, over what a pixel sees."""
    figure = Figure(figsize=(figures.WIDTH, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    at, of = np.arange(len(rows)), lambda name: np.array([row[name] for row in rows.values()])
    left.plot(at, of("KL"), "o-", label="KL(q(z | x) || p(z))")
    left.plot(at, of("index-code information"), "s--", label="index-code information")
    left.set(ylabel="nats an image", title="What the latent holds")
    right.plot(at, of("KL") - of("reconstruction"), "o-", color=PALE, label="−ELBO")
    right.errorbar(
        at, of("NLL"), 2 * of("error of NLL"), fmt="o-", capsize=3, color=COLOURS[2], label="−log p(x), ± 2 errors"
    )
    right.set(ylabel="nats an image", title="What an image costs")
    for ax in (left, right):
        ax.set_xlabel("what a pixel sees of those before it")
        ax.set_xticks(at, list(rows))
        ax.set_ylim(0, 1.05 * ax.get_ylim()[1])
        ax.legend()
    return figure


def beside(rows: dict[str, Row], nats: float) -> Figure:
    """A bar for each cure: its KL, and the part that tells of the image; beside it the negative log likelihood."""
    figure = Figure(figsize=(figures.WIDTH, 0.36 * len(rows) + 1.3), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    y, of = np.arange(len(rows)), lambda name: np.array([row[name] for row in rows.values()])
    told = of("index-code information")
    left.barh(y, told, color=COLOURS[0], label="tells of the image")
    left.barh(y, of("KL") - told, left=told, color=COLOURS[4], label="all codes against the prior")
    left.axvline(nats, color=INK, linestyle=":", linewidth=1.2)
    for at, row in zip(y, rows.values(), strict=True):
        left.text(row["KL"] + 0.1, at, f"{row['active units']} active", va="center", fontsize=9, color="#555555")
    left.set(xlabel="KL, nats an image", xlim=(0, 1.15 * max(of("KL").max(), nats) + 1))
    left.set_yticks(y, list(rows))
    right.axvline(rows["none"]["NLL"], color=PALE, linestyle=":", linewidth=1.2)
    right.errorbar(of("NLL"), y, xerr=2 * of("error of NLL"), fmt="o", capsize=3, color=COLOURS[2])
    right.set_xlabel("−log p(x), nats, ± 2 errors")
    left.set_ylim(len(rows) - 0.5, -0.5)
    for ax in (left, right):
        ax.grid(axis="y", visible=False)
    figure.legend(loc="outside upper left", ncols=2)
    return figure


if __name__ == "__main__":
    from ppl import run

    run(main)
