"""What the kernels of every family need to pass a tensor on: matrices, pointers, precision codes."""

from __future__ import annotations

import torch
from torch import Tensor

from pyssl_fast import _cpu

DTYPES = {torch.float32: _cpu.FLOAT32, torch.float16: _cpu.FLOAT16, torch.bfloat16: _cpu.BFLOAT16}
_PRECISIONS = {
    "highest": _cpu.PRECISION_FLOAT32,
    "high": _cpu.PRECISION_BFLOAT16X3,
    "medium": _cpu.PRECISION_BFLOAT16,
}
_INT32 = torch.iinfo(torch.int32)

Matrix = tuple[int, int, int, int, int]  # data, dtype, rows, columns, stride of a row in elements
NO_MATRIX: Matrix = (0, 0, 0, 0, 0)


def matrix(x: Tensor) -> Matrix:
    """x [rows, columns], whose rows are contiguous: see `rows`."""
    return x.data_ptr(), DTYPES[x.dtype], x.shape[0], x.shape[1], x.stride(0)


def pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def precision_code(x: Tensor) -> int:
    """What the matrix products may use: float32 asks torch's setting; float16 has 11 bits, which two bfloat16 hold."""
    if x.dtype == torch.bfloat16:
        return _cpu.PRECISION_BFLOAT16
    if x.dtype == torch.float16:
        return _cpu.PRECISION_BFLOAT16X3
    return _PRECISIONS[torch.get_float32_matmul_precision()]


def rows(x: Tensor) -> Tensor:
    """x itself when its rows are contiguous and of a kernel's dtype, else a copy."""
    if x.dtype not in DTYPES:
        x = x.float()
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def ids32(first: Tensor, second: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """int64 ids as contiguous int32 ones that are equal where those are: the same, or ranks if any is too large."""
    both = first if second is None else torch.cat((first, second))
    if len(both) and not _INT32.min <= int(both.min()) <= int(both.max()) <= _INT32.max:
        both = both.unique(return_inverse=True)[1]
    both = both.to(torch.int32)
    if second is None:
        return both.contiguous(), None
    return both[: len(first)], both[len(first) :]
