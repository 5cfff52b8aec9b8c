"""The recipes on vector quantization. All seeds are fixed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ppl.recipe import load
from ppl.values import kind, parts

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.slow  # a whole recipe


@pytest.mark.parametrize("codebook", ["moving", "loss"])
def test_digits_as_codes(codebook):
    module = sys.modules[load(EXAMPLES / "vq_vae.py").main.__module__]
    results = module.main(codebook=codebook, epochs=40, prior_epochs=20)
    kinds = [kind(part) for _, part in parts(results)]
    assert None not in kinds and "figure" in kinds
    pixels, uniform, fitted = (row["bits"] for row in results["What an image costs"])
    run = results["Autoencoder"]
    print(
        results["What an image costs"], run.history["perplexity"][0, -20:].mean(), run.history["bound"][0, -20:].mean()
    )
    assert fitted < uniform - 1 < uniform < pixels / 2
    assert run.history["perplexity"][0, -20:].mean() > (20 if codebook == "moving" else 5)
    assert run.history["bound"][0, -20:].mean() > run.history["bound"][0, :20].mean() + 20


def test_each_level_of_codes_adds_detail():
    module = sys.modules[load(EXAMPLES / "vq_vae_2.py").main.__module__]
    results = module.main(epochs=20, prior_epochs=5)
    kinds = [kind(part) for _, part in parts(results)]
    assert None not in kinds and "figure" in kinds
    print(*results["What each level adds"], *results["What an image costs"], sep="\n")
    errors = [row["squared error a pixel"] for row in results["What each level adds"]]
    assert errors[0] > errors[1] > 3 * errors[2]
    assert [row["bits"] for row in results["What each level adds"]] == [5.0, 25.0, 105.0]  # 1, 5 and 21 codes of 32
    used = [results["Autoencoder"].history[f"perplexity.z{level}"][0, -20:].mean() for level in (1, 2, 3)]
    assert min(used) > 5, used


def test_tones_are_played_in_another_voice():
    module = sys.modules[load(EXAMPLES / "tones.py").main.__module__]
    results = module.main(num_rows=1000, epochs=30)
    kinds = [kind(part) for _, part in parts(results)]
    assert None not in kinds and "figure" in kinds
    print(*results["What codes tell"], *results["Voices exchanged"], sep="\n")
    share = lambda text: float(text.rstrip("%")) / 100  # noqa: E731
    pitch, voice = results["What codes tell"]
    assert share(pitch["told by its code"]) > 0.8 > 0.3 > share(pitch["by guessing the most frequent"])
    assert share(voice["told by its code"]) < 0.5
    own, another = results["Voices exchanged"]
    assert own["squared error a step, to that voice"] < own["to the nearest of the others"] / 5
    # Some codes are of a voice still, where there are more of them than things to play: most rows follow, not all.
    assert another["squared error a step, to that voice"] < another["to the nearest of the others"]
    assert share(another["nearest to the voice told"]) > 0.5  # chance is 0.25


def test_draws_are_a_training_set():
    module = sys.modules[load(EXAMPLES / "classification_accuracy.py").main.__module__]
    results = module.main(epochs=20, prior_epochs=20)
    kinds = [kind(part) for _, part in parts(results)]
    assert None not in kinds and "figure" in kinds
    (table,) = [part for _, part in parts(results) if kind(part) == "table"]
    print(*table, sep="\n")
    real, reconstructed, *drawn = (float(row["accuracy %"].split()[0]) for row in table)
    assert real > 93 and real > reconstructed - 2 and len(drawn) == 3
    assert min(drawn) > 50  # chance is 10
