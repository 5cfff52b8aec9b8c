"""Papers' protocols: found by name, scaled honestly."""

from __future__ import annotations

from itertools import product

import jax
import numpy as np
import optax
import pytest

from ppl.command import main
from ppl.papers import iwae, protocol
from ppl.recipe import load
from ppl.reproduce import FOLDER, names
from ppl.values import kind, parts
from ppl_models.networks import MLP


def test_papers_are_listed_and_found_by_name(capsys):
    assert main(["reproduce"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in names()) and "iwae" in names()
    assert main(["reproduce", "alchemy"]) == 2
    assert "there is no paper 'alchemy'; expected one of: " in capsys.readouterr().err


@pytest.mark.parametrize("name", names())
def test_every_paper_is_a_recipe_with_a_budget(name):
    recipe = load(FOLDER / f"{name}.py")
    assert recipe.main.__kwdefaults__["budget"] == 1.0


def test_the_budget_is_told():
    assert protocol.told(1.0, 3280, []) == "The published protocol, in full."
    assert "164 of 3,280 epochs" in protocol.told(0.05, 3280, [])
    assert "not the published protocol: the first 5" in protocol.told(1.0, 10, ["the first 5 images"]).lower()
    with pytest.raises(ValueError, match=r"budget is 1\.5; expected a share .* above 0 and at most 1"):
        protocol.steps(1.5, 10, 10)
    assert protocol.differing(a=(1, 1), hidden_units=(1000, 2000), rate=(0.5, 0.1)) == [
        "hidden units 1,000 and not 2,000",
        "rate 0.5 and not 0.1",
    ]
    line = protocol.row("a", 2.0, 0.1, protocol.Published(1.5))
    assert line["difference"] == 0.5 and "published" not in protocol.row("a", 2.0, 0.1, None)


def test_the_learning_rate_falls_after_each_power_of_three_epochs():
    schedule, total = iwae.stages(1.0, 10), 10 * iwae.EPOCHS
    found = [float(schedule(step)) for step in (0, 9, 10, 39, 40, 129, 130, total - 1)]
    stage = [0, 0, 1, 1, 2, 2, 3, 7]
    np.testing.assert_allclose(found, [1e-3 * 10 ** (-i / 7) for i in stage], rtol=1e-5)  # float32
    assert isinstance(optax.adam(iwae.stages(0.01, 3)), optax.GradientTransformation)


def test_every_cell_of_the_iwae_table_has_its_number():
    assert set(iwae.TABLE) == set(product((1, 2), ("vae", "iwae"), (1, 5, 50)))
    for layers, k in product((1, 2), (1, 5, 50)):
        vae, ours = iwae.TABLE[layers, "vae", k].value, iwae.TABLE[layers, "iwae", k].value
        assert ours == vae if k == 1 else ours < vae
        assert layers == 1 or ours < iwae.TABLE[1, "iwae", k].value


def test_the_decoder_starts_around_the_mean_image():
    mean = np.array([0.0, 0.2, 0.9, 1.0])
    module = iwae.Around(MLP((2,)), iwae.logits(mean)).build(3, 4, jax.random.key(0))
    np.testing.assert_allclose(jax.nn.sigmoid(module.layers[-1].bias), [1e-3, 0.2, 0.9, 0.999], rtol=1e-5)
    plain = MLP((2,)).build(3, 4, jax.random.key(0))
    z = np.ones(3, np.float32)
    np.testing.assert_allclose(module(z) - plain(z), iwae.logits(mean), rtol=1e-5)  # and nothing else is changed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("iwae", {"k": 5, "num_particles": 20}),
        ("iwae", {"k": 5, "num_particles": 20, "layers": 2}),
        ("hvi", {"leapfrog_steps": 1, "hidden": 5, "num_particles": 20}),
        ("sigmoid_belief_network", {"layers": (5,), "num_particles": 20}),
        ("semi_supervised", {"hidden": 5}),
        ("vampprior", {"hidden": 5, "pseudo_inputs": 3, "num_particles": 20}),
    ],
)
def test_a_paper_on_digits_says_what_was_changed(name, options):
    found = load(FOLDER / f"{name}.py").main(data="digits", budget=1e-3, **options)
    (table,) = [part for _, part in parts(found) if kind(part) == "table"]
    assert np.isfinite(table[0]["found"]) and "published" not in table[0]
    assert found["Protocol"].startswith("Not the published protocol") and "digits and not MNIST" in found["Protocol"]


@pytest.mark.slow
def test_beta_vae_on_few_sprites():
    grid = {"side": 8, "scales": 2, "orientations": 1, "positions": 3}
    found = load(FOLDER / "beta_vae.py").main(betas=(1.0, 4.0), hidden=5, budget=1e-4, **grid)
    table, *_ = found.values()
    assert [line["beta"] for line in table] == [1.0, 4.0]
    for line in table:
        assert line["bound"] == pytest.approx(line["reconstruction"] - line["KL"], abs=0.02)  # rounded
        assert "gap, orientation" not in line and 0 <= line["MIG"] <= 1
    assert "54 images drawn here" in found["Protocol"] and "8 × 8 pixels" in found["Protocol"]
    assert len([part for _, part in parts(found) if kind(part) == "figure"]) == 2
