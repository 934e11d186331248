"""AdamW, and a teacher in the same pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyssl_fast.ema import ModelEMA
from pyssl_fast.ema.update import detached
from pyssl_fast.functional.lists import grouped
from pyssl_fast.ops import multi_tensor
from pyssl_fast.optim.common import Part, Stepping, check_extras


class AdamW(Stepping, torch.optim.AdamW):
    """`torch.optim.AdamW` (Loshchilov and Hutter 2019), fused: all parameters, and their teachers, in one pass.

        ema = ModelEMA(model, momentum=0.996)
        optimizer = AdamW(model.parameters(), lr=1e-3, ema=ema, max_grad_norm=3.0)
        ...
        optimizer.step()  # clips, updates the model, and then the teacher

    Reads and writes 28 bytes an element of float32, 36 with the teacher (40 in two passes). Arguments, parameter groups
    and state dict are torch's. A `torch.amp.GradScaler` may hold it: infinities are not waited for; a step that is
    skipped for them changes no parameter with a gradient, and not its teacher.

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, maximize: as torch has them; lr may be a Tensor, on the device of
            the parameters, which is never waited for.
        foreach, capturable, fused: torch's choices of an implementation, of which there is one here.
        ema: a teacher of the model whose parameters these are. Do not call its `update` yourself then: its other
            parameters and its buffers follow at the end of `step`.
        max_grad_norm: clip the gradients to this norm over all parameters, as `torch.nn.utils.clip_grad_norm_` does,
            without another pass that writes them: `.grad` keeps what backward left. Infinity measures alone. The norm
            before, [] float64, is in `grad_norm`.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        ema: ModelEMA | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        check_extras(ema, max_grad_norm)
        # fused: torch then keeps steps on the device of the parameters, in a checkpoint too, and lets GradScaler by.
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, fused=True)
        self.ema = ema
        self.max_grad_norm = max_grad_norm

    def _names_of_state(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("step", "exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else []))

    def _state_of(self, parameter: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        if "step" not in self.state[parameter]:
            self.state[parameter]["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        return super()._state_of(parameter, names)

    def _step_of(
        self,
        group: dict[str, Any],
        part: Part,
        gradients: list[Tensor],
        ema_momentum: float | Tensor,
        factor: Tensor | None,
    ) -> None:
        lists = {
            "parameters": part.parameters,
            "gradients": gradients,
            "exp_avg": part.state["exp_avg"],
            "exp_avg_sq": part.state["exp_avg_sq"],
            "max_exp_avg_sq": part.state.get("max_exp_avg_sq", []),
            "teacher": part.teachers,
            "shadow": part.shadows,
        }
        beta1, beta2 = group["betas"]
        for found in grouped(lists):
            multi_tensor.adamw_(
                *found.lists[:5],
                [part.state["step"][i] for i in found.entries],
                *found.lists[5:],
                detached(group["lr"]),
                ema_momentum,
                factor,
                getattr(self, "found_inf", None),
                float(beta1),
                float(beta2),
                float(group["eps"]),
                float(group["weight_decay"]),
                bool(group["maximize"]),
                found.backend,
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also of a checkpoint of torch's AdamW, which may keep its steps on the CPU."""
        super().__setstate__(state)
        for group in self.param_groups:
            group["fused"] = True
        for parameter, held in self.state.items():
            if "step" in held:
                held["step"] = torch.as_tensor(held["step"], dtype=torch.float32, device=parameter.device)
