"""The C++ chain against its twin: every instruction set, shapes on both sides of each block edge, layouts, threads."""

import dataclasses
import resource

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyssl_fast import augment, use_backend
from pyssl_fast.augment import Parameters, plain
from tests.kernels.augment_cases import ATOL, random_parameters

_cpu = pytest.importorskip("pyssl_fast._cpu", reason="the extension is not built")


@pytest.fixture(params=_cpu.isas())
def isa(request):
    before = _cpu.isa()
    _cpu.set_isa(request.param)
    yield request.param
    _cpu.set_isa(before)


def assert_like_the_twin(images, parameters: Parameters, atol: float = ATOL, **settings) -> torch.Tensor:
    ours = augment.apply(images, parameters, **settings)
    with use_backend("reference"):
        theirs = augment.apply(images, parameters, **settings)
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=atol, equal_nan=True)
    return ours


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (15, 17), (16, 16), (33, 31), (112, 113)], ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
def test_chains_are_the_twins(isa, size, interpolation: str, antialias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [(1, 1), (2, 3), (16, 15), (17, 64), (50, 33), (97, 130)]
    images = [torch.rand(3, *of, generator=generator) for of in sizes]
    parameters = random_parameters(sizes, size, generator, interpolation=interpolation, antialias=antialias)
    assert_like_the_twin(images, parameters)
    assert_like_the_twin([(x * 255).byte() for x in images], parameters)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_channels_dtypes_and_layouts(channels: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(4, channels, 20, 30, generator=generator)
    x = (x * 255).to(dtype) if dtype == torch.uint8 else x.to(dtype)
    parameters = random_parameters([(20, 30)] * 4, (18, 22), generator, mean=(0.4,), std=(0.5,))
    base = assert_like_the_twin(x, parameters)
    strided = torch.zeros(4, channels, 40, 60, dtype=dtype)[:, :, ::2, ::2].copy_(x)
    backwards = x.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    for same in (x.to(memory_format=torch.channels_last), strided, backwards, x.permute(0, 2, 3, 1), list(x)):
        torch.testing.assert_close(augment.apply(same, parameters), base, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_results_of_every_dtype_go_where_they_are_wanted(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(3, 3, 20, 30, generator=generator)
    parameters = random_parameters([(20, 30)] * 3, (18, 22), generator)
    level = {torch.uint8: 1.0, torch.float32: ATOL, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    assert_like_the_twin(x, parameters, atol=level, dtype=dtype)
    out = torch.empty(3, 18, 22, 3, dtype=dtype).permute(0, 3, 1, 2)
    assert augment.apply(x, parameters, out=out) is out
    assert torch.equal(out, augment.apply(x, parameters, dtype=dtype))


def test_solarize_and_posterize_away_from_their_thresholds() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(256, (6, 3, 12, 12), generator=generator, dtype=torch.uint8)
    whole = [(12, 12)] * 6
    solarize = torch.arange(6) % 2 == 0
    parameters = plain(whole, 12, solarize=solarize, threshold=torch.full((6,), 100.5 / 255), invert=~solarize)
    assert_like_the_twin(x, parameters)
    assert_like_the_twin(x, plain(whole, 12, bits=torch.arange(6)))


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("planar", [True, False])
def test_turns_and_moves(isa, turns: int, planar: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(6, 3, 37, 21, generator=generator)
    x = x if planar else x.permute(0, 2, 3, 1).contiguous()
    fields = {"turns": torch.full((6,), turns), "sigma": torch.zeros(6), "invert": torch.zeros(6, dtype=torch.bool)}
    for angle in (0.0, 30.0):
        changes = {**fields, "angle": torch.full((6,), angle)}
        assert_like_the_twin(x, random_parameters([(37, 21)] * 6, (33, 33), generator, **changes))


@pytest.mark.parametrize("radius", [0, 1, 4, 11, 31])
def test_blurs_of_every_width(isa, radius: int) -> None:
    x = torch.rand(6, 3, 35, 45, generator=torch.Generator().manual_seed(7))
    sigma = torch.tensor([0.1, 0.3, 1.0, 2.0, 5.0, 900.0])
    assert_like_the_twin(x, plain([(35, 45)] * 6, (35, 45), sigma=sigma, blur_kernel=2 * radius + 1), atol=2e-6)


@pytest.mark.parametrize(
    "size, offset, last",
    [((224, 224), 0, False), ((224, 224), 1, False), ((223, 225), 0, False), ((224, 224), 0, True)],
)
def test_large_results_go_past_the_cache(isa, size: tuple[int, int], offset: int, last: bool) -> None:
    """From a million floats on. Not so: other addresses or widths than multiples of a vector, channels last."""
    generator = torch.Generator().manual_seed(8)
    x = torch.randint(0, 256, (7, 3, 30, 50), generator=generator, dtype=torch.uint8)
    parameters = random_parameters([(30, 50)] * 7, size, generator, angle=torch.zeros(7), shear=torch.zeros(7, 2))
    count = 7 * 3 * size[0] * size[1]
    out = torch.full((count + 2,), 7.0)
    result = out[offset : offset + count].view(7, 3, *size)
    result = result.view(7, *size, 3).permute(0, 3, 1, 2) if last else result
    augment.apply(x, parameters, out=result)
    with use_backend("reference"):
        expected = augment.apply(x, parameters)
    torch.testing.assert_close(result, expected, rtol=0, atol=ATOL)
    assert bool((out[:offset] == 7).all()) and bool((out[offset + count :] == 7).all())


def test_no_allocation_per_image() -> None:
    """A thread's scratch is made once in a call: a larger batch touches no more new pages than a small one.

    It is more than a megabyte here, which is mapped, and not left in the heap for the next one.
    """

    def faults(images: int) -> int:
        x = torch.zeros(images, 32, 32, 3, dtype=torch.uint8)
        recipe = dataclasses.replace(augment.simclr(320).recipes[0], jitter=1.0)
        parameters, out = recipe.sample(x.shape, seed=0), torch.zeros(images, 3, 320, 320)
        seen = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            augment.apply(x, parameters, out=out)
            seen.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        return min(seen)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert faults(64) <= 4 * faults(2) + 16
    finally:
        torch.set_num_threads(threads)


def test_threads_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(7, 3, 40, 40, generator=generator)
    parameters = random_parameters([(40, 40)] * 7, (32, 32), generator)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(augment.apply(x, parameters))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_nan_stays_in_its_image(isa) -> None:
    x = torch.rand(2, 3, 8, 8)
    x[0, :, 4, 4] = torch.nan
    parameters = random_parameters([(8, 8)] * 2, (8, 8), torch.Generator().manual_seed(6), erase_value=0.0)
    parameters = dataclasses.replace(parameters, jitter=torch.ones(2, 4, dtype=torch.bool))  # contrast spreads it
    out = augment.apply(x, parameters)
    assert bool(out[0].isnan().any()) and not bool(out[1].isnan().any())


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_chain_of_any_shape_is_the_twins(data) -> None:
    draw = data.draw
    sides = st.integers(1, 40)
    sizes = draw(st.lists(st.tuples(sides, sides), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    images = [torch.rand(draw(st.just(3)), *of, generator=generator) for of in sizes]
    interpolation = draw(st.sampled_from(["bilinear", "bicubic"]))
    parameters = random_parameters(sizes, draw(st.tuples(sides, sides)), generator, interpolation=interpolation)
    assert_like_the_twin(images, parameters)
