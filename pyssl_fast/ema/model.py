"""A model's teacher: a copy of it that follows it slowly."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from pyssl_fast.ema.update import check_placements, checked_momentum, run
from pyssl_fast.functional.checks import check_choice
from pyssl_fast.functional.lists import Group, grouped
from pyssl_fast.kernels.flat import Members

BUFFERS = ("copy", "average", "leave")
FROZEN = ("average", "share", "skip")
HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Pairs:
    """The tensors of a teacher beside those of its student: first the averaged ones, then those that are copied.

    Attributes:
        shadow: of the averaged ones, or none.
        copied: how many there are at the end, of any dtype.
        converted: what becomes a copy in another dtype, and of what.
    """

    teacher: list[Tensor]
    student: list[Tensor]
    shadow: list[Tensor]
    copied: int
    converted: tuple[list[Tensor], list[Tensor]]

    _groups: list[Group] = field(default_factory=list, repr=False)

    @property
    def averaged(self) -> int:
        return len(self.teacher) - self.copied

    def groups(self) -> list[Group]:
        """In groups that one call takes; the same ones again as long as no tensor has got other memory."""
        if (
            torch.compiler.is_compiling()
            or not self._groups
            or not all([of.refresh() for group in self._groups for of in group.lists])
        ):
            shadow = [*self.shadow, *self.teacher[len(self.shadow) :]] if self.shadow else []  # one for every teacher
            lists = {"teacher": self.teacher, "student": self.student, "shadow": shadow}
            groups = grouped(lists, self.copied)
            if torch.compiler.is_compiling():
                return groups
            # A shard or a real view of a complex tensor is made anew each time.
            own = {id(x) for tensors in lists.values() for x in tensors}
            lasting = all(id(x) in own for group in groups for of in group.lists for x in of)
            self._groups[:] = groups if lasting else []
            return groups
        return self._groups

    def only(self, keep: Iterable[int]) -> Pairs:
        """Those of some of the averaged ones, in order, and all that is copied."""
        keep = [*keep, *range(self.averaged, len(self.teacher))]
        teacher, student = ([of[i] for i in keep] for of in (self.teacher, self.student))
        shadow = [self.shadow[i] for i in keep if i < len(self.shadow)]
        return replace(self, teacher=teacher, student=student, shadow=shadow, _groups=[])


def _members(*modules: nn.Module) -> Members:
    """What modules and all inside them hold."""
    inside = [m for module in modules for m in module.modules()]
    return Members(d for m in inside for d in (m._parameters, m._buffers, m._modules))


class ModelEMA(nn.Module):
    """A teacher whose parameters θ' follow a model's: θ' ← m·θ' + (1 − m)·θ, in one pass over all of them.

        ema = ModelEMA(model, momentum=0.996)
        ...
        optimizer.step()
        ema.update(model)
        targets = ema(images)

    The model may be wrapped in DistributedDataParallel or by torch.compile; parameters are matched by name. Tied ones
    are averaged once. `optim.AdamW` and `optim.LARS` take it as their `ema`, and update it in the pass over the model.

    Args:
        model: what is followed. Its copy is `module`. An optimizer goes by the model that was followed last.
        momentum: m, 0 to 1: a number, or a Tensor with one element that is never waited for. `ema.momentum` may be set
            to another one at any time, to `cosine_momentum(step, …)` for one.
        buffers: "copy" the model's (running statistics of batch norms), "average" those of floating point and copy the
            others, or "leave" the teacher its own, as BYOL does.
        frozen: what becomes of parameters that need no gradient as the teacher is made: "average" them like all others,
            since they may be set free later; "share" the model's own tensors, which takes no memory; or "skip" them
            wherever they need no gradient at an update.
        dtype: of the teacher's parameters and buffers where the model's have 16 bits; None keeps them, and such a
            teacher soon stops moving.
        shadow: float16 or bfloat16: a second copy of the teacher in that dtype, `shadow`, is written in the same pass,
            and is what `forward` runs.
        module: the copy to use, instead of one that is made here (FSDP2 models cannot be copied). The same names and
            shapes, and the same placement of DTensors.

    Raises:
        TypeError, ValueError: an argument of wrong type or range; a `module` that does not fit.
    """

    module: nn.Module
    shadow: nn.Module | None
    _student: weakref.ref[nn.Module] | None  # that was followed last
    _known: weakref.WeakKeyDictionary[nn.Module, tuple[Members, Pairs]]  # the last student's

    def __init__(
        self,
        model: nn.Module,
        momentum: float | Tensor = 0.996,
        *,
        buffers: str = "copy",
        frozen: str = "average",
        dtype: torch.dtype | None = torch.float32,
        shadow: torch.dtype | None = None,
        module: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_choice("buffers", buffers, BUFFERS)
        check_choice("frozen", frozen, FROZEN)
        if dtype not in (None, torch.float32):
            raise ValueError(f"dtype must be torch.float32 or None; got {dtype}")
        if shadow not in (None, *HALVES):
            raise ValueError(f"shadow must be torch.float16, torch.bfloat16 or None; got {shadow}")
        self.momentum = momentum
        self.buffers_policy, self.frozen = buffers, frozen
        student = unwrapped(model)
        if module is None:
            shared = {id(p): p for p in student.parameters() if frozen == "share" and not p.requires_grad}
            module = copy.deepcopy(student, dict(shared))
            for x in chain(module.parameters(), module.buffers()):
                if dtype is not None and x.dtype in HALVES and id(x) not in shared:
                    x.data = x.data.to(dtype)
        self.module = module.requires_grad_(False)
        self.shadow = None
        if shadow is not None:
            self.shadow = copy.deepcopy(module)
            for x in chain(self.shadow.parameters(), self.shadow.buffers()):
                if x.is_floating_point():
                    x.data = x.data.to(shadow)
        self._forget()
        self._student = weakref.ref(student)
        self.pairs()
        self.register_state_dict_post_hook(_leave_out_shadow)
        self.register_load_state_dict_pre_hook(_fill_in_shadow)

    @property
    def momentum(self) -> float | Tensor:
        return self._momentum

    @momentum.setter
    def momentum(self, value: float | Tensor) -> None:
        checked_momentum(value)
        self._momentum = value

    def forward(self, *arguments: Any, **settings: Any) -> Any:
        """What the teacher says; its shadow, if there is one."""
        return (self.module if self.shadow is None else self.shadow)(*arguments, **settings)

    @torch.no_grad()
    def update(self, model: nn.Module, momentum: float | Tensor | None = None) -> None:
        """Follow the model by one step.

        Args:
            momentum: for this step alone.

        Raises:
            ValueError: the model's parameters or buffers have been added, dropped, renamed or have changed their shape
                since the teacher was made; all of them are named.
        """
        self.follow(self.pairs(model), momentum)

    update_parameters = update  # the name in torch.optim.swa_utils

    @torch.no_grad()
    def set(self, model: nn.Module) -> None:
        """Become a copy of the model, buffers included unless they are left."""
        self.update(model, 0.0)

    def follow(self, pairs: Pairs, momentum: float | Tensor | None = None) -> None:
        """One step of these tensors: for optimizers, which have done the others."""
        m = checked_momentum(self._momentum if momentum is None else momentum)
        for group in pairs.groups():
            if group.lists[0]:
                run(group, m)
        if pairs.converted[0]:
            torch._foreach_copy_(*pairs.converted)

    def pairs(self, model: nn.Module | None = None) -> Pairs:
        """Teacher and student, tensor by tensor. model: None: the one that the teacher was made of."""
        if model is None:
            model = None if self._student is None else self._student()
            if model is None:
                raise ValueError("the model that the teacher was made of is no more: give the one to follow")
        student = unwrapped(model)
        if torch.compiler.is_compiling():
            return self._match(student)
        self._student = weakref.ref(student)
        known = self._known.get(student)
        if known is None or not known[0].unchanged():
            known = _members(student, self), self._match(student)
            self._known.clear()
            self._known[student] = known
        pairs = known[1]
        if self.frozen == "skip":
            frozen = {id(p) for p in student.parameters() if not p.requires_grad}
            pairs = pairs.only(i for i in range(pairs.averaged) if id(pairs.student[i]) not in frozen)
        return pairs

    def _match(self, student: nn.Module) -> Pairs:
        """By names."""
        averaged: list[tuple[str, Tensor, Tensor]] = []
        copied: list[tuple[str, Tensor, Tensor]] = []
        for name, t, s in _by_name("parameters", self.module.named_parameters(), student.named_parameters()):
            (copied if t is s else averaged).append((name, t, s))
        if self.buffers_policy != "leave":
            for name, t, s in _by_name("buffers", self.module.named_buffers(), student.named_buffers()):
                average = self.buffers_policy == "average" and t.is_floating_point()
                (averaged if average else copied).append((name, t, s))
        shadows: dict[str, Tensor] = {}
        if self.shadow is not None:
            shadows = dict(chain(self.shadow.named_parameters(), self.shadow.named_buffers()))
        targets = [(t, s) for _, t, s in copied if t is not s]
        targets += [(shadows[name], s) for name, _, s in copied if shadows]
        if self.buffers_policy == "leave" and shadows:  # the shadow is what runs, and gathers statistics
            targets += [(t, shadows[name]) for name, t in self.module.named_buffers()]
        converted = [(t, s) for t, s in targets if t.dtype != s.dtype]
        alike = [(t, s) for t, s in targets if t.dtype == s.dtype]
        return Pairs(
            [t for _, t, _ in averaged] + [t for t, _ in alike],
            [s for _, _, s in averaged] + [s for _, s in alike],
            [shadows[name] for name, _, _ in averaged if shadows],
            len(alike),
            ([t for t, _ in converted], [s for _, s in converted]),
        )

    def _forget(self) -> None:
        self._student = None
        self._known = weakref.WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_student", "_known")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _by_name(
    what: str, teacher: Iterable[tuple[str, Tensor]], student: Iterable[tuple[str, Tensor]]
) -> list[tuple[str, Tensor, Tensor]]:
    """Pairs of equal names, which must be all, and of equal shapes."""
    theirs, mine = dict(teacher), dict(student)
    wrong = {
        "added": [name for name in mine if name not in theirs],
        "dropped": [name for name in theirs if name not in mine],
        "of another shape": [
            f"{name} ({list(theirs[name].shape)}, now {list(x.shape)})"
            for name, x in mine.items()
            if name in theirs and theirs[name].shape != x.shape
        ],
    }
    if any(wrong.values()):
        found = "; ".join(f"{how}: {', '.join(names)}" for how, names in wrong.items() if names)
        raise ValueError(f"the model's {what} are not those that the teacher was made with. {found}")
    check_placements(list(theirs.values()), [mine[name] for name in theirs])
    return [(name, t, mine[name]) for name, t in theirs.items()]


def _leave_out_shadow(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """A shadow is the teacher, rounded: it need not be saved."""
    for name in [name for name in state if name.startswith(f"{prefix}shadow.")]:
        del state[name]


def _fill_in_shadow(module: ModelEMA, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if module.shadow is None:
        return
    for name, x in module.shadow.state_dict().items():
        source = state.get(f"{prefix}module.{name}")
        if isinstance(source, Tensor):
            state[f"{prefix}shadow.{name}"] = source.detach().to(x.dtype, copy=True)
