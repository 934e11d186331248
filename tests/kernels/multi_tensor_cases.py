"""The multi_tensor family's kernels against the float64 twin: on the CPU, on a GPU, and the GPU's on host threads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pyssl_fast.kernels.reference import multi_tensor as reference
from tests.contract import TOLERANCE, assert_within_contract

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
DTYPES = (F32, F16, BF16)
FLAGS = ("adapted", "fresh")
SIZES = (1, 0, 3, 7, 4095, 4096, 4097, 8201)  # both sides of a vector's, and of a chunk's 4,096 elements


def make(
    sizes: Sequence[int], dtype: torch.dtype | Sequence[torch.dtype], shift: int = 0, seed: int = 0, device: str = "cpu"
) -> list[Tensor]:
    """Tensors that begin `shift` elements after an aligned address."""
    generator = torch.Generator().manual_seed(seed)
    dtypes = itertools.repeat(dtype) if isinstance(dtype, torch.dtype) else itertools.cycle(dtype)
    return [
        torch.randn(size + shift, generator=generator).to(device, of)[shift:]
        for size, of in zip(sizes, dtypes, strict=False)
    ]


def clone(lists: Any, dtype: torch.dtype | None = None) -> Any:
    """Every tensor of an argument list, as it is or in another floating dtype; an empty place before each is kept."""
    if isinstance(lists, dict):
        return {key: clone(value, None if key == "steps" else dtype) for key, value in lists.items()}
    if isinstance(lists, Tensor):
        if dtype is not None and lists.is_floating_point():
            return lists.to(dtype, copy=True)
        shift = lists.storage_offset()
        flat = lists.new_empty(shift + lists.numel())[shift:].view(lists.shape)
        return lists.clone() if lists.dim() != 1 else flat.copy_(lists)
    if isinstance(lists, list):
        return [clone(x, dtype) for x in lists]
    return lists


def check(
    kernels: ModuleType, name: str, arguments: dict[str, Any], written: Sequence[str], steps: int = 1
) -> dict[str, Any]:
    """Runs a function of the family, holds what it writes to the error contract, and returns its lists."""
    ours, eager, truth = clone(arguments), clone(arguments), clone(arguments, torch.float64)
    scalars = {"momentum", "lr", "ema_momentum", "factor", "found_inf"}
    for of in (eager, truth):
        of.update({key: arguments[key] for key in scalars & arguments.keys()})
    for module, of in ((kernels, ours), (reference, eager), (reference, truth)):
        for _ in range(steps):
            getattr(module, name)(**of)
    lists = [value for key, value in arguments.items() if isinstance(value, list) and key not in (*FLAGS, "steps")]
    everything = [x.dtype for of in lists for x in of if x.is_floating_point()]
    for key in written:
        for i, x in enumerate(ours.get(key, [])):
            # The teacher follows parameters that are rounded, as they are not in the truth.
            follows = name != "ema_" and key in ("teacher", "shadow")
            of = max([x.dtype, *everything], key=TOLERANCE.__getitem__) if follows else x.dtype
            assert_within_contract(x, truth[key][i], eager[key][i], of, f"{key}[{i}] {tuple(x.shape)} {x.dtype}")
    return ours


def run_clones(kernels: ModuleType, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    ours = clone(arguments)
    getattr(kernels, name)(**ours)
    return ours


def same_bits(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    pairs = ((x.reshape(-1).view(torch.uint8), y.reshape(-1).view(torch.uint8)) for x, y in zip(a, b, strict=True))
    return all(torch.equal(x, y) for x, y in pairs)


def ema(
    teacher: Any, student: Any, shadow: Any, momentum: float = 0.3, sizes: Sequence[int] = SIZES, shift: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    return {
        "teacher": make(sizes, teacher, shift, 0, device),
        "student": make(sizes, student, shift, 1, device),
        "shadow": make(sizes, shadow, shift, 2, device) if shadow else [],
        "averaged": len(sizes),
        "momentum": torch.tensor(momentum, dtype=torch.float64, device=device),
    }


def adamw(
    of: Callable[[str], Any] = lambda name: F32, sizes: Sequence[int] = SIZES, shift: int = 0, device: str = "cpu",
    amsgrad: bool = False, teacher: bool = False, shadow: Any = None, **changed: Any,
) -> dict[str, Any]:  # fmt: skip
    """of: name of a list -> its dtypes."""
    names = ["parameters", "gradients", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "teacher"]
    lists = {name: make(sizes, of(name), shift, seed, device) for seed, name in enumerate(names)}
    for name in ("exp_avg_sq", "max_exp_avg_sq"):
        lists[name] = [x.abs_() for x in lists[name]]
    lists["max_exp_avg_sq"] = lists["max_exp_avg_sq"] if amsgrad else []
    lists["teacher"] = lists["teacher"] if teacher or shadow else []
    lists["shadow"] = make(sizes, shadow, shift, 9, device) if shadow else []
    lists["steps"] = [torch.tensor(float(i % 5), device=device) for i in range(len(sizes))]
    numbers = {
        "lr": torch.tensor(1e-2, device=device),
        "ema_momentum": torch.tensor(0.9, dtype=torch.float64, device=device),
        "factor": None, "found_inf": None, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1,
        "maximize": False,
    }  # fmt: skip
    return {**lists, **numbers, **changed}


def lars(
    of: Callable[[str], Any] = lambda name: F32, sizes: Sequence[int] = SIZES, shift: int = 0, device: str = "cpu",
    momentum: float = 0.9, teacher: bool = False, shadow: Any = None, **changed: Any,
) -> dict[str, Any]:  # fmt: skip
    names = ["parameters", "gradients", "momentum_buffers", "teacher"]
    lists = {name: make(sizes, of(name), shift, seed, device) for seed, name in enumerate(names)}
    lists["momentum_buffers"] = lists["momentum_buffers"] if momentum else []
    lists["teacher"] = lists["teacher"] if teacher or shadow else []
    lists["shadow"] = make(sizes, shadow, shift, 9, device) if shadow else []
    numbers = {
        "adapted": [i % 3 != 1 for i in range(len(sizes))],
        "fresh": [i % 4 == 2 for i in range(len(sizes))],
        "lr": torch.tensor(0.3, device=device),
        "ema_momentum": torch.tensor(0.9, dtype=torch.float64, device=device),
        "factor": None, "found_inf": None, "momentum": momentum, "dampening": 0.0, "weight_decay": 0.1,
        "nesterov": False, "maximize": False, "trust_coefficient": 0.02, "eps": 1e-8, "trust_clip": False,
        "joint": False,
    }  # fmt: skip
    return {**lists, **numbers, **changed}


EMA = ("teacher", "shadow")
ADAMW = ("parameters", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "steps", "teacher", "shadow")
LARS = ("parameters", "momentum_buffers", "teacher", "shadow")

OPTIONS_ADAMW: list[dict[str, Any]] = [
    {},
    {"amsgrad": True},
    {"teacher": True},
    {"shadow": BF16, "maximize": True, "weight_decay": 0.0},
    {"shadow": F16, "amsgrad": True, "factor": torch.tensor(0.37, dtype=torch.float64)},
    {"beta1": 0.0, "beta2": 0.5, "factor": torch.tensor(3.0), "found_inf": torch.tensor(0.0)},
]
DTYPES_OF_LISTS = {
    "float32": lambda name: F32,
    "bfloat16": lambda name: BF16,
    "float16": lambda name: F16,
    "bfloat16 gradients": lambda name: BF16 if name == "gradients" else F32,
    "float32 states": lambda name: F32 if name.startswith(("exp", "momentum", "teacher")) else BF16,
    "any": lambda name: (F32, BF16, F16, F32)[len(name) % 3 :],
}
OPTIONS_LARS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.0},
    {"joint": True, "trust_clip": True, "nesterov": True},
    {"trust_clip": True, "trust_coefficient": 5.0, "maximize": True, "teacher": True},
    {"joint": True, "maximize": True, "dampening": 0.3, "shadow": BF16, "factor": torch.tensor(0.37)},
    {"momentum": 0.0, "weight_decay": 0.0, "factor": torch.tensor(2.0, dtype=torch.float64), "shadow": F16},
]
