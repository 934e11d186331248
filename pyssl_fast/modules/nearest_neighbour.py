"""NNCLR's support set: the nearest keys of earlier batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyssl_fast import functional
from pyssl_fast.functional.checks import check_count
from pyssl_fast.modules.queue import KeyQueue


class NNMemoryBankModule(nn.Module):
    """Puts the nearest key of earlier batches in the place of every row (Dwibedi et al. 2021). Takes lightly's place.

    The [B, size] similarities are never held, and the bank is never copied. Differences: the bank is part of the state
    dict, and goes round instead of dropping the rest of a batch.

    Args:
        size: (number of keys, their length); or the number alone, then the length is that of the first output.
        normalize: keep the keys divided by their length, and return them so; `nnclr` divides anyway. False: return
            them as they came, as lightly does, at the price of a second bank that holds them divided.
        drop_on_wrap: drop the keys beyond the last row, as lightly does.

    Raises:
        TypeError, ValueError: a size that is no such number.
    """

    _unit: Tensor | None

    def __init__(
        self, size: int | Sequence[int] = 2**16, *, normalize: bool = False, drop_on_wrap: bool = False
    ) -> None:
        super().__init__()
        sizes = tuple(size) if isinstance(size, Sequence) else (size,)
        for entry in sizes:
            check_count("size", entry)
        if len(sizes) not in (1, 2):
            raise ValueError(f"size must be a number of keys, or (number, length); got {size}")
        self.size = sizes
        self.normalize = normalize
        self.queue = KeyQueue(
            sizes[0], sizes[1] if len(sizes) == 2 else None, normalize=normalize, drop_on_wrap=drop_on_wrap
        )
        # The keys divided by their length: made at the first call, kept up to date, made again after a load.
        self.register_buffer("_unit", None, persistent=False)
        self.register_load_state_dict_post_hook(lambda module, _: setattr(module, "_unit", None))

    @property
    def bank(self) -> Tensor:
        """[size, dim], not a copy."""
        return self.queue.keys

    @torch.no_grad()
    def forward(self, output: Tensor, update: bool = False) -> Tensor:
        """output [B, D] -> [B, D] the bank's nearest rows by cosine similarity, in output's dtype, without gradient.

        They are read before output joins the bank, which it does if `update`.
        """
        self.queue.expect(output)
        bank = self.queue.keys
        if not self.normalize and self._unit is None:
            self._unit = F.normalize(bank, dim=1)
        unit = bank if self._unit is None else self._unit
        # The length of the query does not change which key is the nearest.
        _, index = functional.nearest_neighbours(output.to(bank.dtype), unit, normalize=False)
        nearest = bank[index[:, 0].clamp_min(0)].to(output.dtype)
        if update:
            place = self.queue.update(output.detach())
            if unit is not bank:
                unit.index_copy_(0, place, F.normalize(bank[place], dim=1))
        # A row that is not a number has no neighbour.
        return nearest + (0 * output.sum(1, keepdim=True, dtype=torch.float64)).to(output.dtype)
