"""Characteristic functions of columns against their float64 twin, whoever computes them."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from pyssl_fast.kernels.reference import covariance as reference
from tests.contract import assert_within_contract
from tests.kernels.similarity_cases import gradients


@dataclass(frozen=True)
class Characteristic:
    """scale: of the values, which are Gaussian, and `at`, their mean."""

    groups: int = 2
    samples: int = 20
    dim: int = 9
    count: int = 16
    step: float = 3 / 16
    scale: float = 1.0
    at: float = 0.0


CASES = {
    "plain": Characteristic(),
    "one value": Characteristic(1, 1, 1),
    "one sample": Characteristic(3, 1, 33),
    "one column": Characteristic(1, 67, 1),
    "one frequency": Characteristic(count=1, step=3.0),
    "two frequencies": Characteristic(count=2, step=1.5),
    "an odd step": Characteristic(count=5, step=0.7),
    "many frequencies": Characteristic(1, 7, 5, count=131, step=0.02),
    "small values": Characteristic(scale=1e-6),
    "around half a turn": Characteristic(scale=1e-3, at=3.1415927 / 0.3, step=0.3),
    "large values": Characteristic(scale=1e3, step=0.3),
    "huge values": Characteristic(scale=1e7, step=0.3),
    "every size": Characteristic(scale=0.0),
}


def values(case: Characteristic, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    shape = (case.groups, case.samples, case.dim)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    size = case.scale or 10 ** (16 * torch.rand(shape, generator=generator) - 8)
    return (x * size + case.at).to(dtype)


def run(kernels: ModuleType, x: Tensor, case: Characteristic) -> dict[str, Tensor]:
    cosine, sine = kernels.characteristic(x, case.step, case.count)
    weights = (gradients(*cosine.shape, seed=seed).to(x.device) for seed in (1, 2))
    grad = kernels.characteristic_backward(*weights, x, case.step)
    assert grad.dtype == x.dtype
    return {"cosine": cosine, "sine": sine, "grad": grad}


def check(kernels: ModuleType, case: Characteristic, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
    """Under the error contract; eager is the twin in dtype."""
    x = values(case, dtype).to(device)
    ours, truth, eager = run(kernels, x, case), run(reference, x.double(), case), run(reference, x, case)
    for what, mine in ours.items():
        assert_within_contract(mine, truth[what], eager[what], dtype, what)


@dataclass(frozen=True)
class Spread:
    """Views [views, samples, dim] that resemble each other, `at` from the origin; the first `centres` have the mean."""

    views: int = 4
    samples: int = 5
    dim: int = 7
    centres: int = 2
    at: float = 0.3


SPREADS = {
    "plain": Spread(),
    "one value": Spread(1, 1, 1, 1),
    "one view": Spread(views=1, centres=1),
    "one centre": Spread(centres=1),
    "all are centres": Spread(centres=4),
    "many views": Spread(views=11, centres=3),
    "far away": Spread(at=1e3),
    "several blocks": Spread(samples=3, dim=1000),
    "a block": Spread(views=2, samples=2, dim=256, centres=1),
}


def check_spread(kernels: ModuleType, case: Spread, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
    """Under the error contract; eager is the twin in dtype."""
    x = values(Characteristic(case.views, case.samples, case.dim, at=case.at), dtype).to(device)
    weight = torch.tensor(-0.7, dtype=torch.float64, device=device)
    ours, truth, eager = (
        (twin.spread(z, case.centres), twin.spread_backward(weight, z, case.centres))
        for twin, z in ((kernels, x), (reference, x.double()), (reference, x))
    )
    assert ours[0].dtype == torch.float64 and ours[1].dtype == dtype
    for what, mine, want, theirs in zip(("distance", "grad"), ours, truth, eager, strict=True):
        assert_within_contract(mine, want, theirs, dtype, what)
