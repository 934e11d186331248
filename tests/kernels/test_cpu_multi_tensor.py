"""The multi-tensor C++ kernels against the float64 twin, on every instruction set."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyssl_fast.kernels.cpu import multi_tensor as kernels
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
    check,
    run_clones,
)
from tests.process import python

# Both sides of a vector's, a block's (1,024) and a chunk's (32,768) edge, and some chunks; nothing, and one.
SIZES = (1, 0, 3, 7, 1023, 1024, 1025, 32767, 32768, 32769, 70001)
each_options_adamw = pytest.mark.parametrize("options", OPTIONS_ADAMW, ids=lambda x: " ".join(x) or "plain")
each_options_lars = pytest.mark.parametrize("options", OPTIONS_LARS, ids=lambda x: " ".join(x) or "plain")


@pytest.mark.parametrize("shadow", [None, *DTYPES], ids=str)
@pytest.mark.parametrize("student", DTYPES, ids=str)
@pytest.mark.parametrize("teacher", DTYPES, ids=str)
def test_ema_within_contract(teacher: torch.dtype, student: torch.dtype, shadow: Any, isa: str) -> None:
    check(kernels, "ema_", cases.ema(teacher, student, shadow, sizes=SIZES), EMA)


@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.2, 0.5, 0.7, 0.9, 0.9999, 1.0])
def test_ema_is_within_one_rounding_of_float64(momentum: float, isa: str) -> None:
    for seed, size in enumerate((50_000, 4095, 4096, 4097)):  # four pages are gone through at once
        (t,), (s,) = (cases.make([size], F32, seed=n) for n in (seed, 10 + seed))
        truth = t.double() + (1 - momentum) * (s.double() - t.double())
        largest = torch.maximum(t.abs(), s.abs())
        kernels.ema_([t], [s], [], 1, torch.tensor(momentum, dtype=torch.float64))
        unit = torch.nextafter(largest, torch.tensor(math.inf)) - largest
        assert ((t.double() - truth).abs() <= unit).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ema_gives_the_student_itself_for_momentum_0(dtype: torch.dtype, isa: str) -> None:
    arguments = cases.ema(dtype, dtype, dtype, 0.0, sizes=SIZES)
    arguments["teacher"][3][:] = torch.tensor([3e4, 1e-4, 1e4, 0.0, 0.0, 3.0, -2e-4])
    ours = run_clones(kernels, "ema_", arguments)
    assert all(torch.equal(x, y) for x, y in zip(ours["teacher"], arguments["student"], strict=True))
    assert all(torch.equal(x, y) for x, y in zip(ours["shadow"], arguments["student"], strict=True))


@pytest.mark.parametrize("momentum", [0.05, 0.2, 0.5, 0.9, 0.996, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ema_leaves_a_teacher_that_equals_its_student(dtype: torch.dtype, momentum: float, isa: str) -> None:
    arguments = cases.ema(dtype, dtype, None, momentum, sizes=SIZES)
    arguments["student"] = cases.clone(arguments["teacher"])
    ours = run_clones(kernels, "ema_", arguments)
    assert cases.same_bits(ours["teacher"], arguments["student"])


@pytest.mark.parametrize("momentum", [0.05, 0.5, 0.99])
@pytest.mark.parametrize("where", ["teacher", "student"])
def test_ema_passes_nan_and_infinity_on(where: str, momentum: float, isa: str) -> None:
    for dtype in DTYPES:
        arguments = cases.ema(dtype, dtype, BF16, momentum, sizes=SIZES)
        arguments[where][4][17], arguments[where][3][0], arguments[where][-1][70000] = math.nan, math.nan, math.inf
        ours = check(kernels, "ema_", arguments, EMA)
        assert ours["teacher"][4][17].isnan() and ours["shadow"][3][0].isnan()


def test_ema_copies_bytes_of_any_dtype(isa: str) -> None:
    dtypes = [torch.int64, torch.bool, torch.int8, torch.float64, torch.complex128, F32, BF16, torch.uint8]
    sizes = [1, 5, 70_001, 4097, 3, 20, 33, 0]
    student = [(100 * x).to(of) for x, of in zip(cases.make(sizes, torch.float64), dtypes, strict=True)]
    teacher = [torch.zeros_like(x) for x in student]
    averaged = cases.ema(F32, F32, BF16, sizes=SIZES)
    alone = run_clones(kernels, "ema_", averaged)
    kernels.ema_(
        averaged["teacher"] + teacher,
        averaged["student"] + student,
        averaged["shadow"],
        len(SIZES),
        averaged["momentum"],
    )
    assert all(torch.equal(t, s) for t, s in zip(teacher, student, strict=True))
    assert cases.same_bits(averaged["teacher"], alone["teacher"])
    assert cases.same_bits(averaged["shadow"], alone["shadow"])


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("dtype", [*DTYPES, DTYPES], ids=str)
def test_square_sum_is_double(dtype: Any, shift: int, isa: str) -> None:
    x = cases.make(SIZES, dtype, shift)
    truth = torch.stack([t.double().square().sum() for t in x]).sum()
    ours = kernels.square_sum(x)
    assert ours.dtype == torch.float64 and ours.shape == ()
    assert abs(ours - truth) <= 1e-14 * truth


def test_square_sum_of_large_small_and_broken_numbers(isa: str) -> None:
    assert kernels.square_sum([torch.full((5000,), 1e30)]) == pytest.approx(5e63, rel=1e-6)
    assert kernels.square_sum([torch.full((5000,), 1e-30)]) == pytest.approx(5e-57, rel=1e-6)
    assert kernels.square_sum([torch.empty(0)]) == 0
    for broken in (math.nan, math.inf):
        x = torch.ones(40_000)
        x[39_999] = broken
        assert not kernels.square_sum([torch.ones(3), x]).isfinite()


@pytest.mark.parametrize("of", DTYPES_OF_LISTS)
@each_options_adamw
def test_adamw_within_contract(options: dict[str, Any], of: str, isa: str) -> None:
    check(kernels, "adamw_", cases.adamw(DTYPES_OF_LISTS[of], sizes=SIZES, **options), ADAMW)


@each_options_adamw
def test_adamw_over_steps(options: dict[str, Any], isa: str) -> None:
    ours = check(kernels, "adamw_", cases.adamw(sizes=SIZES, shift=1, **options), ADAMW, steps=4)
    assert [int(step) for step in ours["steps"]] == [i % 5 + 4 for i in range(len(SIZES))]


@pytest.mark.parametrize("of", DTYPES_OF_LISTS)
@each_options_lars
def test_lars_within_contract(options: dict[str, Any], of: str, isa: str) -> None:
    check(kernels, "lars_", cases.lars(DTYPES_OF_LISTS[of], sizes=SIZES, **options), LARS)


@each_options_lars
def test_lars_over_steps_and_many_layers(options: dict[str, Any], isa: str) -> None:
    # Layers of many sizes: some are measured ahead of others' updates, one is larger than what may be ahead.
    sizes = [*SIZES, 40_000, 600_000, 100_000, 5, 90_000]
    check(kernels, "lars_", cases.lars(sizes=sizes, shift=1, **options), LARS, steps=3)


@pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-7])
def test_lars_joint_norm_of_a_gradient_against_the_decay(distance: float, isa: str) -> None:
    # Where g is nearly −β·p, a total less its parts would leave nothing of their sum.
    torch.manual_seed(0)
    p = torch.randn(40_000)
    g = (-0.1 * p * (1 + distance * torch.randn(40_000).double())).float()
    arguments = cases.lars(sizes=[40_000], joint=True, weight_decay=0.1, trust_coefficient=1.0)
    check(kernels, "lars_", {**arguments, "parameters": [p], "gradients": [g]}, LARS)


@pytest.mark.parametrize("lr", [0.0, 0.3])
def test_lars_clips_its_trust_at_any_rate(lr: float, isa: str) -> None:
    arguments = cases.lars(sizes=SIZES, trust_clip=True, lr=torch.tensor(lr))
    ours = check(kernels, "lars_", arguments, LARS)
    assert all(x.isfinite().all() for x in ours["parameters"])


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("which", ["parameters", "gradients"])
@pytest.mark.parametrize("lr", [0.3, 2.0])
def test_lars_of_zeros_trusts_fully(lr: float, which: str, joint: bool, isa: str) -> None:
    # Clipped, to a rate of at most 1.
    arguments = cases.lars(sizes=SIZES, joint=joint, weight_decay=0.0, lr=torch.tensor(lr), trust_clip=lr > 1)
    for x in arguments[which]:
        x.zero_()
    check(kernels, "lars_", arguments, LARS)


def test_lars_reads_no_fresh_buffer(isa: str) -> None:
    arguments = cases.lars(sizes=SIZES, fresh=[True] * len(SIZES))
    for x in arguments["momentum_buffers"]:
        x.fill_(math.nan)
    assert all(x.isfinite().all() for x in check(kernels, "lars_", arguments, LARS)["parameters"])


@pytest.mark.parametrize("name", ["adamw_", "lars_"])
def test_nothing_changes_where_infinities_were_found(name: str) -> None:
    for found in (torch.tensor(1.0), torch.tensor(math.nan, dtype=torch.float64)):
        arguments = (cases.adamw if name == "adamw_" else cases.lars)(shadow=BF16, found_inf=found)
        arguments["gradients"][4][5] = math.inf
        ours = run_clones(kernels, name, arguments)
        for key in ADAMW if name == "adamw_" else LARS:
            if key in arguments:
                assert cases.same_bits(ours[key], arguments[key]), key


@pytest.mark.parametrize("name", ["adamw_", "lars_"])
def test_nan_in_a_gradient_comes_out(name: str, isa: str) -> None:
    arguments = (cases.adamw if name == "adamw_" else cases.lars)(teacher=True, sizes=SIZES)
    arguments["gradients"][4][5] = arguments["gradients"][-1][5] = math.nan
    if name == "adamw_":
        arguments["max_exp_avg_sq"] = [x.square() for x in arguments["exp_avg"]]
    ours = check(kernels, name, arguments, ADAMW if name == "adamw_" else LARS)
    assert ours["parameters"][4][5].isnan() and ours["teacher"][4][5].isnan()


@pytest.mark.parametrize("name", ["ema_", "adamw_", "lars_", "square_sum"])
def test_same_bits_for_any_number_of_threads(name: str, isa: str, threads: None) -> None:
    sizes = [40_000, 5, 300_000, 1025, 900_000, 70_000]
    if name == "ema_":
        arguments, written = cases.ema(F32, F16, BF16, sizes=sizes), EMA
    elif name == "square_sum":
        arguments, written = {"tensors": cases.make(sizes, F32)}, ()
    else:
        written = ADAMW if name == "adamw_" else LARS
        arguments = (cases.adamw if name == "adamw_" else cases.lars)(sizes=sizes, shadow=BF16)
    seen = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        ours = cases.clone(arguments)
        result = getattr(kernels, name)(**ours)
        seen.append([x for key in written for x in ours.get(key, [])] + ([result] if name == "square_sum" else []))
    for other in seen[1:]:
        assert cases.same_bits(seen[0], other)


def test_entries_of_other_layouts_are_written_back(isa: str) -> None:
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


def test_a_forked_child_runs_too() -> None:
    code = """
import os, torch
torch.set_num_threads(2)
from pyssl_fast.ema import ema_update_
t, s = [torch.zeros(200_000)], [torch.ones(200_000)]
ema_update_(t, s, 0.5)
child = os.fork()
if child == 0:
    ema_update_(t, s, 0.5)
    os._exit(int({float(t[0][0]), float(t[0][-1])} != {0.75}))
print(os.waitpid(child, 0)[1])
"""
    assert python(code).stdout.split() == ["0"]
