"""Fused C++ / Triton kernels for self-supervised learning, behind a thin PyTorch layer."""

# torch first: the extension then joins the OpenMP pool that torch has opened, instead of opening a second one.
import torch as _torch  # noqa: F401

from pyssl_fast import functional, losses
from pyssl_fast._version import __version__
from pyssl_fast.backend import use_backend


__all__ = ["__version__", "functional", "losses", "use_backend"]
