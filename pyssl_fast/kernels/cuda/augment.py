"""Augment family on GPUs: see csrc/cuda/augment.cu. Nothing here waits for the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyssl_fast import _cuda
from pyssl_fast.kernels.samples import table

if TYPE_CHECKING:
    from pyssl_fast.augment.parameters import Images, Parameters

_TYPES = {
    torch.uint8: _cuda.UINT8,
    torch.float32: _cuda.FLOAT32,
    torch.float16: _cuda.FLOAT16,
    torch.bfloat16: _cuda.BFLOAT16,
}
_WIDEST = 1 << 28  # step from pixel to pixel, of which the kernels take 31 bits of bytes


def _stream(x: Tensor) -> _cuda.Stream:
    """x's device, and the stream that torch is on there."""
    return x.device.index, torch.cuda.current_stream(x.device).cuda_stream


def _in_host_memory(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _upload(words: list[Tensor], device: torch.device) -> Tensor:
    """Tensors of int64 on the CPU, one after the other on the device."""
    pinned = torch.empty(sum(map(len, words)), dtype=torch.int64, pin_memory=True)
    return torch.cat(words, out=pinned).to(device, non_blocking=True)


def _image(x: Tensor) -> tuple[int, int, int, int, int, int]:
    """As csrc/cuda/augment.h has it; of [C, H, W]."""
    channel, row, pixel = x.stride()
    return x.data_ptr(), channel, row, pixel, x.shape[1], x.shape[2]


def apply(images: Images, parameters: Parameters, out: Tensor) -> None:
    """As the twin, on images that are not float64.

    Parameters on the GPU are not read: what they need is not known here, so all launches are made and all workspace is
    there. Parameters on the CPU, and where the images of a list are, go to the GPU in one copy; a batch and parameters
    that are there already need none, and may be captured in a CUDA graph.
    """
    p, on_gpu = parameters, not _in_host_memory(parameters.box)
    if out.dtype not in _TYPES:
        target = torch.empty(out.shape, device=out.device)
        apply(images, p, target)
        out.copy_(target)
        return
    each = [images] if isinstance(images, Tensor) else images
    each = [x if x.shape[-3] in (1, 3, 4) else x.movedim(-1, -3) for x in each]
    each = [x if x.stride(-1) < _WIDEST else x.contiguous() for x in each]
    words = []
    if isinstance(images, Tensor):
        image, step = _image(each[0][0]), each[0].stride(0) * each[0].element_size()
    else:
        rows = [_image(x) for x in each]
        image, step, words = rows[0], 0, [torch.tensor(rows).flatten()]
    samples, places = table(p), 0
    if not on_gpu:
        words.append(samples.view(torch.int64).flatten())
    if words:
        uploaded = _upload(words, out.device)
        places = 0 if isinstance(images, Tensor) else uploaded.data_ptr()
        samples = samples if on_gpu else uploaded[-words[-1].numel() :]

    n, channels, height, width = out.shape
    workspace = [torch.empty(0, device=out.device)] * 3  # resized, coloured, partial sums
    if on_gpu or bool(p.moved.any()):
        workspace[0] = torch.empty(out.shape, device=out.device)
    if on_gpu or bool((p.jitter[:, 1] | (p.sigma != 0)).any()):
        workspace[1] = torch.empty(out.shape, device=out.device)
        workspace[2] = torch.empty(n * _cuda.partials(height, width), device=out.device)
    mean, over_std = [0.0] * 4, [1.0] * 4
    if p.mean:
        count = len(p.mean) if len(p.mean) > 1 else channels
        mean[:count] = p.mean if len(p.mean) > 1 else p.mean * count
        over_std[:count] = [1 / x for x in (p.std if len(p.std) > 1 else p.std * count)]
    _cuda.augment(
        n,
        (channels, height, width),
        _TYPES[images[0].dtype],
        image,
        step,
        places,
        samples.data_ptr(),
        p.interpolation == "bicubic",
        p.antialias,
        mean,
        over_std,
        p.erase_value,
        out.data_ptr(),
        _TYPES[out.dtype],
        out.stride(),
        *(x.data_ptr() for x in workspace),
        _stream(out),
    )
