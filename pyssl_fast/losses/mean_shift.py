from __future__ import annotations

from torch import Tensor, nn

from pyssl_fast import functional
from pyssl_fast.functional.checks import check_count, check_reduction
from pyssl_fast.functional.similarity.softmax import Result


class MeanShiftLoss(nn.Module):
    """Mean Shift: `pyssl_fast.functional.mean_shift` with its settings. The bank is the caller's, a `KeyQueue` say.

    Args:
        count: number of nearest bank rows.
        normalize_bank: False spares a pass over a bank whose rows have length 1 already, as a `KeyQueue`'s.
        reduction: "mean", "sum" or "none".
        return_metrics: return (loss, purity).
    """

    def __init__(
        self, count: int = 5, *, normalize_bank: bool = True, reduction: str = "mean", return_metrics: bool = False
    ) -> None:
        super().__init__()
        check_count("count", count)
        check_reduction(reduction)
        self.count = count
        self.normalize_bank = normalize_bank
        self.reduction = reduction
        self.return_metrics = return_metrics

    def forward(
        self,
        query: Tensor,
        target: Tensor,
        bank: Tensor,
        labels: Tensor | None = None,
        bank_labels: Tensor | None = None,
        *,
        weight: Tensor | None = None,
    ) -> Result:
        """query, target [N, D]; bank [K, D]; labels [N], bank_labels [K] -> the loss, [] ([N] unreduced)."""
        return functional.mean_shift(
            query,
            target,
            bank,
            self.count,
            normalize_bank=self.normalize_bank,
            labels=labels,
            bank_labels=bank_labels,
            weight=weight,
            reduction=self.reduction,
            return_metrics=self.return_metrics,
        )

    def extra_repr(self) -> str:
        return f"count={self.count}, reduction={self.reduction!r}"
