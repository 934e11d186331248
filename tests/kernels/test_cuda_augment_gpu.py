"""The augment kernels on a real GPU: the twin's results, CUDA graphs, and that nothing waits for the device."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import pytest

if importlib.util.find_spec("pyssl_fast._cuda") is None:
    pytest.skip("pyssl_fast._cuda is not built here: no nvcc 12.8 or newer was found", allow_module_level=True)

import torch

from pyssl_fast import augment
from pyssl_fast.augment import Parameters, plain
from pyssl_fast.augment.parameters import FIELDS
from pyssl_fast.kernels.cuda import augment as kernels
from tests.kernels.augment_cases import anything, assert_near, check, pictures

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
DTYPES = (torch.uint8, torch.float32, torch.float16, torch.bfloat16)


def batch(sizes: list[tuple[int, int]], size: tuple[int, int], seed: int = 0, **changes: Any) -> Parameters:
    return anything(sizes, size, torch.Generator().manual_seed(seed), **changes)


@pytest.mark.parametrize("size", [(1, 1), (9, 33), (33, 33), (224, 224)], ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
def test_chains_of_images_of_different_sizes(size: tuple[int, int], interpolation: str, antialias: bool) -> None:
    sizes = [(1, 1), (2, 3), (16, 15), (97, 130), (256, 256)]
    parameters = batch(sizes, size, interpolation=interpolation, antialias=antialias)
    for of in (parameters, parameters.to("cuda")):
        check(kernels, [x.cuda() for x in pictures(sizes)], of)


@pytest.mark.parametrize("out", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_dtypes_and_layouts(channels: int, dtype: torch.dtype, out: torch.dtype) -> None:
    x = torch.stack(pictures([(60, 70)] * 4, dtype, channels)).cuda()
    parameters = batch([(60, 70)] * 4, (64, 64), 1)
    base = torch.empty(4, channels, 64, 64, device="cuda")
    check(kernels, x, parameters, base)
    rounded = (base * 255).round().clamp(0, 255).to(out) if out == torch.uint8 else base.to(out)
    last = torch.empty(4, 64, 64, channels, device="cuda", dtype=out).permute(0, 3, 1, 2)
    for same in (x.to(memory_format=torch.channels_last), x.permute(0, 2, 3, 1).contiguous(), list(x)):
        kernels.apply(same, parameters, last)
        assert torch.equal(last, rounded)


@pytest.mark.parametrize(("taps", "sigma"), [(3, 0.01), (23, 2.0), (25, 3.0), (61, 10.0), (399, 1000.0)], ids=str)
def test_blurs_of_every_radius(taps: int, sigma: float) -> None:
    x = torch.stack(pictures([(224, 224)] * 2, torch.float32)).cuda()
    check(kernels, x, plain([(224, 224)] * 2, 224, sigma=torch.full((2,), sigma), blur_kernel=taps))


def test_float64_runs_the_twin() -> None:
    x = torch.rand(2, 3, 30, 30, dtype=torch.float64)
    parameters = batch([(30, 30)] * 2, (20, 20), 2)
    ours = augment.apply(x.cuda(), parameters.to("cuda"), dtype=torch.float64)
    assert_near(ours, augment.apply(x, parameters, dtype=torch.float64), x, parameters)


def test_nothing_waits_for_the_device() -> None:
    sizes = [(60, 70)] * 8
    x, parameters = torch.stack(pictures(sizes)).cuda(), batch(sizes, (64, 64), 3)
    of = (parameters, parameters.to("cuda"))
    expected = [augment.apply(x, each) for each in of]  # the GPU's own sines and cosines
    images = list(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = [[augment.apply(x, each), augment.apply(images, each)] for each in of]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for first, both in zip(expected, results, strict=True):
        assert_near(first, expected[0], x, parameters)
        assert all(torch.equal(result, first) for result in both)


def test_many_calls_in_a_row_do_not_share_what_is_copied() -> None:
    sizes = [(60, 70)] * 8
    x = torch.stack(pictures(sizes)).cuda()
    each = [batch(sizes, (64, 64), seed) for seed in range(20)]
    torch.cuda._sleep(100_000_000)  # all are called before the first has run
    results = [augment.apply(x, parameters) for parameters in each]
    for parameters, result in zip(each, results, strict=True):
        assert torch.equal(result, augment.apply(x, parameters))


def test_a_cuda_graph_reads_parameters_and_images_where_they_stand() -> None:
    sizes = [(60, 70)] * 8
    x, parameters = torch.stack(pictures(sizes)).cuda(), batch(sizes, (64, 64)).to("cuda")
    out = torch.empty(8, 3, 64, 64, device="cuda")
    augment.apply(x, parameters, out=out)  # before capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        augment.apply(x, parameters, out=out)
    for seed in range(3):
        x.copy_(torch.stack(pictures(sizes, seed=seed)))
        other = batch(sizes, (64, 64), seed, blur_kernel=parameters.blur_kernel, grey_first=parameters.grey_first)
        for field in FIELDS:
            getattr(parameters, field).copy_(getattr(other, field))
        graph.replay()
        assert torch.equal(out, augment.apply(x, other.to("cuda")))


def test_numbers_that_lie_leave_the_other_images_alone() -> None:
    sizes = [(40, 50)] * 6
    x, honest = torch.stack(pictures(sizes)).cuda(), batch(sizes, (33, 33), 4).to("cuda")
    fields = {}
    for name in FIELDS:
        field = getattr(honest, name).clone()
        lies = {torch.int64: [1 << 40, -(1 << 40), -1], torch.float32: [torch.nan, torch.inf, -1e30]}
        for row, lie in enumerate(lies.get(field.dtype, [True, True, True])):
            field[row] = lie
        fields[name] = field
    memory = torch.full((8, 3, 33, 33), 7.0, device="cuda")
    kernels.apply(x, dataclasses.replace(honest, **fields), memory[1:7])
    assert torch.equal(memory[4:7], augment.apply(x, honest)[3:])
    assert bool((memory[[0, 7]] == 7).all())


def test_offsets_beyond_32_bits() -> None:
    if torch.cuda.mem_get_info()[0] < 40e9:
        pytest.skip("needs 40 GB of free GPU memory")
    image = torch.zeros(3, 32_000, 32_000, dtype=torch.uint8, device="cuda")  # 3.1 GB
    image[:, -1, -1] = 255
    box = torch.tensor([[31_990, 31_990, 10, 10]])
    out = augment.apply(image[None], plain([(32_000, 32_000)], 10, box=box))
    assert out[0, :, -1, -1].tolist() == [1.0] * 3 and int(torch.count_nonzero(out)) == 3
    n = 15_000  # 2.26 · 10⁹ elements of the result
    many = image[:, :2, :2].expand(n, 3, 2, 2)
    jitter = torch.tensor([[False, True, False, False]]).expand(n, 4)
    result = torch.empty(n, 3, 224, 224, dtype=torch.uint8, device="cuda")
    augment.apply(many, plain([(2, 2)] * n, 224, jitter=jitter, invert=torch.arange(n) == n - 1), out=result)
    assert bool((result[-1] == 255).all()) and not bool(result[:-1].any())


def test_it_runs_on_the_stream_and_device_of_its_images() -> None:
    device = torch.cuda.device_count() - 1
    before = torch.cuda.current_device()
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        x = torch.zeros(2, 3, 8, 8, device=f"cuda:{device}")
        torch.cuda._sleep(100_000_000)  # what is on another stream would overtake this
        x.fill_(1.0)
        out = augment.apply(x, plain([(8, 8)] * 2, 8))
    stream.synchronize()
    assert bool((out == 1).all())
    assert torch.cuda.current_device() == before
