"""Fitting a Normal q to a density p with two modes: forward KL covers both, reverse KL seeks one.

    forward  KL(p || q) = E_p[log p - log q]    least where q has the mean and the covariance of p
    reverse  KL(q || p) = E_q[log q - log p]    minus the ELBO, since this p is normalised

Forward KL is large where q has little mass and p has some: q spreads over both modes and the valley between.
Reverse KL is large where q has mass and p has little: q stays on one mode, and which one depends on its start.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from guides import empty
from inference import SVI, fit
from inference.objectives import ELBO
from ppl.figures import COLOURS, WIDTH
from ppl.recipe import Result

MEANS = np.array([[-2.4, -1.2], [2.4, 0.9]])  # one dimension has the first column, and the first variances
COVARIANCES = np.array([[[0.8, 0.4], [0.4, 0.7]], [[0.5, -0.3], [-0.3, 0.8]]])
WEIGHTS = np.array([0.6, 0.4])
GRID = np.linspace(-12, 12, 601)  # for quadrature, in each dimension

Row = Float[Array, "1 dim"]


def p(dim: int) -> dist.Distribution:
    """The density to fit: two Normals of unequal weight."""
    normals = dist.MultivariateNormal(jnp.array(MEANS[:, :dim]), jnp.array(COVARIANCES[:, :dim, :dim]))
    return dist.MixtureSameFamily(dist.Categorical(jnp.array(WEIGHTS)), normals)


def q(dim: int) -> dist.MultivariateNormal:
    """A Normal with any mean and covariance, learned."""
    loc = numpyro.param("loc", lambda key: 3 * jax.random.normal(key, (dim,)))
    root = numpyro.param("root", jnp.eye(dim), constraint=dist.constraints.lower_cholesky)
    return dist.MultivariateNormal(loc, scale_tril=root)


def target(x: Row) -> None:
    """p as a program; the row x only says how many dimensions there are."""
    numpyro.sample("z", p(x.shape[1]))


def guide(x: Row) -> None:
    """q as a guide for p: its ELBO is -KL(q || p)."""
    numpyro.sample("z", q(x.shape[1]))


def likelihood(x: Float[Array, "batch dim"], num_data: int | None = None) -> None:
    """q as a model of draws from p: its mean log likelihood is -KL(p || q), up to the entropy of p."""
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("x", q(x.shape[1]), obs=x)


def main(*, num_draws: int = 20_000, num_steps: int = 600, num_restarts: int = 8, seed: int = 0) -> dict[str, Result]:
    """Forward KL covers, reverse KL seeks.

    A Normal is fitted to a mixture of two: by maximum likelihood on draws from it, which minimises the
    forward KL divergence, and as a variational guide, which minimises the reverse one. On a mode of weight
    w that stands alone, the reverse divergence is about -log w, so the heavier mode wins, if a restart finds it.

    Parameters
    ----------
    num_draws
        From the mixture, for maximum likelihood.
    num_steps
        Gradient steps.
    num_restarts
        Of the reverse fit, from different means.
    seed
        Of draws and starts.
    """
    adam = optax.adam(optax.cosine_decay_schedule(0.05, num_steps))
    forward, reverse = SVI(likelihood, empty, ELBO(), adam), SVI(target, guide, ELBO(num_particles=100), adam)
    fitted, table = {}, []
    for dim in (1, 2):
        draws = jax.jit(lambda key, dim=dim: p(dim).sample(key, (num_draws,)))(jax.random.key(seed))
        covering = fit(forward, draws, key=seed, num_steps=num_steps).params
        blank = np.zeros((1, dim), np.float32)
        restarts = fit(reverse, blank, key=seed, num_steps=num_steps, num_chains=num_restarts).draws.params
        best = {n: v[0] for n, v in restarts.items()}
        elsewhere = np.flatnonzero(restarts["loc"][:, 0] * best["loc"][0] < 0)  # the modes differ in sign
        fitted[dim] = {"forward": covering, "reverse, best restart": best}
        if len(elsewhere):
            fitted[dim]["reverse, other mode"] = {n: v[elsewhere[0]] for n, v in restarts.items()}
        table += [{"fit": f"{name}, {dim}-D"} | divergences(dim, params) for name, params in fitted[dim].items()]
    return {"Two directions": panels(fitted), "Both divergences, in nats, by quadrature": table}


def grid(dim: int) -> Float[np.ndarray, "... dim"]:
    """All points of the grid in so many dimensions."""
    return np.stack(np.meshgrid(*[GRID] * dim, indexing="ij"), axis=-1).astype(np.float32)


@partial(jax.jit, static_argnums=0)
def log_densities(dim: int, params: dict[str, Array]) -> tuple[Array, Array]:
    """log p and log q at all points of the grid."""
    fitted = dist.MultivariateNormal(params["loc"], scale_tril=params["root"])
    return p(dim).log_prob(grid(dim)), fitted.log_prob(grid(dim))


def divergences(dim: int, params: dict[str, Array]) -> dict[str, float]:
    """Both KL divergences between p and the fitted Normal, as sums over the grid."""
    log_p, log_q = (np.asarray(v, np.float64) for v in log_densities(dim, params))
    cell = (GRID[1] - GRID[0]) ** dim
    return {
        "KL(p || q)": float((np.exp(log_p) * (log_p - log_q)).sum() * cell),
        "KL(q || p)": float((np.exp(log_q) * (log_q - log_p)).sum() * cell),
    }


def panels(fitted: dict[int, dict[str, dict[str, Array]]]) -> Figure:
    """Densities in one dimension; ellipses of two standard deviations in two."""
    looks = ((COLOURS[0], "-"), (COLOURS[1], "-"), (COLOURS[1], "--"))
    figure = Figure(figsize=(WIDTH, 4.3), layout="constrained")
    line, plane = figure.subplots(1, 2)
    one, two = (np.exp(log_densities(dim, fitted[dim]["forward"])[0]) for dim in (1, 2))
    line.fill_between(GRID, one, color="#d4d4d4", label="p, two modes")
    plane.contourf(GRID, GRID, two.T, levels=two.max() * np.linspace(0.04, 1, 9), cmap="Greys", alpha=0.7)
    for (colour, dashes), (name, params) in zip(looks, fitted[1].items(), strict=False):
        density = np.exp(log_densities(1, params)[1])
        line.plot(GRID, density, color=colour, linestyle=dashes, linewidth=2, label=f"q, {name}")
    angle = np.linspace(0, 2 * np.pi, 100)
    circle = 2 * np.stack([np.cos(angle), np.sin(angle)])
    for (colour, dashes), params in zip(looks, fitted[2].values(), strict=False):
        ellipse = np.asarray(params["loc"])[:, None] + np.asarray(params["root"]) @ circle
        plane.plot(*ellipse, color=colour, linestyle=dashes, linewidth=2)
    line.set(title="One dimension", xlabel="z", ylabel="density", xlim=(-7, 7), ylim=(0, None))
    plane.set(title="Two dimensions, two standard deviations", xlabel="z₁", ylabel="z₂", aspect="equal")
    plane.set(xlim=(-7, 7), ylim=(-5, 5))
    figure.legend(loc="outside lower center", ncols=4)
    return figure


if __name__ == "__main__":
    from ppl import run

    run(main)
