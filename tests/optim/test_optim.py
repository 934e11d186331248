"""AdamW and LARS: torch's, timm's and lightly's results over 100 steps of a real model; teachers, clipping, scaling."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyssl_fast import use_backend
from pyssl_fast.ema import ModelEMA
from pyssl_fast.modules import build_encoder
from pyssl_fast.optim import LARS, AdamW, exclude_bias_and_norm


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    encoder, features = build_encoder("small", 1, 16)
    return nn.Sequential(encoder, nn.Linear(features, 10))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, after: Callable[[], None] = lambda: None):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        images = torch.randn(8, 1, 16, 16, generator=generator)
        labels = torch.randint(10, (8,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        after()


def assert_close(ours: nn.Module, theirs: nn.Module, atol: float = 1e-5) -> None:
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


def groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    return exclude_bias_and_norm(model, weight_decay)


def train_alike(ours: nn.Module, mine: torch.optim.Optimizer, theirs: nn.Module, other: torch.optim.Optimizer) -> None:
    """100 steps, both with the gradients of `theirs`: with gradients of their own, rounding alone parts two runs."""

    class Both:
        def zero_grad(self) -> None:
            other.zero_grad()

        def step(self) -> None:
            for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
                p.grad = None if q.grad is None else q.grad.clone()
            other.step()
            mine.step()

    train(theirs, Both(), 100)


ADAMW = [
    {},
    {"amsgrad": True},
    {"maximize": True},
    {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.3},
]


@pytest.mark.parametrize("settings", ADAMW, ids=str)
def test_adamw_is_torchs_over_100_steps(settings: dict[str, Any]) -> None:
    settings = {"lr": 1e-4, **settings}
    ours, theirs = network(), network()
    mine = AdamW(groups(ours, 0.1), **settings)
    torchs = torch.optim.AdamW(groups(theirs, 0.1), **settings)
    train_alike(ours, mine, theirs, torchs)
    assert_close(ours, theirs, atol=1e-6)
    for p, start in zip(ours.parameters(), network().parameters(), strict=True):
        assert (p - start).abs().max() > 1e-4


LARS_SETTINGS = [
    {"momentum": 0.9, "weight_decay": 1e-4},
    {"momentum": 0.9, "weight_decay": 1e-2, "nesterov": True},
    {"momentum": 0.5, "weight_decay": 1e-4, "dampening": 0.5},
    {"momentum": 0.0, "weight_decay": 1e-4},
    {"momentum": 0.9, "weight_decay": 0.0, "always_adapt": True},
    {"momentum": 0.9, "weight_decay": 0.0},
    {"momentum": 0.9, "weight_decay": 1e-4, "trust_clip": True},
]


@pytest.mark.parametrize("settings", LARS_SETTINGS, ids=str)
def test_lars_is_timms_over_100_steps(settings: dict[str, Any]) -> None:
    from timm.optim.lars import Lars

    ours, theirs = network(), network()
    lr = 0.1 if settings["weight_decay"] or "always_adapt" in settings else 1e-3
    mine = LARS(ours.parameters(), lr, exclude_bias_and_norm=False, **settings)
    train_alike(ours, mine, theirs, Lars(theirs.parameters(), lr, **settings))
    assert_close(ours, theirs, atol=1e-6)


def test_lars_is_lightlys() -> None:
    from lightly.utils.lars import LARS as Lightlys

    ours, theirs = network(), network()
    mine = LARS(ours.parameters(), 0.1, 0.9, 1e-3, exclude_bias_and_norm=False)
    train_alike(ours, mine, theirs, Lightlys(theirs.parameters(), 0.1, 0.9, weight_decay=1e-3))
    assert_close(ours, theirs, atol=1e-6)


def test_lars_excludes_biases_and_norms() -> None:
    """A vector takes the step of plain SGD without weight decay; a matrix's trust has the joint norm if asked for."""
    torch.manual_seed(0)
    matrix, vector = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4))
    matrix.grad, vector.grad = torch.randn(4, 3), torch.randn(4)
    before, step = (matrix.detach().clone(), vector.detach().clone()), vector.grad
    LARS([matrix, vector], 0.5, 0.9, 0.1, joint_norm=True, trust_coefficient=0.02).step()
    torch.testing.assert_close(vector.detach(), before[1] - 0.5 * step)
    decayed = matrix.grad + 0.1 * before[0]
    torch.testing.assert_close(matrix.detach(), before[0] - 0.5 * 0.02 * before[0].norm() / decayed.norm() * decayed)


MAKE = {
    "adamw": lambda model, **extras: AdamW(groups(model, 0.1), 1e-3, **extras),
    "lars": lambda model, **extras: LARS(model.parameters(), 0.1, weight_decay=1e-3, **extras),
}
each_optimizer = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


@each_optimizer
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("shadow", [None, torch.bfloat16], ids=str)
def test_the_teacher_goes_along_as_if_updated_afterwards(make, backend: str, shadow: torch.dtype | None) -> None:
    together, apart = network(), network()
    for model in (together, apart):
        model[0].requires_grad_(False)  # moved by hand, without a gradient: followed all the same
    emas = [ModelEMA(model, 0.9, buffers="average", shadow=shadow) for model in (together, apart)]
    with use_backend(backend):
        optimizer = make(together, ema=emas[0])
        move(together)
        train(together, optimizer, 4)
        move(apart)
        train(apart, make(apart), 4, after=lambda: emas[1].update(apart))
    for of in ("module", "shadow") if shadow else ("module",):
        states = [getattr(ema, of).state_dict() for ema in emas]
        for name, x in states[0].items():
            torch.testing.assert_close(
                x, states[1][name], rtol=1e-6, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}"
            )
    start = network().state_dict()
    assert not torch.equal(emas[0].module.state_dict()["1.weight"], start["1.weight"])


def move(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model[0].parameters():
            p += 1


@each_optimizer
def test_clipping_is_torchs_and_leaves_the_gradients(make) -> None:
    ours, theirs = network(), network()
    mine, torchs = make(ours, max_grad_norm=0.5), make(theirs)
    for number in range(5):
        for model in (ours, theirs):
            torch.manual_seed(number)
            for p in model.parameters():
                p.grad = torch.randn_like(p) * 10.0 ** (number - 4)
        kept = [p.grad.clone() for p in ours.parameters()]
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        mine.step()
        torchs.step()
        torch.testing.assert_close(mine.grad_norm.float(), norm)
        assert all(torch.equal(a, p.grad) for a, p in zip(kept, ours.parameters(), strict=True))
        assert_close(ours, theirs)


@each_optimizer
@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_a_grad_scaler_changes_nothing_but_skips_infinities(make, max_grad_norm: float | None) -> None:
    scaled, plain = network(), network()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    emas = [ModelEMA(model, 0.5) for model in (scaled, plain)]
    optimizers = [make(m, ema=e, max_grad_norm=max_grad_norm) for m, e in zip((scaled, plain), emas, strict=True)]
    generator = torch.Generator().manual_seed(1)
    for number in range(6):
        images = torch.randn(8, 1, 16, 16, generator=generator)
        if number == 0:
            images[0] = math.inf
        losses = [model(images).square().mean() for model in (scaled, plain)]
        for optimizer in optimizers:
            optimizer.zero_grad()
        scaler.scale(losses[0]).backward()
        before = [p.detach().clone() for p in scaled.parameters()]
        if number == 3:
            scaler.unscale_(optimizers[0])
        scaler.step(optimizers[0])
        scaler.update()
        if number == 0:
            assert all(torch.equal(a, p) for a, p in zip(before, scaled.parameters(), strict=True))
            scaled.load_state_dict(network().state_dict()), plain.load_state_dict(network().state_dict())
            continue
        losses[1].backward()
        optimizers[1].step()
    assert_close(scaled, plain)
    assert_close(emas[0].module, emas[1].module, atol=1e-4)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_state_dicts_go_to_torch_and_back(amsgrad: bool) -> None:
    ours, theirs, ours_again = network(), network(), network()
    mine = AdamW(ours.parameters(), 1e-3, amsgrad=amsgrad)
    train(ours, mine, 3)
    torchs = torch.optim.AdamW(theirs.parameters(), 1e-3, amsgrad=amsgrad, foreach=True)
    theirs.load_state_dict(ours.state_dict())
    torchs.load_state_dict(saved(mine))
    assert all(float(state["step"]) == 3 for state in torchs.state.values())
    train(theirs, torchs, 3)
    back = AdamW(ours_again.parameters(), 5.0)
    ours_again.load_state_dict(theirs.state_dict())
    torchs_own = torch.optim.AdamW(theirs.parameters(), 1e-3, amsgrad=amsgrad)  # neither fused nor foreach
    torchs_own.load_state_dict(torchs.state_dict())
    for group in torchs_own.param_groups:
        group["fused"] = group["foreach"] = None
    back.load_state_dict(saved(torchs_own))
    train(ours, mine, 3)
    train(ours, mine, 3)
    train(ours_again, back, 3)
    assert all(float(state["step"]) == 9 for state in mine.state.values())
    assert_close(ours, ours_again, atol=2e-4)


def saved(optimizer: torch.optim.Optimizer) -> Any:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@each_optimizer
def test_a_run_that_was_saved_goes_on_to_the_same_bits(make) -> None:
    whole = network()
    train(whole, make(whole), 6)
    first = network()
    optimizer = make(first)
    train_from(first, optimizer, range(3))
    second = network(1)
    second.load_state_dict(first.state_dict())
    again = make(second)
    again.load_state_dict(saved(optimizer))
    train_from(second, again, range(3, 6))
    other = network()
    train_from(other, make(other), range(6))
    assert all(torch.equal(a, b) for a, b in zip(second.parameters(), other.parameters(), strict=True))


def train_from(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(8, 1, 16, 16)).square().mean().backward()
        optimizer.step()


@each_optimizer
def test_schedulers_closures_and_tensor_rates(make) -> None:
    ours, theirs = network(), network()
    mine, other = make(ours), make(theirs)
    warm_up = torch.optim.lr_scheduler.LinearLR(mine, 0.1, total_iters=3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(mine, 5)
    schedule = torch.optim.lr_scheduler.SequentialLR(mine, [warm_up, cosine], [3])
    for step in range(6):
        torch.manual_seed(step)
        images = torch.randn(8, 1, 16, 16)

        def closure(model=ours, optimizer=mine, images=images) -> Tensor:
            optimizer.zero_grad()
            loss = model(images).square().mean()
            loss.backward()
            return loss

        for group, rate in zip(other.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = torch.tensor(rate, dtype=torch.float64)
        loss = mine.step(closure).item()
        assert loss == pytest.approx(closure(theirs, other).item(), rel=1e-4)
        other.step()
        schedule.step()
    assert_close(ours, theirs)


@each_optimizer
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64], ids=str)
def test_parameters_of_other_dtypes_and_layouts(make, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = [torch.randn(6, 5, 3, 3).to(memory_format=torch.channels_last), torch.randn(7, 3), torch.randn(())]
    models = []
    for backend in ("auto", "reference"):
        model = nn.ParameterList([x.to(dtype) for x in values])
        optimizer = make(model)
        with use_backend(backend):
            for step in range(3):
                torch.manual_seed(step)
                for p in model:
                    p.grad = torch.randn(p.shape, dtype=dtype)  # contiguous, where the parameter is channels_last
                optimizer.step()
        models.append(model)
    for a, b, start in zip(*models, values, strict=True):
        torch.testing.assert_close(a, b)
        assert dtype == torch.bfloat16 or not torch.equal(a, start.to(dtype))  # small steps round to none
    assert models[0][0].is_contiguous(memory_format=torch.channels_last)


def test_backward_notices_a_step_in_between() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    optimizer = AdamW(model.parameters())
    first, second = (model(torch.randn(2, 3)).sum() for _ in range(2))
    first.backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        second.backward()


@each_optimizer
def test_copies_and_pickles_go_on(make) -> None:
    model = network()
    optimizer = make(model, ema=ModelEMA(model, 0.5), max_grad_norm=0.1)
    train(model, optimizer, 2)
    both = copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))
    train_from(model, optimizer, range(2))
    for other, its in both:
        assert its.ema is not optimizer.ema and its.max_grad_norm == 0.1
        its.ema.pairs(other)
        train_from(other, its, range(2))
        assert_close(other, model, atol=1e-7)
        assert_close(its.ema.module, optimizer.ema.module, atol=1e-7)


def test_lars_warms_up_from_nothing_and_takes_sgds_checkpoint() -> None:
    ours, theirs = network(), network()
    optimizer = LARS(ours.parameters(), 0.0, weight_decay=1e-4, trust_clip=True)
    train(ours, optimizer, 2)
    assert_close(ours, theirs, atol=0)
    sgd = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
    train(theirs, sgd, 2)
    optimizer.load_state_dict(saved(sgd))
    train(ours, optimizer, 2)
    assert optimizer.param_groups[0]["lr"] == 0.1
    with pytest.raises(ValueError, match="momentum must be"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))], "momentum": math.nan})


def test_a_buffer_that_a_checkpoint_has_none_of_is_not_dampened() -> None:
    moved = []
    for state in ({}, {0: {"momentum_buffer": None}}):  # as torch's SGD saves it before its first step
        p = nn.Parameter(torch.zeros(3))
        p.grad = torch.ones(3)
        optimizer = LARS([p], 0.1, 0.9, dampening=0.5)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        optimizer.step()
        moved.append(p.detach())
    torch.testing.assert_close(moved[0], torch.full((3,), -0.1))
    assert torch.equal(*moved)


@each_optimizer
def test_a_step_without_gradients_moves_the_teacher_alone(make) -> None:
    model = network()
    ema = ModelEMA(model, 0.5)
    optimizer = make(model, ema=ema, max_grad_norm=1.0)
    with torch.no_grad():
        model[1].weight += 1
    before = model[1].weight.detach().clone()
    optimizer.step()
    assert torch.equal(model[1].weight, before)
    torch.testing.assert_close(ema.module[1].weight, before - 0.5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: LARS(p, 0.1, momentum=1.5), ValueError, "momentum must be"),
        (lambda p: LARS(p, -0.1), ValueError, "lr must be"),
        (lambda p: LARS(p, math.nan), ValueError, "lr must be"),
        (lambda p: LARS(p, 0.1, weight_decay=-1.0), ValueError, "weight_decay must be"),
        (lambda p: LARS(p, 0.1, momentum=0.0, nesterov=True), ValueError, "nesterov needs a momentum"),
        (lambda p: LARS(p, 0.1, max_grad_norm=0.0), ValueError, "max_grad_norm must be"),
        (lambda p: AdamW(p, -1.0), ValueError, "learning rate"),
        (lambda p: AdamW(p, max_grad_norm=math.nan), ValueError, "max_grad_norm must be"),
        (lambda p: AdamW(p, ema=copy.deepcopy), TypeError, "ema must be a ModelEMA; got function"),
    ],
)
def test_wrong_arguments_are_named(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make([nn.Parameter(torch.zeros(3))])


@each_optimizer
def test_sparse_gradients_are_refused(make) -> None:
    model = nn.Embedding(5, 3, sparse=True)
    optimizer = make(model)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match=r"gradients\[0\] must be a dense Tensor"):
        optimizer.step()


def freeze_the_first(optimizer: Any, model: nn.Module) -> None:
    next(model.parameters()).requires_grad_(False)


def free_the_first(optimizer: Any, model: nn.Module) -> None:
    next(model.parameters()).requires_grad_(True)


def replace_a_state(optimizer: Any, model: nn.Module) -> None:
    state = optimizer.state[next(model.parameters())]
    name = list(state)[-1]
    state[name] = torch.full_like(state[name], 0.01)


def forget_the_states(optimizer: Any, model: nn.Module) -> None:
    optimizer.state.clear()


def forget_one_state(optimizer: Any, model: nn.Module) -> None:
    del optimizer.state[next(model.parameters())]


def move_the_memory(optimizer: Any, model: nn.Module) -> None:
    for p in model.parameters():
        p.data = p.data.clone()
    for state in optimizer.state.values():
        for x in state.values():
            x.data = x.data.clone()


def change_the_layout(optimizer: Any, model: nn.Module) -> None:
    model.to(memory_format=torch.channels_last)


def load_itself(optimizer: Any, model: nn.Module) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def split_the_group(optimizer: Any, model: nn.Module) -> None:
    first = optimizer.param_groups[0]
    optimizer.add_param_group({**first, "params": [first["params"].pop()], "lr": 1e-3})


def replace_a_teacher(optimizer: Any, model: nn.Module) -> None:
    teacher = optimizer.ema.module[1]
    teacher.weight = nn.Parameter(torch.zeros_like(teacher.weight), requires_grad=False)


def take_another_setting(optimizer: Any, model: nn.Module) -> None:
    for group in optimizer.param_groups:
        group.update({"amsgrad": True} if "amsgrad" in group else {"momentum": 0.0})


CHANGES = [
    freeze_the_first,
    free_the_first,
    replace_a_state,
    forget_one_state,
    move_the_memory,
    change_the_layout,
    load_itself,
    split_the_group,
    replace_a_teacher,
    forget_the_states,
    take_another_setting,
]


@each_optimizer
@pytest.mark.parametrize("changes", [[change] for change in CHANGES] + [CHANGES], ids=lambda of: of[-1].__name__)
def test_nothing_that_is_kept_between_steps_is_stale(make, changes: list[Callable[[Any, nn.Module], None]]) -> None:
    """Beside an optimizer that forgets its plan before every step."""
    results = []
    for forgets in (False, True):
        model = network()
        optimizer = make(model, ema=ModelEMA(model, 0.9))

        def forget(optimizer: Any = optimizer, forgets: bool = forgets) -> None:
            if forgets:
                optimizer._plan = None

        train(model, optimizer, 2, forget)
        for change in changes:
            change(optimizer, model)
            forget()
            train(model, optimizer, 2, forget)
        results.append([*model.state_dict().values(), *optimizer.ema.state_dict().values()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


class Pair(Tensor):
    """A tensor without memory of its own, as quantised weights are."""

    @staticmethod
    def __new__(cls, x: Tensor) -> Pair:
        made: Pair = Tensor._make_wrapper_subclass(cls, x.shape, dtype=x.dtype, device=x.device)
        made.x = x
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), settings=None):
        inner = torch.utils._pytree.tree_map(lambda a: a.x if isinstance(a, Pair) else a, (arguments, settings or {}))
        found = function(*inner[0], **inner[1])
        return Pair(found) if isinstance(found, Tensor) else found


def with_gradients(make) -> tuple[nn.Linear, Any]:
    """A layer, weights and gradients all there, and its optimizer."""
    model = nn.Linear(3, 4)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    return model, make(model)


@each_optimizer
def test_a_parameter_that_was_swapped_for_another_kind_is_refused(make) -> None:
    model, optimizer = with_gradients(make)
    optimizer.step()
    weight = model.weight
    weight.grad = None
    torch.utils.swap_tensors(weight, nn.Parameter(Pair(torch.zeros(4, 3))))
    weight.grad = Pair(torch.ones(4, 3))
    with pytest.raises(TypeError, match="must be a Tensor with memory of its own; got"):
        optimizer.step()


@each_optimizer
def test_memory_that_was_freed_is_named(make) -> None:
    model, optimizer = with_gradients(make)
    optimizer.step()
    model.weight.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"parameters\[0\] has no memory"):
        optimizer.step()


@each_optimizer
def test_other_things_in_the_state_are_left_alone(make) -> None:
    _, optimizer = with_gradients(make)
    optimizer.state["seen"] = 3
    optimizer.step()
    optimizer.step()
    assert optimizer.state["seen"] == 3
