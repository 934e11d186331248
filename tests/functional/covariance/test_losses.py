"""What all losses of the family promise: gradients, dtypes, compile, autocast, NaN."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.functional.covariance.cases import LOSSES, Loss

every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


differentiable = [name for name, loss in LOSSES.items() if not loss.constant]


@pytest.mark.parametrize("name", differentiable)
def test_gradients_are_the_differences(name: str) -> None:
    loss = LOSSES[name]
    assert torch.autograd.gradcheck(loss.call, loss.views(9, torch.float64))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtypes(loss: Loss, dtype: torch.dtype) -> None:
    views = loss.views(dtype=dtype)
    value = loss.call(*views)
    value.backward()
    assert value.shape == () and value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for x in views:
        assert x.grad is not None and x.grad.dtype == dtype and x.grad.isfinite().all()


@every_loss
def test_compiles_once_for_any_batch(loss: Loss) -> None:
    compiled = torch.compile(loss.call, fullgraph=True, dynamic=True, backend="aot_eager")
    for samples, stance in ((24, "default"), (15, "fail_on_recompile")):
        views = loss.views(samples)
        with torch.compiler.set_stance(stance):
            ours = compiled(*views)
        eager = loss.call(*views)
        torch.testing.assert_close(ours, eager, rtol=1e-6, atol=1e-7)
        mine, theirs = torch.autograd.grad(ours * 3, views), torch.autograd.grad(eager * 3, views)
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@every_loss
def test_autocast_gives_float32_and_gradients_of_the_inputs_dtype(loss: Loss, backend: str) -> None:
    views = loss.views()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss.call(*views)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss.call(*views), rtol=0.05, atol=0.05)
    assert all(x.grad.dtype == torch.float32 and (x.grad != 0).any() for x in views)


@every_loss
def test_compiles_under_autocast(loss: Loss) -> None:
    views = loss.views()
    with torch.autocast("cpu", torch.bfloat16):
        eager = loss.call(*views)
        compiled = torch.compile(loss.call, fullgraph=True, dynamic=True, backend="aot_eager")(*views)
    torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-6)


@every_loss
def test_views_of_two_dtypes_meet_under_autocast(loss: Loss, backend: str) -> None:
    views = loss.views()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = loss.call(*views[:-1], views[-1].bfloat16())
        torch.testing.assert_close(mixed, loss.call(*views), rtol=0.05, atol=0.05)


@every_loss
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_not_a_number_comes_out(loss: Loss, bad: float, backend: str) -> None:
    views = loss.views()
    with torch.no_grad():
        views[-1].view(24, -1)[4, 2] = bad
    value = loss.call(*views)
    value.backward()
    assert value.isnan() or value.isinf()
    assert not views[-1].grad.isfinite().all()


@every_loss
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_gives_the_same_gradient(loss: Loss, use_reentrant: bool, backend: str) -> None:
    views = loss.views()
    torch.manual_seed(0)
    plain = torch.autograd.grad(loss.call(*views), views)
    torch.manual_seed(0)
    checkpoint(loss.call, *views, use_reentrant=use_reentrant).backward()
    for x, want in zip(views, plain, strict=True):
        assert torch.equal(x.grad, want)


@every_loss
def test_gradients_are_scaled_and_partial(loss: Loss, backend: str) -> None:
    views = loss.views()
    plain = torch.autograd.grad(loss.call(*views), views)
    for number, want in enumerate(plain):
        only = [x.detach().requires_grad_(which == number) for which, x in enumerate(views)]
        (gradient,) = torch.autograd.grad(loss.call(*only) * -3, only[number])
        torch.testing.assert_close(gradient, -3 * want, rtol=1e-5, atol=1e-6)


@every_loss
def test_any_layout(loss: Loss, backend: str) -> None:
    views = [x.detach() for x in loss.views()]
    value = loss.call(*views)
    for strided in (
        [x.movedim(0, -1).contiguous().movedim(-1, 0) for x in views],
        [x.repeat_interleave(2, -1)[..., ::2] for x in views],
        [x.flip(0).contiguous().flip(0) for x in views],
    ):
        torch.testing.assert_close(loss.call(*strided), value, rtol=1e-6, atol=1e-6)


@every_loss
def test_no_gradient_asked_for_no_graph(loss: Loss, backend: str) -> None:
    views = loss.views()
    with torch.no_grad():
        assert not loss.call(*views).requires_grad
    assert not loss.call(*(x.detach() for x in views)).requires_grad


@pytest.mark.parametrize("name", differentiable)
def test_second_derivatives_are_right_or_an_error(name: str) -> None:
    loss = LOSSES[name]
    views = loss.views(9, torch.float64)
    if not loss.fused:
        assert torch.autograd.gradgradcheck(loss.call, views)
        return
    gradient = torch.autograd.grad(loss.call(*views), views[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="second derivatives are not supported"):
        gradient.square().sum().backward()
