"""Covariance family on GPUs. Signatures are the twins'."""

from pyssl_fast.kernels.triton.covariance.characteristic import characteristic, characteristic_backward
from pyssl_fast.kernels.triton.covariance.spread import spread, spread_backward

__all__ = ["characteristic", "characteristic_backward", "spread", "spread_backward"]
