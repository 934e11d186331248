"""Rows that share an id: how many, and their sums. By sorting, so without an [M, N] comparison and without a sync."""

from __future__ import annotations

import torch
from torch import Tensor


def count_equal(row_ids: Tensor, column_ids: Tensor) -> Tensor:
    """[M] int64: how many of the [N] column_ids equal each of the [M] row_ids. O((M + N) log N)."""
    ordered = column_ids.sort().values
    return torch.searchsorted(ordered, row_ids, right=True) - torch.searchsorted(ordered, row_ids)


def sum_equal(row_ids: Tensor, column_ids: Tensor, columns: Tensor) -> Tensor:
    """[M, D]: the sum of those of the [N, D] columns whose id is the row's. O((M + N)·(D + log N))."""
    ordered = column_ids.sort().values
    place = torch.searchsorted(ordered, column_ids)  # one place for every id that occurs
    sums = torch.zeros_like(columns).index_add(0, place, columns)
    found = torch.searchsorted(ordered, row_ids).clamp_max(len(ordered) - 1)
    return sums[found] * (ordered[found] == row_ids)[:, None]
