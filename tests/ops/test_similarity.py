"""The operators as torch sees them: schema, fake, autograd, compile, autocast, checkpointing."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import pyssl_fast
from pyssl_fast.functional import nt_xent
from pyssl_fast.losses import NTXentLoss
from tests.kernels.nt_xent_cases import embeddings

OPS = torch.ops.pyssl_fast


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nt_xent_passes_opcheck(backend: str, dtype: torch.dtype) -> None:
    z = embeddings(9, 2, 6, dtype).requires_grad_()
    scale = torch.tensor(4.0, requires_grad=True)
    torch.library.opcheck(OPS.nt_xent, (z, scale, 2, backend))
    nll, shift, negative_sum = OPS.nt_xent(z.detach(), scale.detach(), 2, backend)
    torch.library.opcheck(
        OPS.nt_xent_backward, (torch.rand_like(nll), z.detach(), scale.detach(), shift, negative_sum, 2, backend)
    )


def views(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    z0, z1 = embeddings(40, 2, 24, dtype).split(40)
    return z0.clone().requires_grad_(), z1.clone().requires_grad_()


@pytest.mark.parametrize("mark_dynamic", [False, True])
def test_compiles_without_a_graph_break(mark_dynamic: bool) -> None:
    (z0, z1), temperature = views(), torch.tensor(0.2, requires_grad=True)
    compiled = torch.compile(nt_xent, fullgraph=True, dynamic=mark_dynamic, backend="aot_eager")
    for samples in (40, 17):
        ours = compiled(z0[:samples], z1[:samples], temperature)
        eager = nt_xent(z0[:samples], z1[:samples], temperature)
        assert torch.equal(ours, eager)
        for mine, theirs in zip(
            torch.autograd.grad(ours * 3, (z0, z1, temperature)),
            torch.autograd.grad(eager * 3, (z0, z1, temperature)),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_with_numbers_for_temperature(dynamic: bool | None) -> None:
    z0, z1 = views()
    compiled = torch.compile(nt_xent, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for temperature in (0.2, 0.3, 0.5, 1):
        assert torch.equal(compiled(z0, z1, temperature), nt_xent(z0, z1, temperature))
    module = torch.compile(NTXentLoss(0.4), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    assert torch.equal(module(z0, z1), nt_xent(z0, z1, 0.4))


def test_traces_with_fake_tensors() -> None:
    z0, z1 = (x.detach() for x in views())
    trace = torch.fx.experimental.proxy_tensor.make_fx(lambda a, b, t: nt_xent(a, b, t), tracing_mode="fake")
    graph = trace(z0, z1, torch.tensor(0.2))
    assert torch.equal(graph(z0, z1, torch.tensor(0.3)), nt_xent(z0, z1, 0.3))


@pytest.mark.parametrize(("rows", "count"), [(6, 1), (6, 4), (0, 2)])
def test_called_directly_refuses_rows_that_are_no_views(rows: int, count: int) -> None:
    with pytest.raises(ValueError, match=r"z must be \[views·N, D\]"):
        OPS.nt_xent(torch.zeros(rows, 3), torch.tensor(1.0), count, "cpu")


def test_compiles_with_inductor() -> None:
    z0, z1 = views()
    ours = torch.compile(lambda a, b: 2 * nt_xent(a, b, 0.2), fullgraph=True)(z0, z1)
    torch.testing.assert_close(ours, 2 * nt_xent(z0, z1, 0.2))


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_runs_in_its_dtype_and_returns_float32(compiled: bool) -> None:
    z0, z1 = views()
    function = torch.compile(nt_xent, fullgraph=True, backend="aot_eager") if compiled else nt_xent
    with torch.autocast("cpu", torch.bfloat16):
        loss = function(z0, z1, 0.2)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, nt_xent(z0.bfloat16(), z1.bfloat16(), 0.2))
    loss.backward()
    assert z0.grad is not None and z0.grad.dtype == torch.float32 and z0.grad.abs().max() > 0


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_gives_the_same_gradient(use_reentrant: bool) -> None:
    z0, z1 = views()
    plain = torch.autograd.grad(nt_xent(z0, z1), (z0, z1))
    checkpoint(nt_xent, z0, z1, use_reentrant=use_reentrant).backward()
    assert torch.equal(z0.grad, plain[0]) and torch.equal(z1.grad, plain[1])


def test_saved_tensor_hooks_see_each_tensor_once() -> None:
    z0, z1 = views()
    unpacked: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: (unpacked.append(id(x)), x)[1]):
        loss = nt_xent(z0, z1)
        loss.backward()
    assert unpacked and len(unpacked) == len(set(unpacked))


def test_second_derivative_is_an_error() -> None:
    z0, z1 = views()
    (gradient,) = torch.autograd.grad(nt_xent(z0, z1), z0, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not supported"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, True), (False, False, True)])
def test_only_the_gradients_asked_for(needed: tuple[bool, bool, bool]) -> None:
    full = [x.detach().clone().requires_grad_() for x in (*views(), torch.tensor(0.3))]
    expected = torch.autograd.grad(nt_xent(*full), full)
    inputs = [x.detach().clone().requires_grad_(need) for x, need in zip(full, needed, strict=True)]
    nt_xent(*inputs).backward()
    for x, need, want in zip(inputs, needed, expected, strict=True):
        assert (x.grad is not None) == need
        assert x.grad is None or torch.equal(x.grad, want)


def test_no_gradient_asked_for_no_graph() -> None:
    z0, z1 = (x.detach() for x in views())
    assert not nt_xent(z0, z1).requires_grad


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_gradient_through_a_larger_graph_and_grad_scaler(backend: str, dtype: torch.dtype) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    weight = torch.eye(24, requires_grad=True)
    gradients = []
    with pyssl_fast.use_backend(backend):
        for scale in (lambda loss: loss, scaler.scale):
            z0, z1 = ((x.detach() @ weight).to(dtype) for x in views())
            loss = nt_xent(z0, z1, 0.3, reduction="none").mean()
            gradients += torch.autograd.grad(scale(loss), weight)
    assert gradients[1].abs().max() > 0
    torch.testing.assert_close(
        gradients[1] / 2**16, gradients[0], rtol=1e-2 if dtype == torch.float16 else 1e-5, atol=1e-7
    )


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_loss_scale_does_not_overflow_beside_the_smallest_denominators(backend: str) -> None:
    # At τ = 1/40 rows that stand opposite have denominators of e⁻⁸⁰.
    z = torch.ones(4, 5)
    z[0] *= -1
    inputs = [x.clone().requires_grad_() for x in (z, z)]
    with pyssl_fast.use_backend(backend):
        for z1 in (inputs[1], -inputs[0].detach()):
            (gradient,) = torch.autograd.grad(2.0**16 * nt_xent(inputs[0], z1, 0.025, reduction="sum"), inputs[0])
            assert gradient.isfinite().all()


def test_deterministic_mode_is_no_obstacle() -> None:
    z0, z1 = views()
    torch.use_deterministic_algorithms(True)
    try:
        nt_xent(z0, z1).backward()
    finally:
        torch.use_deterministic_algorithms(False)
