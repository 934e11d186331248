"""Lists of tensors as flat memory: what the kernels need to know of them, read off once for every layout they have.

A kernel works on element k of every list's entry i at once, at data_ptr + k·itemsize. That holds where an entry's
tensors are dense and have equal strides, channels_last or not. The few entries where it does not hold are copied.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Signature:
    """What a kernel must know of a list beside its addresses. There is one object for equal ones: `_signature`."""

    dtypes: tuple[torch.dtype, ...]
    shapes: tuple[torch.Size, ...]
    strides: tuple[tuple[int, ...], ...]
    devices: tuple[torch.device, ...]


_signature = functools.lru_cache(maxsize=1024)(Signature)
_NOTHING = _signature((), (), (), ())
_get_dtype, _get_shape, _get_device = (getattr(Tensor, name).__get__ for name in ("dtype", "shape", "device"))


# Addresses, dtypes, numbers of elements, whether contiguous; and strides, where one is not.
_Memory = tuple[list[int], list[torch.dtype], list[int], list[bool], list[tuple[int, ...]]]


class TensorList(list[Any]):
    """A list of dense tensors that stays the same list. What is read off its tensors is kept until `refresh`."""

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        super().__init__(tensors)
        self._forget()

    def _forget(self) -> None:
        self._signature: Signature | None = None
        self._memory: _Memory | None = None

    # A property of a whole list at once, by C functions: 10 to 20 µs for 161 tensors in the cache, 5 times as much for
    # the first one that touches them.

    @property
    def signature(self) -> Signature:
        if self._signature is None:
            self._signature = _signature(
                tuple(map(_get_dtype, self)),
                tuple(map(_get_shape, self)),
                tuple(map(Tensor.stride, self)),
                tuple(map(_get_device, self)),
            )
        return self._signature

    @property
    def addresses(self) -> list[int]:
        return list(map(Tensor.data_ptr, self)) if self._memory is None else self._memory[0]

    def _look(self) -> _Memory:
        contiguous = list(map(Tensor.is_contiguous, self))
        strides = [] if all(contiguous) else list(map(Tensor.stride, self))
        return (
            list(map(Tensor.data_ptr, self)),
            list(map(_get_dtype, self)),
            list(map(Tensor.numel, self)),
            contiguous,
            strides,
        )

    def refresh(self) -> bool:
        """Forget what was read if a tensor has got other memory (`.data`, `Module.to`); whether none has."""
        memory = self._look()
        if memory == self._memory:
            return True
        self._forget()
        self._memory = memory
        return False


def signature(tensors: Sequence[Tensor]) -> Signature:
    return (tensors if isinstance(tensors, TensorList) else TensorList(tensors)).signature if tensors else _NOTHING


@dataclass(frozen=True, eq=False)
class Layout:
    """What lists of the same signatures have in common.

    Attributes:
        dtypes: of the entries, by list; none for an empty list.
        counts: elements of every entry.
        misfits: the entries that have to be copied.
    """

    dtypes: tuple[tuple[torch.dtype, ...], ...]
    counts: tuple[int, ...]
    misfits: tuple[int, ...]


@functools.lru_cache(maxsize=256)
def _layout(lists: tuple[Signature, ...]) -> Layout:
    shapes = lists[0].shapes
    if any(x.shapes not in (shapes, ()) for x in lists):
        raise ValueError("entries i of all lists must have one shape")
    misfits = tuple(
        i
        for i, shape in enumerate(shapes)
        if len({x.strides[i] for x in lists if x.strides}) > 1 or not _dense(shape, lists[0].strides[i])
    )
    return Layout(tuple(x.dtypes for x in lists), tuple(shape.numel() for shape in shapes), misfits)


def _dense(shape: torch.Size, strides: tuple[int, ...]) -> bool:
    """Whether the elements fill one piece of memory, in any order of the dimensions."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size != 1):
        if stride != expected:
            return shape.numel() == 0
        expected *= size
    return True


def addresses(tensors: Sequence[Tensor]) -> list[int]:
    return tensors.addresses if isinstance(tensors, TensorList) else list(map(Tensor.data_ptr, tensors))


def flat(*lists: Sequence[Tensor]) -> tuple[tuple[Sequence[Tensor], ...], Layout]:
    """The lists, with copies in place of the entries that are not flat; and their layout.

    The first list has all entries, each other one as many or none. Copies of what the kernel writes go back by
    `write_back`.
    """
    layout = _layout(tuple(map(signature, lists)))
    if not layout.misfits:
        return lists, layout
    misfits = frozenset(layout.misfits)
    return tuple([x.contiguous() if i in misfits else x for i, x in enumerate(of)] for of in lists), layout


def write_back(layout: Layout, originals: Sequence[Tensor], flats: Sequence[Tensor]) -> None:
    """The new values of copied entries, to where they came from."""
    for i in layout.misfits if originals else ():
        if originals[i] is not flats[i]:
            originals[i].copy_(flats[i])
