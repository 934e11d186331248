"""What the kernels of every family need to pass a tensor on: dtype and precision codes, contiguous rows."""

from __future__ import annotations

import torch
from torch import Tensor

from pyssl_fast import _cpu

_DTYPES = {torch.float32: _cpu.FLOAT32, torch.float16: _cpu.FLOAT16, torch.bfloat16: _cpu.BFLOAT16}
_PRECISIONS = {
    "highest": _cpu.PRECISION_FLOAT32,
    "high": _cpu.PRECISION_BFLOAT16X3,
    "medium": _cpu.PRECISION_BFLOAT16,
}


def dtype_code(x: Tensor) -> int:
    return _DTYPES[x.dtype]


def precision_code(x: Tensor) -> int:
    """What the matrix products may use: float32 asks torch's setting; float16 has 11 bits, which two bfloat16 hold."""
    if x.dtype == torch.bfloat16:
        return _cpu.PRECISION_BFLOAT16
    if x.dtype == torch.float16:
        return _cpu.PRECISION_BFLOAT16X3
    return _PRECISIONS[torch.get_float32_matmul_precision()]


def rows(x: Tensor) -> Tensor:
    """x itself when its rows are contiguous, else a copy."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()
