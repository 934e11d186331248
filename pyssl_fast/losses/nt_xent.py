from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyssl_fast import functional
from pyssl_fast.functional.similarity.softmax import Result
from pyssl_fast.losses.softmax import SoftmaxLoss
from pyssl_fast.modules.queue import MemoryBankModule
from pyssl_fast.ops.similarity import statistics_dtype


class NTXentLoss(SoftmaxLoss):
    """NT-Xent, SimCLR's loss: `pyssl_fast.functional.nt_xent` with its settings. Takes the place of lightly's class.

    With a memory bank it is MoCo's loss of out0 against out1 and the bank, one direction: the bank's keys are the
    negatives, and out1 joins them after a pass in which out0 has a gradient.

    Args:
        temperature: τ ≠ 0. An `nn.Parameter` is learned.
        memory_bank_size: (number of keys, their length), or the number alone. 0: no memory bank.
        gather_distributed: False; gathering over processes is not built yet.
        reduction, label_smoothing, debias, return_metrics: as the function's.
        drop_on_wrap: drop the keys beyond the bank's last row instead of going round, as lightly does.
    """

    eps = 1e-8

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
        *,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        debias: float | Tensor = 0.0,
        return_metrics: bool = False,
        drop_on_wrap: bool = False,
    ) -> None:
        super().__init__(
            temperature,
            reduction=reduction,
            label_smoothing=label_smoothing,
            debias=debias,
            return_metrics=return_metrics,
        )
        self.memory_bank = MemoryBankModule(memory_bank_size, gather_distributed, drop_on_wrap=drop_on_wrap)
        self.gather_distributed = gather_distributed

    @property
    def cross_entropy(self) -> nn.CrossEntropyLoss:
        """What the loss is of its logits, under lightly's name."""
        return nn.CrossEntropyLoss(reduction=self.reduction, label_smoothing=self.label_smoothing)

    def forward(
        self,
        out0: Tensor,
        out1: Tensor,
        *extra_views: Tensor,
        ids: Tensor | None = None,
        weight: Tensor | None = None,
        debias: Tensor | None = None,
    ) -> Result:
        """out0, out1 and any further views: [N, D] each -> the loss, []; [V, N] ([N] with a bank) unreduced.

        ids, weight, debias: [N]. With a memory bank there are neither further views nor ids.
        """
        queue = self.memory_bank.queue
        if queue is None:
            return functional.nt_xent(
                out0,
                out1,
                self.temperature,
                extra_views=extra_views,
                ids=ids,
                weight=weight,
                **self.options(debias),
            )
        if extra_views or ids is not None:
            raise ValueError("a memory bank goes with two views and without ids")
        queue.expect(out1)
        learns = out0.requires_grad and torch.is_grad_enabled()
        if learns and not queue.drop_on_wrap and out1.shape[0] > queue.size:
            raise ValueError(
                f"out1 must have {queue.size} rows at most, as memory_bank_size={queue.size} says; got {out1.shape[0]}"
            )
        result = functional.info_nce(
            out0,
            out1,
            queue.keys,
            self.temperature,
            negatives_normalized=True,
            weight=weight,
            **self.options(debias),
        )
        if learns:
            queue.update(F.normalize(out1.detach().to(statistics_dtype(out1)), dim=1))
        return result
