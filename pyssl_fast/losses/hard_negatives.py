from __future__ import annotations

from torch import Tensor

from pyssl_fast import functional
from pyssl_fast.functional.checks import check_number
from pyssl_fast.functional.similarity.softmax import Result
from pyssl_fast.losses.softmax import SoftmaxLoss, number


class HardNegativeLoss(SoftmaxLoss):
    """NT-Xent with hard, debiased negatives: `pyssl_fast.functional.hard_negative_nt_xent` with its settings.

    Args:
        temperature: τ ≠ 0. An `nn.Parameter` is learned.
        beta: β of 0 to 1e3; 0 is the debiased contrastive loss.
        debias: τ⁺ of 0 to 1 (excluded).
        reduction, return_metrics: as the function's.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        beta: float = 1.0,
        debias: float | Tensor = 0.1,
        *,
        reduction: str = "mean",
        return_metrics: bool = False,
    ) -> None:
        super().__init__(temperature, reduction=reduction, debias=debias, return_metrics=return_metrics)
        check_number("beta", beta, 0, 1e3)
        self.beta = beta

    def forward(
        self,
        out0: Tensor,
        out1: Tensor,
        *extra_views: Tensor,
        ids: Tensor | None = None,
        weight: Tensor | None = None,
        debias: Tensor | None = None,
    ) -> Result:
        """out0, out1 and any further views: [N, D] each; ids, weight, debias [N] -> the loss, [] ([V, N] unreduced)."""
        return functional.hard_negative_nt_xent(
            out0,
            out1,
            self.temperature,
            beta=self.beta,
            debias=self.debias if debias is None else debias,
            extra_views=extra_views,
            ids=ids,
            weight=weight,
            reduction=self.reduction,
            return_metrics=self.return_metrics,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, beta={number(self.beta)}"
