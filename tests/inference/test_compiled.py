"""What has hung inside XLA's CPU runtime comes to an end."""

import os
import subprocess
import sys

import pytest

# Ten covariances of 64 columns: factors, inverses and triangular solves that do not wait for each other.
SCRIPT = """
import numpy as np, optax
from guides import MeanField
from inference import SVI, fit
from inference.objectives import ELBO
from ppl_models import GaussianMixture

x = np.random.default_rng(0).random((300, 64)).astype(np.float32)
model = GaussianMixture(10, "full", scale=0.05)
run = fit(SVI(model, MeanField(model, init_scale=0.01), ELBO(), optax.adam(1e-2)), x, key=0, num_steps=3)
assert np.isfinite(run.history["bound"]).all()
"""


@pytest.mark.slow
def test_a_step_on_many_covariances_does_not_hang():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=300, env=environment)  # 20 s on two cores
