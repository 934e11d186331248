"""Tile shapes for every architecture, precision and D: the one table that the kernels' launchers ask.

Every entry was chosen from what it compiles to, since none could be timed: no register spilled, shared memory within
the target, matrix instructions in both products, then the largest tile, and the most warps that leave it whole.
`python -m pyssl_fast.kernels.triton.aot` prints registers, spills, shared memory and instructions of all of them; a
test holds them. The numbers at the entries are registers per thread with Triton 3.8, bf16 where it says half.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

ARCHITECTURES = (80, 90, 100, 120)
KINDS = ("tf32x3", "tf32", "bf16", "fp16")
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}  # bytes a block may have
ANY = 1 << 31


@dataclasses.dataclass(frozen=True)
class Tile:
    """One streaming kernel's shape.

    Args:
        block_m: rows a program owns.
        block_n: columns it takes at a time.
        block_k: of D at a time in S.
        warps, stages: as Triton takes them.
        block_out: gradient only: of D at a time in dU, in registers for the program's whole life.
        one_chunk: block_k holds all of D, so that the row block is loaded once.
        programs: columns are split among programs until there are this many.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    block_out: int = 0
    one_chunk: bool = False
    programs: int = 512

    @property
    def depth_step(self) -> int:
        """What D is padded to a multiple of."""
        return max(self.block_k, self.block_out)


@dataclasses.dataclass(frozen=True)
class Row:
    """The row kernels' shape: block_r rows × block_d columns at a time, `block` rows where there are no columns, and
    `block_reduce` at a time where one program reduces all.

    With 4 rows the backward row kernel takes 64 to 72 registers; with 16 it takes 224, and two blocks fill a
    multiprocessor; with 8 it spills 16 bytes on sm_100.
    """

    block_r: int = 4
    block_d: int = 128
    block: int = 256
    block_reduce: int = 1024
    warps: int = 4


ROW = Row()


def _gradient(*shape: int, one_chunk: bool = False) -> Tile:
    block_m, block_n, block_k, block_out, warps, stages = shape
    # Each split costs a partial gradient of M·D float32, so fewer programs than the sums take.
    return Tile(block_m, block_n, block_k, warps, stages, block_out, one_chunk, programs=256)


# architecture -> precision -> largest D -> tile. float32 takes D in chunks of 32: with 64, splitting the operands for
# tf32x3 takes 224 of sm_90's 227 KB and spills 8 bytes.
SUMS: dict[int, dict[str, dict[int, Tile]]] = {
    80: {
        "tf32x3": {ANY: Tile(128, 64, 32, 8, 3)},  # 254; 128×128 spills 248 bytes
        "tf32": {ANY: Tile(128, 128, 32, 8, 3)},  # 170
        "half": {
            64: Tile(128, 64, 64, 4, 3, one_chunk=True),  # 168: two blocks per multiprocessor
            128: Tile(128, 64, 128, 4, 3, one_chunk=True),  # 180: two blocks
            ANY: Tile(128, 128, 64, 8, 3),  # 204
        },
    },
    90: {
        "tf32x3": {ANY: Tile(128, 128, 32, 8, 3)},  # 230
        "tf32": {ANY: Tile(128, 128, 32, 8, 3)},  # 204
        "half": {
            64: Tile(128, 128, 64, 8, 3, one_chunk=True),  # 217
            128: Tile(128, 128, 128, 8, 3, one_chunk=True),  # 211
            ANY: Tile(128, 128, 64, 8, 3),  # 222
        },
    },
    100: {
        "tf32x3": {ANY: Tile(128, 128, 32, 8, 3)},  # 255
        "tf32": {ANY: Tile(128, 128, 32, 8, 3)},  # 255
        "half": {
            64: Tile(128, 128, 64, 8, 3, one_chunk=True),  # 255
            128: Tile(128, 128, 128, 8, 3, one_chunk=True),  # 255
            ANY: Tile(128, 128, 64, 8, 3),  # 209
        },
    },
    120: {
        "tf32x3": {ANY: Tile(64, 64, 32, 8, 3)},  # 174
        "tf32": {ANY: Tile(64, 64, 32, 4, 3)},  # 128; 128×64 spills 8 bytes
        "half": {
            64: Tile(128, 64, 64, 8, 2, one_chunk=True),  # 107
            128: Tile(128, 64, 128, 8, 2, one_chunk=True),  # 128
            ANY: Tile(64, 64, 64, 4, 3),  # 141; 128×64 spills 16 bytes
        },
    },
}
GRADIENT: dict[int, dict[str, dict[int, Tile]]] = {
    80: {
        "tf32x3": {64: _gradient(64, 32, 32, 64, 8, 2), ANY: _gradient(64, 32, 32, 128, 8, 2)},  # 247, 223
        "tf32": {64: _gradient(128, 64, 32, 64, 8, 2), ANY: _gradient(128, 64, 32, 128, 8, 2)},  # 198, 246
        "half": {
            64: _gradient(128, 64, 64, 64, 8, 3, one_chunk=True),  # 194
            128: _gradient(64, 64, 128, 128, 4, 3, one_chunk=True),  # 246; 128×64 spills 48 bytes
            ANY: _gradient(128, 64, 64, 128, 8, 3),  # 236
        },
    },
    90: {
        "tf32x3": {64: _gradient(128, 32, 32, 64, 8, 2), ANY: _gradient(128, 32, 32, 128, 8, 2)},  # 168, 232
        "tf32": {64: _gradient(128, 64, 32, 64, 8, 3), ANY: _gradient(128, 64, 32, 128, 8, 3)},  # 226, 254
        "half": {
            64: _gradient(128, 128, 64, 64, 8, 3, one_chunk=True),  # 245
            128: _gradient(128, 128, 128, 128, 8, 3, one_chunk=True),  # 246
            ANY: _gradient(128, 64, 64, 256, 8, 3),  # 255
        },
    },
    100: {
        "tf32x3": {
            64: _gradient(128, 32, 32, 64, 8, 2),
            ANY: _gradient(128, 32, 32, 128, 8, 2),
        },  # 175, 218; 128×64 spills 16 bytes
        "tf32": {64: _gradient(128, 64, 32, 64, 8, 3), ANY: _gradient(128, 64, 32, 128, 8, 3)},  # 237, 255
        "half": {
            64: _gradient(128, 64, 64, 64, 8, 3, one_chunk=True),  # 172
            128: _gradient(128, 64, 128, 128, 8, 3, one_chunk=True),  # 181
            ANY: _gradient(128, 64, 64, 256, 8, 3),  # 241 (fp16 255)
        },
    },
    120: {
        "tf32x3": {64: _gradient(64, 32, 32, 64, 8, 2), ANY: _gradient(64, 32, 32, 128, 8, 2)},  # 245, 213
        "tf32": {64: _gradient(64, 64, 32, 64, 8, 2), ANY: _gradient(64, 64, 32, 128, 8, 2)},  # 128, 172
        "half": {
            64: _gradient(64, 64, 64, 64, 4, 3, one_chunk=True),  # 214
            128: _gradient(64, 64, 128, 128, 4, 2, one_chunk=True),  # 230
            ANY: _gradient(128, 64, 64, 128, 8, 2),  # 226
        },
    },
}

_forced: tuple[Tile, Row] | None = None


@contextlib.contextmanager
def force(tile: Tile, row: Row) -> Iterator[None]:
    """Run every kernel inside the block with these shapes: small ones, where kernels are interpreted."""
    global _forced
    before, _forced = _forced, (tile, row)
    try:
        yield
    finally:
        _forced = before


def nearest(capability: tuple[int, int]) -> int:
    """The architecture whose table serves a GPU of this compute capability.

    Raises:
        RuntimeError: the GPU is older than the table's first.
    """
    number = 10 * capability[0] + capability[1]
    if number < ARCHITECTURES[0]:
        raise RuntimeError(
            "the triton kernels need a GPU of compute capability 8.0 or newer;"
            f" this one has {capability[0]}.{capability[1]}"
        )
    if number in (86, 89):  # sm_80's instructions with 99 KB of shared memory: sm_120's case
        return 120
    return max(a for a in ARCHITECTURES if a <= number)


def kind(dtype: torch.dtype) -> str:
    """The precision of the products: one of KINDS."""
    if dtype == torch.float32:
        return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return "bf16" if dtype == torch.bfloat16 else "fp16"


def _choose(table: dict[int, dict[str, dict[int, Tile]]], z: Tensor) -> Tile:
    if _forced is not None:
        return _forced[0]
    architecture = nearest(torch.cuda.get_device_capability(z.device)) if z.is_cuda else ARCHITECTURES[0]
    precision = kind(z.dtype)
    by_depth = table[architecture][precision if precision.startswith("tf32") else "half"]
    return by_depth[min(d for d in by_depth if d >= z.shape[1])]


def sums(z: Tensor) -> Tile:
    """The forward kernel's shape for z [M, D]."""
    return _choose(SUMS, z)


def gradient(z: Tensor) -> Tile:
    """The backward kernel's shape for z [M, D]."""
    return _choose(GRADIENT, z)


def row() -> Row:
    """The row kernels' shape."""
    return ROW if _forced is None else _forced[1]


def lift(precision: str) -> int:
    """Weights go into the second product times 2^lift, at most 2·2^lift: in half precision 2^15 leaves 39 octaves below
    the largest weight, where 2 leaves 25."""
    return 14 if precision == "fp16" else 0


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter. It multiplies bf16 operands of a dot as raw bits (Triton 3.8), so
    kernels widen them first there."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def sums_constants(tile: Tile, precision: str) -> dict[str, Any]:
    """The forward kernel's compile-time arguments."""
    return {
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "ONE_CHUNK": tile.one_chunk,
        "UNIT": precision.startswith("tf32"),
        "PRECISION": "tf32x3" if precision == "tf32x3" else "tf32",
        "UPCAST": precision == "bf16" and interpreted(),
    }


def gradient_constants(tile: Tile, precision: str) -> dict[str, Any]:
    """The backward kernel's compile-time arguments."""
    return {**sums_constants(tile, precision), "BLOCK_OUT": tile.block_out, "LIFT": lift(precision)}
