"""What DALILoader hands out: functions of seed, epoch and image; and what it says of files that cannot be read."""

import dataclasses
import io
import json
import shutil
import threading
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI: pip install pyssl_fast[dali]")

from pyssl_fast import augment
from pyssl_fast.augment import Recipe, Views, two_views
from pyssl_fast.data import DataError
from pyssl_fast.data.dali import DALILoader
from pyssl_fast.data.images import to_rgb
from tests.data.tiny import photograph, write_archive, write_photographs
from tests.process import python

RECIPE = augment.simclr(24)
CROPS = Recipe(size=(24, 24), horizontal_flip=0.5, mean=(), std=())
WHOLE = Recipe(size=(30, 40), scale=(1.0, 1.0), ratio=(1.0, 1.0), mean=(), std=())


DALI_STATE = {
    *("images", "source", "views", "augment", "batch_size", "seed", "shuffle", "rank", "world_size", "drop_last"),
    *("decode_size", "epoch", "batches", "cursor", "unreadable"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder)
    return folder


@pytest.fixture
def files(folder, tmp_path):
    """Copies that a test may break."""
    paths = [tmp_path / path.name for path in sorted(folder.rglob("*.jpg"))]
    for path, whole in zip(paths, sorted(folder.rglob("*.jpg")), strict=True):
        path.write_bytes(whole.read_bytes())
    return paths


def equal(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for left, right in zip(one, other, strict=True)
        for a, b in zip((*left.views, left.indices), (*right.views, right.indices), strict=True)
    )


def by_index(batches):
    return {
        int(index): [view[row] for view in batch.views]
        for batch in batches
        for row, index in enumerate(batch.indices)
    }  # fmt: skip


def seen(batches):
    return [int(index) for batch in batches for index in batch.indices]


def test_views_are_those_of_the_files_as_pillow_reads_them(folder):
    paths = sorted(folder.rglob("*.jpg"))
    (views, labels, indices), *rest = DALILoader(folder, RECIPE, 13, shuffle=False, seed=5, epoch=2)
    assert not rest
    assert indices.tolist() == list(range(13))
    assert labels.tolist() == [0] * 6 + [1] * 7
    assert (labels.dtype, indices.dtype) == (torch.int64, torch.int64)
    images = [torch.from_numpy(np.array(Image.open(path))) for path in paths]
    for view, expected in zip(views, RECIPE(images, seed=5, epoch=2), strict=True):
        assert view.shape == (13, 3, 24, 24)
        # In pixel values; decoders differ by a level or two where they round.
        assert (view - expected).abs().mean() * 0.225 < 0.5 / 255


@pytest.mark.parametrize("engine", ["pyssl_fast", "dali"])
def test_views_of_an_image_do_not_depend_on_batches_ranks_or_threads(folder, engine):
    def loader(batch_size, **options):
        return DALILoader(folder, RECIPE, batch_size, seed=1, drop_last=False, augment=engine, **options)

    expected = by_index(loader(13))
    assert len(expected) == 13
    for batches in (
        list(loader(4, threads=1, prefetch=1)),
        list(loader(5, shuffle=False, prefetch=3)),
        [batch for rank in range(3) for batch in loader(2, rank=rank, world_size=3)],
    ):
        views = by_index(batches)
        assert views.keys() == expected.keys()
        assert all(torch.equal(a, b) for index in views for a, b in zip(views[index], expected[index], strict=True))


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 4), (2, 3), (3, 2), (5, 2), (13, 1)])
@pytest.mark.parametrize("drop_last", [True, False])
def test_ranks_share_an_epoch_and_its_batches(folder, world_size, batch_size, drop_last):
    loaders = [
        DALILoader(folder, CROPS, batch_size, rank=rank, world_size=world_size, drop_last=drop_last, seed=3)
        for rank in range(world_size)
    ]
    ranks = [[batch.indices.tolist() for batch in loader] for loader in loaders]
    assert {len(batches) for batches in ranks} == {len(loaders[0])}
    handed = [index for batches in ranks for batch in batches for index in batch]
    if drop_last:
        assert all(len(batch) == batch_size for batches in ranks for batch in batches)
        assert len(handed) == len(set(handed)) == 13 // world_size // batch_size * batch_size * world_size
    else:
        assert set(handed) == set(range(13))
        assert len(handed) == -(-13 // world_size) * world_size
        assert len({tuple(map(len, batches)) for batches in ranks}) == 1
    alone = DALILoader(folder, CROPS, batch_size * world_size, drop_last=False, seed=3)
    for number, batch in enumerate(alone):
        together = [index for batches in ranks if number < len(batches) for index in batches[number]]
        if len(together) == batch_size * world_size == len(batch.indices):
            assert sorted(together) == sorted(batch.indices.tolist())


def test_more_ranks_than_images_still_have_one_each(folder):
    paths = sorted(folder.rglob("*.jpg"))[:2]
    ranks = [seen(DALILoader(paths, CROPS, 2, rank=rank, world_size=5, drop_last=False)) for rank in range(5)]
    assert ranks[:2] in ([[0], [1]], [[1], [0]])
    assert ranks == [ranks[i % 2] for i in range(5)]


def test_every_for_is_another_epoch_in_another_order(folder):
    loader = DALILoader(folder, CROPS, 5, drop_last=False)
    first, second = list(loader), list(loader)
    assert [len(batch.indices) for batch in first] == [5, 5, 3]
    assert len(loader) == 3
    assert sorted(seen(first)) == sorted(seen(second)) == list(range(13))
    assert seen(first) != seen(second)
    assert loader.epoch == 1
    loader.set_epoch(0)
    assert equal(list(loader), first)
    next(iter(loader))  # an epoch that is not finished is one too
    assert loader.epoch == 1
    assert equal(list(loader), list(DALILoader(folder, CROPS, 5, drop_last=False, epoch=2)))


def test_epochs_in_the_sources_order_differ_in_their_views_alone(folder):
    loader = DALILoader(folder, CROPS, 13, shuffle=False)
    (first,), (second,) = loader, loader
    assert first.indices.tolist() == second.indices.tolist() == list(range(13))
    assert not torch.equal(first.views[0], second.views[0])


@pytest.mark.parametrize("engine", ["pyssl_fast", "dali"])
@pytest.mark.parametrize("handed_out", range(8))
def test_a_loaded_state_goes_on_with_the_next_batch(folder, handed_out, engine):
    def loader():
        return DALILoader(folder, CROPS, 4, drop_last=False, prefetch=3, augment=engine)

    whole = loader()
    expected = [*whole, *whole, *whole]
    broken = loader()
    batches = (batch for _ in range(3) for batch in broken)
    for _ in range(handed_out):
        next(batches)
    resumed = loader()
    resumed.load_state_dict(json.loads(json.dumps(broken.state_dict())))
    assert resumed.epoch == handed_out // 4
    rest = [batch for _ in range(3 - resumed.epoch) for batch in resumed]
    assert equal(rest, expected[handed_out:])


@pytest.mark.parametrize(
    "options",
    [
        *({"batch_size": 5}, {"seed": 1}, {"shuffle": False}, {"rank": 1}, {"world_size": 3}, {"drop_last": False}),
        *({"decode_size": 40}, {"augment": "dali"}, {"recipe": WHOLE}),
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_state_of_other_batches_is_refused(folder, options):
    same = {"source": folder, "recipe": CROPS, "batch_size": 4, "world_size": 2}
    name = {"recipe": "views"}.get(*options, *options)
    with pytest.raises(ValueError, match=f"state must be of a loader with {name} = "):
        DALILoader(**{**same, **options}).load_state_dict(DALILoader(**same).state_dict())


def test_a_state_of_other_images_or_labels_is_refused(folder):
    paths = sorted(folder.rglob("*.jpg"))
    state = DALILoader(paths, CROPS, 4).state_dict()
    other = r"the same source; of the 13 images here files .*, order or labels differ from the state's$"
    for source, message in (
        *((paths[1:], "images = 12; got 13"), (paths[::-1], other), ([(path, 1) for path in paths], other)),
        (folder, other),
    ):
        with pytest.raises(ValueError, match=f"state must be of a loader with {message}"):
            DALILoader(source, CROPS, 4).load_state_dict(state)
    DALILoader(paths, CROPS, 4, dtype=torch.uint8).load_state_dict(state)


@pytest.mark.parametrize("archives", [False, True])
def test_a_state_goes_on_where_the_same_files_lie_elsewhere(folder, tmp_path, monkeypatch, archives):
    for job in ("job1", "job2"):
        if archives:
            for name in ("cat", "dog"):
                members = {path.name: path.read_bytes() for path in sorted((folder / name).iterdir())}
                write_archive(tmp_path / job / f"{name}.tar", members)
        else:
            shutil.copytree(folder, tmp_path / job)
    first = DALILoader(tmp_path / "job1" / "*.tar" if archives else tmp_path / "job1", CROPS, 4)
    expected = [*first]
    first.set_epoch(0)
    next(iter(first))
    monkeypatch.chdir(tmp_path)
    resumed = DALILoader("job2/*.tar" if archives else "job2", CROPS, 4)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert equal([*resumed], expected[1:])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("epoch", -1), ("epoch", None), ("batches", -1), ("batches", 4), ("batches", 1.0), ("cursor", -1)),
        *(("cursor", 3), ("cursor", 53), ("cursor", "4"), ("unreadable", [13]), ("unreadable", [-1])),
        *(("unreadable", ["a"]), ("unreadable", None)),
    ],
)
def test_a_place_that_is_not_there_is_refused(folder, name, value):
    loader = DALILoader(folder, CROPS, 4)
    next(iter(loader))
    state = loader.state_dict()
    with pytest.raises((TypeError, ValueError), match=f"{name} must be "):
        loader.load_state_dict({**state, name: value})
    assert loader.state_dict() == state


@pytest.mark.parametrize("name", sorted(DALI_STATE))
def test_a_state_without_one_of_its_keys_is_refused(folder, name):
    loader = DALILoader(folder, CROPS, 4)
    state = loader.state_dict()
    assert state.keys() == DALI_STATE
    del state[name]
    if name == "decode_size":  # None here
        loader = DALILoader(folder, CROPS, 4, decode_size=40)
    with pytest.raises((TypeError, ValueError), match=f"{name} (must be|= )"):
        loader.load_state_dict(state)


def test_archives_give_what_their_files_give(folder, tmp_path):
    paths = sorted(folder.rglob("*.jpg"))
    for number in range(2):
        members = {}
        for path in paths[7 * number : 7 * number + 7]:
            members[f"{path.stem}.jpg"] = path.read_bytes()
            members[f"{path.stem}.cls"] = b"0" if path.parent.name == "cat" else b"1"
        write_archive(tmp_path / f"{number}.tar", members)
    one, other = (list(DALILoader(source, RECIPE, 4)) for source in (folder, str(tmp_path / "*.tar")))
    assert equal(one, other)
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(one, other, strict=True))


def test_archives_hold_webp(tmp_path):
    members = {}
    for number, lossless in enumerate((True, False)):
        file = io.BytesIO()
        photograph(40, 30, left=50 * number).save(file, "WEBP", lossless=lossless)
        members |= {f"{number}.webp": file.getvalue(), f"{number}.cls": b"%d" % (7 + number)}
    archive, whole = write_archive(tmp_path / "a.tar", members), WHOLE.replace(ratio=(0.5, 2.0))
    loader = DALILoader(archive, whole, 2, shuffle=False, dtype=torch.uint8)
    (batch,) = loader
    assert batch.labels.tolist() == [7, 8]
    for number, (view, limit) in enumerate(zip(batch.views[0], (0, 2), strict=True)):
        expected = torch.from_numpy(np.array(Image.open(io.BytesIO(members[f"{number}.webp"])).convert("RGB")))
        assert (view.int() - expected.permute(2, 0, 1).int()).abs().max() <= limit


def test_orientation_is_the_loaders_alone(tmp_path):
    image = photograph(40, 30)
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was held upright
    (tmp_path / "cat").mkdir()
    image.save(tmp_path / "cat" / "0.jpg", exif=exif)
    came = []
    loader = DALILoader(tmp_path, CROPS, 1)
    loader.views = lambda images, **_: came.extend(images) or [torch.zeros(1)]
    list(loader)
    whole = augment.Transform(WHOLE.replace(ratio=(0.5, 2.0)), dtype=torch.uint8)
    datasets = pytest.importorskip("torchvision.datasets", reason="torchvision is not installed")
    (stored, _), *_ = datasets.ImageFolder(str(tmp_path), transform=whole)
    assert came[0].shape == (3, 40, 30)
    assert torch.equal(stored, torch.from_numpy(np.array(Image.open(tmp_path / "cat" / "0.jpg"))).permute(2, 0, 1))


def test_a_single_recipe_is_one_view_and_a_source_without_classes_has_no_labels(folder):
    batch = next(iter(DALILoader(folder / "cat", CROPS, 3)))
    assert len(batch.views) == 1
    assert batch.labels is None


def test_images_are_upright_rgb_of_eight_bits(tmp_path):
    image = photograph(40, 30)
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was held upright
    deep = np.arange(1200).reshape(30, 40) * 54
    images = {
        "grey.jpg": image.convert("L"),
        "cmyk.jpg": image.convert("CMYK"),
        "grey.png": image.convert("L"),
        "deep.png": Image.fromarray(deep.astype(np.uint16)),
        "palette.png": image.convert("P"),
        "image.webp": image,
        "image.bmp": image,
        "image.tiff": image,
        "upright.jpg": image,
    }
    for name, picture in images.items():
        picture.save(tmp_path / name, **({"exif": exif} if name == "upright.jpg" else {}))
    sizes = (30, 40), (40, 30)
    for name in images:
        height, width = sizes[name == "upright.jpg"]
        recipe = dataclasses.replace(WHOLE, size=(height, width), ratio=(0.5, 2.0))
        view = next(iter(DALILoader([tmp_path / name], recipe, 1, dtype=torch.uint8))).views[0][0]
        expected = torch.from_numpy(np.array(to_rgb(Image.open(tmp_path / name)))).permute(2, 0, 1)
        assert view.shape == expected.shape == (3, height, width)
        assert (view.int() - expected.int()).abs().max() <= 2, name


@pytest.mark.parametrize("height", [1, 3, 4])
def test_low_images_are_not_taken_for_channels(tmp_path, height):
    photograph(40, height).save(tmp_path / "low.png")
    recipe = dataclasses.replace(WHOLE, size=(height, 40), ratio=(1e-3, 1e3))
    view = next(iter(DALILoader([tmp_path / "low.png"], recipe, 1))).views[0]
    expected = torch.from_numpy(np.array(photograph(40, height))).permute(2, 0, 1) / 255
    assert (view[0] - expected).abs().max() < 1e-6


@pytest.mark.parametrize("engine", ["pyssl_fast", "dali"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float16, torch.float64])
def test_views_come_in_the_dtype_asked_for(folder, dtype, engine):
    exact = next(iter(DALILoader(folder, CROPS, 6, augment=engine))).views[0]
    view = next(iter(DALILoader(folder, CROPS, 6, augment=engine, dtype=dtype))).views[0]
    assert view.dtype == dtype
    bound = {torch.uint8: 0.5 / 255, torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float64: 0}[dtype]
    assert (view.float() / (255 if dtype == torch.uint8 else 1) - exact).abs().max() <= bound + 1e-6


def test_normalised_views_of_dali_are_cut_off_at_the_ends_of_uint8(folder):
    recipe = dataclasses.replace(CROPS, mean=(0.5, 0.5, 0.5), std=(0.1, 0.1, 0.1))
    exact, view = (
        next(iter(DALILoader(folder, recipe, 6, augment="dali", dtype=dtype))).views[0]
        for dtype in (torch.float32, torch.uint8)
    )
    assert exact.min() < 0 and exact.max() > 1
    assert (view.min(), view.max()) == (0, 255)
    assert torch.equal(view, (exact.double() * 255).round().clamp(0, 255).to(torch.uint8))


def test_decode_size_scales_large_images_alone(tmp_path):
    sizes = [(80, 50), (50, 80), (30, 40), (20, 200), (35, 36)]
    for number, (width, height) in enumerate(sizes):
        photograph(width, height).save(tmp_path / f"{number}.png")
    loader = DALILoader(tmp_path, CROPS, 5, shuffle=False, decode_size=35)
    came = []
    loader.views = lambda images, **_: came.extend(images) or [torch.stack([image[:, :9, :9] for image in images])]
    list(loader)
    assert [tuple(image.shape) for image in came] == [(3, 35, 56), (3, 56, 35), (3, 40, 30), (3, 200, 20), (3, 36, 35)]
    small = np.array(photograph(80, 50).resize((56, 35), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(came[0].permute(1, 2, 0).numpy() - small).mean() < 1


# ---- images that cannot be read ------------------------------------------------------------------------------------


def png():
    file = io.BytesIO()
    photograph(50, 50).save(file, "PNG")
    return file.getvalue()


BROKEN = {
    "truncated": (lambda raw: raw[: len(raw) // 2], "truncated"),
    "truncated head": (lambda raw: raw[:200], ""),
    "without its end": (lambda raw: raw[:-2], ""),
    "truncated PNG": (lambda raw: png()[:1000], ""),
    "text": (lambda raw: b"no image at all" * 20, "not an image"),
    "empty": (lambda raw: b"", "the file is empty"),
    "vanished": (None, "No such file"),
}


def spoil(path, how):
    if how is None:
        path.unlink()
    else:
        path.write_bytes(how(path.read_bytes()))


@pytest.mark.parametrize(("how", "reason"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("prefetch", [1, 3])
def test_an_unreadable_image_is_named(files, how, reason, prefetch):
    loader = DALILoader(files, CROPS, 3, shuffle=False, drop_last=False, prefetch=prefetch)
    spoil(files[7], how)
    with pytest.raises(DataError, match=rf"cannot read the image .*07\.jpg: .*{reason}"):
        list(loader)


@pytest.mark.parametrize(("how", "reason"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("prefetch", [1, 3])
def test_a_skipped_image_gives_its_place_to_the_next(files, how, reason, prefetch):
    loader = DALILoader(files, CROPS, 3, shuffle=False, drop_last=False, prefetch=prefetch, on_error="skip")
    whole = by_index(loader)
    spoil(files[7], how)
    spoil(files[8], how)
    with pytest.warns(UserWarning, match=rf"cannot read the image .*: .*{reason}.*; it is left out") as caught:
        loader.set_epoch(0)
        first = list(loader)
    assert sorted(str(warning.message).split(".jpg")[0][-2:] for warning in caught) == ["07", "08"]
    assert [batch.indices.tolist() for batch in first] == [[0, 1, 2], [3, 4, 5], [6, 9, 10], [11, 12, 0], [1]]
    views = by_index(first)
    assert all(torch.equal(view, whole[index][0]) for index, (view,) in views.items())
    resumed = DALILoader(files, CROPS, 3, shuffle=False, drop_last=False, prefetch=prefetch, on_error="skip")
    resumed.load_state_dict(loader.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was said
        assert seen(loader) == seen(resumed) == [0, 1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 0, 1]


@pytest.mark.filterwarnings("ignore:cannot read the image")
def test_skipping_is_the_same_after_a_loaded_state(files):
    def loader():
        return DALILoader(files, CROPS, 2, prefetch=3, on_error="skip", rank=1, world_size=2)

    for path in files[::4]:
        spoil(path, BROKEN["truncated"][0])
    whole = loader()
    expected = [*whole, *whole]
    assert all(len(batch.indices) == 2 for batch in expected)
    for handed_out in range(1, 5):
        broken = loader()
        batches = (batch for _ in range(2) for batch in broken)
        for _ in range(handed_out):
            next(batches)
        resumed = loader()
        resumed.load_state_dict(broken.state_dict())
        assert equal([batch for _ in range(2 - resumed.epoch) for batch in resumed], expected[handed_out:])


@pytest.mark.filterwarnings("ignore:cannot read the image")
def test_no_readable_image_is_an_error(files):
    for path in files:
        path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="none of the 13 images can be read"):
        list(DALILoader(files, CROPS, 3, on_error="skip"))


@pytest.mark.filterwarnings("ignore:cannot read the image")
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_rank_without_readable_images_takes_the_others(files, shuffle, drop_last):
    for path in files[1:6:2]:
        spoil(path, BROKEN["text"][0])
    options = {"on_error": "skip", "world_size": 2, "shuffle": shuffle, "drop_last": drop_last}
    ranks = [DALILoader(files[:6], CROPS, 1, rank=rank, **options) for rank in range(2)]
    fresh = DALILoader(files[:6], CROPS, 1, rank=1, **options)
    for _ in range(8):  # in some of these orders, and in the source's, a rank has the three broken ones
        for rank in ranks:
            assert len(batches := list(rank)) == 3
            assert set(seen(batches)) <= {0, 2, 4}
    fresh.load_state_dict(ranks[1].state_dict())
    assert equal(list(fresh), list(ranks[1]))


@pytest.mark.filterwarnings("ignore:cannot read the image")
def test_a_rank_without_readable_images_goes_on_after_a_loaded_state(files):
    def loader():
        return DALILoader(files[:6], CROPS, 1, on_error="skip", rank=1, world_size=2, shuffle=False)

    for path in files[1:6:2]:
        spoil(path, BROKEN["text"][0])
    expected = list(loader())
    assert seen(expected) == [2, 4, 0]  # the order from this rank's first image on
    for handed_out in range(1, 3):
        batches = iter(broken := loader())
        for _ in range(handed_out):
            next(batches)
        resumed = loader()
        resumed.load_state_dict(broken.state_dict())
        assert equal(list(resumed), expected[handed_out:])


def test_a_loaded_state_without_readable_images_is_an_error(files):
    loader = DALILoader(files, CROPS, 3, on_error="skip")
    loader.load_state_dict({**loader.state_dict(), "unreadable": list(range(13))})
    with pytest.raises(DataError, match="none of the 13 images can be read"):
        list(loader)


def test_an_unreadable_member_is_named_with_its_archive(tmp_path):
    raw = io.BytesIO()
    photograph(60, 40).save(raw, "JPEG")
    whole = raw.getvalue()
    archive = write_archive(tmp_path / "a.tar", {"x/0.jpg": whole, "x/1.jpg": whole[:300], "x/2.jpg": whole})
    with pytest.raises(DataError, match=r"cannot read the image x/1.jpg of .*a.tar: "):
        list(DALILoader(archive, CROPS, 3))


def test_a_format_that_dali_lacks_is_named(tmp_path):
    photograph(60, 40).convert("P").save(tmp_path / "a.gif")
    with pytest.raises(DataError, match=r"a\.gif: DALI cannot decode this GIF"):
        list(DALILoader([tmp_path / "a.gif"], CROPS, 1))


def test_a_loader_goes_on_after_an_error(files):
    loader = DALILoader(files, CROPS, 13)
    whole = files[3].read_bytes()
    spoil(files[3], BROKEN["text"][0])
    with pytest.raises(DataError):
        list(loader)
    files[3].write_bytes(whole)
    loader.set_epoch(0)
    assert len(list(loader)) == 1


# ---- DALI's own operators --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"vertical_flip": 0.5},
        {"interpolation": "bicubic", "antialias": False},
        {"grey": 0.5},
        {"jitter": 0.5, "brightness": 0.4},
        {"blur": 0.5, "blur_kernel": 9},
        {"solarize": 0.5},
        {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    ],
    ids=lambda changes: ", ".join(changes) or "crop",
)
def test_dalis_operators_do_nearly_what_ours_do(folder, changes):
    recipe = two_views(dataclasses.replace(CROPS, size=(24, 20), **changes), CROPS)
    ours, theirs = (
        next(iter(DALILoader(folder, recipe, 13, seed=2, augment=engine))).views for engine in ("pyssl_fast", "dali")
    )
    deviation = 0.225 if "mean" in changes else 1.0
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().mean() * deviation < 1.5 / 255  # DALI rounds to whole levels in between
    assert theirs[0].shape == (13, 3, 24, 20)


def test_dalis_colours_have_our_statistics(folder):
    ours, theirs = (
        torch.cat(next(iter(DALILoader(folder, RECIPE, 13, augment=engine))).views) for engine in ("pyssl_fast", "dali")
    )
    assert (ours.mean() - theirs.mean()).abs() < 0.2  # of the standard deviation
    assert 0.8 < ours.std() / theirs.std() < 1.25
    assert theirs.isfinite().all()


@pytest.mark.parametrize(
    "changes", [{"turns": True}, {"affine": 0.1, "degrees": 9.0}, {"invert": 0.1}, {"posterize": 0.1}, {"erase": 0.1}]
)
def test_operations_that_dalis_chain_lacks_are_named(folder, changes):
    name = next(iter(changes))
    with pytest.raises(ValueError, match=f"recipe must have no {name} with augment='dali'"):
        DALILoader(folder, Views((CROPS, dataclasses.replace(CROPS, **changes))), 2, augment="dali")


# ---- the loader itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"recipe": "simclr"}, TypeError, "recipe must be a Recipe or Views of pyssl_fast.augment; got str"),
        ({"batch_size": 0}, ValueError, "batch_size must be 1 or more; got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be a whole number; got float"),
        ({"batch_size": 14}, ValueError, "batch_size must be 13 or less, for 13 images on 1 ranks"),
        ({"batch_size": 7, "world_size": 2}, ValueError, "batch_size must be 6 or less"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank must be less than world_size = 2; got 2"),
        ({"epoch": -1}, ValueError, "epoch must be 0 or more"),
        ({"seed": -1}, ValueError, "seed must be 0 or more"),
        ({"epoch": 1 << 63}, ValueError, "epoch must be less than 2⁶³"),
        ({"seed": 1 << 63}, ValueError, "seed must be less than 2⁶³"),
        ({"threads": 0}, ValueError, "threads must be 1 or more"),
        ({"prefetch": 0}, ValueError, "prefetch must be 1 or more"),
        ({"decode_size": 0}, ValueError, "decode_size must be 1 or more"),
        ({"on_error": "ignore"}, ValueError, "on_error must be one of raise, skip; got 'ignore'"),
        ({"augment": "kornia"}, ValueError, "augment must be one of pyssl_fast, dali; got 'kornia'"),
        ({"dtype": torch.int32}, TypeError, "dtype must be uint8 or floating-point; got torch.int32"),
        ({"device": "gpu"}, ValueError, "device must be cpu or a CUDA device; got 'gpu'"),
        ({"device": "meta"}, ValueError, "device must be cpu or a CUDA device; got meta"),
        ({"source": "nowhere"}, DataError, "there is no folder nowhere"),
    ],
    ids=lambda x: ", ".join(x) if isinstance(x, dict) else "",
)
def test_wrong_arguments_are_named(folder, options, error, message):
    with pytest.raises(error, match=message):
        DALILoader(**{"source": folder, "recipe": CROPS, "batch_size": 2, **options})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", 0, torch.device("cuda:1")])
def test_a_device_that_is_not_there_is_named(folder, device):
    with pytest.raises(ValueError, match="device must be cpu where torch finds no CUDA device; got cuda"):
        DALILoader(folder, CROPS, 2, device=device)


def test_an_iteration_ends_with_the_next_one_or_with_the_loader(folder):
    alone = threading.active_count()
    with DALILoader(folder, CROPS, 2) as loader:
        first, second = iter(loader), iter(loader)
        next(first)
        assert threading.active_count() > alone
        next(second)
        with pytest.raises(RuntimeError, match="this iteration is over"):
            next(first)
    assert threading.active_count() == alone
    with pytest.raises(RuntimeError, match="this iteration is over"):
        next(second)
    for _ in loader:
        break
    assert threading.active_count() == alone


@pytest.mark.parametrize("handed_out", [1, 6])
@pytest.mark.parametrize("how", ["set_epoch", "load_state_dict"])
def test_an_iteration_ends_where_another_place_is_set(folder, how, handed_out):
    alone = threading.active_count()
    loader = DALILoader(folder, CROPS, 2)
    state = loader.state_dict()
    expected = list(loader)
    running = iter(loader)
    for _ in range(handed_out):
        next(running)
    loader.set_epoch(0) if how == "set_epoch" else loader.load_state_dict(state)
    assert threading.active_count() == alone
    with pytest.raises(RuntimeError, match="this iteration is over"):
        next(running)
    assert loader.state_dict() == state
    assert equal(list(loader), expected)


def test_a_wrong_epoch_does_not_end_an_iteration(folder):
    loader = DALILoader(folder, CROPS, 2)
    running = iter(loader)
    next(running)
    with pytest.raises(ValueError, match="epoch must be 0 or more"):
        loader.set_epoch(-1)
    assert len(list(running)) == 5


def test_random_numbers_of_the_process_are_left_alone(folder):
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    list(DALILoader(folder, RECIPE, 5, augment="dali"))
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])


def test_without_dali_the_import_says_what_to_install():
    result = python(
        "import sys, pyssl_fast.data; assert 'nvidia.dali' not in sys.modules; sys.modules['nvidia.dali'] = None;"
        "import pyssl_fast.data.dali"
    )
    assert "ImportError: pyssl_fast.data.dali needs NVIDIA DALI: pip install pyssl_fast[dali]" in result.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("engine", ["pyssl_fast", "dali"])
@pytest.mark.parametrize("decode_size", [None, 40])
def test_views_on_a_gpu_are_nearly_those_of_the_cpu(folder, engine, decode_size):
    """nvJPEG scales the colours of a JPEG up by another rule than libjpeg-turbo."""
    ours, theirs = (
        list(DALILoader(folder, CROPS, 4, augment=engine, decode_size=decode_size, device=device))
        for device in ("cpu", "cuda")
    )
    for one, other in zip(ours, theirs, strict=True):
        assert one.indices.tolist() == other.indices.tolist()
        assert {other.views[0].device.type, other.labels.device.type, other.indices.device.type} == {"cuda"}
        assert (one.views[0] - other.views[0].cpu()).abs().mean() < 4 / 255
