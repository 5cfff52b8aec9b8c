"""``ppl list``: found by shape, and checked by the library's own checks."""

from __future__ import annotations

import importlib
import sys

import pytest

from inference import EM, NUTS, Incompatible
from ppl import catalogue, discover
from ppl.command import main


def test_what_the_packages_export_is_found():
    import guides
    import ppl_models

    assert set(discover.models()) == set(ppl_models.__all__) - {
        "datasets",
        "effective_dimension",
        "Dequantize",
        "bits_per_dimension",
    }
    assert set(discover.guide_kinds()) == set(guides.__all__)
    assert {"EM", "NUTS", "SVI", "PyroSVI", "PyroNUTS"} <= set(discover.algorithms())
    assert {"ELBO", "IWAE", "Renyi", "ScoreFunction"} <= set(discover.objectives())
    assert set(discover.wrappers()) == {"MaximumLikelihood"}
    kinds = (discover.models, discover.guide_kinds, discover.algorithms, discover.objectives)
    assert all(discover.summary(value) for found in kinds for value in found().values())


def test_a_new_file_is_found_without_being_named_anywhere(tmp_path, monkeypatch):
    package = tmp_path / "zoo"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_private.py").write_text("raise RuntimeError('not to be imported')")
    (package / "new.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\nclass New:\n    '''A new one.'''\n    def __call__(self, x, num_data=None): ...\n"
        "@dataclass(frozen=True)\nclass _Hidden:\n    def __call__(self, x): ...\n"
        "@dataclass(frozen=True)\nclass Other:\n    width: int\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(discover, "ppl_models", importlib.import_module("zoo"))
    assert list(discover.models()) == ["New"]
    sys.modules.pop("zoo.new")


def test_small_instances():
    from guides import MeanField
    from ppl_models import PPCA
    from ppl_models.networks import MLP

    assert discover.small(PPCA) == PPCA(2)
    assert discover.small(MLP) == MLP((4,))
    assert discover.small(MeanField, model=PPCA(1)) == MeanField(PPCA(1))
    with pytest.raises(TypeError, match="MeanField.model has no default"):
        discover.small(MeanField)


def test_cells_tick_or_point_to_the_reason():
    reasons = catalogue.Reasons()

    def refuse():
        raise Incompatible("ELBO does not like it. Use another.\nMore.")

    assert "✓" in reasons.cell(lambda: None, "ELBO")
    assert "1" in reasons.cell(refuse, "ELBO") and "1" in reasons.cell(refuse, "ELBO")
    assert reasons == ["it does not like it."]
    with pytest.raises(ZeroDivisionError):  # a bug is no reason
        reasons.cell(lambda: 1 / 0, "ELBO")


def test_algorithms_accept_what_they_can_run():
    models = catalogue.small_models()
    assert catalogue.refusal(lambda: catalogue._accepted(EM, models["PPCA"])) is None
    assert catalogue.refusal(lambda: catalogue._accepted(NUTS, models["GaussianMixture"])) is None
    assert "no initial, e_step" in catalogue.refusal(lambda: catalogue._accepted(EM, models["VAE"]))
    assert "'decoder'" in catalogue.refusal(lambda: catalogue._accepted(NUTS, models["VAE"]))


@pytest.mark.slow
def test_the_list_is_printed(capsys, monkeypatch):
    found = discover.objectives()
    monkeypatch.setattr(discover, "objectives", lambda: {"ELBO": found["ELBO"]})  # a quarter of the work
    algorithms = discover.algorithms()
    monkeypatch.setattr(discover, "algorithms", lambda: {n: algorithms[n] for n in ("EM", "NUTS", "SVI")})
    monkeypatch.setattr(discover, "wrappers", dict)
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["list"]) == 0
    lines = [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]
    models = list(discover.models())
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.split()[:1] in (["EM"], ["SVI"], ["NUTS"])}
    cells = {name: dict(zip(models, row, strict=True)) for name, row in rows.items() if len(row) == len(models)}
    exact = {"PPCA", "FactorAnalysis", "GaussianMixture", "RBM", "BoltzmannMachine"}
    assert {n for n, cell in cells["EM"].items() if cell == "✓"} == exact
    # discrete, which ELBO does not train; without a density; with rows that are one-hot
    discrete = {"CategoricalVAE", "DiscreteVAE", "HierarchicalVQVAE", "SigmoidBeliefNetwork", "VQVAE"}
    others = {"Codes", "CycleGAN", "Generator"}
    assert {n for n, cell in cells["SVI"].items() if cell != "✓"} == discrete | others
    assert cells["NUTS"]["PPCA"] == "✓" != cells["NUTS"]["VAE"]
    assert "VAE AmortizedFlow ELBO" in lines and "AmortizedNormal ELBO" in lines  # the model's name stands once
    assert any("EM needs a program with exact steps" in line for line in lines)
    assert any(line.startswith("MeanField Independent Normals") for line in lines)
