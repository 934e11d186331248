"""Lists of tensors that the multi-tensor kernels are tested on, and the truth beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyssl_fast.kernels.reference import multi_tensor as reference
from tests.contract import TRUTH_ROUNDING, assert_within_contract

Lists = dict[str, list[Tensor]]

BLOCK, CHUNK = 1024, 1 << 15
# Scalars, nothing, both sides of a block's and of a chunk's edge, some chunks, matrices and a kernel of convolutions.
SHAPES: tuple[tuple[int, ...], ...] = (
    (),
    (0,),
    (1,),
    (7,),
    (BLOCK - 1,),
    (BLOCK,),
    (BLOCK + 1,),
    (0, 5),
    (CHUNK - 1,),
    (CHUNK,),
    (CHUNK + 1,),
    (3, 2 * CHUNK + 5),
    (33, 65),
    (8, 4, 3, 3),
)
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def randoms(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, seed: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(shape, generator=generator)).to(dtype) for shape in shapes]


def doubled(lists: Lists) -> Lists:
    return {name: [x.double() for x in of] for name, of in lists.items()}


def copied(lists: Lists) -> Lists:
    return {name: [x.clone(memory_format=torch.preserve_format) for x in of] for name, of in lists.items()}


def assert_step_within_contract(
    run: Callable[[Lists, Any], None], twin: Callable[[Lists, Any], None], lists: Lists, steps: int = 3
) -> Lists:
    """`run` on the lists for some steps, each held against float64 and against the twin in the same dtypes."""
    for _ in range(steps):
        truth, eager = doubled(lists), copied(lists)
        twin(truth, None)
        twin(eager, None)
        run(lists, None)
        for name, of in lists.items():
            for i, ours in enumerate(of):
                where = f"{name}[{i}] {list(ours.shape)}"
                assert_within_contract(ours, truth[name][i], eager[name][i], ours.dtype, where)
    return lists


__all__ = [
    "BLOCK",
    "CHUNK",
    "FLOATS",
    "SHAPES",
    "TRUTH_ROUNDING",
    "Lists",
    "assert_step_within_contract",
    "copied",
    "doubled",
    "randoms",
    "reference",
]
