from __future__ import annotations

from torch import Tensor

from pyssl_fast import functional
from pyssl_fast.functional.similarity.softmax import Result
from pyssl_fast.losses.softmax import SoftmaxLoss


class NNCLRLoss(SoftmaxLoss):
    """NNCLR's loss: `pyssl_fast.functional.nnclr` with its settings. Its neighbours come from `NNMemoryBankModule`.

    Args:
        temperature: τ ≠ 0. An `nn.Parameter` is learned.
        symmetric: the paper's symmetric form; False is solo-learn's.
        reduction, label_smoothing, debias, return_metrics: as the function's.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        *,
        symmetric: bool = False,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        debias: float | Tensor = 0.0,
        return_metrics: bool = False,
    ) -> None:
        super().__init__(
            temperature,
            reduction=reduction,
            label_smoothing=label_smoothing,
            debias=debias,
            return_metrics=return_metrics,
        )
        self.symmetric = symmetric

    def forward(
        self,
        neighbours: Tensor,
        predictions: Tensor,
        *,
        ids: Tensor | None = None,
        weight: Tensor | None = None,
        debias: Tensor | None = None,
    ) -> Result:
        """neighbours, predictions [N, D]; ids, weight, debias [N] -> the loss, [] ([N] or [2, N] unreduced)."""
        return functional.nnclr(
            neighbours,
            predictions,
            self.temperature,
            symmetric=self.symmetric,
            ids=ids,
            weight=weight,
            **self.options(debias),
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, symmetric={self.symmetric}"
