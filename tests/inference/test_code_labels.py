"""Labels of codes, by a table that is counted by hand."""

import numpy as np
import pytest

from inference import BadData, label_codes

CODES = np.array([[0, 0, 0, 1], [1, 1, 2, 0]])
LABELS = np.array([[5, 5, 1, 1], [1, 0, 5, 5]])


def test_each_code_has_the_label_it_goes_with_most_often():
    found = label_codes(CODES, LABELS, 4)
    # Code 0: 5, 5, 1, 5; code 1: 1, 1, 0; code 2: 5; code 3 is not used, and 5 is the most frequent label.
    assert found.label.tolist() == [5, 1, 5, 5]
    assert found.purity == 6 / 8
    assert found.accuracy([0, 1, 2, 3], [5, 5, 5, 5]) == 3 / 4
    assert found.chance([5, 1, 1, 1]) == 1 / 4


def test_codes_without_a_label_each_are_refused():
    with pytest.raises(BadData, match=r"codes have shape \(2, 4\) and labels \(2, 3\)"):
        label_codes(CODES, LABELS[:, :3], 4)
    with pytest.raises(BadData, match="codes go up to 2; expected numbers below 2"):
        label_codes(CODES, LABELS, 2)
    with pytest.raises(BadData, match="labels are float64"):
        label_codes(CODES, LABELS + 0.5, 4)
