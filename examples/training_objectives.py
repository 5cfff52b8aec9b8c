"""Four ways to learn a latent-variable model, on models small enough that the first one is possible.

    exact likelihood      log sum_z p(z) p(x | z)
    prior sampling        E log (1/K) sum_k p(x | z_k),                     z_k ~ p(z)
    importance sampling   E log (1/K) sum_k p(x, z_k) / q(z_k | x),         z_k ~ q(z | x), learned beside
    variational bound     E (1/K) sum_k log p(x, z_k) / q(z_k | x),         z_k ~ q(z | x), learned beside

The last three are bounds on the first from below. Prior sampling is the second with q = p(z): of its K draws only
those count that happen to explain x. Their share, the effective sample size of infinitely many draws over their
number, is exact here,

    share(q) = (E_q w)² / E_q[w²] = p(x)² / sum_z (p(x, z)² / q(z | x)),

about 1 / N under the prior where one of N causes explains x.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.nn import logsumexp
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from numpyro import handlers

from guides import AmortizedBernoulli, empty
from inference import SVI, Fit, fit
from inference.objectives import ELBO, VIMCO, ScoreFunction
from ppl.figures import COLOURS, INK, PALE, WIDTH, image_panels
from ppl.recipe import Result
from ppl_models import DiscreteVAE, datasets
from ppl_models.networks import MLP, network

EXACT, PRIOR, IMPORTANCE, VARIATIONAL = "exact likelihood", "prior sampling", "importance sampling", "variational bound"
SHOWN = (1, 5)  # epochs that are shown, besides the last
SCALE = 0.2  # of a cluster
CLUSTERS = (2, 4, 8, 16, 32, 64)  # numbers and bits for which the share of prior samples is shown
BITS = (2, 4, 6, 8, 10)

Runs = dict[str, dict[int, Fit]]  # by objective and epoch


@dataclass(frozen=True)
class Clusters:
    """z ~ uniform over N clusters, x | z ~ N(means_z, SCALE² I): parameter ``means`` (N, 2)."""

    num_clusters: int

    def __call__(self, x: Float[Array, "batch 2"], num_data: int | None = None) -> None:
        side = np.sqrt(self.num_clusters)
        means = numpyro.param("means", lambda key: side * jax.random.uniform(key, (self.num_clusters, 2)))
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            z = numpyro.sample("z", dist.Categorical(logits=jnp.zeros(self.num_clusters)))
            numpyro.sample("x", dist.Normal(means[z], SCALE).to_event(1), obs=x)


@dataclass(frozen=True)
class Classifier:
    """q(z | x), the probabilities of the clusters, from a network."""

    num_clusters: int

    def __call__(self, x: Float[Array, "batch 2"], num_data: int | None = None) -> None:
        logits = network(numpyro, "encoder", MLP((64,)), 2, self.num_clusters)
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            numpyro.sample("z", dist.Categorical(logits=logits(x)))


@dataclass(frozen=True)
class Prior:
    """The prior as a guide: the model with its observations out of sight."""

    model: Any

    def __call__(self, x: Float[Array, "batch columns"], num_data: int | None = None) -> None:
        with handlers.block(hide_fn=lambda site: site.get("is_observed", False)):
            self.model(x, num_data)


def draw_clusters(num_clusters: int, num_rows: int, seed: int) -> Float[np.ndarray, "rows 2"]:
    """Rows from clusters on a square grid of spacing 1, a little out of place."""
    rng = np.random.default_rng(seed)
    z = rng.integers(0, num_clusters, num_rows)
    return (true_means(num_clusters)[z] + SCALE * rng.normal(size=(num_rows, 2))).astype(np.float32)


def true_means(num_clusters: int) -> Float[np.ndarray, "clusters 2"]:
    side = int(np.ceil(np.sqrt(num_clusters)))
    places = np.arange(num_clusters)
    grid = np.stack([places % side, places // side], axis=1)
    return grid + np.random.default_rng(0).uniform(0.25, 0.75, (num_clusters, 2))


def main(
    *,
    num_clusters: int = 25,
    num_bits: int = 8,
    num_draws: int = 5,
    num_epochs: int = 40,
    num_rows: int = 2000,
    step_size: float = 0.01,
    seed: int = 0,
) -> dict[str, Result]:
    """Exact likelihood, prior sampling, importance sampling, variational bound.

    A mixture of clusters, and a deep network that makes digits from a few bits, are each learned in four ways. All
    are judged by the exact log likelihood of held-out rows, which sums over every cluster and every pattern of
    bits. A few draws from the prior rarely hold one that explains the row at hand, and the share that does falls
    with the number of clusters and exponentially with the number of bits. A learned guide draws where the
    posterior is.

    Parameters
    ----------
    num_clusters
        N of the mixture.
    num_bits
        Of the network's latent, at most 16.
    num_draws
        K, at least 2.
    num_epochs
        Passes over the rows.
    num_rows
        Of the clusters; half as many are held out.
    step_size
        Of Adam.
    seed
        Of data, starts and draws.
    """
    epochs = [e for e in SHOWN if e < num_epochs] + [num_epochs]
    adam = optax.adam(step_size)
    rows = draw_clusters(num_clusters, num_rows + num_rows // 2, seed)
    points, new_points = rows[:num_rows], rows[num_rows:]
    mixture, classifier = Clusters(num_clusters), Classifier(num_clusters)
    clusters = learn(four(mixture, mixture, classifier, num_draws, adam), points, epochs, seed)

    images, new_images = datasets.load("digits", binarization="threshold")
    vae = digit_model(num_bits)
    encoder = AmortizedBernoulli(layers=(num_bits,), network=MLP((64,)), sites=("z",))
    bits = learn(four(vae, vae.marginal, encoder, num_draws, adam), images, epochs, seed)

    held_out = exact_means(clusters, new_points)
    every_cluster, every_state = jnp.arange(num_clusters), states(num_bits)
    new = np.asarray(new_images.arrays["x"])
    shares = {
        "of clusters": [prior_share(true_clusters(n, seed)) for n in CLUSTERS],
        "of bits": [trained_share(n, images, new, num_epochs, adam, seed) for n in BITS if n <= num_bits + 2],
    }
    return {
        "Clusters: samples over epochs": scatters(points, clusters, held_out),
        "Clusters: held-out rows, nats a row": table(clusters, held_out, mixture, every_cluster, new_points),
        "Digits of a few bits: mean images over epochs": pictures(bits, vae, seed),
        "Digits, thresholded: held-out images, nats an image": table(
            bits, exact_means(bits, new), vae, every_state, new
        ),
        "Share of prior samples that carry weight": decline(shares),
    }


def digit_model(num_bits: int) -> DiscreteVAE:
    """Every pattern of bits equally likely, and a network from bits to pixels."""
    return DiscreteVAE(num_bits, decoder=MLP((64,)), learn_prior=False)


def four(model: Any, summed: Any, guide: Any, num_draws: int, adam: optax.GradientTransformation) -> dict[str, SVI]:
    """The four objectives; ``summed`` is the model that ``ELBO`` and an empty guide make exact."""
    return {
        EXACT: SVI(summed, empty, ELBO(), adam),
        PRIOR: SVI(model, Prior(model), VIMCO(num_draws), adam),
        IMPORTANCE: SVI(model, guide, VIMCO(num_draws), adam),
        VARIATIONAL: SVI(model, guide, ScoreFunction(num_draws), adam),
    }


def learn(algorithms: dict[str, SVI], data: Any, epochs: list[int], seed: int) -> Runs:
    """Every objective up to each of these epochs: a shorter run is the beginning of a longer one."""
    return {
        name: {epoch: fit(algorithm, data, key=seed, num_epochs=epoch, batch_size=100) for epoch in epochs}
        for name, algorithm in algorithms.items()
    }


def exact_means(runs: Runs, new: Float[np.ndarray, "rows columns"]) -> dict[str, dict[int, float]]:
    """Exact log likelihood of held-out rows after each epoch shown, nats a row."""
    return {name: {e: float(run.log_likelihood(new).mean) for e, run in by.items()} for name, by in runs.items()}


def table(
    runs: Runs,
    held_out: dict[str, dict[int, float]],
    model: Any,
    latents: Array,
    new: Float[np.ndarray, "rows columns"],
) -> list[dict[str, Any]]:
    """The exact log likelihoods, the training bound, and the share of draws that carry weight."""
    out = []
    for name, by_epoch in runs.items():
        *_, (last, run) = by_epoch.items()
        reached = {f"epoch {epoch}": value for epoch, value in held_out[name].items()}
        bound = float(run.history["bound"][0, -run.info["num_steps"] // last :].mean())
        share = "–" if name == EXACT else f"{guide_share(run, model, latents, new):.1%}"
        out.append({"": name} | reached | {"training bound, last epoch": bound, "share of draws": share})
    return out


def states(num_bits: int) -> Float[Array, "states bits"]:
    """All patterns of so many bits."""
    return (jnp.arange(2**num_bits)[:, None] >> jnp.arange(num_bits) & 1).astype(jnp.float32)


def likelihood(model: Any, params: dict[str, Any], latents: Array, columns: int) -> dist.Distribution:
    """p(x | z) for each of these values of the latent."""
    with handlers.seed(rng_seed=0), handlers.substitute(data=params | {"z": latents}):
        return handlers.trace(model).get_trace(jnp.zeros((len(latents), columns)))["x"]["fn"]


@partial(jax.jit, static_argnums=0)
def conditional(
    model: Any, params: dict[str, Any], latents: Array, x: Float[Array, "rows columns"]
) -> Float[Array, "rows latents"]:
    """log p(x_n | z) for each row and each value of the latent."""
    return jax.lax.map(likelihood(model, params, latents, x.shape[1]).log_prob, x)


def prior_share(log_p: Float[Array, "rows latents"]) -> float:
    """Mean over rows of (E w)² / E[w²] for w = p(x | z) and z uniform."""
    n = log_p.shape[1]
    return float(jnp.mean(jnp.exp(2 * logsumexp(log_p, axis=1) - logsumexp(2 * log_p, axis=1))) / n)


def guide_share(run: Fit, model: Any, latents: Array, new: np.ndarray) -> float:
    """The same for the weights p(x, z) / q(z | x) of the run's guide."""
    joint = conditional(model, run.params, latents, new) - np.log(len(latents))
    with handlers.seed(rng_seed=0), handlers.substitute(data=run.params):
        q = handlers.trace(run.guide).get_trace(new)["z"]["fn"]
    log_q = q.log_prob(latents[:, None]).T  # (rows, latents)
    return float(jnp.mean(jnp.exp(2 * logsumexp(joint, axis=1) - logsumexp(2 * joint - log_q, axis=1))))


def true_clusters(num_clusters: int, seed: int) -> Float[Array, "rows latents"]:
    """log p(x | z) under the true means."""
    x = draw_clusters(num_clusters, 500, seed)
    means = {"means": jnp.asarray(true_means(num_clusters), jnp.float32)}
    return conditional(Clusters(num_clusters), means, jnp.arange(num_clusters), x)


def trained_share(
    num_bits: int, images: Any, new: np.ndarray, num_epochs: int, adam: optax.GradientTransformation, seed: int
) -> float:
    """The share of prior samples under a model of so many bits learned by its exact likelihood."""
    vae = digit_model(num_bits)
    run = fit(SVI(vae.marginal, empty, ELBO(), adam), images, key=seed, num_epochs=num_epochs, batch_size=100)
    return prior_share(conditional(vae, run.params, states(num_bits), new))


def scatters(points: Float[np.ndarray, "rows 2"], runs: Runs, held_out: dict[str, dict[int, float]]) -> Figure:
    """Samples of each model over the data, a row of panels for each objective and a column for each epoch."""
    columns = list(next(iter(runs.values())))
    figure = Figure(figsize=(0.8 * WIDTH, 2.35 * len(runs)), layout="constrained")
    axes = figure.subplots(len(runs), len(columns), sharex=True, sharey=True, squeeze=False)
    for line, colour, (name, by_epoch) in zip(axes, COLOURS, runs.items(), strict=False):
        for ax, (epoch, run) in zip(line, by_epoch.items(), strict=True):
            samples = run.generate(min(len(points), 1000))["x"]
            ax.plot(*points.T, ".", color=PALE, markersize=1.5, alpha=0.35)
            ax.plot(*samples.T, ".", color=colour, markersize=2, alpha=0.6)
            ax.set_aspect("equal")
            value = f"{held_out[name][epoch]:.2f} nats".replace("-", "−")
            ax.set_title(f"epoch {epoch}: {value}", fontsize=10, fontweight="normal")
        line[0].set_ylabel(name)
    low, high = points.min(0) - 0.3, points.max(0) + 0.3
    axes[0, 0].set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    return figure


def pictures(runs: Runs, vae: DiscreteVAE, seed: int) -> Figure:
    """The mean image of some patterns of bits under each model, a line for each epoch."""
    z = states(vae.num_bits)[np.random.default_rng(seed).integers(0, 2**vae.num_bits, 24)]
    panels = {
        f"{name.split()[0]}, epoch {epoch}": likelihood(vae, runs[name][epoch].params, z, 64).mean
        for epoch in next(iter(runs.values()))
        for name in runs
    }
    return image_panels(panels, (8, 8), columns=6, across=len(runs))


def decline(shares: dict[str, list[float]]) -> Figure:
    """The share of prior samples over the number of clusters and of bits, with one over the number of causes."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for ax, sizes, values, causes in (
        (left, CLUSTERS, shares["of clusters"], lambda n: 1 / n),
        (right, BITS, shares["of bits"], lambda n: 2.0**-n),
    ):
        sizes = np.array(sizes[: len(values)])
        ax.plot(sizes, values, "o-", color=COLOURS[0], label="share that carries weight, exact")
        ax.plot(sizes, causes(sizes), ":", color=INK, label="one over the number of causes")
    left.set(xscale="log", yscale="log", xlabel="clusters N", title="Mixture of N clusters")
    left.set_ylabel("share of prior samples")
    left.set_xticks(CLUSTERS, map(str, CLUSTERS))
    left.minorticks_off()
    right.set_xticks(BITS)
    right.set(xlabel="latent bits", title="Digits of a few bits, learned exactly")
    left.legend(loc="lower left")
    return figure


if __name__ == "__main__":
    from ppl import run

    run(main)
