"""Covariance family: every system that lives on it, our kernels beside their peers."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyssl_fast import functional, losses
from pyssl_fast.benchmark.cases import Call, Case, Peer, System
from pyssl_fast.benchmark.inputs import peer_class, two_views

# ---- peers ---------------------------------------------------------------------------------------------------------


def gram_vicreg(z0: Tensor, z1: Tensor) -> Tensor:
    """VICReg as one writes it who knows that ‖AᵀA‖² = ‖AAᵀ‖²: the smaller side, and a total less its diagonal."""
    samples, dim = z0.shape
    loss = 25 * F.mse_loss(z0, z1)
    for z in (z0, z1):
        a = z - z.mean(0)
        square = a.square().sum(0)
        gram = a @ a.T if samples < dim else a.T @ a
        off_diagonal = gram.square().sum() - square.square().sum()
        loss = loss + 25 * 0.5 * (1 - (square / (samples - 1) + 1e-4).sqrt()).relu().mean()
        loss = loss + off_diagonal / ((samples - 1) ** 2 * dim)
    return loss


def gram_barlow_twins(z0: Tensor, z1: Tensor) -> Tensor:
    """Barlow Twins as one writes it who knows that ‖AᵀB‖² = ⟨AAᵀ, BBᵀ⟩."""
    samples, dim = z0.shape
    a, b = (F.batch_norm(z, None, None, training=True) for z in (z0, z1))
    c = (a * b).sum(0)
    total = ((a @ a.T) * (b @ b.T)).sum() if samples < dim else (a.T @ b).square().sum()
    return (1 - c / samples).square().sum() + 5e-3 * (total - c.square().sum()) / samples**2


def bare_products(case: Case, z0: Tensor, z1: Tensor) -> Call:
    """The matrix products alone that a loss of C = AᵀB makes, their outputs allocated afresh."""
    a, b = z0.detach(), z1.detach()

    def call() -> None:
        c = a.T @ b  # [D, D]
        if case.backward:
            b @ c.T  # [N, D]
            a @ c  # [N, D]

    return call


# ---- systems: which kernels, beside whom, and the fewest matrix products ---------------------------------------------


def _three(case: Case) -> float:
    """Two symmetric matrices, half price each, or one whole; and a product with each view for its gradient."""
    return 3.0 if case.backward else 1.0


VICREG = System(
    "vicreg",
    "VICReg",
    inputs=two_views,
    ours=lambda case, z0, z1: lambda: functional.vicreg(z0, z1),
    peers={
        "lightly": Peer(lambda case, *z: partial(peer_class("lightly.loss:VICRegLoss"), *z), copies=7.0),
        "gram": Peer(lambda case, z0, z1: lambda: gram_vicreg(z0, z1)),
    },
    gemms=_three,
    keys="columns",
    views=2,
    copies=5.0,
    family="covariance",
)

BARLOW_TWINS = System(
    "barlow-twins",
    "Barlow Twins",
    inputs=two_views,
    ours=lambda case, z0, z1: lambda: functional.barlow_twins(z0, z1),
    peers={
        "lightly": Peer(lambda case, *z: partial(peer_class("lightly.loss:BarlowTwinsLoss"), *z), copies=4.0),
        "gram": Peer(lambda case, z0, z1: lambda: gram_barlow_twins(z0, z1)),
        "bare": Peer(bare_products, copies=1.0),
    },
    gemms=_three,
    keys="columns",
    views=2,
    copies=5.0,
    family="covariance",
)

TICO = System(
    "tico",
    "TiCo",
    inputs=two_views,
    ours=lambda case, *z: partial(_tico(case, losses.TiCoLoss()), *z),
    peers={"lightly": Peer(lambda case, *z: partial(_tico(case, peer_class("lightly.loss:TiCoLoss")), *z), copies=4.0)},
    # The second moment, which is kept, is symmetric; and its product with one view is value and gradient.
    gemms=lambda case: 1.5 * max(1.0, case.dim / case.rows),
    keys="columns",
    views=2,
    copies=4.0,
    family="covariance",
)


def _tico(case: Case, loss: Any) -> Any:
    """Of views in turn, without the memory of earlier calls: so that every call gives the same."""
    return partial(loss, update_covariance_matrix=False)


def _whitened(case: Case, loss: Any, z0: Tensor, z1: Tensor) -> Call:
    def call() -> Tensor:
        torch.manual_seed(0)  # of the deal into sub-batches
        value: Tensor = loss(torch.cat((z0, z1)))
        return value

    return call


def _w_mse_settings(case: Case) -> dict[str, Any]:
    return {
        "embedding_dim": case.dim,
        "w_size": math.gcd(case.rows, max(256, 2 * case.dim)),
        "track_running_stats": False,
    }


W_MSE = System(
    "w-mse",
    "W-MSE",
    inputs=two_views,
    ours=lambda case, *z: _whitened(case, losses.WMSELoss(**_w_mse_settings(case)), *z),
    peers={
        "lightly": Peer(
            lambda case, *z: _whitened(case, peer_class("lightly.loss:WMSELoss", **_w_mse_settings(case)), *z)
        )
    },
    # Of each view: the covariance, the solution, and two products of that size for the gradient of each.
    gemms=lambda case: 2 * (0.5 + 0.5) * (3 if case.backward else 1),
    keys="columns",
    views=2,
    copies=4.0,
    family="covariance",
)

# What the kernels are built to be good at, and how good they are to be on two cores with AVX-512.
CASES = (
    Case(VICREG, 256, 8192, targets={"lightly": 150, "gram": 1.3}, target_mb=64),
    Case(VICREG, 2048, 2048, targets={"lightly": 2.5}),
    Case(VICREG, 4096, 8192, only_ours=True),
    Case(BARLOW_TWINS, 256, 8192, targets={"lightly": 50}, target_mb=64),
    Case(BARLOW_TWINS, 2048, 2048, targets={"lightly": 1.0, "bare": 1 / 1.25}),
    Case(TICO, 2048, 256),
    Case(W_MSE, 2048, 128),
)
