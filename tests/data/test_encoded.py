"""Which images a source holds, and where their bytes lie."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from pyssl_fast.data import DataError
from pyssl_fast.data.encoded import open_source
from tests.data.tiny import write_archive, write_images


def images_of(source):
    images = open_source(source)
    labels = [None] * len(images) if images.labels is None else images.labels.tolist()
    return [(images.read(index).tobytes(), label) for index, label in enumerate(labels)]


def test_folders_lists_and_pairs_hold_the_same_files(tmp_path):
    for number, name in enumerate(("cat", "dog")):
        write_images(tmp_path / name, 3 + number)
    paths = [tmp_path / name / f"{i}.png" for name, count in (("cat", 3), ("dog", 4)) for i in range(count)]
    labels = [0] * 3 + [1] * 4
    expected = [(path.read_bytes(), label) for path, label in zip(paths, labels, strict=True)]
    assert images_of(tmp_path) == images_of(str(tmp_path)) == expected
    assert images_of(list(zip(paths, labels, strict=True))) == expected
    assert images_of(list(map(str, paths))) == [(raw, None) for raw, _ in expected]
    assert open_source(tmp_path).classes == ("cat", "dog")
    assert open_source(tmp_path / "cat").labels is None


@pytest.mark.parametrize("many", [False, True])
def test_archives_hold_images_by_key(tmp_path, many):
    one = {"a/0.jpg": b"first", "a/0.cls": b"3", "a/0.json": b"{}", "a.b/1.seg.png": b"mask", "a.b/1.PNG": b"second"}
    one |= {"a.b/1.cls": b" 1\n", "2.webp": b"third", "2.cls": b"0"}
    expected = [(b"first", 3), (b"second", 1), (b"third", 0)]
    source = write_archive(tmp_path / "0.tar", one)
    if many:
        write_archive(tmp_path / "1.tar", {"a/0.cls": b"7", "a/0.jpeg": b"x" * 1000, "a/0.jpg": b"not seen"})
        expected.append((b"x" * 1000, 7))
        assert images_of([tmp_path / "0.tar", str(tmp_path / "1.tar")]) == expected
        source = tmp_path / "*.tar"
    assert images_of(source) == images_of(str(source)) == expected
    assert str(open_source(source).places[1]) == f"a.b/1.PNG of {tmp_path / '0.tar'}"


def test_archives_without_classes_have_no_labels(tmp_path):
    assert images_of(write_archive(tmp_path / "a.tar", {"0.jpg": b"a", "1.png": b"b"})) == [(b"a", None), (b"b", None)]


def test_archives_errors_name_them(tmp_path):
    whole = write_archive(tmp_path / "whole.tar", {"0.jpg": b"a", "0.cls": b"1", "1.jpg": b"b"})
    with pytest.raises(DataError, match=f"no .cls beside 1.jpg of {whole}, but beside 1 other images"):
        open_source(whole)
    for text in (b"cat", b"%d" % 2**63):
        with pytest.raises(DataError, match=rf"0.cls of .*words.tar must hold a class number of 64 bits; got {text!r}"):
            open_source(write_archive(tmp_path / "words.tar", {"0.jpg": b"a", "0.cls": text}))
    with pytest.raises(DataError, match=r"there are no images in .*none.tar"):
        open_source(write_archive(tmp_path / "none.tar", {"0.txt": b"a"}))
    (tmp_path / "packed.tar").write_bytes(gzip.compress(whole.read_bytes()))
    with pytest.raises(DataError, match=r"cannot read the archive .*packed.tar.*compressed ones must be unpacked"):
        open_source(tmp_path / "packed.tar")
    cut = write_archive(tmp_path / "cut.tar", {"0.jpg": b"a" * 2000})
    images = open_source(cut)
    cut.write_bytes(cut.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"cannot read the image 0.jpg of .*cut.tar: the archive has been cut short"):
        images.read(0)
    with pytest.raises(DataError, match=r"cannot read the archive .*cut.tar"):
        open_source(cut)


def test_a_fingerprint_goes_with_the_folder_of_all_files(tmp_path, monkeypatch):
    def fingerprints(where):
        pairs = [(where / "set" / name / f"{i}.png", label) for label, name in enumerate("ab") for i in range(2)]
        sources = [where / "set", pairs, [path for path, _ in pairs], where / "shards/*.tar", pairs[:2]]
        return [open_source(source).fingerprint for source in sources]

    for job in ("job1", "job2/deeper"):
        for name in "ab":
            write_images(tmp_path / job / "set" / name, 2)
        for number in range(2):
            write_archive(tmp_path / job / f"shards/{number}.tar", {f"{number}/{i}.jpg": b"x" for i in range(2)})
    first = fingerprints(tmp_path / "job1")
    assert first[0] == first[1] and len(set(first)) == 4
    assert first == fingerprints(tmp_path / "job2/deeper") == fingerprints(tmp_path / "job2" / ".." / "job1")
    monkeypatch.chdir(tmp_path / "job1")
    assert first == fingerprints(Path()) == fingerprints(Path("../job2/deeper"))


def test_other_files_members_or_labels_have_another_fingerprint(tmp_path):
    files = ["a/0.jpg", "b/1.jpg"]
    sources = [
        *(files, files[::-1], [*files, "b/2.jpg"]),
        *(["a/0.jpg", "a/1.jpg"], ["a/0.jpg", "c/1.jpg"], ["a/0.jpg", "b/2.jpg"]),
        *([(path, label) for path, label in zip(files, labels, strict=True)] for labels in ((0, 1), (1, 0))),
        write_archive(tmp_path / "0.tar", {"0.jpg": b"x", "1.jpg": b"x"}),
        write_archive(tmp_path / "1.tar", {"0.jpg": b"x", "1.jpg": b"x"}),
        write_archive(tmp_path / "x/0.tar", {"0.jpg": b"x", "2.jpg": b"x"}),
    ]
    assert len({open_source(source).fingerprint for source in sources}) == len(sources)


def test_files_that_are_not_there_are_named(tmp_path):
    (tmp_path / "empty.jpg").touch()
    images = open_source([tmp_path / "empty.jpg", tmp_path / "gone.jpg"])
    for index, message in enumerate(("empty.jpg: the file is empty", "gone.jpg: No such file or directory")):
        with pytest.raises(DataError, match=f"cannot read the image {tmp_path}/{message}"):
            images.read(index)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (7, TypeError, "source must be a folder, a list of files or .tar archives; got int"),
        ({"a.jpg"}, TypeError, "source must be .*; got set"),
        ([1], TypeError, r"source must hold files, or pairs \(file, label\) with a whole number; got 1$"),
        (["a.jpg", b"b.jpg"], TypeError, "got b'b.jpg'$"),
        ([("a.jpg", 1), ("b.jpg", 1.7)], TypeError, r"got \('b.jpg', 1.7\)$"),
        ([("a.jpg", "cat")], TypeError, r"got \('a.jpg', 'cat'\)$"),
        ([("a.jpg", None)], TypeError, r"got \('a.jpg', None\)$"),
        ([("a.jpg", True)], TypeError, r"got \('a.jpg', True\)$"),
        ([("a.jpg",)], TypeError, r"got \('a.jpg',\)$"),
        ([("a.jpg", 1, 2)], TypeError, r"got \('a.jpg', 1, 2\)$"),
        ([(3, 1)], TypeError, r"got \(3, 1\)$"),
        ([("a.jpg", 1 << 63)], ValueError, "labels of 64 bits; got .*a.jpg"),
        (["a.jpg", "/"], DataError, "got the folder / in a list"),
        ([], DataError, "got an empty list"),
        ("nowhere", DataError, "there is no folder nowhere"),
        ("nowhere/*.tar", DataError, r"there is no archive nowhere/\*.tar"),
        (["a.tar", "b.jpg"], DataError, "got 1 of 2 archives"),
        ([("a.tar", 1)], DataError, "got 1 of 1 archives"),
        ([("a.jpg", 1), "b.jpg"], DataError, "got 1 of 2 pairs"),
    ],
)
def test_wrong_sources(source, error, message):
    with pytest.raises(error, match=message):
        open_source(source)


def test_gifs_in_folders_are_left_out(tmp_path):
    for name, suffix in (("cat", ".gif"), ("cat", ".png"), ("dog", ".png"), ("gifs", ".GIF")):
        write_images(tmp_path / name, 2, suffix=suffix)
    images = open_source(tmp_path)
    assert [place.path.removeprefix(f"{tmp_path}/") for place in images.places] == [
        *("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")
    ]
    assert images.labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(DataError, match=r"no images in .*gifs but GIFs, which are left out"):
        open_source(tmp_path / "gifs")


def test_every_entry_may_begin_with_a_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.jpg").write_bytes(b"a")
    write_archive(tmp_path / "a.tar", {"0.jpg": b"b"})
    assert images_of(["~/a.jpg"]) == [(b"a", None)]
    assert images_of([("~/a.jpg", 2)]) == [(b"a", 2)]
    assert images_of(["~/a.tar"]) == images_of("~/a.tar") == [(b"b", None)]


def test_labels_are_whole_numbers():
    labels = open_source([("a.jpg", np.int32(4)), ("b.jpg", 2)]).labels
    assert (labels.dtype, labels.tolist()) == (np.int64, [4, 2])
