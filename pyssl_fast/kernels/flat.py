"""Lists of tensors as flat memory: what the kernels need to know of them, read off once for every layout they have.

A kernel works on element k of every list's entry i at once, at data_ptr + k·itemsize. That holds where an entry's
tensors are dense and have equal strides, channels_last or not. The few entries where it does not hold are copied.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_List = tuple[tuple[torch.dtype, ...], tuple[torch.Size, ...], tuple[tuple[int, ...], ...]]


@dataclass(frozen=True, eq=False)  # hashed by identity: what a kernel derives from one is kept beside it
class Layout:
    """What lists of the same dtypes, shapes and strides have in common.

    Attributes:
        dtypes: of the entries, by list; none for an empty list.
        counts: elements of every entry.
        misfits: the entries that have to be copied.
    """

    dtypes: tuple[tuple[torch.dtype, ...], ...]
    counts: tuple[int, ...]
    misfits: tuple[int, ...]


def _read(tensors: Sequence[Tensor]) -> _List:
    # Of a whole list at once, by C functions: 45 µs for 161 tensors.
    return (
        tuple(map(Tensor.dtype.__get__, tensors)),  # type: ignore[attr-defined]
        tuple(map(Tensor.shape.__get__, tensors)),  # type: ignore[attr-defined]
        tuple(map(Tensor.stride, tensors)),
    )


@functools.lru_cache(maxsize=256)
def _layout(lists: tuple[_List, ...]) -> Layout:
    dtypes, shapes, strides = zip(*lists, strict=True)
    misfits = tuple(
        i
        for i, shape in enumerate(shapes[0])
        if len({of[i] for of in strides if of}) > 1 or not _dense(shape, strides[0][i])
    )
    return Layout(dtypes, tuple(shape.numel() for shape in shapes[0]), misfits)


def _dense(shape: torch.Size, strides: tuple[int, ...]) -> bool:
    """Whether the elements fill one piece of memory, in any order of the dimensions."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size != 1):
        if stride != expected:
            return shape.numel() == 0
        expected *= size
    return True


def flat(*lists: list[Tensor]) -> tuple[tuple[list[Tensor], ...], Layout]:
    """The lists, with copies in place of the entries that are not flat; and their layout. The first list is not empty.

    Copies of what the kernel writes go back by `write_back`.
    """
    layout = _layout(tuple(map(_read, lists)))
    if not layout.misfits:
        return lists, layout
    copies = tuple(list(of) for of in lists)
    for of in copies:
        for i in layout.misfits if of else ():
            of[i] = of[i].contiguous()
    return copies, layout


def write_back(layout: Layout, originals: list[Tensor], flats: list[Tensor]) -> None:
    """The new values of copied entries, to where they came from."""
    for i in layout.misfits if originals else ():
        if originals[i] is not flats[i]:
            originals[i].copy_(flats[i])
