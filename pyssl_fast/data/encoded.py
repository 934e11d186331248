"""Images that are still encoded: which there are in folders, lists and tar archives, and their bytes."""

from __future__ import annotations

import glob
import itertools
import os
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyssl_fast.data.images import DataError, Labels, _digest
from pyssl_fast.data.sources import class_folders

Source = str | Path | Sequence[str | Path] | Sequence[tuple[str | Path, int]]
TAR_IMAGES = ("jpg", "jpeg", "png", "webp")


class Place(NamedTuple):
    """Where an image lies: a file, or `size` bytes of an archive from `offset` on, which it calls `member`."""

    path: str
    offset: int = 0
    size: int = -1  # to the end
    member: str = ""

    def __str__(self) -> str:
        return f"{self.member} of {self.path}" if self.member else self.path


@dataclass(frozen=True)
class EncodedImages:
    """A fixed sequence of encoded images.

    Attributes:
        places: [N].
        labels: [N] class numbers, or None.
        classes: their names; empty where they have none.
    """

    places: list[Place]
    labels: Labels | None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of labels and names, from the folder that holds all files: it may be copied or moved.

        Of archives with the members' sizes; what is in a file is not looked at, nor how long it is: a call each.
        """
        split = [os.path.split(place.path) for place in self.places]
        folders = {folder for folder, _ in split}
        common = os.path.commonpath([os.path.abspath(folder) for folder in folders])
        below = {folder: os.path.relpath(folder, common) for folder in folders}
        names = (
            (below[folder], name, place.member, f"{place.size}")
            for (folder, name), place in zip(split, self.places, strict=True)
        )
        return _digest("\0".join(itertools.chain.from_iterable(names)), self.labels)

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        """The bytes of image `index`. Raises DataError when there are none, or fewer than the archive says."""
        place = self.places[index]
        try:
            raw = np.fromfile(place.path, np.uint8, place.size, offset=place.offset)
        except OSError as error:
            raise DataError(unreadable(place, error.strerror or str(error))) from error
        if len(raw) == 0 or len(raw) < place.size:
            raise DataError(
                unreadable(place, "the archive has been cut short" if place.member else "the file is empty")
            )
        return raw


def unreadable(place: Place, reason: str) -> str:
    return f"cannot read the image {place}: {reason}"


def open_source(source: Source) -> EncodedImages:
    """The images of a source, in a fixed order; of folders without their GIFs, which DALI cannot decode.

    Args:
        source: a folder of class folders (labels in the order of their names), or of images; a list of files, or of
            pairs (file, label), such as ImageFolder.samples of torchvision; a tar archive, a list of them or a pattern
            ("shards/*.tar"), in WebDataset's layout: x.jpg (.jpeg, .png, .webp) beside x.cls, its class number in
            digits.

    Raises:
        TypeError: it is nothing of all this, or an entry of a list is neither a file nor a pair.
        ValueError: a label of more than 64 bits.
        DataError: there are no images, or none of a class, a list holds a folder, an archive is damaged or compressed,
            or some images have labels and others none.
    """
    if isinstance(source, (str, Path)):
        where = os.path.expanduser(source)
        if os.path.isdir(where):
            images, classes = class_folders(Path(where))
            kept = [i for i, path in enumerate(images.paths) if path.suffix.lower() != ".gif"]
            if not kept:
                raise DataError(f"there are no images in {source} but GIFs, which are left out")
            numbers = None if images.labels is None else images.labels[kept]
            return EncodedImages([Place(str(images.paths[i])) for i in kept], numbers, classes)
        if not where.endswith(".tar"):
            raise DataError(f"source must be a folder, a list of files or .tar archives; there is no folder {source}")
        archives = [where] if os.path.exists(where) else sorted(glob.glob(where))
        if not archives:
            raise DataError(f"there is no archive {source}")
        return _archives(archives)
    if not isinstance(source, Sequence):
        raise TypeError(f"source must be a folder, a list of files or .tar archives; got {type(source).__name__}")
    if len(source) == 0:
        raise DataError("source must hold files; got an empty list")
    pairs = [_pair(entry) for entry in source]
    labels = [label for _, label in pairs if label is not None]
    if len(labels) not in (0, len(pairs)):
        raise DataError(
            f"source must be files, or pairs (file, label) throughout; got {len(labels)} of {len(pairs)} pairs"
        )
    paths = [path for path, _ in pairs]
    tars = sum(path.endswith(".tar") for path in paths)
    if tars and (tars < len(paths) or labels):
        raise DataError(f"source must be images, or .tar archives without labels; got {tars} of {len(paths)} archives")
    if tars:
        return _archives(paths)
    return EncodedImages([Place(path) for path in paths], np.array(labels, np.int64) if labels else None)


def _pair(entry: object) -> tuple[str, int | None]:
    """The file and the label of an entry of a list."""
    path, label = entry if isinstance(entry, tuple) and len(entry) == 2 else (entry, 0)
    if not isinstance(path, (str, Path)) or isinstance(label, bool) or not isinstance(label, (int, np.integer)):
        raise TypeError(f"source must hold files, or pairs (file, label) with a whole number; got {entry!r}")
    if not -(1 << 63) <= label < 1 << 63:
        raise ValueError(f"source must hold labels of 64 bits; got {entry!r}")
    where = os.path.expanduser(path)
    if os.path.isdir(where):
        raise DataError(f"source must be a folder, or hold files alone; got the folder {path} in a list")
    return where, int(label) if isinstance(entry, tuple) else None


def _archives(paths: Iterable[str]) -> EncodedImages:
    places: list[Place] = []
    labels: list[int | None] = []
    for path in paths:
        images: dict[str, Place] = {}
        classes: dict[str, int] = {}
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    folder, slash, name = member.name.rpartition("/")
                    name, _, suffix = name.partition(".")
                    key = folder + slash + name
                    if not member.isreg():
                        continue
                    if suffix.lower() in TAR_IMAGES:
                        images.setdefault(key, Place(path, member.offset_data, member.size, member.name))
                    elif suffix == "cls":
                        classes[key] = _class_number(path, archive, member)
        except (tarfile.TarError, OSError) as error:
            raise DataError(f"cannot read the archive {path}: {error} (compressed ones must be unpacked)") from error
        places += images.values()
        labels += [classes.get(key) for key in images]
    if not places:
        raise DataError(f"there are no images in {', '.join(paths)} (looked for .{', .'.join(TAR_IMAGES)})")
    known = [label for label in labels if label is not None]
    if known and len(known) < len(labels):
        raise DataError(f"there is no .cls beside {places[labels.index(None)]}, but beside {len(known)} other images")
    return EncodedImages(places, np.array(known, np.int64) if known else None)


def _class_number(path: str, archive: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    file = archive.extractfile(member)
    assert file is not None  # it is a regular file
    text = file.read(64)
    try:
        return int(np.int64(int(text)))
    except (ValueError, OverflowError) as error:
        raise DataError(f"{member.name} of {path} must hold a class number of 64 bits; got {text!r}") from error
