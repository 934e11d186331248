"""Teachers of whole models: policies, wrappers, changes of the model, saving, and timm's results."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pyssl_fast.ema import ModelEMA, ModelEmaV3


class Net(nn.Module):
    """Tied weights, a batch norm with an integer buffer, a scalar, nothing, a complex number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.first = nn.Linear(8, 8, bias=False)
        self.tied = nn.Linear(8, 8, bias=False)
        self.tied.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.none = nn.Parameter(torch.empty(0))
        self.phase = nn.Parameter(torch.randn(3, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.tied(self.first(self.norm(self.conv(x)).mean((2, 3))))


def shaken(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for x in (*model.parameters(), *model.buffers()):
            x += torch.randn_like(x) if x.is_floating_point() or x.is_complex() else 1
    return model


def expected(teacher: dict[str, Tensor], student: dict[str, Tensor], momentum: float) -> dict[str, Tensor]:
    return {name: momentum * t + (1 - momentum) * student[name] for name, t in teacher.items()}


@pytest.mark.parametrize("buffers", ["copy", "average", "leave"])
def test_parameters_are_averaged_and_buffers_as_they_are_told(buffers: str) -> None:
    torch.manual_seed(0)
    model = Net()
    ema = ModelEMA(model, 0.75, buffers=buffers)
    before = {name: x.clone() for name, x in ema.module.state_dict().items()}
    shaken(model)
    ema.update(model)
    student = model.state_dict()
    for name, x in ema.module.state_dict().items():
        averaged = 0.75 * before[name] + 0.25 * student[name]
        if "running" in name:
            averaged = {"copy": student[name], "average": averaged, "leave": before[name]}[buffers]
        elif "num_batches" in name:
            averaged = before[name] if buffers == "leave" else student[name]
        torch.testing.assert_close(x, averaged.to(x.dtype))
    assert ema.module.tied.weight is ema.module.first.weight
    assert not any(p.requires_grad for p in ema.parameters())


def test_momentum_is_a_number_or_a_tensor_and_may_change() -> None:
    model = nn.Linear(3, 2)
    ema = ModelEMA(model, torch.tensor(1.0))
    start = ema.module.weight.clone()
    shaken(model)
    ema.update(model)
    assert torch.equal(ema.module.weight, start)
    ema.momentum.fill_(0.5)
    ema.update(model)
    torch.testing.assert_close(ema.module.weight, (start + model.weight) / 2)
    ema.momentum = 0.0
    ema.update(model)
    assert torch.equal(ema.module.weight, model.weight)
    ema.update(shaken(model), momentum=1.0)
    assert not torch.equal(ema.module.weight, model.weight)
    ema.set(model)
    assert torch.equal(ema.module.weight, model.weight)
    for wrong in (1.5, float("nan"), -0.1):
        with pytest.raises(ValueError, match="momentum must be"):
            ema.momentum = wrong
        with pytest.raises(ValueError, match="momentum must be"):
            ModelEMA(model, wrong)


def test_a_model_of_16_bits_has_a_float32_teacher_and_a_shadow() -> None:
    torch.manual_seed(0)
    model = Net()
    del model.phase
    model.bfloat16()
    ema = ModelEMA(model, 0.99, shadow=torch.bfloat16)
    assert {x.dtype for x in ema.module.parameters()} == {torch.float32}
    assert {x.dtype for x in ema.shadow.parameters()} == {torch.bfloat16}
    assert ema.module.tied.weight is ema.module.first.weight and ema.shadow.tied.weight is ema.shadow.first.weight
    for _ in range(3):
        ema.update(shaken(model))
    for (name, x), t in zip(ema.shadow.state_dict().items(), ema.module.state_dict().values(), strict=True):
        assert torch.equal(x, t.to(x.dtype)), name
    assert torch.equal(ema.module.norm.running_mean, model.norm.running_mean.float())
    ema.eval()
    images = torch.randn(2, 3, 8, 8).bfloat16()
    assert torch.equal(ema(images), ema.shadow(images))


def test_copied_buffers_of_any_layout_beside_a_shadow() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("strided", torch.zeros(4, 6)[:, ::2])
    model.register_buffer("images", torch.zeros(1, 2, 4, 4))
    ema = ModelEMA(model, 0.5, shadow=torch.bfloat16)
    ema.module.images = ema.module.images.to(memory_format=torch.channels_last)
    model.strided += 7
    model.images += 7
    ema.update(model)
    for of in (ema.module, ema.shadow):
        assert {float(x) for x in (*of.strided.unique(), *of.images.unique())} == {7.0}


def test_statistics_that_a_shadow_gathers_are_the_teachers() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    ema = ModelEMA(model, 0.5, buffers="leave", shadow=torch.bfloat16)
    for _ in range(5):
        ema(torch.randn(8, 3, dtype=torch.bfloat16) + 5)
        ema.update(model)
    assert (ema.module[0].running_mean > 1).all()
    torch.testing.assert_close(ema.state_dict()["module.0.running_mean"], ema.shadow[0].running_mean.float())


@pytest.mark.parametrize("frozen", ["average", "share", "skip"])
def test_frozen_parameters(frozen: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].requires_grad_(False)
    ema = ModelEMA(model, 0.5, frozen=frozen)
    before = ema.module[0].weight.clone()
    assert (ema.module[0].weight is model[0].weight) == (frozen == "share")
    with torch.no_grad():
        for p in model.parameters():
            p += 1
    ema.update(model)
    torch.testing.assert_close(ema.module[1].weight, model[1].weight - 0.5)
    torch.testing.assert_close(
        ema.module[0].weight, {"average": before + 0.5, "share": model[0].weight, "skip": before}[frozen]
    )
    model[0].requires_grad_(True)  # set free again
    ema.update(model)
    following = {"average": before + 0.75, "share": model[0].weight, "skip": before + 0.5}[frozen]
    torch.testing.assert_close(ema.module[0].weight, following)


def test_a_parameter_frozen_in_mid_training_is_still_averaged() -> None:
    model = nn.Linear(2, 2)
    ema = ModelEMA(model, 0.0)
    shaken(model)
    model.requires_grad_(False)
    ema.update(model)
    assert torch.equal(ema.module.weight, model.weight)


def _add(model: nn.Sequential) -> None:
    model.append(nn.Linear(2, 2))


def _drop(model: nn.Sequential) -> None:
    del model[1]


def _rename(model: nn.Sequential) -> None:
    model._modules["head"] = model._modules.pop("1")


def _reshape(model: nn.Sequential) -> None:
    model[1].weight = nn.Parameter(torch.zeros(5, 2))


def _cut(model: nn.Sequential) -> None:
    model[1].weight.data = model[1].weight.data[:1]  # at the same address


def _register(model: nn.Sequential) -> None:
    model[0].register_buffer("mask", torch.ones(2))


def _unregister(model: nn.Sequential) -> None:
    del model[0].bias
    model[0].register_parameter("bias", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_add, r"parameters are not those .* added: 2.weight, 2.bias"),
        (_drop, r"dropped: 1.weight, 1.bias"),
        (_rename, r"added: head.weight, head.bias; dropped: 1.weight, 1.bias"),
        (_reshape, r"of another shape: 1.weight \(\[2, 2\], now \[5, 2\]\)"),
        (_cut, r"student\[2\] must have teacher\[2\]'s shape \[2, 2\]; got \[1, 2\]"),
        (_register, r"buffers are not those .* added: 0.mask"),
        (_unregister, r"dropped: 0.bias"),
    ],
)
def test_a_model_that_has_changed_since_is_an_error(change, message: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    ema = ModelEMA(model, 0.5)
    ema.update(model)
    before = [x.clone() for x in ema.module.parameters()]
    change(model)
    with pytest.raises(ValueError, match=message):
        ema.update(model)
    assert all(torch.equal(a, b) for a, b in zip(before, ema.module.parameters(), strict=True))


def test_replaced_tensors_are_found() -> None:
    """New parameters of the same names, moved memory, another dtype, weights that are assigned to the teacher."""
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64))
    ema = ModelEMA(model, 0.0)
    ema.update(model)
    model[0].weight = nn.Parameter(torch.randn(64, 64))
    model[1].running_mean = torch.randn(64)
    ema.update(model)
    assert torch.equal(ema.module[0].weight, model[0].weight)
    assert torch.equal(ema.module[1].running_mean, model[1].running_mean)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        shaken(model.to(dtype))
        ema.update(model)
        assert torch.equal(ema.module[0].weight, model[0].weight.float())
        assert torch.equal(ema.module[1].running_mean, model[1].running_mean.float())
    for view in (lambda x: x.t(), lambda x: x[:, ::2].contiguous()[:, :1].expand(64, 64), lambda x: x.clone()):
        model[0].weight.data = view(model[0].weight.data)  # the first lies at the same address
        ema.update(model)
        assert torch.equal(ema.module[0].weight, model[0].weight)
    shaken(model)
    ema.module.load_state_dict(copy.deepcopy(ema.module.state_dict()), assign=True)
    ema.update(model)
    assert torch.equal(ema.module[0].weight, model[0].weight)
    ema.double()
    shaken(model)
    ema.update(model)
    assert torch.equal(ema.module[0].weight, model[0].weight.double())


def test_wrapped_models_are_unwrapped() -> None:
    model = nn.Linear(3, 2)
    compiled, parallel = torch.compile(model, backend="eager"), nn.DataParallel(model)
    for made_of, followed in ((model, compiled), (compiled, parallel), (parallel, model)):
        ema = ModelEMA(made_of, 0.0)
        ema.update(shaken(followed))
        assert torch.equal(ema.module.weight, model.weight)
        assert list(ema.state_dict()) == ["module.weight", "module.bias"]


def test_the_state_dict_is_the_module_and_rebuilds_the_shadow() -> None:
    model = Net()
    ema, other = (ModelEMA(model, 0.5, shadow=torch.bfloat16) for _ in range(2))
    ema.update(shaken(model))
    state = ema.state_dict()
    assert set(state) == {f"module.{name}" for name in model.state_dict()}
    assert other.load_state_dict(state).missing_keys == []
    for a, b in zip(ema.shadow.parameters(), other.shadow.parameters(), strict=True):
        assert torch.equal(a, b)
    outer = nn.ModuleDict({"teacher": other})
    outer.load_state_dict({f"teacher.{name}": x for name, x in state.items()})
    for a, b in zip(ema.shadow.parameters(), other.shadow.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({name: x for name, x in state.items() if "conv" not in name})


def test_copies_and_pickles_go_on_by_themselves() -> None:
    model = Net()
    ema = ModelEMA(model, 0.5)
    ema.update(model)
    for other in (copy.deepcopy(ema), pickle.loads(pickle.dumps(ema))):
        shaken(model)
        before = other.module.conv.weight.clone()
        mine = ema.module.conv.weight.clone()
        other.update(model)
        torch.testing.assert_close(other.module.conv.weight, (before + model.conv.weight) / 2)
        assert torch.equal(ema.module.conv.weight, mine)
        other.pairs()  # of the model that was followed last
        with pytest.raises(ValueError, match="the model that the teacher was made of is no more"):
            copy.deepcopy(other).pairs()


def test_the_teacher_does_not_keep_the_model() -> None:
    model = nn.Linear(1000, 10)
    ema = ModelEMA(model)
    ema.update(model)
    weight = weakref.ref(model.weight)
    del model
    gc.collect()
    assert weight() is None
    with pytest.raises(ValueError, match="is no more"):
        ema.pairs()


def test_inside_a_compiled_step() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    ema = ModelEMA(model, torch.tensor(0.5))

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(x: Tensor) -> Tensor:
        out = model(x)
        ema.update(model)
        return out.sum()

    for _ in range(2):
        before = ema.module[0].weight.clone()
        step(torch.randn(4, 3))
        torch.testing.assert_close(ema.module[0].weight, (before + model[0].weight) / 2)
        assert torch.equal(ema.module[1].running_mean, model[1].running_mean)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"buffers": "drop"}, "buffers must be one of"),
        ({"frozen": "thaw"}, "frozen must be one of"),
        ({"dtype": torch.int8}, "dtype must be torch.float32 or None"),
        ({"shadow": torch.float64}, "shadow must be torch.float16"),
        ({"module": nn.Linear(3, 2)}, "of another shape: weight"),
    ],
)
def test_wrong_arguments_are_named(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelEMA(nn.Linear(2, 2), **settings)


@pytest.mark.parametrize("exclude_buffers", [False, True])
@pytest.mark.parametrize("use_warmup", [False, True])
def test_model_ema_v3_is_timms(exclude_buffers: bool, use_warmup: bool) -> None:
    from timm.utils import ModelEmaV3 as Timms

    torch.manual_seed(0)
    model = Net()
    del model.phase  # which timm copies
    model.tied.weight = nn.Parameter(torch.randn(8, 8))  # timm averages what is tied twice
    settings = {"decay": 0.9, "use_warmup": use_warmup, "update_after_step": 1, "exclude_buffers": exclude_buffers}
    ours, theirs = ModelEmaV3(model, **settings), Timms(model, **settings)
    assert not ours.module.training
    for step in (None, 0, 1, 2, 3, 10, 100):
        shaken(model)
        assert ours.get_decay(step) == pytest.approx(theirs.get_decay(step))
        ours.update(model, step)
        theirs.update(model, step)
        mine, timms = ours.state_dict(), theirs.state_dict()
        assert list(mine) == list(timms)
        for name, x in mine.items():
            torch.testing.assert_close(x, timms[name])
    ours.set(shaken(model))
    for name, x in ours.module.state_dict().items():
        assert torch.equal(x, model.state_dict()[name])


DISTRIBUTED = """
import copy, os, sys, torch, torch.distributed as dist, torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from pyssl_fast.ema import ModelEMA
from pyssl_fast.optim import AdamW, LARS

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))

def work(rank, path):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(rank))
    plain = DistributedDataParallel(net())
    sharded, teacher = net(), net()
    fully_shard(sharded, mesh=mesh), fully_shard(teacher, mesh=mesh)
    emas = ModelEMA(plain, 0.5), ModelEMA(sharded, 0.5, module=teacher)
    optimizers = [AdamW(m.parameters(), lr=0.1, ema=e, max_grad_norm=0.1) for m, e in zip((plain, sharded), emas)]
    for _ in range(3):
        for m, o in zip((plain, sharded), optimizers):
            o.zero_grad(), m(x).square().mean().backward(), o.step()
    emas[1].update(sharded), emas[0].update(plain)
    for a, b in zip(emas[0].module.parameters(), emas[1].module.parameters()):
        torch.testing.assert_close(b.full_tensor(), a)
    assert not torch.equal(emas[0].module[0].weight, net()[0].weight)
    for p in sharded.parameters():
        p.grad = torch.ones_like(p)
    try:
        LARS(sharded.parameters(), 0.1, weight_decay=0.1).step()
    except ValueError as error:
        assert "LARS needs whole layers" in str(error)
    else:
        raise AssertionError
    try:
        ModelEMA(sharded, module=net())
    except ValueError as error:
        assert "must be placed as" in str(error)
    else:
        raise AssertionError
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(work, (sys.argv[1],), nprocs=2)
    print("done")
"""


def test_distributed_models_are_followed_shard_by_shard(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = tmp_path / "distributed.py"
    script.write_text(DISTRIBUTED)
    command = [sys.executable, str(script), str(tmp_path / "rendezvous")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "done" in done.stdout, done.stderr[-3000:]


def test_a_replaced_layer_is_followed() -> None:
    for _ in range(20):  # the new one is often given the address of the old one
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        ema = ModelEMA(model, 0.0)
        ema.update(model)
        del model[0]
        model.insert(0, nn.Linear(3, 4))
        ema.update(model)
        assert torch.equal(ema.module[0].weight, model[0].weight)


def test_another_module_takes_the_teachers_place() -> None:
    model = nn.Linear(3, 4)
    ema = ModelEMA(model, 0.0)
    ema.update(model)
    ema.module = nn.Linear(3, 4)
    ema.update(model)
    assert torch.equal(ema.module.weight, model.weight)
