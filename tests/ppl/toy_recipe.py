"""A recipe small enough for the tests: the mean of a Gaussian, by SVI and by NUTS."""

from __future__ import annotations

import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

from guides import MeanField
from inference import NUTS, SVI, compare, fit
from inference.objectives import ELBO, IWAE, ScoreFunction
from ppl import figures


def model(x, num_data=None):
    mean = numpyro.sample("mean", dist.Normal(0, 10).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
        numpyro.sample("x", dist.Normal(mean, 1).to_event(1), obs=x)


def main(
    *,
    objective: ELBO | IWAE | ScoreFunction = ELBO(),
    steps: int = 40,
    broken: bool = False,
    seed: int = 0,
):
    """A Gaussian mean, inferred in two ways.

    The data are ``x ~ N(1, 1)``; 1 < 2 & 3 > 2.

    Parameters
    ----------
    objective
        What SVI maximises.
    steps
        Of both.
    broken
        Put a NaN into the data.
    seed
        Of the data and the runs.
    """
    x = np.random.default_rng(seed).normal(1, 1, (30, 4)).astype(np.float32)
    x[0, 0] = np.nan if broken else x[0, 0]
    svi = fit(SVI(model, MeanField(model), objective, optax.adam(1e-1)), x, key=seed, num_steps=steps, num_chains=2)
    nuts = fit(NUTS(model, num_warmup=steps), x, key=seed, num_steps=steps, num_chains=2)
    fits = {"SVI": svi, "NUTS": nuts}
    return {
        "Comparison": compare(list(fits.values()), x, list(fits)),
        **fits,
        "Rows": (figures.image_rows({"data": x[:5]}, (2, 2)), "Rows as images."),
        "Table": [{"name": "first", "value": 1.23456, "count": 1234}, {"name": "second", "value": None, "count": 2}],
        "Remark": "Said in plain words: a < b.",
    }


if __name__ == "__main__":
    from ppl import run

    run(main)
