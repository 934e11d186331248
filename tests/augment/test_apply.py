"""Each operation and whole chains against torchvision's float tensor path, with the same explicit parameters."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_sample_images

from pyssl_fast import use_backend
from pyssl_fast.augment import RECIPES, Parameters, Recipe, apply, plain

tv = pytest.importorskip("torchvision.transforms.v2.functional", reason="torchvision, the peer, is not installed")


def torchvision(
    image: torch.Tensor, p: Parameters, i: int, before_solarize: bool = False, levels: bool = False
) -> torch.Tensor:
    """levels: of uint8 images, torchvision's own arithmetic for them."""
    x = image.float() / 255 if image.dtype == torch.uint8 and not levels else image
    top, left, height, width = p.box[i].tolist()
    mode = tv.InterpolationMode(p.interpolation)
    x = tv.resized_crop(x, top, left, height, width, list(p.size), mode, p.antialias)
    x = tv.horizontal_flip(x) if p.horizontal_flip[i] else x
    x = tv.vertical_flip(x) if p.vertical_flip[i] else x
    x = tv.rotate(x, 90.0 * int(p.turns[i]))
    if p.moved[i]:
        moves = (-float(p.angle[i]), p.translate[i].tolist(), float(p.zoom[i]), p.shear[i].tolist())
        x = tv.affine(x, *moves, tv.InterpolationMode.BILINEAR)
    x = tv.rgb_to_grayscale(x, 3) if p.grey[i] and p.grey_first else x
    operations = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for k in p.order[i].tolist():
        x = operations[k](x, float(p.factors[i, k])) if p.jitter[i, k] else x
    x = tv.rgb_to_grayscale(x, x.shape[0]) if p.grey[i] and not p.grey_first else x
    x = tv.gaussian_blur(x, [p.blur_kernel] * 2, [float(p.sigma[i])] * 2) if p.sigma[i] else x
    if before_solarize:
        return x
    x = tv.solarize(x, float(p.threshold[i])) if p.solarize[i] else x
    x = tv.invert(x) if p.invert[i] else x
    x = tv.posterize(x, int(p.bits[i])) if p.bits[i] else x
    x = tv.normalize(x, p.mean, p.std) if p.mean else x
    top, left, height, width = p.erase[i].tolist()
    return tv.erase(x, top, left, height, width, torch.tensor(p.erase_value)) if height else x


def images(n: int, height: int, width: int, channels: int = 3, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    x = torch.randint(
        0, 256, (n, channels, height, width), generator=torch.Generator().manual_seed(n), dtype=torch.uint8
    )
    return x if dtype == torch.uint8 else x.to(dtype) / 255


def assert_equal(x: torch.Tensor, p: Parameters) -> None:
    """Kernel and twin, within 1e-5 of full scale; pixels that near to a discontinuity may differ, and are few."""
    for backend in ("auto", "reference"):
        with use_backend(backend):
            got = apply(x, p)
        assert_like_torchvision(got, x, p)


def assert_like_torchvision(got: torch.Tensor, x: torch.Tensor, p: Parameters) -> None:
    excluded = 0
    scale = 1 / min(p.std) if p.std else 1.0
    for i in range(len(p)):
        expected, y = torchvision(x[i], p, i), torchvision(x[i], p, i, before_solarize=True)
        near = torch.zeros_like(y, dtype=torch.bool)
        if p.solarize[i]:
            near |= (y - p.threshold[i]).abs() < 1e-5
        if p.bits[i]:
            levels = 1 << int(p.bits[i])
            near |= (y * levels - (y * levels).round()).abs() < 1e-5 * levels
        excluded += int(near.sum())
        assert ((got[i] - expected).abs() <= 1e-5 * scale)[~near].all(), (i, (got[i] - expected).abs()[~near].max())
    assert excluded <= 0.01 * got.numel() + 3


def ones(n: int) -> torch.Tensor:
    return torch.ones(n, dtype=torch.bool)


def only(k: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.full((3,), k), 4).bool()


FACTORS = torch.tensor([[0.3, 1.7, 0.2, 0.31], [1.0, 1.0, 1.0, 0.0], [1.9, 0.4, 1.8, -0.5]])
OPERATIONS = {
    "bilinear": {"size": (17, 24)},
    "bilinear without antialias": {"size": (17, 24), "antialias": False},
    "bicubic": {"size": (17, 24), "interpolation": "bicubic"},
    "bicubic without antialias": {"size": (17, 24), "interpolation": "bicubic", "antialias": False},
    "crop": {"box": torch.tensor([[0, 0, 40, 50], [3, 5, 30, 7], [39, 49, 1, 1]])},
    "horizontal flip": {"horizontal_flip": ones(3)},
    "vertical flip": {"vertical_flip": ones(3)},
    "turns": {"turns": torch.tensor([1, 2, 3])},
    "rotation": {"angle": torch.tensor([12.5, -77.0, 200.0])},
    "affine": {
        "angle": torch.tensor([25.0, 0.0, -100.0]),
        "translate": torch.tensor([[3.0, -4.5], [0.25, 0.0], [0.0, 9.0]]),
        "zoom": torch.tensor([0.6, 1.0, 1.3]),
        "shear": torch.tensor([[20.0, 0.0], [-15.0, 30.0], [0.0, -7.0]]),
    },
    "brightness": {"jitter": only(0), "factors": FACTORS},
    "contrast": {"jitter": only(1), "factors": FACTORS},
    "saturation": {"jitter": only(2), "factors": FACTORS},
    "hue": {"jitter": only(3), "factors": FACTORS},
    "jitter": {
        "jitter": ones(12).reshape(3, 4),
        "factors": FACTORS,
        "order": torch.tensor([[3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]]),
    },
    "grey": {"grey": ones(3)},
    "grey first": {"grey": ones(3), "grey_first": True, "jitter": only(1), "factors": FACTORS},
    "blur": {"sigma": torch.tensor([0.1, 1.0, 2.0])},
    "solarize": {"solarize": ones(3), "threshold": torch.tensor([0.0, 0.5003, 1.0])},
    "invert": {"invert": ones(3)},
    "posterize": {"bits": torch.tensor([1, 4, 8])},
    "normalise": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "erase": {"erase": torch.tensor([[0, 0, 3, 4], [0, 0, 0, 0], [10, 20, 6, 4]]), "erase_value": 0.7},
}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation_equals_torchvision(operation, dtype):
    p = plain([(40, 50)] * 3, (24, 24))
    assert_equal(images(3, 40, 50, dtype=dtype), dataclasses.replace(p, **OPERATIONS[operation]))


@st.composite
def chains(draw) -> tuple[torch.Tensor, Parameters]:
    """Images and parameters of any kind; posterize, which would make most differences a step, has its own test."""
    n, height, width = 2, draw(st.integers(1, 40)), draw(st.integers(1, 40))
    size = (draw(st.integers(2, 24)),) * 2
    channels = draw(st.sampled_from([1, 3]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randint(0, 256, (n, channels, height, width), generator=generator, dtype=torch.uint8)

    def chance(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator) < 0.5

    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    box = [top, left, draw(st.integers(1, height - top)), draw(st.integers(1, width - left))]
    strength = torch.rand(n, 4, generator=generator) * torch.tensor([2.0, 2.0, 2.0, 1.0])
    mean = draw(st.sampled_from([(), (0.5,) * channels]))
    p = plain(
        [(height, width)] * n,
        size,
        box=torch.tensor([[0, 0, height, width], box]),
        interpolation=draw(st.sampled_from(["bilinear", "bicubic"])),
        antialias=draw(st.booleans()),
        horizontal_flip=chance(n),
        vertical_flip=chance(n),
        turns=torch.randint(0, 4, (n,), generator=generator),
        angle=chance(n) * (torch.rand(n, generator=generator) * 360 - 180),
        translate=(chance(n) * torch.randn(2, n, generator=generator)).mT.contiguous(),
        zoom=torch.where(chance(n), 0.5 + torch.rand(n, generator=generator), 1),
        shear=(chance(n) * torch.randn(2, n, generator=generator) * 10).mT.contiguous(),
        order=torch.stack([torch.randperm(4, generator=generator) for _ in range(n)]),
        jitter=chance(n, 4),
        factors=strength - torch.tensor([0.0, 0.0, 0.0, 0.5]),
        grey=chance(n) & chance(n),
        grey_first=channels == 3 and draw(st.booleans()),
        sigma=chance(n) * (0.1 + 2 * torch.rand(n, generator=generator)),
        blur_kernel=draw(st.sampled_from([k for k in (1, 3, 9, 23) if k // 2 < size[0]])),
        solarize=chance(n),
        threshold=torch.rand(n, generator=generator),
        invert=chance(n),
        erase=torch.tensor([[0, 0, 0, 0], [1, 0, 1, 2]]),
        mean=mean,
        std=(0.25,) * len(mean),
    )
    return (x if draw(st.booleans()) else x.float() / 255), p


@settings(max_examples=60, deadline=None, derandomize=True)
@given(chains())
def test_chain_equals_torchvision(chain):
    x, p = chain
    if bool(p.solarize.any()):  # a constant image may lie on its threshold as a whole; random ones hardly do
        p = dataclasses.replace(p, solarize=p.solarize & (p.threshold > 1e-3))
    assert_equal(x, p)


def chain_of(n: int, height: int, width: int, size: int = 24) -> Parameters:
    recipe = Recipe(
        *((size, size), (0.2, 1.0)),
        jitter=0.9,
        brightness=0.8,
        contrast=0.8,
        saturation=0.8,
        hue=0.2,
        grey=0.2,
        blur=0.5,
    )
    return recipe.sample([(height, width)] * n, seed=n)


def photographs(n: int) -> list[torch.Tensor]:
    both = [torch.from_numpy(x.copy()).permute(2, 0, 1) for x in load_sample_images().images]
    return [both[i % 2] for i in range(n)]


UINT8 = [
    *("bilinear", "bicubic", "crop", "horizontal flip", "turns", "brightness", "contrast", "saturation", "hue"),
    *("grey", "blur", "invert"),
]


@pytest.mark.parametrize("operation", UINT8)
def test_operation_is_within_five_levels_of_torchvisions_uint8(operation):
    x = [y[:, 100:140, 200:250] for y in photographs(3)]
    p = dataclasses.replace(plain([(40, 50)] * 3, (24, 24)), **OPERATIONS[operation])
    got = apply(x, p, dtype=torch.uint8)
    for i in range(3):
        assert (got[i].int() - torchvision(x[i], p, i, levels=True).int()).abs().max() <= 5


@pytest.mark.parametrize("name", ["simclr", "byol", "moco_v2", "swav"])
def test_chain_is_within_five_levels_of_torchvisions_uint8(name):
    """But for few pixels: it rounds after every operation, and the next one's factor, up to 1.8, grows what is lost."""
    recipe = dataclasses.replace(RECIPES[name](128).recipes[0], mean=(), std=())
    x = photographs(32)
    p = recipe.sample([y.shape[1:] for y in x], seed=3)
    got = apply(x, p, dtype=torch.uint8)
    theirs = torch.stack([torchvision(y, p, i, levels=True) for i, y in enumerate(x)])
    off = (got.int() - theirs.int()).abs()
    assert off.float().mean() < 1.5 and (off > 5).float().mean() < 1e-3


def test_hue_of_grey_edges_equals_torchvision():
    """A cubic filter overshoots at an edge: of a grey pixel above 1 one channel stays so, the others are clamped."""
    x = torch.zeros(4, 3, 32, 32)
    x[:, :, 8:24, 8:24] = 1
    factors = torch.tensor([[1.0, 1.0, 1.0, shift] for shift in (0.0, 0.05, 0.3, -0.4)])
    p = plain([(32, 32)] * 4, 48, jitter=only(3)[:1].expand(4, 4), factors=factors, interpolation="bicubic")
    assert_equal(x, dataclasses.replace(p, antialias=False))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
def test_resize_of_256_pixels_is_exact(interpolation, antialias):
    """Within 2e-6 of the float64 twin, where torchvision's float32 places are 1e-5 to 3e-5 of full scale off."""
    x = torch.rand(1, 3, 256, 250, generator=torch.Generator().manual_seed(0))
    p = plain([(256, 250)], 224, interpolation=interpolation, antialias=antialias)
    assert (apply(x, p) - apply(x.double(), p, dtype=torch.float64)).abs().max() < 2e-6


@pytest.mark.parametrize("name", ["simclr", "byol", "moco_v1", "dino"])
def test_chains_of_256_pixels_of_noise_are_exact(name):
    """Torchvision in float64: in float32 its own places are 2e-5 off."""
    x, recipe = images(6, 256, 256), RECIPES[name]()[1].replace(mean=(), std=(), solarize=0.0)
    p = recipe.sample(x.shape, seed=0)
    got = apply(x, p)
    for i in range(6):
        expected = torchvision(x[i].double() / 255, p, i)
        assert (got[i] - expected).abs().max() < 1e-5


def test_layouts_and_lists_give_the_same():
    x, p = images(4, 30, 40), chain_of(4, 30, 40)
    expected = apply(x, p)
    strided = torch.zeros(4, 3, 60, 80, dtype=torch.uint8)
    strided[:, :, ::2, ::2] = x
    layouts = {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "[B, H, W, C]": x.permute(0, 2, 3, 1).contiguous(),
        "strided": strided[:, :, ::2, ::2],
        "list": list(x),
        "list of [H, W, C]": [y.permute(1, 2, 0) for y in x],
    }
    for name, y in layouts.items():
        assert torch.equal(apply(y, p), expected), name


def test_list_of_different_sizes():
    sizes = [(30, 40), (1, 1), (17, 64)]
    x = [images(1, *size)[0] for size in sizes]
    p = Recipe(size=(16, 16), horizontal_flip=0.5, jitter=1.0, brightness=0.4, hue=0.1).sample(sizes, seed=0)
    got = apply(x, p)
    for i, y in enumerate(x):
        assert torch.equal(got[i], apply(y[None], p[i])[0])
    assert torch.allclose(got[1], got[1][:, :1, :1].expand(3, 16, 16), atol=1e-6)


def test_uint8_out_is_the_rounded_float():
    x, p = images(4, 30, 40), chain_of(4, 30, 40)
    p = dataclasses.replace(p, mean=(), std=())
    expected = (apply(x, p) * 255).round().clamp(0, 255)
    assert torch.equal(apply(x, p, dtype=torch.uint8), expected.to(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_out_is_written_in_its_dtype_and_strides(dtype):
    x, p = images(4, 30, 40), chain_of(4, 30, 40)
    out = torch.full((4, 3, 24, 24), float("nan"), dtype=dtype).to(memory_format=torch.channels_last)
    assert apply(x, p, out=out) is out
    assert torch.equal(out, apply(x, p).to(dtype))
    assert torch.equal(apply(x, p, dtype=dtype), out)


def test_float64_agrees_with_float32():
    x, p = images(6, 30, 40), dataclasses.replace(chain_of(6, 30, 40), mean=(), std=())
    single, double = apply(x, p), apply(x.double() / 255, p, dtype=torch.float64)
    assert double.dtype == torch.float64 and (single - double).abs().max() < 1e-5


def test_fourth_channel_is_moved_not_coloured():
    x, p = images(4, 30, 40, channels=4), chain_of(4, 30, 40)
    got = apply(x, p)
    assert torch.equal(got[:, :3], apply(x[:, :3], p))
    uncoloured = dataclasses.replace(
        p, jitter=torch.zeros_like(p.jitter), grey=torch.zeros_like(p.grey), mean=(), std=()
    )
    assert torch.allclose(got[:, 3:], apply(x[:, 3:], uncoloured), atol=1e-6)


def test_parameters_on_another_device_are_an_error():
    with pytest.raises(ValueError, match="parameters must be on the images' device cpu or on the CPU; got meta"):
        apply(images(2, 8, 8), plain([(8, 8)] * 2, 8).to("meta"))


def test_images_are_left_alone():
    x, p = torch.rand(2, 3, 24, 24), plain([(24, 24)] * 2, 24, erase=torch.tensor([[0, 0, 5, 5]] * 2))
    before = x.clone()
    assert not torch.equal(apply(x, p), x) and torch.equal(x, before)


def test_nan_travels():
    x, p = torch.rand(1, 3, 24, 24), plain([(24, 24)], 24, jitter=torch.ones(1, 4, dtype=torch.bool))
    x[0, 1, 3, 4] = float("nan")
    assert apply(x, p).isnan().any()


def test_import_leaves_torchvision_alone():
    """It is a peer here; a DataLoader worker need not pay for its import."""
    code = "import sys, pyssl_fast.augment; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
