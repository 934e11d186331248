from __future__ import annotations

import copy

import pytest
import torch
from lightly.loss import NTXentLoss as LightlyNTXentLoss

from pyssl_fast import functional
from pyssl_fast.losses import (
    ClipLoss,
    DCLLoss,
    DCLWLoss,
    EmbeddingInfoNCELoss,
    HardNegativeLoss,
    InfoNCELoss,
    NNCLRLoss,
    NTXentLoss,
    SupConLoss,
)


def test_takes_the_place_of_lightlys() -> None:
    z0, z1 = torch.randn(16, 8), torch.randn(16, 8)
    for arguments in ((), (0.2,), (0.1, 0, False), (-0.5,)):
        torch.testing.assert_close(NTXentLoss(*arguments)(z0, z1), LightlyNTXentLoss(*arguments)(z0, z1))
    ours = NTXentLoss(temperature=0.3, memory_bank_size=0, gather_distributed=False)(out0=z0, out1=z1)
    assert ours.shape == ()
    assert not NTXentLoss().state_dict() and NTXentLoss().eps == LightlyNTXentLoss().eps


@pytest.mark.parametrize(("batch", "drop_on_wrap"), [(4, False), (4, True), (5, True)])
def test_memory_bank_is_lightlys(batch: int, drop_on_wrap: bool) -> None:
    ours = NTXentLoss(0.2, (12, 6), drop_on_wrap=drop_on_wrap)
    theirs = LightlyNTXentLoss(0.2, (12, 6))
    theirs.memory_bank.bank.copy_(ours.memory_bank.bank)
    for step in range(7):
        out = torch.randn(2, batch, 6, requires_grad=step % 3 != 2)  # no gradient: the bank stands still
        mine, other = ours(*out), theirs(*out)
        torch.testing.assert_close(mine, other)
        torch.testing.assert_close(ours.memory_bank.bank, theirs.memory_bank.bank)
        if out.requires_grad:
            gradients = (torch.autograd.grad(loss, out)[0] for loss in (mine, other))
            torch.testing.assert_close(*gradients)
    before = ours.memory_bank.bank.clone()
    with torch.no_grad():
        ours(torch.randn(batch, 6), torch.randn(batch, 6).requires_grad_())
    assert torch.equal(ours.memory_bank.bank, before)


def test_memory_bank_goes_round() -> None:
    loss = NTXentLoss(memory_bank_size=(7, 3))
    out = torch.randn(2, 5, 3, requires_grad=True)
    loss(*out)
    loss(*out)
    bank, keys = loss.memory_bank.bank, torch.nn.functional.normalize(out[1].detach(), dim=1)
    torch.testing.assert_close(bank[[5, 6, 0, 1, 2]], keys)


def test_memory_bank_takes_its_length_from_the_first_batch() -> None:
    loss = NTXentLoss(memory_bank_size=7)
    out = torch.randn(2, 5, 3, requires_grad=True)
    assert loss(*out).shape == () and loss.memory_bank.bank.shape == (7, 3)
    twin = copy.deepcopy(loss)
    assert torch.equal(twin(*out), loss(*out))
    fresh = NTXentLoss(memory_bank_size=7)
    fresh.load_state_dict(loss.state_dict())
    assert torch.equal(fresh.memory_bank.bank, loss.memory_bank.bank)


def test_memory_bank_passes_options_on() -> None:
    loss = NTXentLoss(0.3, (6, 3), reduction="none", label_smoothing=0.1, return_metrics=True)
    out, weight = torch.randn(2, 5, 3), torch.rand(5)
    rows, metrics = loss(*out, weight=weight)
    want, _ = functional.info_nce(
        *out,
        loss.memory_bank.bank,
        0.3,
        "none",
        weight=weight,
        label_smoothing=0.1,
        return_metrics=True,
    )
    torch.testing.assert_close(rows, want)
    assert metrics.lse.shape == (5,)


def test_learns_its_temperature() -> None:
    loss = NTXentLoss(torch.nn.Parameter(torch.tensor(0.5)))
    assert [name for name, _ in loss.named_parameters()] == ["temperature"]
    loss(torch.randn(16, 8), torch.randn(16, 8)).backward()
    assert loss.temperature.grad is not None and loss.temperature.grad != 0


def test_further_views_and_options() -> None:
    views, weight, ids = torch.randn(3, 5, 4), torch.rand(5), torch.tensor([0, 1, 0, 2, 3])
    loss = NTXentLoss(reduction="none", debias=0.1)(*views, ids=ids, weight=weight)
    want = functional.nt_xent(*views[:2], extra_views=views[2:], ids=ids, weight=weight, debias=0.1, reduction="none")
    assert torch.equal(loss, want) and loss.shape == (3, 5)


def test_prints_its_settings() -> None:
    assert NTXentLoss(0.25).extra_repr() == "temperature=0.25, reduction='mean'"
    learned = NTXentLoss(torch.nn.Parameter(torch.tensor(0.25)), label_smoothing=0.1, debias=0.0)
    assert learned.extra_repr() == "temperature=0.25 (learned), reduction='mean', label_smoothing=0.1"


def test_compiles_with_a_memory_bank() -> None:
    torch.compiler.reset()
    eager = NTXentLoss(0.2, (12, 6))
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (4, 5, 6):
        out = torch.randn(2, rows, 6, requires_grad=True)
        torch.testing.assert_close(compiled(*out), eager(*out))
        assert torch.equal(compiled.memory_bank.bank, eager.memory_bank.bank)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temperature": 1e-9}, ValueError, "temperature must be 1e-8 to 1e30"),
        ({"reduction": "max"}, ValueError, "reduction must be one of"),
        ({"label_smoothing": 2}, ValueError, "label_smoothing must be 0 to 1; got 2"),
        ({"debias": 1}, ValueError, "debias must be 0 to 1"),
        ({"memory_bank_size": -1}, ValueError, "size must be 0 or more; got -1"),
        ({"memory_bank_size": (64, 8, 2)}, ValueError, r"size must be .* got \(64, 8, 2\)"),
        ({"memory_bank_size": 1.5}, TypeError, "size must be a whole number; got float"),
        ({"gather_distributed": True}, NotImplementedError, "gather_distributed=True"),
    ],
)
def test_refuses(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        NTXentLoss(**arguments)


def test_a_memory_bank_refuses_what_it_cannot_do() -> None:
    loss, out = NTXentLoss(memory_bank_size=(6, 3)), torch.randn(5, 3)
    for extra, options in (((out,), {}), ((), {"ids": torch.arange(5)})):
        with pytest.raises(ValueError, match="a memory bank goes with two views and without ids"):
            loss(out, out, *extra, **options)
    with pytest.raises(ValueError, match=r"keys must be \[B, 3\]; got \[5, 2\]"):
        loss(out[:, :2], out[:, :2])


def test_a_batch_larger_than_the_bank_is_named_before_the_loss() -> None:
    loss, out = NTXentLoss(memory_bank_size=(6, 3)), torch.randn(2, 7, 3, requires_grad=True)
    before = loss.memory_bank.bank.clone()
    with pytest.raises(ValueError, match="out1 must have 6 rows at most, as memory_bank_size=6 says; got 7"):
        loss(*out)
    assert torch.equal(loss.memory_bank.bank, before)
    assert loss(*out.detach()).shape == ()  # nothing joins the bank
    assert NTXentLoss(memory_bank_size=(6, 3), drop_on_wrap=True)(*out).shape == ()


def test_lightlys_attributes_and_checkpoints() -> None:
    loss = NTXentLoss(0.2, (6, 3))
    assert isinstance(loss.cross_entropy, torch.nn.CrossEntropyLoss) and loss.cross_entropy.reduction == "mean"
    assert loss.memory_bank.bank_ptr == 0
    before = loss.memory_bank.bank.clone()
    loss.load_state_dict(LightlyNTXentLoss(0.2, (6, 3)).state_dict())
    assert torch.equal(loss.memory_bank.bank, before)


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (NTXentLoss(), 2),
        (NTXentLoss(memory_bank_size=(9, 4)), 2),
        (DCLLoss(), 2),
        (DCLWLoss(), 2),
        (HardNegativeLoss(), 2),
        (InfoNCELoss(), 2),
        (EmbeddingInfoNCELoss(), 2),
        (NNCLRLoss(), 2),
        (SupConLoss(normalize=True), 1),
        (ClipLoss(), 3),
    ],
    ids=lambda x: type(x).__name__,
)
def test_every_sample_its_own_debias(module: torch.nn.Module, inputs: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x = [*torch.nn.functional.normalize(torch.randn(2, 6, 4, generator=generator), dim=2)]
    arguments = [x[0].repeat(1, 2).view(6, 2, 4)] if inputs == 1 else [*x, torch.tensor(3.0)][:inputs]
    share = torch.tensor([0.0, 0.1, 0.05, 0.3, 0.01, 0.02])
    found = module(*arguments, debias=share)
    even = copy.deepcopy(module)
    even.debias = 0.1
    assert not torch.isclose(found, even(*arguments))
    torch.testing.assert_close(module(*arguments, debias=torch.full((6,), 0.1)), even(*arguments))
