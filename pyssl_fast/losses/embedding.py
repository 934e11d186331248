from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pyssl_fast import functional
from pyssl_fast.functional.similarity.softmax import Result
from pyssl_fast.losses.softmax import SoftmaxLoss


class EmbeddingInfoNCELoss(SoftmaxLoss):
    """InfoNCE of text embeddings: `pyssl_fast.functional.embedding_info_nce` with its settings.

    Args:
        temperature: τ ≠ 0. An `nn.Parameter` is learned.
        query_query, document_document: whether queries (documents) are each other's negatives too.
        margin: leave out negatives that are more similar than the positive by more than this; None keeps all.
        matryoshka_dims, matryoshka_weights: lengths of the prefixes that are trained, and the weights of their losses.
        reduction, label_smoothing, debias, return_metrics: as the function's.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.05,
        *,
        query_query: bool = False,
        document_document: bool = False,
        margin: float | None = None,
        matryoshka_dims: Sequence[int] | None = None,
        matryoshka_weights: Sequence[float] | None = None,
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
        self.query_query = query_query
        self.document_document = document_document
        self.margin = margin
        self.matryoshka_dims = matryoshka_dims
        self.matryoshka_weights = matryoshka_weights

    def forward(
        self,
        query: Tensor,
        document: Tensor,
        hard_negatives: Tensor | None = None,
        *,
        ids: Tensor | None = None,
        hard_negative_ids: Tensor | None = None,
        weight: Tensor | None = None,
        debias: Tensor | None = None,
    ) -> Result:
        """query, document [B, D]; hard_negatives [B, K, D], their ids [B, K]; ids, weight, debias [B] -> the loss, []
        ([B] unreduced)."""
        return functional.embedding_info_nce(
            query,
            document,
            hard_negatives,
            self.temperature,
            query_query=self.query_query,
            document_document=self.document_document,
            margin=self.margin,
            ids=ids,
            hard_negative_ids=hard_negative_ids,
            matryoshka_dims=self.matryoshka_dims,
            matryoshka_weights=self.matryoshka_weights,
            weight=weight,
            **self.options(debias),
        )
