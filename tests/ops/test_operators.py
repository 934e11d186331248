"""The operators as torch sees them: schema, fake, autograd, compile, autocast, checkpointing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.ops.calls import CALLS, OPS, Call


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
DIFFERENTIABLE = {name: call for name, call in CALLS.items() if call.learned}
every_gradient = pytest.mark.parametrize("call", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE)


def leaves(call: Call, arguments: Sequence[Any]) -> list[Tensor]:
    return [arguments[index] for index in call.learned]


class Seen(torch.utils._python_dispatch.TorchDispatchMode):
    """The arguments of our operators as they run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[Any, ...]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "pyssl_fast":
            self.calls[func._opname] = args
        return func(*args, **(kwargs or {}))


@every_call
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_passes_opcheck(call: Call, backend: str, dtype: torch.dtype) -> None:
    arguments = call.arguments(backend, dtype)
    torch.library.opcheck(getattr(OPS, call.name), tuple(arguments))
    if call.backward:
        with Seen() as seen:
            call.loss(arguments).backward()
        plain = tuple(x.detach() if isinstance(x, Tensor) else x for x in seen.calls[call.backward])
        torch.library.opcheck(getattr(OPS, call.backward), plain)


@every_gradient
def test_gradients_are_right(call: Call) -> None:
    arguments = call.arguments(dtype=torch.float64)
    for index in call.learned:
        arguments[index] = arguments[index].detach().double().requires_grad_()

    def loss(*inputs: Tensor) -> Tensor:
        given = list(arguments)
        for index, x in zip(call.learned, inputs, strict=True):
            given[index] = x
        return call.loss(given)

    assert torch.autograd.gradcheck(loss, leaves(call, arguments))


@every_gradient
def test_only_the_gradients_asked_for(call: Call) -> None:
    full = call.arguments()
    want = torch.autograd.grad(call.loss(full), leaves(call, full))
    plain = [x.detach() if isinstance(x, Tensor) else x for x in full]
    assert not any(x.requires_grad for x in call(plain))
    for index, gradient in zip(call.learned, want, strict=True):
        alone = list(plain)
        alone[index] = full[index].detach().clone().requires_grad_()
        call.loss(alone).backward()
        assert [i for i, x in enumerate(alone) if isinstance(x, Tensor) and x.grad is not None] == [index]
        torch.testing.assert_close(alone[index].grad, gradient)


@every_call
@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_runs_in_its_dtype(call: Call, compiled: bool) -> None:
    arguments = call.arguments()
    function = torch.compile(call, fullgraph=True, backend="aot_eager") if compiled else call
    with torch.autocast("cpu", torch.bfloat16):
        ours = function(arguments)
    cast = [x.bfloat16() if i < call.cast and isinstance(x, Tensor) else x for i, x in enumerate(arguments)]
    for mine, want in zip(ours, call(cast), strict=True):
        if not mine.dtype.is_floating_point or mine.dtype == torch.float64:
            assert torch.equal(mine, want)
    found = [x for x in ours if x.requires_grad]
    if found:
        found[0].sum().backward()
        assert all(x.grad is None or x.grad.dtype == torch.float32 for x in leaves(call, arguments))
        assert arguments[0].grad.abs().max() > 0


@every_gradient
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_gives_the_same_gradient(call: Call, use_reentrant: bool) -> None:
    arguments = call.arguments()
    plain = torch.autograd.grad(call.loss(arguments), leaves(call, arguments))
    again = checkpoint(lambda *x: call.loss(x), *arguments, use_reentrant=use_reentrant)
    again.backward()
    for x, want in zip(leaves(call, arguments), plain, strict=True):
        assert torch.equal(x.grad, want)


@every_gradient
def test_saved_tensor_hooks_see_each_tensor_once(call: Call) -> None:
    arguments, unpacked = call.arguments(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: (unpacked.append(id(x)), x)[1]):
        result = [x for x in call(arguments) if x.requires_grad]
    torch.autograd.backward(result, [torch.ones_like(x) for x in result])
    assert unpacked and len(unpacked) == len(set(unpacked))


@every_gradient
def test_second_derivative_is_an_error(call: Call) -> None:
    arguments = call.arguments()
    (gradient,) = torch.autograd.grad(call.loss(arguments), arguments[0], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not supported"):
        gradient.square().sum().backward()


@every_gradient
def test_gradients_of_any_size_and_stride(call: Call) -> None:
    arguments = call.arguments()
    found = [x for x in call(arguments) if x.requires_grad]
    (one,) = torch.autograd.grad([x.sum() for x in found], arguments[0], retain_graph=True)
    (many,) = torch.autograd.grad(
        [2.0**20 * x for x in found], arguments[0], [torch.ones(()).double().expand(x.shape).to(x.dtype) for x in found]
    )
    torch.testing.assert_close(many, 2.0**20 * one)


# ---- what is refused when an operator is called by itself ------------------------------------------------------------

Q, K, ONE = torch.ones(5, 3), torch.ones(7, 3), torch.tensor(1.0)
IDS, COLUMN_IDS = torch.arange(5), torch.arange(7)
NONE = (None, None, None, None)
TERMS = ([0], [1.0], 0, False, False, "cpu")
GRADS = (torch.ones(1, 1, 3).double(), torch.ones(1, 1).double(), ONE.double())
AUTO = (Q[:, None], None, torch.ones(1, 1, 3, 3), torch.zeros(1, 1, dtype=torch.bool), True, False, "cpu")
CROSS = (Q, None, 1e-5, torch.ones(1, 3, 3), torch.zeros(1, dtype=torch.bool), True, False, "cpu")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("contrast", (Q[:0], K, ONE, *NONE, *TERMS), r"q must be \[M, D\]"),
        ("contrast", (Q[:, :0], K[:, :0], ONE, *NONE, *TERMS), r"q must be \[M, D\]"),
        ("contrast", (Q, K[:, :2], ONE, *NONE, *TERMS), r"k must be \[N, 3\]"),
        ("contrast", (Q, K.double(), ONE, *NONE, *TERMS), "one dtype"),
        ("contrast", (Q.long(), K, ONE, *NONE, *TERMS), "must be float32"),
        ("contrast", (Q, K, ONE, IDS, None, None, None, *TERMS), "come together"),
        ("contrast", (Q, None, ONE, None, IDS, None, None, *TERMS), "come together"),
        ("contrast", (Q, K, ONE, IDS, COLUMN_IDS[:5], None, None, *TERMS), r"ids must be int64 \[7\]"),
        ("contrast", (Q, K, ONE, IDS.int(), COLUMN_IDS, None, None, *TERMS), r"ids must be int64 \[5\]"),
        ("contrast", (Q, K, ONE, None, None, torch.ones(4), None, *TERMS), r"row_limit must be floating-point \[5\]"),
        (
            "contrast",
            (Q, K, ONE, None, None, None, torch.ones(5), *TERMS),
            r"column_limit must be floating-point \[7\]",
        ),
        ("contrast", (Q, None, ONE, None, None, torch.ones(5), None, *TERMS), "limits need a k"),
        ("contrast", (Q, K, ONE, *NONE, [], [], 0, False, False, "cpu"), "1 to 4 terms"),
        ("contrast", (Q, K, ONE, *NONE, [0] * 5, [1.0] * 5, 0, False, False, "cpu"), "1 to 4 terms"),
        ("contrast", (Q, K, ONE, *NONE, [7], [1.0], 0, False, False, "cpu"), "terms must be 0 to 3"),
        ("contrast", (Q, K, ONE, *NONE, [0], [-1.0], 0, False, False, "cpu"), "powers above 0"),
        ("contrast", (Q, K, ONE, *NONE, [0], [torch.nan], 0, False, False, "cpu"), "powers above 0"),
        ("contrast", (Q, None, ONE, *NONE, [1], [1.0], 0, False, False, "cpu"), "columns need a k"),
        ("contrast", (Q, K, ONE, *NONE, [0], [1.0], 3, False, False, "cpu"), "in 3 views"),
        ("bank_contrast", (Q, K, ONE, None, None, None, [1], [1.0], False, "cpu"), "rows alone"),
        ("bank_contrast", (Q, K, ONE, IDS, None, None, [0], [1.0], False, "cpu"), "come together"),
        ("neighbours", (Q, K, 0, None, None, "cpu"), "count must be at least 1"),
        ("neighbours", (Q, K, -1, None, None, "cpu"), "count must be at least 1"),
        ("hardest", (Q, IDS, torch.zeros(1), "cpu"), r"offset must be floating-point \[5\]"),
        ("triplets", (Q, IDS[:3], 0.1, True, False, "cpu"), r"ids must be int64 \[5\]"),
        ("sigmoid_rows", (Q, K, ONE, ONE, None, None, torch.ones(1), "cpu"), r"positive_weight must be"),
        ("sigmoid_rows", (Q, K, ONE, ONE, IDS, None, torch.ones(5), "cpu"), "come together"),
        (
            "sigmoid_total",
            (Q, K, ONE, ONE, None, None, torch.ones(1), torch.ones(5), True, True, True, "cpu"),
            "row_weight must be",
        ),
        ("auto_covariance", (Q, None, True, "cpu"), r"x must be \[N, E, D\]"),
        ("auto_covariance", (Q[:0, None], None, True, "cpu"), r"x must be \[N, E, D\], not empty"),
        ("auto_covariance", (Q[:, None], K[:, None], True, "cpu"), r"y must be \[5, 1, 3\]"),
        ("auto_covariance", (Q[:, None], Q[:, None].double(), True, "cpu"), "one dtype"),
        ("auto_covariance", (Q[:, None].long(), None, True, "cpu"), "must be float32"),
        ("auto_covariance_backward", (*GRADS[:2], ONE, *AUTO), "grad_distance must be float64"),
        ("auto_covariance_backward", (GRADS[0][0], *GRADS[1:], *AUTO), "grad_square must be float64"),
        ("auto_covariance_backward", (*GRADS, *AUTO[:2], AUTO[2][:, :, 1:], *AUTO[3:]), "gram and exact must be"),
        ("auto_covariance_backward", (*GRADS, *AUTO[:3], AUTO[3][:0], *AUTO[4:]), "gram and exact must be"),
        ("cross_correlation", (Q, K, 1e-5, True, "cpu"), r"y must be \[5, 3\]"),
        ("cross_correlation_backward", (torch.ones(3), ONE.double(), *CROSS), "grad_diagonal must be float64"),
        (
            "cross_correlation_backward",
            (torch.ones(3).double(), ONE.double(), *CROSS[:3], CROSS[3].double(), *CROSS[4:]),
            "gram and exact must be",
        ),
        ("decorrelation", (Q[None], "cpu"), r"x must be \[N, D\]"),
        (
            "contrast_backward",
            (torch.ones(5), torch.ones(0, 5), Q, K, ONE, *NONE, torch.ones(4), [0], [1.0], 0, False, True, True, "cpu"),
            "grad_lse must be",
        ),
    ],
    ids=str,
)
def test_called_directly_refuses_what_no_pointer_would_survive(name: str, arguments: tuple, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        getattr(OPS, name)(*arguments)
