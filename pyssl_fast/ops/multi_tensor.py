"""Multi-tensor family: operators on lists of tensors, which they change in place.

The functions beside them, of the same names and arguments, are how the rest of the package calls them: outside of
traced code straight to the kernel. The dispatcher takes 150 to 250 µs for the lists of a ResNet-50, as long as the pass
over it takes on a large GPU. Meanings stand in kernels/reference/multi_tensor.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyssl_fast.backend import kernels
from pyssl_fast.ops.registry import define


def _kernel(name: str) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        return _run(name, arguments)

    run.__module__ = __name__
    return run


def _run(name: str, arguments: Sequence[Any]) -> Any:
    *rest, backend = arguments
    return getattr(kernels(backend, "multi_tensor"), name)(*rest)


# Which arguments are scalars that the operators take as Tensors alone. Kernels take numbers too: to make one a Tensor
# takes 90 µs out of the cache.
_SCALARS = {"ema_": (4,), "square_sum": (), "adamw_": (8, 9), "lars_": (7, 8)}


def _call(name: str, written: Sequence[Sequence[Tensor]], arguments: Sequence[Any]) -> Any:
    """The operator where a compiler looks at the calls, else the kernel itself: `grouped` lets no others by."""
    if torch.compiler.is_compiling():
        tensors = [
            torch.tensor(x, dtype=torch.float64) if i in _SCALARS[name] and not isinstance(x, Tensor) else x
            for i, x in enumerate(arguments)
        ]
        return getattr(torch.ops.pyssl_fast, name)(*tensors)
    for of in written:
        # So that backward notices, as after any operation in place. Before the kernel throws it all out of the cache:
        # 15 µs instead of 180 for the 320 tensors of a ResNet-50.
        torch.autograd.graph.increment_version(of)
    return _run(name, arguments)


def _nothing(*_: Any) -> None:
    return None


define(
    "ema_(Tensor(a!)[] teacher, Tensor[] student, Tensor(b!)[] shadow, int averaged, Tensor momentum, str backend)"
    " -> ()",
    kernel=_kernel("ema_"),
    fake=_nothing,
    mutates=True,
)


def ema_(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    shadow: Sequence[Tensor],
    averaged: int,
    momentum: float | Tensor,
    backend: str,
) -> None:
    _call("ema_", (teacher, shadow), (teacher, student, shadow, averaged, momentum, backend))


define(
    "square_sum(Tensor[] tensors, str backend) -> Tensor",
    kernel=_kernel("square_sum"),
    fake=lambda tensors, backend: tensors[0].new_empty((), dtype=torch.float64),
)


def square_sum(tensors: Sequence[Tensor], backend: str) -> Tensor:
    total: Tensor = _call("square_sum", (), (tensors, backend))
    return total


define(
    "adamw_(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] exp_avg, Tensor(c!)[] exp_avg_sq,"
    " Tensor(d!)[] max_exp_avg_sq, Tensor(e!)[] steps, Tensor(f!)[] teacher, Tensor(g!)[] shadow, Tensor lr,"
    " Tensor ema_momentum, Tensor? factor, Tensor? found_inf, float beta1, float beta2, float eps, float weight_decay,"
    " bool maximize, str backend) -> ()",
    kernel=_kernel("adamw_"),
    fake=_nothing,
    mutates=True,
)


def adamw_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    max_exp_avg_sq: Sequence[Tensor],
    steps: Sequence[Tensor],
    teacher: Sequence[Tensor],
    shadow: Sequence[Tensor],
    *rest: Any,
) -> None:
    written = (parameters, exp_avg, exp_avg_sq, max_exp_avg_sq, steps, teacher, shadow)
    _call("adamw_", written, (parameters, gradients, *written[1:], *rest))


define(
    "lars_(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] momentum_buffers, Tensor(c!)[] teacher,"
    " Tensor(d!)[] shadow, bool[] adapted, bool[] fresh, Tensor lr, Tensor ema_momentum, Tensor? factor,"
    " Tensor? found_inf, float momentum, float dampening, float weight_decay, bool nesterov, bool maximize,"
    " float trust_coefficient, float eps, bool trust_clip, bool joint, str backend) -> ()",
    kernel=_kernel("lars_"),
    fake=_nothing,
    mutates=True,
)


def lars_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    teacher: Sequence[Tensor],
    shadow: Sequence[Tensor],
    *rest: Any,
) -> None:
    written = (parameters, momentum_buffers, teacher, shadow)
    _call("lars_", written, (parameters, gradients, *written[1:], *rest))
