"""Each operation and whole chains against torchvision's float tensor path, with the same explicit parameters."""

import dataclasses

import pytest
import torch

from pyssl_fast.augment import Parameters, apply, plain

tv = pytest.importorskip("torchvision.transforms.v2.functional")


def torchvision(image: torch.Tensor, p: Parameters, i: int, before_solarize: bool = False) -> torch.Tensor:
    x = image.float() / 255 if image.dtype == torch.uint8 else image
    top, left, height, width = p.box[i].tolist()
    mode = tv.InterpolationMode(p.interpolation)
    x = tv.resized_crop(x, top, left, height, width, list(p.size), mode, p.antialias)
    x = tv.horizontal_flip(x) if p.horizontal_flip[i] else x
    x = tv.vertical_flip(x) if p.vertical_flip[i] else x
    x = tv.rotate(x, 90.0 * int(p.turns[i]))
    x = tv.rotate(x, float(p.angle[i]), tv.InterpolationMode.BILINEAR) if p.angle[i] else x
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
    """Within 1e-5 of full scale; pixels that near to a discontinuity may differ, and are few."""
    got, excluded = apply(x, p), 0
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
    allowed = 1.0 if bool((p.bits > 0).any()) else 0.05  # grey levels of uint8 lie on the steps of posterize
    assert excluded <= allowed * got.numel()


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
