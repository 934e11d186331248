"""What the kernels on a GPU ask of a tensor beside its memory."""

from __future__ import annotations

import torch
from torch import Tensor


def stream(x: Tensor) -> tuple[int, int]:
    """x's device, and CUDA's handle of the stream that torch is on there."""
    return x.device.index, torch.cuda.current_stream(x.device).cuda_stream


def in_host_memory(x: Tensor) -> bool:
    return x.device.type == "cpu"
