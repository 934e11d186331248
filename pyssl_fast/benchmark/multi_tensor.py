"""Multi-tensor family: every step that lives on it, our kernels beside their peers.

A case is the list of a model's parameters: `rows` tensors of `dim` numbers in all. What is kept between steps (a
teacher, an optimizer's moments) is there before the first one. All sides of a case change the same tensors in turn.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from pyssl_fast import optim
from pyssl_fast.benchmark.cases import Call, Case, Peer, System
from pyssl_fast.benchmark.inputs import peer_class
from pyssl_fast.ema import ModelEMA, ema_update_

MOMENTUM = 0.996
MAX_NORM = 3.0
ADAMW: dict[str, Any] = {"lr": 1e-4, "weight_decay": 0.05}
LARS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}

# ---- models: their parameters, in order ------------------------------------------------------------------------------


def resnet_50() -> nn.Module:
    """The layers of a ResNet-50 that hold something."""

    def convolution(inputs: int, outputs: int, size: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, size, bias=False), nn.BatchNorm2d(outputs)]

    layers, channels = convolution(3, 64, 7), 64
    for width, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for _ in range(depth):
            block = convolution(channels, width, 1) + convolution(width, width, 3) + convolution(width, 4 * width, 1)
            if channels != 4 * width:
                block += convolution(channels, 4 * width, 1)
            layers.append(nn.Sequential(*block))
            channels = 4 * width
    return nn.Sequential(*layers, nn.Linear(channels, 1000))


def vit_b_16() -> nn.Module:
    """The layers of a ViT-B/16 that hold something."""
    width = 768
    tokens = nn.ParameterList([torch.empty(1, 1, width), torch.empty(1, 197, width)])
    layers: list[nn.Module] = [tokens, nn.Conv2d(3, width, 16)]
    for _ in range(12):
        attention = [nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)]
        layers.append(
            nn.Sequential(*attention, nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width))
        )
    return nn.Sequential(*layers, nn.LayerNorm(width), nn.Linear(width, 1000))


RESNET_50, VIT_B_16 = (161, 25_557_032), (152, 86_567_656)
MODELS: dict[tuple[int, int], Callable[[], nn.Module]] = {RESNET_50: resnet_50, VIT_B_16: vit_b_16}


def architecture(case: Case) -> nn.Module:
    """The case's model, without memory; of other sizes tensors as equal as can be."""
    with torch.device("meta"):
        build = MODELS.get((case.rows, case.dim))
        if build is not None:
            return build()
        least, longer = divmod(case.dim, case.rows)
        return nn.ParameterList(torch.empty(least + (i < longer)) for i in range(case.rows))


def model_of(case: Case, tensors: Sequence[Tensor]) -> nn.Module:
    """The case's model made of these tensors: its parameters, then, if there are more, its buffers."""
    model = architecture(case)
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    model.load_state_dict(dict(zip(names, tensors, strict=False)), strict=False, assign=True)
    return model


# ---- inputs --------------------------------------------------------------------------------------------------------


def _like(x: Tensor, case: Case, generator: Generator) -> Tensor:
    if not x.is_floating_point():
        return torch.randint(100, x.shape, generator=generator).to(case.device)
    return torch.randn(x.shape, generator=generator).mul_(0.05).to(case.device)


def student_and_teacher(case: Case, generator: Generator) -> tuple[Tensor, ...]:
    """The parameters of both."""
    return tuple(_like(x, case, generator) for _ in range(2) for x in architecture(case).parameters())


def with_buffers(case: Case, generator: Generator) -> tuple[Tensor, ...]:
    """Parameters and buffers of both."""
    model = architecture(case)
    return tuple(_like(x, case, generator) for _ in range(2) for x in (*model.parameters(), *model.buffers()))


def bfloat16_student(case: Case, generator: Generator) -> tuple[Tensor, ...]:
    """The student's parameters in bfloat16, the teacher's in float32."""
    student, teacher = split(2, student_and_teacher(case, generator))
    return *(x.bfloat16() for x in student), *teacher


def bfloat16_student_and_shadow(case: Case, generator: Generator) -> tuple[Tensor, ...]:
    """As `bfloat16_student`, and the teacher again in bfloat16."""
    tensors = bfloat16_student(case, generator)
    return *tensors, *(x.bfloat16() for x in split(2, tensors)[1])


def with_gradients(case: Case, generator: Generator) -> tuple[Tensor, ...]:
    """The parameters, and gradients with a norm of 5 over all of them."""
    parameters, gradients = split(2, student_and_teacher(case, generator))
    return *parameters, *(g.mul_(100 / case.dim**0.5) for g in gradients)


def with_teacher(case: Case, generator: Generator) -> tuple[Tensor, ...]:
    """As `with_gradients`, and the teacher's parameters."""
    tensors = with_gradients(case, generator)
    return *tensors, *(x.clone() for x in split(2, tensors)[0])


def split(lists: int, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The lists, of equal length, of which the inputs were put together."""
    length = len(tensors) // lists
    return [list(tensors[i * length : (i + 1) * length]) for i in range(lists)]


# ---- teachers ------------------------------------------------------------------------------------------------------


def _ours(case: Case, *tensors: Tensor) -> Call:
    student, teacher = split(2, tensors)
    return partial(ema_update_, teacher, student, MOMENTUM)


def _triad(case: Case, *tensors: Tensor) -> Call:
    """As many numbers in one piece, and the fewest operations: what the memory allows."""
    x, y = torch.ones(2, case.dim, device=case.device).unbind()

    def call() -> None:
        x.add_(y, alpha=1 - MOMENTUM)

    return call


def _foreach_lerp(case: Case, *tensors: Tensor) -> Call:
    student, teacher = split(2, tensors)

    def call() -> None:
        torch._foreach_lerp_(teacher, student, 1 - MOMENTUM)

    return call


def _lightly_ema(case: Case, *tensors: Tensor) -> Call:
    student, teacher = (model_of(case, of) for of in split(2, tensors))
    update: Call = partial(pkgutil.resolve_name("lightly.models.utils:update_momentum"), student, teacher, MOMENTUM)
    return update


def _model_ema(case: Case, *tensors: Tensor) -> Call:
    student, teacher = (model_of(case, of) for of in split(2, tensors))
    return partial(ModelEMA(student, MOMENTUM, buffers="average", module=teacher).update, student)


def _timm_ema(case: Case, *tensors: Tensor) -> Call:
    student, teacher = (model_of(case, of) for of in split(2, tensors))
    ema = peer_class("timm.utils:ModelEmaV3", student, MOMENTUM)
    ema.module = teacher
    update: Call = partial(ema.update, student)
    return update


def _foreach_mixed(case: Case, *tensors: Tensor) -> Call:
    """Of two dtypes: torch._foreach_lerp_ takes one alone, these promote."""
    student, teacher = split(2, tensors)

    def call() -> None:
        torch._foreach_mul_(teacher, MOMENTUM)
        torch._foreach_add_(teacher, student, alpha=1 - MOMENTUM)

    return call


def _lerp_each(student: list[Tensor], teacher: list[Tensor], shadow: Sequence[Tensor] = ()) -> None:
    for t, s in zip(teacher, student, strict=True):
        t.lerp_(s.float(), 1 - MOMENTUM)
    for x, t in zip(shadow, teacher, strict=False):
        x.copy_(t)


def _loop(lists: int, case: Case, *tensors: Tensor, compiled: bool = False) -> Call:
    update: Any = torch.compile(_lerp_each, dynamic=False) if compiled else _lerp_each
    return partial(update, *split(lists, tensors))


def _our_shadow(case: Case, *tensors: Tensor) -> Call:
    student, teacher, shadow = split(3, tensors)
    return partial(ema_update_, teacher, student, MOMENTUM, shadow=shadow)


# ---- optimizers ----------------------------------------------------------------------------------------------------


def _prepared(case: Case, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> nn.Module:
    """The model, with gradients."""
    model = model_of(case, parameters)
    for p, g in zip(model.parameters(), gradients, strict=True):
        p.grad = g
    return model


def _stepping(optimizer: Optimizer, model: nn.Module, *before_and_after: Callable[[], Any]) -> Call:
    """Steps, after a first one that makes the moments. A ModelEMA does not keep the model, so the call does."""
    before, after = before_and_after or (lambda: None, lambda: None)

    def call(_: nn.Module = model) -> None:
        before()
        optimizer.step()
        after()

    call()
    return call


def _lars(make: Callable[..., Any], case: Case, *tensors: Tensor) -> Call:
    model = _prepared(case, *split(2, tensors))
    return _stepping(make(model.parameters(), **LARS), model)


def _adamw(make: Callable[..., Any], case: Case, *tensors: Tensor) -> Call:
    model = _prepared(case, *split(2, tensors))
    return _stepping(make(model.parameters(), **ADAMW), model)


_fused = partial(torch.optim.AdamW, fused=True)


def _our_adamw_ema(case: Case, *tensors: Tensor, **settings: Any) -> Call:
    parameters, gradients, teacher = split(3, tensors)
    model = _prepared(case, parameters, gradients)
    ema = ModelEMA(model, MOMENTUM, buffers="leave", module=model_of(case, teacher))
    return _stepping(optim.AdamW(model.parameters(), **ADAMW, ema=ema, **settings), model)


def _fused_adamw_ema(case: Case, *tensors: Tensor, clip: bool = False) -> Call:
    parameters, gradients, teacher = split(3, tensors)
    model = _prepared(case, parameters, gradients)

    def before() -> None:
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM, foreach=True)

    def after() -> None:
        torch._foreach_lerp_(teacher, parameters, 1 - MOMENTUM)

    return _stepping(_fused(model.parameters(), **ADAMW), model, before, after)


# ---- systems: which step, beside whom, and the fewest bytes ----------------------------------------------------------

_step = partial(
    System,
    keys="parameters",
    gradient=False,
    copies=4.0,
    family="multi_tensor",
    models={RESNET_50: "ResNet-50", VIT_B_16: "ViT-B/16"},
)

EMA = _step(
    "ema",
    "EMA of parameters",
    inputs=student_and_teacher,
    ours=_ours,
    peers={
        "triad": Peer(_triad),
        "foreach": Peer(_foreach_lerp),
        "lightly": Peer(_lightly_ema),
    },
    traffic=12.0,
)

EMA_MODEL = _step(
    "ema-model",
    "EMA of a model, buffers too",
    inputs=with_buffers,
    ours=_model_ema,
    peers={"timm": Peer(_timm_ema)},
    traffic=12.0,
)

EMA_BF16 = _step(
    "ema-bf16",
    "EMA of bfloat16 parameters in float32",
    inputs=bfloat16_student,
    ours=_ours,
    peers={
        "foreach": Peer(_foreach_mixed),
        "loop": Peer(partial(_loop, 2)),
        "compiled": Peer(partial(_loop, 2, compiled=True), compiles=True),
    },
    traffic=10.0,
)

EMA_SHADOW = _step(
    "ema-shadow",
    "EMA of bfloat16 parameters in float32, with a bfloat16 shadow",
    inputs=bfloat16_student_and_shadow,
    ours=_our_shadow,
    peers={"loop": Peer(partial(_loop, 3)), "compiled": Peer(partial(_loop, 3, compiled=True), compiles=True)},
    traffic=12.0,
)

LARS_STEP = _step(
    "lars",
    "LARS",
    inputs=with_gradients,
    ours=partial(_lars, partial(optim.LARS, exclude_bias_and_norm=False)),
    peers={
        "timm": Peer(partial(_lars, partial(peer_class, "timm.optim.lars:Lars"))),
        "lightly": Peer(partial(_lars, partial(peer_class, "lightly.utils.lars:LARS"))),
    },
    # p and g for the norms; then all three, of which p and the momentum are written: these 20 alone where a layer stays
    # in the cache.
    traffic=28.0,
)

ADAMW_STEP = _step(
    "adamw",
    "AdamW",
    inputs=with_gradients,
    ours=partial(_adamw, optim.AdamW),
    peers={"fused": Peer(partial(_adamw, _fused))},
    traffic=28.0,
)

ADAMW_EMA = _step(
    "adamw-ema",
    "AdamW and EMA",
    inputs=with_teacher,
    ours=_our_adamw_ema,
    peers={"fused": Peer(_fused_adamw_ema)},
    traffic=36.0,
)

ADAMW_EMA_CLIP = _step(
    "adamw-ema-clip",
    "clipping of the norm, AdamW and EMA",
    inputs=with_teacher,
    ours=partial(_our_adamw_ema, max_grad_norm=MAX_NORM),
    peers={"fused": Peer(partial(_fused_adamw_ema, clip=True))},
    traffic=40.0,
)

# What the kernels are built to be good at, and how good they are to be on two cores with AVX-512.
CASES = (
    Case(EMA, *RESNET_50, targets={"triad": 1 / 1.15, "foreach": 1 / 0.85, "lightly": 1.8}),
    Case(EMA, *VIT_B_16),
    Case(EMA_MODEL, *RESNET_50, targets={"timm": 1.5}),
    Case(EMA_BF16, *RESNET_50, targets={"foreach": 2.0, "loop": 2.0, "compiled": 1 / 1.05}),
    Case(EMA_BF16, *VIT_B_16),
    Case(EMA_SHADOW, *RESNET_50),
    Case(LARS_STEP, *RESNET_50, targets={"timm": 2.4}),
    Case(LARS_STEP, *VIT_B_16),
    Case(ADAMW_STEP, *RESNET_50),
    Case(ADAMW_EMA, *RESNET_50, targets={"fused": 1 / 0.78}),
    Case(ADAMW_EMA, *VIT_B_16),
    Case(ADAMW_EMA_CLIP, *RESNET_50),
)
