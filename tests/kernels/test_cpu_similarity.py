"""The similarity family's C++ kernels: every instruction set against the float64 twin."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyssl_fast import _cpu
from pyssl_fast.kernels.cpu import similarity
from pyssl_fast.kernels.reference import similarity as reference
from tests.contract import assert_within_contract
from tests.kernels.similarity_cases import (
    BANKS,
    CONTRASTS,
    NEIGHBOURS,
    SIGMOIDS,
    TRIPLETS,
    Bank,
    Contrast,
    Neighbours,
    Results,
    Sigmoid,
    Triplets,
    bank_inputs,
    check_bank,
    check_contrast,
    check_hardest,
    check_neighbours,
    check_scaled,
    check_sigmoid,
    check_triplets,
    contrast_inputs,
    embeddings,
    gradients,
    neighbours_inputs,
    nt_xent,
    run_bank,
    run_contrast,
    run_sigmoid,
    sigmoid_inputs,
    triplets_inputs,
)
from tests.process import python

HALF = (torch.float16, torch.bfloat16)
# samples, views, dim. Blocks are 96, 192 (1,536 rows and more) or 384 rows (6,144 and more), panels 8, 24 or 48 wide.
SHAPES = {
    "one sample": (1, 2, 5),
    "one sample, three views": (1, 3, 5),
    "one column": (9, 2, 1),
    "two rows a view": (2, 2, 3),
    "block edge - 2": (47, 2, 47),
    "block edge": (48, 2, 48),
    "block edge + 2": (49, 2, 49),
    "three blocks, odd": (141, 2, 33),
    "three views": (101, 3, 95),
    "many views": (30, 7, 16),
    "samples fewer than a block holds": (20, 12, 64),
    "wide": (70, 2, 517),
    "edge of the larger blocks": (768, 2, 31),
    "past the edge of the larger blocks": (769, 2, 32),
    "very wide": (3, 2, 5003),
}
SMALL = ("one sample", "one column", "block edge + 2", "three views", "wide")
LARGE = "past the edge of the larger blocks"
# From 0.025 on one bound serves all rows; below it each has a running maximum.
TEMPERATURES = (0.5, 0.07, 0.025, 0.02499, 0.005, -0.3)
CLIP = CONTRASTS["CLIP"]
EVERYTHING = replace(CONTRASTS["statistics, everything"], rows=230, columns=310, dim=70, groups=40)


@pytest.fixture
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def one_sign(*shape: int) -> Tensor:
    """Incoming gradients: where the scale's gradient cancels, eager is right or wrong by chance, and sets the limit."""
    return gradients(*shape) + 0.6


# ---- the error contract ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_nt_xent_keeps_the_contract(isa: str, shape: tuple[int, int, int], temperature: float) -> None:
    check_contrast(similarity, nt_xent(*shape, temperature), grad=one_sign)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("temperature", (0.5, 0.05))
@pytest.mark.parametrize("name", SMALL)
def test_nt_xent_in_half_precision_keeps_the_contract(
    isa: str, name: str, temperature: float, dtype: torch.dtype
) -> None:
    check_contrast(similarity, nt_xent(*SHAPES[name], temperature), dtype)


def test_a_large_block_edge_keeps_the_contract() -> None:
    check_contrast(similarity, nt_xent(3073, 2, 17))  # 6,146 rows: blocks of 384


@pytest.mark.parametrize("dtype", (torch.float32, *HALF), ids=str)
@pytest.mark.parametrize("case", CONTRASTS.values(), ids=CONTRASTS)
def test_contrast_keeps_the_contract(isa: str, case: Contrast, dtype: torch.dtype) -> None:
    check_contrast(similarity, case, dtype)


@pytest.mark.parametrize("case", CONTRASTS.values(), ids=CONTRASTS)
def test_contrast_keeps_the_contract_over_many_blocks(isa: str, case: Contrast) -> None:
    columns = None if case.columns is None else 8 * case.columns + 11
    check_contrast(similarity, replace(case, rows=6 * case.rows, columns=columns, dim=65, groups=5 * case.groups))


# Both sides of a block's edge; few rows against many columns, and the other way round as far as there are positives.
@pytest.mark.parametrize(
    ("rows", "columns", "dim"),
    [(1, 1, 1), (1, 97, 3), (95, 96, 47), (96, 97, 48), (97, 193, 49), (40, 1700, 24), (1537, 1550, 16)],
)
@pytest.mark.parametrize("temperature", [0.1, 0.005])
def test_two_way_losses_keep_the_contract(isa: str, rows: int, columns: int, dim: int, temperature: float) -> None:
    case = replace(CLIP, rows=rows, columns=columns, dim=dim, temperature=temperature, normalize=True)
    check_contrast(similarity, case)


def test_more_rows_than_columns_keep_the_contract(isa: str) -> None:
    check_contrast(similarity, replace(CONTRASTS["CLIP, no positives"], rows=700, columns=40, dim=33))


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_one_side_alone_keeps_the_contract(isa: str, needs: tuple[bool, bool]) -> None:
    check_contrast(similarity, replace(CLIP, rows=120, columns=130), needs=needs)


@pytest.mark.parametrize("dtype", (torch.float32, *HALF), ids=str)
@pytest.mark.parametrize("case", BANKS.values(), ids=BANKS)
def test_bank_contrast_keeps_the_contract(isa: str, case: Bank, dtype: torch.dtype) -> None:
    check_bank(similarity, case, dtype)


@pytest.mark.parametrize("case", BANKS.values(), ids=BANKS)
@pytest.mark.parametrize(("rows", "columns", "dim"), [(1, 97, 32), (100, 1000, 50), (390, 800, 128)])
def test_bank_contrast_keeps_the_contract_over_many_blocks(
    isa: str, case: Bank, rows: int, columns: int, dim: int
) -> None:
    if case.temperature == 0.005:  # a softmax of nearly one key: the twin's own rounding decides
        case = replace(case, temperature=0.01)
    check_bank(similarity, replace(case, rows=rows, columns=columns, dim=dim, groups=6 * case.groups))


def test_maxima_that_grow_from_key_to_key_keep_the_contract(isa: str) -> None:
    """Every block of keys outgrows the one before by far more than the 20 octaves that are let pass."""
    q, k, scale, *none = bank_inputs(Bank(rows=30, columns=2000, dim=16))
    k = k * torch.linspace(0.1, 60, 2000)[:, None]
    ours, truth, eager = (
        run_bank(kernels, (q.to(dtype), k.to(dtype), scale.to(dtype), *none), Bank())
        for kernels, dtype in (
            (similarity, torch.float32),
            (reference, torch.float64),
            (reference, torch.float32),
        )
    )
    for name in ("lse", "mean_key"):
        assert_within_contract(ours[name], truth[name], eager[name], torch.float32, name)


@pytest.mark.parametrize("dtype", (torch.float32, *HALF), ids=str)
@pytest.mark.parametrize("case", SIGMOIDS.values(), ids=SIGMOIDS)
def test_sigmoid_contrast_keeps_the_contract(isa: str, case: Sigmoid, dtype: torch.dtype) -> None:
    check_sigmoid(similarity, case, dtype)


@pytest.mark.parametrize("case", SIGMOIDS.values(), ids=SIGMOIDS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (97, 200), (200, 97)])
def test_sigmoid_contrast_keeps_the_contract_over_many_blocks(isa: str, case: Sigmoid, rows: int, columns: int) -> None:
    check_sigmoid(similarity, replace(case, rows=rows, columns=columns, dim=53, groups=6 * case.groups))


@pytest.mark.parametrize("dtype", (torch.float32, *HALF), ids=str)
@pytest.mark.parametrize("case", NEIGHBOURS.values(), ids=NEIGHBOURS)
def test_neighbours_keep_the_contract(isa: str, case: Neighbours, dtype: torch.dtype) -> None:
    check_neighbours(similarity, case, dtype)


@pytest.mark.parametrize("case", NEIGHBOURS.values(), ids=NEIGHBOURS)
@pytest.mark.parametrize(("rows", "columns", "dim"), [(97, 3200, 64), (400, 1537, 30)])
def test_neighbours_keep_the_contract_over_many_blocks(
    isa: str, case: Neighbours, rows: int, columns: int, dim: int
) -> None:
    columns = None if case.columns is None else columns
    check_neighbours(similarity, replace(case, rows=rows, columns=columns, dim=dim, groups=6 * case.groups))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("symmetric", [True, False])
def test_of_equal_neighbours_the_first_is_taken(isa: str, count: int, symmetric: bool) -> None:
    q = torch.ones(300, 8)
    _, index = similarity.neighbours(q, None if symmetric else q, count, None, None)
    wanted = reference.neighbours(q, None if symmetric else q, count, None, None)[1]
    assert torch.equal(index, wanted)


@pytest.mark.parametrize("dtype", (torch.float32, *HALF), ids=str)
@pytest.mark.parametrize("case", TRIPLETS.values(), ids=TRIPLETS)
@pytest.mark.parametrize("rows", [None, 97, 200])
def test_triplets_keep_the_contract(isa: str, case: Triplets, dtype: torch.dtype, rows: int | None) -> None:
    if rows is None:
        check_triplets(similarity, case, dtype)
    check_hardest(similarity, replace(case, rows=rows or case.rows, groups=3 * case.groups), dtype)


@pytest.mark.parametrize("case", TRIPLETS.values(), ids=TRIPLETS)
@pytest.mark.parametrize("rows", [97, 200])
def test_triplets_keep_the_contract_over_many_blocks(isa: str, case: Triplets, rows: int) -> None:
    check_triplets(similarity, replace(case, rows=rows, groups=3 * case.groups))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    isa=st.sampled_from(_cpu.isas()),
    rows=st.integers(1, 210),
    columns=st.one_of(st.none(), st.integers(1, 300)),
    dim=st.integers(1, 70),
    terms=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    groups=st.integers(0, 9),
    normalize=st.booleans(),
    statistics=st.booleans(),
    temperature=st.sampled_from([0.5, 0.05, 0.01, -0.2]),
)
def test_any_terms_over_any_shape_keep_the_contract(
    isa: str,
    rows: int,
    columns: int | None,
    dim: int,
    terms: list[int],
    groups: int,
    normalize: bool,
    statistics: bool,
    temperature: float,
) -> None:
    if columns is None:
        terms = [term & ~1 for term in terms]
    views = 2 if (rows % 2 == 0 if columns is None else columns >= rows) else 0
    powers = tuple(1 + 0.5 * (n % 2) for n in range(len(terms)))
    case = Contrast(rows, columns, dim, tuple(terms), powers, views, normalize, groups, False, statistics, temperature)
    before = _cpu.isa()
    _cpu.set_isa(isa)
    try:
        check_contrast(similarity, case, grad=one_sign)
    finally:
        _cpu.set_isa(before)


@pytest.mark.parametrize(
    ("precision", "like"), [("high", torch.float16), ("medium", torch.bfloat16)], indirect=["precision"]
)
@pytest.mark.parametrize(
    "case",
    [nt_xent(*SHAPES[name]) for name in ("one sample", "one column", "block edge + 2", "three views", "wide", LARGE)]
    + [replace(CLIP, rows=200, columns=210, normalize=True)],
    ids=str,
)
def test_lower_float32_precision_is_no_worse_than_the_half_it_resembles(
    isa: str, case: Contrast, precision: str, like: torch.dtype
) -> None:
    inputs = contrast_inputs(case)
    ours = run_contrast(similarity, inputs, case)
    truth, eager = (
        run_contrast(reference, tuple(None if x is None else x.to(dtype) for x in inputs), case)
        for dtype in (torch.float64, like)
    )
    for what, mine in ours.items():
        assert_within_contract(mine, truth[what], eager[what], like, f"{what}, {precision}")
        if precision == "high" and what != "grad_scale":  # 16 bits of mantissa; a sum over the rows may cancel
            finite = mine.isfinite()
            error, size = (mine - truth[what])[finite].abs(), truth[what][finite].abs()
            assert not error.numel() or error.max() <= 1e-5 * size.max() + 1e-12, what


# ---- what must hold besides ------------------------------------------------------------------------------------------


def results(precise: bool = False) -> dict[str, Results]:
    """Of every operator one problem over several blocks, by the kernels."""
    sharp = 0.01 if precise else 0.2
    moco = Bank(rows=130, columns=900, dim=40, groups=7, limited=True, statistics=True, temperature=sharp)
    siglip = Sigmoid(rows=200, columns=310, dim=33, groups=9)
    triplets = Triplets(rows=250)
    found = {
        "NT-Xent": run_contrast(similarity, contrast_inputs(nt_xent(407, 2, 40, sharp)), nt_xent(407, 2, 40)),
        "larger blocks": run_contrast(similarity, contrast_inputs(nt_xent(900, 2, 8, sharp)), nt_xent(900, 2, 8)),
        "CLIP": run_contrast(
            similarity, contrast_inputs(replace(CLIP, rows=250, columns=333, temperature=sharp)), CLIP
        ),
        "everything": run_contrast(similarity, contrast_inputs(EVERYTHING), EVERYTHING),
        "bank": run_bank(similarity, bank_inputs(moco), moco),
        "sigmoid": run_sigmoid(similarity, sigmoid_inputs(siglip), siglip),
    }
    for name, case in {"neighbours": Neighbours(130, 900, count=5), "nearest": Neighbours(230, None)}.items():
        found[name] = dict(zip("si", similarity.neighbours(*neighbours_inputs(case)), strict=True))
    q, ids = triplets_inputs(triplets)
    found["hardest"] = dict(zip("np", similarity.hardest(q, ids, torch.zeros(250)), strict=True))
    loss, count = similarity.triplets(q, ids, 0.2, True, False)
    grad = similarity.triplets_backward(gradients(250), q, ids, 0.2, True, False)
    found["triplets"] = {"loss": loss, "count": count, "grad": grad}
    return found


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("precision", ["highest", "high", "medium"], indirect=True)
@pytest.mark.parametrize("sharp", [False, True], ids=["bound", "running maximum"])
def test_bits_do_not_depend_on_the_thread_count(isa: str, precision: str, sharp: bool) -> None:
    torch.set_num_threads(1)
    first = results(sharp)
    for threads in (2, 3, 7, 2):
        torch.set_num_threads(threads)
        for operator, tensors in results(sharp).items():
            for name, x in tensors.items():
                assert torch.equal(x, first[operator][name]), f"{name} of {operator}, {threads} threads"


@pytest.mark.skipif("amx" not in _cpu.isas(), reason="the machine has no AMX")
@pytest.mark.parametrize("isa", ["amx"], indirect=True)
def test_each_precision_has_arithmetic_of_its_own(isa: str) -> None:
    before = torch.get_float32_matmul_precision()
    found = []
    try:
        for name in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(name)
            found.append(results()["CLIP"]["lse"])
    finally:
        torch.set_float32_matmul_precision(before)
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])


def test_a_batch_told_apart_loses_no_digits() -> None:
    # The loss, 1e-8 and less, is what the negatives hold beside the positive: plain float32 rounds it to 0.
    z = torch.eye(40).repeat(2, 1)
    lse, positive, _ = similarity.contrast(z, None, torch.tensor(25.0), *[None] * 4, [0], [1.0], 2, True, False)
    truth = (78 * torch.tensor(-25.0, dtype=torch.float64).exp()).log1p()
    torch.testing.assert_close(torch.nn.functional.softplus(lse - positive[0]), truth.expand(80), rtol=1e-6, atol=0)


def strided(x: Tensor) -> list[Tensor]:
    wide = torch.zeros(x.shape[0], x.shape[1] + 34)
    wide[:, 3 : 3 + x.shape[1]] = x
    return [wide[:, 3 : 3 + x.shape[1]], x.T.contiguous().T, torch.stack([x, x], dim=2)[:, :, 1]]


def test_rows_may_be_strided(isa: str) -> None:
    q, k, *rest = contrast_inputs(replace(CLIP, rows=50, columns=60, dim=30))
    expected = run_contrast(similarity, (q, k, *rest), CLIP)
    for other_q, other_k in zip(strided(q), strided(k), strict=True):
        assert other_q.stride() != q.stride()
        for name, x in run_contrast(similarity, (other_q, other_k, *rest), CLIP).items():
            assert torch.equal(x, expected[name])


def test_gradients_may_be_expanded(isa: str) -> None:
    inputs = contrast_inputs(nt_xent(30, 2, 12))
    expanded, full = (
        run_contrast(similarity, inputs, nt_xent(30, 2, 12), make)
        for make in (lambda *shape: torch.tensor(0.3).expand(shape), lambda *shape: torch.full(shape, 0.3))
    )
    for name, x in expanded.items():
        assert torch.equal(x, full[name])


@pytest.mark.parametrize("temperature", [0.5, 0.01])
@pytest.mark.parametrize("size", [1e-8, 1e15, 1e30])
def test_row_lengths_do_not_matter_where_rows_are_normalised(isa: str, size: float, temperature: float) -> None:
    """Beside the twin on rows of length 1: the loss is the same, a row's gradient goes with its inverse length.

    On the rows as they are plain float32 overflows, and would allow any error.
    """
    case = nt_xent(40, 2, 9, temperature)
    z, _, scale, *none = contrast_inputs(case)
    z[::3] *= size
    length = z.double().norm(dim=1, keepdim=True)
    ours = run_contrast(similarity, (z, None, scale, *none), case)
    ours["grad_q"] = ours["grad_q"].double() * length
    truth, eager = (
        run_contrast(reference, ((z.double() / length).to(dtype), None, scale.to(dtype), *none), case)
        for dtype in (torch.float64, torch.float32)
    )
    for what, mine in ours.items():
        assert_within_contract(mine, truth[what], eager[what], torch.float32, f"{what}, rows of {size}")


@pytest.mark.parametrize("size", [1e-8, 30.0, 1e4])
def test_long_and_short_rows_keep_the_contract(isa: str, size: float) -> None:
    """Not normalised: logits of 1e-8 to 1e9, some rows far beyond the others."""
    case = replace(CLIP, rows=110, columns=120)
    q, k, *rest = contrast_inputs(case)
    q[::7] *= size
    check_contrast(similarity, case, inputs=(q, k, *rest))


@pytest.mark.parametrize("size", [3e3, 2e4])
def test_logits_beyond_all_measure_keep_the_contract(isa: str, size: float) -> None:
    """t = 1e9 has an ulp of 64: the maximum that is subtracted must be of the very same rounded t."""
    case = replace(CLIP, rows=60, columns=60, dim=16)
    q, k, _, *rest = contrast_inputs(case)
    check_contrast(similarity, case, inputs=(q * size, k * size, torch.tensor(14.0), *rest))


@pytest.mark.parametrize("views", [0, 2])
def test_rows_alone_at_a_sharp_temperature_keep_the_contract(isa: str, views: int) -> None:
    """The columns have no term, and t goes far beyond 127."""
    case = replace(CONTRASTS["one side"], rows=64, columns=96, dim=16, normalize=True, views=views, temperature=0.005)
    check_contrast(similarity, case)


@pytest.mark.parametrize("temperature", [0.5, 0.005])
@pytest.mark.parametrize("name", ["NT-Xent", "CLIP", "supervised"])
def test_rows_without_a_gradient_add_nothing(isa: str, name: str, temperature: float) -> None:
    def make(*shape: int) -> Tensor:
        grad = one_sign(*shape)
        grad[..., :2] = 0
        grad[..., 30:50] = 0
        return grad

    case = replace(CONTRASTS[name], rows=64, columns=CONTRASTS[name].columns and 64, temperature=temperature)
    q, *rest = contrast_inputs(case)
    q[1] = q[0] + 1e-3 * q[2]  # two that nearly coincide: t is far above that of all others
    check_contrast(similarity, case, inputs=(q, *rest), grad=make)


@pytest.mark.parametrize("size", [2.0**30, 1e-36, 1e-40])
def test_gradients_of_any_size_keep_the_contract(isa: str, size: float) -> None:
    check_scaled(similarity, nt_xent(40, 2, 9, 0.0251), size, one_sign)


@pytest.mark.parametrize("rows", [1, 8, 130])
def test_few_rows_against_many_columns_and_the_other_way_round(isa: str, rows: int) -> None:
    case = replace(CONTRASTS["CLIP, no positives"], rows=rows, columns=1700, dim=9)
    check_contrast(similarity, case)
    check_contrast(similarity, replace(case, rows=1700, columns=rows))


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-3, -3.0])
def test_any_scale_keeps_the_contract(isa: str, scale: float) -> None:
    q, k, _, *rest = contrast_inputs(replace(CLIP, rows=110, columns=120))
    check_contrast(similarity, CLIP, inputs=(q, k, torch.tensor(scale), *rest))


def test_zero_rows_are_as_in_torch(isa: str) -> None:
    case = replace(nt_xent(30, 2, 8), temperature=0.5)
    z, *rest = contrast_inputs(case)
    z[[3, 33, 40]] = 0
    check_contrast(similarity, case, inputs=(z, *rest))


@pytest.mark.parametrize("precision", ["highest", "medium"], indirect=True)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("temperature", [0.25, 0.015], ids=["bound", "running maximum"])
@pytest.mark.parametrize("row", [0, 130, 199])
def test_nan_travels(isa: str, precision: str, bad: float, temperature: float, row: int) -> None:
    case = nt_xent(100, 2, 20, temperature)
    z, *rest = contrast_inputs(case)
    z[row, 7] = bad
    ours = run_contrast(similarity, (z, *rest), case, lambda *shape: torch.ones(shape))
    # A positive is no part of its row's sum.
    assert (ours["lse"] - ours["positive"][0]).isnan().all()
    assert ours["grad_q"].isnan().all() and ours["grad_scale"].isnan()


@pytest.mark.parametrize("precision", ["highest", "medium"], indirect=True)
@pytest.mark.parametrize(
    "name", ["CLIP", "CLIP, sharp", "CLIP, ids", "limits", "SAME in both directions", "statistics"]
)
def test_nan_travels_through_every_kind_of_term(isa: str, precision: str, name: str) -> None:
    case = replace(CONTRASTS[name], statistics=True)
    q, k, *rest = contrast_inputs(case)
    (q if k is None else k)[11, 3] = torch.nan
    ours, truth = (run_contrast(kernels, (q, k, *rest), case) for kernels in (similarity, reference))
    assert truth["grad_scale"].isnan() and truth["grad_q"].isnan().any()
    for what, x in truth.items():
        assert ours[what].isnan()[x.isnan()].all(), what


def test_nan_travels_through_the_other_operators(isa: str) -> None:
    q, k, *rest = bank_inputs(Bank(rows=30, columns=300, dim=16))
    k[250, 3] = torch.nan
    ours = run_bank(similarity, (q, k, *rest), Bank())
    assert ours["lse"].isnan().all() and ours["mean_key"].isnan().all()
    for count in (1, 4):
        found, index = similarity.neighbours(q, k, count, None, None)
        assert found[:, 0].isnan().all() and (index[:, 0] == 250).all()
    found, index = similarity.neighbours(k, None, 1, None, None)
    assert found.isnan().all() and (index[:250] == 250).all()
    q, k, *rest = sigmoid_inputs(Sigmoid(rows=30, columns=130))
    k[100, 3] = torch.nan
    ours = run_sigmoid(similarity, (q, k, *rest), Sigmoid())
    assert ours["loss"].isnan().all() and ours["grad_q"].isnan().all() and ours["grad_bias"].isnan()
    q, ids = triplets_inputs(Triplets(rows=120))
    q[100, 3] = torch.nan
    assert similarity.triplets(q, ids, 0.2, True, False)[0].isnan().all()
    assert similarity.triplets_backward(torch.ones(120), q, ids, 0.2, True, False).isnan().all()


def test_nan_in_the_gradient_travels(isa: str) -> None:
    case = nt_xent(100, 2, 20)

    def make(*shape: int) -> Tensor:
        grad = torch.ones(shape)
        grad[..., 150] = torch.nan
        return grad

    ours = run_contrast(similarity, contrast_inputs(case), case, make)
    assert ours["grad_q"].isnan().all() and ours["grad_scale"].isnan()


def test_terms_without_a_gradient_add_nothing(isa: str) -> None:
    """Rows without negatives have lse = −∞ and no gradient, whatever comes in for them."""
    case = replace(CONTRASTS["supervised, one id"], rows=120)
    ours = run_contrast(similarity, contrast_inputs(case), case)
    assert (ours["lse"][:120] == -torch.inf).all() and ours["grad_q"].isfinite().all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("isa", [name for name in _cpu.isas() if name != "amx"], indirect=True)
def test_halves_are_read_and_written_as_torch_does(isa: str, dtype: torch.dtype) -> None:
    # Without bfloat16 products either dtype runs the same float32 arithmetic, so the results differ by one rounding.
    case = nt_xent(24, 2, 16, 0.5)
    z, *rest = contrast_inputs(case, dtype)
    for size in (1.0, 1e-6, 1e6):  # float16: normal, subnormal and infinite gradients

        def make(*shape: int, size: float = size) -> Tensor:
            return gradients(*shape) * size

        half, wide = (run_contrast(similarity, (x, *rest), case, make)["grad_q"] for x in (z, z.float()))
        assert torch.equal(half, wide.to(dtype))


def test_ids_of_any_size_are_told_apart() -> None:
    q = embeddings(60, 1, 8)
    ids = torch.arange(60) % 7
    plain = similarity.neighbours(q, None, 3, ids, None)
    for far in (ids << 40, ids - (1 << 62), ids * -(1 << 33)):
        for mine, theirs in zip(similarity.neighbours(q, None, 3, far, None), plain, strict=True):
            assert torch.equal(mine, theirs)


# ---- the process around the kernels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", _cpu.isas())
def test_environment_forces_the_instruction_set(name: str) -> None:
    done = python("from pyssl_fast import _cpu; print(_cpu.isa())", PYSSL_FAST_ISA=name)
    assert done.stdout.strip() == name, done.stderr


def test_unknown_instruction_set_says_what_is_usable() -> None:
    done = python("from pyssl_fast import _cpu; _cpu.isa()", PYSSL_FAST_ISA="mmx")
    assert done.returncode != 0
    assert "'mmx'" in done.stderr and "generic" in done.stderr
    with pytest.raises(ValueError, match=r"usable: .*generic"):
        _cpu.set_isa("mmx")


def test_a_forked_child_does_not_hang() -> None:
    done = python(
        """
import os, torch
from pyssl_fast.functional import nt_xent
torch.set_num_threads(2)
z0, z1 = torch.randn(500, 16), torch.randn(500, 16)
before = nt_xent(z0, z1)
if os.fork() == 0:
    os._exit(0 if torch.equal(nt_xent(z0, z1), before) else 1)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    )
    assert done.stdout.strip() == "0", done.stderr


def test_a_child_forked_after_torch_alone_does_not_hang() -> None:
    done = python(
        """
import os, torch
import pyssl_fast
torch.set_num_threads(2)
torch.randn(600, 600) @ torch.randn(600, 600)
torch.randn(1 << 20).exp()
if os.fork() == 0:
    os._exit(0 if pyssl_fast.functional.nt_xent(torch.randn(500, 16), torch.randn(500, 16)) > 0 else 1)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    )
    assert done.stdout.strip() == "0", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("threads", "limit_mb"), [(2, 32), (64, 48)])
def test_memory_is_linear_in_the_rows(threads: int, limit_mb: float) -> None:
    """S of 8,192 rows would take 268 MB. Gradients, scratch and the concatenated views are counted."""
    done = python(
        f"""
import torch
from pyssl_fast.benchmark.measure import extra_peak_mb
from pyssl_fast.functional import nt_xent
torch.set_num_threads({threads})
z0, z1 = (torch.randn(4096, 128, requires_grad=True) for _ in range(2))
nt_xent(z0[:64], z1[:64]).backward()
z0.grad = z1.grad = None
print(extra_peak_mb(lambda: nt_xent(z0, z1).backward(), torch.device("cpu")))
"""
    )
    assert 12 < float(done.stdout) <= limit_mb, done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_openmp_pool_with_torch() -> None:
    done = python(
        """
import torch
from pyssl_fast.functional import nt_xent
nt_xent(torch.randn(500, 16), torch.randn(500, 16))
print(len({line.split()[-1] for line in open("/proc/self/maps") if "omp" in line and ".so" in line}))
"""
    )
    assert done.stdout.strip() == "1", done.stdout + done.stderr


@pytest.mark.skipif("amx" not in _cpu.isas(), reason="the machine has no AMX")
def test_torchs_tile_products_go_on_working() -> None:
    a, b = torch.randn(256, 256, dtype=torch.bfloat16), torch.randn(256, 256, dtype=torch.bfloat16)
    before = a @ b
    run_contrast(similarity, contrast_inputs(nt_xent(300, 2, 64), torch.bfloat16), nt_xent(300, 2, 64))
    assert torch.equal(a @ b, before)
