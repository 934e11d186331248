from __future__ import annotations

from torch import Tensor, nn

from pyssl_fast import functional
from pyssl_fast.functional.checks import check_choice, check_count, check_reduction

EXCHANGES = ("bidir", "shift", "reduce", "gather")


class SigLipLoss(nn.Module):
    """SigLIP's loss: `pyssl_fast.functional.siglip` with its settings. Takes the place of open_clip's class.

    Args:
        cache_labels, rank, dist_impl: without effect in one process; there are no labels to cache.
        world_size: 1; exchange between processes is not supported.
        chunk_size: without effect: the logits are never held.
        reduction: "mean" over the images, "sum" or "none".
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
        chunk_size: int = 0,
        *,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if world_size > 1:
            raise NotImplementedError(f"world_size={world_size}: one process is supported")
        check_choice("dist_impl", dist_impl or EXCHANGES[0], EXCHANGES)
        check_count("chunk_size", chunk_size, 0)
        check_reduction(reduction)
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.dist_impl = dist_impl or EXCHANGES[0]
        self.chunk_size = chunk_size
        self.reduction = reduction

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
        *,
        ids: Tensor | tuple[Tensor, Tensor] | None = None,
        weight: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """image_features [M, D], text_features [N, D] -> the loss, [] ([M] unreduced); {"contrastive_loss": loss} if
        asked for."""
        loss = functional.siglip(
            image_features, text_features, logit_scale, logit_bias, ids=ids, weight=weight, reduction=self.reduction
        )
        return {"contrastive_loss": loss} if output_dict else loss

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"
