"""Every family of generative models on one set of images: one table, one picture.

Pixels have grey levels k in {0, ..., L - 1}, and every likelihood is of them, in nats an image:

    exact               log P(k), of an autoregressive model
    importance          log P(k) of an autoencoder, by draws from its encoder; a lower bound on average
    density             log P(k) >= E_u log p((k + u) / L) - D log L,  u uniform on [0, 1)^D,  p exact
    density, bound      the same with a lower bound on log p: diffusion
    density, bracket    the same with log Z between two annealed estimates: a Boltzmann machine
    none                a generator has draws alone

so that all rows can be compared, and those of densities are the less favoured. A model that draws v puts its pixel at
floor(L v): that is a draw of its P(k), and all draws are compared with held-out images as images of levels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from guides import AmortizedNormal, VectorQuantized, empty
from inference import (
    EM,
    SVI,
    Adversarial,
    ContrastiveDivergence,
    Fit,
    Tempering,
    averaged,
    bracket,
    couplings,
    fit,
    quality,
    simulate,
    step_bound,
)
from inference.games import WassersteinGradientPenalty
from inference.objectives import ELBO, Beta, MovingCodebook, UnitDenoising, codebook_moves
from ppl import figures
from ppl.recipe import Result
from ppl_models import (
    PPCA,
    VAE,
    VQVAE,
    Codes,
    Diffusion,
    Flow,
    GaussianMixture,
    GaussianRBM,
    Generator,
    PixelCNN,
    datasets,
)
from ppl_models.code_priors import AutoregressiveCodes
from ppl_models.datasets import Dataset
from ppl_models.dequantization import Dequantize
from ppl_models.likelihoods import DiscretizedLogisticMixture
from ppl_models.networks import MLP, Critic, RealNVP, TimeMLP
from ppl_models.noise_schedules import CosineSchedule
from ppl_models.predictions import PredictVelocity
from ppl_models.priors import StandardNormal, VampPrior

LEVELS = {"digits": 17}  # grey levels; of others 256
Pixels = Float[np.ndarray, "rows pixels"]


@dataclass(frozen=True, eq=False)
class Setting:
    """What all families are given: images of L levels, k / (L - 1), and sizes."""

    train: Dataset
    held_out: Dataset
    levels: int
    hidden: int
    latent_dim: int
    steps: int
    batch_size: int
    seed: int

    @property
    def pixels(self) -> int:
        """D."""
        return self.train.arrays["x"].shape[1]

    @property
    def network(self) -> MLP:
        """Of two hidden layers, for whoever needs one."""
        return MLP((self.hidden, self.hidden), "relu")

    def filled(self, part: Dataset, low: float = 0.0, high: float = 1.0) -> Pixels:
        """(k + u) / L, on [low, high), with noise u that is drawn once."""
        noisy = Dequantize(self.levels, low, high)(jax.random.key(self.seed), {"x": jnp.asarray(part.arrays["x"])})
        return np.asarray(noisy["x"])

    def rounded(self, v: Any, low: float = 0.0, high: float = 1.0) -> Pixels:
        """Draws in [low, high) as levels, k / (L - 1)."""
        k = np.floor(self.levels * (np.asarray(v) - low) / (high - low))
        return np.clip(k, 0, self.levels - 1) / (self.levels - 1)

    def log_mass(self, log_density: Any, width: float = 1.0) -> Float[np.ndarray, " rows"]:
        """The bound on log P(k) by the log density of pixels on an interval of this width: - D log(L / width)."""
        return np.asarray(log_density) - self.pixels * math.log(self.levels / width)

    def fitted(self, algorithm: Any, data: Any, times: int = 1) -> Fit:
        """A run of so many times the steps."""
        return fit(algorithm, data, key=self.seed, num_steps=times * self.steps, batch_size=self.batch_size)

    def adam(self, rate: float, times: int = 1, **options: Any) -> optax.GradientTransformation:
        """Adam, whose rate falls along half a cosine over them."""
        return optax.adam(optax.cosine_decay_schedule(rate, times * self.steps, 0.02), **options)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A family's model: its runs, what it says of held-out images in nats (none, one, or two ends), and its draws."""

    runs: tuple[Fit, ...]
    kind: str
    log_mass: tuple[Float[np.ndarray, " rows"], ...]
    draw: Callable[[int, int], Pixels]  # how many, seed


def ppca(at: Setting) -> Fitted:
    """A Gaussian of low rank."""
    return _density(at, EM(PPCA(at.latent_dim)))


def mixture(at: Setting) -> Fitted:
    """Diagonal Gaussians, with a prior that keeps the scale of pixels that never change away from 0."""
    prior: dict[str, Any] = {"mean_loc": 0.5, "mean_scale": 0.5, "degrees_of_freedom": 1.0, "scale": 0.05}
    return _density(at, EM(GaussianMixture(2 * at.latent_dim, "diag", **prior)))


def _density(at: Setting, algorithm: EM) -> Fitted:
    run = fit(algorithm, at.filled(at.train), key=at.seed)
    log_mass = at.log_mass(run.log_likelihood(at.filled(at.held_out)).rows)
    return Fitted((run,), "density", (log_mass,), lambda n, key: at.rounded(run.generate(n, key=key)["x"]))


def gaussian_rbm(at: Setting) -> Fitted:
    """Persistent contrastive divergence on standardised pixels; tempered chains from noise."""
    x = at.filled(at.train)
    loc, scale = x.mean(0), x.std(0)
    optimizer = optax.chain(
        optax.add_decayed_weights(1e-3, mask=couplings), optax.sgd(optax.linear_schedule(5e-3, 5e-5, at.steps))
    )
    machine = GaussianRBM(at.hidden)
    run = at.fitted(ContrastiveDivergence(machine, persistent=True, optimizer=optimizer), (x - loc) / scale)
    found = bracket(run, (at.filled(at.held_out) - loc) / scale)
    ends = [found.lower] if found.is_exact else sorted((found.reverse, found.forward), key=float)

    def draw(count: int, seed: int) -> Pixels:
        key_start, key = jax.random.split(jax.random.key(seed))
        start = jax.random.normal(key_start, (count, at.pixels))
        chains = simulate(machine, run.params, start, key=key, sampler=Tempering(10), num_sweeps=300)
        return at.rounded(np.asarray(chains.v[0]) * scale + loc)

    log_mass = tuple(at.log_mass(end.rows - np.log(scale).sum()) for end in ends)
    return Fitted((run,), "density" if found.is_exact else "density, bracket", log_mass, draw)


def flow(at: Setting) -> Fitted:
    """Coupling layers, by maximum likelihood; new noise at every step."""
    data = replace(at.train, transform=Dequantize(at.levels))
    run = at.fitted(SVI(Flow(RealNVP(8, at.hidden)), empty, ELBO(), at.adam(1e-3)), data)
    log_mass = at.log_mass(run.log_likelihood(at.filled(at.held_out)).rows)
    return Fitted((run,), "density", (log_mass,), lambda n, key: at.rounded(run.generate(n, key=key)["x"]))


def pixel_cnn(at: Setting) -> Fitted:
    """Pixel after pixel."""
    assert at.train.image_shape is not None
    height, width = at.train.image_shape
    likelihood = DiscretizedLogisticMixture(3, at.levels)
    model = PixelCNN(16, (5, 3, 3), (height, width), likelihood)
    run = at.fitted(SVI(model, empty, ELBO(), at.adam(5e-3)), at.train)
    return Fitted(
        (run,), "exact", (run.log_likelihood(at.held_out).rows,), lambda n, key: run.generate(n, key=key)["x"]
    )


def vae(at: Setting) -> Fitted:
    """A latent of standard Normals."""
    return _autoencoder(at, StandardNormal())


def vamp_prior(at: Setting) -> Fitted:
    """A latent from the encoder's guesses at learned pseudo-inputs."""
    return _autoencoder(at, VampPrior(AmortizedNormal(at.latent_dim, at.network), 100))


def _autoencoder(at: Setting, prior: Any) -> Fitted:
    model = VAE(at.latent_dim, at.network, DiscretizedLogisticMixture(3, at.levels), prior)
    rising = Beta(ELBO(), optax.linear_schedule(0.01, 1.0, max(1, at.steps // 2)))
    run = at.fitted(SVI(model, AmortizedNormal(at.latent_dim, at.network), rising, at.adam(2e-3)), at.train)
    log_mass = run.log_likelihood(at.held_out, num_particles=300).rows
    return Fitted((run,), "importance", (log_mass,), lambda n, key: run.generate(n, key=key)["x"])


def vq_vae(at: Setting) -> Fitted:
    """Sixteen codes of 64 an image, and an autoregressive prior that is fitted to them afterwards."""
    sizes = {"num_codes": 64, "code_dim": 8, "latent_shape": (16,)}
    model = VQVAE(**sizes, decoder=at.network, likelihood=DiscretizedLogisticMixture(3, at.levels))
    guide = VectorQuantized(**sizes, network=at.network)
    moving = SVI(model, guide, MovingCodebook(decay=0.9, restart=0.1), codebook_moves(at.adam(2e-3)))
    run = at.fitted(moving, at.train)
    codes = run.sample_posterior(at.train)["z"][0]
    prior = AutoregressiveCodes(at.hidden)
    over_codes = at.fitted(SVI(Codes(prior), empty, ELBO(), at.adam(2e-3)), codes)
    algorithm = replace(run.algorithm, model=replace(model, prior=prior))
    both = replace(run, algorithm=algorithm, params=run.params | over_codes.params)
    log_mass = both.log_likelihood(at.held_out, num_particles=300).rows
    return Fitted((run, over_codes), "importance", (log_mass,), lambda n, key: both.generate(n, key=key)["x"])


def wasserstein_gan(at: Setting) -> Fitted:
    """A generator against a critic with a gradient penalty, four steps of the critic for each of its own."""
    players = Generator(at.latent_dim, at.network, output="sigmoid"), Critic(at.network)
    rates = (at.adam(r, times, b1=0.5, b2=0.9) for r, times in ((1e-3, 1), (1e-3, 4)))
    run = at.fitted(Adversarial(*players, WassersteinGradientPenalty(1.0), *rates, critic_steps=4), at.train, 4)

    def draw(count: int, seed: int) -> Pixels:  # it learned from k / (L - 1): the nearest
        return np.round(run.generate(count, key=seed)["x"] * (at.levels - 1)) / (at.levels - 1)

    return Fitted((run,), "none", (), draw)


def diffusion(at: Setting) -> Fitted:
    """Noise taken away in 500 steps, on [-1, 1]; the loss with one weight for all."""
    data = replace(at.train, transform=Dequantize(at.levels, -1.0, 1.0))
    denoiser = TimeMLP((2 * at.hidden,) * 3)
    model = Diffusion(denoiser, CosineSchedule(500), PredictVelocity())
    run = at.fitted(SVI(model, model.noising, UnitDenoising(), averaged(at.adam(1e-3, 4))), data, 4)
    log_mass = at.log_mass(step_bound(run, at.filled(at.held_out, -1.0, 1.0)).rows, 2.0)

    def draw(count: int, seed: int) -> Pixels:
        return at.rounded(run.generate(count, key=seed)["x"], -1.0, 1.0)

    return Fitted((run,), "density, bound", (log_mass,), draw)


FAMILIES: dict[str, Callable[[Setting], Fitted]] = {
    "PPCA": ppca,
    "Mixture of Gaussians": mixture,
    "Gaussian RBM": gaussian_rbm,
    "Flow (RealNVP)": flow,
    "PixelCNN": pixel_cnn,
    "VAE": vae,
    "VAE, VampPrior": vamp_prior,
    "VQ-VAE and prior": vq_vae,
    "Diffusion": diffusion,
    "Wasserstein GAN": wasserstein_gan,
}


def main(
    *,
    data: str = "digits",
    num_train: int | None = None,
    num_held_out: int = 1000,
    hidden: int = 128,
    latent_dim: int = 16,
    steps: int = 2000,
    batch_size: int = 100,
    size: int = 500,
    seed: int = 0,
) -> dict[str, Result]:
    """Every family of generative models on the same images.

    All likelihoods are of the same grey levels, so that they can be compared; what they are is said beside each: exact,
    a density of dequantized pixels, an importance or a variational bound, a bracket, or none. Draws of all are put
    beside held-out images, where training images are the control. Seconds are of fitting, compiling included, and of
    drawing 100 images once compiled.

    Parameters
    ----------
    data
        digits, mnist, or the path of a .npy, .npz or .csv file of grey images.
    num_train
        Images to learn from; all by default.
    num_held_out
        Images that are not learned from, at most.
    hidden
        Width of the two hidden layers of each network, and hidden units of the machine.
    latent_dim
        Latents of PPCA, autoencoders and generator; the mixture has twice as many components.
    steps
        Steps of every gradient learner; the diffusion, and the critic, take four times as many.
    batch_size
        Images in a step.
    size
        Images in each comparison of draws.
    seed
        Of noise and runs.
    """
    train, test = datasets.load(data)
    if train.image_shape is None or len(train.image_shape) != 2:
        raise ValueError(f"{data} has image shape {train.image_shape}; expected grey images, (height, width).")
    sizes = (hidden, latent_dim, steps, batch_size, seed)
    at = Setting(train[:num_train], test.shuffled()[:num_held_out], LEVELS.get(data, 256), *sizes)
    x, held_out = at.train.arrays["x"], at.held_out.arrays["x"]
    size, features = min(size, len(held_out)), None
    if at.train.labels is not None:
        features = quality.classifier_features(x, at.train.labels, seed=seed)
    control = np.random.default_rng(seed).permutation(x)[: max(size, 36)]
    untimed = {"fit, s": None, "draw 100, s": None}
    table = [{"model": "training images"} | BLANK | judged(control, at, features, size) | untimed]
    shown = {"data": control[:36]}
    for name, family in FAMILIES.items():
        found = family(at)
        made = found.draw(max(size, 36), seed)
        seconds = {"fit, s": sum(run.info["seconds"] for run in found.runs), "draw 100, s": _seconds(found, seed)}
        table.append({"model": name} | likelihood(found, at.pixels) | judged(made, at, features, size) | seconds)
        shown[name] = made[:36]
    text = f"Images, and draws of each model, rounded to the {at.levels} grey levels."
    return {
        f"{len(held_out):,} held-out images of {test.name}, {at.levels} grey levels": table,
        "Draws": (figures.image_panels(shown, train.image_shape, columns=6, across=4), text),
    }


BLANK: dict[str, Any] = {"log P, nats": None, "± s.e.": None, "bits a pixel": None, "it is": None}


def likelihood(found: Fitted, pixels: int) -> dict[str, Any]:
    """Nats of a held-out image, and bits of a pixel; where there are two ends, both, and bits of the lower."""
    if not found.log_mass:
        return BLANK | {"it is": found.kind}
    means = [float(rows.mean()) for rows in found.log_mass]
    error = float(found.log_mass[0].std(ddof=1) / math.sqrt(len(found.log_mass[0])))
    return {
        "log P, nats": " … ".join(f"{mean:.2f}" for mean in means),
        "± s.e.": f"{error:.2f}",
        "bits a pixel": round(-means[0] / (pixels * math.log(2)), 3),
        "it is": found.kind,
    }


def judged(made: Pixels, at: Setting, features: Any, size: int) -> dict[str, Any]:
    """How near draws are to held-out images: no likelihood is needed."""
    x, held_out = at.train.arrays["x"], at.held_out.arrays["x"]
    scores = quality.summary(made, held_out, x, size=size, seed=at.seed)
    kept = ("MMD²", "classifier's accuracy", "precision", "recall", "memorised, p")
    row = {name: scores[name] for name in kept}
    if features is not None:
        row["Fréchet, own features"] = quality.frechet_distance(held_out[:size], made[:size], features)
    return row


def _seconds(found: Fitted, seed: int) -> float:
    """Of drawing 100 images, the second time."""
    found.draw(100, seed)
    start = time.perf_counter()
    found.draw(100, seed + 1)
    return time.perf_counter() - start


if __name__ == "__main__":
    from ppl import run

    run(main)
