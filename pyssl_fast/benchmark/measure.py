"""How time and memory are measured; the same for every family. The method, as a contract: benchmarks/README.md."""

from __future__ import annotations

import ctypes
import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyssl_fast.benchmark.machine import memory_gb

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")

PROBE_NUMBERS = {"cpu": 1 << 24, "cuda": 1 << 28}  # float32 in every operand of the probes: more than caches hold


@dataclass(frozen=True)
class Side:
    """One way to do the work.

    Attributes:
        name: as the JSON spells it, unique among the sides of one case.
        label: as the table and the figure spell it.
        call: the work that is measured; gives the loss, or None where the work has no loss.
        reset: what must be done before every call, outside of the measurement.
        settings: what must hold around the call, outside of the measurement too.
        predicted_gb: the memory it will take at least; a side that would take too much is left out.
        compiles: its first call of every shape compiles, or starts processes, so memory is measured on the second.
        elsewhere: other processes do the work, and memory is not measured.
        ours: a side whose failure makes the whole run fail.
        isa: the instruction set of our CPU kernels.
    """

    name: str
    label: str
    call: Callable[[], Tensor | None]
    reset: Callable[[], None] = lambda: None
    settings: Callable[[], AbstractContextManager[object]] = nullcontext
    predicted_gb: float = 0.0
    compiles: bool = False
    elsewhere: bool = False
    ours: bool = False
    isa: str | None = None


@dataclass(frozen=True)
class Work:
    """The fewest floating-point operations, and bytes to and from memory, that the mathematics allows."""

    flops: float
    bytes: float


@dataclass
class Measured:
    """One side's samples, one per round, and what else was seen of it."""

    time_ms: list[float] = field(default_factory=list)
    matmul_after_ms: list[float] = field(default_factory=list)
    extra_peak_mb: float | None = None
    loss: float | None = None


@dataclass
class Outcome:
    """Everything measured of one case."""

    rounds: int
    measured: dict[Side, Measured]
    left_out: dict[str, str]  # side's name -> why
    failed: list[str]  # names of our own sides that gave an error or a wrong loss
    matmul_gflops: float
    triad_gb_s: float


def iqr(samples: Sequence[float]) -> float:
    """The distance between the quartiles; 0 of a single sample."""
    if len(samples) < 2:
        return 0.0
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return high - low


def ratio_by_round(above: Sequence[float], below: Sequence[float]) -> float:
    """The median over the rounds of above/below: what drifts from round to round cancels."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def floor_ms(work: Work, matmul_gflops: float, triad_gb_s: float) -> tuple[float, str]:
    """The time that the fewest operations or bytes take, the larger of the two, and which one it is."""
    operations = work.flops / matmul_gflops / 1e6
    transfers = work.bytes / triad_gb_s / 1e6
    return (operations, "operations") if operations >= transfers else (transfers, "bytes")


def elapsed_ms(call: Callable[[], object], device: torch.device) -> float:
    """The time of one call, in ms: the wall clock on a CPU; on a GPU two events around it, synchronised."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        event: Any = torch.cuda.Event
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        return float(start.elapsed_time(end))
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


def _status_mb(key: str) -> float:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"{_STATUS} has no {key}")


def extra_peak_mb(call: Callable[[], object], device: torch.device) -> float | None:
    """The memory that a call takes at its peak above what stood before it, in MB = 1e6 bytes; None: not measured.

    On a CPU the peak of the resident set, which Linux resets on request. On a GPU the peak of torch's allocations.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    try:
        ctypes.CDLL(None).malloc_trim(0)  # pages that malloc keeps would hide as much of what the call takes
        _CLEAR_REFS.write_text("5")  # the peak starts again from what is resident now
        resident = _status_mb("VmRSS")
    except (AttributeError, OSError):  # not Linux, not glibc, or /proc is closed
        call()
        return None
    call()
    return max(0.0, _status_mb("VmHWM") - resident)


class _Probes:
    """What the machine does at best: a bare float32 matrix product, and a triad. Measured in every round.

    The product is [M, D] @ [D, N], of as many of its rows as fill 64 MB (1 GB on a GPU).
    """

    def __init__(self, device: torch.device, product: tuple[int, int, int]) -> None:
        length = PROBE_NUMBERS[device.type]
        m, d, n = product
        m = max(1, min(m, length // n))
        self.device = device
        self.flops, self.bytes = 2 * m * d * n, 3 * 4 * length
        self._a, self._b = torch.ones(m, d, device=device), torch.ones(n, d, device=device).T
        self._product = torch.empty(m, n, device=device)
        self._x, self._y = (torch.ones(length, device=device) for _ in range(2))
        self._p, self._q = torch.ones(1024, 128, device=device), torch.ones(128, 1024, device=device)
        self._pq = torch.empty(1024, 1024, device=device)

    def matmul_ms(self) -> float:
        with precision("highest"):
            return elapsed_ms(lambda: torch.mm(self._a, self._b, out=self._product), self.device)

    def triad_ms(self) -> float:
        return elapsed_ms(lambda: self._x.add_(self._y, alpha=1e-3), self.device)

    def small_matmul_ms(self) -> float:
        """[1024, 128] @ [128, 1024], about a millisecond of a few cores: short enough to feel a fight for threads."""
        return elapsed_ms(lambda: torch.mm(self._p, self._q, out=self._pq), self.device)


@contextmanager
def precision(name: str) -> Iterator[None]:
    """torch's float32 matrix products at "highest", "high" or "medium" inside the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def interleave(
    samplers: Mapping[str, Callable[[], None]], rounds: int, seed: int, progress: Callable[[int], None]
) -> None:
    """Call every sampler once per round, in an order drawn anew for each round."""
    order, generator = list(samplers), random.Random(seed)
    for number in range(rounds):
        progress(number)
        generator.shuffle(order)
        for name in order:
            samplers[name]()


def first_line(error: BaseException) -> str:
    """What an error says, without the lines that only its author reads."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _call(side: Side) -> float | None:
    loss = side.call()
    return None if loss is None else float(loss.detach())


def run(
    sides: Sequence[Side],
    small: Sequence[Side],
    *,
    device: torch.device,
    product: tuple[int, int, int],
    rounds: int | None = None,
    rtol: float = 1e-3,
    limit_gb: float | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Measure the sides of one case beside each other.

    1. Warm-up: every side once on a small case, which loads libraries, then once on its own, which measures memory, and
       once more, which says how long a round will take. A side whose loss is not the first one's is left out.
    2. Rounds: every side once, in random order, and right after each a small torch.mm; the two probes of the machine.

    Args:
        sides: the sides of the case.
        small: the same sides, by name, of a case of few rows.
        product: M, D, N of the matrix product [M, D] @ [D, N] whose rate is the floor's.
        rounds: None: as many as fit into about 40 seconds, 5 to 25 (3 where a round takes longer than 12 seconds).
        rtol: how far, relatively, a side's loss may stand from the first side's.
        limit_gb: leave out sides that are predicted to take more; None: half of what is available.
    """
    if limit_gb is None:
        if device.type == "cuda":
            limit_gb = torch.cuda.mem_get_info(device)[0] / 2e9
        else:
            limit_gb = (memory_gb("MemAvailable") or math.inf) / 2
    warm_up = {side.name: side for side in small}
    probes = _Probes(device, product)
    measured: dict[Side, Measured] = {}
    left_out: dict[str, str] = {}
    failed: list[str] = []
    expected: float | None = None
    round_ms = 0.0

    for side in sides:
        if side.predicted_gb > limit_gb:
            left_out[side.name] = f"would take about {side.predicted_gb:.0f} GB, more than {limit_gb:.0f} GB"
            continue
        progress(f"warming up {side.label}")
        result = Measured()
        try:
            first = side if side.compiles else warm_up[side.name]
            first.reset()
            with first.settings():
                first.call()
            first.reset()
            side.reset()
            with side.settings():
                peak = extra_peak_mb(side.call, device)
                result.extra_peak_mb = None if side.elsewhere else peak
            side.reset()
            begin = time.perf_counter()
            with side.settings():
                result.loss = _call(side)
            round_ms += (time.perf_counter() - begin) * 1e3
            side.reset()
        except (RuntimeError, MemoryError, ImportError) as error:
            side.reset()
            left_out[side.name] = f"failed: {first_line(error)}"
            failed += [side.name] if side.ours else []
            continue
        if result.loss is not None:
            expected = result.loss if expected is None else expected
            if not abs(result.loss - expected) <= rtol * abs(expected):
                left_out[side.name] = f"wrong: its loss is {result.loss:.6g}, not {expected:.6g}"
                failed += [side.name] if side.ours else []
                continue
        measured[side] = result

    if rounds is None:
        rounds = 3 if round_ms > 12e3 else int(min(25, max(5, 40e3 / max(round_ms, 1e-3))))

    def sampler(side: Side, result: Measured) -> Callable[[], None]:
        def sample() -> None:
            side.reset()
            with side.settings():
                spent = elapsed_ms(side.call, device)
            result.matmul_after_ms.append(probes.small_matmul_ms())
            result.time_ms.append(spent)
            side.reset()

        return sample

    matmul_ms: list[float] = []
    triad_ms: list[float] = []
    samplers = {side.name: sampler(side, result) for side, result in measured.items()}
    samplers["the matrix product"] = lambda: matmul_ms.append(probes.matmul_ms())
    samplers["the triad"] = lambda: triad_ms.append(probes.triad_ms())
    for probe in (probes.matmul_ms, probes.triad_ms, probes.small_matmul_ms):
        probe()
    gc.collect()
    gc.disable()
    try:
        interleave(samplers, rounds, seed, lambda number: progress(f"round {number + 1} of {rounds}"))
    finally:
        gc.enable()
    return Outcome(
        rounds,
        measured,
        left_out,
        failed,
        matmul_gflops=probes.flops / statistics.median(matmul_ms) / 1e6,
        triad_gb_s=probes.bytes / statistics.median(triad_ms) / 1e6,
    )
