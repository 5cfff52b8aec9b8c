"""MNIST: found or downloaded, and never used when its checksum is wrong."""

import gzip
import hashlib
import shutil

import numpy as np
import pytest

from ppl_models.datasets import load, mnist


@pytest.mark.data("mnist")
def test_mnist():
    train, test = load("mnist", binarization="dynamic")
    assert (train.name, len(train), len(test), test.image_shape) == ("mnist-dynamic", 60000, 10000, (28, 28))
    assert train.arrays["x"].shape == (60000, 784) and train.arrays["x"].dtype == np.float32
    assert train.arrays["x"].mean() == pytest.approx(0.1306604762738429, rel=1e-5)  # the known mean grey level
    assert list(train.labels[:5]) == [5, 0, 4, 1, 9] and list(test.labels[:5]) == [7, 2, 1, 0, 4]
    assert set(np.unique(test.arrays["x"])) == {0, 1}


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """Four tiny files, and the checksums that they should have."""
    rng = np.random.default_rng(0)
    checksums = {}
    for name in mnist.SHA256:
        content = bytes(16 if "images" in name else 8) + rng.bytes(20 * (784 if "images" in name else 1))
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
        checksums[name] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(mnist, "SHA256", checksums)
    monkeypatch.setenv("PPL_MODELS_DATA", str(tmp_path))
    return tmp_path


def test_mnist_from_a_folder(small_mnist):
    first, _ = load("mnist")
    assert len(first) == 20
    folder = small_mnist / "mnist"
    folder.mkdir()
    for name in mnist.SHA256:  # unzipped, in a folder of its own
        (folder / name).write_bytes(gzip.decompress((small_mnist / f"{name}.gz").read_bytes()))
        (small_mnist / f"{name}.gz").unlink()
    np.testing.assert_array_equal(load("mnist")[0].arrays["x"], first.arrays["x"])
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no mnist/t10k-labels-idx1-ubyte.gz; put it there, or unset"):
        load("mnist")


def test_a_wrong_checksum_is_named(small_mnist):
    path = small_mnist / "train-labels-idx1-ubyte.gz"
    good = path.read_bytes()
    expected = mnist.SHA256["train-labels-idx1-ubyte"]
    other = gzip.compress(bytes(28))
    for bad in (other, good[:-5], good[:12] + bytes([good[12] ^ 255]) + good[13:], b"<html>", b""):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=f"{path}: checksum failed; expected SHA-256 {expected}.*Delete the file"):
            load("mnist")
    path.write_bytes(good)
    load("mnist")


def test_mnist_is_downloaded_once_without_a_folder(small_mnist, monkeypatch, tmp_path_factory):
    import pooch

    cache = tmp_path_factory.mktemp("cache")
    asked = []

    def copy(url, output_file, pooch):
        asked.append(url)
        shutil.copy(small_mnist / url.rpartition("/")[2], output_file)

    monkeypatch.delenv("PPL_MODELS_DATA")
    monkeypatch.setattr(pooch, "os_cache", lambda name: cache)
    monkeypatch.setattr("pooch.core.choose_downloader", lambda url, **kwargs: copy)
    for _ in range(2):
        assert len(load("mnist")[0]) == 20
    assert asked == [f"{mnist.URL}{name}.gz" for name in mnist.SHA256]


def test_no_connection(small_mnist, monkeypatch):
    import pooch

    def refuse(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.delenv("PPL_MODELS_DATA")
    monkeypatch.setattr(pooch, "retrieve", refuse)
    with pytest.raises(FileNotFoundError, match="could not be downloaded .no network.*PPL_MODELS_DATA"):
        load("mnist")
