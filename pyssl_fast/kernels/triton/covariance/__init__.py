"""Covariance family on GPUs. Signatures are the twins'."""

from pyssl_fast.kernels.triton.covariance.characteristic import characteristic, characteristic_backward

__all__ = ["characteristic", "characteristic_backward"]
