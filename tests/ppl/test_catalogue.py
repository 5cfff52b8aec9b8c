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
    models = catalogue.small_models(["GaussianMixture", "PPCA", "VAE"])
    assert catalogue.refusal(lambda: catalogue._accepted(EM, models["PPCA"])) is None
    assert catalogue.refusal(lambda: catalogue._accepted(NUTS, models["GaussianMixture"])) is None
    assert "no initial, e_step" in catalogue.refusal(lambda: catalogue._accepted(EM, models["VAE"]))
    assert "'decoder'" in catalogue.refusal(lambda: catalogue._accepted(NUTS, models["VAE"]))


def printed(capsys, monkeypatch, *families):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["list", *families]) == 0
    return [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]


def test_the_names_are_printed(capsys, monkeypatch):
    lines = printed(capsys, monkeypatch)
    assert any(line.startswith("MeanField Independent Normals") for line in lines)
    shown = {line.split()[0] for line in lines if line}
    kinds = (discover.models, discover.guide_kinds, discover.algorithms, discover.objectives)
    assert all(set(found()) <= shown for found in kinds)


def table(lines, columns):
    """Rows of as many cells, by the first."""
    rows = (line.split() for line in lines)
    return {row[0]: row[1:] for row in rows if len(row) == columns + 1}


def test_what_goes_with_models_is_printed(capsys, monkeypatch):
    """One with globals, one for an encoder, one without a density; of what there is, a part."""
    for kind, names in {
        "algorithms": ("Adversarial", "EM", "NUTS", "SVI"),
        "guide_kinds": ("AutoregressiveBernoulli", "Delta", "HierarchicalVectorQuantized"),
        "objectives": ("ELBO", "VIMCO"),
        "wrappers": (),
    }.items():
        found = getattr(discover, kind)()
        monkeypatch.setattr(discover, kind, lambda found=found, names=names: {n: found[n] for n in names})
    families = ["DiscreteVAE", "Generator", "PPCA"]
    lines = printed(capsys, monkeypatch, *families)
    cells = table(lines, len(families))
    ticks = {name: [f for f, cell in zip(families, cells[name], strict=True) if cell == "✓"] for name in cells}
    assert {name: ticks[name] for name in discover.algorithms()} == {
        "Adversarial": ["Generator"],
        "EM": ["PPCA"],
        "NUTS": ["PPCA"],
        "SVI": ["DiscreteVAE", "PPCA"],
    }
    assert "DiscreteVAE AutoregressiveBernoulli VIMCO ELBO 1" in lines  # discrete draws have no pathwise gradient
    assert "PPCA Delta ELBO, VIMCO" in lines and "model.posterior ELBO, VIMCO" in lines  # its name stands once
    assert any("EM needs a program with exact steps" in line for line in lines)
    assert any("['z'] have no reparameterised sampler" in line for line in lines)


def test_a_model_that_there_is_not_is_refused(capsys):
    assert main(["list", "VAE", "VEA"]) == 2
    assert "'VEA' is not a model; expected one of: BayesianPCA, " in capsys.readouterr().err
