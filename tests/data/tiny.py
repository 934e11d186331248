"""Tiny data sets, written where a test wants them."""

import struct

import numpy as np
from PIL import Image


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_fashion(folder, pack=lambda raw: raw, suffix="", count=12, size=28):
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for prefix in ("train", "t10k"):
        images = rng.integers(0, 256, (count, size, size), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(images)))
        (folder / f"{prefix}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(labels)))
    return folder


def write_images(folder, count, size=(20, 24), suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", size, (number * 10 % 256, 40, 200)).save(folder / f"{number}{suffix}")
    return folder


def photograph(width, height, left=0, top=0):
    """A piece of a real photograph, of 640 × 427 pixels."""
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("china.jpg")).crop((left, top, left + width, top + height))


def write_photographs(folder, count=13):
    """JPEGs of odd sizes in the folders of two classes, in the order in which a source lists them."""
    paths = []
    for number in range(count):
        path = folder / ("cat" if number < count // 2 else "dog") / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(41 + 9 * number, 97 - 5 * number, 20 * number, 10 * number).save(path, quality=90)
        paths.append(path)
    return paths


def write_archive(path, files):
    """A tar archive of the names and bytes in `files`."""
    import io
    import tarfile

    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, raw in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return path
