"""The checks of lists of tensors, made once for every layout that comes: entries i of all lists belong together."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyssl_fast import backend
from pyssl_fast.kernels.flat import Signature, TensorList

_PLAIN = {Tensor, nn.Parameter}


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
        of, i = _leading(tuple(of.signature for of in self.lists), self.copied)
        return backend.choose("multi_tensor", self.lists[of][i])


@functools.lru_cache(maxsize=256)
def _leading(lists: tuple[Signature, ...], copied: int) -> tuple[int, int]:
    """List and entry that decide where a group runs: of float64, which the kernels leave to the twin, if any is."""
    for number, of in enumerate(lists):
        if torch.float64 in of.dtypes:
            return number, of.dtypes.index(torch.float64)
    floats = (i for i, dtype in enumerate(lists[0].dtypes) if dtype.is_floating_point)
    return 0, next(floats, 0)


def grouped(lists: Mapping[str, Iterable[Tensor]], copied: int = 0) -> list[Group]:
    """The lists, checked and in groups that one call takes: of one device, float64 apart.

    Complex tensors come as pairs of real ones, DTensors as their local shards.

    Args:
        lists: by name; the first sets the shapes and the devices, and the others have as many tensors, or none.
        copied: so many at the end of each list may be of any dtype, the same in all lists.

    Raises:
        TypeError: something that is no dense floating-point Tensor.
        ValueError: different lengths, shapes, devices or placements.
    """
    found = {name: _plain(name, list(tensors)) for name, tensors in lists.items()}
    names = tuple(found)
    groups = _groups(names, tuple(tensors.signature for tensors in found.values()), copied)
    if groups is None:
        return [Group(tuple(found.values()), copied, range(len(found[names[0]])))]
    return [
        Group(tuple(TensorList(tensors[i] for i in entries if tensors) for tensors in found.values()), at_end, entries)
        for entries, at_end in groups
    ]


def _plain(name: str, tensors: list[Tensor]) -> TensorList:
    if not {*map(type, tensors)} <= _PLAIN:
        for i, x in enumerate(tensors):
            if not isinstance(x, Tensor):
                raise TypeError(f"{name}[{i}] must be a Tensor; got {type(x).__name__}")
        tensors = [local(x) for x in tensors]
    found = TensorList(tensors)
    try:
        dtypes = found.signature.dtypes
    except RuntimeError as error:
        i, x = next((i, x) for i, x in enumerate(tensors) if x.layout != torch.strided)
        raise TypeError(f"{name}[{i}] must be a dense Tensor; got layout {x.layout}") from error
    if any(dtype.is_complex for dtype in dtypes):
        return TensorList(torch.view_as_real(x) if x.is_complex() else x for x in tensors)
    return found


def local(x: Tensor) -> Tensor:
    """The shard of a DTensor that this rank has; any other tensor as it is."""
    shard = getattr(x, "to_local", None)
    return x if shard is None else shard()


def placement(x: Any) -> object:
    """How a DTensor lies on its mesh; None of any other tensor."""
    return (x.device_mesh, x.placements) if hasattr(x, "to_local") else None


@functools.lru_cache(maxsize=256)
def _groups(names: tuple[str, ...], lists: tuple[Signature, ...], copied: int) -> list[tuple[list[int], int]] | None:
    """The indices of each group, and how many are copied; None: all are one group. Raises what `grouped` does."""
    first, like = names[0], lists[0]
    length = len(like.shapes)
    for name, of in zip(names, lists, strict=True):
        if len(of.shapes) not in (length, 0):
            raise ValueError(f"{name} must have as many tensors as {first}, {length}; got {len(of.shapes)}")
        for i, dtype in enumerate(of.dtypes):
            what = f"{name}[{i}]"
            if of.shapes[i] != like.shapes[i]:
                raise ValueError(
                    f"{what} must have {first}[{i}]'s shape {list(like.shapes[i])}; got {list(of.shapes[i])}"
                )
            if of.devices[i] != like.devices[i]:
                raise ValueError(f"{what} must be on {first}[{i}]'s device {like.devices[i]}; got {of.devices[i]}")
            if i >= length - copied:
                if dtype != like.dtypes[i]:
                    raise TypeError(f"{what} must have {first}[{i}]'s dtype {like.dtypes[i]}; got {dtype}")
            elif not dtype.is_floating_point or dtype.itemsize < 2:
                raise TypeError(f"{what} must be float32, float16, bfloat16 or float64; got {dtype}")
    groups: dict[object, list[int]] = {}
    for i in range(length):
        double = any(of.dtypes and of.dtypes[i] == torch.float64 for of in lists)
        groups.setdefault((like.devices[i], double), []).append(i)
    if len(groups) == 1:
        return None
    return [(of, sum(i >= length - copied for i in of)) for of in groups.values()]
