from __future__ import annotations

from torch import Tensor

from pyssl_fast import functional
from pyssl_fast.functional.checks import check_choice, check_number
from pyssl_fast.functional.similarity.softmax import Result
from pyssl_fast.functional.similarity.sup_con import CONTRAST_MODES, VARIANTS, WITHOUT_POSITIVE
from pyssl_fast.losses.softmax import SoftmaxLoss


class SupConLoss(SoftmaxLoss):
    """SupCon: `pyssl_fast.functional.sup_con` with its settings. Takes the place of SupContrast's class.

    Args:
        temperature: τ ≠ 0. An `nn.Parameter` is learned.
        contrast_mode: "all" views are anchors, or "one", the first.
        base_temperature: the loss is multiplied by τ/τ_base; None for τ.
        variant: "out", "in" or "sum".
        normalize: divide the rows by their length first; SupContrast does not.
        without_positive: anchors that have none count as "zero", or "skip" them.
        reduction, label_smoothing, debias, return_metrics: as the function's.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.07,
        contrast_mode: str = "all",
        base_temperature: float | None = 0.07,
        *,
        variant: str = "out",
        normalize: bool = False,
        without_positive: str = "zero",
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
        check_choice("contrast_mode", contrast_mode, CONTRAST_MODES)
        check_choice("variant", variant, VARIANTS)
        check_choice("without_positive", without_positive, WITHOUT_POSITIVE)
        if base_temperature is not None:
            check_number("base_temperature", base_temperature)
        self.contrast_mode = contrast_mode
        self.base_temperature = base_temperature
        self.variant = variant
        self.normalize = normalize
        self.without_positive = without_positive

    def forward(
        self,
        features: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        weight: Tensor | None = None,
        debias: Tensor | None = None,
    ) -> Result:
        """features [B, V, …] or [B, D]; labels [B] or mask [B, B]; weight, debias [B] -> the loss, []
        ([V, B] unreduced)."""
        return functional.sup_con(
            features,
            labels,
            mask,
            self.temperature,
            self.base_temperature,
            self.contrast_mode,
            variant=self.variant,
            normalize=self.normalize,
            without_positive=self.without_positive,
            weight=weight,
            **self.options(debias),
        )

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, contrast_mode={self.contrast_mode!r}, base_temperature={self.base_temperature},"
            f" variant={self.variant!r}"
        )
