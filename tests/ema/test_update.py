"""One update of lists: values, checks, dtypes and layouts, devices of scalars, and other packages' results."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pyssl_fast import use_backend
from pyssl_fast.ema import (
    activate_requires_grad,
    cosine_momentum,
    deactivate_requires_grad,
    ema_update_,
    get_ema_multi_avg_fn,
    update_momentum,
)
from pyssl_fast.ema import update as update_module
from tests.process import python


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_lists_of_any_shapes(backend: str) -> None:
    shapes = [(), (0,), (3,), (4, 5), (2, 3, 4, 5)]
    teacher, student = ([torch.randn(shape) for shape in shapes] for _ in range(2))
    expected = [0.9 * t + 0.1 * s for t, s in zip(teacher, student, strict=True)]
    with use_backend(backend):
        ema_update_(teacher, iter(student), 0.9)
    for t, x in zip(teacher, expected, strict=True):
        torch.testing.assert_close(t, x)


def test_float64_complex_and_float32_in_one_call() -> None:
    teacher = [torch.randn(5, dtype=d) for d in (torch.float64, torch.complex64, torch.float32)]
    student = [torch.randn(5, dtype=d) for d in (torch.float64, torch.complex64, torch.float32)]
    expected = [
        torch.lerp(t, s, 0.25) if not t.is_complex() else t + 0.25 * (s - t)
        for t, s in zip(teacher, student, strict=True)
    ]
    ema_update_(teacher, student, 0.75)
    for t, x in zip(teacher, expected, strict=True):
        torch.testing.assert_close(t, x)
    # The float64 one in float64, though the others are not.
    assert (teacher[0] - expected[0]).abs().max() < 1e-15


@pytest.mark.parametrize("student", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shadow", [torch.float32, torch.bfloat16, torch.float16])
def test_a_float32_teacher_follows_any_student_and_writes_a_shadow(student: torch.dtype, shadow: torch.dtype) -> None:
    t, s = torch.randn(1000), torch.randn(1000).to(student)
    x = torch.zeros(1000, dtype=shadow)
    expected = torch.lerp(t, s.float(), 0.004)
    ema_update_([t], [s], 0.996, shadow=[x])
    torch.testing.assert_close(t, expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(x, t.to(shadow))


def test_a_bfloat16_student_moves_a_float32_teacher_where_a_bfloat16_one_stands_still() -> None:
    torch.manual_seed(0)
    start = torch.randn(10_000).bfloat16()
    student = (start.float() * 1.01).bfloat16()
    kept, rounded = start.float(), start.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(200):
            ema_update_([kept], [student], 0.99)
            ema_update_([rounded], [student], 0.99)
    moved = student.float() != start.float()
    share = ((kept - start.float()) / (student.float() - start.float()))[moved]
    assert abs(share.mean() - (1 - 0.99**200)) < 0.01
    assert (rounded[moved] == start[moved]).float().mean() > 0.9


def test_a_teacher_of_16_bits_warns() -> None:
    update_module._warn_of_standstill.cache_clear()
    with pytest.warns(UserWarning, match="a bfloat16 teacher soon stops moving"):
        ema_update_([torch.zeros(3, dtype=torch.bfloat16)], [torch.ones(3)], 0.5)


def test_ten_thousand_updates_do_not_drift() -> None:
    torch.manual_seed(0)
    momentum, student = 0.996, torch.randn(1000)
    ours, truth = student.clone(), student.double()
    for _ in range(10_000):
        student += 0.01 * torch.randn(1000)
        ema_update_([ours], [student], momentum)
        truth += (1 - momentum) * (student.double() - truth)
    # Roundings of half a unit at most, of which a share of m is left after each step; as they come, far less.
    unit = 2.0**-23 * truth.abs().max()
    assert (ours - truth).abs().max() < 0.1 * 0.5 * unit / (1 - momentum)
    still = ours.clone()
    for _ in range(10_000):
        ema_update_([still], [ours], momentum)
    assert torch.equal(still, ours)


@given(
    shape=st.lists(st.integers(0, 5), max_size=3),
    momentum=st.floats(0, 1),
    seed=st.integers(0, 100),
    strided=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_teacher_ends_between_itself_and_its_student(
    shape: list[int], momentum: float, seed: int, strided: bool
) -> None:
    torch.manual_seed(seed)
    t, s = torch.randn(shape), torch.randn(shape)
    if strided and len(shape) > 1:
        s = torch.randn(shape[::-1]).permute(*range(len(shape) - 1, -1, -1))
    before = t.clone()
    ema_update_([t], [s], momentum)
    low, high = torch.minimum(before, s), torch.maximum(before, s)
    slack = 2e-7 * torch.maximum(before.abs(), s.abs())
    assert ((t >= low - slack) & (t <= high + slack)).all()


def test_momentum_as_a_tensor_is_the_number() -> None:
    t, s = torch.randn(100), torch.randn(100)
    for momentum in (torch.tensor(0.75), torch.tensor([0.75], dtype=torch.float64), nn.Parameter(torch.tensor(0.75))):
        ours = [t.clone(), t.clone()]
        ema_update_(ours[:1], [s], momentum)
        ema_update_(ours[1:], [s], 0.75)
        assert torch.equal(*ours)


def test_parameters_that_need_gradients_are_updated_without_a_graph() -> None:
    teacher, student = (nn.Parameter(torch.randn(5)) for _ in range(2))
    ema_update_([teacher], [student], 0.5)
    assert teacher.grad_fn is None and teacher.is_leaf


def test_backward_notices_a_teacher_that_changed() -> None:
    teacher, x = torch.randn(5), torch.randn(5, requires_grad=True)
    loss = (teacher * x).sum()
    ema_update_([teacher], [torch.randn(5)], 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_tied_teacher_is_updated_once() -> None:
    t, s = torch.zeros(3), torch.ones(3)
    ema_update_([t, t], [s, s], 0.5)
    assert t.tolist() == [0.5] * 3
    with pytest.raises(ValueError, match="student must have as many tensors as teacher, 3; got 2"):
        ema_update_([t, t, torch.zeros(3)], [s, s], 0.0)
    with pytest.raises(ValueError, match=r"teacher\[1\] is teacher\[0\] too, but student\[1\] is not student\[0\]"):
        ema_update_([t, t], [s, torch.ones(3)], 0.5)


def test_a_teacher_that_is_its_student_stays() -> None:
    t = torch.randn(50_000)
    before = t.clone()
    ema_update_([t], [t], 0.5)
    assert torch.equal(t, before)


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "strided", "expanded student"])
def test_layouts_that_differ(layout: str) -> None:
    t, s = torch.randn(4, 6, 5, 5), torch.randn(4, 6, 5, 5)
    expected = torch.lerp(t, s, 0.1)
    if layout == "channels_last":
        t = t.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        s = s.transpose(0, 1).contiguous().transpose(0, 1)
    elif layout == "strided":
        t = torch.stack([t, t], -1)[..., 0]
    else:
        s = torch.randn(6, 5, 5).expand(4, 6, 5, 5)
        expected = torch.lerp(t, s, 0.1)
    strides = t.stride()
    ema_update_([t], [s], 0.9)
    torch.testing.assert_close(t, expected)
    assert t.stride() == strides


def test_memory_that_moves_is_found() -> None:
    """Also where new memory lies at an old address with another dtype or layout: nothing of a tensor is remembered."""
    teacher = [torch.zeros(64, 64) for _ in range(4)]
    student = [nn.Parameter(torch.ones(64, 64)) for _ in range(4)]
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float32):
        for s in student:
            s.data = s.data.to(dtype)
        student[0].data = student[0].data.t().contiguous().t()
        ema_update_(teacher, student, 0.5)
    for t in teacher:
        torch.testing.assert_close(t, torch.full((64, 64), 1 - 0.5**4))


X = torch.zeros(3)


@pytest.mark.parametrize(
    ("teacher", "student", "momentum", "error", "message"),
    [
        ([X], [X, X], 0.5, ValueError, "student must have as many tensors as teacher, 1; got 2"),
        ([X], [], 0.5, ValueError, "student must have as many tensors as teacher, 1; got 0"),
        ([X], [torch.zeros(4)], 0.5, ValueError, r"student\[0\] must have teacher\[0\]'s shape \[3\]; got \[4\]"),
        ([X], [torch.zeros(3, device="meta")], 0.5, ValueError, r"student\[0\] must be on teacher\[0\]'s device cpu"),
        ([X], [X.long()], 0.5, TypeError, r"student\[0\] must be float32, .* got torch.int64"),
        ([X], [X.to(torch.float8_e4m3fn)], 0.5, TypeError, r"student\[0\] must be float32"),
        ([X], [[0.0]], 0.5, TypeError, r"student\[0\] must be a Tensor; got list"),
        ([X.to_sparse()], [X], 0.5, TypeError, r"teacher\[0\] must be a dense Tensor"),
        ([X], [X], -0.1, ValueError, "momentum must be"),
        ([X], [X], 1.1, ValueError, "momentum must be"),
        ([X], [X], math.nan, ValueError, "momentum must be"),
        ([X], [X], torch.tensor(math.nan), ValueError, "momentum must be"),
        ([X], [X], torch.tensor([0.5, 0.5]), ValueError, "momentum as a Tensor must hold one"),
        ([X], [X], "0.5", TypeError, "momentum must"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_changes(
    teacher: list[Tensor], student: list[Tensor], momentum: float, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ema_update_(teacher, student, momentum)
    assert X.tolist() == [0, 0, 0]


def test_tensors_without_memory_are_named() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    two = TwoTensor(torch.zeros(3), torch.zeros(3))
    for lists in (([X], [two]), ([two], [X])):
        with pytest.raises(TypeError, match="must be a Tensor with memory of its own; got TwoTensor"):
            ema_update_(*lists, 0.5)


def test_wrong_shadows_are_named() -> None:
    with pytest.raises(ValueError, match="shadow must have as many tensors as teacher, 1; got 2"):
        ema_update_([X], [X], 0.5, shadow=[X.clone(), X.clone()])
    with pytest.raises(TypeError, match=r"shadow\[0\] must be float32"):
        ema_update_([X], [X], 0.5, shadow=[X.int()])


def test_no_tensors_at_all() -> None:
    ema_update_([], [], 0.5)


def test_inside_a_compiled_step() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(teacher: list[Tensor], student: list[Tensor], momentum: Tensor) -> Tensor:
        ema_update_(teacher, [2 * s for s in student], momentum)
        return teacher[0].sum()

    teacher, student = ([torch.randn(5), torch.randn(2, 3)] for _ in range(2))
    momentum = torch.tensor(0.5)
    for m in (0.5, 0.25):
        momentum.fill_(m)
        expected = [m * t + (1 - m) * 2 * s for t, s in zip(teacher, student, strict=True)]
        total = step(teacher, student, momentum)
        for t, x in zip(teacher, expected, strict=True):
            torch.testing.assert_close(t, x)
        torch.testing.assert_close(total, teacher[0].sum())


def test_from_several_python_threads_at_once() -> None:
    code = """
import threading, torch
from pyssl_fast.ema import ema_update_
torch.set_num_threads(2)
jobs = [([torch.zeros(n)], [torch.ones(n)]) for n in (100_000, 3, 70_000, 200_000)]
threads = [threading.Thread(target=lambda t=t, s=s: [ema_update_(t, s, 0.5) for _ in range(20)]) for t, s in jobs]
[x.start() for x in threads], [x.join() for x in threads]
print(all(t[0].unique().tolist() == [1 - 0.5**20] for t, _ in jobs))
"""
    assert python(code).stdout.split() == ["True"]


# ---- other packages --------------------------------------------------------------------------------------------------


def test_update_momentum_is_lightlys() -> None:
    from lightly.models import utils

    torch.manual_seed(0)
    model, ours = network(), network()
    theirs = copy.deepcopy(ours)
    for module, update in ((ours, update_momentum), (theirs, utils.update_momentum)):
        deactivate_requires_grad(module)
        assert not any(p.requires_grad for p in module.parameters())
        update(model, module, m=0.9)
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
    activate_requires_grad(ours)
    assert all(p.requires_grad for p in ours.parameters())


@pytest.mark.parametrize("buffers", [False, True])
def test_multi_avg_fn_is_torchs(buffers: bool) -> None:
    from torch.optim import swa_utils

    torch.manual_seed(0)
    model = network()
    ours, theirs = (
        swa_utils.AveragedModel(model, multi_avg_fn=make(0.9), use_buffers=buffers)
        for make in (get_ema_multi_avg_fn, swa_utils.get_ema_multi_avg_fn)
    )
    for _ in range(3):
        with torch.no_grad():
            for p in model.parameters():
                p += torch.randn_like(p)
            model[1].num_batches_tracked += 3
        ours.update_parameters(model)
        theirs.update_parameters(model)
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_cosine_momentum_is_byols_and_with_its_end_lightlys() -> None:
    from lightly.utils.scheduler import cosine_schedule

    steps = 50
    for step in range(steps):
        byol = 1 - (1 - 0.97) * (math.cos(math.pi * step / steps) + 1) / 2
        assert cosine_momentum(step, steps, 0.97) == pytest.approx(byol, abs=1e-15)
        lightly = cosine_schedule(step, steps, 0.9, 0.99)
        assert cosine_momentum(step, steps, 0.9, 0.99, reaches_end=True) == pytest.approx(lightly, abs=1e-15)
        on_device = cosine_momentum(torch.tensor(step), steps, 0.9, 0.99)
        assert on_device.item() == pytest.approx(cosine_momentum(step, steps, 0.9, 0.99), abs=1e-6)
    assert cosine_momentum(steps - 1, steps, 0.97) < 1 == cosine_momentum(steps, steps, 0.97)
    assert cosine_momentum(steps - 1, steps, 0.97, reaches_end=True) == 1
    assert cosine_momentum(99 * steps, steps, 0.97) == 1 == cosine_momentum(torch.tensor(99 * steps), steps, 0.97)
    for one in (0, torch.tensor(0)):
        assert cosine_momentum(one, 1, 0.9, reaches_end=True) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 0), "total_steps must be 1 or more"), ((-1, 5), "step must not be negative"), ((0, 5, 1.5), "base must be")],
)
def test_schedules_that_are_none(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cosine_momentum(*arguments)
