"""Optimizers that take one pass over all parameters, and take their teachers along."""

from pyssl_fast.optim.adamw import AdamW
from pyssl_fast.optim.common import exclude_bias_and_norm
from pyssl_fast.optim.lars import LARS

__all__ = ["LARS", "AdamW", "exclude_bias_and_norm"]
