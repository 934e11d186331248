"""Measuring: the kernels beside their peers, one file per kernel family. The method stands in benchmarks/README.md."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType

_SHARED = ("cases", "inputs", "machine", "measure", "report")


def families() -> list[str]:
    """The kernel families that have a benchmark."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _SHARED)


def family(name: str) -> ModuleType:
    """The benchmark of one family: its cases, its sides and the fewest work that its mathematics allows.

    Raises:
        ValueError: there is no such benchmark.
    """
    if name not in families():
        raise ValueError(f"unknown family {name!r}; there are benchmarks of: {', '.join(families())}")
    return import_module(f"pyssl_fast.benchmark.{name}")
