"""The checks that every function makes before a kernel runs: what came, what was expected. No device is waited for."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor, nn

REDUCTIONS = ("none", "mean", "sum")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_embeddings(name: str, x: Tensor) -> None:
    """x must be a non-empty floating-point matrix [N, D]."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a Tensor [N, D]; got {type(x).__name__}")
    if x.dim() != 2:
        raise ValueError(f"{name} must have shape [N, D]; got {list(x.shape)}")
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense Tensor; got layout {x.layout}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64; got {x.dtype}")
    if x.shape[0] == 0 or x.shape[1] == 0:
        raise ValueError(f"{name} must not be empty; got shape {list(x.shape)}")


def check_alike(name: str, x: Tensor, like_name: str, like: Tensor) -> None:
    """x must have the shape, dtype and device of `like`."""
    if x.shape != like.shape:
        raise ValueError(f"{name} must have {like_name}'s shape {list(like.shape)}; got {list(x.shape)}")
    if x.dtype != like.dtype:
        raise TypeError(f"{name} must have {like_name}'s dtype {like.dtype}; got {x.dtype}")
    if x.device != like.device:
        raise ValueError(f"{name} must be on {like_name}'s device {like.device}; got {x.device}")


def check_temperature(temperature: float | Tensor) -> None:
    """A number of 1e-8 to 1e30 in size; negative ones are legal. Values of tensors are read on the CPU alone."""
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1 or not temperature.is_floating_point():
            raise ValueError(
                "temperature as a Tensor must hold one floating-point number;"
                f" got {temperature.dtype} of shape {list(temperature.shape)}"
            )
        readable = type(temperature) in (Tensor, nn.Parameter) and temperature.device.type == "cpu"
        if not readable or torch.compiler.is_compiling():
            return
        temperature = float(temperature.detach())
    elif isinstance(temperature, bool) or not isinstance(temperature, Real):
        raise TypeError(f"temperature must be a number or a Tensor; got {type(temperature).__name__}")
    # Plain comparisons, which NaN fails: they trace where math.isfinite breaks a graph with a dynamic float.
    if not 1e-8 <= abs(temperature) <= 1e30:
        raise ValueError(f"temperature must be 1e-8 to 1e30 in size; got {temperature}")


def check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}")


def reduce(loss: Tensor, reduction: str) -> Tensor:
    """loss as it is ("none"), its mean or its sum."""
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()
