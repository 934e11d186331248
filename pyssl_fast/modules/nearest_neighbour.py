"""NNCLR's support set: the nearest keys of earlier batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyssl_fast import functional
from pyssl_fast.modules.queue import KeyQueue, key_sizes


class NNMemoryBankModule(nn.Module):
    """Puts the nearest key of earlier batches in the place of every row (Dwibedi et al. 2021). Takes lightly's place.

    The [B, size] similarities are never held. Differences: the bank is part of the state dict, and goes round instead
    of dropping the rest of a batch.

    Args:
        size: (number of keys, their length); or the number alone, then the length is that of the first output.
        normalize: keep the keys divided by their length, and return them so; `nnclr` divides anyway. False: return
            them as they came, as lightly does, at the price of a second bank that holds them divided.
        drop_on_wrap: drop the keys beyond the last row, as lightly does.

    Raises:
        TypeError, ValueError: a size that is no such number.
    """

    def __init__(
        self, size: int | Sequence[int] = 2**16, *, normalize: bool = False, drop_on_wrap: bool = False
    ) -> None:
        super().__init__()
        self.size = sizes = key_sizes(size)
        self.normalize = normalize
        dim = sizes[1] if len(sizes) == 2 else None
        self.queue = KeyQueue(sizes[0], dim, normalize=normalize, drop_on_wrap=drop_on_wrap)

    @property
    def bank(self) -> Tensor:
        """[size, dim], not a copy: read it. `queue.update` writes."""
        return self.queue.keys

    @torch.no_grad()
    def forward(self, output: Tensor, update: bool = False) -> Tensor:
        """output [B, D] -> [B, D] the bank's nearest rows by cosine similarity, in output's dtype, without gradient.

        They are read before output joins the bank, which it does if `update`.
        """
        self.queue.expect(output)
        bank = self.queue.keys
        # The length of the query does not change which key is the nearest.
        _, index = functional.nearest_neighbours(output.to(bank.dtype), self.queue.unit_keys(), normalize=False)
        nearest = bank[index[:, 0].clamp_min(0)].to(output.dtype)
        if update:
            self.queue.update(output.detach())
        # A row that is not a number has no neighbour.
        return nearest + (0 * output.sum(1, keepdim=True, dtype=torch.float64)).to(output.dtype)
