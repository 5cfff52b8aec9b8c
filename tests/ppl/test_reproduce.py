"""Papers' protocols: found by name, scaled honestly."""

from __future__ import annotations

import numpy as np
import optax
import pytest

from ppl.command import main
from ppl.papers import iwae, protocol
from ppl.recipe import load
from ppl.reproduce import FOLDER, names
from ppl.values import kind, parts


def test_papers_are_listed_and_found_by_name(capsys):
    assert main(["reproduce"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in names()) and "iwae" in names()
    assert main(["reproduce", "alchemy"]) == 2
    assert "there is no paper 'alchemy'; expected one of: " in capsys.readouterr().err


@pytest.mark.parametrize("name", names())
def test_every_paper_is_a_recipe_with_a_budget(name):
    recipe = load(FOLDER / f"{name}.py")
    assert recipe.main.__kwdefaults__["budget"] == 1.0 and recipe.main.__kwdefaults__["data"]


def test_the_budget_is_told():
    assert protocol.told(1.0, 3280, []) == "The published protocol, in full."
    assert "164 of 3,280 epochs" in protocol.told(0.05, 3280, [])
    assert "not the published protocol: the first 5" in protocol.told(1.0, 10, ["the first 5 images"]).lower()
    with pytest.raises(ValueError, match=r"budget is 1\.5; expected a share .* above 0 and at most 1"):
        protocol.steps(1.5, 10, 10)
    line = protocol.row("a", 2.0, 0.1, protocol.Published(1.5))
    assert line["difference"] == 0.5 and "published" not in protocol.row("a", 2.0, 0.1, None)


def test_the_learning_rate_falls_after_each_power_of_three_epochs():
    schedule, total = iwae.stages(1.0, 10), 10 * iwae.EPOCHS
    found = [float(schedule(step)) for step in (0, 9, 10, 39, 40, 129, 130, total - 1)]
    stage = [0, 0, 1, 1, 2, 2, 3, 7]
    np.testing.assert_allclose(found, [1e-3 * 10 ** (-i / 7) for i in stage], rtol=1e-5)  # float32
    assert isinstance(optax.adam(iwae.stages(0.01, 3)), optax.GradientTransformation)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("iwae", {"k": 5, "num_particles": 20}),
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
