"""Every source from tiny files, and what is said when they are wrong."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pyssl_fast import augment
from pyssl_fast.data import DataError, load_data
from pyssl_fast.data.encoded import open_source
from pyssl_fast.data.images import ArrayImages, FileImages, Subset, opaque, stratified_split, to_tensor
from pyssl_fast.data.sources import read_idx
from tests.data.tiny import idx, write_fashion, write_images


def test_mnist5k_is_split_evenly():
    data = load_data("mnist5k")
    assert (len(data.train), len(data.test), data.size, data.channels) == (4000, 1000, 28, 1)
    assert np.bincount(data.train.labels).tolist() == [400] * 10
    assert np.bincount(data.test.labels).tolist() == [100] * 10
    assert set(data.train.indices).isdisjoint(data.test.indices)
    assert data.train.square(0, 28).shape == (1, 28, 28)


@pytest.mark.parametrize(("pack", "suffix"), [(lambda raw: raw, ""), (gzip.compress, ".gz")])
def test_fashion_mnist_reads_idx_files(tmp_path, pack, suffix):
    folder = write_fashion(tmp_path, pack, suffix)
    data = load_data(f"fashion-mnist:{folder}")
    images = read_idx(folder, "train-images-idx3-ubyte", ndim=3)
    assert np.array_equal(data.train.square(3, 28)[0].numpy(), images[3])
    assert data.train.labels.tolist() == [*range(10), 0, 1]
    assert len(data.classes) == 10


def test_fashion_mnist_takes_torchvisions_layout_and_the_first_20000(tmp_path, monkeypatch):
    write_fashion(tmp_path / "FashionMNIST" / "raw")
    monkeypatch.setattr("pyssl_fast.data.sources.FASHION_TRAIN", 5)
    assert len(load_data(f"fashion-mnist:{tmp_path}").train) == 5
    assert len(load_data(f"fashion-mnist:{tmp_path}", full=True).train) == 12
    assert len(load_data(f"fashion-mnist:{tmp_path}").test) == 12


def test_fashion_mnist_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("pyssl_fast.data.sources.FASHION_DIRS", (tmp_path / "nowhere",))
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        load_data("fashion-mnist")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda raw: raw[:-1], "is damaged: .* expected after the header"),
        (lambda raw: b"\0\0\x09\x03" + raw[4:], "is not an IDX file of bytes with 3 dimensions"),
        (lambda raw: raw[:3], "is not an IDX file"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, spoil, message):
    path = write_fashion(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=f"{path}.*{message}"):
        load_data(f"fashion-mnist:{tmp_path}")


def test_damaged_gzip_is_named(tmp_path):
    path = write_fashion(tmp_path, gzip.compress, ".gz") / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match=f"{path} is damaged"):
        load_data(f"fashion-mnist:{tmp_path}")


def test_labels_that_do_not_fit_the_images(tmp_path):
    folder = write_fashion(tmp_path)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(11, np.uint8)))
    with pytest.raises(DataError, match="12 train images, but 11 labels"):
        load_data(f"fashion-mnist:{folder}")


def test_folder_with_classes(tmp_path):
    write_images(tmp_path / "cat", 10)
    write_images(tmp_path / "dog" / "deeper", 5, suffix=".JPG")
    (tmp_path / "notes.txt").write_text("not an image")
    data = load_data(f"folder:{tmp_path}")
    assert data.classes == ("cat", "dog")
    assert np.bincount(data.train.labels).tolist() == [8, 4]
    assert np.bincount(data.test.labels).tolist() == [2, 1]
    assert data.size == 20  # the shorter side of the first image
    assert data.train.square(0, 20).shape == (3, 20, 20)


@pytest.mark.parametrize("open_it", [lambda folder: load_data(f"folder:{folder}"), open_source])
def test_a_class_without_images_is_named(tmp_path, open_it):
    for name in ("cat", "cow", "dog"):
        write_images(tmp_path / name, 5)
    (tmp_path / "cat-pictures").mkdir()
    with pytest.raises(DataError, match=rf"of {tmp_path} must hold images of its class; cat-pictures holds none"):
        open_it(tmp_path)
    (tmp_path / "cod").mkdir()
    (tmp_path / "cod" / "notes.txt").write_text("not an image")
    with pytest.raises(DataError, match=r"; cat-pictures, cod hold none: take them away"):
        open_it(tmp_path)
    (tmp_path / "cat" / "deeper").mkdir()
    (tmp_path / "cat-pictures").rmdir()
    write_images(tmp_path / "cod", 1)
    open_it(tmp_path)


def test_a_flat_folder_may_hold_empty_ones(tmp_path):
    write_images(tmp_path, 4)
    (tmp_path / "empty").mkdir()
    assert load_data(f"folder:{tmp_path}").classes is None
    assert open_source(tmp_path).labels is None


def test_folder_without_classes(tmp_path):
    write_images(tmp_path, 4, size=(200, 100))
    data = load_data(f"folder:{tmp_path}")
    assert (len(data.train), data.test, data.classes, data.train.labels) == (4, None, None, None)
    assert data.size == 64
    assert load_data(f"folder:{tmp_path}", image_size=96).size == 96


def test_folder_with_its_own_split(tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        for name in "ab":
            write_images(tmp_path / part / name, count)
    data = load_data(f"folder:{tmp_path}")
    assert (len(data.train), len(data.test), data.classes) == (6, 4, ("a", "b"))
    write_images(tmp_path / "val" / "c", 1)
    with pytest.raises(DataError, match="same sub-folders"):
        load_data(f"folder:{tmp_path}")


@pytest.mark.parametrize("name", ["test", "val", "valid", "Validation"])
def test_folder_names_of_test_images(tmp_path, name):
    for part in ("train", name):
        write_images(tmp_path / part / "a", 1)
        write_images(tmp_path / part / "b", 1)
    assert len(load_data(f"folder:{tmp_path}").test) == 2


@pytest.mark.parametrize("names", [("train",), ("test",), ("train", "cat"), ("val", "test")])
def test_half_a_split_is_refused(tmp_path, names):
    for name in names:
        write_images(tmp_path / name / "a", 1)
    with pytest.raises(DataError, match="but not both train/ and one of test, val, valid, validation"):
        load_data(f"folder:{tmp_path}")


def test_hidden_folders_are_not_seen(tmp_path):
    for name in ("cat", "cat/.thumbnails/small", ".thumbnails", "dog"):
        write_images(tmp_path / name, 2)
    data = load_data(f"folder:{tmp_path}")
    assert data.classes == ("cat", "dog")
    assert len(data.train) + len(data.test) == 4


def test_an_image_too_small_is_named_unless_a_size_is_given(tmp_path):
    write_images(tmp_path, 3)
    Image.new("RGB", (40, 2)).save(tmp_path / "1.png")
    with pytest.raises(DataError, match=f"{tmp_path / '1.png'} has 40x2 pixels"):
        load_data(f"folder:{tmp_path}")
    assert load_data(f"folder:{tmp_path}", image_size=16).size == 16


def test_images_are_seen_as_a_viewer_shows_them(tmp_path):
    Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)).save(tmp_path / "deep.png")
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((0, 0), (0, 0, 255, 255))
    clear.save(tmp_path / "clear.png")
    turned = Image.new("RGB", (20, 30))
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held upright
    turned.save(tmp_path / "turned.jpg", exif=exif)
    deep, clear, turned = map(
        FileImages([tmp_path / f for f in ("deep.png", "clear.png", "turned.jpg")], None).picture, range(3)
    )
    assert np.array(deep)[0, :, 0].tolist() == [0, 100, 255]
    assert np.array(clear)[0].tolist() == [[0, 0, 255], [255, 255, 255]]
    assert turned.size == (30, 20)


def test_floats_have_no_scale(tmp_path):
    floats = Image.fromarray(np.full((20, 20), 0.5, np.float32))
    floats.save(tmp_path / "floats.tif")
    message = "an image must have 8 or 16 bits; got Pillow's mode F"
    with pytest.raises(DataError, match=rf"cannot read the image {tmp_path}/floats.tif: {message}"):
        FileImages([tmp_path / "floats.tif"], None).picture(0)
    for transformed in (floats, [floats]):
        with pytest.raises(ValueError, match=message):
            augment.Transform(augment.mae(8).replace(mean=(), std=()))(transformed)
    deep = Image.fromarray(np.array([[0, 257 * 100, 65535]], np.int32))
    assert (deep.mode, np.array(opaque(deep))[0, :, 0].tolist()) == ("I", [0, 100, 255])


def test_fingerprints_differ_with_images_order_and_labels():
    array, labels = np.arange(32, dtype=np.uint8).reshape(2, 4, 4), np.array([0, 1])
    sets = [
        ArrayImages(array, labels), ArrayImages(array[::-1], labels), ArrayImages(array, labels[::-1]),
        Subset(ArrayImages(array, labels), np.array([0])), Subset(ArrayImages(array, labels), np.array([1])),
        FileImages([Path("a"), Path("b")], labels), FileImages([Path("b"), Path("a")], labels),
    ]  # fmt: skip
    assert len({images.fingerprint() for images in sets}) == len(sets)
    assert sets[0].fingerprint() == ArrayImages(array.copy(), labels.copy()).fingerprint()


def test_folder_errors(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        load_data(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match="there are no images in"):
        load_data(f"folder:{tmp_path}")
    write_images(tmp_path, 1)
    write_images(tmp_path / "cat", 1)
    with pytest.raises(DataError, match="holds images beside sub-folders"):
        load_data(f"folder:{tmp_path}")
    with pytest.raises(DataError, match="is a file, not a folder"):
        load_data(f"folder:{tmp_path / '0.png'}")


def test_unreadable_images_are_named(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image at all")
    whole = write_images(tmp_path / "x", 1, size=(64, 64)) / "0.png"
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:60])
    images = FileImages([broken, cut], None)
    for index, path in enumerate(images.paths):
        with pytest.raises(DataError, match=f"cannot read the image {path}"):
            images.picture(index)


def test_cifar10(tmp_path, monkeypatch):
    import pickle

    import torchvision.datasets

    with pytest.raises(DataError, match="no intact cifar-10-batches-py"):
        load_data(f"cifar10:{tmp_path}")
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 3 * 32 * 32), dtype=np.uint8)
    for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
        (base / name).write_bytes(pickle.dumps({"data": pixels, "labels": [3, 1, 4, 1]}))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {number}" for number in range(10)]}))
    # torchvision compares MD5 sums with those of the real files
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *arguments: True)
    data = load_data(f"cifar10:{tmp_path}")
    assert (len(data.train), len(data.test), data.size, data.channels) == (20, 4, 32, 3)
    assert np.array_equal(data.test.square(2, 32).numpy(), pixels[2].reshape(3, 32, 32))


@pytest.mark.parametrize("source", ["mnist", "mnist5k:here", "folder", "folder:", "cifar10", ""])
def test_unknown_sources(source):
    with pytest.raises(DataError, match=r"unknown data .*; known: mnist5k"):
        load_data(source)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0.05, 0.6))
def test_a_split_is_a_partition_with_every_class_on_the_train_side(labels, share):
    labels = np.array(labels)
    train, test = stratified_split(labels, share)
    assert sorted([*train, *test]) == list(range(len(labels)))
    for label in np.unique(labels):
        members, held_out = (labels == label).sum(), (labels[test] == label).sum()
        assert (labels[train] == label).any()
        assert held_out >= (members > 1)
        assert abs(held_out - share * members) <= 1
    assert all(map(np.array_equal, stratified_split(labels, share), (train, test)))


def test_to_tensor_keeps_pixels():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert np.array_equal(to_tensor(Image.fromarray(pixels)).numpy(), pixels.transpose(2, 0, 1))
    assert np.array_equal(to_tensor(Image.fromarray(pixels[..., 0])).numpy(), pixels[None, ..., 0])
