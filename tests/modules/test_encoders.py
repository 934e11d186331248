"""Encoders by name, for grey and colour, small and large images."""

import importlib.util

import pytest
import torch

from pyssl_fast.modules import build_encoder
from pyssl_fast.modules.encoders import SmallEncoder


@pytest.mark.parametrize(
    ("name", "channels", "size", "expected"),
    [
        ("small", 1, 28, 512),
        ("small", 3, 64, 512),
        ("small", 3, 16, 512),
        ("resnet18", 1, 28, 512),
        ("mobilenet_v3_small", 3, 64, 1024),
    ],
)
def test_an_encoder_gives_vectors(name, channels, size, expected):
    encoder, features = build_encoder(name, channels, size)
    assert features == expected
    assert encoder.training
    encoder.eval()
    assert encoder(torch.zeros(3, channels, size, size)).shape == (3, features)


def test_a_resnet_keeps_the_resolution_of_small_images():
    small, _ = build_encoder("resnet18", 3, 32)
    large, _ = build_encoder("resnet18", 3, 96)
    assert small.conv1.stride == (1, 1)
    assert large.conv1.stride == (2, 2)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("resnet17", 32, "unknown encoder 'resnet17'"),
        ("alexnet", 16, "cannot take images of 16x16"),
        ("vit_b_16", 24, "cannot take images of 24x24"),
        ("googlenet", 64, "encoder 'googlenet'"),
        ("squeezenet1_1", 64, "no linear classifier"),
    ],
)
def test_encoders_that_do_not_fit(name, size, message):
    with pytest.raises(ValueError, match=message):
        build_encoder(name, 3, size)


def test_without_timm_it_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "timm" else find(name, *rest))
    with pytest.raises(ValueError, match="pip install timm"):
        build_encoder("convnextv2_atto", 3, 64)


def test_timms_encoders_are_found():
    encoder, features = build_encoder("convnextv2_atto", 3, 64)
    assert encoder(torch.randn(2, 3, 64, 64)).shape == (2, features)


def test_the_trial_leaves_nothing_behind():
    torch.manual_seed(0)
    encoder, _ = build_encoder("small", 1, 28)
    after = torch.rand(1)
    torch.manual_seed(0)
    SmallEncoder(1)
    assert torch.equal(torch.rand(1), after)
    assert encoder.layers[1].num_batches_tracked == 0
