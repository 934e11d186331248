"""torch.compile goes around the family; default devices and dtypes, and autocast, change nothing."""

import pytest
import torch

from pyssl_fast import augment, use_backend
from pyssl_fast.kernels import samples
from tests.process import python

IMAGES = torch.randint(0, 256, (2, 3, 41, 50), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_compiled_is_what_it_is_without(name):
    recipe, index = augment.byol(24), torch.tensor([5, 3])
    transform = augment.Transform(recipe, seed=1)
    parameters = recipe.sample(IMAGES.shape, seed=1)

    def step(x, epoch):
        views = [*recipe(x, seed=0, epoch=epoch), augment.apply(x, parameters[0]), *transform(x, index=index)]
        return [view.square().mean() + view for view in views]

    compiled = torch.compile(step, backend="aot_eager")
    with use_backend(name):
        for epoch in (0, 0, 1, 2):
            assert all(map(torch.equal, compiled(IMAGES, epoch), step(IMAGES, epoch)))
        torch.manual_seed(0)
        drawn = torch.compile(augment.Transform(recipe), backend="aot_eager")(IMAGES)
        torch.manual_seed(0)
        assert all(map(torch.equal, drawn, augment.Transform(recipe)(IMAGES)))


def test_the_compiler_is_not_imported_for_it():
    code = "from pyssl_fast import augment; import sys, torch; augment.mae(8)(torch.rand(1, 3, 9, 9))"
    assert python(f"{code}; sys.exit('torch._dynamo' in sys.modules)").returncode == 0


def test_default_device_and_dtype_change_nothing():
    recipe = augment.dino(23, 11, 1)
    expected = recipe([*IMAGES], seed=9)
    plain = augment.plain(IMAGES.shape, 13)
    for clear in (samples._steps, samples._equal, samples.normalisation):
        clear.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            for images in (IMAGES, [*IMAGES]):
                got = augment.Transform(recipe, seed=9)(images, index=[0, 1])
                assert all(map(torch.equal, got, expected))
            with use_backend("reference"):
                twin = recipe(IMAGES, seed=9)
            same = augment.plain(IMAGES.shape, 13)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(twin, expected, rtol=0, atol=1e-4)  # of numbers up to 2.6
    assert torch.equal(augment.apply(IMAGES, plain), augment.apply(IMAGES, same))
    assert all(map(torch.equal, recipe(IMAGES, seed=9), expected))  # nothing was remembered of the other device


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_autocast_changes_nothing(name):
    recipe = augment.byol(33)
    with use_backend(name):
        expected = recipe(IMAGES, seed=0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert all(map(torch.equal, recipe(IMAGES, seed=0), expected))
