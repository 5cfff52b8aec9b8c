"""Probabilistic PCA by EM and by three variational routes: one optimum, and the guide that belongs to it.

    z ~ N(0, I),    x | z ~ N(W z + mu, s² I),    p(z | x) = N(z̄, G⁻¹),    G = I + WᵀW / s²

log p(x) = ELBO + KL(q || N(z̄, G⁻¹)), so the ELBO has the maximum of log p(x) if some q closes the gap there.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from numpyro.distributions import kl_divergence

from guides import AmortizedNormal, MeanField
from inference import EM, SVI, Fit, MaximumLikelihood, fit
from inference.objectives import ELBO
from ppl.figures import COLOURS, INK, PALE, WIDTH
from ppl.recipe import Result
from ppl_models import PPCA
from ppl_models.networks import Linear

ANGLES = (0, 15, 30, 45)  # degrees by which W is rotated
NOISES = (0.25, 4, 16, 64)  # factors of the noise variance


def draw(num_rows: int, seed: int) -> Float[np.ndarray, "rows 6"]:
    """Rows near a plane in six dimensions, float32."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(6, 2)))
    z = rng.normal(size=(num_rows, 2)) * (3.0, 1.2)
    return (z @ basis.T + rng.normal(size=(num_rows, 6))).astype(np.float32)


def main(*, num_rows: int = 300, num_steps: int = 2000, step_size: float = 0.05, seed: int = 0) -> dict[str, Result]:
    """EM and variational inference find one optimum.

    EM takes the exact posterior as its q. The others climb the ELBO by gradient: with a Normal of its own
    for every row, moved together with the model or in turns with it, and with one affine map from rows to
    Normals. All end at the maximum of the likelihood, which the eigenvectors of the covariance also give.

    These Normals have independent coordinates, so they are exact only where the columns of the loadings W
    are orthogonal. But W R has the likelihood of W for every rotation R, and one R makes them so: the gap picks
    that rotation, and costs no likelihood. EM, which has no gap, stays at whichever it comes to.

    As the model moves, so does the best guide. Where W is turned away, the guide keeps the mean of the
    posterior and is too narrow; with more noise, both tend to the prior.

    Parameters
    ----------
    num_rows
        Rows of data, in six dimensions.
    num_steps
        Gradient steps; EM takes a hundred steps at most.
    step_size
        Of Adam, decayed to zero.
    seed
        Of the data and the starts.
    """
    x = draw(num_rows, seed)
    ppca = PPCA(latent_dim=2, loadings_scale=1.0, mean_scale=1.0, noise_scale=1.0)
    model = MaximumLikelihood(ppca)
    per_row, amortized = MeanField(model), AmortizedNormal(latent_dim=2, network=Linear())
    objective = ELBO(num_particles=5)
    adam = optax.adam(optax.cosine_decay_schedule(step_size, num_steps))
    half = optax.adam(optax.cosine_decay_schedule(step_size, num_steps // 2))  # each moves in half of the steps
    turns = {
        "guide": optax.conditionally_mask(half, lambda step: step % 2 == 0),
        "model": optax.conditionally_mask(half, lambda step: step % 2 == 1),
    }
    in_turns = optax.partition(turns, lambda params: {n: "guide" if n.startswith("z_") else "model" for n in params})

    runs = {"EM": fit(EM(ppca, tolerance=0), x, key=seed, num_steps=min(num_steps, 100))}
    routes = {
        "Normal per row": SVI(model, per_row, objective, adam),
        "Normal per row, in turns": SVI(model, per_row, objective, in_turns),
        "amortized Normal": SVI(model, amortized, objective, adam),
    }
    runs |= {name: fit(route, x, key=seed, num_steps=num_steps) for name, route in routes.items()}

    best = ppca.closed_form(x)
    maximum = float(ppca.e_step(best, x)[0]) / len(x)
    models = neighbours(np.asarray(best["loadings"]), float(best["noise_variance"]))
    moved = SVI(known_model, MeanField(known_model), ELBO(num_particles=20), adam)
    return {
        "One optimum": curves(runs, maximum),
        "Where each ends, nats per row": [summary(name, run, x, maximum) for name, run in runs.items()],
        "The optimal guide moves with the model": ellipses(models, fit(moved, models, key=seed, num_steps=num_steps)),
    }


def summary(name: str, run: Fit, x: Float[np.ndarray, "N D"], maximum: float) -> dict[str, float | str]:
    """The bound over the last tenth of the steps, the exact log likelihood, and the angle between W's columns."""
    last = run.history["bound"][0, -(-run.info["num_steps"] * 9 // 10) :]
    w = np.asarray(run.params["loadings"])
    return {
        "": name,
        "bound": f"{last.mean():.3f} ± {2 * last.std() / np.sqrt(len(last)):.3f}".replace("-", "−"),
        "maximum": f"{maximum:.3f}".replace("-", "−"),
        "maximum − log p(x)": maximum - run.log_likelihood(x).mean,
        "|cos(w₁, w₂)|": float(abs(w[:, 0] @ w[:, 1]) / np.linalg.norm(w, axis=0).prod()),
    }


def neighbours(w: Float[np.ndarray, "D q"], noise: float) -> dict[str, np.ndarray]:
    """One datum under several models, a row each: W rotated by each angle, then noise of each size."""
    turned = [w @ np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in np.deg2rad(ANGLES)]
    return {
        "x": np.tile(w @ (1.2, -0.9), (len(ANGLES) + len(NOISES), 1)).astype(np.float32),  # less its mean
        "loadings": np.stack(turned + [w] * len(NOISES)).astype(np.float32),
        "noise": noise * np.array([1.0] * len(ANGLES) + list(NOISES), np.float32),
    }


def known_model(
    x: Float[Array, "N D"], loadings: Float[Array, "N D q"], noise: Float[Array, " N"], num_data: int | None = None
) -> None:
    """PPCA with known parameters, others for every row: what is left to learn is the guide."""
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1).to_event(1))
        mean = jnp.einsum("ndq,...nq->...nd", loadings, z)
        numpyro.sample("x", dist.Normal(mean, noise[:, None] ** 0.5).to_event(1), obs=x)


def exact_posterior(models: dict[str, np.ndarray]) -> dist.MultivariateNormal:
    """N(z̄, G⁻¹) with G = I + WᵀW / s² and z̄ = G⁻¹ Wᵀx / s²."""
    weighted = models["loadings"] / models["noise"][:, None, None]
    precision = np.eye(2) + np.einsum("ndq,ndr->nqr", weighted, models["loadings"])
    mean = np.linalg.solve(precision, np.einsum("ndq,nd->nq", weighted, models["x"])[..., None])[..., 0]
    return dist.MultivariateNormal(mean, scale_tril=np.linalg.cholesky(np.linalg.inv(precision)))


def curves(runs: dict[str, Fit], maximum: float) -> Figure:
    """Bounds over steps, averaged over a tenth of the steps so far, up to the maximum of the likelihood."""
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    ax = figure.subplots()
    ax.axhline(maximum, color=INK, linestyle="--", linewidth=1.2, label="maximum, closed form")
    for name, run in runs.items():
        total = np.cumsum(np.insert(np.asarray(run.history["bound"][0], float), 0, 0.0))
        step = np.arange(1, len(total))
        since = step - np.maximum(1, step // 10)
        ax.plot(step, (total[step] - total[since]) / (step - since), label=name)
    first = runs["EM"].history["bound"][0, 0]
    ax.set(xscale="log", ylim=(first - 1, maximum + 0.2), xlabel="step", ylabel="nats per row")
    ax.set_title("Bound of each route; for EM it is the log likelihood")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.legend(loc="lower left", bbox_to_anchor=(0.12, 0.02))
    return figure


def ellipses(models: dict[str, np.ndarray], run: Fit) -> Figure:
    """The exact posterior of one datum and the fitted guide, two standard deviations, under each model."""
    exact = exact_posterior(models)
    guide = dist.MultivariateNormal(run.params["z_loc"], scale_tril=jnp.eye(2) * run.params["z_scale"][:, None])
    gaps = np.asarray(kl_divergence(guide, exact))
    titles = [f"W rotated by {a}°" for a in ANGLES] + [f"noise variance × {n:g}" for n in NOISES]
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    axes = figure.subplots(2, len(ANGLES), sharex=True, sharey=True).ravel()
    angle = np.linspace(0, 2 * np.pi, 100)
    circle = 2 * np.stack([np.cos(angle), np.sin(angle)])
    drawn = (exact, COLOURS[4], 4, "exact posterior"), (guide, COLOURS[1], 1.6, "fitted guide")
    for i, ax in enumerate(axes):
        ax.plot(*circle, color=PALE, linestyle=":", label="prior")
        for normal, colour, width, label in drawn:
            ellipse = np.asarray(normal.loc[i])[:, None] + np.asarray(normal.scale_tril[i]) @ circle
            ax.plot(*ellipse, color=colour, linewidth=width, label=label)
        ax.set_title(f"{titles[i]}\ngap {gaps[i]:.2f} nats", fontsize=10)
        ax.set_aspect("equal")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


if __name__ == "__main__":
    from ppl import run

    run(main)
