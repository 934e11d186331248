"""Parts of networks: encoders and heads."""

from pyssl_fast.modules.encoders import build_encoder
from pyssl_fast.modules.heads import ProjectionHead

__all__ = ["ProjectionHead", "build_encoder"]
