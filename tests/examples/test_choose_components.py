"""What the recipe on the number of components claims."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from ppl.recipe import load
from ppl.values import kind, parts

pytestmark = pytest.mark.slow  # a whole recipe, small

main = load(Path(__file__).parents[2] / "examples" / "choose_components.py").main
module = sys.modules[main.__module__]


def test_the_middle_is_full_for_one_gaussian_and_empty_for_these_data():
    """Of a round Gaussian P(r < median / 2) = 1 - 2**(-1/4) = 0.159; 4,000 rows have a standard error of 0.006."""
    rng = np.random.default_rng(0)
    assert module.middle(rng.normal(size=(3, 4000, 2))) == pytest.approx(1 - 2**-0.25, abs=4.5 * 0.006)
    assert module.middle(module.draw(4000, 0)[None])[0] < 0.05


@pytest.mark.slow
def test_three_components_are_found():
    results = main(max_components=4)
    kinds = [kind(part) for _, part in parts(results)]
    assert None not in kinds and kinds.count("figure") == 2
    rows = {row["components"]: row for row in results["Sizes compared"]}
    assert list(rows) == [1, 2, 3, 4]
    elpd, bic = ([row[name] for row in rows.values()] for name in ("elpd_loo", "BIC"))
    # One and two components lose tens of nats; the fourth gains nothing to speak of.
    assert elpd[2] > max(elpd[:2]) + 10 and elpd[3] < elpd[2] + 2
    assert int(np.argmin(bic)) == 2
    assert results["Mixture"].model.num_components == 3
    assert "smallest size within two standard errors of it has 3. BIC chooses 3." in results["Verdict"]
    # One Gaussian fills the middle that the data leave empty; three do not.
    assert rows[1]["P(middle ≤ data's)"] < 0.01 < rows[3]["P(middle ≤ data's)"]
    assert all(row["largest k-hat"] < 0.7 for row in rows.values())
