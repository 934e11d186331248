"""Similarity family, the plain twins: reductions over S = Q Kᵀ that hold S."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-12  # F.normalize's: rows shorter than this are divided by it


def _partners(rows: int, views: int, device: torch.device) -> Tensor:
    """[V·N, V-1] the other views of every row's sample, rows standing view after view."""
    row = torch.arange(rows, device=device)
    return (row[:, None] + rows // views * torch.arange(1, views, device=device)) % rows


def nt_xent(z: Tensor, scale: Tensor, views: int) -> tuple[Tensor, Tensor, Tensor]:
    """NT-Xent of every row (SimCLR, Chen et al. 2020, eq. 1; more views: SupCon's L_out, Khosla et al. 2020, eq. 2).

    Args:
        z: [V·N, D] embeddings, view after view: row i + k·N is another view of row i.
        scale: [] 1/temperature.
        views: V ≥ 2.

    Returns:
        nll: [V·N] −mean over the positives p of log(exp(scale·s_ip) / Σ_{j≠i} exp(scale·s_ij)), s = cosine similarity.
        shift: [V·N] a stabiliser per row, in units of scale·s. Here the log-sum-exp itself.
        negative_sum: [V·N] Σ over the negatives j of exp(scale·s_ij − shift_i).
    """
    u = F.normalize(z, dim=1, eps=NORM_EPS)  # [V·N, D]
    s = scale * (u @ u.T)  # [V·N, V·N]
    s.fill_diagonal_(-torch.inf)
    shift = s.logsumexp(dim=1)
    positive = s.gather(1, _partners(len(z), views, z.device))  # [V·N, V-1]
    nll = shift - positive.mean(dim=1)
    negative_sum = (1 - (positive - shift[:, None]).exp().sum(dim=1)).clamp_min(0)
    return nll, shift, negative_sum


def nt_xent_backward(
    grad_nll: Tensor, z: Tensor, scale: Tensor, shift: Tensor, negative_sum: Tensor, views: int
) -> tuple[Tensor, Tensor]:
    """Gradient of `nt_xent`'s nll: grad_z like z, grad_scale like scale; shift and negative_sum as `nt_xent` gave them.

    With P the softmax of the rows and Y the mean over the positives, ∂nll/∂s = scale·(P − Y). s = u uᵀ is symmetric, so
    ∂u = (W + Wᵀ) u with W = scale·grad·(P − Y), and Σ ⟨u, ∂u⟩ counts every ⟨∂s, s⟩ twice: that is 2·scale·∂scale.
    """
    norm = z.norm(dim=1, keepdim=True)
    u = z / norm.clamp_min(NORM_EPS)
    s = scale * (u @ u.T)
    s.fill_diagonal_(-torch.inf)
    p = s.sub_(s.logsumexp(dim=1, keepdim=True)).exp_()
    partners = _partners(len(z), views, z.device)
    p.scatter_add_(1, partners, p.new_full((), -1 / (views - 1)).expand(partners.shape))
    size = grad_nll.abs().max().clamp_min(torch.finfo(grad_nll.dtype).tiny)  # a loss scale may be beyond float16
    w = p.mul_((grad_nll / size).to(u.dtype)[:, None])
    grad_u = (w + w.T) @ u  # without the factors scale and size
    radial = (u * grad_u).sum(dim=1, keepdim=True)
    grad_scale = size * radial.to(scale.dtype).sum() / 2
    grad_z = torch.where(norm < NORM_EPS, grad_u, grad_u - radial * u) / norm.clamp_min(NORM_EPS)
    return (grad_z * (scale * size)).to(z.dtype), grad_scale.to(scale.dtype)
