"""Fused C++ / Triton / CUDA kernels for self-supervised learning, behind a thin PyTorch layer."""

import importlib.util as _importlib

# torch first: the extension then joins the OpenMP pool that torch has opened, instead of opening a second one. Then the
# extension, at once: it must be there when the process forks, to know that it did.
import torch as _torch  # noqa: F401

if _importlib.find_spec("pyssl_fast._cpu") is not None:
    from pyssl_fast import _cpu as _cpu

from pyssl_fast import augment, ema, functional, losses, optim
from pyssl_fast._version import __version__
from pyssl_fast.backend import use_backend

__all__ = ["__version__", "augment", "ema", "functional", "losses", "optim", "use_backend"]
