"""Similarity family: every system that lives on it, our kernels beside their peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode

from pyssl_fast import functional
from pyssl_fast.benchmark.cases import Call, Case, Peer, System
from pyssl_fast.benchmark.inputs import leaf, near, peer_class, two_views
from pyssl_fast.kernels.reference import similarity as reference
from pyssl_fast.modules import KeyQueue, NNMemoryBankModule

# ---- inputs --------------------------------------------------------------------------------------------------------


def _scalar(x: float, case: Case) -> Tensor:
    return torch.full((), x, device=case.device, requires_grad=case.backward)


def one_view(case: Case, generator: Generator) -> tuple[Tensor, ...]:
    """z: [M, D]."""
    return (leaf(torch.randn(case.rows, case.dim, generator=generator), case),)


def _labels(samples: int, case: Case, generator: Generator) -> Tensor:
    """[N] of 100 classes, fewer where they would have few members."""
    classes = max(2, min(100, samples // 4))
    return torch.randint(classes, (samples,), generator=generator).to(case.device)


def labelled_views(case: Case, generator: Generator) -> tuple[Tensor, ...]:
    """z0, z1: [N, D]; labels: [N]."""
    return *two_views(case, generator), _labels(case.rows // 2, case, generator)


def labelled(case: Case, generator: Generator) -> tuple[Tensor, ...]:
    """z: [M, D]; labels: [M]."""
    return *one_view(case, generator), _labels(case.rows, case, generator)


def towers(case: Case, generator: Generator) -> tuple[Tensor, ...]:
    """image, text: [N, D] of length 1, and a learned scale []. At a scale of 100 nearer ones would leave no loss."""
    image, text = (leaf(F.normalize(z, dim=1), case) for z in near(case.rows, case.dim, generator, noise=2.0))
    return image, text, _scalar(1 / case.tau, case)


def towers_with_bias(case: Case, generator: Generator) -> tuple[Tensor, ...]:
    """As `towers`, and a learned bias [] where SigLIP's training starts."""
    return *towers(case, generator), _scalar(-10.0, case)


def with_bank(case: Case, generator: Generator) -> tuple[Tensor, ...]:
    """query: [M, D]; key: [M, D] without gradient; bank: [N, D] float32 of length 1, the keys in its first M rows."""
    query, key = near(case.rows, case.dim, generator)
    key = key.to(case.device, case.dtype)
    bank = F.normalize(torch.randn(case.columns, case.dim, generator=generator), dim=1).to(case.device)
    bank[: case.rows] = F.normalize(key.float(), dim=1)
    return leaf(query, case), key, bank


# ---- peers ---------------------------------------------------------------------------------------------------------


def eager_nt_xent(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    """As one writes it in PyTorch. The twin of `contrast`, which serves all losses, passes over S more often."""
    u = F.normalize(torch.cat((z0, z1)), dim=1, eps=reference.NORM_EPS)
    s = (u @ u.T) / temperature
    s.fill_diagonal_(-torch.inf)
    positive = s.diagonal(len(z0))
    return (s.logsumexp(1) - torch.cat((positive, positive))).float().mean()


class _Blocked(torch.autograd.Function):
    """NT-Xent of normalised rows u [M, D], without S: blocks of rows, formed again in backward.

    exp(s_ij − bound) with bound = scale needs no running maximum and is symmetric, so that backward's weights are
    e_ij·(a_i + a_j), a_i = grad_i / Σ_j e_ij, and take one product per block.
    """

    @staticmethod
    def _blocks(rows: int, scale: float, u: Tensor) -> Iterator[tuple[slice, Tensor]]:
        size = max(64, min(512, (1 << 20) // rows))  # 4 MB of float32: the block stays in the caches of two cores
        product = u.new_empty(size, rows)
        for start in range(0, rows, size):
            block = slice(start, min(start + size, rows))
            e = torch.mm(u[block], u.T, out=product[: block.stop - start])
            e = e.float().mul_(scale).sub_(scale).exp_()
            e.diagonal(start).zero_()
            yield block, e

    @staticmethod
    def forward(ctx: Any, u: Tensor, scale: float) -> Tensor:
        total = u.new_empty(len(u), dtype=torch.float32)
        for block, e in _Blocked._blocks(len(u), scale, u):
            torch.sum(e, 1, out=total[block])
        ctx.save_for_backward(u, total)
        ctx.scale = scale
        partner = u.roll(len(u) // 2, 0)
        return total.log() + scale - scale * (u * partner).sum(1, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        u, total = ctx.saved_tensors
        grad = grads[0].float()
        a = grad / total
        grad_u = torch.empty_like(u)
        weight: Tensor | None = None
        for block, e in _Blocked._blocks(len(u), ctx.scale, u):
            weight = torch.empty_like(e) if weight is None else weight[: len(e)]
            e.mul_(torch.add(a[block, None], a, out=weight))
            torch.mm(e.to(u.dtype), u, out=grad_u[block])
        half = len(u) // 2
        grad_u -= (grad + grad.roll(half))[:, None].to(u.dtype) * u.roll(half, 0)
        return grad_u.mul_(ctx.scale), None


def blocked_nt_xent(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    """What one writes by hand in PyTorch to be fast: memory linear in the rows, three GEMMs instead of two."""
    u = F.normalize(torch.cat((z0, z1)), dim=1, eps=reference.NORM_EPS)
    nll: Tensor = _Blocked.apply(u, 1 / temperature)
    return nll.mean()


def bare_products(case: Case, z0: Tensor, z1: Tensor) -> Call:
    """The matrix products alone that eager NT-Xent makes, their outputs allocated afresh as there."""
    u = F.normalize(torch.cat((z0, z1)).detach(), dim=1)

    def call() -> None:
        s = u @ u.T  # [M, M]; stands for ∂S too
        if case.backward:
            s @ u  # [M, D]
            u.T @ s  # [D, M]

    return call


def compiled_nt_xent(case: Case, z0: Tensor, z1: Tensor) -> Call:
    torch.compiler.reset()  # each shape compiles from nothing, as dynamic=False means it
    compiled = torch.compile(lambda z0, z1: eager_nt_xent(z0, z1, case.tau), fullgraph=True, dynamic=False)
    return lambda: compiled(z0, z1)


class Twins(TorchFunctionMode):
    """Our operators give way to their twins, under autograd: the loss as plain PyTorch, its formula written once."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.pyssl_fast.contrast:
            return reference.contrast(*args[:-1])
        if func is torch.ops.pyssl_fast.bank_contrast:  # its twin forms the gradient too, which autograd does here
            q, k, scale, row_ids, column_ids, row_limit, terms, powers, statistics, _ = args
            lse, _, found = reference.contrast(
                q, k.to(q.dtype), scale, row_ids, column_ids, row_limit, None, terms, powers, 0, False, statistics
            )
            return lse.view(len(terms), -1), None, found
        return func(*args, **(kwargs or {}))


def twin(ours: Callable[..., Call]) -> Callable[..., Call]:
    """Our side with the twins, under autograd, in the place of the operators."""

    def make(case: Case, *inputs: Tensor) -> Call:
        call = ours(case, *inputs)

        def plain() -> Tensor | None:
            with Twins():
                return call()

        return plain

    return make


# ---- the systems ---------------------------------------------------------------------------------------------------


def _symmetric(case: Case) -> float:
    """Forward half a GEMM, S being symmetric. Backward half of one to form S again, and one for ∂S·U."""
    return 2 if case.backward else 0.5


def _once(*, half: bool = False) -> Callable[[Case], float]:
    """S is searched; gradients are of the pairs that were found."""
    return lambda case: 0.5 if half else 1.0


NT_XENT = System(
    "nt-xent",
    "NT-Xent",
    inputs=two_views,
    ours=lambda case, z0, z1: lambda: functional.nt_xent(z0, z1, case.tau),
    peers={
        "eager": Peer(lambda case, z0, z1: lambda: eager_nt_xent(z0, z1, case.tau), copies=5.5),
        "compiled": Peer(compiled_nt_xent, copies=3.5, compiles=True),
        "bare": Peer(bare_products, copies=1.0),
        "blocked": Peer(
            lambda case, z0, z1: lambda: blocked_nt_xent(z0, z1, case.tau),
            why_not=lambda case: (
                None if case.tau >= 2 / 80 else "its bound 1/τ loses the sums of exponentials below τ = 0.025"
            ),
        ),
        "lightly": Peer(lambda case, *z: partial(peer_class("lightly.loss:NTXentLoss", case.tau), *z), copies=8.0),
    },
    gemms=_symmetric,
    views=2,
    temperature=0.5,
)

DCL = System(
    "dcl",
    "the decoupled contrastive loss",
    inputs=two_views,
    ours=lambda case, z0, z1: lambda: functional.dcl(z0, z1, case.tau),
    peers={"lightly": Peer(lambda case, *z: partial(peer_class("lightly.loss:DCLLoss", case.tau), *z), copies=7.0)},
    gemms=_symmetric,
    views=2,
    temperature=0.1,
)


def _sup_con(case: Case, z0: Tensor, z1: Tensor, labels: Tensor) -> Call:
    return lambda: functional.sup_con(
        torch.stack((z0, z1), 1),
        labels,
        temperature=case.tau,
        base_temperature=None,
        normalize=True,
        without_positive="skip",
    )


def _pml_sup_con(case: Case, z0: Tensor, z1: Tensor, labels: Tensor) -> Call:
    loss = peer_class("pytorch_metric_learning.losses:SupConLoss", case.tau)
    return lambda: loss(torch.cat((z0, z1)), labels.repeat(2))


SUP_CON = System(
    "supcon",
    "SupCon of 100 classes",
    inputs=labelled_views,
    ours=_sup_con,
    peers={"twin": Peer(twin(_sup_con), copies=13.0), "pml": Peer(_pml_sup_con, copies=14.0)},
    gemms=_symmetric,
    views=2,
    temperature=0.07,
)

CLIP = System(
    "clip",
    "CLIP's loss",
    inputs=towers,
    ours=lambda case, image, text, scale: lambda: functional.clip_loss(image, text, scale),
    peers={
        "open_clip": Peer(lambda case, *towers: partial(peer_class("open_clip.loss:ClipLoss"), *towers), copies=8.0)
    },
    gemms=lambda case: 4 if case.backward else 1,  # S twice, for one gradient each
    keys="pairs",
    temperature=0.07,
)

SIGLIP = System(
    "siglip",
    "SigLIP's loss",
    inputs=towers_with_bias,
    ours=lambda case, *towers: lambda: functional.siglip(*towers),
    peers={
        "open_clip": Peer(lambda case, *towers: partial(peer_class("open_clip.loss:SigLipLoss"), *towers), copies=8.0)
    },
    gemms=lambda case: 3 if case.backward else 1,  # S once: a pair's gradient needs that pair alone
    keys="pairs",
    temperature=0.1,
)


def _moco(case: Case, query: Tensor, key: Tensor, bank: Tensor) -> Call:
    queue = KeyQueue(case.columns, case.dim)
    queue.keys = bank

    def call() -> Tensor | None:
        loss: Any = functional.info_nce(query, key, queue.keys, case.tau, negatives_normalized=True)
        queue.pointer.zero_()  # always the rows that hold these keys already, so that the loss stays
        queue.update(key)
        return loss

    return call


def _eager_moco(case: Case, query: Tensor, key: Tensor, bank: Tensor) -> Call:
    first = torch.zeros(case.rows, dtype=torch.int64, device=case.device)

    def call() -> Tensor:
        q, k = F.normalize(query, dim=1), F.normalize(key, dim=1)
        positive = (q * k).sum(1, keepdim=True)
        return F.cross_entropy(torch.cat((positive, q @ bank.to(q.dtype).T), 1) / case.tau, first)

    return call


def _moco_without_update(case: Case, query: Tensor, key: Tensor, bank: Tensor) -> Call:
    return lambda: functional.info_nce(query, key, bank, case.tau, negatives_normalized=True)


def _lightly_moco(case: Case, query: Tensor, key: Tensor, bank: Tensor) -> Call:
    loss = peer_class("lightly.loss:NTXentLoss", case.tau, memory_bank_size=tuple(bank.shape))
    loss.memory_bank.bank = bank

    def call() -> Tensor | None:
        loss.memory_bank.bank_ptr.zero_()
        return loss(query, key)

    return call


MOCO = System(
    "moco",
    "MoCo's loss and its queue's update",
    inputs=with_bank,
    ours=_moco,
    peers={
        "eager": Peer(_eager_moco, copies=8.0),
        "twin": Peer(twin(_moco_without_update), copies=8.0),
        "lightly": Peer(_lightly_moco, copies=8.0),
    },
    gemms=lambda case: 2 if case.backward else 1,  # the gradient of the queries, in the same pass
    keys="bank",
    temperature=0.07,
)


def _look_up(name: str, **settings: Any) -> Callable[..., Call]:
    """The nearest rows of a memory bank; its "loss" is what they have in common with the queries."""

    def make(case: Case, query: Tensor, key: Tensor, bank: Tensor) -> Call:
        module = peer_class(name, (case.columns, case.dim), **settings)
        if isinstance(module, NNMemoryBankModule):
            module.queue.keys = bank
        else:
            module.bank = bank
        return lambda: (query * module(query)).sum(dtype=torch.float32)

    return make


_NN_PEERS = {"lightly": Peer(_look_up("lightly.models.modules:NNMemoryBankModule"), copies=4.0)}
NNCLR, NNCLR_UNIT = (
    System(
        name,
        measures,
        inputs=with_bank,
        ours=_look_up("pyssl_fast.modules:NNMemoryBankModule", normalize=normalize),
        peers=_NN_PEERS,
        gemms=_once(),
        keys="bank",
        gradient=False,
    )
    for name, measures, normalize in (
        ("nnclr", "NNCLR's look-up", False),
        ("nnclr-unit", "NNCLR's look-up among keys that are kept normalised", True),
    )
)

MEAN_SHIFT = System(
    "mean-shift",
    "Mean Shift's look-up, the nearest 5",
    inputs=with_bank,
    ours=lambda case, query, _, bank: (
        lambda: functional.nearest_neighbours(query, bank.to(query.dtype), 5, normalize=False)[0].sum()
    ),
    peers={
        "eager": Peer(
            lambda case, query, _, bank: (
                lambda: torch.topk(query @ bank.to(query.dtype).T, 5).values.sum(dtype=torch.float32)
            ),
            copies=2.0,
        )
    },
    gemms=_once(),
    keys="bank",
    gradient=False,
)


def _pml_hardest(case: Case, z: Tensor, labels: Tensor) -> Call:
    loss = peer_class("pytorch_metric_learning.losses:TripletMarginLoss")
    mine = peer_class("pytorch_metric_learning.miners:BatchHardMiner")
    return lambda: loss(z, labels, mine(z, labels))


TRIPLET = System(
    "triplet",
    "triplets, the hardest in the batch",
    inputs=labelled,
    ours=lambda case, z, labels: lambda: functional.triplet_margin_in_batch(z, labels, mining="hard"),
    peers={"pml": Peer(_pml_hardest, copies=12.0)},
    gemms=_once(half=True),
)

UNIFORMITY = System(
    "uniformity",
    "uniformity",
    inputs=one_view,
    ours=lambda case, z: lambda: functional.uniformity(z),
    peers={
        "eager": Peer(
            lambda case, z: lambda: torch.pdist(F.normalize(z, dim=1)).square().mul(-2).exp().mean().log(), copies=4.5
        )
    },
    gemms=_symmetric,
)

KOLEO = System(
    "koleo",
    "KoLeo",
    inputs=one_view,
    ours=lambda case, z: lambda: functional.koleo(z),
    peers={"lightly": Peer(lambda case, z: partial(peer_class("lightly.loss:KoLeoLoss"), z), copies=2.0)},
    gemms=_once(half=True),
)


def _eager_spectral(case: Case, z0: Tensor, z1: Tensor) -> Call:
    def call() -> Tensor:
        u, v = (z / torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min(1) for z in (z0, z1))
        squares = (u @ v.T).square().fill_diagonal_(0).sum() / (len(u) * (len(u) - 1))
        return squares - 2 * (u * v).sum(1).mean()

    return call


SPECTRAL = System(
    "spectral",
    "the spectral contrastive loss",
    inputs=two_views,
    ours=lambda case, z0, z1: lambda: functional.spectral_contrastive(z0, z1),
    peers={"eager": Peer(_eager_spectral, copies=6.5)},
    # On the cheaper side: [N, N] products, or two symmetric [D, D] Grams and what their gradients take.
    gemms=lambda case: (3 if case.backward else 1) * min(1.0, case.dim / case.rows),
    keys="pairs",
)

# What the kernels are built to be good at, and how good they are to be on two cores with AVX-512.
_CLIP_TARGETS: dict[str, Any] = {"targets": {"open_clip": 1.7}, "target_mb": 64}
CASES = (
    Case(NT_XENT, 2048, 128),
    Case(NT_XENT, 8192, 128, targets={"eager": 6, "compiled": 3, "bare": 1 / 0.55}, target_mb=32),
    Case(NT_XENT, 8192, 512),
    Case(NT_XENT, 65536, 128, only_ours=True),
    Case(CLIP, 4096, 512, **_CLIP_TARGETS),
    Case(CLIP, 4096, 512, temperature=0.01, **_CLIP_TARGETS),
    Case(SIGLIP, 4096, 512, targets={"open_clip": 1.6}, target_mb=64),
    Case(MOCO, 256, 128, 65536, targets={"twin": 3}, target_mb=16),  # the queue holds 33.5 MB
    Case(NNCLR, 256, 256, 65536, targets={"lightly": 2.2}),
    Case(NNCLR_UNIT, 256, 256, 65536, targets={"lightly": 2.2}),
    Case(MEAN_SHIFT, 256, 128, 65536, targets={"eager": 1.8}),
    Case(SUP_CON, 4096, 128, targets={"twin": 7}),
    Case(DCL, 8192, 128, targets={"lightly": 12}),
    Case(TRIPLET, 4096, 128, targets={"pml": 8}),
    Case(UNIFORMITY, 8192, 128, targets={"eager": 15}),
    Case(KOLEO, 4096, 256, targets={"lightly": 3}),
    Case(SPECTRAL, 4096, 128),
)
