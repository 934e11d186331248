"""Multi-tensor family on GPUs: see csrc/cuda/multi_tensor.cu. Nothing here waits for the device."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from pyssl_fast import _cuda
from pyssl_fast.kernels.flat import Layout, flat, write_back

_DTYPES = {torch.float32: _cuda.FLOAT32, torch.float16: _cuda.FLOAT16, torch.bfloat16: _cuda.BFLOAT16}


@functools.lru_cache(maxsize=256)
def _codes(layout: Layout) -> tuple[list[int], ...]:
    return tuple([_DTYPES[dtype] for dtype in of] for of in layout.dtypes)


@functools.lru_cache(maxsize=256)
def _chunks(counts: tuple[int, ...]) -> int:
    return sum(-(-count // _cuda.CHUNK) for count in counts)


def _pointers(tensors: Sequence[Tensor]) -> list[int]:
    return list(map(Tensor.data_ptr, tensors))


def _lists(flats: Sequence[list[Tensor]], layout: Layout) -> list[_cuda.Tensors]:
    return [(_pointers(of), codes) for of, codes in zip(flats, _codes(layout), strict=True)]


def _in_host_memory(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _scalar(x: Tensor | None, absent: float = 0.0) -> _cuda.Scalar:
    """x [] by value from the CPU; from the device by its pointer, which must outlive the call, in stream order."""
    if x is None:
        return absent, 0, False
    if _in_host_memory(x):
        return x.item(), 0, False
    return 0.0, x.data_ptr(), x.dtype == torch.float64


def _stream(x: Tensor) -> _cuda.Stream:
    """x's device, and the stream that torch is on there."""
    return x.device.index, torch.cuda.current_stream(x.device).cuda_stream


def ema_(teacher: list[Tensor], student: list[Tensor], shadow: list[Tensor], averaged: int, momentum: Tensor) -> None:
    # Entries of one shape and layout each; the copied ones have no shadow.
    followed, following = (teacher[:averaged], student[:averaged], shadow), (teacher[averaged:], student[averaged:])
    pointers: tuple[list[int], ...] = ([], [], [])
    codes: tuple[list[int], ...] = ([], [], [])
    sizes: list[int] = []
    parts = []
    for lists in (followed, following):
        if lists[0]:
            flats, layout = flat(*lists)
            parts.append((layout, lists, flats))
            for of, found in zip(pointers, map(_pointers, flats), strict=False):
                of.extend(found)
    if averaged:
        codes = _codes(parts[0][0])
        sizes.extend(parts[0][0].counts)
    sizes.extend(t.nbytes for t in following[0])
    if not parts:
        return
    t, s, x = zip(pointers, codes, strict=True)
    _cuda.ema(t, s, x, sizes, averaged, _scalar(momentum), _stream(teacher[0]))
    for layout, lists, flats in parts:
        write_back(layout, lists[0], flats[0])
        if len(lists) == 3:
            write_back(layout, lists[2], flats[2])


def square_sum(tensors: list[Tensor]) -> Tensor:
    flats, layout = flat(tensors)
    (of,) = _lists(flats, layout)
    workspace = tensors[0].new_empty(1 + _chunks(layout.counts), dtype=torch.float64)
    pointer = workspace.data_ptr()
    _cuda.square_sum(of, list(layout.counts), pointer + 8, pointer, _stream(tensors[0]))
    return workspace[0].clone()


def adamw_(
    parameters: list[Tensor],
    gradients: list[Tensor],
    exp_avg: list[Tensor],
    exp_avg_sq: list[Tensor],
    max_exp_avg_sq: list[Tensor],
    steps: list[Tensor],
    teacher: list[Tensor],
    shadow: list[Tensor],
    lr: Tensor,
    ema_momentum: Tensor,
    factor: Tensor | None,
    found_inf: Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
) -> None:
    lists = parameters, gradients, exp_avg, exp_avg_sq, max_exp_avg_sq, teacher, shadow
    flats, layout = flat(*lists)
    workspace = parameters[0].new_empty(len(parameters) * _cuda.RECORD_BYTES, dtype=torch.uint8)
    _cuda.adamw(
        *_lists(flats, layout),
        _pointers(steps),
        list(layout.counts),
        _scalar(lr),
        _scalar(ema_momentum),
        _scalar(factor, absent=1.0),
        _scalar(found_inf),
        beta1,
        beta2,
        eps,
        weight_decay,
        maximize,
        workspace.data_ptr(),
        _stream(parameters[0]),
    )
    for original, of in zip(lists, flats, strict=True):
        if original is not gradients:
            write_back(layout, original, of)


def lars_(
    parameters: list[Tensor],
    gradients: list[Tensor],
    momentum_buffers: list[Tensor],
    teacher: list[Tensor],
    shadow: list[Tensor],
    adapted: list[bool],
    fresh: list[bool],
    lr: Tensor,
    ema_momentum: Tensor,
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
    lists = parameters, gradients, momentum_buffers, teacher, shadow
    flats, layout = flat(*lists)
    records = parameters[0].new_empty(len(parameters) * _cuda.RECORD_BYTES, dtype=torch.uint8)
    partials = parameters[0].new_empty(_chunks(layout.counts) * _cuda.PARTIAL_DOUBLES, dtype=torch.float64)
    _cuda.lars(
        *_lists(flats, layout),
        list(layout.counts),
        adapted,
        fresh,
        _scalar(lr),
        _scalar(ema_momentum),
        _scalar(factor, absent=1.0),
        _scalar(found_inf),
        momentum,
        dampening,
        weight_decay,
        nesterov,
        maximize,
        trust_coefficient,
        eps,
        trust_clip,
        joint,
        records.data_ptr(),
        partials.data_ptr(),
        _stream(parameters[0]),
    )
    for original, of in zip(lists, flats, strict=True):
        if original is not gradients:
            write_back(layout, original, of)
