"""Multi-tensor family in plain PyTorch: one pass over lists of tensors, changed in place. The truth in tests.

Entries i of all lists have one shape. What is read and what is written may differ in dtype: the arithmetic is
float32's, or float64's where a tensor is. Lists that may be empty: shadow, momentum_buffers, max_exp_avg_sq, teacher.
Scalars are numbers, or [] tensors, on the CPU or on the lists' device, that are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def _work(*tensors: Tensor) -> Sequence[Tensor]:
    """The tensors in one dtype: float64 if one of them is, else float32."""
    double = any(x.dtype == torch.float64 for x in tensors)
    return [x.to(torch.float64 if double else torch.float32) for x in tensors]


def _scalar(x: float | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64, device=like.device)


def _follow(teacher: Tensor, student: Tensor, momentum: float | Tensor) -> Tensor:
    """t + (1 − m)·(s − t), which leaves t as it is where s = t, and gives s for m = 0."""
    t, s = _work(teacher, student)
    return torch.lerp(t, s, (1 - _scalar(momentum, t)).to(t.dtype))


def ema_(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    shadow: Sequence[Tensor],
    averaged: int,
    momentum: float | Tensor,
) -> None:
    """The first `averaged` teachers follow their students, the others become copies. shadow: their new values, rounded.

    Args:
        teacher, student: floating point where averaged; of any dtype, the same, where copied.
        shadow: `averaged` tensors, or none.
        momentum: m.
    """
    for t, s in zip(teacher[:averaged], student[:averaged], strict=True):
        t.copy_(_follow(t, s, momentum))
    for t, s in zip(teacher[averaged:], student[averaged:], strict=True):
        t.copy_(s)
    for x, t in zip(shadow, teacher[:averaged] if shadow else [], strict=True):
        x.copy_(t)


def square_sum(tensors: Sequence[Tensor]) -> Tensor:
    """[] float64: the sum of all squares."""
    return torch.stack([x.double().square().sum() for x in tensors]).sum()


def _gradient(gradient: Tensor, like: Tensor, factor: Tensor | None, maximize: bool) -> tuple[Tensor, Tensor]:
    p, g = _work(like, gradient)
    if factor is not None:
        g = g * factor.to(g.device, g.dtype)
    return p, -g if maximize else g


def _writer(found_inf: Tensor | None) -> Callable[[Tensor, Tensor], None]:
    """x ← new, unless infinities were found."""

    def write(x: Tensor, new: Tensor) -> None:
        x.copy_(new if found_inf is None else torch.where(found_inf.to(x.device) != 0, x, new.to(x.dtype)))

    return write


def _teach(
    parameter: Tensor,
    index: int,
    teacher: Sequence[Tensor],
    shadow: Sequence[Tensor],
    momentum: float | Tensor,
    write: Callable[[Tensor, Tensor], None],
) -> None:
    if teacher:
        write(teacher[index], _follow(teacher[index], parameter, momentum))
    if shadow:
        write(shadow[index], teacher[index])


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
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) as torch.optim has it; then the teachers follow the parameters.

    Args:
        max_exp_avg_sq: of AMSGrad; none without.
        steps: [] float32 each: how many came before.
        factor: of the gradients, None: 1.
        found_inf: not 0: nothing changes.
    """
    write = _writer(found_inf)
    for i, (parameter, step) in enumerate(zip(parameters, steps, strict=True)):
        p, g = _gradient(gradients[i], parameter, factor, maximize)
        rate, count = _scalar(lr, p), step.double() + 1
        p = p * (1 - rate * weight_decay).to(p.dtype)
        m = torch.lerp(exp_avg[i].to(p.dtype), g, 1 - beta1)
        v = beta2 * exp_avg_sq[i].to(p.dtype) + (1 - beta2) * g * g
        largest = v
        if max_exp_avg_sq:
            largest = torch.maximum(max_exp_avg_sq[i].to(p.dtype), v)
            write(max_exp_avg_sq[i], largest)
        size = (rate / (1 - beta1**count)).to(p.dtype)
        root = (1 - beta2**count).sqrt().to(p.dtype)
        write(exp_avg[i], m)
        write(exp_avg_sq[i], v)
        write(parameter, p - size * m / (largest.sqrt() / root + eps))
        write(step, count)
        _teach(parameter, i, teacher, shadow, ema_momentum, write)


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
    """LARS (You et al. 2017, equation 6 and algorithm 1): SGD whose rate is scaled layer by layer; then the teachers.

    Args:
        momentum_buffers: none where momentum is 0.
        adapted: of each parameter, whether weight decay and trust apply; else plain SGD.
        fresh: of each parameter, whether its buffer holds nothing yet.
        factor: of the gradients, None: 1.
        found_inf: not 0: nothing changes.
        trust_clip: the scaled rate is at most lr.
        joint: the norm of gradient and decay together, ‖g + β·p‖, instead of ‖g‖ + β·‖p‖.
    """
    write = _writer(found_inf)
    for i, parameter in enumerate(parameters):
        p, u = _gradient(gradients[i], parameter, factor, maximize)
        rate = _scalar(lr, p)
        if adapted[i]:
            decayed = u + weight_decay * p
            norm, gradient = p.double().norm(), u.double().norm()
            below = decayed.double().norm() if joint else gradient + weight_decay * norm
            none = (norm == 0) | ((below if joint else gradient) == 0)
            trust = torch.where(none, 1, trust_coefficient * norm / (below + eps))
            if trust_clip:
                trust = (trust / rate).clamp(max=1)
            u = trust.to(p.dtype) * decayed
        if momentum_buffers:
            b = u if fresh[i] else momentum * momentum_buffers[i].to(p.dtype) + (1 - dampening) * u
            write(momentum_buffers[i], b)
            u = u + momentum * b if nesterov else b
        write(parameter, p - rate.to(p.dtype) * u)
        _teach(parameter, i, teacher, shadow, ema_momentum, write)
