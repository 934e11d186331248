from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyssl_fast import functional
from pyssl_fast.functional.checks import check_number, check_weight
from pyssl_fast.functional.similarity.nt_xent import check_views
from pyssl_fast.functional.similarity.softmax import Result, unit_like
from pyssl_fast.losses.softmax import SoftmaxLoss, number


class DCLLoss(SoftmaxLoss):
    """Decoupled contrastive loss: `pyssl_fast.functional.dcl` with its settings. Takes the place of lightly's class.

    Args:
        temperature: τ ≠ 0. An `nn.Parameter` is learned.
        weight_fn: (out0, out1), normalised [N, D] each -> [N] or [N, 1] weights of out0's positives; called for
            both orders.
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

    def forward(
        self,
        out0: Tensor,
        out1: Tensor,
        *,
        ids: Tensor | None = None,
        weight: Tensor | None = None,
        debias: Tensor | None = None,
    ) -> Result:
        """out0, out1: [N, D] each; ids, weight, debias [N] -> the loss, [] ([2, N] unreduced)."""
        positive_weight = None
        if self.weight_fn is not None:
            out0, out1 = check_views(out0, out1)
            u0, u1 = unit_like(out0), unit_like(out1)
            positive_weight = torch.stack((self._weights(u0, u1), self._weights(u1, u0)))
        return functional.dcl(
            out0,
            out1,
            self.temperature,
            positive_weight=positive_weight,
            ids=ids,
            weight=weight,
            **self.options(debias),
        )

    def _weights(self, u0: Tensor, u1: Tensor) -> Tensor:
        assert self.weight_fn is not None
        weights, rows = self.weight_fn(u0, u1), u0.shape[0]
        if not isinstance(weights, Tensor):
            raise TypeError(f"weight_fn must return a Tensor [{rows}]; got {type(weights).__name__}")
        if weights.shape == (rows, 1):
            weights = weights[:, 0]
        check_weight("weight_fn's result", weights, rows, "out0", u0)
        return weights


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

    def forward(
        self,
        out0: Tensor,
        out1: Tensor,
        *,
        ids: Tensor | None = None,
        weight: Tensor | None = None,
        debias: Tensor | None = None,
    ) -> Result:
        """out0, out1: [N, D] each; ids, weight, debias [N] -> the loss, [] ([2, N] unreduced)."""
        return functional.dclw(out0, out1, self.temperature, self.sigma, ids=ids, weight=weight, **self.options(debias))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sigma={number(self.sigma)}"
