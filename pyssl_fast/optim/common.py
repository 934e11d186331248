"""What the optimizers share: a step's gradients, clipping, GradScaler, and the teacher that goes along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pyssl_fast.ema import ModelEMA
from pyssl_fast.ema.model import Pairs
from pyssl_fast.ema.update import momentum_tensor
from pyssl_fast.functional.lists import grouped
from pyssl_fast.ops import multi_tensor


def check_extras(ema: ModelEMA | None, max_grad_norm: float | None) -> None:
    if ema is not None and not isinstance(ema, ModelEMA):
        raise TypeError(f"ema must be a ModelEMA; got {type(ema).__name__}")
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm must be above 0, infinity to measure alone; got {max_grad_norm}")


def scalar(value: float | Tensor) -> Tensor:
    """[]: a number as it is, a Tensor without waiting for it."""
    return value.detach().reshape(()) if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


class Teacher:
    """The teacher in a step: who of the parameters has one, and what is left to follow afterwards."""

    def __init__(self, ema: ModelEMA | None) -> None:
        self.ema = ema
        self.momentum = momentum_tensor(1.0 if ema is None else ema.momentum)
        self._pairs: Pairs | None = None if ema is None else ema.pairs()
        students = [] if self._pairs is None else self._pairs.student[: self._pairs.averaged]
        self._index = {id(s): i for i, s in enumerate(students)}
        self._done: set[int] = set()

    def split(self, parameters: Sequence[Tensor]) -> list[tuple[list[int], list[Tensor], list[Tensor]]]:
        """Indices of the parameters with a teacher, their teachers and shadows; and those of the others."""
        if self._pairs is None:
            return [([*range(len(parameters))], [], [])]
        known = [(i, self._index[id(p)]) for i, p in enumerate(parameters) if id(p) in self._index]
        own = {i for i, _ in known}
        self._done.update(at for _, at in known)
        teacher, shadow = ([of[at] for _, at in known if of] for of in (self._pairs.teacher, self._pairs.shadow))
        rest = [i for i in range(len(parameters)) if i not in own]
        return [([i for i, _ in known], teacher, shadow), (rest, [], [])]

    def finish(self) -> None:
        """The parameters that had no gradient, and the buffers."""
        if self.ema is not None and self._pairs is not None:
            self.ema.follow(self._pairs.only(i for i in range(self._pairs.averaged) if i not in self._done))


class Stepping(Optimizer):
    """A step, with what ours have beside torch's: the teacher and the clipping, which copies and pickles keep."""

    ema: ModelEMA | None
    max_grad_norm: float | None
    grad_norm: Tensor

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "ema": self.ema, "max_grad_norm": self.max_grad_norm}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. closure: reevaluates the model and gives the loss, which comes back.

        Raises:
            TypeError: a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with_gradient = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        gradients = [p.grad for parameters in with_gradient for p in parameters]
        factor = gradient_factor(self, gradients, self.max_grad_norm) if gradients else None
        teacher = Teacher(self.ema)
        for group, parameters in zip(self.param_groups, with_gradient, strict=True):
            for indices, teachers, shadows in teacher.split(parameters):
                if indices:
                    self._step_of(group, [parameters[i] for i in indices], teachers, shadows, teacher.momentum, factor)
        teacher.finish()
        return loss

    def _step_of(
        self,
        group: dict[str, Any],
        parameters: list[Tensor],
        teachers: list[Tensor],
        shadows: list[Tensor],
        ema_momentum: Tensor,
        factor: Tensor | None,
    ) -> None:
        """Of parameters with gradients, of one group, all of which have a teacher or none has."""
        raise NotImplementedError


def gradient_factor(optimizer: Stepping, gradients: list[Tensor], max_norm: float | None) -> Tensor | None:
    """What the gradients are multiplied by: 1 / the scale of a GradScaler, and what clips their norm; None: 1.

    Leaves the norm, of gradients without the scale, in `optimizer.grad_norm`. Nothing is waited for.
    """
    scale = getattr(optimizer, "grad_scale", None)
    factor = None if scale is None else 1 / scale.detach().double().reshape(())
    if max_norm is None:
        return factor
    norm = total_norm(gradients)
    if factor is not None:
        norm = norm * factor.to(norm.device)
    optimizer.grad_norm = norm
    clip = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
    return clip if factor is None else clip * factor.to(clip.device)


def total_norm(gradients: list[Tensor]) -> Tensor:
    """[] float64: the norm of all gradients together, in one pass over them. Of DTensors over all ranks."""
    if any(hasattr(g, "to_local") for g in gradients):
        total = torch.nn.utils.get_total_norm(gradients)
        return (total.full_tensor() if hasattr(total, "full_tensor") else total).double()
    squares = [multi_tensor.square_sum(group.lists[0], group.backend) for group in grouped({"gradients": gradients})]
    return torch.stack([x.to(squares[0].device) for x in squares]).sum().sqrt()


def exclude_bias_and_norm(model: nn.Module, weight_decay: float, **settings: Any) -> list[dict[str, Any]]:
    """Two parameter groups: matrices and convolutions with the weight decay, vectors (biases, norms) without.

    Args:
        settings: further ones of both groups.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay, **settings},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0, **settings},
    ]
