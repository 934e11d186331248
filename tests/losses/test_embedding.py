from __future__ import annotations

import torch

from pyssl_fast.functional import embedding_info_nce
from pyssl_fast.losses import EmbeddingInfoNCELoss


def test_passes_its_settings_on() -> None:
    q, d, hard = torch.randn(5, 4), torch.randn(5, 4), torch.randn(5, 2, 4)
    ids, weight = torch.tensor([0, 1, 0, 2, 3]), torch.rand(5)
    assert torch.equal(EmbeddingInfoNCELoss()(q, d), embedding_info_nce(q, d))
    options = {
        "query_query": True,
        "document_document": True,
        "margin": 0.1,
        "matryoshka_dims": (4, 2),
        "matryoshka_weights": (1.0, 0.5),
        "reduction": "none",
        "debias": 0.1,
        "return_metrics": True,
    }
    found, metrics = EmbeddingInfoNCELoss(0.2, **options)(
        query=q, document=d, hard_negatives=hard, ids=ids, weight=weight
    )
    want, _ = embedding_info_nce(q, d, hard, 0.2, ids=ids, weight=weight, **options)
    assert torch.equal(found, want) and metrics.lse.shape == (5,)
    smoothed = EmbeddingInfoNCELoss(label_smoothing=0.1)(q, d, hard)
    assert torch.equal(smoothed, embedding_info_nce(q, d, hard, label_smoothing=0.1))
