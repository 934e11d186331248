"""Cases and their sides; the same for every family. A family is a table of systems: what is measured, beside whom."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pyssl_fast import backend
from pyssl_fast.benchmark import machine
from pyssl_fast.benchmark.measure import Side, Work, precision
from pyssl_fast.functional.checks import check_temperature

PACKAGES = {
    "lightly": "lightly",
    "open_clip": "open_clip",
    "pml": "pytorch_metric_learning",
    "timm": "timm",
    "albumentations": "albumentations",
    "dali": "nvidia.dali",
    "torchvision": "torchvision",
    "torchvision-uint8": "torchvision",
    "kornia": "kornia",
}
LABELS = {
    "eager": "eager PyTorch",
    "gram": "eager Gram matrix",
    "twin": "twin under autograd",
    "compiled": "torch.compile'd",
    "blocked": "blocked torch.mm",
    "bare": "bare products",
    "pml": "pytorch-metric-learning",
    "triad": "bare triad",
    "foreach": "torch._foreach",
    "loop": "loop over tensors",
    "fused": "torch, fused",
    "dali": "DALI, CPU",
    "torchvision-uint8": "torchvision, uint8",
}
_BY_DEVICE = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}

_BARE = {"parameters": "step", "images": "views"}  # keys of what has no products, no gradient and no loss -> the mode

Call = Callable[[], Tensor | None]  # the loss [], or None of work that has none
# (case, *its inputs) -> the call. What is prepared before the call comes is not measured.
Make = Callable[..., Call]


@dataclass(frozen=True)
class Peer:
    """Another way to compute a system's loss.

    Attributes:
        make: gives the call.
        copies: of S [M, N] (of C [D, D] where columns are compared, of all parameters, of all images and views) that it
            holds at its peak, as measured in float32; what would not fit is left out.
        compiles: its first call of every shape compiles, or starts processes.
        elsewhere: in these, so that its memory is not seen.
        why_not: why it cannot take part in a case; None when it can.
    """

    make: Make
    copies: float = 0.0
    compiles: bool = False
    elsewhere: bool = False
    why_not: Callable[[Case], str | None] = lambda case: None


@dataclass(frozen=True, eq=False)
class System:
    """What is measured: a loss, a look-up, a step of all parameters, or the views of all images.

    Attributes:
        name: as the command line spells it.
        measures: as a title says it.
        inputs: (case, generator) -> its tensors. Those that require a gradient get one in `forward+backward`.
        ours, peers: the sides. The losses of all are held against the first peer's; steps and views have none.
        gemms: the fewest matrix products of 2·M·N·D operations that the mathematics allows; N is the smaller of M and D
            where columns are compared.
        keys: what the rows are compared with: the "rows" themselves, "pairs" (as many columns, with gradients of their
            own), or a "bank" without gradients; "columns": not rows but the columns of views of M rows are compared;
            "parameters": nothing is, M tensors of D numbers in all are changed in place; "images": nothing is, M of
            D × D pixels are augmented.
        views: of one sample, among the rows; with "columns", how many there are.
        temperature: unless another is asked for; None: it has none.
        gradient: whether it has one; a look-up has none.
        copies: of S, C, all parameters, or all images and views, that our operators hold on the reference backend.
        family: of the kernels.
        traffic: the fewest bytes to and from memory for each number of the parameters, or to it for an image's views.
        models: (M, D) -> whose parameters these are.
    """

    name: str
    measures: str
    inputs: Callable[[Case, torch.Generator], tuple[Tensor, ...]]
    ours: Make
    peers: Mapping[str, Peer]
    gemms: Callable[[Case], float] = lambda case: 0.0
    keys: str = "rows"
    views: int = 1
    temperature: float | None = None
    gradient: bool = True
    copies: float = 16.0
    family: str = "similarity"
    traffic: float = 0.0
    models: Mapping[tuple[int, int], str] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One problem: a system at a size.

    Attributes:
        rows: M, over all views; of "parameters" the number of tensors, of "images" theirs.
        dim: D; of "parameters" the numbers in all of them, of "images" the pixels along a side.
        columns: N of a bank.
        temperature: None: the system's own.
        only_ours: no peer could hold it.
        targets: side -> how many times as fast as it ours is to be; narrow: in their place without AVX-512;
            target_mb: the most extra memory of ours; target_rate: the fewest images a second.
    """

    system: System
    rows: int
    dim: int
    columns: int = 0
    temperature: float | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    backward: bool = True
    only_ours: bool = False
    targets: Mapping[str, float] = field(default_factory=dict)
    narrow: Mapping[str, float] = field(default_factory=dict)
    target_mb: float | None = None
    target_rate: float | None = None

    def __post_init__(self) -> None:
        name, views = self.system.name, self.system.views
        if self.system.keys == "columns":
            views = 1
        if self.system.keys in _BARE:
            self._check_bare()
        elif self.rows < 2 * views or self.rows % views:
            raise ValueError(f"rows of {name} must be {_of(views)} of 2 samples or more; got {self.rows}")
        if self.dim < 1:
            raise ValueError(f"dim must be 1 or more; got {self.dim}")
        if self.system.keys != "bank":
            object.__setattr__(self, "columns", self.rows)
        elif self.columns < self.rows:
            raise ValueError(f"columns of {name} must be as many as its {self.rows} rows or more; got {self.columns}")
        if self.system.temperature is None:
            object.__setattr__(self, "temperature", None)
        else:
            tau = self.system.temperature if self.temperature is None else self.temperature
            check_temperature(tau)
            object.__setattr__(self, "temperature", tau)
        object.__setattr__(self, "backward", self.backward and self.system.gradient)

    def _check_bare(self) -> None:
        name = self.system.name
        of_rows, of_dim, least = "tensors", "numbers in all tensors", self.rows
        if self.system.keys == "images":
            of_rows, of_dim, least = "images", "pixels along a side", 5  # 3 or 4 could be channels
        if self.rows < 1:
            raise ValueError(f"rows of {name}, its {of_rows}, must be 1 or more; got {self.rows}")
        if self.dim < least:
            raise ValueError(f"dim of {name}, {of_dim}, must be {least} or more; got {self.dim}")
        if self.dtype != torch.float32:
            raise ValueError(f"dtypes of {name} are part of it; dtype must be float32; got {self.dtype}")

    @property
    def tau(self) -> float:
        """The temperature of a system that has one."""
        return math.nan if self.temperature is None else self.temperature

    @property
    def title(self) -> str:
        """The case in one line, different for different problems."""
        sizes = (self.rows, self.columns, self.dim) if self.system.keys in ("pairs", "bank") else (self.rows, self.dim)
        if self.system.keys == "images":
            sizes = (self.rows, self.dim, self.dim)
        size = self.system.models.get((self.rows, self.dim)) or " × ".join(f"{n:,}" for n in sizes)
        usual = self.temperature == self.system.temperature
        return f"{self.system.name} {size}{'' if usual else f', τ = {self.temperature:g}'}"

    @property
    def mode(self) -> str:
        if self.system.keys in _BARE:
            return _BARE[self.system.keys]
        return "forward+backward" if self.backward else "forward"

    @property
    def work(self) -> Work:
        """The fewest operations, and bytes: every input read once, every gradient written once.

        Of a step the operations are not counted: none takes longer than its bytes. Nor are they of views, of which
        there is no fewest number: every image has its own.
        """
        if self.system.keys == "images":
            return Work(flops=0.0, bytes=self.rows * (3.0 * self.dim**2 + self.system.traffic))
        if self.system.keys == "parameters":
            return Work(flops=0.0, bytes=self.system.traffic * self.dim)
        own = {"pairs": 2, "columns": self.system.views}.get(self.system.keys, 1) * self.rows
        read = own if self.system.keys != "bank" else self.rows + self.columns
        return Work(
            flops=self.system.gemms(self) * 2.0 * math.prod(self.product),
            bytes=float((read + self.backward * own) * self.dim * self.dtype.itemsize),
        )

    @property
    def product(self) -> tuple[int, int, int]:
        """M, D, N of S = Q Kᵀ; where columns are compared, of the product of a view and the cheaper side's matrix.

        Steps and views have none, and a small one of theirs stands for the rate of the machine.
        """
        if self.system.keys in _BARE:
            return 1024, 128, 1024
        if self.system.keys == "columns":
            return self.rows, min(self.rows, self.dim), self.dim
        return self.rows, self.dim, self.columns

    @property
    def matrix_gb(self) -> float:
        """Size of S, of C [D, D], of all parameters, or of all images and views."""
        if self.system.keys == "parameters":
            return self.dim * 4 / 1e9
        if self.system.keys == "images":
            return self.work.bytes / 1e9
        numbers = self.dim**2 if self.system.keys == "columns" else self.rows * self.columns
        return numbers * self.dtype.itemsize / 1e9

    def small(self) -> Case:
        """The case with few rows, images, or small tensors, for warming up."""
        if self.system.keys == "images":
            return replace(self, rows=min(self.rows, 4))
        if self.system.keys == "parameters":
            return replace(self, dim=max(self.rows, min(self.dim, 1 << 16)))
        return replace(self, rows=min(self.rows, 256), columns=min(self.columns, 1024))


def _of(views: int) -> str:
    return "1 view" if views == 1 else f"{views} views"


# ---- choosing cases ------------------------------------------------------------------------------------------------


def select(
    cases: Sequence[Case],
    names: Sequence[str] = (),
    rows: Sequence[int] = (),
    dims: Sequence[int] = (),
    columns: int | None = None,
) -> list[Case]:
    """The cases of the named systems, or of all (with a size, of the first). Sizes not in the table have no targets.

    Raises:
        ValueError: an unknown name, a size that is none, columns where no system has a bank.
    """
    known = dict.fromkeys(case.system.name for case in cases)
    for name in names:
        if name not in known:
            raise ValueError(f"unknown case {name!r}; there are: {', '.join(known)}")
    resized = bool(rows or dims or columns is not None)
    names = names or ([cases[0].system.name] if resized else list(known))
    chosen = [case for case in cases if case.system.name in names]
    if not resized:
        return chosen
    if columns is not None and all(case.system.keys != "bank" for case in chosen):
        raise ValueError(f"columns are a bank's, and these have none: {', '.join(names)}")
    known_sizes = {case.title: case for case in chosen if not case.only_ours}
    found = []
    for name in names:
        of = [case for case in known_sizes.values() if case.system.name == name]
        taus = dict.fromkeys(case.temperature for case in of)
        usual = list(dict.fromkeys(case.rows for case in of))
        bank = of[0].columns if columns is None else columns
        for tau, d, m in itertools.product(taus, dims or [of[0].dim], rows or usual):
            new = Case(of[0].system, m, d, bank, tau)
            found.append(known_sizes.get(new.title, new))
    return found


def configure(
    cases: Sequence[Case], *, temperature: float | None, dtype: torch.dtype, device: torch.device, mode: str
) -> list[Case]:
    """The cases with the settings that all have in common; mode is "forward+backward" or "forward".

    The targets are of float32, forward and backward, on the CPU, at the table's temperatures.
    """
    backward = mode == "forward+backward"
    found: dict[str, Case] = {}
    for case in cases:
        tau = case.temperature if temperature is None else temperature
        new = replace(case, temperature=tau, dtype=dtype, device=device, backward=backward)
        same = (new.temperature, dtype, device.type) == (case.temperature, torch.float32, "cpu")
        if not same or new.backward != case.system.gradient:
            new = replace(new, targets={}, narrow={}, target_mb=None, target_rate=None)
        found.setdefault(new.title, new)
    return list(found.values())


def inputs(case: Case, seed: int = 0) -> tuple[Tensor, ...]:
    """The tensors of a case, the same for the same seed."""
    return case.system.inputs(case, torch.Generator().manual_seed(seed))


# ---- sides ---------------------------------------------------------------------------------------------------------


def ours(family: str, device: torch.device) -> list[str]:
    """Our backends that run on this device; the twin behind the operator where there is no other."""
    names = _BY_DEVICE.get(device.type, ())
    found = [name for name in names if backend.why_not(name, family, device.type) is None]
    return found or ["reference"]


def precisions(family: str, device: torch.device) -> list[str]:
    """The precisions of float32 matrix products worth a side: "medium" where it has kernels of its own."""
    if family in ("multi_tensor", "augment"):  # no products
        return ["highest"]
    backends = ours(family, device)
    if "cpu" in backends:
        cpu = machine.extension("_cpu") if family == "similarity" else None  # the others' products are float32 always
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


def _with_backward(call: Call, backward: bool) -> Call:
    def whole() -> Tensor | None:
        loss = call()
        if loss is None:
            return None
        if backward:
            loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        return loss.detach()

    return whole


def sides(
    case: Case,
    names: Sequence[str] = (),
    precisions: Sequence[str] = ("highest",),
    isas: Sequence[str | None] = (None,),
    seed: int = 0,
    peers: Sequence[str] = (),
) -> list[Side]:
    """The sides of one case, the system's first peer first.

    Args:
        names: "ours" (every backend that runs here), a backend's name, or peers; none: ours and all peers. Peers always
            run at "highest".
        precisions: of float32 matrix products, for each of our sides.
        isas: instruction sets, for each of our `cpu` sides; None: the one chosen for this machine.
        peers: further names that are known, of other cases.

    Raises:
        ValueError: an unknown name, or a backend that cannot run on the case's device.
    """
    system = case.system
    names = names or ["ours", *system.peers]
    tensors = inputs(case, seed)

    def reset() -> None:
        for tensor in tensors:
            tensor.grad = None

    def our_side(name: str, matmul: str, isa: str | None) -> Side:
        extra = ([] if matmul == "highest" else [matmul]) + ([isa] if isa else [])
        return Side(
            name=":".join([name, *extra]),
            label=f"ours, {' '.join([name, *extra])}",
            call=_with_backward(system.ours(case, *tensors), case.backward),
            reset=reset,
            settings=functools.partial(_ours_settings, name, matmul, isa),
            predicted_gb=system.copies * case.matrix_gb if name == "reference" else 0,
            ours=True,
            isa=isa or (machine.isa() if name == "cpu" else None),
        )

    def peer_side(name: str, peer: Peer) -> Side:
        return Side(
            name,
            LABELS.get(name, name),
            call=_with_backward(peer.make(case, *tensors), case.backward),
            reset=reset,
            settings=functools.partial(precision, "highest"),
            predicted_gb=peer.copies * case.matrix_gb,
            compiles=peer.compiles,
            elsewhere=peer.elsewhere,
        )

    found: list[Side] = []
    expanded = [ours(system.family, case.device) if name == "ours" else [name] for name in names]
    for name in dict.fromkeys(itertools.chain(*expanded)):
        if name in system.peers:
            if not case.only_ours and _missing(name, case) is None:
                found.append(peer_side(name, system.peers[name]))
        elif name in backend.BACKENDS[1:]:
            reason = backend.why_not(name, system.family, case.device.type)
            if reason is not None:
                raise ValueError(f"side {name!r} cannot run here: {reason}")
            found += [our_side(name, p, isa) for isa in (isas if name == "cpu" else (None,)) for p in precisions]
        elif name not in peers:
            known = dict.fromkeys([*system.peers, *peers])
            raise ValueError(f"unknown side {name!r}; there are: ours, {', '.join([*backend.BACKENDS[1:], *known])}")
    first = next(iter(system.peers))
    return sorted(found, key=lambda side: side.name != first)


def _missing(name: str, case: Case) -> str | None:
    """Why a peer cannot take part; None when it can."""
    package = PACKAGES.get(name)
    if package is not None and not machine.installed(package):
        return f"{package} is not installed"
    return case.system.peers[name].why_not(case)


def missing(case: Case, names: Sequence[str] = ()) -> dict[str, str]:
    """The peers of the case that cannot take part, and why."""
    reasons = {name: _missing(name, case) for name in names or case.system.peers if name in case.system.peers}
    return {name: reason for name, reason in reasons.items() if reason is not None}
