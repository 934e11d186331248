"""Encoders by name: a small convolutional net, torchvision's and timm's models. No weights are downloaded."""

from __future__ import annotations

import copy
import importlib.util
import warnings

import torch
from torch import Tensor, nn

SMALL = "small"


class SmallEncoder(nn.Module):
    """Three 3×3 convolutions for images of 16 to 64 pixels: [N, channels, H, W] -> [N, 512].

    The first one steps by two, which costs a quarter of a full-size layer; the last keeps the strongest answer of every
    quarter of the image, which nearest neighbours tell apart better than the mean.
    """

    out_dim = 512

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(channels, 32, stride=2),
            *_convolution(32, 64),
            nn.MaxPool2d(2),
            *_convolution(64, 128),
            nn.AdaptiveMaxPool2d(2),
            nn.Flatten(),
        )

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features


def _convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


class _GreyToColour(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.expand(-1, 3, -1, -1)


def build_encoder(name: str, channels: int, size: int) -> tuple[nn.Module, int]:
    """An untrained encoder, [N, channels, size, size] -> [N, D].

    Args:
        name: "small", a classification model of torchvision ("resnet18"), or one of timm where it is installed.
            A ResNet of torchvision gets a 3×3 stem without pooling for images up to 64 pixels (SimCLR's for CIFAR-10).
        channels: 1 or 3. A torchvision model sees a grey image as three equal channels.
        size: height and width of the images, in pixels.

    Returns:
        The encoder without its classifier, and D.

    Raises:
        ValueError: no such model, or one that does not turn such images into a vector.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torchvision's, about the way some models start
            encoder = _find_encoder(name, channels, size)
        # A trial, as training will use it; on a copy, and leaving the random numbers alone.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            features = copy.deepcopy(encoder).train()(torch.zeros(2, channels, size, size))
    except UnknownEncoder:
        raise
    except Exception as error:  # too small an image shows itself as almost anything
        raise ValueError(f"encoder {name!r} cannot take images of {size}x{size} pixels: {error}") from error
    if not isinstance(features, Tensor) or features.dim() != 2:
        raise ValueError(f"encoder {name!r} does not turn an image into one vector")
    return encoder.train(), features.shape[1]


class UnknownEncoder(ValueError):
    """No such encoder, or none that can be used."""


def _find_encoder(name: str, channels: int, size: int) -> nn.Module:
    import torchvision.models

    if name == SMALL:
        return SmallEncoder(channels)
    if name in torchvision.models.list_models(module=torchvision.models):
        return _torchvision_encoder(name, channels, size)
    if importlib.util.find_spec("timm") is None:
        raise UnknownEncoder(
            f"unknown encoder {name!r}: not {SMALL!r} nor a torchvision model (timm's names need: pip install timm)"
        )
    import timm

    if not timm.is_model(name):
        raise UnknownEncoder(f"unknown encoder {name!r}: neither {SMALL!r}, nor a model of torchvision or timm")
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels)
    return model


def _torchvision_encoder(name: str, channels: int, size: int) -> nn.Module:
    import torchvision.models

    takes_size = {"image_size": size} if name.startswith("vit_") else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **takes_size)
    classifiers = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not classifiers:
        raise UnknownEncoder(f"encoder {name!r} has no linear classifier to take off")
    model.set_submodule(classifiers[-1], nn.Identity())
    if isinstance(model, torchvision.models.ResNet) and size <= 64:
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return nn.Sequential(_GreyToColour(), model) if channels == 1 else model
