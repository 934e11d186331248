from __future__ import annotations

import torch
from torch import Tensor, nn

from pyssl_fast import functional
from pyssl_fast.functional.checks import check_count, check_number, check_reduction


class KoLeoLoss(nn.Module):
    """The KoLeo regulariser: `pyssl_fast.functional.koleo` with its settings. Takes the place of lightly's class.

    Args:
        p: norm of the distance.
        eps: added to the difference and to the distance; shorter rows are divided by it.
        topk: the number of nearest rows whose distances count.
        reduction: "mean", "sum" or "none".
    """

    def __init__(self, p: float = 2, eps: float = 1e-8, *, topk: int = 1, reduction: str = "mean") -> None:
        super().__init__()
        check_number("p", p, high=torch.inf)
        check_number("eps", eps)
        check_count("topk", topk)
        check_reduction(reduction)
        self.p = p
        self.eps = eps
        self.topk = topk
        self.reduction = reduction

    @property
    def pairwise_distance(self) -> nn.PairwiseDistance:
        """The distance, under lightly's name."""
        return nn.PairwiseDistance(self.p, self.eps)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, D], N > topk -> the loss, [] ([N, topk] unreduced)."""
        return functional.koleo(x, self.p, self.eps, topk=self.topk, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"p={self.p:g}, eps={self.eps:g}, topk={self.topk}, reduction={self.reduction!r}"
