"""csrc/cuda/augment.cu on host threads, called through kernels/cuda, against the twin and against the C++ kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyssl_fast.augment import RECIPES, Parameters, Recipe, plain
from pyssl_fast.kernels.cpu import augment as cpu
from tests.augment.test_apply import OPERATIONS
from tests.cuda_on_cpu import build
from tests.kernels.augment_cases import anything, assert_near, check, pictures

U8, F32, F16, BF16 = torch.uint8, torch.float32, torch.float16, torch.bfloat16
DTYPES = (U8, F32, F16, BF16)


@pytest.fixture(scope="module")
def kernels(emulated: ModuleType) -> ModuleType:
    module = build.kernels(emulated, "augment")
    module._upload = lambda words, device: torch.cat(words)  # type: ignore[attr-defined]
    return module


@pytest.fixture
def on_device(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Parameters are as on a GPU: not looked at."""
    monkeypatch.setattr(kernels, "in_host_memory", lambda x: False)
    return kernels


def check_both(kernels: ModuleType, images: Sequence[Tensor], parameters: Parameters) -> Tensor:
    """The twin's result, and the C++ kernels'."""
    ours = check(kernels, images, parameters)
    theirs = torch.empty_like(ours)
    cpu.apply(images, parameters, theirs)
    assert_near(ours, theirs, images, parameters)
    return ours


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [U8, F32], ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation(operation: str, dtype: torch.dtype, kernels: ModuleType) -> None:
    parameters = dataclasses.replace(plain([(40, 50)] * 3, (24, 24)), **OPERATIONS[operation])
    check_both(kernels, pictures([(40, 50)] * 3, dtype), parameters)


def test_hue_beside_edges(kernels: ModuleType) -> None:
    """A cubic filter overshoots beside grey and red on black: channels above 1 and below 0, equal ones too."""
    images = torch.zeros(4, 3, 32, 32)
    images[:2, :, 8:24, 8:24] = 1
    images[2:, 0, 8:24, 8:24] = 1
    hue = torch.tensor([[False, False, False, True]] * 4)
    factors = torch.tensor([[1.0, 1.0, 1.0, shift] for shift in (0.05, -0.4, 0.3, 0.45)])
    fields = {"jitter": hue, "factors": factors, "interpolation": "bicubic", "antialias": False}
    check_both(kernels, images, plain([(32, 32)] * 4, 48, **fields))


# Both sides of a block's 8 and 32 rows, and 32 columns.
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 31), (8, 32), (9, 33), (33, 33), (65, 40)], ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
def test_chains_of_images_of_different_sizes(
    size: tuple[int, int], interpolation: str, antialias: bool, kernels: ModuleType
) -> None:
    sizes = [(1, 1), (2, 3), (16, 15), (50, 33), (97, 130)]
    parameters = anything(sizes, size, generator(), interpolation=interpolation, antialias=antialias)
    check_both(kernels, pictures(sizes), parameters)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("image", "size"), [((300, 211), (3, 5)), ((2, 3), (40, 37)), ((5, 200), (50, 2))], ids=str)
def test_large_changes_of_size(image: Any, size: Any, interpolation: str, kernels: ModuleType) -> None:
    for antialias in (True, False):
        check_both(kernels, pictures([image]), plain([image], size, interpolation=interpolation, antialias=antialias))


def test_an_image_that_is_not_resized_is_divided_by_255(kernels: ModuleType) -> None:
    image = torch.arange(256, dtype=U8).view(1, 1, 16, 16)
    for interpolation in ("bilinear", "bicubic"):
        out = torch.empty(1, 1, 16, 16)
        kernels.apply(image, plain([(16, 16)], 16, interpolation=interpolation), out)
        assert torch.equal(out, image / 255)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_dtypes_and_layouts(channels: int, dtype: torch.dtype, kernels: ModuleType) -> None:
    x = torch.stack(pictures([(20, 30)] * 4, dtype, channels))
    parameters = anything([(20, 30)] * 4, (18, 22), generator(1), mean=(0.4,), std=(0.5,))
    base = check_both(kernels, x, parameters)
    strided = torch.zeros(4, channels, 40, 60, dtype=dtype)[:, :, ::2, ::2].copy_(x)
    backwards = x.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    last = x.permute(0, 2, 3, 1).contiguous()
    for same in (x.to(memory_format=torch.channels_last), strided, backwards, last, list(x), list(last)):
        again = torch.empty_like(base)
        kernels.apply(same, parameters, again)
        assert torch.equal(again, base)


def test_steps_from_pixel_to_pixel_that_31_bits_do_not_hold(kernels: ModuleType, monkeypatch: Any) -> None:
    x = torch.stack(pictures([(9, 16)] * 2))[..., ::2]
    parameters = anything([(9, 8)] * 2, (8, 8), generator(2))
    expected = check(kernels, x, parameters)
    monkeypatch.setattr(kernels, "_WIDEST", 2)
    assert torch.equal(check(kernels, x, parameters), expected)
    assert torch.equal(check(kernels, list(x), parameters), expected)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_results_of_every_dtype_and_layout(dtype: torch.dtype, kernels: ModuleType) -> None:
    x = torch.stack(pictures([(20, 30)] * 3))
    parameters = anything([(20, 30)] * 3, (18, 22), generator(3))
    exact = torch.empty(3, 3, 18, 22)
    kernels.apply(x, parameters, exact)
    rounded = (exact * 255).round().clamp(0, 255).to(U8) if dtype == U8 else exact.to(dtype)
    memory = torch.zeros(3, 40, 2, 30, 4, dtype=dtype)
    for out in (
        torch.empty(3, 3, 18, 22, dtype=dtype),
        torch.empty(3, 3, 18, 22, dtype=dtype).to(memory_format=torch.channels_last),
        memory[:, 1:37:2, 1, 2:24, :3].permute(0, 3, 1, 2),
    ):
        kernels.apply(x, parameters, out)
        assert torch.equal(out, rounded)
    memory[:, 1:37:2, 1, 2:24, :3] = 0
    assert not bool(memory.any())  # nothing beside it is written


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("taps", "sigma"),
    [(1, 2.0), (3, 0.01), (5, 0.3), (23, 2.0), (25, 3.0), (27, 9.0), (61, 10.0), (99, 1000.0), (99, 2.0)],
    ids=str,
)
def test_blurs_of_every_radius(taps: int, sigma: float, channels: int, kernels: ModuleType) -> None:
    size = (50, 70)  # up to its height all may be reflected; 27 taps and more take several pieces
    images = pictures([size] * 2, F32, channels)
    jitter = torch.tensor([[False, True, False, True], [False] * 4])
    factors = torch.tensor([[1.0, 0.6, 1.0, 0.2], [1.0, 1.0, 1.0, 0.0]])
    check_both(
        kernels,
        images,
        plain([size] * 2, size, sigma=torch.full((2,), sigma), blur_kernel=taps, jitter=jitter, factors=factors),
    )


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name: str, kernels: ModuleType) -> None:
    made = RECIPES[name]()
    recipes = [made] if isinstance(made, Recipe) else list(dict.fromkeys(made.recipes))
    sizes = [(64, 48), (40, 60)]
    for recipe in recipes:
        parameters = dataclasses.replace(recipe, size=(40, 40)).sample(sizes, seed=0)
        check_both(kernels, pictures(sizes), parameters)


def test_images_with_and_without_each_launch_go_together(kernels: ModuleType) -> None:
    sizes = [(30, 30)] * 4
    jitter = torch.tensor([[True, False, True, True], [False, True, False, False], [False] * 4, [True] * 4])
    of = {
        "angle": torch.tensor([0.0, 20.0, 0.0, -50.0]),
        "sigma": torch.tensor([0.0, 0.0, 1.0, 1.5]),
        "blur_kernel": 7,
        "jitter": jitter,
        "factors": torch.tensor([[1.3, 0.6, 1.4, 0.1]]).repeat(4, 1),
    }
    all_of_them = plain(sizes, 25, **of)
    together = check_both(kernels, pictures(sizes), all_of_them)
    for i, image in enumerate(pictures(sizes)):
        assert torch.equal(check(kernels, [image], all_of_them[i]), together[i : i + 1])


def test_parameters_on_the_device_give_the_same_bits(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(30, 20)] * 5
    x, parameters = torch.stack(pictures(sizes)), anything(sizes, (33, 25), generator(4))
    before = check(kernels, x, parameters)
    monkeypatch.setattr(kernels, "in_host_memory", lambda x: False)
    for images in (x, list(x)):
        assert torch.equal(check(kernels, images, parameters), before)
    quiet = plain(sizes, 16)  # nothing is left to the other launches
    check(kernels, x, quiet)


def test_parameters_on_the_device_are_not_read_and_all_else_is_copied_once(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies, launches = [], []
    recorder = SimpleNamespace(augment=lambda *arguments: launches.append(arguments), partials=lambda *size: 1)
    monkeypatch.setattr(kernels, "_cuda", recorder)
    monkeypatch.setattr(kernels, "_upload", lambda words, device: copies.append(words) or torch.cat(words))
    sizes = [(30, 20)] * 5
    x, on_cpu = torch.stack(pictures(sizes)), anything(sizes, (33, 25), generator(4))
    on_device = on_cpu.to("meta")  # which raises where a number is asked for
    for images, parameters, expected in (
        (x, on_device, 0),
        (x, on_cpu, 1),
        (list(x), on_device, 1),
        (list(x), on_cpu, 1),
    ):
        copies.clear()
        kernels.apply(images, parameters, torch.empty(5, 3, 33, 25))
        assert len(copies) == expected
    assert len(launches) == 4


def test_same_bits_every_run(kernels: ModuleType) -> None:
    sizes = [(50, 40)] * 3
    parameters = anything(sizes, (40, 70), generator(5))
    assert torch.equal(check(kernels, pictures(sizes), parameters), check(kernels, pictures(sizes), parameters))


def test_nan_stays_in_its_image_and_spreads_there(kernels: ModuleType) -> None:
    x = torch.stack(pictures([(12, 12)] * 2, F32))
    x[0, 1, 5, 5] = torch.nan
    for changes in (
        {},
        {"jitter": torch.tensor([[False, True, False, False]] * 2), "factors": torch.full((2, 4), 0.5)},
        {"jitter": torch.tensor([[False, False, False, True]] * 2), "factors": torch.full((2, 4), 0.3)},
        {"sigma": torch.ones(2), "blur_kernel": 5},
        {"angle": torch.full((2,), 20.0)},
        {"grey": torch.ones(2, dtype=torch.bool)},
    ):
        out = torch.empty(2, 3, 12, 12)
        kernels.apply(x, plain([(12, 12)] * 2, 12, **changes), out)
        assert bool(out[0, 1, 4:7, 4:7].isnan().any()) and not bool(out[1].isnan().any()), changes
        if "jitter" in changes:
            assert bool(out[0, :, 5, 5].isnan().all())


@pytest.mark.parametrize("field", ["factors", "sigma", "angle"])
def test_parameters_that_are_nan_give_nan(field: str, on_device: ModuleType) -> None:
    parameters = plain([(12, 12)], 12, jitter=torch.ones(1, 4, dtype=torch.bool), blur_kernel=3)
    getattr(parameters, field).fill_(torch.nan)
    out = torch.zeros(1, 3, 12, 12)
    on_device.apply(torch.stack(pictures([(12, 12)])), parameters, out)
    assert bool(out.isnan().all())


HUGE, NAN, INF = 1 << 40, torch.nan, torch.inf
LIES: dict[str, dict[str, Any]] = {
    "boxes": {"box": [[-5, -7, 100, 100], [50, 60, 1, 1], [3, 3, -4, 0], [-HUGE, HUGE, 1 << 62, 9]]},
    "turns": {"turns": [-1, 5, HUGE, 2]},
    "affine maps": {"angle": [NAN, INF, 1e30, 7.0], "zoom": [1.0, 0.0, 1e-30, NAN]},
    "orders": {"order": [[1, 1, 1, 1], [7, -3, HUGE, 0], [3, 3, 2, 2], [0, 1, 2, 3]]},
    "factors": {"factors": [[NAN] * 4, [INF] * 4, [-1e30] * 4, [1e38] * 4]},
    "sigmas": {"sigma": [NAN, INF, -1.0, 1e30]},
    "thresholds": {"threshold": [NAN, INF, -1.0, 7.0], "solarize": [True] * 4},
    "bits": {"bits": [-5, 70, 9, 63]},
    "erasures": {"erase": [[-5, -5, 3, 3], [0, 0, HUGE, HUGE], [30, 30, 9, 9], [2, 2, -1, -1]]},
}


@pytest.mark.parametrize("lie", LIES)
def test_numbers_that_lie_leave_the_other_images_alone(lie: str, on_device: ModuleType) -> None:
    """What is beyond the tensors is watched by AddressSanitizer: see driver.cpp."""
    sizes = [(20, 20)] * 5
    x = torch.stack(pictures(sizes))
    honest = plain(
        sizes,
        (17, 12),
        jitter=torch.ones(5, 4, dtype=torch.bool),
        factors=torch.full((5, 4), 0.4),
        sigma=torch.ones(5),
        blur_kernel=99,  # too many to be reflected: a lie by itself
    )
    fields = {name: getattr(honest, name).clone() for name in LIES[lie]}
    for name, field in fields.items():
        field[:4] = torch.tensor(LIES[lie][name])
    memory = torch.full((7, 3, 17, 12), 7.0)
    on_device.apply(x, dataclasses.replace(honest, **fields), memory[1:6])
    alone = torch.empty(1, 3, 17, 12)
    on_device.apply(x[4:], honest[4], alone)
    assert torch.equal(memory[5:6], alone)
    assert bool((memory[[0, 6]] == 7).all())
    assert not bool((memory[1:5] == 7).any())


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_chain_of_any_shape(data: st.DataObject, kernels: ModuleType) -> None:
    draw, sides = data.draw, st.integers(1, 45)
    sizes = draw(st.lists(st.tuples(sides, sides), min_size=1, max_size=3))
    size = draw(st.one_of(st.tuples(sides, sides), sides.map(lambda side: (side, side))))
    mean = draw(st.sampled_from([(), (0.5,)]))
    parameters = anything(
        sizes,
        size,
        generator(draw(st.integers(0, 2**31))),
        interpolation=draw(st.sampled_from(["bilinear", "bicubic"])),
        antialias=draw(st.booleans()),
        mean=mean,
        std=(0.25,) * len(mean),
    )
    count, dtype = draw(st.sampled_from([1, 3, 4])), draw(st.sampled_from(DTYPES))
    check_both(kernels, pictures(sizes, dtype, count, seed=draw(st.integers(0, 2**31))), parameters)
