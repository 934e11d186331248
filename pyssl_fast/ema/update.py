"""One update of lists of tensors, and other packages' names for it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pyssl_fast.functional.checks import check_within
from pyssl_fast.functional.lists import Group, grouped, placement
from pyssl_fast.kernels.flat import Signature, gathered
from pyssl_fast.ops import multi_tensor


@torch.no_grad()
def ema_update_(
    teacher: Iterable[Tensor],
    student: Iterable[Tensor],
    momentum: float | Tensor,
    *,
    shadow: Iterable[Tensor] | None = None,
) -> None:
    """teacher ← momentum·teacher + (1 − momentum)·student, in one pass over all tensors (Tarvainen and Valpola 2017).

    Computed as t + (1 − m)·(s − t), within one rounding of float64 arithmetic: where both are equal the teacher stays
    as it is, bit for bit, and m = 0 copies. Of float32 it reads 8 bytes an element and writes 4.

    Args:
        teacher: tensors of any shapes, floating point or complex, changed in place. A float32 teacher may follow a
            bfloat16 or float16 student. One of 16 bits soon stops moving, since a step below half a unit in its last
            place rounds to none; a warning says so.
        student: as many tensors of the same shapes, each on its teacher's device. DTensors come in pairs of the same
            placement, and every rank updates its own shards.
        momentum: m, 0 to 1. A Tensor with one element, on the CPU or on the device, is not waited for, so that a CUDA
            graph or a compiled step may hold it; its range is checked on the CPU alone.
        shadow: float32, float16 or bfloat16 tensors that receive the teacher's new values, rounded, in the same pass.

    Raises:
        TypeError: something that is no dense floating-point Tensor.
        ValueError: lists of different length, shapes, devices or placements; a momentum outside of 0 to 1, or NaN; one
            teacher of two students.
        RuntimeError: a backend was asked for that cannot run on these tensors.
    """
    m = checked_momentum(momentum)
    teachers, students = gathered(teacher), gathered(student)
    shadows = [] if shadow is None else gathered(shadow)
    for name, of in (("student", students), ("shadow", shadows)):
        if len(of) != len(teachers) and (of or name == "student"):
            raise ValueError(f"{name} must have as many tensors as teacher, {len(teachers)}; got {len(of)}")
    if len({*map(id, teachers)}) < len(teachers):
        teachers, students, shadows = _distinct(teachers, students, shadows)
    check_placements(teachers, students)
    for group in grouped({"teacher": teachers, "student": students, "shadow": shadows}):
        if group.lists[0]:
            run(group, m)


def run(group: Group, momentum: float | Tensor) -> None:
    """One step of teacher, student and shadow, checked before. momentum: []."""
    teacher, student, shadow = group.lists
    averaged = len(teacher) - group.copied
    multi_tensor.ema_(
        teacher, student, shadow[:averaged] if group.copied else shadow, averaged, momentum, group.backend
    )
    if not torch.compiler.is_compiling():
        _warn_of_standstill(teacher.signature, averaged)


def checked_momentum(momentum: float | Tensor) -> float | Tensor:
    check_within("momentum", momentum, 0, 1)
    return detached(momentum)


def detached(value: float | Tensor) -> float | Tensor:
    """A number, or a Tensor [] that is not waited for."""
    return value.detach().reshape(()) if isinstance(value, Tensor) else value


def _distinct(teacher: list[Tensor], student: list[Tensor], shadow: list[Tensor]) -> tuple[list[Tensor], ...]:
    """Each teacher once: tied parameters come more often, with the same student."""
    found: dict[int, int] = {}
    for i, t in enumerate(teacher):
        first = found.setdefault(id(t), i)
        if student[i] is not student[first]:
            raise ValueError(f"teacher[{i}] is teacher[{first}] too, but student[{i}] is not student[{first}]")
    keep = sorted(found.values())
    return tuple([x[i] for i in keep if x] for x in (teacher, student, shadow))


def check_placements(teacher: list[Tensor], student: list[Tensor]) -> None:
    if any(hasattr(of, "to_local") for of in {*map(type, teacher), *map(type, student)}):
        for i, (t, s) in enumerate(zip(teacher, student, strict=False)):
            if placement(t) != placement(s):
                raise ValueError(f"student[{i}] must be placed as teacher[{i}], {placement(t)}; got {placement(s)}")


@functools.lru_cache(maxsize=256)
def _warn_of_standstill(teacher: Signature, averaged: int) -> None:
    for dtype in {*teacher.dtypes[:averaged]} & {torch.float16, torch.bfloat16}:
        warnings.warn(
            f"a {str(dtype).removeprefix('torch.')} teacher soon stops moving: steps below half a unit in its last"
            " place round to none. Keep a float32 teacher, as ModelEMA does, and take a rounded copy as its shadow",
            stacklevel=4,
        )


# ---- the names of other packages -------------------------------------------------------------------------------------


def get_ema_multi_avg_fn(decay: float = 0.999) -> Callable[[Any, Any, Any], None]:
    """For `torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=…)`: takes the place of torch's function."""
    check_within("decay", decay, 0, 1)

    @torch.no_grad()
    def average(averaged: Iterable[Tensor], current: Iterable[Tensor], _: Tensor | int) -> None:
        pairs = list(zip(averaged, current, strict=True))
        floats = [(a, c) for a, c in pairs if a.is_floating_point() or a.is_complex()]
        ema_update_([a for a, _ in floats], [c for _, c in floats], decay)
        for a, c in pairs:  # integer buffers, rounded as torch does
            if not (a.is_floating_point() or a.is_complex()):
                a.copy_(a * decay + c * (1 - decay))

    return average


def update_momentum(model: nn.Module, model_ema: nn.Module, m: float) -> None:
    """model_ema's parameters follow model's; buffers stay. Takes the place of lightly's function."""
    ema_update_(model_ema.parameters(), model.parameters(), m)


def deactivate_requires_grad(model: nn.Module) -> None:
    """No parameter of model gets a gradient. Takes the place of lightly's function."""
    model.requires_grad_(False)


def activate_requires_grad(model: nn.Module) -> None:
    """Every parameter of model gets a gradient. Takes the place of lightly's function."""
    model.requires_grad_(True)
