"""The stories a user writes, word for word; counts are shrunk and MNIST is swapped for digits, nothing else."""

from __future__ import annotations

import numpy as np
import pytest


def test_story_1_one_model_three_inferences(capsys):
    import arviz as az
    import numpy as np
    import optax
    from sklearn.datasets import load_iris

    from guides import MeanField
    from inference import EM, NUTS, SVI, compare, fit
    from inference.objectives import ELBO
    from ppl_models import GaussianMixture

    x = load_iris().data.astype(np.float32)
    mixture = GaussianMixture(num_components=3, covariance="full")

    em = fit(EM(mixture), x, key=0, num_chains=20)  # 20 restarts in one compile; best first
    vi = fit(SVI(mixture, MeanField(mixture), ELBO(), optax.adam(2e-2)), x, key=0, num_steps=2000)
    nuts = fit(NUTS(mixture, num_warmup=100), x, key=0, num_steps=100, num_chains=4)

    print(compare([em, vi, nuts], x))  # bound, test log-likelihood, error, ESS/s, seconds
    az.plot_forest([vi.to_arviz(), nuts.to_arviz()], var_names=["weights", "means"])

    # -1.2012 nats: scikit-learn's best of 20 starts on iris, full covariances, reg_covar 1e-6 (180.19 / 150 rows)
    assert abs(em.log_likelihood(x).mean - -1.2012) < 2e-3
    # The Bayesian fits agree with each other; the posterior predictive lies below the maximum likelihood.
    assert abs(vi.log_likelihood(x).mean - nuts.log_likelihood(x).mean) < 0.05
    assert nuts.log_likelihood(x).mean < em.log_likelihood(x).mean
    assert "NUTS" in capsys.readouterr().out


def test_story_2_a_variational_autoencoder_objectives_swapped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import optax

    from guides import AmortizedNormal
    from inference import SVI, fit
    from inference.objectives import ELBO, IWAE
    from ppl_models import VAE, datasets
    from ppl_models.likelihoods import Bernoulli
    from ppl_models.networks import MLP

    train, test = datasets.load("digits", binarization="dynamic")
    vae = VAE(latent_dim=50, decoder=MLP((200, 200), activation="tanh"), likelihood=Bernoulli())
    encoder = AmortizedNormal(latent_dim=50, network=MLP((200, 200), activation="tanh"))

    for objective in (ELBO(), IWAE(num_particles=5)):
        run = fit(
            SVI(vae, encoder, objective, optax.adam(1e-3)),
            train,
            key=0,
            num_epochs=10,
            batch_size=100,
            validation=test,
        )
        print(objective, run.log_likelihood(test, num_particles=100))  # mean nats per image, Monte-Carlo error
        assert run.generate(64)["x"].shape == (64, 64)
        assert run.reconstruct(test[:8])["x"].shape == (8, 64)
        run.save(f"runs/{objective}")
        # log p >= L_1 up to noise, and far above independent fair pixels (64 log 2 = 44.4 nats).
        assert -44.4 < run.history["validation"][0, -1] - 0.5 < run.log_likelihood(test, num_particles=100).mean


def test_story_3_my_own_numpyro_model():
    import arviz as az
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    from inference import NUTS, fit

    rng = np.random.default_rng(0)
    features = rng.normal(size=(100, 3)).astype(np.float32)
    labels = (features @ np.array([1.0, -2.0, 0.5]) + rng.logistic(size=100) > 0).astype(int)

    def model(x, y=None, num_data=None):  # any program; minibatches scale by num_data
        w = numpyro.sample("w", dist.Normal(0, 1).expand([x.shape[1]]).to_event(1))
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            numpyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    run = fit(NUTS(model, num_warmup=200), {"x": features, "y": labels}, key=0, num_steps=250, num_chains=4)
    summary = az.summary(run.to_arviz())
    loo = az.loo(run.to_arviz())
    assert summary["r_hat"].max() < 1.05
    # The truth lies within four posterior standard deviations (false alarm below 2e-4).
    truth = np.array([1.0, -2.0, 0.5])
    assert np.all(np.abs(summary["mean"].to_numpy() - truth) < 4 * summary["sd"].to_numpy())
    assert np.isfinite(loo.elpd_loo)
    assert jnp.isfinite(loo.p_loo)


def test_story_4_the_same_model_file_under_pyro():
    import pyro
    import torch

    from guides import AmortizedNormal
    from inference import PyroSVI, fit
    from inference.objectives import ELBO
    from ppl_models import VAE, datasets
    from ppl_models.likelihoods import Bernoulli

    train, _ = datasets.load("digits", binarization="dynamic")
    torch_decoder = torch.nn.Sequential(torch.nn.Linear(50, 200), torch.nn.Tanh(), torch.nn.Linear(200, 64))
    torch_encoder = torch.nn.Sequential(torch.nn.Linear(64, 200), torch.nn.Tanh(), torch.nn.Linear(200, 100))

    torch_vae = VAE(latent_dim=50, decoder=torch_decoder, likelihood=Bernoulli(), ppl=pyro)
    torch_guide = AmortizedNormal(latent_dim=50, network=torch_encoder, ppl=pyro)
    run = fit(
        PyroSVI(torch_vae, torch_guide, ELBO(), torch.optim.Adam, {"lr": 1e-3}, device="cpu"),
        train,
        key=0,
        num_epochs=2,
        batch_size=100,
    )
    # It learns: the last bounds beat the first by far more than a step's noise (about 1 nat).
    bound = run.history["bound"][0]
    assert bound[-5:].mean() > bound[:5].mean() + 3


@pytest.mark.slow
def test_story_5_discrete_latents_the_right_estimator_and_the_evidence_for_it(capsys):
    import optax

    from inference import SVI, fit
    from ppl_models import datasets

    digits = datasets.load("digits", binarization="dynamic")[0][:200]

    from guides import AmortizedBernoulli
    from inference import diagnose, gradient_report
    from inference.objectives import NVIL, VIMCO, ReweightedWakeSleep, ScoreFunction
    from ppl_models import SigmoidBeliefNetwork

    sbn = SigmoidBeliefNetwork(layers=(20,))
    guide = AmortizedBernoulli(layers=(20,))
    print(gradient_report(sbn, guide, [ScoreFunction(), NVIL(), VIMCO(10), ReweightedWakeSleep(10)], digits))
    run = fit(SVI(sbn, guide, VIMCO(10), optax.adam(1e-3)), digits, key=0, num_epochs=5, batch_size=50)
    print(diagnose(run, digits))

    printed = capsys.readouterr().out
    assert "VIMCO(num_particles=10)" in printed and "SNR guide" in printed
    assert "convergence" in printed or "gap of the ELBO" in printed
    assert run.history["bound"][0, -4:].mean() > run.history["bound"][0, :4].mean()  # nats per image


@pytest.mark.slow
def test_story_6_a_mixture_with_holes_in_the_data_and_calibrated(capsys):
    import numpy as np
    from sklearn.datasets import load_iris

    from inference import EM, fit
    from ppl_models import GaussianMixture

    x = load_iris().data.astype(np.float32)
    mixture = GaussianMixture(num_components=3, covariance="full")

    from inference import Gibbs, VariationalBayes, calibrate

    holes = np.where(np.random.default_rng(0).random(x.shape) < 0.3, np.nan, x)
    em = fit(EM(mixture), holes, key=0, num_chains=5)
    gibbs = fit(Gibbs(mixture), x, key=0, num_steps=300, num_chains=2)  # to_arviz(): labels aligned
    vb = fit(VariationalBayes(mixture), x, key=0, num_chains=5)
    print(calibrate(mixture, Gibbs, num_simulations=20, num_steps=50))  # rank plot and test

    assert "log_likelihood" in capsys.readouterr().out.replace(" ", "_")
    # Nats per row: the complete rows under what was learned from rows with holes, against the best fit's -1.2012
    assert -2.0 < em.log_likelihood(x).mean < -1.2
    assert abs(gibbs.log_likelihood(x).mean - vb.log_likelihood(x).mean) < 0.1


@pytest.mark.slow
def test_story_7_a_boltzmann_machine_whose_likelihood_can_be_trusted(capsys, monkeypatch):
    from inference import ais, fit
    from inference.data import as_data
    from ppl_models import datasets

    monkeypatch.setattr(ais, "schedule", lambda: np.linspace(0, 1, 1000))  # of 14,500 inverse temperatures
    train, test = datasets.load("digits", binarization="dynamic")
    left_half = np.tile(np.arange(8) < 4, 8)

    from inference import ContrastiveDivergence
    from ppl_models import RBM

    rbm = RBM(num_hidden=30)
    run = fit(ContrastiveDivergence(rbm, k=1, persistent=True), train, key=0, num_epochs=20, batch_size=100)
    likelihood = run.log_likelihood(test[:100])
    print(likelihood)  # bracket: reverse AIS, forward AIS, each with its interval
    completed = run.complete(test[:8], observed=left_half)  # clamped sampling

    assert capsys.readouterr().out.startswith("[") and "(reverse AIS, AIS; three Monte-Carlo errors" in str(likelihood)
    assert abs(likelihood.gap) < 1  # no warning, which is an error here
    # Above independent pixels with the training rows' frequencies: 30 units know how pixels go together.
    x, held_out, kept = (np.asarray(as_data(rows).whole().data["x"]) for rows in (train, test[:100], test[:8]))
    mean = np.clip(x.mean(0), 0.01, 0.99)
    assert likelihood.mean > (held_out * np.log(mean) + (1 - held_out) * np.log1p(-mean)).sum(-1).mean() + 1
    assert completed["x"].shape == (8, 64) and np.array_equal(completed["x"][:, left_half], kept[:, left_half])
    assert set(np.unique(completed["x"])) == {0.0, 1.0}


def test_story_8_write_p_only(capsys):
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    import optax

    from inference import SVI, diagnose, fit
    from inference.objectives import ELBO
    from ppl_models import datasets

    train, test = datasets.load("digits")
    train, test = train[:300], test[:100]

    def model_with_local_latents(x, num_data=None):
        w = numpyro.param("w", lambda key: 0.1 * dist.Normal().sample(key, (5, x.shape[1])))
        mean = numpyro.param("mean", jnp.zeros(x.shape[1]))
        with numpyro.plate("data", num_data or len(x), subsample_size=len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros((len(x), 5)), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z @ w + mean, 0.3).to_event(1), obs=x)

    from guides import amortize

    run = fit(
        SVI(model_with_local_latents, amortize(model_with_local_latents, train), ELBO(), optax.adam(1e-3)),
        train,
        key=0,
        num_epochs=20,
        batch_size=100,
    )
    print(diagnose(run, test))  # surgery, active units, k-hat, what to try

    printed = capsys.readouterr().out
    assert all(words in printed for words in ("ELBO surgery", "units are active", "k-hat of rows", "What to try"))
    assert run.history["bound"][0, -3:].mean() > run.history["bound"][0, :3].mean()  # nats per image
