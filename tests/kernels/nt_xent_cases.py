"""NT-Xent against its float64 twin, whoever computes it: the inputs and the comparison."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from pyssl_fast.kernels.reference import similarity as reference
from tests.contract import assert_within_contract


def embeddings(samples: int, views: int, dim: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """[views·samples, dim] views that resemble each other, with one pair of samples that nearly coincide."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(samples, dim, generator=generator)
    if samples > 2:
        shared[1] = shared[0] + 0.1 * shared[2]
    own = torch.randn(views, samples, dim, generator=generator)
    return (0.7 * shared + own).reshape(-1, dim).to(dtype)


def gradients(rows: int, seed: int = 1) -> Tensor:
    """[rows] gradients of nll, of both signs."""
    return torch.rand(rows, generator=torch.Generator().manual_seed(seed)) * 2 - 0.5


def run(kernels: ModuleType, z: Tensor, scale: Tensor, views: int, grad_nll: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(nll, grad_z, grad_scale) by a backend's two functions."""
    nll, shift, negative_sum = kernels.nt_xent(z, scale, views)
    return nll, *kernels.nt_xent_backward(grad_nll, z, scale, shift, negative_sum, views)


def twin(z: Tensor, scale: Tensor, views: int, grad_nll: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """(nll, grad_z, grad_scale) by the twin, computed in dtype."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return run(reference, z.detach().to(dtype), scale.detach().to(wide), views, grad_nll.to(wide))


def assert_like_the_twin(
    kernels: ModuleType, z: Tensor, temperature: float, views: int, grad_nll: Tensor | None = None
) -> None:
    """nll, grad_z and grad_scale of `kernels` within the error contract."""
    scale = torch.tensor(1 / temperature, device=z.device)
    if grad_nll is None:
        grad_nll = gradients(z.shape[0]).to(z.device)
    ours = run(kernels, z, scale, views, grad_nll)
    truth = twin(z, scale, views, grad_nll, torch.float64)
    eager = twin(z, scale, views, grad_nll, z.dtype)
    assert ours[0].dtype == torch.float32 and ours[1].dtype == z.dtype and ours[2].dtype == torch.float32
    for what, mine, true, theirs in zip(("nll", "grad_z", "grad_scale"), ours, truth, eager, strict=True):
        assert_within_contract(mine, true, theirs, z.dtype, f"{what} of {tuple(z.shape)}, τ={temperature}")
