"""A normalizing flow is the limit of a variational autoencoder with less and less noise.

    model   z ~ N(0, I),   x | z ~ N(g(z), ε² I)          g = f⁻¹, the flow
    guide   q(z | x) = N(f(x), ε² J Jᵀ)                   J = ∂f/∂x at x

With z = f(x) + ε J e, e ~ N(0, I), the decoder gives g(z) = x + ε e + O(ε²), so that

    log p(x | z) - log q(z | x) → log |det J|,   and   ELBO → log p(f(x)) + log |det J| = log p(x),

the flow's own density. The covariance matters. With q(z | x) = N(f(x), ε² c I) the best c is D / tr A, A = (J Jᵀ)⁻¹,
and even then, however small ε,

    ELBO → log p(x) - ½ D log( (tr A / D) / (det A)^(1/D) ),

a gap between the arithmetic and the geometric mean of A's eigenvalues.

References
----------
SurVAE Flows: Surjections to Bridge the Gap between VAEs and Flows (Nielsen, Jaini, Hoogeboom, Winther & Welling, 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jaxtyping import Array, Float
from matplotlib.figure import Figure

import guides
from inference import SVI, fit
from inference.objectives import ELBO
from ppl.figures import COLOURS
from ppl.recipe import Result
from ppl_models import Flow
from ppl_models.networks import RealNVP, flow


@dataclass(frozen=True)
class NoisyDecoder:
    """The model: a standard Normal through the flow, with noise of standard deviation ``noise``."""

    architecture: Any
    noise: float

    def __call__(self, x: Float[Array, "batch dim"]) -> None:
        bijection = flow("flow", self.architecture, x.shape[-1]).bijection
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(x.shape), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(jax.vmap(bijection.transform)(z), self.noise).to_event(1), obs=x)


@dataclass(frozen=True)
class MatchedCoder:
    """The guide whose covariance is that of the decoder's noise, carried through the flow."""

    architecture: Any
    noise: float

    def __call__(self, x: Float[Array, "batch dim"]) -> None:
        f, jacobian = linearised(flow("flow", self.architecture, x.shape[-1]), x)
        spread = jnp.linalg.cholesky(jacobian @ jacobian.mT)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.MultivariateNormal(f, scale_tril=self.noise * spread))


@dataclass(frozen=True)
class RoundCoder:
    """The guide with the best multiple of the identity as its covariance."""

    architecture: Any
    noise: float

    def __call__(self, x: Float[Array, "batch dim"]) -> None:
        f, jacobian = linearised(flow("flow", self.architecture, x.shape[-1]), x)
        c = x.shape[-1] / jnp.trace(precision(jacobian), axis1=-2, axis2=-1)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(f, self.noise * jnp.sqrt(c)[:, None]).to_event(1))


def linearised(p: Any, x: Float[Array, "batch dim"]) -> tuple[Array, Array]:
    """f(x) and J of each row."""
    f = p.bijection.inverse
    return jax.vmap(f)(x), jax.vmap(jax.jacfwd(f))(x)


def precision(jacobian: Float[Array, "batch dim dim"]) -> Float[Array, "batch dim dim"]:
    """A = (J Jᵀ)⁻¹."""
    return jnp.linalg.inv(jacobian @ jacobian.mT)


def gap_that_stays(jacobian: Float[Array, "batch dim dim"]) -> Float[Array, " batch"]:
    """½ (D log(tr A / D) - log det A), nats."""
    a, dim = precision(jacobian), jacobian.shape[-1]
    trace = jnp.trace(a, axis1=-2, axis2=-1)
    return 0.5 * (dim * jnp.log(trace / dim) - jnp.linalg.slogdet(a)[1])


def main(
    *,
    noises: tuple[float, ...] = (0.3, 0.1, 0.03, 0.01),
    num_layers: int = 4,
    steps: int = 2000,
    num_particles: int = 100,
    seed: int = 0,
) -> dict[str, Result]:
    """The ELBO of a noisy coder tends to the flow's log density, if its covariance is the right one.

    A flow is fitted to rows on a noisy parabola. The same flow, with its weights as they are, is then decoder and
    encoder of a variational autoencoder whose noise is made smaller and smaller.

    Parameters
    ----------
    noises
        ε, the standard deviations of the decoder.
    num_layers
        Coupling layers of the flow.
    steps
        Of Adam in fitting it.
    num_particles
        Draws a row in each ELBO.
    seed
        Of data, run and draws.
    """
    architecture = RealNVP(num_layers, 32)
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(4000, 1))
    x = np.concatenate([a, a**2 / 2 + 0.4 * rng.normal(size=a.shape)], 1).astype(np.float32)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    run = fit(
        SVI(Flow(architecture), guides.empty, ELBO(), optimizer), x[:3800], key=seed, num_steps=steps, batch_size=200
    )
    rows = x[3800:]
    exact = run.log_likelihood(rows).mean
    with numpyro.handlers.substitute(data=run.params):
        stays = float(gap_that_stays(linearised(flow("flow", architecture, 2), jnp.asarray(rows))[1]).mean())

    table: list[dict[str, object]] = []
    for noise in noises:
        model = NoisyDecoder(architecture, noise)
        bounds = [
            bound(model, coder(architecture, noise), run.params, rows, num_particles, seed)
            for coder in (MatchedCoder, RoundCoder)
        ]
        table.append(
            {
                "noise": noise,
                "ELBO, right covariance": round(bounds[0], 4),
                "gap": round(exact - bounds[0], 4),
                "ELBO, best multiple of I": round(bounds[1], 4),
                "its gap": round(exact - bounds[1], 4),
                "its gap by the formula": round(stays, 4),
            }
        )
    return {"Nats a row": table, "The bound tends to the flow's log density": figure(table, exact, stays), "Flow": run}


def bound(model: Any, guide: Any, params: dict[str, Any], x: Any, num_particles: int, seed: int) -> float:
    """The ELBO in nats a row."""
    loss = jax.jit(lambda key, x: ELBO(num_particles).loss(key, params, model, guide, x))
    return -float(loss(jax.random.key(seed), jnp.asarray(x))) / len(x)


def figure(table: list[dict[str, Any]], exact: float, stays: float) -> Figure:
    """Both bounds against the noise."""
    fig = Figure(figsize=(6.5, 3.6), layout="constrained")
    ax = fig.subplots()
    noises = [row["noise"] for row in table]
    for name, colour in (("ELBO, right covariance", COLOURS[0]), ("ELBO, best multiple of I", COLOURS[1])):
        ax.plot(noises, [row[name] for row in table], marker="o", color=colour, label=name)
    ax.axhline(exact, color="#333333", linewidth=1, label="log p(x) of the flow")
    ax.axhline(exact - stays, color="#333333", linewidth=1, linestyle=":", label="less the gap that stays")
    ax.set(xscale="log", xlabel="noise ε", ylabel="nats a row")
    ax.legend(frameon=False)
    return fig


if __name__ == "__main__":
    from ppl import run

    run(main)
