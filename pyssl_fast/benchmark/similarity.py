"""Similarity family: NT-Xent, our kernels beside their peers."""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyssl_fast import backend, functional
from pyssl_fast.benchmark import machine
from pyssl_fast.benchmark.measure import Side, Work, precision
from pyssl_fast.functional.checks import check_temperature
from pyssl_fast.kernels.reference import similarity as reference

MEASURES = "NT-Xent"
PEERS = ("eager", "compiled", "blocked", "lightly", "bare")
LABELS = {
    "eager": "eager twin",
    "compiled": "torch.compile'd twin",
    "blocked": "blocked torch.mm",
    "lightly": "lightly",
    "bare": "three bare products",
}
# How many copies of S [M, M] a side holds at its peak, as measured in float32 at 4,096 rows.
_COPIES_OF_S = {"eager": 5.0, "reference": 2.0, "compiled": 3.0, "lightly": 4.6, "bare": 1.0}
_COPIES_OF_S_FORWARD = {"eager": 2.0, "reference": 2.0, "compiled": 1.0, "lightly": 4.6, "bare": 1.0}
_BY_DEVICE = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}

Call = Callable[[Tensor, Tensor], Tensor]  # z0, z1 [N, D] -> loss []


@dataclass(frozen=True)
class Case:
    """One problem: two views, `rows` embeddings in all (twice the batch size) of `dim` numbers each."""

    rows: int
    dim: int
    temperature: float = 0.5
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    backward: bool = True
    only_ours: bool = False

    def __post_init__(self) -> None:
        if self.rows < 4 or self.rows % 2:
            raise ValueError(f"rows must be an even number, 4 or more: two views of 2 samples; got {self.rows}")
        if self.dim < 1:
            raise ValueError(f"dim must be 1 or more; got {self.dim}")
        check_temperature(self.temperature)


# What the kernels are built to be good at: a common batch, a wide head, a small batch, and one that no dense way holds.
CASES = (Case(2048, 128), Case(8192, 128), Case(8192, 512), Case(65536, 128, only_ours=True))


def work(case: Case) -> Work:
    """The fewest operations and bytes. One GEMM is 2·M²·D operations.

    Forward ½ GEMM, S being symmetric. Backward ½ to form S again and 1 for ∂S·U. The rows are read once by each pass;
    the gradient is written once.
    """
    gemm = 2 * case.rows**2 * case.dim
    rows_bytes = case.rows * case.dim * case.dtype.itemsize
    return Work(flops=2 * gemm, bytes=3 * rows_bytes) if case.backward else Work(flops=gemm / 2, bytes=rows_bytes)


def inputs(case: Case, seed: int = 0) -> tuple[Tensor, Tensor]:
    """z0, z1: [N, D] two views that lie near each other, as after some training."""
    generator = torch.Generator().manual_seed(seed)
    shared, *noise = torch.randn(3, case.rows // 2, case.dim, generator=generator).unbind()
    z0, z1 = ((shared + 0.5 * n).to(case.device, case.dtype).requires_grad_(case.backward) for n in noise)
    return z0, z1


# ---- peers ---------------------------------------------------------------------------------------------------------


def eager(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    """The twin under autograd."""
    scale = torch.full((), 1 / temperature, device=z0.device)
    nll, _, _ = reference.nt_xent(torch.cat((z0, z1)), scale, 2)
    return nll.float().mean()


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


def blocked(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    """What one writes by hand in PyTorch to be fast: memory linear in the rows, three GEMMs instead of two."""
    u = F.normalize(torch.cat((z0, z1)), dim=1, eps=reference.NORM_EPS)
    nll: Tensor = _Blocked.apply(u, 1 / temperature)
    return nll.mean()


def bare(u: Tensor, backward: bool) -> None:
    """The matrix products alone that the eager twin makes of u [M, D], their outputs allocated afresh as there."""
    s = u @ u.T  # [M, M]; stands for ∂S too
    if backward:
        s @ u  # [M, D]
        u.T @ s  # [D, M]


# ---- sides ---------------------------------------------------------------------------------------------------------


def ours(device: torch.device) -> list[str]:
    """Our backends that run on this device; the twin behind the operator where there is no other."""
    names = _BY_DEVICE.get(device.type, ())
    found = [name for name in names if backend.why_not(name, "similarity", device.type) is None]
    return found or ["reference"]


def precisions(device: str) -> list[str]:
    """The precisions of float32 matrix products worth a side: "medium" where it has kernels of its own."""
    backends = ours(torch.device(device))
    if "cpu" in backends:
        cpu = machine.extension("_cpu")
        return ["highest", "medium"] if cpu and cpu.has_bfloat16() else ["highest"]
    return ["highest"] if backends == ["reference"] else ["highest", "medium"]


@contextmanager
def _ours_settings(name: str, matmul: str, isa: str | None) -> Iterator[None]:
    cpu = machine.extension("_cpu") if isa else None
    before = cpu.isa() if cpu else None
    if cpu:
        cpu.set_isa(isa)
    try:
        with backend.use_backend(name), precision(matmul):
            yield
    finally:
        if cpu:
            cpu.set_isa(before)


def sides(
    case: Case,
    names: Sequence[str] = ("ours", *PEERS),
    precisions: Sequence[str] = ("highest",),
    isas: Sequence[str | None] = (None,),
    seed: int = 0,
) -> list[Side]:
    """The sides of one case, the eager twin first.

    Args:
        names: "ours" (every backend that runs here), a backend's name, or peers. Peers always run at "highest".
        precisions: of float32 matrix products, for each of our sides.
        isas: instruction sets, for each of our `cpu` sides; None: the one chosen for this machine.

    Raises:
        ValueError: an unknown name, or a backend that cannot run on the case's device.
    """
    z0, z1 = inputs(case, seed)
    leaves = (z0, z1)

    def reset() -> None:
        for leaf in leaves:
            leaf.grad = None

    def loss_call(function: Call) -> Callable[[], Tensor]:
        def call() -> Tensor:
            loss = function(z0, z1)
            if case.backward:
                loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
            return loss.detach()

        return call

    def our_side(name: str, matmul: str, isa: str | None) -> Side:
        extra = ([] if matmul == "highest" else [matmul]) + ([isa] if isa else [])
        return Side(
            name=":".join([name, *extra]),
            label=f"ours, {' '.join([name, *extra])}",
            call=loss_call(lambda z0, z1: functional.nt_xent(z0, z1, case.temperature)),
            reset=reset,
            settings=lambda: _ours_settings(name, matmul, isa),
            predicted_gb=copies.get(name, 0) * s_gb,
            ours=True,
        )

    def peer_function(name: str) -> Call:
        if name == "eager":
            return lambda z0, z1: eager(z0, z1, case.temperature)
        if name == "blocked":
            return lambda z0, z1: blocked(z0, z1, case.temperature)
        if name == "lightly":
            from lightly.loss import NTXentLoss

            peer: Call = NTXentLoss(temperature=case.temperature)
            return peer
        torch.compiler.reset()  # each shape compiles from nothing, as dynamic=False means it
        return torch.compile(lambda z0, z1: eager(z0, z1, case.temperature), fullgraph=True, dynamic=False)

    def peer_side(name: str) -> Side:
        if name == "bare":
            u = F.normalize(torch.cat((z0, z1)).detach(), dim=1)
            call: Callable[[], Tensor | None] = functools.partial(bare, u, case.backward)
        else:
            call = loss_call(peer_function(name))
        return Side(
            name,
            LABELS[name],
            call,
            reset,
            settings=lambda: precision("highest"),
            predicted_gb=copies.get(name, 0) * s_gb,
            compiles=name == "compiled",
        )

    s_gb = case.rows**2 * case.dtype.itemsize / 1e9
    copies = _COPIES_OF_S if case.backward else _COPIES_OF_S_FORWARD
    found: list[Side] = []
    expanded = [ours(case.device) if name == "ours" else [name] for name in names]
    for name in dict.fromkeys(itertools.chain(*expanded)):
        if name in PEERS:
            if not case.only_ours and _missing(name, case) is None:
                found.append(peer_side(name))
        elif name in backend.BACKENDS[1:]:
            reason = backend.why_not(name, "similarity", case.device.type)
            if reason is not None:
                raise ValueError(f"side {name!r} cannot run here: {reason}")
            found += [our_side(name, p, isa) for isa in (isas if name == "cpu" else (None,)) for p in precisions]
        else:
            raise ValueError(
                f"unknown side {name!r}; there are: ours, {', '.join(backend.BACKENDS[1:])}, {', '.join(PEERS)}"
            )
    return sorted(found, key=lambda side: side.name != "eager")


def _missing(name: str, case: Case) -> str | None:
    """Why a peer cannot take part; None when it can."""
    if name == "lightly" and importlib.util.find_spec("lightly") is None:
        return "lightly is not installed"
    if name == "blocked" and case.temperature < 2 / 80:
        return "its bound 1/τ loses the sums of exponentials at temperatures below 0.025"
    return None


def missing(case: Case, names: Sequence[str]) -> dict[str, str]:
    """The peers that cannot take part, and why."""
    reasons = {name: _missing(name, case) for name in names}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def configure(
    cases: Sequence[Case], *, temperature: float, dtype: torch.dtype, device: torch.device, mode: str
) -> list[Case]:
    """The cases with the settings that all have in common; mode is "forward+backward" or "forward"."""
    backward = mode == "forward+backward"
    return [replace(case, temperature=temperature, dtype=dtype, device=device, backward=backward) for case in cases]


def small(case: Case) -> Case:
    """The case with few rows, for warming up."""
    return replace(case, rows=min(case.rows, 256))
