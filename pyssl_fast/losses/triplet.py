from __future__ import annotations

import torch
from torch import Tensor, nn

from pyssl_fast import functional
from pyssl_fast.functional.checks import check_choice, check_number, check_reduction
from pyssl_fast.functional.similarity.triplet import BATCH_REDUCTIONS, DISTANCES, MINING


class TripletMarginLoss(nn.Module):
    """Of given triplets: `pyssl_fast.functional.triplet_margin` with its settings. Takes the place of torch's class.

    Args:
        margin: > 0.
        p: norm of the distance.
        eps: added to the differences.
        swap: let d(positive, negative) take the place of d(anchor, negative) where it is smaller.
        reduction: "mean", "sum" or "none".
    """

    def __init__(
        self, margin: float = 1.0, p: float = 2.0, eps: float = 1e-6, swap: bool = False, *, reduction: str = "mean"
    ) -> None:
        super().__init__()
        for name, value in (("margin", margin), ("p", p), ("eps", eps)):
            check_number(name, value, high=torch.inf if name == "p" else 1e30)
        check_reduction(reduction)
        self.margin = margin
        self.p = p
        self.eps = eps
        self.swap = swap
        self.reduction = reduction

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """anchor, positive, negative [N, D] -> the loss, [] ([N] unreduced)."""
        return functional.triplet_margin(
            anchor, positive, negative, self.margin, self.p, self.eps, self.swap, reduction=self.reduction
        )

    def extra_repr(self) -> str:
        return f"margin={self.margin:g}, p={self.p:g}, eps={self.eps:g}, swap={self.swap}, reduction={self.reduction!r}"


class BatchTripletMarginLoss(nn.Module):
    """Of the triplets in a batch: `pyssl_fast.functional.triplet_margin_in_batch` with its settings.

    With its defaults pytorch-metric-learning's TripletMarginLoss(margin); with mining="hard" that after BatchHardMiner.

    Args:
        margin: any number.
        mining: "all", "hard" or "semi-hard".
        distance: "euclidean" or "cosine".
        normalize: divide the rows by their length first.
        reduction: "nonzero", "mean", "sum" or "none".
    """

    def __init__(
        self,
        margin: float = 0.05,
        *,
        mining: str = "all",
        distance: str = "euclidean",
        normalize: bool = True,
        reduction: str = "nonzero",
    ) -> None:
        super().__init__()
        check_number("margin", margin, low=-1e30)
        check_choice("mining", mining, MINING)
        check_choice("distance", distance, DISTANCES)
        check_choice("reduction", reduction, BATCH_REDUCTIONS)
        self.margin = margin
        self.mining = mining
        self.distance = distance
        self.normalize = normalize
        self.reduction = reduction

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """embeddings [N, D], labels [N] -> the loss, [] ([N] unreduced)."""
        return functional.triplet_margin_in_batch(
            embeddings,
            labels,
            self.margin,
            mining=self.mining,
            distance=self.distance,
            normalize=self.normalize,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return (
            f"margin={self.margin:g}, mining={self.mining!r}, distance={self.distance!r}, normalize={self.normalize},"
            f" reduction={self.reduction!r}"
        )
