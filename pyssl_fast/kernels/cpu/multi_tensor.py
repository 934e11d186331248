"""Multi-tensor family on the CPU: see csrc/cpu/multi_tensor/multi_tensor.h."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from pyssl_fast import _cpu
from pyssl_fast.kernels.cpu.pointers import DTYPES
from pyssl_fast.kernels.flat import Layout, addresses, flat, write_back


@functools.lru_cache(maxsize=256)
def _layout(layout: Layout, averaged: int) -> _cpu.Layout:
    counts = list(layout.counts)
    for i in range(averaged, len(counts)):  # what is copied is bytes
        counts[i] *= layout.dtypes[0][i].itemsize
    return _cpu.Layout(counts, [[DTYPES.get(dtype, 0) for dtype in of] for of in layout.dtypes])


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
    _cpu.ema(
        _layout(layout, averaged),
        [addresses(x) for x in lists],
        averaged,
        float(momentum),
        torch.get_num_threads(),
    )
    write_back(layout, shadow, lists[2])
    write_back(layout, teacher, lists[0])  # last: what is copied is among the shadows too, as it was


def square_sum(tensors: Sequence[Tensor]) -> Tensor:
    lists, layout = flat(tensors)
    total = _cpu.square_sum(_layout(layout, len(tensors)), [addresses(x) for x in lists], torch.get_num_threads())
    return torch.tensor(total, dtype=torch.float64)


def _gradient_factor(factor: Tensor | None, maximize: bool) -> float:
    return (-1.0 if maximize else 1.0) * (1.0 if factor is None else float(factor))


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
    if found_inf is not None and float(found_inf) != 0:
        return
    written = (parameters, exp_avg, exp_avg_sq, max_exp_avg_sq, teacher, shadow)
    lists, layout = flat(parameters, gradients, *written[1:])
    _cpu.adamw(
        _layout(layout, len(parameters)),
        [addresses(x) for x in lists],
        addresses(steps),
        float(ema_momentum),
        float(lr),
        _gradient_factor(factor, maximize),
        beta1,
        beta2,
        eps,
        weight_decay,
        torch.get_num_threads(),
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
    if found_inf is not None and float(found_inf) != 0:
        return
    written = (parameters, momentum_buffers, teacher, shadow)
    lists, layout = flat(parameters, gradients, *written[1:])
    _cpu.lars(
        _layout(layout, len(parameters)),
        [addresses(x) for x in lists],
        adapted,
        fresh,
        float(ema_momentum),
        float(lr),
        _gradient_factor(factor, maximize),
        momentum,
        dampening,
        weight_decay,
        trust_coefficient,
        eps,
        nesterov,
        trust_clip,
        joint,
        torch.get_num_threads(),
    )
    for original, copy in zip(written, (lists[0], *lists[2:]), strict=True):
        write_back(layout, original, copy)
