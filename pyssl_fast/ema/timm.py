"""timm's teacher, by its names."""

from __future__ import annotations

import torch
from torch import nn

from pyssl_fast.ema.model import ModelEMA


class ModelEmaV3(ModelEMA):
    """Takes the place of `timm.utils.ModelEmaV3`: its schedule, its averaging of buffers, its state dict.

    The teacher is in evaluation mode, and in float32 unless told otherwise, where timm rounds at random. What is tied
    is averaged once. As the `ema` of an optimizer it has no step to warm up by, and keeps to `decay`.

    Args:
        model: what is followed.
        decay: the momentum in the end.
        min_decay, update_after_step, use_warmup, warmup_gamma, warmup_power: see `get_decay`.
        device: the model's, or None: the teacher stands there.
        dtype: of the teacher where the model has 16 bits; None keeps them.
        exclude_buffers: copy the buffers of floating point, instead of averaging them.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.9999,
        min_decay: float = 0.0,
        update_after_step: int = 0,
        use_warmup: bool = False,
        warmup_gamma: float = 1.0,
        warmup_power: float = 2 / 3,
        device: torch.device | str | None = None,
        *,
        dtype: torch.dtype | None = torch.float32,
        exclude_buffers: bool = False,
    ) -> None:
        super().__init__(model, decay, buffers="copy" if exclude_buffers else "average", dtype=dtype)
        home = next(self.module.parameters()).device
        if device is not None and torch.empty(0, device=device).device != home:
            raise ValueError(f"device must be the model's, {home}, or None; got {device}")
        self.module.eval()
        self.min_decay = min_decay
        self.update_after_step = update_after_step
        self.use_warmup = use_warmup
        self.warmup_gamma = warmup_gamma
        self.warmup_power = warmup_power

    @property
    def decay(self) -> float:
        return float(self.momentum)

    @decay.setter
    def decay(self, value: float) -> None:
        self.momentum = value

    def get_decay(self, step: int | None = None) -> float:
        """The momentum of a step: `decay`; with warm-up max(min(1 − (1 + k/γ)^−p, decay), min_decay).

        k counts from the step after `update_after_step`; before, the teacher copies. Without a step: `decay`.
        """
        if step is None:
            return self.decay
        step = max(0, step - self.update_after_step - 1)
        if step == 0:
            return 0.0
        if not self.use_warmup:
            return self.decay
        rising: float = 1 - (1 + step / self.warmup_gamma) ** -self.warmup_power
        return max(min(rising, self.decay), self.min_decay)

    def update(self, model: nn.Module, step: int | None = None) -> None:  # type: ignore[override]
        """Follow the model by one step. step: of the optimizer, for the warm-up."""
        super().update(model, self.get_decay(step))

    update_parameters = update  # type: ignore[assignment]

    def set(self, model: nn.Module) -> None:
        super().update(model, 0.0)
