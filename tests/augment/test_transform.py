"""A recipe in data sets, workers and batches: every kind of image, draws that repeat, no threads left behind."""

import copy
import os
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pyssl_fast.augment import Recipe, Transform, Views, dino, simclr
from tests.process import python

RECIPE = Recipe(
    size=(12, 10), horizontal_flip=0.5, jitter=1.0, brightness=0.4, hue=0.1, blur=0.5, affine=0.5, degrees=9
)
VIEWS = Views((RECIPE, RECIPE, Recipe(size=(6, 6), scale=(0.05, 0.3))))


def picture(height: int = 20, width: int = 17, channels: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (channels, height, width), generator=generator, dtype=torch.uint8)


def kinds(x: torch.Tensor) -> dict:
    """The same picture as all that a loader may hand over."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    tv_tensors = pytest.importorskip("torchvision.tv_tensors", reason="torchvision is not installed")
    array = x.permute(1, 2, 0).contiguous().numpy()
    frozen = array.copy()
    frozen.flags.writeable = False
    made = {
        "array": array,
        "array that must not be written to": frozen,
        "array with a step back": array[::-1].copy()[::-1],
        "torchvision's": tv_tensors.Image(x),
        "float": x.float() / 255,
        "channels last": x.permute(1, 2, 0),
        "Pillow's": image.fromarray(array.squeeze(2) if len(x) == 1 else array),
    }
    return made | ({"array [H, W]": array[:, :, 0]} if len(x) == 1 else {})


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.filterwarnings("error")
def test_every_kind_of_image_gives_the_same(channels):
    x = picture(channels=channels)
    recipe = RECIPE if channels == 3 else Recipe(size=(12, 10), blur=1.0, mean=(0.5,), std=(0.2,))
    expected = recipe([x], seed=3, index=torch.tensor([7]), epoch=2)[0]
    transform = Transform(recipe, seed=3)
    for name, image in {"tensor": x, **kinds(x)}.items():
        got = transform(image, index=7, epoch=2)
        assert type(got) is torch.Tensor, name
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 if name == "float" else 0, msg=name)


def test_other_modes_become_rgb_on_white():
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    transform = Transform(Recipe(size=(1, 1), mean=(), std=()), dtype=torch.uint8)
    half = image.new("RGBA", (4, 4), (0, 0, 0, 0))
    deep = image.fromarray(np.full((4, 4), 257 * 100, np.uint16))
    palette = image.new("RGB", (4, 4), (9, 99, 199)).quantize()
    for picture, expected in ((half, [255] * 3), (deep, [100] * 3), (palette, [9, 99, 199])):
        assert transform(picture).flatten().tolist() == expected, picture.mode


def test_views_are_a_list_of_one_image_and_of_a_batch():
    x = picture()
    assert [y.shape for y in Transform(VIEWS)(x)] == [(3, 12, 10), (3, 12, 10), (3, 6, 6)]
    assert [y.shape for y in Transform(VIEWS)(torch.stack([x, x]))] == [(2, 3, 12, 10), (2, 3, 12, 10), (2, 3, 6, 6)]
    assert Transform(RECIPE)(x).shape == (3, 12, 10)
    assert [y.dtype for y in Transform(VIEWS, dtype=torch.bfloat16)(x)] == [torch.bfloat16] * 3


def test_batch_list_and_single_images_are_alike():
    x = torch.stack([picture(seed=i) for i in range(5)])
    transform, index = Transform(VIEWS, seed=1), torch.tensor([4, 0, 9, 10**12, 1])
    batch = transform(x, index=index, epoch=3)
    several = [transform(y, index=int(i), epoch=3) for y, i in zip(x, index, strict=True)]
    assert all(torch.equal(a, torch.stack(b)) for a, b in zip(batch, zip(*several, strict=True), strict=True))
    mixed = transform([y.permute(1, 2, 0).numpy() if i % 2 else y for i, y in enumerate(x)], index=index, epoch=3)
    assert all(torch.equal(a, b) for a, b in zip(batch, mixed, strict=True))


def test_what_comes_with_the_images_comes_back():
    x, label = picture(), object()
    transform = Transform(VIEWS, seed=1)
    views, same, number = transform(x, label, 3, index=5)
    assert same is label and number == 3
    assert all(torch.equal(a, b) for a, b in zip(views, transform(x, index=5), strict=True))
    labels = torch.arange(2)
    batch, returned = Transform(RECIPE)(torch.stack([x, x]), labels)
    assert batch.shape == (2, 3, 12, 10) and returned is labels


def test_a_seed_replays_and_torchs_generator_does():
    x, seeded, free = picture(), Transform(RECIPE, seed=1), Transform(RECIPE)
    assert torch.equal(seeded(x, index=3), copy.deepcopy(seeded)(x, index=3))
    others = [seeded(x, index=4), seeded(x, index=3, epoch=1), Transform(RECIPE, seed=2)(x, index=3)]
    assert not any(torch.equal(seeded(x, index=3), other) for other in others)
    torch.manual_seed(5)
    first, second = free(x), free(x)
    torch.manual_seed(5)
    assert torch.equal(first, free(x)) and not torch.equal(first, second)


def test_it_stands_among_torchvisions():
    v2 = pytest.importorskip("torchvision.transforms.v2", reason="torchvision is not installed")
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    compose = v2.Compose([v2.Pad(4), Transform(RECIPE), v2.Normalize([0.0], [2.0])])
    assert pickle.loads(pickle.dumps(compose))(image.new("RGB", (20, 17))).shape == (3, 12, 10)
    assert "crop 8 to 100 %" in repr(compose)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: Transform(simclr), TypeError, "recipe must be a Recipe or Views"),
        (lambda: Transform(RECIPE, dtype=torch.int32), TypeError, "dtype must be uint8 or floating-point"),
        (lambda: Transform(RECIPE, dtype=torch.uint8), ValueError, "dtype must be floating-point, as the recipe norm"),
        (lambda: Transform(RECIPE, seed=-1), ValueError, "seed must be 0 or more"),
        (lambda: Transform(RECIPE, seed=1)(picture()), ValueError, "index must be given where the transform has a"),
        (lambda: Transform(RECIPE)(picture(), index=1), ValueError, "index must be left out"),
        (lambda: Transform(RECIPE)("x.png"), TypeError, "must be a Tensor, an array or a Pillow image; got str"),
        (lambda: Transform(RECIPE)(np.zeros((4, 4, 2))), ValueError, r"1, 3 or 4 channels; got \(4, 4, 2\)"),
        (lambda: Transform(RECIPE)(torch.zeros(4, 4)), ValueError, r"images must have shape .*; got \[4, 4\]"),
        (lambda: Transform(RECIPE, seed=1)([picture()] * 2, index=1), ValueError, r"index must be a Tensor \[2\]"),
        (lambda: Transform(RECIPE)([]), ValueError, "images must not be empty"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


class Threads(Dataset):
    """Per item: which process, the first view, and how many threads the kernel left in it."""

    def __init__(self) -> None:
        self.transform = Transform(simclr(32))

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[int, bytes, int, int]:
        before = len(os.listdir("/proc/self/task"))
        view = self.transform([picture(300, 280)] * 4)[0]  # of one alone no pool would be made anywhere
        left = len(os.listdir("/proc/self/task")) - before
        info = get_worker_info()
        # Bytes: for a tensor the worker would start a thread that hands its memory over.
        return info.id if info else -1, view.numpy().tobytes(), left, torch.get_num_threads()


def loaded(start: str, seed: int) -> list:
    torch.manual_seed(seed)
    return list(DataLoader(Threads(), batch_size=None, num_workers=2, multiprocessing_context=start))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_make_no_threads(start):
    Threads()[0]  # the parent's pool must not hang its children
    assert [(left, threads) for _, _, left, threads in loaded(start, 0)] == [(0, 1)] * 8


def test_workers_draw_apart_and_repeat():
    first, again, other = loaded("fork", 0), loaded("fork", 0), loaded("fork", 1)
    assert {worker for worker, *_ in first} == {0, 1}
    views = [view for _, view, _, _ in first]
    assert views == [view for _, view, _, _ in again]
    assert len({*views, *(view for _, view, _, _ in other)}) == 16  # of one picture: no two alike


def test_a_child_of_a_process_with_many_threads_does_not_hang():
    code = (
        "import os, torch\n"
        "from pyssl_fast.augment import Transform, simclr\n"
        "torch.set_num_threads(4)\n"
        "transform, x = Transform(simclr(32), seed=0), torch.zeros(16, 3, 64, 64, dtype=torch.uint8)\n"
        "index = torch.arange(16)\n"
        "expected = transform(x, index=index)[0].numpy().tobytes()\n"
        "if (child := os.fork()) == 0:\n"  # four threads by torch's count, with which its own large operations do hang
        "    os._exit(transform(x, index=index)[0].numpy().tobytes() != expected)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_no_image_library_is_imported():
    code = (
        "import sys, torch\n"
        "from pyssl_fast.augment import Transform, simclr\n"
        "Transform(simclr(32))(torch.zeros(3, 40, 40))\n"
        "print(sorted({'torchvision', 'PIL'} & set(sys.modules)))"
    )
    assert python(code).stdout == "[]\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_the_gpu():
    x = torch.stack([picture(seed=i) for i in range(3)])
    transform = partial(Transform(dino(32, 16, 2), seed=1), index=torch.arange(3))
    for here, there in zip(transform(x), transform(x.cuda()), strict=True):
        assert there.is_cuda and (here - there.cpu()).abs().max() < 1e-3
