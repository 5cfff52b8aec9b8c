"""One epoch of a 784-200-200-50 Bernoulli VAE on MNIST, batch 100, dynamic binarization, side by side.

``fit`` against a hand-written JAX loop, a hand-written torch loop, and Pyro's SVI. All run the same
network, the same Adam, the same analytic KL, in this one process; epochs are interleaved (one of each
per round) so that a noisy machine troubles all alike, and medians are compared.

    python benchmarks/vae_epoch.py                 # table of seconds an epoch and ratios
    python benchmarks/vae_epoch.py --nll           # also 60 epochs of fit and of the JAX loop: test NLL

Learning rate 1e-3 (``--nll``: decayed exponentially to 1e-4 over the run). The NLL is an importance-
weighted estimate with k = 1000 on the first 1,000 binarized test images, in nats per image.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax import lax
from rich.console import Console
from rich.table import Table

from guides import AmortizedNormal
from inference import SVI, fit
from inference.data import as_data
from inference.execution import Runner, Schedule, make_keys
from inference.objectives import ELBO
from ppl_models import VAE, datasets
from ppl_models.likelihoods import Bernoulli
from ppl_models.networks import MLP

BATCH, LATENT, HIDDEN, PIXELS = 100, 50, (200, 200), 784


# --- hand-written JAX ---------------------------------------------------------------------------
def jax_params(key: jax.Array) -> dict:
    """Glorot-uniform weights, zero biases: the same law as the library's networks."""
    sizes = {"encoder": (PIXELS, *HIDDEN, 2 * LATENT), "decoder": (LATENT, *HIDDEN, PIXELS)}
    params = {}
    for name, layers in sizes.items():
        for i, (n, m) in enumerate(zip(layers, layers[1:], strict=False)):
            key, sub = jax.random.split(key)
            bound = (6 / (n + m)) ** 0.5
            params[f"{name}{i}"] = (jax.random.uniform(sub, (n, m), minval=-bound, maxval=bound), jnp.zeros(m))
    return params


def jax_network(params: dict, name: str, x: jax.Array) -> jax.Array:
    for i in range(2):
        w, b = params[f"{name}{i}"]
        x = jnp.tanh(x @ w + b)
    w, b = params[f"{name}2"]
    return x @ w + b


def jax_encode(params: dict, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    loc, raw = jnp.split(jax_network(params, "encoder", x), 2, axis=-1)
    return loc, jax.nn.softplus(raw) + 1e-6


def jax_loss(params: dict, key: jax.Array, x: jax.Array) -> jax.Array:
    loc, scale = jax_encode(params, x)
    z = loc + scale * jax.random.normal(key, loc.shape)
    logits = jax_network(params, "decoder", z)
    log_p = -jnp.sum(jax.nn.softplus(logits) - x * logits, -1)
    kl = 0.5 * jnp.sum(loc**2 + scale**2 - 1 - 2 * jnp.log(scale), -1)
    return jnp.mean(kl - log_p)


def jax_epochs(images: jax.Array, optimizer: optax.GradientTransformation) -> Iterator[dict]:
    """Yields the parameters after each epoch."""
    params = jax_params(jax.random.key(0))
    state = optimizer.init(params)

    @jax.jit
    def epoch(params: dict, state: tuple, key: jax.Array) -> tuple:
        order = jax.random.permutation(jax.random.fold_in(key, 0), len(images))

        def step(carry: tuple, rows: jax.Array) -> tuple:
            params, state, key = carry
            key, key_x, key_z = jax.random.split(key, 3)
            x = jax.random.bernoulli(key_x, images[rows]).astype(jnp.float32)
            gradient = jax.grad(jax_loss)(params, key_z, x)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state, key), None

        (params, state, _), _ = lax.scan(step, (params, state, key), order.reshape(-1, BATCH))
        return params, state

    for number in range(10**6):
        params, state = epoch(params, state, jax.random.key(number))
        jax.block_until_ready(params)
        yield params


def jax_nll(params: dict, x: jax.Array, k: int = 1000) -> float:
    """Importance-weighted test NLL of the hand-written model."""

    @jax.jit
    def one(row: jax.Array, key: jax.Array) -> jax.Array:
        loc, scale = jax_encode(params, row)
        e = jax.random.normal(key, (k, LATENT))
        z = loc + scale * e
        logits = jax_network(params, "decoder", z)
        log_p = -jnp.sum(jax.nn.softplus(logits) - row * logits, -1) - 0.5 * jnp.sum(z**2, -1)
        log_q = jnp.sum(-0.5 * e**2 - jnp.log(scale), -1)
        return jax.scipy.special.logsumexp(log_p - log_q) - jnp.log(k)

    return -float(jnp.mean(lax.map(lambda a: one(*a), (x, jax.random.split(jax.random.key(1), len(x))), batch_size=16)))


# --- the library ----------------------------------------------------------------------------------
def library_epochs(train: object) -> Iterator[None]:
    """``fit``'s own runner, an epoch at a time (what fit does between segments is timed by --nll)."""
    algorithm = svi(optax.adam(1e-3))
    source = as_data(train)
    runner = Runner(algorithm, source, Schedule(source.num_data, BATCH), make_keys(jax.random.key(0), 1), "loop")
    state = runner.init(source.batch(slice(0, BATCH)))
    per_epoch = runner.schedule.steps_per_epoch
    for number in range(10**6):
        state = runner.run(state, number * per_epoch, per_epoch, 1024).state
        jax.block_until_ready(state)
        yield


def svi(optimizer: optax.GradientTransformation) -> SVI:
    vae = VAE(latent_dim=LATENT, decoder=MLP(HIDDEN, activation="tanh"), likelihood=Bernoulli())
    encoder = AmortizedNormal(latent_dim=LATENT, network=MLP(HIDDEN, activation="tanh"))
    return SVI(vae, encoder, ELBO(), optimizer)


# --- torch and Pyro -------------------------------------------------------------------------------
def torch_parts() -> tuple:
    import torch
    from torch import nn

    torch.manual_seed(0)

    def mlp(*sizes: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for n, m in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(n, m), nn.Tanh()]
        return nn.Sequential(*layers[:-1])

    return torch, mlp(PIXELS, *HIDDEN, 2 * LATENT), mlp(LATENT, *HIDDEN, PIXELS)


def torch_epochs(images: np.ndarray) -> Iterator[None]:
    """A plain torch loop."""
    torch, encoder, decoder = torch_parts()
    data = torch.from_numpy(images)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    softplus = torch.nn.functional.softplus
    while True:
        for rows in torch.randperm(len(data)).split(BATCH):
            x = torch.bernoulli(data[rows])
            loc, raw = encoder(x).chunk(2, -1)
            scale = softplus(raw) + 1e-6
            logits = decoder(loc + scale * torch.randn_like(loc))
            log_p = -(softplus(logits) - x * logits).sum(-1)
            kl = 0.5 * (loc**2 + scale**2 - 1 - 2 * scale.log()).sum(-1)
            loss = (kl - log_p).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield


def pyro_epochs(images: np.ndarray) -> Iterator[None]:
    """Pyro as its documentation writes a VAE: SVI, pyro.module, Trace_ELBO."""
    import pyro
    import pyro.distributions as dist

    torch, encoder, decoder = torch_parts()
    pyro.clear_param_store()
    data = torch.from_numpy(images)

    def model(x: torch.Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z), validate_args=False).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, raw = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, torch.nn.functional.softplus(raw) + 1e-6).to_event(1))

    inference = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
    while True:
        for rows in torch.randperm(len(data)).split(BATCH):
            inference.step(torch.bernoulli(data[rows]))
        yield


def timed(epochs: Iterator) -> Callable[[], float]:
    def one() -> float:
        begin = time.perf_counter()
        next(epochs)
        return time.perf_counter() - begin

    return one


def main(rounds: int = 5, nll: bool = False, epochs: int = 60) -> None:
    """Time epochs side by side.

    Args:
        rounds: Timed epochs of each (after one that compiles).
        nll: Also train fit and the JAX loop and compare test NLL.
        epochs: Epochs for --nll.
    """
    train, test = datasets.load("mnist", binarization="dynamic")
    images = np.asarray(as_data(train).arrays["x"], np.float32)
    images = images / 255 if images.max() > 1 else images
    device_images = jnp.asarray(images)
    runs = {
        "fit (ppl-models)": timed(library_epochs(train)),
        "hand-written JAX": timed(jax_epochs(device_images, optax.adam(1e-3))),
        "hand-written torch": timed(torch_epochs(images)),
        "Pyro Trace_ELBO": timed(pyro_epochs(images)),
    }
    if jax.default_backend() != "cpu":  # the torch loops here are for CPUs
        runs = dict(list(runs.items())[:2])
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            seconds = run()
            if number:
                times[name].append(seconds)
    own = median(times["fit (ppl-models)"])
    table = Table(title=f"784-200-200-50 VAE, seconds an epoch of {len(images):,}, {jax.devices()[0].device_kind}")
    for column in ("", "median s", "min s", "fit is faster by"):
        table.add_column(column)
    for name, values in times.items():
        table.add_row(name, f"{median(values):.2f}", f"{min(values):.2f}", f"{median(values) / own:.2f}x")
    Console().print(table)
    if nll:
        compare_nll(train, test, device_images, epochs)


def compare_nll(train: object, test: object, images: jax.Array, epochs: int) -> None:
    """Train both for the same epochs on the same schedule; print NLL and seconds."""
    steps = epochs * len(images) // BATCH
    schedule = optax.exponential_decay(1e-3, steps, 0.1)
    x = jnp.asarray(as_data(test).arrays["x"][:1000])
    x = (x / 255 if x.max() > 1 else x).astype(jnp.float32)
    begin = time.perf_counter()
    run = fit(svi(optax.adam(schedule)), train, key=0, num_epochs=epochs, batch_size=BATCH)
    seconds = time.perf_counter() - begin
    estimate = run.log_likelihood(np.asarray(x), num_particles=1000)
    print(
        f"fit:              {-estimate.mean:.2f} nats (MC error {estimate.mc_error:.3f}), {seconds:.0f} s, {run.info}"
    )
    begin = time.perf_counter()
    own = jax_epochs(images, optax.adam(schedule))
    for _ in range(epochs):
        params = next(own)
    seconds = time.perf_counter() - begin
    print(f"hand-written JAX: {jax_nll(params, x):.2f} nats, {seconds:.0f} s")


if __name__ == "__main__":
    tyro.cli(main)
