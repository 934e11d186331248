"""What the kernels compile to, for every architecture and without a GPU: `python -m pyssl_fast.kernels.triton.aot`."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pyssl_fast.kernels.triton import configs
from pyssl_fast.kernels.triton.similarity import rows, streamed, tiles

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_ELEMENT = {"tf32x3": "*fp32", "tf32": "*fp32", "bf16": "*bf16", "fp16": "*fp16"}
_IN_DTYPE = ("z", "y", "x", "keys", "grad_z")
_SCALARS = ("power", "steepest")
_DOUBLES = ("lse", "positive", "grad", "bound", "grad_scale_parts")
_LONGS = ("row_ids", "column_ids", "best")
_ALIGNED = ("depth", "padded", "own_padded", "other_padded", "row_stride")

# The matrix instruction that each precision must show. sm_100's UTCHMMA does not name its type; the PTX does.
MATRIX = {
    80: {"tf32x3": "HMMA.1688.F32.TF32", "bf16": "HMMA.16816.F32.BF16", "fp16": "HMMA.16816.F32"},
    90: {"tf32x3": "HGMMA.F32.TF32", "bf16": "HGMMA.F32.BF16", "fp16": "HGMMA.F32"},
    100: {"tf32x3": "UTCHMMA.tf32", "bf16": "UTCHMMA.f16", "fp16": "UTCHMMA.f16"},
}
MATRIX[120] = MATRIX[80]
for _names in MATRIX.values():
    _names["tf32"] = _names["tf32x3"]


@dataclasses.dataclass(frozen=True)
class Build:
    """One kernel, compiled: what its cubin says of itself."""

    label: str
    architecture: int
    precision: str
    tile: configs.Tile | None  # None for row kernels
    registers: int  # per thread
    spilled: int  # bytes of stack per thread
    spill_instructions: int  # loads from and stores to local memory
    shared: int  # bytes per block
    matrix: Mapping[str, int]  # matrix instruction -> how often it stands in the code


def _type(name: str, precision: str, terms: int) -> Any:
    if name in _IN_DTYPE:
        return _ELEMENT[precision]
    if name in rows.INTEGERS:
        return "i32"
    if name in _SCALARS:
        return "fp32"
    if name.endswith("powers"):
        return ("fp32",) * max(1, terms)
    return "*fp64" if name in _DOUBLES else "*i64" if name in _LONGS else "*fp32"


def source(kernel: Any, precision: str, constants: dict[str, Any]) -> ASTSource:
    """A kernel with the types of a launch on ordinary tensors: aligned pointers, unit column stride, 32-bit sizes."""
    constants = {**{name: 1 for name in kernel.arg_names if name == "column_stride"}, **constants}
    terms = {"powers": "TERMS", "own_powers": "OWN", "other_powers": "OTHER"}
    signature = {
        name: "constexpr" if name in constants else _type(name, precision, len(constants.get(terms.get(name, ""), ())))
        for name in kernel.arg_names
    }
    attributes = {
        (position,): [["tt.divisibility", 16]]
        for position, name in enumerate(kernel.arg_names)
        if signature[name][0] == "*" or (name in _ALIGNED and name not in constants)
    }
    return ASTSource(kernel, signature, constants, attributes)


def compile_kernel(
    kernel: Any, precision: str, constants: dict[str, Any], architecture: int, warps: int, stages: int = 3
) -> Any:
    """Compile a kernel for an architecture, whatever this machine has."""
    return triton.compile(
        source(kernel, precision, constants),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": warps, "num_stages": stages},
    )


def inspect(compiled: Any, label: str, architecture: int, precision: str, tile: configs.Tile | None = None) -> Build:
    """Read registers, spills and instructions from a compiled kernel's cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        sass = _tool("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump said nothing of registers: {usage}")
    instructions = re.findall(r"\b(HMMA|HGMMA|UTC\w*MMA)([\w.]*)", sass)
    kinds = ".".join(sorted(set(re.findall(r"tcgen05\.mma\S*kind::(\w+)", compiled.asm["ptx"]))))
    matrix = collections.Counter(
        f"{name}.{kinds}" if kinds else name + re.sub(r"^\.\d+x\d+x\d+", "", rest) for name, rest in instructions
    )
    return Build(
        label=label,
        architecture=architecture,
        precision=precision,
        tile=tile,
        registers=int(found[1]),
        spilled=int(found[2]),
        spill_instructions=len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        shared=compiled.metadata.shared,
        matrix=dict(matrix),
    )


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([str(_TOOLS / name), *arguments], capture_output=True, text=True, check=True).stdout


@dataclasses.dataclass(frozen=True)
class Job:
    """One kernel to compile."""

    label: str
    kernel: Any
    precision: str
    constants: dict[str, Any]
    warps: int
    stages: int = 3
    tile: configs.Tile | None = None


def tile_jobs(architecture: int) -> Iterator[Job]:
    """Every tile of an architecture's tables, in the kernel that takes most: with every optional argument."""
    no_ids: dict[str, Any] = {"row_ids": None, "column_ids": None}
    no_limits: dict[str, Any] = {"own_limit": None, "other_limit": None}
    kernels: tuple[tuple[str, Any, Any, Callable[[configs.Tile, str], dict[str, Any]]], ...] = (
        ("sums", tiles.stream_sums, configs.SUMS, lambda t, p: {
            **streamed.sums_constants(t, p, (0,), True, True, True), **no_ids, "limit": None, "statistics": None,
        }),
        ("sums of kinds", tiles.stream_sums, configs.SUMS_OF_KINDS, lambda t, p: (
            streamed.sums_constants(t, p, (0, 1), True, True, False)
        )),
        ("gradient", tiles.stream_gradient, configs.GRADIENT, lambda t, p: {
            **streamed.gradient_constants(t, p, (0,), (0,), True, True, True, True), **no_ids, **no_limits,
        }),
        ("gradient of kinds", tiles.stream_gradient, configs.GRADIENT_OF_KINDS, lambda t, p: (
            streamed.gradient_constants(t, p, (0, 1), (0, 1), False, True, True, False)
        )),
        ("bank", tiles.stream_bank, configs.BANK, lambda t, p: streamed.bank_constants(t, p, 0, True)),
        ("sigmoid", tiles.stream_sigmoid, configs.SIGMOID, lambda t, p: streamed.sigmoid_constants(t, p, False)),
        ("sigmoid, swapped", tiles.stream_sigmoid, configs.SIGMOID, lambda t, p: {
            **streamed.sigmoid_constants(t, p, True), "sums": None,
        }),
        ("neighbours", tiles.stream_neighbours, configs.NEIGHBOURS, lambda t, p: (
            streamed.neighbours_constants(t, p, False, True, configs.NEIGHBOURS_AT_MOST)
        )),
    )  # fmt: skip
    for name, kernel, table, constants in kernels:
        for precision in configs.KINDS:
            unit = {"radius": None, "x_radius": None} if precision.startswith("tf32") else {}
            own = {n: v for n, v in unit.items() if n in kernel.arg_names}
            for depth, tile in table[architecture][precision if precision.startswith("tf32") else "half"].items():
                label = f"{name} D≤{depth}" if depth < configs.ANY else f"{name} any D"
                yield Job(
                    label, kernel, precision, {**constants(tile, precision), **own}, tile.warps, tile.stages, tile
                )


def row_jobs() -> Iterator[Job]:
    """Every row kernel."""
    row = configs.ROW
    for precision in ("tf32x3", "bf16", "fp16"):
        for kernel, own in rows.row_kernels(precision):
            if precision != "tf32x3" and not set(_IN_DTYPE) & set(kernel.arg_names):
                continue  # only float32 goes in and out
            shape = {
                name: getattr(row, name.lower()) for name in ("BLOCK_R", "BLOCK_D", "BLOCK") if name in kernel.arg_names
            }
            yield Job(kernel.__name__, kernel, precision, {**shape, **own}, row.warps)


def build(job: Job, architecture: int) -> Build:
    """A kernel compiled for an architecture, and read."""
    compiled = compile_kernel(job.kernel, job.precision, job.constants, architecture, job.warps, job.stages)
    return inspect(compiled, job.label, architecture, job.precision, job.tile)


def builds(architecture: int, rows: bool = True) -> Iterator[Build]:
    """Every tile, and every row kernel if asked for, on as many processes as there are cores."""
    count = len(_jobs(architecture, rows))
    with concurrent.futures.ProcessPoolExecutor(mp_context=multiprocessing.get_context("fork")) as pool:
        yield from pool.map(_build_nth, [architecture] * count, [rows] * count, range(count))


def _jobs(architecture: int, rows: bool) -> list[Job]:
    return [*tile_jobs(architecture), *(row_jobs() if rows else ())]


def _build_nth(architecture: int, rows: bool, number: int) -> Build:
    """A kernel does not travel between processes; its place in the list does."""
    return build(_jobs(architecture, rows)[number], architecture)


def _main() -> None:
    print(f"{'target':7}{'kernel':28}{'precision':10}{'tile':30}{'registers':>10}{'spilled':>8}{'shared':>8}  matrix")
    for architecture in configs.ARCHITECTURES:
        for build in builds(architecture):
            t = build.tile
            shape = f"{t.block_m}×{t.block_n}×{t.block_k}" if t else ""
            if t:
                shape += (f"→{t.block_out}" if t.block_out else "") + f" {t.warps}w {t.stages}s"
            matrix = ", ".join(f"{count} {name}" for name, count in build.matrix.items())
            print(
                f"sm_{architecture:<4}{build.label:28}{build.precision:10}{shape:30}"
                f"{build.registers:>10}{build.spilled:>8}{build.shared:>8}  {matrix}"
            )


if __name__ == "__main__":
    _main()
