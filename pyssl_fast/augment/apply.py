"""A chain of image operations on a batch, with explicit parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from pyssl_fast import backend
from pyssl_fast.augment.graphs import outside_graphs
from pyssl_fast.augment.parameters import DTYPES, Images, Parameters, channels_last
from pyssl_fast.backend import kernels


@outside_graphs
def apply(
    images: Images, parameters: Parameters, *, dtype: torch.dtype = torch.float32, out: Tensor | None = None
) -> Tensor:
    """Each image through its own operations, with the arithmetic of torchvision's transforms on float tensors.

    Args:
        images: [B, C, H, W], [B, H, W, C], or a list of images [C, H, W] or [H, W, C] of different sizes; C is 1, 3 or
            4 (the fourth is moved and blurred, not coloured). uint8, or floating-point on a scale of 0 to 1. Where both
            readings fit, channels come first. NaN and infinity stay in their image, and spread there by no rule.
            float64 is computed by the twin, in float64: MAE's view 16 times as slow, SimCLR's 57 times.
        parameters: of B samples, on the images' device or on the CPU. On a GPU they are not waited for, and what they
            hold is not checked: a wrong number there gives a wrong image, or NaN.
        dtype: of the result: uint8 (rounded, within 0 to 255) or floating-point.
        out: [B, C, height, width] to write into, of any strides (channels_last, pinned); its dtype counts.

    Returns:
        [B, C, height, width], `out` where given.

    Raises:
        TypeError, ValueError: wrong images, parameters or out; what came and what was expected.
    """
    if not isinstance(parameters, Parameters):
        raise TypeError(f"parameters must be Parameters; got {type(parameters).__name__}")
    parameters.check_form(images)
    if parameters.box.device.type != "cpu" and parameters.box.device != images[0].device:
        raise ValueError(
            f"parameters must be on the images' device {images[0].device} or on the CPU; got {parameters.box.device}"
        )
    shape = [len(parameters), images[0].shape[-1 if channels_last(images[0]) else -3], *parameters.size]
    if out is None:
        if dtype not in DTYPES:
            raise TypeError(f"dtype must be uint8 or floating-point; got {dtype}")
        out = torch.empty(shape, dtype=dtype, device=images[0].device)
    elif list(out.shape) != shape:
        raise ValueError(f"out must have shape {shape}; got {list(out.shape)}")
    elif out.dtype not in DTYPES:
        raise TypeError(f"out must be uint8 or floating-point; got {out.dtype}")
    elif out.device != images[0].device:
        raise ValueError(f"out must be on the images' device {images[0].device}; got {out.device}")
    else:
        _check_writable(out, images)
    if torch.is_grad_enabled() and (
        out.requires_grad or any(x.requires_grad for x in ([images] if isinstance(images, Tensor) else images))
    ):
        raise ValueError("images and out must not require a gradient, which would get lost; detach them")
    of = torch.float64 if images[0].dtype == torch.float64 else torch.float32
    name = backend.choose("augment", out.new_empty(0, dtype=of))
    if name not in ("cpu", "cuda"):  # whose kernels look at values on the CPU as they read them
        parameters = parameters.to("cpu")  # the twin reads them one by one, and waits for the device anyway
        parameters.check(images)
    kernels(name, "augment").apply(images, parameters, out)
    return out


def _span(x: Tensor) -> tuple[int, int]:
    """The addresses from its first number to behind its last one."""
    reach = [step * (count - 1) for step, count in zip(x.stride(), x.shape, strict=True)]
    first = x.data_ptr() + x.element_size() * sum(r for r in reach if r < 0)
    return first, first + x.element_size() * (1 + sum(map(abs, reach)))


def _check_writable(out: Tensor, images: Images) -> None:
    reach = 0
    for step, count in sorted(zip(out.stride(), out.shape, strict=True)):
        if count > 1 and step <= reach:
            raise ValueError(f"out must have a place of its own for each number; got strides {list(out.stride())}")
        reach += step * (count - 1)
    if out.is_neg():
        raise ValueError("out must hold its numbers as they are; got a view with the sign to be changed")
    first, last = _span(out)
    for x in [images] if isinstance(images, Tensor) else images:
        begin, end = _span(x)
        if begin < last and first < end:
            raise ValueError("out must not overlap the images: they are read while it is written")
