"""Data sets: what comes out of load, and what it says of bad files."""

import hashlib

import jax
import numpy as np
import pytest

from ppl_models import datasets
from ppl_models.datasets import Dataset, load


def test_digits():
    train, test = load("digits")
    assert (train.name, len(train), len(test), train.image_shape) == ("digits", 1437, 360, (8, 8))
    assert train.transform is None and list(train.arrays) == ["x"]
    x = np.concatenate([train.arrays["x"], test.arrays["x"]])
    assert x.shape == (1797, 64) and x.dtype == np.float32
    assert (x.min(), x.max()) == (0, 1)
    assert train.labels.shape == (1437,) and set(test.labels) == set(range(10))

    from sklearn.datasets import load_digits

    original = load_digits()
    labelled = lambda x, y: sorted(map(tuple, np.column_stack([x, y])))  # noqa: E731
    assert labelled(x * 16, np.concatenate([train.labels, test.labels])) == labelled(original.data, original.target)
    # The split is part of every number ever reported on it.
    digest = hashlib.sha256(test.labels.astype(np.uint8).tobytes()).hexdigest()
    assert digest.startswith("78326c297ed5")


def test_threshold():
    grey, _ = load("digits")
    train, test = load("digits", binarization="threshold")
    assert train.name == test.name == "digits-threshold" and train.transform is None
    np.testing.assert_array_equal(train.arrays["x"], (grey.arrays["x"] >= 0.5).astype(np.float32))


def test_dynamic_binarization():
    grey, grey_test = load("digits")
    train, test = load("digits", "dynamic")
    assert train.name == test.name == "digits-dynamic"
    np.testing.assert_array_equal(train.arrays["x"], grey.arrays["x"])

    draw = jax.jit(lambda key: train.transform(key, {"x": train.arrays["x"][:100]})["x"])
    draws = np.stack([draw(key) for key in jax.random.split(jax.random.key(0), 400)])
    assert draws.dtype == np.float32 and set(np.unique(draws)) == {0, 1}
    p = grey.arrays["x"][:100]
    # z-scores of 6,400 pixels' means; the largest exceeds 5.5 with probability 2.4e-4
    error = np.sqrt(p * (1 - p) / 400)
    assert (np.abs(draws.mean(0) - p) <= 5.5 * error).all()

    assert test.transform is None and set(np.unique(test.arrays["x"])) == {0, 1}
    np.testing.assert_array_equal(test.arrays["x"], load("digits", "dynamic")[1].arrays["x"])
    difference = (test.arrays["x"] - grey_test.arrays["x"]).mean()
    assert abs(difference) < 5 * np.sqrt(
        (grey_test.arrays["x"] * (1 - grey_test.arrays["x"])).mean() / test.arrays["x"].size
    )


def test_one_transform_for_all_loads():
    """A new function object would compile the step again."""
    assert load("digits", "dynamic")[0].transform is load("digits", "dynamic")[0].transform


def test_rows_are_cut():
    _, test = load("digits")
    first = test[:8]
    assert isinstance(first, Dataset) and len(first) == 8 and first.labels.shape == (8,)
    assert (first.name, first.image_shape) == (test.name, test.image_shape)
    np.testing.assert_array_equal(test[[3, 1]].arrays["x"], test.arrays["x"][[3, 1]])
    assert len(test[test.labels == 3]) == (test.labels == 3).sum()
    with pytest.raises(TypeError, match=r"write \[3:4\]"):
        test[3]
    with pytest.raises(ValueError, match=r"equally many rows, got {'x': 3, 'labels': 2}"):
        Dataset("mine", {"x": np.zeros((3, 2))}, labels=np.zeros(2))


def test_shuffled_rows_keep_their_labels():
    train, _ = datasets.load("digits")
    mixed = train.shuffled(3)
    order = np.random.default_rng(3).permutation(len(train))
    np.testing.assert_array_equal(mixed.arrays["x"], train.arrays["x"][order])
    np.testing.assert_array_equal(mixed.labels, train.labels[order])
    assert (mixed.labels[:100] != train.labels[:100]).any()


def test_my_array_is_split_without_loss():
    x = np.arange(22.0).reshape(11, 2)
    train, test = load(x)
    assert (len(train), len(test), train.name) == (8, 3, "array")
    rows = np.concatenate([train.arrays["x"], test.arrays["x"]])
    np.testing.assert_array_equal(rows[np.argsort(rows[:, 0])], x)
    assert len(load(x, test_fraction=0.5)[1]) == 6
    np.testing.assert_array_equal(load(x.tolist())[0].arrays["x"], train.arrays["x"])


def test_images_are_flattened_and_bytes_scaled():
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 4, 2), np.uint8)
    train, _ = load(images)
    assert train.image_shape == (3, 4, 2) and train.arrays["x"].shape == (8, 24)
    assert train.arrays["x"].max() <= 1
    row = train.arrays["x"][0].reshape(3, 4, 2) * 255
    assert any(np.allclose(row, image) for image in images)
    assert load(images.reshape(10, -1))[0].arrays["x"].max() > 1  # a table of counts stays what it is


def test_files(tmp_path):
    x = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    expected = load(x)[0].arrays["x"]
    np.save(tmp_path / "a.npy", x)
    np.savez(tmp_path / "b.npz", values=x)
    np.savez_compressed(tmp_path / "c.npz", values=x, other=x[:2])
    lines = [",".join(map(str, row)) for row in x.tolist()]
    (tmp_path / "d.csv").write_text("\n".join(lines))
    (tmp_path / "e.csv").write_text(
        "\ufeffheight,width,depth\r\n" + "\r\n".join(lines) + "\r\n\r\n", "utf-8", newline=""
    )
    sources = {"a.npy": None, "b.npz": None, "c.npz": "values", "d.csv": None, "e.csv": None}
    for file, array in sources.items():
        train, _ = load(tmp_path / file, array=array)
        np.testing.assert_array_equal(train.arrays["x"], expected, err_msg=file)
        assert train.name == file[0]
        np.testing.assert_array_equal(load(str(tmp_path / file), array=array)[0].arrays["x"], expected)


def test_an_empty_cell_is_missing(tmp_path):
    (tmp_path / "holes.csv").write_text("a,b\n1,\n3,4\n,6\n")
    train, test = load(tmp_path / "holes.csv", test_fraction=0.3)
    assert np.isnan(np.concatenate([train.arrays["x"], test.arrays["x"]])).sum() == 2


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("cut.npy", "cut", "cut.npy: cannot be read"),
        ("cut.npz", "cut", "cut.npz: cannot be read .* damaged"),
        ("flipped.npz", "flipped", "flipped.npz: cannot be read"),
        ("objects.npy", "objects", "never unpickled"),
        ("objects.npz", "objects", "never unpickled"),
        ("text.npy", b"1,2,3\n", "text.npy: cannot be read"),
        ("empty.npy", b"", "empty.npy: cannot be read"),
        ("empty.csv", b"", "empty: empty, shape"),
        ("header.csv", b"a,b\n", "header: empty, shape"),
        ("word.csv", b"a,b\n1,2\n3,four\n", r"word.csv, line 3, column 2: 'four'; expected a number"),
        ("ragged.csv", b"1,2\n3\n", "ragged.csv, line 2: 1 cells; expected 2"),
        ("binary.csv", bytes(range(128, 256)), "no comma-separated text"),
        ("several.npz", "several", r"has the arrays \['a', 'b'\]; expected array="),
        ("notes.txt", b"1", "unknown kind of file '.txt'; expected .npy, .npz or .csv"),
    ],
)
def test_bad_files(tmp_path, file, content, message):
    path = tmp_path / file
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        x = np.array([Trap()], object) if content == "objects" else np.arange(2000.0).reshape(-1, 2)
        arrays = {"a": x, "b": x} if content == "several" else {"a": x}
        if path.suffix == ".npy":
            np.save(path, x, allow_pickle=True)
        else:
            np.savez(path, **arrays)
        content = {"cut": lambda b: b[:-200], "flipped": lambda b: b[:500] + b"?" + b[501:]}.get(content, bytes)(
            path.read_bytes()
        )
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("source", "kwargs", "error", "message"),
    [
        ("mnits", {}, FileNotFoundError, "mnits is no data set and no file; expected 'digits', 'mnist', an array"),
        ("no/such.npy", {}, FileNotFoundError, "looked for /.*no/such.npy"),
        ("digits", {"binarization": "static"}, ValueError, "expected one of none, threshold, dynamic"),
        (np.zeros(5), {}, ValueError, r"rank 1, shape \(5,\); expected \(rows, columns\)"),
        (np.zeros((2,) * 5), {}, ValueError, "rank 5"),
        (np.zeros((0, 3)), {}, ValueError, "empty"),
        (np.zeros((1, 3)), {}, ValueError, "1 rows with test_fraction=0.2 leave no train or test"),
        (np.zeros((9, 3)), {"test_fraction": 0.0}, ValueError, "leave no train or test"),
        (np.array([["a", "b"]]), {}, ValueError, "dtype <U1; expected real numbers"),
        (np.zeros((3, 2), complex), {}, ValueError, "dtype complex128"),
        ([[1, 2], [3]], {}, ValueError, "rows of different lengths"),
        (np.full((9, 3), 2.0), {"binarization": "dynamic"}, ValueError, r"values from 2.0 to 2.0; .* \[0, 1\]"),
        (np.full((9, 3), np.nan), {"binarization": "threshold"}, ValueError, "values from nan"),
    ],
)
def test_bad_arguments(source, kwargs, error, message):
    with pytest.raises(error, match=message):
        load(source, **kwargs)


def test_the_module_is_what_models_export():
    import ppl_models

    assert ppl_models.datasets is datasets
