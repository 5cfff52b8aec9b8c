"""What a run leaves, and that it never takes the place of another run."""

from __future__ import annotations

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from inference import Fit
from inference.objectives import IWAE
from ppl import folder
from ppl.command import main
from ppl.recipe import load
from ppl.values import slug

TOY = Path(__file__).with_name("toy_recipe.py")
ARGUMENTS = ["run", str(TOY), "--objective", "iwae", "--objective.num-particles", "3", "--seed", "5"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The toy recipe, run once, and what it printed."""
    root = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(ARGUMENTS) == 0
    return root / "runs" / "toy_recipe"


@pytest.fixture
def metrics(made):
    return json.loads((made / "metrics.json").read_text())


def loaded(made) -> Fit:
    """The fit by SVI, from its weights."""
    module = sys.modules[load(TOY).main.__module__]
    algorithm = module.SVI(module.model, module.MeanField(module.model), IWAE(3), module.optax.adam(1e-1))
    return Fit.load(made / "svi.safetensors", algorithm)


def test_files(made, metrics):
    names = {p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file()}
    assert names == {
        "metrics.json",
        "report.html",
        "svi.nc",
        "svi.safetensors",
        "nuts.nc",
        "nuts.safetensors",
        "figures/comparison.png",
        "figures/rows.png",
        "figures/histories.png",
    }
    assert set(metrics["files"]) == names
    assert metrics["notes"] == []


def test_metrics_say_what_the_fits_say(made, metrics):
    run = loaded(made)
    told = metrics["fits"]["SVI"]
    assert metrics["options"]["objective"] == {"class": "IWAE", "num_particles": 3}
    assert told["bound"] == pytest.approx(run.history["bound"][0, -2:].mean(), rel=1e-5)  # a twentieth of 40 steps
    assert told["steps"] == 40 and told["chains"] == 2 and told["spread"] > 0
    assert told["seed"] == run.info["seed"]
    assert "objective=IWAE(num_particles=3)" in told["algorithm"]
    row = metrics["comparisons"]["Comparison"][0]
    assert told["log_likelihood"] == row["log_likelihood"]
    assert row["log_likelihood"]["rows"] == 30
    assert row["r_hat"] is None  # NaN is no JSON
    assert metrics["comparisons"]["Comparison"][1]["r_hat"] < 1.2
    assert metrics["versions"]["jax"] and "core" in metrics["hardware"]


def test_inference_data_can_be_read(made):
    import arviz as az

    nuts = az.from_netcdf(made / "nuts.nc")
    assert nuts.posterior["mean"].shape == (2, 40, 4)
    assert nuts.log_likelihood["x"].sizes["row"] == 30
    nuts.close()


class Page(HTMLParser):
    """Collects what a page refers to, its headings and its images."""

    def __init__(self, text):
        super().__init__()
        self.references, self.images, self.headings, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.references += [v for n, v in attrs.items() if n in ("src", "href", "data", "action", "poster", "srcset")]
        if tag == "img":
            self.images.append(attrs)

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "h2" and data.strip():
            self.headings.append(data.strip())


def test_the_report_needs_nothing_else(made):
    text = (made / "report.html").read_text()
    page = Page(text)
    assert len(page.images) == 3
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"url\(|@import", text)
    assert all(image["alt"] and int(image["width"]) > 100 for image in page.images)


def test_the_report_tells_the_run(made):
    text = (made / "report.html").read_text()
    headings = Page(text).headings
    assert headings == ["Comparison", "Rows", "Table", "Remark", "How each fit went", "Settings"]
    assert "A Gaussian mean, inferred in two ways</h1>" in text
    assert "1 &lt; 2 &amp; 3 &gt; 2" in text and "<code>x ~ N(1, 1)</code>" in text
    assert "IWAE(num_particles=3)" in text
    assert "prefers-color-scheme: dark" in text
    assert "1.235" in text and "1,234" in text
    assert str(made.parents[1]) not in text  # no folders of the machine, other than the recipe's own


def written(tmp_path, options, recipe=TOY, name="a"):
    return folder.write(load(recipe), options, {"Said": "x"}, seconds=0.1, name=name, root=str(tmp_path / "runs"))


def test_the_same_run_takes_the_place_of_itself_only(tmp_path):
    first = written(tmp_path, {"steps": 1})
    (first / "notes-of-my-own.txt").write_text("mine")
    (first / "figures").mkdir()
    (first / "figures" / "old.png").write_text("old")
    told = json.loads((first / "metrics.json").read_text())
    (first / "metrics.json").write_text(json.dumps(told | {"files": [*told["files"], "figures/old.png"]}))

    assert written(tmp_path, {"steps": 1}) == first
    assert not (first / "figures" / "old.png").exists()  # of the run before
    assert (first / "notes-of-my-own.txt").read_text() == "mine"

    assert written(tmp_path, {"steps": 2}).name == "a-2"
    other = tmp_path / "other.py"
    shutil.copy(TOY, other)
    assert written(tmp_path, {"steps": 1}, other).name == "a-3"
    assert written(tmp_path, {"steps": 2}).name == "a-2"


def test_a_folder_that_no_run_finished_is_used(tmp_path):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    assert written(tmp_path, {}).name == "a"
    (tmp_path / "runs" / "b").mkdir()
    (tmp_path / "runs" / "b" / "metrics.json").write_text("{ torn")
    assert written(tmp_path, {}, name="b").name == "b"


def test_files_outside_the_folder_are_never_removed(tmp_path):
    first = written(tmp_path, {})
    outside = tmp_path / "outside.txt"
    outside.write_text("keep")
    told = json.loads((first / "metrics.json").read_text())
    (first / "metrics.json").write_text(json.dumps(told | {"files": ["../../outside.txt", str(outside)]}))
    assert written(tmp_path, {}) == first
    assert outside.exists()


def test_one_file_that_fails_leaves_the_others(tmp_path, monkeypatch, capsys, made):
    monkeypatch.setattr(Fit, "to_arviz", lambda self: 1 / 0)
    where = folder.write(load(TOY), {}, {"SVI": loaded(made)}, seconds=1.0, name="a", root=str(tmp_path))
    assert "svi.nc was not written: ZeroDivisionError" in capsys.readouterr().err
    assert (where / "svi.safetensors").is_file() and not (where / "svi.nc").exists()
    assert "svi.nc was not written" in (where / "report.html").read_text()
    assert not list(where.glob(".*.tmp"))


def test_names_of_files():
    assert slug("Held-out digits, nats/image") == "held-out-digits-nats-image"
    assert slug("…") == "untitled"
    assert list(folder._numbered([("a", 1), ("a", 2), ("b", 3), ("a", 4)])) == ["a", "a-2", "b", "a-3"]


def test_numbers_as_json_has_them():
    from ppl.values import plain

    assert plain({"a": np.float32(1.5), "b": float("nan"), "c": (1, np.arange(2)), "d": True}) == {
        "a": 1.5,
        "b": None,
        "c": [1, [0, 1]],
        "d": True,
    }
