"""Augment family on GPUs: see csrc/cuda/augment.cu. Nothing here waits for the device.

Bytes per pixel of a float32 result of three channels, from uint8: 14; 24 more for contrast or blur; 24 more for an
affine map. Predicted, not measured, for 256 images of 256² pixels to 224², and bound by instructions rather than bytes:
MAE 0.40 ms on an A100 and 0.26 on an H100, SimCLR 0.73 and 0.48.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyssl_fast import _cuda, backend
from pyssl_fast.kernels.cuda.device import in_host_memory, stream
from pyssl_fast.kernels.samples import PIXELS, normalisation, pictures, sizes_of, table

if TYPE_CHECKING:
    from pyssl_fast.augment.parameters import Images, Parameters

_WIDEST = 1 << 28  # step from pixel to pixel, of which the kernels take 31 bits in bytes


def _upload(words: list[Tensor], device: torch.device) -> Tensor:
    """Tensors of int64 on the CPU, one after the other on the device."""
    pinned = torch.empty(sum(map(len, words)), dtype=torch.int64, device="cpu", pin_memory=True)
    return torch.cat(words, out=pinned).to(device, non_blocking=True)


def _table(p: Parameters, images: Images) -> Tensor:
    """[B, 33] float64, where the parameters are. On the CPU they are checked."""
    if in_host_memory(p.box):
        if backend.on_cpu("augment") == "cpu":
            return backend.kernels("cpu", "augment").table(p, images)
        p.check(images)
    return table(p)


def apply(images: Images, parameters: Parameters, out: Tensor) -> None:
    """As the twin, on images that are not float64.

    Parameters on the GPU are not read: what they need is not known here, so all launches are made and all workspace is
    there. Parameters on the CPU, and where the images of a list are, go to the GPU in one copy; a batch and parameters
    that are there already need none, and may be captured in a CUDA graph.
    """
    p, on_gpu, alike = parameters, not in_host_memory(parameters.box), isinstance(images, Tensor)
    if out.dtype not in PIXELS:
        target = torch.empty(out.shape, dtype=torch.float32, device=out.device)
        apply(images, p, target)
        out.copy_(target)
        return
    some = images[:1] if alike else images
    places = torch.cat([pictures(some), sizes_of(some)], 1)  # as csrc/cuda/augment.h has an Image
    if bool((places[:, 3] >= _WIDEST).any()):
        apply(images.contiguous() if isinstance(images, Tensor) else [x.contiguous() for x in images], p, out)
        return
    samples, each = _table(p, images), 0
    words = [] if alike else [places.flatten()]
    if not on_gpu:
        words.append(samples.view(torch.int64).flatten())
    if words:
        uploaded = _upload(words, out.device)
        each = 0 if alike else uploaded.data_ptr()
        samples = samples if on_gpu else uploaded[-samples.numel() :]

    n, channels, height, width = out.shape
    moved = on_gpu or bool(p.moved.any())
    unfinished = on_gpu or bool((p.jitter[:, 1] | (p.sigma != 0)).any())  # contrast, blur
    sizes = (out.numel() * moved, out.numel() * unfinished, n * _cuda.partials(height, width) * unfinished)
    workspace = [torch.empty(size, dtype=torch.float32, device=out.device) for size in sizes]
    mean, std = normalisation(p.mean, p.std, channels).tolist()
    _cuda.augment(
        n,
        (channels, height, width),
        PIXELS[images[0].dtype],
        places[0].tolist(),
        images.stride(0) * images.element_size() if isinstance(images, Tensor) else 0,
        each,
        samples.data_ptr(),
        p.interpolation == "bicubic",
        p.antialias,
        mean,
        std,
        p.erase_value,
        out.data_ptr(),
        PIXELS[out.dtype],
        out.stride(),
        [x.data_ptr() for x in workspace],
        stream(out),
    )
