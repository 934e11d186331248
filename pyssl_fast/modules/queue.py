"""Keys of earlier batches: MoCo's queue, and lightly's memory bank on top of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyssl_fast.functional.checks import check_count, check_embeddings


def key_sizes(size: int | Sequence[int], least: int = 1) -> tuple[int, ...]:
    """lightly's `size`, a number of keys or (number, length), as a tuple.

    Raises:
        TypeError, ValueError: it is neither.
    """
    sizes = tuple(size) if isinstance(size, Sequence) else (size,)
    for entry in sizes:
        check_count("size", entry, least)
    if len(sizes) not in (1, 2):
        raise ValueError(f"size must be a number of keys, or (number, length); got {size}")
    return sizes


class KeyQueue(nn.Module):
    """The keys of the latest batches, the oldest overwritten first (He et al. 2020, section 3.2).

    `info_nce(query, positive_key, queue.keys, negatives_normalized=True)` is MoCo's loss; `update` may follow at once,
    before backward. Rows that no key has filled yet hold random directions, as MoCo's do: they are negatives like any
    others, and `filled` says how many rows are real. Nothing waits for a device.

    Args:
        size: number of keys.
        dim: their length; None: that of the first keys, or of the state that is loaded.
        normalize: divide keys by their length on the way in. False: `unit_keys` keeps a second bank that holds them so.
        drop_on_wrap: do not go round within a batch: the keys beyond the last row are dropped, as lightly's are.

    Attributes, all buffers of the state dict:
        keys: [size, dim] float32; [size, 0] before the first keys where dim is None.
        pointer: [] int64, the row that is overwritten next. filled: [] int64, the number of rows that hold keys.

    Raises:
        TypeError, ValueError: a size or a dim that is no whole number above 0.
    """

    keys: Tensor
    _unit: Tensor | None
    pointer: Tensor
    filled: Tensor

    def __init__(
        self, size: int, dim: int | None = None, *, normalize: bool = True, drop_on_wrap: bool = False
    ) -> None:
        super().__init__()
        check_count("size", size)
        if dim is not None:
            check_count("dim", dim)
        self.size = size
        self.normalize = normalize
        self.drop_on_wrap = drop_on_wrap
        self.register_buffer("keys", torch.empty(size, 0))
        self.register_buffer("_unit", None, persistent=False)
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        if dim is not None:
            self._fill(dim)

    @torch.no_grad()
    def _fill(self, dim: int) -> None:
        self.keys = F.normalize(torch.randn(self.size, dim, dtype=self.keys.dtype, device=self.keys.device), dim=1)
        self._unit = None

    @torch.no_grad()
    def unit_keys(self) -> Tensor:
        """[size, dim] the keys divided by their length; `keys` themselves where they are kept so. Not a copy: read it.

        Made at the first call, kept by `update`. Keys that were written otherwise are not seen.
        """
        if self.normalize:
            return self.keys
        if self._unit is None:
            self._unit = F.normalize(self.keys, dim=1)
        return self._unit

    def expect(self, keys: Tensor) -> None:
        """Size the queue for keys [B, D] if it has no length yet.

        Raises:
            TypeError, ValueError: keys that do not fit.
        """
        check_embeddings("keys", keys)
        if self.keys.shape[1] == 0:
            self._fill(keys.shape[1])
        if keys.shape[1] != self.keys.shape[1]:
            raise ValueError(f"keys must be [B, {self.keys.shape[1]}]; got {list(keys.shape)}")
        if keys.device != self.keys.device:
            raise ValueError(f"keys must be on the queue's device {self.keys.device}; got {keys.device}")

    @torch.no_grad()
    def update(self, keys: Tensor) -> None:
        """Write keys [B, D] over the oldest rows, in place.

        Raises:
            TypeError, ValueError: keys that do not fit, or more of them than the queue holds.
        """
        self.expect(keys)
        if self.drop_on_wrap:
            keys = keys[: self.size]
        if keys.shape[0] > self.size:
            raise ValueError(f"keys must be {self.size} rows at most, the queue's size; got {keys.shape[0]}")
        rows = keys.shape[0]
        if self.normalize:
            keys = F.normalize(keys.to(torch.promote_types(self.keys.dtype, torch.float32)), dim=1)
        keys = keys.to(self.keys.dtype)
        row = self.pointer + torch.arange(rows, device=keys.device)
        end = self.pointer + rows
        place = row % self.size
        if self.drop_on_wrap:
            keys = torch.where((row < self.size)[:, None], keys, self.keys[place])
            end = torch.where(end < self.size, end, 0)
        self.filled.copy_(torch.maximum(self.filled, row[-1] + 1).clamp_max(self.size))
        self.keys.index_copy_(0, place, keys)
        self.pointer.copy_(end % self.size)
        if self._unit is not None:
            self._unit.index_copy_(0, place, F.normalize(keys, dim=1))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        self._unit = None
        names = [prefix + name for name in ("keys", "pointer", "filled")]
        saved = state_dict.get(names[0])
        if isinstance(saved, Tensor) and saved.shape == (self.size, 0):
            saved = None
        elif isinstance(saved, Tensor) and self.keys.shape[1] == 0 and saved.shape[:1] == (self.size,):
            self.keys = self.keys.new_empty(saved.shape)
        if saved is None and (names[0] in state_dict or not any(name in state_dict for name in names)):
            # Saved before the first keys, or without a queue: this one keeps what it starts with.
            own = (self.keys, self.pointer, self.filled)
            state_dict = {**state_dict, **dict(zip(names, own, strict=True))}
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"size={self.size}, dim={self.keys.shape[1] or None}"


class MemoryBankModule(nn.Module):
    """lightly's memory bank, over a `KeyQueue`.

    Differences: the bank is part of the state dict, goes round instead of dropping the rest of a batch, and is not
    copied unless it is updated.

    Args:
        size: (number of keys, their length); or the number alone, then the length is that of the first output. 0: none.
        gather_distributed: False; gathering over processes is not supported.
        feature_dim_first: return the bank as [dim, size], else as [size, dim].
        drop_on_wrap: drop the keys beyond the last row, as lightly does.
    """

    def __init__(
        self,
        size: int | Sequence[int] = 65536,
        gather_distributed: bool = False,
        feature_dim_first: bool = True,
        *,
        drop_on_wrap: bool = False,
    ) -> None:
        super().__init__()
        if gather_distributed:
            raise NotImplementedError("gather_distributed=True: gathering over processes is not supported")
        self.size = sizes = key_sizes(size, 0)
        self.gather_distributed = gather_distributed
        self.feature_dim_first = feature_dim_first
        self.queue = None
        if sizes[0]:
            dim = sizes[1] if len(sizes) == 2 else None
            self.queue = KeyQueue(sizes[0], dim, normalize=False, drop_on_wrap=drop_on_wrap)

    @property
    def bank(self) -> Tensor | None:
        """[size, dim], not a copy."""
        return None if self.queue is None else self.queue.keys

    @property
    def bank_ptr(self) -> Tensor | None:
        """[] int64, the row that is overwritten next."""
        return None if self.queue is None else self.queue.pointer

    def forward(
        self, output: Tensor, labels: Tensor | None = None, update: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """output [B, D] -> (output, the bank before the update, or None if its size is 0). labels are not used."""
        if self.queue is None:
            return output, None
        self.queue.expect(output)
        bank = self.queue.keys
        if update:
            bank = bank.clone()
            self.queue.update(output)
        return output, bank.T if self.feature_dim_first else bank
