from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pyssl_fast import functional
from pyssl_fast.functional.checks import check_number
from pyssl_fast.functional.similarity.softmax import Result
from pyssl_fast.losses.softmax import SoftmaxLoss, number


class DCLLoss(SoftmaxLoss):
    """Decoupled contrastive loss: `pyssl_fast.functional.dcl` with its settings. Takes the place of lightly's class.

    Args:
        temperature: τ ≠ 0. An `nn.Parameter` is learned.
        weight_fn: (out0, out1), normalised [N, D] each -> [N] weights of out0's positives; called for both orders.
        gather_distributed: False; gathering over processes is not supported.
        reduction, label_smoothing, debias, return_metrics: as the function's.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        gather_distributed: bool = False,
        *,
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
        if gather_distributed:
            raise NotImplementedError("gather_distributed=True: gathering over processes is not supported")
        self.weight_fn = weight_fn
        self.gather_distributed = gather_distributed

    def forward(self, out0: Tensor, out1: Tensor, *, ids: Tensor | None = None, weight: Tensor | None = None) -> Result:
        """out0, out1: [N, D] each; ids, weight [N] -> the loss, [] ([2, N] unreduced)."""
        positive_weight = None
        if self.weight_fn is not None:
            u0, u1 = F.normalize(out0, dim=1), F.normalize(out1, dim=1)
            positive_weight = torch.stack((self.weight_fn(u0, u1), self.weight_fn(u1, u0)))
        return functional.dcl(
            out0,
            out1,
            self.temperature,
            positive_weight=positive_weight,
            ids=ids,
            weight=weight,
            **self.options(),
        )


class DCLWLoss(DCLLoss):
    """`DCLLoss` with the weights of `pyssl_fast.functional.dclw`. Takes the place of lightly's class.

    Args:
        temperature, gather_distributed and the options: as `DCLLoss`'s.
        sigma: σ > 0 of the weights.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        sigma: float = 0.5,
        gather_distributed: bool = False,
        *,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        debias: float | Tensor = 0.0,
        return_metrics: bool = False,
    ) -> None:
        super().__init__(
            temperature,
            None,
            gather_distributed,
            reduction=reduction,
            label_smoothing=label_smoothing,
            debias=debias,
            return_metrics=return_metrics,
        )
        check_number("sigma", sigma)
        self.sigma = sigma

    def forward(self, out0: Tensor, out1: Tensor, *, ids: Tensor | None = None, weight: Tensor | None = None) -> Result:
        """out0, out1: [N, D] each; ids, weight [N] -> the loss, [] ([2, N] unreduced)."""
        return functional.dclw(out0, out1, self.temperature, self.sigma, ids=ids, weight=weight, **self.options())

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sigma={number(self.sigma)}"
