from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pyssl_fast import functional
from pyssl_fast.functional.checks import check_reduction, check_temperature


class NTXentLoss(nn.Module):
    """NT-Xent, SimCLR's loss: `pyssl_fast.functional.nt_xent` with its settings. Takes the place of lightly's class.

    Args:
        temperature: τ ≠ 0. An `nn.Parameter` is learned.
        memory_bank_size: 0; a memory bank is not built yet.
        gather_distributed: False; gathering over processes is not built yet.
        reduction: "mean", "sum" or "none".
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
        *,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_reduction(reduction)
        if memory_bank_size != 0:
            raise NotImplementedError(f"memory_bank_size={memory_bank_size}: only 0 (no memory bank) is supported")
        if gather_distributed:
            raise NotImplementedError("gather_distributed=True: gathering over processes is not supported")
        self.temperature = temperature
        self.reduction = reduction

    def forward(self, out0: Tensor, out1: Tensor, *extra_views: Tensor) -> Tensor:
        """out0, out1 and any further views: [N, D] each -> the loss, [] (or [V, N] with reduction="none")."""
        return functional.nt_xent(out0, out1, self.temperature, extra_views=extra_views, reduction=self.reduction)

    def extra_repr(self) -> str:
        value, learned = self.temperature, ""
        if isinstance(value, Tensor):
            value, learned = value.detach(), " (learned)" if value.requires_grad else ""
        return f"temperature={float(value):g}{learned}, reduction={self.reduction!r}"
