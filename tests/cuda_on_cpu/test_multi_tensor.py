"""csrc/cuda/multi_tensor.cu on host threads, called through the functions of kernels/cuda, against the float64 twin."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cuda_on_cpu import build
from tests.kernels import multi_tensor_cases as cases
from tests.kernels.multi_tensor_cases import (
    ADAMW,
    BF16,
    DTYPES,
    DTYPES_OF_LISTS,
    EMA,
    F16,
    F32,
    LARS,
    OPTIONS_ADAMW,
    OPTIONS_LARS,
    SIZES,
    check,
    run_clones,
)


@pytest.fixture(scope="module")
def built(emulated: ModuleType) -> ModuleType:
    return build.kernels(emulated, "multi_tensor")


@pytest.fixture
def kernels(built: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Scalars are read where a GPU would read them: in the kernels."""
    monkeypatch.setattr(built, "in_host_memory", lambda x: False)
    return built


@pytest.mark.parametrize("shadow", [None, *DTYPES], ids=str)
@pytest.mark.parametrize("student", DTYPES, ids=str)
@pytest.mark.parametrize("teacher", DTYPES, ids=str)
def test_ema_within_contract(teacher: torch.dtype, student: torch.dtype, shadow: Any, kernels: ModuleType) -> None:
    check(kernels, "ema_", cases.ema(teacher, student, shadow), EMA)


@pytest.mark.parametrize("shift", [1, 2, 3, 4])
def test_ema_of_unaligned_tensors(shift: int, kernels: ModuleType) -> None:
    # Every pair of dtypes, in one launch.
    check(kernels, "ema_", cases.ema(DTYPES, (F32, F32, F32, F16, F16, BF16, BF16), (BF16, F32), shift=shift), EMA)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.5, 0.996, 1.0])
def test_ema_momentum_by_value_and_by_pointer(
    momentum: float, dtype: torch.dtype, built: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = cases.ema(F32, F32, BF16, momentum)
    arguments["momentum"] = arguments["momentum"].to(dtype)
    by_value = run_clones(built, "ema_", arguments)
    monkeypatch.setattr(built, "in_host_memory", lambda x: False)
    by_pointer = check(built, "ema_", arguments, EMA)
    for key in EMA:
        assert cases.same_bits(by_value[key], by_pointer[key])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ema_gives_the_student_itself_for_momentum_0(dtype: torch.dtype, kernels: ModuleType) -> None:
    arguments = cases.ema(dtype, dtype, dtype, 0.0)
    arguments["student"][3][:] = torch.tensor([0.0, -0.0, 1.0, -0.0, 0.0, 3.0, -2.0])
    arguments["teacher"][3][:] = torch.tensor([-0.0, 0.0, 1e4, -0.0, 0.0, 3.0, -2e-4])
    ours = run_clones(kernels, "ema_", arguments)
    assert cases.same_bits(ours["teacher"], arguments["student"])
    assert cases.same_bits(ours["shadow"], arguments["student"])


@pytest.mark.parametrize("momentum", [0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ema_leaves_a_teacher_that_equals_its_student(dtype: torch.dtype, momentum: float, kernels: ModuleType) -> None:
    arguments = cases.ema(dtype, dtype, None, momentum)
    arguments["teacher"][3][:] = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.1, 3e-6, -1e4])
    arguments["student"] = cases.clone(arguments["teacher"])
    assert cases.same_bits(run_clones(kernels, "ema_", arguments)["teacher"], arguments["student"])


@pytest.mark.parametrize("where", ["teacher", "student"])
def test_ema_passes_nan_and_infinity_on(where: str, kernels: ModuleType) -> None:
    for teacher in DTYPES:
        arguments = cases.ema(teacher, F32, BF16)
        arguments[where][4][17], arguments[where][3][0], arguments[where][7][8200] = math.nan, math.nan, math.inf
        ours = check(kernels, "ema_", arguments, EMA)
        assert ours["teacher"][4][17].isnan() and ours["shadow"][3][0].isnan()


@pytest.mark.parametrize("shift", [0, 1])
def test_ema_copies_bytes_of_any_dtype(shift: int, kernels: ModuleType) -> None:
    dtypes = [torch.int64, torch.bool, torch.int8, torch.float64, torch.complex128, F32, BF16, torch.int32]
    sizes = [1, 5, 40_000, 4097, 3, 20, 33, 0]  # chunks are of 16,384 bytes
    students = [(100 * x).to(of) for x, of in zip(cases.make(sizes, torch.float64, shift), dtypes, strict=True)]
    student = [x if not shift else torch.cat([x[:1], x])[1:] for x in students]
    teacher = [torch.zeros_like(torch.cat([x[:1], x]))[1:] if shift else torch.zeros_like(x) for x in student]
    averaged = cases.ema(F32, F32, BF16)
    kernels.ema_(
        averaged["teacher"] + teacher,
        averaged["student"] + student,
        averaged["shadow"],
        len(SIZES),
        averaged["momentum"],
    )
    for t, s in zip(teacher, student, strict=True):
        assert torch.equal(t, s)
    again = check(kernels, "ema_", cases.ema(F32, F32, BF16), EMA)
    assert cases.same_bits(averaged["teacher"], again["teacher"])
    assert cases.same_bits(averaged["shadow"], again["shadow"])


MANY = [3 + i % 7 for i in range(140)] + [4097] * 20  # exceed the table of a launch, and its blocks


def test_more_entries_and_blocks_than_a_launch_holds(kernels: ModuleType) -> None:
    check(kernels, "ema_", cases.ema(F32, DTYPES, None, sizes=MANY), EMA)
    check(kernels, "adamw_", cases.adamw(sizes=MANY, teacher=True), ADAMW)
    check(kernels, "lars_", cases.lars(sizes=MANY, teacher=True), LARS)
    x = cases.make(MANY, F32)
    truth = sum(t.double().square().sum() for t in x)
    assert abs(kernels.square_sum(x) - truth) <= 1e-13 * truth


def test_a_tensor_beyond_the_grid_is_an_error(kernels: ModuleType) -> None:
    with pytest.raises(ValueError, match="a tensor of 155648 elements"):
        kernels.square_sum([torch.zeros(38 * 4096)])


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("dtype", [*DTYPES, DTYPES], ids=str)
def test_square_sum_is_double_and_of_the_same_bits(dtype: Any, shift: int, kernels: ModuleType) -> None:
    x = cases.make(SIZES, dtype, shift)
    truth = sum(t.double().square().sum() for t in x)
    ours = kernels.square_sum(x)
    assert ours.dtype == torch.float64 and ours.shape == ()
    assert abs(ours - truth) <= 1e-14 * truth
    assert torch.equal(ours, kernels.square_sum(x))


def test_square_sum_of_large_small_and_broken_numbers(kernels: ModuleType) -> None:
    assert kernels.square_sum([torch.full((5000,), 1e30)]) == pytest.approx(5e63, rel=1e-6)
    assert kernels.square_sum([torch.full((5000,), 1e-30)]) == pytest.approx(5e-57, rel=1e-6)
    assert kernels.square_sum([torch.empty(0)]) == 0
    for broken in (math.nan, math.inf):
        x = torch.ones(9000)
        x[8999] = broken
        assert not kernels.square_sum([torch.ones(3), x]).isfinite()


each_options_adamw = pytest.mark.parametrize("options", OPTIONS_ADAMW, ids=lambda x: " ".join(x) or "plain")


@pytest.mark.parametrize("of", DTYPES_OF_LISTS)
@each_options_adamw
def test_adamw_within_contract(options: dict[str, Any], of: str, kernels: ModuleType) -> None:
    check(kernels, "adamw_", cases.adamw(DTYPES_OF_LISTS[of], **options), ADAMW)


@each_options_adamw
def test_adamw_of_unaligned_tensors(options: dict[str, Any], kernels: ModuleType) -> None:
    check(kernels, "adamw_", cases.adamw(shift=1, **options), ADAMW)


def test_adamw_over_steps(kernels: ModuleType) -> None:
    ours = check(kernels, "adamw_", cases.adamw(amsgrad=True, shadow=BF16), ADAMW, steps=4)
    assert [int(step) for step in ours["steps"]] == [i % 5 + 4 for i in range(len(SIZES))]


def test_adamw_of_gradients_whose_squares_overflow(kernels: ModuleType) -> None:
    arguments = cases.adamw(beta2=0.999)
    arguments["gradients"][4].mul_(1e19)
    check(kernels, "adamw_", arguments, ADAMW)


each_options_lars = pytest.mark.parametrize("options", OPTIONS_LARS, ids=lambda x: " ".join(x) or "plain")


@pytest.mark.parametrize("of", DTYPES_OF_LISTS)
@each_options_lars
def test_lars_within_contract(options: dict[str, Any], of: str, kernels: ModuleType) -> None:
    check(kernels, "lars_", cases.lars(DTYPES_OF_LISTS[of], **options), LARS)


@each_options_lars
def test_lars_of_unaligned_tensors(options: dict[str, Any], kernels: ModuleType) -> None:
    check(kernels, "lars_", cases.lars(shift=1, **options), LARS)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("which", ["parameters", "gradients"])
@pytest.mark.parametrize("lr", [0.3, 2.0])
def test_lars_of_zeros_trusts_fully(lr: float, which: str, joint: bool, kernels: ModuleType) -> None:
    # Clipped, to a rate of at most 1.
    arguments = cases.lars(joint=joint, weight_decay=0.0, lr=torch.tensor(lr), trust_clip=lr > 1)
    for x in arguments[which]:
        x.zero_()
    check(kernels, "lars_", arguments, LARS)


def test_lars_reads_no_fresh_buffer(kernels: ModuleType) -> None:
    arguments = cases.lars(fresh=[True] * len(SIZES))
    for x in arguments["momentum_buffers"]:
        x.fill_(math.nan)
    assert all(x.isfinite().all() for x in check(kernels, "lars_", arguments, LARS)["parameters"])


@pytest.mark.parametrize("name", ["adamw_", "lars_"])
def test_nothing_changes_where_infinities_were_found(name: str, built: ModuleType, monkeypatch: Any) -> None:
    for found in (torch.tensor(1.0), torch.tensor(math.nan, dtype=torch.float64)):
        for held in (True, False):
            with monkeypatch.context() as patch:
                patch.setattr(built, "in_host_memory", lambda x, held=held: held)
                arguments = (cases.adamw if name == "adamw_" else cases.lars)(shadow=BF16, found_inf=found)
                arguments["gradients"][4][5] = math.inf
                ours = run_clones(built, name, arguments)
                for key in ADAMW if name == "adamw_" else LARS:
                    if key in arguments:
                        assert cases.same_bits(ours[key], arguments[key]), key


@pytest.mark.parametrize("name", ["adamw_", "lars_"])
def test_nan_in_a_gradient_comes_out(name: str, kernels: ModuleType) -> None:
    arguments = (cases.adamw if name == "adamw_" else cases.lars)(teacher=True)
    arguments["gradients"][4][5] = math.nan
    ours = check(kernels, name, arguments, ADAMW if name == "adamw_" else LARS)
    assert ours["parameters"][4][5].isnan() and ours["teacher"][4][5].isnan()


@pytest.mark.parametrize("name", ["adamw_", "lars_"])
def test_same_bits_every_run(name: str, kernels: ModuleType) -> None:
    arguments = (cases.adamw if name == "adamw_" else cases.lars)(shadow=BF16, sizes=[40_000, 5, 8201])
    first, second = (run_clones(kernels, name, arguments) for _ in range(2))
    for key in ADAMW if name == "adamw_" else LARS:
        if key in arguments:
            assert cases.same_bits(first[key], second[key])


def test_entries_of_other_layouts_are_written_back(kernels: ModuleType) -> None:
    def images(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        whole = torch.randn(6, 5, 3, 3)
        return [whole.clone(), whole.to(memory_format=torch.channels_last), torch.randn(6, 9)[:, ::2]]

    t, s, x = images(0), images(1), [y.bfloat16() for y in images(2)]
    t[0] = t[0].to(memory_format=torch.channels_last)
    expected = [torch.lerp(a, b, 0.25) for a, b in zip(t, s, strict=True)]
    kernels.ema_(t, s, x, 3, torch.tensor(0.75))
    for ours, rounded, truth in zip(t, x, expected, strict=True):
        torch.testing.assert_close(ours, truth)
        assert torch.equal(rounded, ours.bfloat16())
