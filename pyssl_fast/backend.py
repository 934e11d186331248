"""Which kernels run: one table for every op."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

from pyssl_fast.kernels import reference

BACKENDS = ("auto", "reference", "cpu", "triton", "cuda")
_KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # float64 runs the twin


def _check(name: str, where: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{where} must be one of {', '.join(BACKENDS)}; got {name!r}")


# Process-wide, not per thread: backward of GPU ops runs on another thread, and torch.compile guards on a plain global.
# A wrong name in the environment is an error at the first op, where a command line can say it in one line.
_selected = os.environ.get("PYSSL_FAST_BACKEND") or "auto"


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op inside the block on one backend, for the whole process.

    Args:
        name: "auto" (by device), "reference" (plain PyTorch), "cpu" (C++), "triton" or "cuda".

    Raises:
        ValueError: name is none of these. A backend that cannot run raises at the first op, saying why.
    """
    global _selected
    _check(name, "backend")
    before, _selected = _selected, name
    try:
        yield
    finally:
        _selected = before


def selected() -> str:
    """The backend asked for: `use_backend`'s, else PYSSL_FAST_BACKEND's, else "auto"."""
    return _selected


def why_not(name: str, family: str, device: str) -> str | None:
    """Why backend `name` cannot run `family` on tensors of `device` ("cpu", "cuda", …); None when it can."""
    if importlib.util.find_spec(f"pyssl_fast.kernels.{name}") is None or (
        importlib.util.find_spec(f"pyssl_fast.kernels.{name}.{family}") is None
    ):
        return f"there are no {name} kernels for the {family} family"
    if name == "cpu":
        if device != "cpu":
            return f"the tensors are on {device}"
        if importlib.util.find_spec("pyssl_fast._cpu") is None:
            return "the extension pyssl_fast._cpu is not built (reinstall with a C++17 compiler at hand)"
    if name == "cuda":
        if device != "cuda":
            return f"the tensors are on {device}"
        if importlib.util.find_spec("pyssl_fast._cuda") is None:
            return "the extension pyssl_fast._cuda is not built (reinstall with nvcc 12.8 or newer at hand)"
    if name == "triton":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            return "the tensors are on the CPU (TRITON_INTERPRET=1, set before the start, interprets the kernels there)"
        if device not in ("cpu", "cuda"):
            return f"the tensors are on {device}"
    return None


_AUTO = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}
FAMILIES = tuple(module.name for module in pkgutil.iter_modules(reference.__path__))
# Filled at import, so that traced code only reads a dictionary.
_WHY_NOT = {
    (name, family, device): why_not(name, family, device)
    for name in BACKENDS[1:]
    for family in FAMILIES
    for device in ("cpu", "cuda")
}


def choose(family: str, x: Tensor) -> str:
    """The backend that runs `family` on x.

    Raises:
        RuntimeError: a backend was asked for that cannot run on this tensor.
        ValueError: PYSSL_FAST_BACKEND names no backend.
    """
    device = x.device.type
    _check(_selected, "PYSSL_FAST_BACKEND")
    if _selected == "auto":
        if x.dtype in _KERNEL_DTYPES:
            for name in _AUTO.get(device, ()):
                if _WHY_NOT[name, family, device] is None:
                    return name
        return "reference"
    if _selected == "reference":
        return "reference"
    reason = _WHY_NOT.get((_selected, family, device), f"the tensors are on {device}")
    if reason is None and x.dtype not in _KERNEL_DTYPES:
        reason = f"it has no kernels for {x.dtype}"
    if reason is not None:
        raise RuntimeError(f"backend {_selected!r} cannot run here: {reason}")
    return _selected


def on_cpu(family: str) -> str:
    """The backend of what `family` does on the CPU, wherever its tensors are."""
    return "reference" if _selected == "reference" or _WHY_NOT["cpu", family, "cpu"] else "cpu"


@functools.cache
def kernels(name: str, family: str) -> ModuleType:
    """The module that holds backend `name`'s kernels of `family`."""
    return importlib.import_module(f"pyssl_fast.kernels.{name}.{family}")
