"""Which views come, in which order: functions of the seed, the epoch and the image alone."""

import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyssl_fast.data.augmentation import byol_augmentations, seeded, two_view_augmentation
from pyssl_fast.data.images import ArrayImages, DataError, FileImages
from pyssl_fast.data.loader import Schedule, ViewDataset, view_loader

IMAGES = ArrayImages(np.random.default_rng(0).integers(0, 256, (10, 16, 16), dtype=np.uint8), None)


def batches(workers, seed=3, start=0, images=IMAGES, labelled=False):
    augmentation = two_view_augmentation("digits", 16)
    dataset = ViewDataset(images, [augmentation, augmentation], seed, labelled=labelled)
    return list(view_loader(dataset, Schedule(len(IMAGES), 3, epochs=2, seed=seed, start=start), workers))


def equal(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for left, right in zip(one, other, strict=True)
        for a, b in zip(left.views, right.views, strict=True)
    )


def test_views_do_not_depend_on_workers_or_on_where_one_starts():
    alone = batches(0)
    assert len(alone) == 6
    assert [view.shape for view in alone[0].views] == [(3, 1, 16, 16)] * 2
    assert alone[0].views[0].dtype == torch.uint8
    assert equal(alone, batches(2))
    assert equal(alone[4:], batches(0, start=4))


def test_views_differ_from_each_other_and_between_seeds():
    alone = batches(0)
    assert not torch.equal(*alone[0].views)
    assert not equal(alone, batches(0, seed=4))


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
    from PIL import Image

    for augmentation in (two_view_augmentation(kind, size), *byol_augmentations(kind, size)):
        with seeded(1):
            out = augmentation.transform(Image.new(mode, (40, 50), 128 if mode == "L" else (9, 99, 199)))
        assert (out.size, out.mode) == ((size, size), mode)
        assert augmentation.description


def test_byol_solarises_a_fifth_of_the_second_views_of_photographs():
    """Brightness leaves 60 % of a bright picture at least, so that it is dark only where it was solarised."""
    from PIL import Image

    dark = [0, 0]
    for view, augmentation in enumerate(byol_augmentations("photos", 16)):
        with seeded(1):
            for _ in range(200):
                dark[view] += (
                    augmentation.transform(Image.new("RGB", (20, 20), (230, 230, 230))).getpixel((8, 8))[0] < 128
                )
    assert dark[0] == 0
    assert 20 < dark[1] < 60


def test_byol_blurs_all_first_views_of_larger_photographs_and_a_tenth_of_the_second():
    from torchvision.transforms import v2

    for size, expected in ((64, ([1.0], [0.1])), (32, ([], []))):
        views = [augmentation.transform.transforms for augmentation in byol_augmentations("photos", size)]
        blurs = [[step for step in view if isinstance(step, v2.RandomApply)][1:] for view in views]  # jitter is first
        assert tuple([blur.p for blur in view] for view in blurs) == expected
        assert all(isinstance(blur.transforms[0], v2.GaussianBlur) for view in blurs for blur in view)
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
