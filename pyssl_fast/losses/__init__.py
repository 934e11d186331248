"""The losses as modules: drop-in, one small file per system."""

from pyssl_fast.losses.nt_xent import NTXentLoss

__all__ = ["NTXentLoss"]
