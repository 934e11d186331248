"""How the momentum of a teacher rises while training goes on."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

from pyssl_fast.functional.checks import check_within

Step = TypeVar("Step", float, Tensor)


def cosine_momentum(
    step: Step, total_steps: int, base: float = 0.996, final: float = 1.0, *, reaches_end: bool = False
) -> Step:
    """final − (final − base)·(1 + cos(π·step / K)) / 2: from `base` along half a cosine to `final`.

    With final = 1 it is 1 − (1 − base)·(cos(π·k / K) + 1) / 2 of BYOL (Grill et al. 2020, section 3.3). BYOL and DINO
    divide by K = total_steps, so that the last of the steps 0 to total_steps − 1 stays short of `final`; lightly's
    `cosine_schedule` divides by total_steps − 1, and its last step has `final`.

    Args:
        step: 0 to total_steps; beyond, the value at the end. A Tensor, for a step that lives on a device, is not waited
            for: the result is one like it, float32 at least.
        total_steps: 1 or more.
        base, final: 0 to 1.
        reaches_end: divide by total_steps − 1, as lightly does.

    Raises:
        ValueError: a number out of range.
    """
    check_within("base", base, 0, 1)
    check_within("final", final, 0, 1)
    if total_steps < 1:
        raise ValueError(f"total_steps must be 1 or more; got {total_steps}")
    last = total_steps - 1 if reaches_end else total_steps
    if isinstance(step, Tensor):
        progress = step.to(torch.promote_types(step.dtype, torch.float32)).clamp(max=last) / max(last, 1)
        return final - (final - base) * (1 + torch.cos(math.pi * (progress if last else progress + 1))) / 2
    if not step >= 0:
        raise ValueError(f"step must not be negative; got {step}")
    return final - (final - base) * (1 + math.cos(math.pi * (min(step / last, 1.0) if last else 1.0))) / 2
