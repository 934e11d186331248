"""The checks that every function makes before a kernel runs: what came, what was expected. No device is waited for."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor, nn

REDUCTIONS = ("none", "mean", "sum")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def readable(x: object) -> bool:
    """Whether the values of x may be looked at: a plain CPU tensor, and no tracing."""
    plain = isinstance(x, Tensor) and type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu"
    return plain and not torch.compiler.is_compiling()


# ---- embeddings ------------------------------------------------------------------------------------------------------


def autocast_together(*tensors: Tensor, elementwise: bool = False) -> tuple[Tensor, ...]:
    """Where autocast is on, tensors of two dtypes come back in autocast's own, as torch's matrix products take them.

    Tensors of one dtype come back as they are, and so do all where one is float64, which autocast leaves alone.

    Args:
        elementwise: to float32 instead, as torch's elementwise operations promote.
    """
    if any(not isinstance(x, Tensor) or x.dtype not in DTYPES or x.dtype == torch.float64 for x in tensors):
        return tensors  # an error, if it is one, is for the checks to name
    dtype = autocast_dtype(tensors[0])
    if dtype is None or all(x.dtype == tensors[0].dtype for x in tensors):
        return tensors
    return tuple(x.to(torch.float32 if elementwise else dtype) for x in tensors)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Autocast's dtype on x's device, None where it is off."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def check_embeddings(name: str, x: Tensor, shape: str = "[N, D]") -> None:
    """x must be non-empty and floating-point, with as many dimensions as `shape` names, any number of them for '…'."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a Tensor {shape}; got {type(x).__name__}")
    named = shape.count(",") + 1
    if x.dim() < named - 1 if "…" in shape else x.dim() != named:
        raise ValueError(f"{name} must have shape {shape}; got {list(x.shape)}")
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense Tensor; got layout {x.layout}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64; got {x.dtype}")
    if 0 in x.shape:
        raise ValueError(f"{name} must not be empty; got shape {list(x.shape)}")


def check_two_rows(name: str, x: Tensor) -> None:
    if x.shape[0] < 2:
        raise ValueError(f"{name} must have two rows or more; got shape {list(x.shape)}")


def check_kin(name: str, x: Tensor, like_name: str, like: Tensor, any_dtype: bool = False) -> None:
    """x must have the row length, dtype and device of `like`."""
    if x.shape[-1] != like.shape[-1]:
        raise ValueError(f"{name} must have rows of {like_name}'s length {like.shape[-1]}; got {list(x.shape)}")
    if x.dtype != like.dtype and not any_dtype:
        raise TypeError(f"{name} must have {like_name}'s dtype {like.dtype}; got {x.dtype}")
    _check_device(name, x, like_name, like)


def check_alike(name: str, x: Tensor, like_name: str, like: Tensor) -> None:
    """x must have the shape, dtype and device of `like`."""
    if x.shape != like.shape:
        raise ValueError(f"{name} must have {like_name}'s shape {list(like.shape)}; got {list(x.shape)}")
    check_kin(name, x, like_name, like)


def check_shape_and_device(name: str, x: Tensor, shape: tuple[int, ...], like_name: str, like: Tensor) -> None:
    """x must have that shape, and be on the device of `like`."""
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}; got {list(x.shape)}")
    _check_device(name, x, like_name, like)


def _check_device(name: str, x: Tensor, like_name: str, like: Tensor) -> None:
    if x.device != like.device:
        raise ValueError(f"{name} must be on {like_name}'s device {like.device}; got {x.device}")


# ---- one value per sample ----------------------------------------------------------------------------------------


def check_ids(
    name: str, ids: Tensor | None, shape: int | tuple[int, ...], like_name: str, like: Tensor
) -> Tensor | None:
    """ids must be integers (or bool) of that shape (a length, or more) on the device of `like`; comes back as int64."""
    if ids is None:
        return None
    shape = shape if isinstance(shape, tuple) else (shape,)
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name} must be an integer Tensor {list(shape)}; got {type(ids).__name__}")
    if ids.dtype not in INTEGERS:
        raise TypeError(f"{name} must be integers; got {ids.dtype}")
    check_shape_and_device(name, ids, shape, like_name, like)
    return ids.to(torch.int64)


def check_weight(name: str, weight: Tensor | None, shape: int | tuple[int, ...], like_name: str, like: Tensor) -> None:
    """weight must be floating-point numbers of that shape (a length, or more) on the device of `like`."""
    if weight is None:
        return
    shape = shape if isinstance(shape, tuple) else (shape,)
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name} must be a Tensor {list(shape)}; got {type(weight).__name__}")
    if not weight.is_floating_point():
        raise TypeError(f"{name} must be floating-point; got {weight.dtype}")
    check_shape_and_device(name, weight, shape, like_name, like)


# ---- numbers ---------------------------------------------------------------------------------------------------------


def check_scalar(name: str, value: float | Tensor) -> float | None:
    """A finite number, or a Tensor that holds one; comes back where it may be read, as it is on the CPU alone."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or not value.is_floating_point():
            raise ValueError(
                f"{name} as a Tensor must hold one floating-point number; got {value.dtype} of shape"
                f" {list(value.shape)}"
            )
        if not readable(value):
            return None
        value = float(value.detach())
    elif isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number or a Tensor; got {type(value).__name__}")
    return value


def check_within(name: str, value: float | Tensor, low: float, high: float, open_end: bool = False) -> None:
    """A number, or a Tensor that holds one: low ≤ value ≤ high (value < high with an open end)."""
    number = check_scalar(name, value)
    # Plain comparisons, which NaN fails: they trace where math.isfinite breaks a graph with a dynamic float.
    if number is not None and not (low <= number < high if open_end else low <= number <= high):
        raise ValueError(f"{name} must be {low:g} to {high:g}{' (excluded)' if open_end else ''}; got {number}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def check_number(name: str, value: float, low: float = 1e-30, high: float = 1e30) -> None:
    """A plain number, low ≤ value ≤ high: one that no gradient is asked for."""
    if isinstance(value, Tensor):
        raise TypeError(f"{name} must be a number; got Tensor")
    check_within(name, value, low, high)


def check_temperature(temperature: float | Tensor) -> None:
    """A number of 1e-8 to 1e30 in size; negative ones are legal. Values of tensors are read on the CPU alone."""
    number = check_scalar("temperature", temperature)
    if number is not None and not 1e-8 <= abs(number) <= 1e30:
        raise ValueError(f"temperature must be 1e-8 to 1e30 in size; got {number}")


def check_count(name: str, value: int, low: int = 1) -> None:
    """A whole number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number; got {type(value).__name__}")
    if value < low:
        raise ValueError(f"{name} must be {low} or more; got {value}")


# ---- reduction -------------------------------------------------------------------------------------------------------


def check_reduction(reduction: str) -> None:
    check_choice("reduction", reduction, REDUCTIONS)


def reduce(loss: Tensor, reduction: str, weight: Tensor | None = None) -> Tensor:
    """loss as it is ("none"), its mean or its sum; of weight·loss with a weight, whose mean is Σ w·loss / Σ w."""
    if weight is not None:
        weight = weight.to(loss.dtype).expand_as(loss)
        loss = weight * loss
    if reduction == "mean":
        return loss.mean() if weight is None else loss.sum() / weight.sum()
    return loss if reduction == "none" else loss.sum()
