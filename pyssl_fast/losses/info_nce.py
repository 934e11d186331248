from __future__ import annotations

from torch import Tensor

from pyssl_fast import functional
from pyssl_fast.functional.checks import check_choice
from pyssl_fast.functional.similarity.info_nce import MODES
from pyssl_fast.functional.similarity.softmax import Result
from pyssl_fast.losses.softmax import SoftmaxLoss


class InfoNCELoss(SoftmaxLoss):
    """InfoNCE: `pyssl_fast.functional.info_nce` with its settings. Takes the place of info-nce-pytorch's `InfoNCE`.

    Args:
        temperature: τ ≠ 0. An `nn.Parameter` is learned.
        reduction: "mean", "sum" or "none".
        negative_mode: "unpaired" or "paired" negative keys.
        negatives_normalized: unpaired negative keys have length 1 already, as `KeyQueue`'s.
        label_smoothing, debias, return_metrics: as the function's.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        reduction: str = "mean",
        negative_mode: str = "unpaired",
        *,
        negatives_normalized: bool = False,
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
        check_choice("negative_mode", negative_mode, MODES)
        self.negative_mode = negative_mode
        self.negatives_normalized = negatives_normalized

    def forward(
        self,
        query: Tensor,
        positive_key: Tensor,
        negative_keys: Tensor | None = None,
        *,
        ids: Tensor | None = None,
        negative_ids: Tensor | None = None,
        weight: Tensor | None = None,
        debias: Tensor | None = None,
    ) -> Result:
        """query, positive_key [B, D]; negative_keys None, [N, D] or [B, N, D]; ids, weight, debias [B] -> the loss, []
        ([B] unreduced)."""
        return functional.info_nce(
            query,
            positive_key,
            negative_keys,
            self.temperature,
            negative_mode=self.negative_mode,
            negatives_normalized=self.negatives_normalized,
            ids=ids,
            negative_ids=negative_ids,
            weight=weight,
            **self.options(debias),
        )
