"""The checks of lists of tensors, made once for every layout that comes: entries i of all lists belong together."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyssl_fast import backend
from pyssl_fast.kernels.flat import PLAIN, Signature, TensorList, gathered


class Group(NamedTuple):
    """Lists that one call takes.

    Attributes:
        lists: as they came, without the entries of other groups.
        copied: how many at the end are of any dtype.
        entries: which of those that came.
    """

    lists: tuple[TensorList, ...]
    copied: int
    entries: Sequence[int]

    @property
    def backend(self) -> str:
        """Where the group runs."""
        if torch.compiler.is_compiling():
            of, i = _leading([[x.dtype for x in of] for of in self.lists])
        else:
            of, i = _leading_of(tuple(of.signature for of in self.lists))
        leading = self.lists[of][i]
        return backend.choose("multi_tensor", leading if leading.is_floating_point() else leading.new_empty(0).float())


def _leading(lists: Sequence[Sequence[torch.dtype]]) -> tuple[int, int]:
    """List and entry that decide where a group runs: of float64, which the kernels leave to the twin, if any is."""
    for number, of in enumerate(lists):
        for i, dtype in enumerate(of):
            if dtype == torch.float64:
                return number, i
    for i, dtype in enumerate(lists[0]):
        if dtype.is_floating_point:
            return 0, i
    return 0, 0


@functools.lru_cache(maxsize=256)
def _leading_of(lists: tuple[Signature, ...]) -> tuple[int, int]:
    return _leading([of.dtypes for of in lists])


def grouped(lists: Mapping[str, Iterable[Tensor]], copied: int = 0) -> list[Group]:
    """The lists, checked and in groups that one call takes: of one device, float64 apart.

    Complex tensors come as pairs of real ones, DTensors as their local shards.

    Args:
        lists: by name; the first sets the shapes and the devices, and the others have as many tensors, or none. Those
            that `lasting` made are looked at again, and not checked.
        copied: so many at the end of each list may be of any dtype, the same in all lists.

    Raises:
        TypeError: something that is no dense floating-point Tensor.
        ValueError: different lengths, shapes, devices or placements.
    """
    names = tuple(lists)
    if torch.compiler.is_compiling():  # nothing is remembered where everything is traced
        traced = [[_real(local(x)) for x in tensors] for tensors in lists.values()]
        entries = [([x.dtype for x in of], [x.shape for x in of], [x.device for x in of]) for of in traced]
        return [
            Group(tuple([of[i] for i in group if of] for of in traced), at_end, group)  # type: ignore[misc]
            for group, at_end in _groups(names, entries, copied)
        ]
    found = [_plain(name, tensors) for name, tensors in lists.items()]
    groups = _groups_of(names, tuple(tensors.signature for tensors in found), copied)
    if len(groups) == 1:
        return [Group(tuple(found), copied, groups[0][0])]
    return [
        Group(tuple(TensorList(tensors[i] for i in group if tensors) for tensors in found), at_end, group)
        for group, at_end in groups
    ]


def lasting(name: str, tensors: list[Tensor]) -> list[Tensor]:
    """The tensors, checked, as a list to be used again and again.

    They come back as they are where what is used is made anew each time, as shards are and real views of complex ones.
    """
    found = _plain(name, tensors)
    return found if all(map(operator.is_, found, tensors)) else tensors


def _plain(name: str, given: Iterable[Tensor]) -> TensorList:
    if isinstance(given, TensorList) and given.refresh():
        return given
    tensors = gathered(given)
    if not {*map(type, tensors)}.issubset(PLAIN):
        for i, x in enumerate(tensors):
            if not isinstance(x, Tensor):
                raise TypeError(f"{name}[{i}] must be a Tensor; got {type(x).__name__}")
        tensors = [local(x) for x in tensors]
        for i, x in enumerate(tensors):
            if type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__:
                raise TypeError(f"{name}[{i}] must be a Tensor with memory of its own; got {type(x).__name__}")
    found = TensorList(tensors)
    try:
        signature = found.signature
    except RuntimeError:
        for i, x in enumerate(tensors):
            if x.layout != torch.strided:
                raise TypeError(f"{name}[{i}] must be a dense Tensor; got layout {x.layout}") from None
        raise
    if 0 in found.addresses:
        for i, x in enumerate(tensors):
            if x.numel() and x.device.type != "meta" and not x.data_ptr():
                raise ValueError(
                    f"{name}[{i}] has no memory: {list(x.shape)} of a storage that was freed or never filled"
                )
    if _any_complex(signature):
        return TensorList(map(_real, tensors))
    return found


@functools.lru_cache(maxsize=256)
def _any_complex(of: Signature) -> bool:
    return any(dtype.is_complex for dtype in of.dtypes)


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def local(x: Tensor) -> Tensor:
    """The shard of a DTensor that this rank has; any other tensor as it is."""
    if hasattr(x, "to_local"):
        x = x.to_local()
    wait = getattr(x, "wait", None)  # of a gather that is under way
    return x if wait is None else wait()


def placement(x: Any) -> object:
    """How a DTensor lies on its mesh; None of any other tensor."""
    return (x.device_mesh, x.placements) if hasattr(x, "to_local") else None


_Entries = tuple[Sequence[torch.dtype], Sequence[torch.Size], Sequence[torch.device]]  # of one list


def _groups(names: Sequence[str], lists: Sequence[_Entries], copied: int) -> list[tuple[list[int], int]]:
    """The indices of each group, and how many are copied. Raises what `grouped` does."""
    first, (like_dtypes, like_shapes, like_devices) = names[0], lists[0]
    length = len(like_shapes)
    for name, (dtypes, shapes, devices) in zip(names, lists, strict=True):
        if len(shapes) not in (length, 0):
            raise ValueError(f"{name} must have as many tensors as {first}, {length}; got {len(shapes)}")
        for i, dtype in enumerate(dtypes):
            what = f"{name}[{i}]"
            if shapes[i] != like_shapes[i]:
                shape = list(like_shapes[i])
                raise ValueError(f"{what} must have {first}[{i}]'s shape {shape}; got {list(shapes[i])}")
            if devices[i] != like_devices[i]:
                raise ValueError(f"{what} must be on {first}[{i}]'s device {like_devices[i]}; got {devices[i]}")
            if i >= length - copied:
                if dtype != like_dtypes[i]:
                    raise TypeError(f"{what} must have {first}[{i}]'s dtype {like_dtypes[i]}; got {dtype}")
            elif not dtype.is_floating_point or dtype.itemsize < 2:
                raise TypeError(f"{what} must be float32, float16, bfloat16 or float64; got {dtype}")
    groups: dict[tuple[torch.device, bool], list[int]] = {}
    for i in range(length):
        double = any([bool(dtypes) and dtypes[i] == torch.float64 for dtypes, _, _ in lists])
        groups.setdefault((like_devices[i], double), []).append(i)
    return [(of, len([i for i in of if i >= length - copied])) for of in groups.values()]


@functools.lru_cache(maxsize=256)
def _groups_of(names: tuple[str, ...], lists: tuple[Signature, ...], copied: int) -> list[tuple[list[int], int]]:
    return _groups(names, [(of.dtypes, of.shapes, of.devices) for of in lists], copied)
