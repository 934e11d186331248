from __future__ import annotations

from torch import Tensor

from pyssl_fast import functional
from pyssl_fast.functional.similarity.softmax import Result
from pyssl_fast.losses.softmax import SoftmaxLoss


class ClipLoss(SoftmaxLoss):
    """CLIP's loss: `pyssl_fast.functional.clip_loss` with its settings. Takes the place of open_clip's class.

    Args:
        local_loss, gather_with_grad, cache_labels, rank: without effect in one process; there are no labels to cache.
        world_size: 1; gathering over processes is not supported.
        reduction, label_smoothing, debias, return_metrics: as the function's.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        *,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        debias: float | Tensor = 0.0,
        return_metrics: bool = False,
    ) -> None:
        super().__init__(
            None,
            reduction=reduction,
            label_smoothing=label_smoothing,
            debias=debias,
            return_metrics=return_metrics,
        )
        if world_size > 1 or use_horovod:
            raise NotImplementedError(f"world_size={world_size}, use_horovod={use_horovod}: one process is supported")
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.use_horovod = use_horovod

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
        *,
        ids: Tensor | None = None,
        weight: Tensor | None = None,
        debias: Tensor | None = None,
    ) -> Result:
        """image_features, text_features [N, D], of length 1; ids, weight, debias [N] -> the loss, []
        ([2, N] unreduced).

        With output_dict {"contrastive_loss": loss}, and "metrics" if they are asked for.
        """
        result = functional.clip_loss(
            image_features,
            text_features,
            logit_scale,
            logit_bias,
            ids=ids,
            weight=weight,
            **self.options(debias),
        )
        if not output_dict:
            return result
        if self.return_metrics:
            return {"contrastive_loss": result[0], "metrics": result[1]}
        return {"contrastive_loss": result}
