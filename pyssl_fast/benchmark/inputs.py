"""What the families' benchmarks share: inputs, and other packages' classes."""

from __future__ import annotations

import pkgutil
from typing import Any

import torch
from torch import Generator, Tensor

from pyssl_fast.benchmark.cases import Case


def leaf(x: Tensor, case: Case) -> Tensor:
    return x.to(case.device, case.dtype).requires_grad_(case.backward)


def near(samples: int, dim: int, generator: Generator, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """Two views [N, D] that lie near each other, as after some training: at a cosine of 1 / (1 + noise²)."""
    shared, one, other = torch.randn(3, samples, dim, generator=generator).unbind()
    return shared + noise * one, shared + noise * other


def two_views(case: Case, generator: Generator) -> tuple[Tensor, ...]:
    """z0, z1: [N, D]."""
    samples = case.rows if case.system.keys == "columns" else case.rows // case.system.views
    z0, z1 = near(samples, case.dim, generator)
    return leaf(z0, case), leaf(z1, case)


def peer_class(name: str, *arguments: Any, **settings: Any) -> Any:
    """An instance of another package's class, "package.module:Class", imported when it is wanted."""
    return pkgutil.resolve_name(name)(*arguments, **settings)
