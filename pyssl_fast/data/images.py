"""Sets of images, in memory or in files, with or without labels."""

from __future__ import annotations

import contextlib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

Labels = npt.NDArray[np.int64]
Kind = Literal["digits", "clothes", "photos"]


class DataError(ValueError):
    """The data cannot be used; the message is one line for the person who asked for it."""


class Images(ABC):
    """A fixed sequence of images.

    Attributes:
        labels: [N] class numbers, or None.
    """

    labels: Labels | None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def picture(self, index: int) -> Image.Image:
        """Image `index` in its own size, mode "L" or "RGB". Raises DataError when it cannot be read."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Differs when the images, their order or their labels do; of files, the names stand for the images."""

    def square(self, index: int, size: int) -> Tensor:
        """Image `index` as uint8 [C, size, size]: scaled to fill the square, then cropped at its centre."""
        return to_tensor(fit(self.picture(index), size))

    def batches(self, size: int, batch_size: int = 500) -> Iterator[Tensor]:
        """All images in order, as uint8 batches [≤ batch_size, C, size, size]."""
        for start in range(0, len(self), batch_size):
            stop = min(start + batch_size, len(self))
            yield torch.stack([self.square(index, size) for index in range(start, stop)])


class ArrayImages(Images):
    """Images held in memory: uint8 [N, H, W] (grey) or [N, H, W, 3]."""

    def __init__(self, array: npt.NDArray[np.uint8], labels: Labels | None) -> None:
        self.array = array
        self.labels = labels

    def __len__(self) -> int:
        return len(self.array)

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(self.array[index])

    def fingerprint(self) -> str:
        return _digest(str(self.array.shape), self.array, self.labels)


class FileImages(Images):
    """Images read from files whenever they are asked for, as RGB."""

    def __init__(self, paths: Sequence[Path], labels: Labels | None) -> None:
        self.paths = list(paths)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.paths)

    def picture(self, index: int) -> Image.Image:
        with self._open(index) as image:
            return to_rgb(image)

    def fingerprint(self) -> str:
        return _digest("\0".join(map(str, self.paths)), self.labels)

    def sides(self, index: int) -> tuple[int, int]:
        """Width and height of image `index`, from the head of its file."""
        with self._open(index) as image:
            return image.size

    @contextlib.contextmanager
    def _open(self, index: int) -> Iterator[Image.Image]:
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                yield image
        except Exception as error:  # what a broken file raises differs by format: OSError, SyntaxError, ValueError, ...
            reason = "not an image" if "cannot identify" in str(error) else str(error)
            raise DataError(f"cannot read the image {path}: {reason}") from error


class Subset(Images):
    """Some images of another set, in the order of `indices`."""

    def __init__(self, images: Images, indices: npt.NDArray[np.int64]) -> None:
        self.images = images
        self.indices = indices
        self.labels = None if images.labels is None else images.labels[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def picture(self, index: int) -> Image.Image:
        return self.images.picture(int(self.indices[index]))

    def fingerprint(self) -> str:
        return _digest(self.images.fingerprint(), self.indices)


@dataclass(frozen=True)
class ImageData:
    """What a run trains on and is judged by.

    Attributes:
        name: of the source, such as "mnist5k".
        kind: what the images show; the augmentation is chosen by it.
        train: the images to train on; with their labels, also the bank of the evaluation.
        test: the images that accuracies are measured on; None without labels.
        classes: names of the classes; None without labels.
        size: height and width of what the encoder sees, in pixels.
        channels: 1 (grey) or 3 (RGB).
    """

    name: str
    kind: Kind
    train: Images
    test: Images | None
    classes: tuple[str, ...] | None
    size: int
    channels: int


def _digest(*parts: str | npt.NDArray[Any] | None) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(repr(part).encode(errors="surrogateescape"))
    return digest.hexdigest()


def to_rgb(image: Image.Image) -> Image.Image:
    """As a viewer shows it: the right way up, 16 bits scaled to 8, what is transparent on white."""
    return opaque(ImageOps.exif_transpose(image))


def opaque(image: Image.Image) -> Image.Image:
    """RGB of any mode but F: 16 bits scaled to 8, what is transparent on white. Raises ValueError for F.

    Floats have no scale of their own, and Pillow's conversion would make those of 0 to 1 black.
    """
    if image.mode == "F":
        raise ValueError("an image must have 8 or 16 bits; got Pillow's mode F, whose scale is unknown: make it L")
    if image.mode.startswith("I"):  # Pillow's own conversion cuts off at 255
        image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def fit(image: Image.Image, size: int) -> Image.Image:
    """Scale to fill size × size, keep the proportions, crop at the centre."""
    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), method=Image.Resampling.BILINEAR)


def to_tensor(image: Image.Image) -> Tensor:
    """Mode "L" or "RGB" -> uint8 [C, H, W]."""
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def stratified_split(labels: Labels, share: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices of the train and the test images: `share` of every class for the test, always the same ones.

    A class with two images or more gives at least one to each side; a single image goes to the train side.
    """
    generator = np.random.default_rng(0)  # not the run's seed: every run is judged by the same images
    train, test = [], []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        test.append(members[:count])
        train.append(members[count:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))
