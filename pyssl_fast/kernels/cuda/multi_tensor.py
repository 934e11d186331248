"""Multi-tensor family on GPUs: see csrc/cuda/multi_tensor.cu. Nothing here waits for the device."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from pyssl_fast import _cuda
from pyssl_fast.kernels.cuda.device import in_host_memory, stream
from pyssl_fast.kernels.flat import Layout, addresses, flat, write_back

_DTYPES = {torch.float32: _cuda.FLOAT32, torch.float16: _cuda.FLOAT16, torch.bfloat16: _cuda.BFLOAT16}


@functools.lru_cache(maxsize=256)
def _layout(layout: Layout, averaged: int) -> tuple[_cuda.Layout, int]:
    """What the kernels take, and into how many chunks they cut it."""
    counts = list(layout.counts)
    for i in range(averaged, len(counts)):  # what is copied is bytes
        counts[i] *= layout.dtypes[0][i].itemsize
    chunks = sum(-(-count // _cuda.CHUNK) for count in counts)
    return _cuda.Layout(counts, [[_DTYPES.get(dtype, 0) for dtype in of] for of in layout.dtypes]), chunks


def _scalar(x: float | Tensor | None, like: Tensor, absent: float = 0.0) -> _cuda.Scalar:
    """x [] by value from the CPU; else by its pointer on the device of `like`, which stays valid in stream order."""
    if x is None:
        return absent, 0, False
    if not isinstance(x, Tensor):
        return x, 0, False
    if in_host_memory(x):
        return x.item(), 0, False
    x = x.to(like.device, x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float64)
    return 0.0, x.data_ptr(), x.dtype == torch.float64


def ema_(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    shadow: Sequence[Tensor],
    averaged: int,
    momentum: float | Tensor,
) -> None:
    if shadow and averaged < len(teacher):
        shadow = [*shadow, *teacher[averaged:]]  # what is copied shadows itself
    lists, layout = flat(teacher, student, shadow)
    sizes, _ = _layout(layout, averaged)
    _cuda.ema(sizes, [addresses(x) for x in lists], averaged, _scalar(momentum, teacher[0]), stream(teacher[0]))
    write_back(layout, shadow, lists[2])
    write_back(layout, teacher, lists[0])  # last: what is copied is among the shadows too, as it was


def square_sum(tensors: Sequence[Tensor]) -> Tensor:
    lists, layout = flat(tensors)
    sizes, chunks = _layout(layout, len(tensors))
    total = tensors[0].new_empty((), dtype=torch.float64)
    partials = tensors[0].new_empty(chunks, dtype=torch.float64)
    _cuda.square_sum(sizes, [addresses(x) for x in lists], partials.data_ptr(), total.data_ptr(), stream(tensors[0]))
    return total


def adamw_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    max_exp_avg_sq: Sequence[Tensor],
    steps: Sequence[Tensor],
    teacher: Sequence[Tensor],
    shadow: Sequence[Tensor],
    lr: float | Tensor,
    ema_momentum: float | Tensor,
    factor: Tensor | None,
    found_inf: Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
) -> None:
    written = (parameters, exp_avg, exp_avg_sq, max_exp_avg_sq, teacher, shadow)
    lists, layout = flat(parameters, gradients, *written[1:])
    sizes, _ = _layout(layout, len(parameters))
    records = parameters[0].new_empty(len(parameters) * _cuda.RECORD_BYTES, dtype=torch.uint8)
    _cuda.adamw(
        sizes,
        [addresses(x) for x in lists],
        addresses(steps),
        _scalar(ema_momentum, parameters[0]),
        _scalar(lr, parameters[0]),
        _scalar(factor, parameters[0], absent=1.0),
        _scalar(found_inf, parameters[0]),
        beta1,
        beta2,
        eps,
        weight_decay,
        maximize,
        records.data_ptr(),
        stream(parameters[0]),
    )
    for original, copy in zip(written, (lists[0], *lists[2:]), strict=True):
        write_back(layout, original, copy)


def lars_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    teacher: Sequence[Tensor],
    shadow: Sequence[Tensor],
    adapted: Sequence[bool],
    fresh: Sequence[bool],
    lr: float | Tensor,
    ema_momentum: float | Tensor,
    factor: Tensor | None,
    found_inf: Tensor | None,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    trust_coefficient: float,
    eps: float,
    trust_clip: bool,
    joint: bool,
) -> None:
    written = (parameters, momentum_buffers, teacher, shadow)
    lists, layout = flat(parameters, gradients, *written[1:])
    sizes, chunks = _layout(layout, len(parameters))
    records = parameters[0].new_empty(len(parameters) * _cuda.RECORD_BYTES, dtype=torch.uint8)
    partials = parameters[0].new_empty(chunks * _cuda.PARTIAL_DOUBLES, dtype=torch.float64)
    _cuda.lars(
        sizes,
        [addresses(x) for x in lists],
        adapted,
        fresh,
        _scalar(ema_momentum, parameters[0]),
        _scalar(lr, parameters[0]),
        _scalar(factor, parameters[0], absent=1.0),
        _scalar(found_inf, parameters[0]),
        momentum,
        dampening,
        weight_decay,
        trust_coefficient,
        eps,
        nesterov,
        maximize,
        trust_clip,
        joint,
        records.data_ptr(),
        partials.data_ptr(),
        stream(parameters[0]),
    )
    for original, copy in zip(written, (lists[0], *lists[2:]), strict=True):
        write_back(layout, original, copy)
