"""What the kernels compile to, for every architecture and without a GPU: `python -m pyssl_fast.kernels.triton.aot`."""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pyssl_fast.kernels.triton import configs, similarity

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_ELEMENT = {"tf32x3": "*fp32", "tf32": "*fp32", "bf16": "*bf16", "fp16": "*fp16"}
_IN_DTYPE = ("z", "y", "grad_z")
_STRIDES = ("row_stride", "column_stride")
_ALIGNED = ("depth", "padded", "row_stride")

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


def source(kernel: Any, precision: str, constants: dict[str, Any]) -> ASTSource:
    """A kernel with the types of a launch on ordinary tensors: aligned pointers, unit column stride, 32-bit sizes."""
    constants = {**constants, **{name: 1 for name in kernel.arg_names if name == "column_stride"}}
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in _IN_DTYPE:
            signature[name] = _ELEMENT[precision]
        elif name in similarity.INTEGERS:
            signature[name] = "i32"
        else:
            signature[name] = "*fp32"
    attributes = {
        (position,): [["tt.divisibility", 16]]
        for position, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or (name in _ALIGNED and name not in constants)
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


def shipped_tiles(architecture: int) -> Iterator[tuple[str, Any, str, int, configs.Tile]]:
    """(label, kernel, precision, largest D, tile) of every streaming kernel of an architecture."""
    for label, kernel, table in (
        ("sums", similarity._stream_sums, configs.SUMS),
        ("gradient", similarity._stream_gradient, configs.GRADIENT),
    ):
        for precision in configs.KINDS:
            by_depth = table[architecture][precision if precision.startswith("tf32") else "half"]
            for depth, tile in by_depth.items():
                yield label, kernel, precision, depth, tile


@functools.cache
def builds(architecture: int) -> tuple[Build, ...]:
    """Every shipped kernel, compiled for one architecture."""
    result = []
    for label, kernel, precision, depth, tile in shipped_tiles(architecture):
        choose = configs.gradient_constants if label == "gradient" else configs.sums_constants
        compiled = compile_kernel(kernel, precision, choose(tile, precision), architecture, tile.warps, tile.stages)
        name = f"{label} D≤{depth}" if depth < configs.ANY else f"{label} any D"
        result.append(inspect(compiled, name, architecture, precision, tile))
    row = configs.ROW
    for precision in ("tf32x3", "bf16", "fp16"):
        for kernel, own in similarity.row_kernels(precision):
            if precision != "tf32x3" and not set(_IN_DTYPE) & set(kernel.arg_names):
                continue  # only float32 goes in and out
            shape = {
                name: getattr(row, name.lower())
                for name in ("BLOCK_R", "BLOCK_D", "BLOCK", "BLOCK_REDUCE")
                if name in kernel.arg_names
            }
            compiled = compile_kernel(kernel, precision, {**shape, **own}, architecture, row.warps)
            result.append(inspect(compiled, kernel.__name__, architecture, precision))
    return tuple(result)


def _main() -> None:
    print(f"{'target':7}{'kernel':24}{'precision':10}{'tile':30}{'registers':>10}{'spilled':>8}{'shared':>8}  matrix")
    for architecture in configs.ARCHITECTURES:
        for build in builds(architecture):
            t = build.tile
            shape = f"{t.block_m}×{t.block_n}×{t.block_k}" if t else ""
            if t:
                shape += (f"→{t.block_out}" if t.block_out else "") + f" {t.warps}w {t.stages}s"
            matrix = ", ".join(f"{count} {name}" for name, count in build.matrix.items())
            print(
                f"sm_{architecture:<4}{build.label:24}{build.precision:10}{shape:30}"
                f"{build.registers:>10}{build.spilled:>8}{build.shared:>8}  {matrix}"
            )


if __name__ == "__main__":
    _main()
