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
        block_out: of D at a time where rows of D are summed up, in registers for the program's whole life.
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


@dataclasses.dataclass(frozen=True)
class Chunks:
    """The chunked form's sizes. All are powers of two but those of a chunk.

    Args:
        rows, columns: of a chunk, at the most.
        symmetric_rows: the same with k None, where what a chunk has left of the diagonal is work for nothing.
        elements: of a chunk, at the least, unless there are no more.
        whole_rows: rows of a chunk, at the least, where it has all columns.
        tile_m, tile_n: of a chunk per program.
        sweep: columns at a time where a program has one row.
        merge, merge_parts: values, and parts of each, at a time where parts are merged.
        warps: of every kernel. A thread has 8 elements of a tile, at 48 to 79 registers for usual terms and 158 for all
            of them at once; with 16, at 80 to 140, that one spills.
    """

    rows: int = 4096
    columns: int = 32768
    symmetric_rows: int = 1024
    elements: int = 1 << 22
    whole_rows: int = 256
    tile_m: int = 32
    tile_n: int = 64
    sweep: int = 1024
    merge: int = 64
    merge_parts: int = 16
    warps: int = 8


@dataclasses.dataclass(frozen=True)
class Waves:
    """The shape of characteristic functions' kernels; all but parts and warps are powers of two.

    Args:
        block_k, block_m: frequencies and columns that a forward program sums up, a row at a time, in registers.
        chunk: rows summed in float32 before they go into float64 sums.
        rows: of a program, at the least, and parts: of the rows, at the most. Each part has sums of its own.
        block_n: rows of a backward program, with block_m columns.
        warps: of either.
    """

    block_k: int = 16
    block_m: int = 64
    chunk: int = 16
    rows: int = 64
    parts: int = 8
    block_n: int = 16
    warps: int = 4


ROW, CHUNKS, WAVES = Row(), Chunks(), Waves()


def _gradient(*shape: int, one_chunk: bool = False) -> Tile:
    block_m, block_n, block_k, block_out, warps, stages = shape
    # Each split costs a partial gradient of M·D float32, so fewer programs than the sums take.
    return Tile(block_m, block_n, block_k, warps, stages, block_out, one_chunk, programs=256)


# architecture -> precision -> largest D -> tile. float32 takes D in chunks of 32: with 64, splitting the operands for
# tf32x3 takes 224 of sm_90's 227 KB and spills 8 bytes.
SUMS: dict[int, dict[str, dict[int, Tile]]] = {
    80: {
        "tf32x3": {ANY: Tile(128, 64, 32, 8, 3)},  # 254; 128×128 spills 248 bytes
        "tf32": {ANY: Tile(128, 128, 32, 8, 3)},  # 171
        "half": {
            64: Tile(128, 64, 64, 4, 3, one_chunk=True),  # 168
            128: Tile(128, 64, 128, 4, 3, one_chunk=True),  # 192
            ANY: Tile(128, 128, 64, 8, 3),  # 207
        },
    },
    90: {
        "tf32x3": {ANY: Tile(128, 128, 32, 8, 3)},  # 228
        "tf32": {ANY: Tile(128, 128, 32, 8, 3)},  # 201
        "half": {
            64: Tile(128, 128, 64, 8, 3, one_chunk=True),  # 193
            128: Tile(128, 128, 128, 8, 3, one_chunk=True),  # 214
            ANY: Tile(128, 128, 64, 8, 3),  # 193
        },
    },
    100: {
        "tf32x3": {ANY: Tile(128, 128, 32, 8, 3)},  # 255
        "tf32": {ANY: Tile(128, 128, 32, 8, 3)},  # 254
        "half": {ANY: Tile(128, 128, 64, 8, 3)},  # 208; in one chunk it spills 8 to 24 bytes
    },
    120: {
        "tf32x3": {ANY: Tile(64, 64, 32, 8, 3)},  # 174
        "tf32": {ANY: Tile(64, 64, 32, 4, 3)},  # 128; 128×64 spills 8 bytes
        "half": {
            64: Tile(128, 64, 64, 8, 2, one_chunk=True),  # 126
            128: Tile(128, 64, 128, 8, 2, one_chunk=True),  # 128
            ANY: Tile(64, 64, 64, 4, 3),  # 143; 128×64 spills 16 bytes
        },
    },
}
GRADIENT: dict[int, dict[str, dict[int, Tile]]] = {
    80: {
        "tf32x3": {64: _gradient(64, 32, 32, 64, 8, 2), ANY: _gradient(64, 32, 32, 128, 8, 2)},  # 252, 213
        "tf32": {64: _gradient(128, 64, 32, 64, 8, 2), ANY: _gradient(128, 64, 32, 128, 8, 2)},  # 168, 250
        "half": {
            64: _gradient(128, 64, 64, 64, 8, 3, one_chunk=True),  # 198
            128: _gradient(64, 64, 128, 128, 4, 3, one_chunk=True),  # 250; 128×64 spills 48 bytes
            ANY: _gradient(64, 64, 64, 256, 8, 3),  # 177
        },
    },
    90: {
        "tf32x3": {64: _gradient(128, 32, 32, 64, 8, 2), ANY: _gradient(128, 32, 32, 128, 8, 2)},  # 177, 239
        "tf32": {64: _gradient(128, 64, 32, 64, 8, 3), ANY: _gradient(128, 64, 32, 128, 8, 3)},  # 176, 255
        "half": {
            64: _gradient(128, 128, 64, 64, 8, 3, one_chunk=True),  # 207
            128: _gradient(128, 128, 128, 128, 8, 3, one_chunk=True),  # 255
            ANY: _gradient(128, 64, 64, 256, 8, 3),  # 254
        },
    },
    100: {
        "tf32x3": {
            64: _gradient(128, 32, 32, 64, 8, 2),  # 160
            ANY: _gradient(128, 32, 32, 128, 8, 2),  # 204
        },  # 128×64 spills 16 bytes
        "tf32": {64: _gradient(128, 32, 32, 64, 8, 3), ANY: _gradient(128, 64, 32, 128, 8, 3)},  # 103, 176
        "half": {
            64: _gradient(128, 64, 64, 64, 8, 3, one_chunk=True),  # 128
            128: _gradient(128, 64, 128, 128, 8, 3, one_chunk=True),  # 146
            ANY: _gradient(128, 64, 64, 256, 8, 3),  # 254
        },
    },
    120: {
        "tf32x3": {64: _gradient(64, 32, 32, 64, 8, 2), ANY: _gradient(64, 32, 32, 128, 8, 2)},  # 245, 178
        "tf32": {64: _gradient(64, 64, 32, 64, 8, 2), ANY: _gradient(64, 64, 32, 128, 8, 2)},  # 128, 170
        "half": {
            64: _gradient(64, 64, 64, 64, 4, 3, one_chunk=True),  # 203
            128: _gradient(64, 64, 128, 128, 4, 2, one_chunk=True),  # 230
            ANY: _gradient(128, 64, 64, 128, 8, 2),  # 230
        },
    },
}

# The same two with masks of kinds of pairs: ids, limits, statistics, several terms. Smaller, for the masks' registers;
# compiled with two terms on each side.
SUMS_OF_KINDS: dict[int, dict[str, dict[int, Tile]]] = {
    80: {
        "tf32x3": {ANY: Tile(64, 64, 32, 8, 3)},  # 252
        "tf32": {ANY: Tile(64, 64, 32, 4, 3)},  # 189
        "half": {128: Tile(64, 64, 128, 4, 3, one_chunk=True), ANY: Tile(64, 64, 64, 4, 3)},  # 252, 255
    },
    90: {
        "tf32x3": {ANY: Tile(128, 64, 32, 8, 3)},  # 205
        "tf32": {ANY: Tile(128, 64, 32, 8, 3)},  # 187
        "half": {128: Tile(128, 64, 128, 8, 3, one_chunk=True), ANY: Tile(128, 64, 64, 8, 3)},  # 195, 193
    },
    100: {
        "tf32x3": {ANY: Tile(128, 64, 32, 8, 3)},  # 245
        "tf32": {ANY: Tile(128, 64, 32, 8, 3)},  # 243
        "half": {ANY: Tile(128, 64, 64, 8, 3)},  # 228
    },
    120: {
        "tf32x3": {ANY: Tile(64, 64, 32, 8, 2)},  # 255
        "tf32": {ANY: Tile(64, 64, 32, 8, 3)},  # 162
        "half": {128: Tile(64, 64, 128, 8, 2, one_chunk=True), ANY: Tile(64, 64, 64, 8, 3)},  # 176, 171
    },
}
GRADIENT_OF_KINDS: dict[int, dict[str, dict[int, Tile]]] = {
    80: {
        "tf32x3": {ANY: _gradient(64, 32, 32, 128, 8, 2)},  # 221
        "tf32": {ANY: _gradient(64, 32, 32, 128, 8, 2)},  # 171
        "half": {
            128: _gradient(64, 64, 128, 128, 8, 3, one_chunk=True),  # 253
            ANY: _gradient(64, 64, 64, 256, 8, 2),  # 255
        },
    },
    90: {
        "tf32x3": {ANY: _gradient(128, 32, 32, 128, 8, 2)},  # 243
        "tf32": {ANY: _gradient(128, 32, 32, 128, 8, 3)},  # 234
        "half": {
            128: _gradient(128, 32, 128, 128, 8, 3, one_chunk=True),  # 186
            ANY: _gradient(128, 32, 64, 128, 8, 3),  # 233
        },
    },
    100: {
        "tf32x3": {ANY: _gradient(128, 32, 32, 128, 8, 2)},  # 229
        "tf32": {ANY: _gradient(128, 64, 32, 128, 8, 2)},  # 187
        "half": {
            128: _gradient(128, 64, 128, 128, 8, 3, one_chunk=True),  # 248
            ANY: _gradient(128, 64, 64, 128, 8, 3),  # 206
        },
    },
    120: {
        "tf32x3": {ANY: _gradient(64, 32, 32, 64, 8, 2)},  # 198
        "tf32": {ANY: _gradient(64, 32, 32, 128, 8, 2)},  # 177
        "half": {
            128: _gradient(64, 64, 128, 128, 8, 2, one_chunk=True),  # 255
            ANY: _gradient(64, 64, 64, 128, 8, 2),  # 231
        },
    },
}
BANK: dict[int, dict[str, dict[int, Tile]]] = {
    80: {
        "tf32x3": {ANY: _gradient(64, 32, 32, 128, 8, 2)},  # 255
        "tf32": {ANY: _gradient(64, 32, 32, 128, 8, 2)},  # 154
        "half": {
            128: _gradient(64, 64, 128, 128, 4, 2, one_chunk=True),  # 255
            ANY: _gradient(64, 64, 64, 256, 8, 2),  # 233
        },
    },
    90: {
        "tf32x3": {ANY: _gradient(64, 32, 32, 128, 4, 2)},  # 254
        "tf32": {ANY: _gradient(64, 32, 32, 128, 4, 3)},  # 247
        "half": {
            128: _gradient(64, 64, 128, 128, 4, 3, one_chunk=True),  # 255
            ANY: _gradient(64, 64, 64, 256, 8, 3),  # 230
        },
    },
    100: {
        "tf32x3": {ANY: _gradient(128, 32, 32, 128, 8, 2)},  # 212
        "tf32": {ANY: _gradient(128, 32, 32, 128, 8, 3)},  # 158
        "half": {
            128: _gradient(128, 64, 128, 128, 8, 2, one_chunk=True),  # 241
            ANY: _gradient(128, 64, 64, 256, 8, 2),  # 254
        },
    },
    120: {
        "tf32x3": {ANY: _gradient(64, 16, 32, 128, 8, 2)},  # 178
        "tf32": {ANY: _gradient(64, 32, 32, 128, 8, 2)},  # 153
        "half": {
            128: _gradient(64, 64, 128, 128, 8, 2, one_chunk=True),  # 183
            ANY: _gradient(64, 64, 64, 128, 8, 2),  # 177
        },
    },
}
SIGMOID: dict[int, dict[str, dict[int, Tile]]] = {
    80: {
        "tf32x3": {ANY: _gradient(64, 32, 32, 128, 8, 2)},  # 255
        "tf32": {ANY: _gradient(64, 32, 32, 128, 8, 2)},  # 158
        "half": {ANY: _gradient(64, 64, 64, 256, 8, 2)},  # 255
    },
    90: {
        "tf32x3": {ANY: _gradient(128, 32, 32, 128, 8, 2)},  # 252
        "tf32": {ANY: _gradient(128, 32, 32, 128, 8, 3)},  # 181
        "half": {ANY: _gradient(64, 64, 64, 256, 8, 3)},  # 245
    },
    100: {
        "tf32x3": {ANY: _gradient(128, 32, 32, 128, 8, 2)},  # 232
        "tf32": {ANY: _gradient(128, 32, 32, 128, 8, 3)},  # 158
        "half": {ANY: _gradient(128, 64, 64, 256, 8, 3)},  # 254
    },
    120: {
        "tf32x3": {ANY: _gradient(64, 32, 32, 128, 8, 2)},  # 255
        "tf32": {ANY: _gradient(64, 32, 32, 128, 8, 2)},  # 159
        "half": {ANY: _gradient(64, 64, 64, 128, 8, 2)},  # 187
    },
}
NEIGHBOURS: dict[int, dict[str, dict[int, Tile]]] = {
    80: {
        "tf32x3": {ANY: Tile(64, 64, 32, 8, 2)},  # 255
        "tf32": {ANY: Tile(64, 64, 32, 4, 3)},  # 168
        "half": {128: Tile(64, 64, 128, 4, 3, one_chunk=True), ANY: Tile(64, 64, 64, 4, 3)},  # 168, 168
    },
    90: {
        "tf32x3": {ANY: Tile(64, 64, 32, 4, 3)},  # 201
        "tf32": {ANY: Tile(64, 64, 32, 4, 3)},  # 163
        "half": {128: Tile(64, 64, 128, 4, 3, one_chunk=True), ANY: Tile(64, 64, 64, 4, 3)},  # 142, 168
    },
    100: {
        "tf32x3": {ANY: Tile(128, 64, 32, 8, 2)},  # 244
        "tf32": {ANY: Tile(128, 64, 32, 8, 3)},  # 187
        "half": {128: Tile(128, 64, 128, 8, 3, one_chunk=True), ANY: Tile(128, 64, 64, 8, 3)},  # 186, 187
    },
    120: {
        "tf32x3": {ANY: Tile(64, 32, 32, 8, 2)},  # 176
        "tf32": {ANY: Tile(64, 64, 32, 8, 3)},  # 126
        "half": {128: Tile(64, 64, 128, 8, 2, one_chunk=True), ANY: Tile(64, 64, 64, 8, 2)},  # 128, 128
    },
}
# The covariance family: square tiles of K×K matrices, whose contraction is split among `programs`, and tiles of their
# product with A [N, D]. 16-bit inputs run in tf32: what is left of them without their means has float32's digits.
# Registers are the most of any kernel that a test compiles. tf32x3 holds two sums, the matrix units' and the total's.
MATRICES: dict[int, dict[str, Tile]] = {
    80: {
        "tf32x3": Tile(64, 64, 32, 8, 2),  # 255; 128×128 spills 500 bytes, a third stage 8
        "tf32": Tile(128, 128, 16, 8, 3),  # 178; 32 of the contraction at a time spill 16 bytes
    },
    90: {
        "tf32x3": Tile(64, 64, 32, 4, 3),  # 255; 128×128 spills 56 bytes
        "tf32": Tile(128, 128, 32, 8, 3),  # 231
    },
    100: {
        "tf32x3": Tile(128, 128, 32, 8, 2),  # 242
        "tf32": Tile(128, 128, 32, 8, 3),  # 171
    },
    120: {
        "tf32x3": Tile(64, 64, 16, 8, 3),  # 174; 32 of the contraction at a time spill 24 bytes, as they do in tf32
        "tf32": Tile(128, 128, 16, 8, 3),  # 174
    },
}
# The same where columns are weighted: what a row's weights take spills 288 bytes there.
WEIGHTED_MATRICES = {**MATRICES, 100: {**MATRICES[100], "tf32x3": Tile(64, 64, 32, 8, 2)}}  # 155
PRODUCTS: dict[int, dict[str, Tile]] = {
    80: {
        "tf32x3": Tile(64, 64, 16, 8, 3),  # 174; 32 of the contraction at a time spill 8 bytes
        "tf32": Tile(128, 64, 32, 8, 3),  # 178
    },
    90: {
        "tf32x3": Tile(128, 64, 32, 8, 3),  # 248
        "tf32": Tile(128, 64, 32, 8, 3),  # 189; 128×128 spills 248 bytes
    },
    100: {
        "tf32x3": Tile(128, 64, 32, 8, 2),  # 246; 128×128 spills 160 bytes
        "tf32": Tile(128, 64, 32, 8, 3),  # 142; 128×128 spills 72 bytes
    },
    120: {
        "tf32x3": Tile(64, 32, 32, 8, 2),  # 254; 64×64 spills 24 bytes
        "tf32": Tile(64, 64, 32, 8, 3),  # 142
    },
}
EXACT = Tile(32, 32, 16, 8, 2)  # both in float64, anywhere; with 4 warps it spills 8 bytes on sm_120

NEIGHBOURS_AT_MOST = 8  # of a row, in registers

# The largest D that runs streamed; beyond, the library's products on chunks of S win. By count, none could be timed:
# per pair of S, a product is 2·D operations, at about 60 % of the dense rate for the library and 40 % for tiles with
# something to do between products; chunks of S cost 8 bytes forward and 14 to 20 backward.
#
# Sums take 1 product either way (2 for both directions, chunked 1). Others found register-shaped kernels ahead up to D
# 1,024 on sm_80 and sm_90 and 512 on sm_100, whose matrix units registers cannot feed any longer. In tf32x3 the tiles
# have no rival: the library's float32 products run on plain multipliers, at less than half the rate.
STREAMED_SUMS = {
    80: {"tf32x3": ANY, "tf32": 512, "half": 1024},
    90: {"tf32x3": ANY, "tf32": 512, "half": 1024},
    100: {"tf32x3": ANY, "tf32": 512, "half": 512},
    120: {"tf32x3": ANY, "tf32": 512, "half": 512},
}
# What accumulates rows of D in registers forms S again for every block_out of them: 2·(1 + D / block_out) products for
# both gradients where chunks take 3. On sm_90 in bf16, in ps: D 256, 5.1 streamed and 7.2 chunked; D 512, 15 and 10.
STREAMED_ROWS = {
    80: {"tf32x3": 256, "tf32": 128, "half": 256},
    90: {"tf32x3": 256, "tf32": 128, "half": 256},
    100: {"tf32x3": 512, "tf32": 128, "half": 256},
    120: {"tf32x3": 256, "tf32": 128, "half": 128},
}

_forced: dict[type, Any] = {}


@contextlib.contextmanager
def force(*shapes: Tile | Row | Chunks | Waves) -> Iterator[None]:
    """Run every kernel inside the block with these shapes: small ones, where kernels are interpreted."""
    global _forced
    before, _forced = _forced, {**_forced, **{type(shape): shape for shape in shapes}}
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


def _architecture(x: Tensor) -> int:
    return nearest(torch.cuda.get_device_capability(x.device)) if x.is_cuda else ARCHITECTURES[0]


def _choose(table: dict[int, dict[str, dict[int, Tile]]], z: Tensor) -> Tile:
    if Tile in _forced:
        forced: Tile = _forced[Tile]
        return forced
    precision = kind(z.dtype)
    by_depth = table[_architecture(z)][precision if precision.startswith("tf32") else "half"]
    return by_depth[min(d for d in by_depth if d >= z.shape[1])]


def sums(q: Tensor, plain: bool) -> Tile:
    """contrast's shape for q [M, D]; plain: one term a side, of negatives, without ids, limits and statistics."""
    return _choose(SUMS if plain else SUMS_OF_KINDS, q)


def gradient(q: Tensor, plain: bool) -> Tile:
    """contrast_backward's shape for q [M, D]; plain as for sums."""
    return _choose(GRADIENT if plain else GRADIENT_OF_KINDS, q)


def bank(q: Tensor) -> Tile:
    """bank_contrast's shape for q [M, D]."""
    return _choose(BANK, q)


def sigmoid(q: Tensor) -> Tile:
    """sigmoid_contrast's shape for q [M, D]."""
    return _choose(SIGMOID, q)


def neighbours(q: Tensor) -> Tile:
    """neighbours' shape for q [M, D]."""
    return _choose(NEIGHBOURS, q)


def _of_matrices(table: dict[int, dict[str, Tile]], x: Tensor) -> Tile:
    if Tile in _forced:
        forced: Tile = _forced[Tile]
        return forced
    return table[_architecture(x)][matrix_precision(x.dtype)]


def matrix_precision(dtype: torch.dtype) -> str:
    """The precision of the covariance family's products."""
    return kind(dtype) if dtype == torch.float32 else "tf32"


def matrices(x: Tensor, weighted: bool) -> Tile:
    """The shape of the covariance family's matrices, of x [N, …, D]."""
    return _of_matrices(WEIGHTED_MATRICES if weighted else MATRICES, x)


def products(x: Tensor) -> Tile:
    """The shape of these matrices' products with A, of x [N, …, D]."""
    return _of_matrices(PRODUCTS, x)


def exact() -> Tile:
    """The shape of either in float64."""
    shape: Tile = _forced.get(Tile, EXACT)
    return shape


def streamed(q: Tensor, accumulates: bool) -> bool:
    """Whether an operator on q [M, D] runs streamed rather than chunked.

    Args:
        accumulates: whether it sums rows of D, as gradients are; else a few numbers for each row.
    """
    if Tile in _forced:
        return True
    table = STREAMED_ROWS if accumulates else STREAMED_SUMS
    return q.shape[1] <= table[_architecture(q)]["half" if q.dtype != torch.float32 else kind(q.dtype)]


def row() -> Row:
    """The row kernels' shape."""
    shape: Row = _forced.get(Row, ROW)
    return shape


def chunks() -> Chunks:
    """The chunked form's sizes."""
    shape: Chunks = _forced.get(Chunks, CHUNKS)
    return shape


def waves() -> Waves:
    """The shape of characteristic functions' kernels."""
    shape: Waves = _forced.get(Waves, WAVES)
    return shape


def lift(precision: str) -> int:
    """Weights go into the second product times 2^lift, at most 2·2^lift: in half precision 2^15 leaves 39 octaves below
    the largest weight, where 2 leaves 25."""
    return 14 if precision == "fp16" else 0


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter. It multiplies bf16 operands of a dot as raw bits (Triton 3.8), so
    kernels widen them first there."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def tile_constants(tile: Tile, precision: str) -> dict[str, Any]:
    """The compile-time arguments that every streaming kernel has."""
    return {
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "ONE_CHUNK": tile.one_chunk,
        "PRECISION": "tf32x3" if precision == "tf32x3" else "tf32",
        "UPCAST": precision == "bf16" and interpreted(),
    }
