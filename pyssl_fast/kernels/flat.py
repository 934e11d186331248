"""Lists of tensors as flat memory: what the kernels need to know of them, read off once for every layout they have.

A kernel works on element k of every list's entry i at once, at data_ptr + k·itemsize. That holds where an entry's
tensors are dense and have equal strides, channels_last or not. The few entries where it does not hold are copied.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

try:
    from pyssl_fast import _cpu
except ImportError:  # not built
    _cpu = None  # type: ignore[assignment]


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

PLAIN = (Tensor, nn.Parameter)  # types of tensors whose memory is what they say
_FUNCTIONS = (
    "layout",
    "dtype",
    "device_type",
    "device_index",
    "dim",
    "sizes",
    "strides",
    "data_ptr",
)  # as _cpu has them


def _torch() -> Any:
    """What reads lists by C functions alone; None where there is no such thing."""
    probe = torch.zeros(2, 3, device="cpu").t()
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        functions = [getattr(library, f"aoti_torch_get_{name}") for name in _FUNCTIONS]
        addresses = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions]
        reader = _cpu.Torch(addresses, probe, probe._cdata, PLAIN)
    except (OSError, AttributeError, ValueError):
        return None
    return reader if reader.look([probe]) is not None else None


_TORCH = _torch()
_SIGNATURES: dict[bytes, Signature] = {}
_MOST_SIGNATURES = 256


def _look(tensors: list[Tensor]) -> tuple[list[int], Signature]:
    """Addresses and signature. Of 161 tensors in the cache 16 µs, out of it, as after a pass over all parameters, 82.

    Reading a property at a time takes 95 and 199.
    """
    found = None if _TORCH is None else _TORCH.look(tensors)
    if found is None:
        return list(map(Tensor.data_ptr, tensors)), _described(tensors)
    key, addresses = found
    signature = _SIGNATURES.get(key)
    if signature is None:
        if len(_SIGNATURES) >= _MOST_SIGNATURES:
            _SIGNATURES.clear()
        signature = _described(tensors)
        again = _TORCH.look(tensors)
        if again is not None and again[0] == key:  # else another thread changed a tensor in between
            _SIGNATURES[key] = signature
    return addresses, signature


def _described(tensors: list[Tensor]) -> Signature:
    dtypes, shapes, devices = (tuple(map(get, tensors)) for get in (_get_dtype, _get_shape, _get_device))
    return _signature(dtypes, shapes, tuple(map(Tensor.stride, tensors)), devices)


class TensorList(list[Any]):
    """A list of dense tensors that stays the same list, and what is read off them: at first use, then at `refresh`."""

    _read: tuple[list[int], Signature] | None = None

    @property
    def signature(self) -> Signature:
        if self._read is None:
            self._read = _look(self)
        return self._read[1]

    @property
    def addresses(self) -> list[int]:
        if self._read is None:
            self._read = _look(self)
        return self._read[0]

    def refresh(self) -> bool:
        """Read again; whether no tensor has got other memory since (`.data`, `Module.to`)."""
        before, self._read = self._read, _look(self)
        return before == self._read


class Members:
    """What some dicts hold, by which a change is noticed: parameters and buffers of modules, an optimizer's state."""

    def __init__(self, dicts: Iterable[dict[Any, Any]]) -> None:
        self._dicts = list(dicts)
        self._held = [list(held.items()) for held in self._dicts]  # so that nothing new gets the address of one of them
        self._seen = self._look()

    def _look(self) -> object:
        if _cpu is not None and not torch.compiler.is_compiling():
            return _cpu.members(self._dicts)
        return [[(id(key), id(value)) for key, value in held.items()] for held in self._dicts]

    def unchanged(self) -> bool:
        return self._seen == self._look()


def gathered(tensors: Iterable[Tensor]) -> list[Tensor]:
    """A list of them. What is a list already is prefetched: counting the references of 161 tensors waits for each."""
    if _cpu is not None and isinstance(tensors, list) and not torch.compiler.is_compiling():
        _cpu.prefetch(tensors)
    return list(tensors)


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
