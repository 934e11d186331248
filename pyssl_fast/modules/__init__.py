"""Parts of networks, encoders and heads, and the state that losses keep: queues."""

from pyssl_fast.modules.encoders import build_encoder
from pyssl_fast.modules.heads import (
    BYOLPredictionHead,
    BYOLProjectionHead,
    PredictionHead,
    ProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
)
from pyssl_fast.modules.nearest_neighbour import NNMemoryBankModule
from pyssl_fast.modules.queue import KeyQueue, MemoryBankModule
from pyssl_fast.modules.whitening import Whitening2d

__all__ = [
    "BYOLPredictionHead",
    "BYOLProjectionHead",
    "KeyQueue",
    "MemoryBankModule",
    "NNMemoryBankModule",
    "PredictionHead",
    "ProjectionHead",
    "SimSiamPredictionHead",
    "SimSiamProjectionHead",
    "Whitening2d",
    "build_encoder",
]
