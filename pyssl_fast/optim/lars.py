"""LARS, and a teacher in the same pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyssl_fast.ema import ModelEMA
from pyssl_fast.ema.update import detached
from pyssl_fast.functional.checks import check_number, check_within
from pyssl_fast.functional.lists import grouped, placement
from pyssl_fast.ops import multi_tensor
from pyssl_fast.optim.common import Part, Stepping, check_extras


class LARS(Stepping):
    """SGD with a rate for every layer (You et al. 2017, equation 6), for large batches of SimCLR, BYOL, Barlow Twins.

        trust = η·‖p‖ / (‖g‖ + β·‖p‖ + ε), or 1 where ‖p‖ or ‖g‖ is 0
        u = trust·(g + β·p);  b ← μ·b + (1 − dampening)·u;  p ← p − lr·b

    The norms of a layer and its update follow each other in one pass: 20 to 28 bytes an element of float32, by how much
    of a layer the cache holds, and 8 more with the teacher. A `torch.amp.GradScaler` may hold it, as `AdamW`. The steps
    of timm's and lightly's are those with exclude_bias_and_norm=False.

    Args:
        params: parameters, or groups of them.
        lr: learning rate, a number or a Tensor that is never waited for. Of large batches, often 0.2 to 0.3 for every
            256 images. Warm-up and cosine: `torch.optim.lr_scheduler.LinearLR`, `CosineAnnealingLR`, `SequentialLR`.
        momentum: μ.
        weight_decay: β.
        dampening, nesterov, maximize: as `torch.optim.SGD` has them. (A first step that a GradScaler skips counts as
            one: the next is dampened.)
        trust_coefficient: η.
        eps: ε.
        trust_clip: trust becomes min(trust / lr, 1), so that the rate of a layer is at most lr (LARC).
        exclude_bias_and_norm: parameters of one dimension or none, biases and those of norms, take a plain step: no
            weight decay, trust 1.
        always_adapt: adapt where weight_decay is 0 too; else such groups take a plain step, as timm's do.
        joint_norm: ‖g + β·p‖ instead of ‖g‖ + β·‖p‖, as the papers' own code has it.
        ema, max_grad_norm: as of `AdamW`. The norm is the gradients', before decay and trust.

    Raises:
        TypeError, ValueError: an argument of wrong type or range; in `step`, a sharded DTensor, whose layer norms no
            rank has.
    """

    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        dampening: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        trust_coefficient: float = 1e-3,
        eps: float = 1e-8,
        trust_clip: bool = False,
        exclude_bias_and_norm: bool = True,
        always_adapt: bool = False,
        joint_norm: bool = False,
        ema: ModelEMA | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        check_extras(ema, max_grad_norm)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "trust_clip": trust_clip,
            "exclude_bias_and_norm": exclude_bias_and_norm,
            "always_adapt": always_adapt,
            "joint_norm": joint_norm,
        }
        super().__init__(params, defaults)
        self.ema = ema
        self.max_grad_norm = max_grad_norm

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        _check(self.param_groups[-1])

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also of a checkpoint of torch's SGD, or of others' LARS, whose groups lack settings of ours."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def _names_of_state(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def _step_of(
        self,
        group: dict[str, Any],
        part: Part,
        gradients: list[Tensor],
        ema_momentum: float | Tensor,
        factor: Tensor | None,
    ) -> None:
        if any([placement(p) is not None for p in part.parameters]):
            raise ValueError("LARS needs whole layers for their norms; got a DTensor, which may be sharded")
        adapts = group["always_adapt"] or group["weight_decay"] != 0
        adapted = [adapts and (p.dim() > 1 or not group["exclude_bias_and_norm"]) for p in part.parameters]
        lists = {
            "parameters": part.parameters,
            "gradients": gradients,
            "momentum_buffers": part.state.get("momentum_buffer", []),
            "teacher": part.teachers,
            "shadow": part.shadows,
        }
        for found in grouped(lists):
            multi_tensor.lars_(
                *found.lists,
                [adapted[i] for i in found.entries],
                [part.fresh[i] for i in found.entries],
                detached(group["lr"]),
                ema_momentum,
                factor,
                getattr(self, "found_inf", None),
                float(group["momentum"]),
                float(group["dampening"]),
                float(group["weight_decay"]),
                bool(group["nesterov"]),
                bool(group["maximize"]),
                float(group["trust_coefficient"]),
                float(group["eps"]),
                bool(group["trust_clip"]),
                bool(group["joint_norm"]),
                found.backend,
            )


def _check(group: dict[str, Any]) -> None:
    if not isinstance(group["lr"], Tensor):
        check_number("lr", group["lr"], 0)
    check_within("momentum", group["momentum"], 0, 1)
    check_within("dampening", group["dampening"], 0, 1)
    for name in ("weight_decay", "trust_coefficient", "eps"):
        check_number(name, group[name], 0)
    if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
        raise ValueError("nesterov needs a momentum and no dampening")
