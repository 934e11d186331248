"""Bad parameters and images give errors that say what came; samples can be taken out."""

import dataclasses

import numpy as np
import pytest
import torch

from pyssl_fast.augment import Parameters, apply, dino, plain
from pyssl_fast.augment.parameters import FIELDS


def changed(**fields) -> Parameters:
    return dataclasses.replace(plain([(10, 12)] * 2, (6, 8)), **fields)


IMAGES = torch.rand(2, 3, 10, 12)
NAN = float("nan")
FACTORS = torch.tensor([[1.0, 1.0, 1.0, 0.0]] * 2)


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"box": torch.tensor([[0, 0, 10, 12], [0, 1, 10, 12]])},
            "box .* must lie inside the image of 10 × 12 .* sample 1",
        ),
        ({"box": torch.tensor([[0, 0, 10, 12], [-1, 0, 5, 5]])}, "box .* must lie inside the image"),
        ({"box": torch.tensor([[0, 0, 0, 12], [0, 0, 5, 5]])}, "box .* must lie inside the image"),
        ({"factors": FACTORS * NAN}, "factors .* must be 0 to 1e.06; got nan of sample 0"),
        ({"factors": FACTORS + torch.tensor([0, 0, 0, NAN])}, "factors .hue. must be -0.5 to 0.5; got nan"),
        ({"factors": FACTORS[:1]}, r"factors must have shape \[2, 4\]; got \[1, 4\]"),
        ({"sigma": torch.tensor([0.0, -1.0])}, "sigma must be 0 to 1000; got -1 of sample 1"),
        ({"sigma": torch.ones(2), "blur_kernel": 13}, "blur_kernel must be 11 or less"),
        ({"blur_kernel": 4}, "blur_kernel must be odd"),
        ({"angle": torch.tensor([0.0, NAN])}, "angle must be"),
        *(({"translate": torch.tensor([[0.0, 0.0], [x, 0.0]])}, "translate must be") for x in (NAN, 1e7)),
        *(({"translate": torch.tensor([[0.0, 0.0], [0.0, x]])}, "translate must be") for x in (NAN, -1e7)),
        *(({"zoom": torch.tensor([1.0, x])}, "zoom must be") for x in (NAN, 0.0, 1e4)),
        *(({"shear": torch.tensor([[0.0, 0.0], [x, 0.0]])}, "shear must be") for x in (NAN, 90.0)),
        *(({"shear": torch.tensor([[0.0, 0.0], [0.0, x]])}, "shear must be") for x in (NAN, -90.0)),
        ({"factors": FACTORS + torch.tensor([NAN, 0, 0, 0])}, "factors .* must be 0 to 1e.06"),
        ({"factors": FACTORS + torch.tensor([0, 2e6, 0, 0])}, "factors .* must be 0 to 1e.06"),
        ({"factors": FACTORS + torch.tensor([0, 0, NAN, 0])}, "factors .* must be 0 to 1e.06"),
        ({"sigma": torch.tensor([NAN, 0.0])}, "sigma must be 0 to 1000"),
        ({"mean": (NAN,), "std": (1.0,)}, "mean must be"),
        ({"turns": torch.tensor([0, 4])}, "turns must be 0 to 3; got 4"),
        ({"turns": torch.tensor([0, 1])}, "turns of 1 or 3 need a square size; got 6 × 8"),
        ({"bits": torch.tensor([0, 9])}, "bits must be 0 to 8"),
        ({"threshold": torch.tensor([0.5, 1.5])}, "threshold must be 0 to 1"),
        ({"order": torch.zeros(2, 4, dtype=torch.int64)}, "order must hold 0, 1, 2 and 3 once each"),
        ({"erase": torch.tensor([[0, 0, 7, 1], [0, 0, 0, 0]])}, "erase .* must lie inside the result of 6 × 8"),
        ({"mean": (0.5,)}, "mean and std must have one length"),
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, "mean must have 1 or 3 numbers"),
        ({"mean": (0.5,), "std": (0.0,)}, "std must be"),
        ({"interpolation": "nearest"}, "interpolation must be one of"),
        ({"size": (0, 8)}, "size must be 1 or more"),
    ],
)
def test_bad_parameters(fields, message):
    with pytest.raises(ValueError, match=message):
        apply(IMAGES, changed(**fields))


def test_wrong_types():
    with pytest.raises(TypeError, match=r"grey must be torch.bool; got torch.int64"):
        apply(IMAGES, changed(grey=torch.zeros(2, dtype=torch.int64)))
    with pytest.raises(TypeError, match="parameters must be Parameters; got int"):
        apply(IMAGES, 3)
    with pytest.raises(TypeError, match=r"images must be uint8 or floating-point; got torch.int64"):
        apply(IMAGES.long(), changed())
    with pytest.raises(TypeError, match="dtype must be uint8 or floating-point"):
        apply(IMAGES, changed(), dtype=torch.int32)


@pytest.mark.parametrize(
    "images, message",
    [
        (torch.rand(0, 3, 10, 12), "images must not be empty"),
        ([], "images must not be empty"),
        (torch.rand(3, 10, 12), r"images must have shape \[B, C, H, W\] or \[B, H, W, C\], or be a list"),
        (torch.rand(2, 2, 10, 12), "images must have 1, 3 or 4 channels"),
        (torch.rand(2, 3, 0, 12), "images must not be empty"),
        (torch.rand(3, 3, 10, 12), "images must be 2, one per sample of the parameters; got 3"),
        ([torch.rand(3, 10, 12), torch.rand(1, 10, 12)], "images must all have one number of channels"),
        ([torch.rand(3, 10, 12), torch.rand(3, 10, 11)], "box .* must lie inside the image of 10 × 11"),
        ([torch.rand(3, 10, 12), torch.rand(3, 10, 12).double()], "images must be torch.float32 on cpu as the first"),
    ],
)
def test_bad_images(images, message):
    with pytest.raises(ValueError, match=message):
        apply(images, changed())


def test_bad_out():
    with pytest.raises(ValueError, match=r"out must have shape \[2, 3, 6, 8\]; got \[2, 3, 8, 6\]"):
        apply(IMAGES, changed(), out=torch.empty(2, 3, 8, 6))


def test_out_with_too_few_places():
    with pytest.raises(ValueError, match="out must have a place of its own for each number"):
        apply(IMAGES, changed(), out=torch.zeros(2, 1, 6, 8).expand(2, 3, 6, 8))
    with pytest.raises(ValueError, match="out must have a place of its own for each number"):
        apply(IMAGES, changed(), out=torch.zeros(4000).as_strided([2, 3, 6, 8], [400, 1, 9, 1]))


@pytest.mark.parametrize("part", [slice(0, 2), slice(1, 3)])
def test_out_over_the_images(part):
    both = torch.rand(3, 3, 6, 8)
    parameters = changed(box=torch.tensor([[0, 0, 6, 8]] * 2))
    with pytest.raises(ValueError, match="out must not overlap the images"):
        apply(both[:2], parameters, out=both[part])
    with pytest.raises(ValueError, match="out must not overlap the images"):
        apply([*torch.rand(2, 3, 6, 8), both[1]], plain([(6, 8)] * 3, (6, 8)), out=both)
    apply(both[:1], parameters[:1], out=both[2:])


def test_gradients_are_refused():
    with pytest.raises(ValueError, match="images and out must not require a gradient"):
        apply(IMAGES.clone().requires_grad_(), changed())
    with torch.no_grad():
        apply(IMAGES.clone().requires_grad_(), changed())


def test_samples_taken_out():
    parameters = dino(32).sample([(50, 60)] * 6, seed=3)[1]
    images = torch.rand(6, 3, 50, 60)
    whole = apply(images, parameters)
    for index in (2, -1, slice(1, 4), torch.tensor([5, 0]), torch.arange(6) % 2 == 0):
        rows = slice(index % 6, index % 6 + 1) if isinstance(index, int) else index
        assert torch.equal(apply(images[rows], parameters[index]), whole[rows])
    assert torch.equal(parameters.index_select(torch.tensor([4, 4])).factors, parameters.factors[[4, 4]])
    with pytest.raises(IndexError, match="there are 6 samples; got index 6"):
        parameters[6]


def test_batches_become_one():
    sizes = [(50, 60)] * 5
    recipe = dino(32)[0]
    whole = recipe.sample(sizes, seed=3)
    parts = [recipe.sample(sizes[:1], seed=3, index=torch.tensor([i])) for i in range(5)]
    joined = Parameters.cat(parts)
    assert all(torch.equal(getattr(joined, name), getattr(whole, name)) for name in FIELDS)
    assert (joined.size, joined.mean, joined.blur_kernel) == (whole.size, whole.mean, whole.blur_kernel)
    with pytest.raises(ValueError, match=r"parts must have one size; got \(32, 32\) and \(16, 16\)"):
        Parameters.cat([whole, dino(16)[0].sample(sizes, seed=3)])
    with pytest.raises(ValueError, match="parts must be a sequence of Parameters, not empty; got"):
        Parameters.cat([])
    with pytest.raises(ValueError, match="parts must be on one device; got cpu, meta"):
        Parameters.cat([whole, whole.to("meta")])


def test_what_recipes_take_parameters_take():
    p = plain(IMAGES.shape, [6, 8], mean=[0.5] * 3, std=np.full(3, 0.25))
    assert (p.size, p.mean, p.std) == ((6, 8), (0.5,) * 3, (0.25,) * 3)
    assert torch.equal(apply(IMAGES, p), apply(IMAGES, plain([IMAGES.shape[2:]] * 2, (6, 8), mean=0.5, std=0.25)))
    for field in ("antialias", "grey_first"):
        with pytest.raises(TypeError, match=f"{field} must be True or False; got 'no'"):
            apply(IMAGES, dataclasses.replace(p, **{field: "no"}))


def test_views_with_another_sign():
    x = torch.rand(2, 3, 6, 8, dtype=torch.complex64).conj().imag
    with pytest.raises(ValueError, match="images must hold their numbers as they are"):
        apply(x, changed())
    with pytest.raises(ValueError, match="out must hold its numbers as they are"):
        apply(IMAGES, changed(), out=x)


def test_to_moves_every_tensor():
    moved = changed().to("meta")
    assert all(getattr(moved, name).device.type == "meta" for name in FIELDS)


def test_repr_is_one_readable_line():
    assert repr(changed(grey=torch.tensor([True, False]))) == "Parameters(2 → 6 × 8 bilinear antialiased, grey 1)"
