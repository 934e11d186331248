"""What all softmax losses promise, each against its logits in plain view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pyssl_fast
from pyssl_fast.functional import clip_loss, info_nce
from pyssl_fast.functional.similarity import softmax
from tests.contract import assert_within_contract
from tests.functional.similarity.cases import MEMBERS, Member, further

every_member = pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS)
always = settings(max_examples=8, deadline=None, print_blob=True)
IDS = torch.tensor([3, 0, 3, 5, 1, 0, 9])
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ids": {"ids": IDS},
    "smoothing": {"label_smoothing": 0.15},
    "smoothing and ids": {"label_smoothing": 0.3, "ids": IDS},
    "debiased": {"debias": 0.05},
    "debiased to the bound": {"debias": 0.9},
    "debiased, ids": {"debias": 0.02, "ids": IDS},
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


def gradients(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


def assert_same(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float = 1e-9) -> None:
    for mine, true in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, true, rtol=tolerance, atol=tolerance)


@every_member
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_value_and_gradients_are_those_of_the_logits(member: Member, options: dict[str, Any]) -> None:
    if "label_smoothing" in options and not member.smooths:
        with pytest.raises(TypeError, match="label_smoothing"):
            member.call(member.inputs(7, 5), 0.4, **options)
        return
    inputs = member.inputs(7, 5)
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    ours = member.call(inputs, temperature, reduction="none", **options).reshape(-1)
    rows = member.rows(inputs, temperature, **options)
    assert_same([ours], [rows])
    weight = torch.rand(len(rows), dtype=torch.float64) - 0.3
    leaves = [*member.learned(inputs), temperature]
    assert_same(gradients((weight * ours).sum(), leaves), gradients((weight * rows).sum(), leaves))


@every_member
def test_gradcheck(member: Member) -> None:
    inputs = member.inputs(4, 3)
    temperature = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    fixed = inputs[len(inputs) - member.fixed :]

    def loss(temperature: Tensor, *learned: Tensor) -> Tensor:
        return member.call([*learned, *fixed], temperature, ids=torch.tensor([0, 1, 2, 1]), debias=0.01)

    assert torch.autograd.gradcheck(loss, (temperature, *member.learned(inputs)))


@every_member
def test_reductions_and_weights(member: Member) -> None:
    inputs = member.inputs(6, 4)
    rows = member.call(inputs, 0.3, reduction="none")
    assert rows.shape == ((6,) if member.groups == 1 else (member.groups, 6))
    assert_same([member.call(inputs, 0.3), member.call(inputs, 0.3, reduction="sum")], [rows.mean(), rows.sum()])
    weight = torch.rand(6).requires_grad_()
    weighted = [member.call(inputs, 0.3, weight=weight, reduction=reduction) for reduction in ("none", "sum", "mean")]
    wide = weight.double()
    want = [wide * rows, (wide * rows).sum(), (wide * rows).sum() / (member.groups * wide.sum())]
    assert_same(weighted, want)
    assert_same(gradients(weighted[2], [weight]), gradients(want[2], [weight]), 1e-6)


@every_member
def test_debias_of_every_sample_its_own(member: Member) -> None:
    inputs = member.inputs(6, 4)
    share = torch.tensor([0.0, 0.1, 0.0, 0.3, 0.01, 0.02])
    rows = member.call(inputs, 0.5, debias=share, reduction="none")
    for sample, number in enumerate(share.double().tolist()):
        one = member.call(inputs, 0.5, debias=number, reduction="none")
        assert_same([rows[..., sample]], [one[..., sample]])


@every_member
@pytest.mark.parametrize("ids", [None, IDS], ids=["without ids", "ids"])
def test_metrics_are_those_of_the_logits(member: Member, ids: Tensor | None) -> None:
    inputs = member.inputs(7, 5, seed=3)
    loss, metrics = member.call(inputs, 0.4, ids=ids, return_metrics=True)
    assert torch.equal(loss, member.call(inputs, 0.4, ids=ids))
    s, positive, negative = member.pairs([x.detach() for x in inputs], ids)
    best, worst = (s.masked_fill(~mask, -torch.inf).amax(1) for mask in (positive, negative))
    want = [(best >= worst).double().mean(), s[positive].mean(), s[negative].mean()]
    assert 0 < want[0] < 1
    assert_same(metrics[:3], want)
    assert not any(x.requires_grad for x in metrics)
    if not member.beta:
        lse = (s / 0.4).masked_fill(~(positive | negative), -torch.inf).logsumexp(1)
        assert_same([metrics.lse.reshape(-1)], [lse])
        assert metrics.lse.shape == member.call(inputs, 0.4, reduction="none").shape


@every_member
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_no_worse_than_the_logits_in_the_same_dtype(member: Member, dtype: torch.dtype) -> None:
    inputs = member.inputs(33, 20, dtype)
    wide = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    with pyssl_fast.use_backend("cpu"):
        loss = member.call(inputs, 0.1)
        ours = gradients(loss, member.learned(inputs))
    assert loss.dtype == torch.float32 and all(x.dtype == dtype for x in ours)
    truth, eager = member.rows(wide, 0.1).mean(), member.rows(inputs, 0.1).mean()
    assert_within_contract(loss, truth, eager, dtype, "loss")
    truths, eagers = gradients(truth, member.learned(wide)), gradients(eager, member.learned(inputs))
    for mine, true, theirs in zip(ours, truths, eagers, strict=True):
        assert_within_contract(mine, true, theirs, dtype, "gradient")


@every_member
def test_a_trained_batch_loses_no_digits(member: Member) -> None:
    # Losses of e⁻⁴⁰ and less: 1 − P is 0 in any dtype.
    if member.decoupled:
        return  # its loss is −t, not small
    eye = torch.eye(8, dtype=torch.float64)
    inputs = []
    for shape in member.shapes(3, 8):
        keys = eye[4:7, None].expand(3, shape[-2], 8) if len(shape) == 3 else eye[3:8].repeat(3, 1)[: shape[0]]
        inputs.append((eye[:3] if shape == (3, 8) else keys).clone().requires_grad_())
    loss = member.call(inputs, 0.02, reduction="sum")
    s, positive, negative = member.pairs(inputs, None)
    gap = torch.stack(
        [torch.exp(50 * (t[n] - t[p].max())).sum() for t, p, n in zip(s, positive, negative, strict=True)]
    )
    if member.groups < 3:
        torch.testing.assert_close(loss, gap.sum(), rtol=1e-12, atol=0)
        for mine, true in zip(gradients(loss, inputs), gradients(gap.sum(), inputs), strict=True):
            torch.testing.assert_close(mine, true, rtol=1e-9, atol=0)
    else:  # two positives share the sum: the loss is log 2 each
        torch.testing.assert_close(loss, torch.tensor(9 * 0.6931471805599453, dtype=torch.float64))


@every_member
def test_nan_in_is_nan_out(member: Member) -> None:
    for poisoned in range(len(member.inputs(5, 3))):
        for options in ({}, {"debias": 0.1}, {"return_metrics": True}):
            inputs = [x.detach() for x in member.inputs(5, 3, torch.float32)]
            inputs[poisoned].view(-1)[1] = torch.nan
            loss = member.call(inputs, 0.3, **options)
            if options.get("return_metrics"):
                loss, metrics = loss
                assert metrics.positive.isnan() or metrics.negative.isnan()
            assert loss.isnan()


@every_member
@pytest.mark.parametrize(("samples", "dim"), [(1, 4), (2, 1), (1, 1)])
def test_one_sample_and_one_column(member: Member, samples: int, dim: int) -> None:
    inputs = member.inputs(samples, dim)
    if member.decoupled and samples == 1:
        with pytest.raises(ValueError, match="two samples or more"):
            member.call(inputs, 0.5)
        return
    loss = member.call(inputs, 0.5)
    rows = member.rows(inputs, 0.5) if samples > 1 or not member.beta else torch.zeros(1, dtype=torch.float64)
    assert_same([loss], [rows.mean()])
    assert all(x.isfinite().all() for x in gradients(loss, member.learned(inputs)))


@every_member
def test_rows_without_negatives_cost_nothing(member: Member) -> None:
    inputs = member.inputs(4, 3)
    options = {"reduction": "none", "debias": 0.1} if member.smooths else {"reduction": "none"}
    if len(inputs) == 3 and member.groups < 3:
        return  # further negatives are left
    rows = member.call(inputs, 0.5, ids=torch.full((4,), 7), **options)
    found = gradients(rows.sum(), inputs)
    assert all(x.isfinite().all() for x in found)
    if member.decoupled:
        assert (rows == -torch.inf).all()
    elif member.groups < 3:  # three views are two positives each, which share the sum
        assert (rows == 0).all() and all((x == 0).all() for x in found)


@every_member
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8], ids=str)
def test_ids_of_any_integer_dtype(member: Member, dtype: torch.dtype) -> None:
    inputs = member.inputs(7, 5)
    assert torch.equal(member.call(inputs, 0.4, ids=IDS.to(dtype)), member.call(inputs, 0.4, ids=IDS))


@every_member
@always
@given(seed=st.integers(0, 2**31), temperature=st.floats(0.05, 2))
def test_order_length_and_names_do_not_matter(member: Member, seed: int, temperature: float) -> None:
    inputs = [x.detach() for x in member.inputs(6, 4, seed=seed)]
    rows = member.call(inputs, temperature, reduction="none")
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    permuted = [x[order] if len(x) == 6 else x for x in inputs]
    assert_same([member.call(permuted, temperature, reduction="none")], [rows[..., order]], 1e-8)
    if member.normalizes:
        longer = [(1 + torch.rand(*x.shape[:-1], 1)) * x for x in inputs]
        assert_same([member.call(longer, temperature, reduction="none")], [rows], 1e-8)
    far = torch.arange(6) * -(10**15) - 1
    assert_same([member.call(inputs, temperature, ids=far, reduction="none")], [rows])


@every_member
def test_strides_do_not_matter(member: Member) -> None:
    inputs = member.inputs(6, 4)
    strided = [torch.stack((x, x), -1).transpose(0, 1)[..., 0].transpose(0, 1) for x in inputs]
    assert not strided[0].is_contiguous()
    assert_same([member.call(strided, 0.3)], [member.call(inputs, 0.3)])
    leaves = member.learned(inputs)
    assert_same(gradients(member.call(strided, 0.3), leaves), gradients(member.call(inputs, 0.3), leaves))


@every_member
@pytest.mark.parametrize("learned", [0, 1])
def test_gradient_of_one_side_alone(member: Member, learned: int) -> None:
    inputs = member.inputs(6, 4)
    want = gradients(member.call(inputs, 0.3), member.learned(inputs))
    alone = [x.detach().requires_grad_(number == learned) for number, x in enumerate(inputs)]
    assert_same(gradients(member.call(alone, 0.3), [alone[learned]]), [want[learned]])
    with torch.no_grad():
        assert not member.call(inputs, 0.3).requires_grad


@every_member
def test_autocast(member: Member) -> None:
    inputs = member.inputs(9, 6, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = member.call(inputs, 0.3)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, member.call(inputs, 0.3), rtol=3e-2, atol=3e-2)
    assert all(x.dtype == torch.float32 and x.abs().max() > 0 for x in gradients(loss, member.learned(inputs)))


EVERYTHING = {"debias": 0.1, "return_metrics": True}


@pytest.mark.parametrize(
    ("member", "options"),
    [(member, {}) for member in MEMBERS.values()] + [(MEMBERS["nt_xent"], EVERYTHING), (MEMBERS["clip"], EVERYTHING)],
    ids=[*MEMBERS, "nt_xent, all options", "clip, all options"],
)
def test_compiles_without_a_graph_break(member: Member, options: dict[str, Any]) -> None:
    # A compilation takes one to three seconds.
    def step(inputs: list[Tensor], temperature: Tensor, ids: Tensor, weight: Tensor) -> list[Tensor]:
        if not options:
            return [member.call(inputs, temperature, ids=ids)]
        loss, metrics = member.call(inputs, temperature, ids=ids, weight=weight, **options)
        return [loss, *metrics]

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    temperature = torch.tensor(0.3, requires_grad=True)
    for samples in (7, 5):
        inputs = member.inputs(samples, 4, torch.float32)
        arguments = (inputs, temperature, IDS[:samples].clone(), torch.rand(samples))
        ours, eager = compiled(*arguments), step(*arguments)
        assert_same(ours, eager, 1e-6)
        leaves = [*member.learned(inputs), temperature]
        assert_same(gradients(3 * ours[0], leaves), gradients(3 * eager[0], leaves), 1e-6)


OPTION_ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "ids, floats": ({"ids": torch.rand(4)}, TypeError, "ids must be integers; got torch.float32"),
    "ids, list": ({"ids": [1, 2, 3, 4]}, TypeError, r"ids must be an integer Tensor \[4\]; got list"),
    "ids, shape": ({"ids": torch.arange(3)}, ValueError, r"ids must have shape \[4\]; got \[3\]"),
    "ids, device": ({"ids": torch.arange(4, device="meta")}, ValueError, "ids must be on .*'s device cpu; got meta"),
    "weight, list": ({"weight": [1.0] * 4}, TypeError, r"weight must be a Tensor \[4\]; got list"),
    "weight, integers": ({"weight": torch.ones(4).long()}, TypeError, "weight must be floating-point; got torch.int64"),
    "weight, shape": ({"weight": torch.ones(5)}, ValueError, r"weight must have shape \[4\]; got \[5\]"),
    "weight, device": ({"weight": torch.ones(4, device="meta")}, ValueError, "weight must be on"),
    "debias 1": ({"debias": 1.0}, ValueError, r"debias must be 0 to 1 \(excluded\); got 1.0"),
    "debias below": ({"debias": -0.1}, ValueError, r"debias must be 0 to 1 \(excluded\); got -0.1"),
    "debias shape": ({"debias": torch.rand(3)}, ValueError, r"debias must have shape \[4\]; got \[3\]"),
    "debias text": ({"debias": "some"}, TypeError, "debias must be a number or a Tensor; got str"),
    "reduction": ({"reduction": "max"}, ValueError, "reduction must be one of none, mean, sum; got 'max'"),
    "smoothing": ({"label_smoothing": 1.5}, ValueError, "label_smoothing must be 0 to 1; got 1.5"),
    "smoothing Tensor": (
        {"label_smoothing": torch.tensor(0.1)},
        TypeError,
        "label_smoothing must be a number; got Tensor",
    ),
    "smoothing and debias": (
        {"label_smoothing": 0.1, "debias": 0.1},
        ValueError,
        "label_smoothing and debias do not combine",
    ),
}


@every_member
@pytest.mark.parametrize("case", OPTION_ERRORS.values(), ids=OPTION_ERRORS)
def test_bad_options_are_named(member: Member, case: tuple[dict[str, Any], type[Exception], str]) -> None:
    options, error, message = case
    if "label_smoothing" in options and not member.smooths:
        error, message = TypeError, "label_smoothing"
    with pytest.raises(error, match=message):
        member.call(member.inputs(4, 3), 0.5, **options)


@every_member
def test_debias_of_every_sample_is_checked(member: Member) -> None:
    inputs = member.inputs(4, 3)
    for wrong in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"debias must be 0 to 1 \(excluded\) in every row"):
            member.call(inputs, 0.5, debias=torch.tensor([0.1, 0.0, wrong, 0.2]))


@every_member
@pytest.mark.parametrize("which", [0, 1])
def test_metrics_of_rows_that_are_not_numbers_are_none(member: Member, which: int) -> None:
    inputs = [x.detach().clone() for x in member.inputs(7, 5)]
    inputs[which][3, 2] = torch.nan
    _, metrics = member.call(inputs, 0.4, return_metrics=True)
    assert metrics.accuracy.isnan() and metrics.positive.isnan() and metrics.lse.isnan().any()
    positive_alone = which == 1 and len(inputs) == 3 and member.pairs is further
    assert metrics.negative.isnan() != positive_alone


@every_member
def test_ids_are_not_counted_unless_asked_for(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    count = softmax.count_equal
    monkeypatch.setattr(softmax, "count_equal", lambda *x: (calls.append(1), count(*x))[1])
    inputs = member.inputs(7, 5)
    member.call(inputs, 0.4, ids=IDS, return_metrics=True)
    assert bool(calls) == (member.beta > 0)
    if len(inputs) < 3 and not member.beta:
        member.call(inputs, 0.4, ids=IDS, debias=0.1)
        assert calls


@every_member
def test_towers_of_two_dtypes_under_autocast(member: Member) -> None:
    inputs = [x.detach().requires_grad_() for x in member.inputs(9, 6, torch.float32)]
    inputs[1] = inputs[1].detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = member.call(inputs, 0.3)
    want = member.call([x.detach().bfloat16().float() for x in inputs], 0.3)
    torch.testing.assert_close(loss, want, rtol=2e-2, atol=2e-2)
    found = gradients(loss, inputs[:2])
    assert [x.dtype for x in found] == [torch.float32, torch.bfloat16] and all(x.abs().max() > 0 for x in found)
    with pytest.raises(TypeError, match="dtype"):
        member.call(inputs, 0.3)


def test_towers_of_two_dtypes_compile_under_autocast() -> None:
    def step(a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return clip_loss(a, b, 3.0)

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for samples in (5, 8):
        a, b = torch.randn(samples, 4), torch.randn(samples, 4).bfloat16()
        torch.testing.assert_close(compiled(a, b), step(a, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_a_caption_twice_in_a_batch_is_retrieved(dtype: torch.dtype, backend: str) -> None:
    generator = torch.Generator().manual_seed(4)
    text = torch.randn(64, 48, generator=generator)
    image = text + 0.2 * torch.randn(64, 48, generator=generator)
    image, text = (F.normalize(x, dim=1).to(dtype).repeat(2, 1) for x in (image, text))
    with pyssl_fast.use_backend(backend):
        for loss in (
            clip_loss(image, text, 30.0, return_metrics=True),
            info_nce(image, text, return_metrics=True),
            info_nce(image, text, text.roll(1, 0), return_metrics=True),
        ):
            assert loss[1].accuracy == 1
