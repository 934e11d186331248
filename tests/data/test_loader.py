"""Which views come, in which order: functions of the seed, the epoch and the image alone."""

import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pyssl_fast import augment, use_backend
from pyssl_fast.data.augmentation import (
    AUGMENTATIONS,
    byol_augmentations,
    seeded,
    torchvision_transform,
    two_view_augmentation,
)
from pyssl_fast.data.images import ArrayImages, DataError, FileImages
from pyssl_fast.data.loader import Schedule, ViewDataset, view_loader

IMAGES = ArrayImages(np.random.default_rng(0).integers(0, 256, (10, 16, 16), dtype=np.uint8), None)


def batches(workers, seed=3, start=0, images=IMAGES, labelled=False, kind="digits", by="pyssl_fast"):
    recipe = two_view_augmentation(kind, 16)
    dataset = ViewDataset(images, [recipe, recipe], seed, labelled=labelled, augmentation=by)
    return list(view_loader(dataset, Schedule(len(IMAGES), 3, epochs=2, seed=seed, start=start), workers))


def equal(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for left, right in zip(one, other, strict=True)
        for a, b in zip(left.views, right.views, strict=True)
    )


@pytest.mark.parametrize("kind", ["digits", "clothes"])
@pytest.mark.parametrize("by", AUGMENTATIONS)
def test_views_do_not_depend_on_workers_or_on_where_one_starts(by, kind):
    alone = batches(0, by=by, kind=kind)
    assert len(alone) == 6
    assert [view.shape for view in alone[0].views] == [(3, 1, 16, 16)] * 2
    assert alone[0].views[0].dtype == torch.uint8
    assert equal(alone, batches(2, by=by, kind=kind))
    assert equal(alone[4:], batches(0, start=4, by=by, kind=kind))


@pytest.mark.parametrize("by", AUGMENTATIONS)
def test_views_differ_from_each_other_between_epochs_and_seeds(by):
    alone = batches(0, by=by)
    assert not torch.equal(*alone[0].views)
    assert not equal(alone, batches(0, seed=4, by=by))
    first, second = (
        {image.numpy().tobytes() for batch in part for image in batch.views[0]} for part in (alone[:3], alone[3:])
    )
    assert first.isdisjoint(second)


def test_a_view_depends_on_the_seed_the_epoch_the_image_and_its_number_alone():
    recipes = byol_augmentations("clothes", 16)
    (batch,) = view_loader(ViewDataset(IMAGES, recipes, 3), [[(7, 4), (7, 1)]], 0)
    for view, got in enumerate(batch.views):
        for place, index in enumerate((4, 1)):
            image = [torch.from_numpy(IMAGES.array[index])[None]]
            expected = recipes[view](image, seed=3, epoch=7, index=torch.tensor([index]), view=view, dtype=torch.uint8)
            assert torch.equal(got[place], expected[0])


def test_views_may_differ_in_size_and_images_too(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        Image.new("RGB", (20 + number, 30), (number, 40, 200)).save(path)
    recipes = [two_view_augmentation("photos", 16), augment.Recipe(size=(8, 8), mean=(), std=())]
    for by in AUGMENTATIONS:
        (batch,) = view_loader(ViewDataset(FileImages(paths, None), recipes, 0, augmentation=by), [[(0, 0), (0, 2)]], 0)
        assert [view.shape for view in batch.views] == [(2, 3, 16, 16), (2, 3, 8, 8)]
        assert batch.views[1][:, :, 3, 3].tolist() == [[0, 40, 200], [2, 40, 200]]


def test_the_backend_of_the_losses_is_not_that_of_the_images():
    expected = batches(0)
    with use_backend("cuda"):
        assert equal(batches(0), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_labels_come_with_their_images_when_asked_for_and_change_no_view(workers):
    images = ArrayImages(IMAGES.array, np.arange(10) ** 2)
    labelled, plain = batches(workers, images=images, labelled=True), batches(workers, images=images)
    assert equal(labelled, plain)
    assert all(batch.labels is None for batch in plain)
    keys = list(Schedule(10, 3, epochs=2, seed=3))
    for batch, expected in zip(labelled, keys, strict=True):
        assert batch.labels.dtype == torch.int64
        assert batch.labels.tolist() == [index**2 for _, index in expected]


def test_labels_that_are_not_there_cannot_be_asked_for():
    with pytest.raises(ValueError, match="the images have no labels"):
        batches(0, labelled=True)


def test_drawing_views_leaves_the_global_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    batches(0)
    assert torch.equal(torch.rand(3), expected)


def test_seeded_numbers_depend_on_the_whole_key():
    drawn = set()
    for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]:
        with seeded(*key):
            first = torch.rand(2)
        with seeded(*key):
            assert torch.equal(torch.rand(2), first)
        drawn.add(tuple(first.tolist()))
    assert len(drawn) == 4


@given(images=st.integers(2, 30), batch_size=st.integers(1, 30), seed=st.integers(0, 5), start=st.integers(0, 60))
def test_a_schedule_sees_every_image_at_most_once_per_epoch(images, batch_size, seed, start):
    batch_size = min(batch_size, images)
    whole = list(Schedule(images, batch_size, epochs=2, seed=seed))
    assert len(whole) == 2 * (images // batch_size)
    for epoch in range(2):
        seen = [index for batch in whole for number, index in batch if number == epoch]
        assert len(seen) == len(set(seen)) == images // batch_size * batch_size
    start = min(start, len(whole))
    assert list(Schedule(images, batch_size, 2, seed, start)) == whole[start:]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_line_from_any_process(tmp_path, workers):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    dataset = ViewDataset(FileImages([tmp_path / "broken.png"] * 2, None), [two_view_augmentation("photos", 32)], 0)
    with pytest.raises(DataError) as caught:
        list(view_loader(dataset, Schedule(2, 2, 1, 0), workers))
    assert str(caught.value) == f"cannot read the image {tmp_path / 'broken.png'}: not an image"


class Broken(ArrayImages):
    def picture(self, index):
        if index == 0:
            raise RuntimeError("a bug")
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("order", "error", "message"), [([0, 1], RuntimeError, "a bug"), ([1, 0], DataError, "died")])
def test_a_bug_in_a_worker_is_not_a_dead_worker(order, error, message):
    dataset = ViewDataset(Broken(IMAGES.array, None), [two_view_augmentation("digits", 16)], 0)
    with pytest.raises(error, match=message):
        list(view_loader(dataset, [[(0, index) for index in order]], 1))


@pytest.mark.parametrize(
    ("kind", "size", "mode"), [("digits", 28, "L"), ("clothes", 28, "L"), ("photos", 32, "RGB"), ("photos", 64, "RGB")]
)
def test_augmentations_keep_size_and_colours(kind, size, mode):
    picture = Image.new(mode, (40, 50), 128 if mode == "L" else (9, 99, 199))
    for recipe in (two_view_augmentation(kind, size), *byol_augmentations(kind, size)):
        with seeded(1):
            out = torchvision_transform(recipe)(picture)
        assert (out.size, out.mode) == ((size, size), mode)
        assert kind in repr(recipe) and "normalise" not in repr(recipe)


@pytest.mark.parametrize(("size", "least", "most", "blur"), [(32, 0.2, 0.4, 0), (64, 0.2, 0.8, 1), (96, 0.08, 0.8, 1)])
def test_photographs_are_varied_as_in_older_runs(size, least, most, blur):
    same = {"size": size, "scale": (least, 1.0), "horizontal_flip": 0.5, "jitter": 0.8, "grey": 0.2, "name": "photos"}
    same |= {"mean": (), "std": ()}
    colours = {"brightness": most, "contrast": most, "saturation": most, "hue": most / 4}
    assert two_view_augmentation("photos", size) == augment.Recipe(**same, **colours, blur=0.5 * blur)
    colours = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
    first = augment.Recipe(**same, **colours, blur=blur)
    assert byol_augmentations("photos", size) == (first, first.replace(blur=0.1 * blur, solarize=0.2))


@pytest.mark.parametrize(("kind", "size"), [("digits", 28), ("clothes", 28), ("photos", 32), ("photos", 64)])
def test_both_augmentations_have_one_distribution(kind, size):
    """Means over many views of a bright image with a dark corner: brightness, and where the corner has gone."""
    array = np.full((1, 40, 40) if kind != "photos" else (1, 40, 40, 3), 200, np.uint8)
    array[:, :20, :20] = 40
    count = 600
    means = {}
    for by, views in AUGMENTATIONS.items():
        pictures = [Image.fromarray(array[0])] * count
        drawn = views([two_view_augmentation(kind, size)], pictures, 0, 0, list(range(count)))[0].double().mean(1)
        quarters = drawn.unflatten(1, (2, size // 2)).unflatten(3, (2, size // 2)).mean((2, 4)).flatten(1)
        means[by] = quarters.mean(0), quarters.std(0)
    (ours, spread), (theirs, other) = means.values()
    assert ((ours - theirs).abs() < 4 * spread * (2 / count) ** 0.5).all(), (ours, theirs)
    assert ((spread / other - 1).abs() < 0.2).all(), (spread, other)


def test_byol_solarises_a_fifth_of_the_second_views_of_photographs():
    """Brightness leaves 60 % of a bright picture at least, so that it is dark only where it was solarised."""
    bright = [Image.new("RGB", (20, 20), (230, 230, 230))] * 200
    for views in AUGMENTATIONS.values():
        first, second = views(byol_augmentations("photos", 16), bright, 1, 0, list(range(200)))
        assert (first[:, 0, 8, 8] >= 128).all()
        assert 20 < (second[:, 0, 8, 8] < 128).sum() < 60


def test_byol_blurs_all_first_views_of_larger_photographs_and_a_tenth_of_the_second():
    for size, expected in ((64, [1.0, 0.1]), (32, [0.0, 0.0])):
        assert [recipe.blur for recipe in byol_augmentations("photos", size)] == expected
    assert len(set(byol_augmentations("clothes", 64))) == 1


@pytest.mark.parametrize("error", [EOFError, ConnectionResetError])
def test_a_worker_that_dies_while_handing_over_is_a_dead_worker(monkeypatch, error):
    def lost(*_):
        raise error

    dataset = ViewDataset(IMAGES, [two_view_augmentation("digits", 16)], 0)
    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter._next_data", lost)
    with pytest.raises(DataError, match="a data worker process died"):
        list(view_loader(dataset, [[(0, 1)]], 1))


class EndOfFile(ArrayImages):
    def picture(self, index):
        raise EOFError("a bug")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_end_of_file_in_ones_own_code_is_no_dead_worker(workers):
    dataset = ViewDataset(EndOfFile(IMAGES.array, None), [two_view_augmentation("digits", 16)], 0)
    with pytest.raises(EOFError, match="a bug"):
        list(view_loader(dataset, [[(0, 1)]], workers))
