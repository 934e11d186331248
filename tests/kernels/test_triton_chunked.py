"""The chunked similarity kernels, run by Triton's interpreter on the CPU, against the float64 twin."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 in the environment: `make test` has a run for it", allow_module_level=True)

from pyssl_fast.kernels.reference import similarity as reference
from pyssl_fast.kernels.reference.similarity import COLUMNS, NEGATIVES, ROWS, SAME
from pyssl_fast.kernels.triton import configs
from pyssl_fast.kernels.triton.configs import Chunks
from pyssl_fast.kernels.triton.similarity import chunked
from tests.kernels import similarity_cases as cases

pytestmark = [
    pytest.mark.triton_interpreter,
    # The interpreter is numpy: what a GPU does silently, it announces.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

SMALL = Chunks(
    rows=24, columns=32, symmetric_rows=24, elements=1, whole_rows=9, tile_m=16, tile_n=16, sweep=32, merge=16,
    merge_parts=2,
)  # fmt: skip
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def small_chunks() -> Iterator[None]:
    with configs.force(SMALL):
        yield


# Half precision has its own paths (a power of two and a radius, lifted weights) and only there are they tried.
EVERY = [pytest.param(dtype, id=str(dtype)[6:]) for dtype in DTYPES]
HALF = {"NT-Xent", "CLIP, sharp", "supervised", "limits", "statistics, everything"}
CONTRASTS = [
    pytest.param(name, dtype, id=f"{name}-{str(dtype)[6:]}")
    for name in cases.CONTRASTS
    for dtype in (DTYPES if name in HALF else DTYPES[:1])
]


@pytest.mark.parametrize(("name", "dtype"), CONTRASTS)
def test_contrast(name: str, dtype: torch.dtype) -> None:
    cases.check_contrast(chunked, cases.CONTRASTS[name], dtype)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(cases.nt_xent(1, 2, 5), id="one pair"),
        pytest.param(cases.nt_xent(2, 2, 1), id="one column of numbers"),
        pytest.param(cases.nt_xent(8, 3, 33), id="one chunk of rows"),
        pytest.param(cases.nt_xent(25, 1 + 1, 16), id="chunk edge + 2"),
        pytest.param(cases.nt_xent(23, 2, 17), id="chunk edge - 2"),
        pytest.param(cases.nt_xent(7, 7, 8), id="seven views"),
        pytest.param(
            cases.Contrast(rows=24, columns=32, terms=cases._CLIP["terms"], powers=(1.0, 1.0)), id="one chunk"
        ),
        pytest.param(
            cases.Contrast(rows=25, columns=33, terms=cases._CLIP["terms"], powers=(1.0, 1.0)), id="edges + 1"
        ),
        pytest.param(
            cases.Contrast(rows=47, columns=63, terms=cases._CLIP["terms"], powers=(1.0, 2.0)), id="edges - 1"
        ),
        pytest.param(cases.Contrast(rows=1, columns=1, views=0), id="one by one"),
        pytest.param(cases.Contrast(rows=3, columns=80, terms=(COLUMNS,), views=0), id="columns alone"),
    ],
)
def test_block_edges(case: cases.Contrast) -> None:
    cases.check_contrast(chunked, case)


def test_as_it_ships() -> None:
    with configs.force(Chunks()):
        cases.check_contrast(chunked, dataclasses.replace(cases.CONTRASTS["CLIP, ids"], rows=70, columns=130))
        cases.check_contrast(chunked, cases.nt_xent(35, 2, 40), torch.bfloat16)
        cases.check_bank(chunked, cases.BANKS["limits and statistics"])
        cases.check_sigmoid(chunked, dataclasses.replace(cases.SIGMOIDS["SigLIP"], rows=70, columns=130))
        cases.check_neighbours(chunked, cases.NEIGHBOURS["five"])
        cases.check_hardest(chunked, cases.TRIPLETS["all"])
        cases.check_triplets(chunked, cases.TRIPLETS["all"])


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
def test_gradients_that_nobody_needs(needs: tuple[bool, bool]) -> None:
    ours = cases.check_contrast(chunked, cases.CONTRASTS["CLIP, more columns"], needs=needs)
    assert [ours["grad_q"].numel() > 0, ours["grad_k"].numel() > 0] == list(needs)


@pytest.mark.parametrize("size", [1e-30, 1e9])
def test_gradients_of_any_size(size: float) -> None:
    # Well-trained batches and loss scales: beyond float16, and beyond float32 once squared.
    cases.check_contrast(chunked, cases.CONTRASTS["NT-Xent"], grad=lambda *shape: size * cases.gradients(*shape))
    # In half precision the results themselves have to fit, so a tenth of that range.
    case = cases.nt_xent(19, 2, 20, temperature=2.0)
    cases.check_contrast(chunked, case, torch.float16, grad=lambda *shape: 2e4 * cases.gradients(*shape))


def test_incoming_gradients_that_are_expanded() -> None:
    cases.check_contrast(
        chunked, cases.CONTRASTS["CLIP"], grad=lambda *shape: torch.tensor(0.5, dtype=torch.float64).expand(shape)
    )


def test_well_trained_batch_keeps_its_digits() -> None:
    # Losses near 1e-7, the difference of log-sum-exp and positive: nothing may be lost in either.
    q = torch.eye(12, 24).repeat(2, 1) + 0.01 * cases.embeddings(12, 2, 24)
    arguments = (None, torch.tensor(20.0), *(None,) * 4, [ROWS], [1.0], 2, True, False)
    loss, truth = (
        torch.nn.functional.softplus(lse - positive[0])
        for lse, positive, _ in (f(x, *arguments) for f, x in ((chunked.contrast, q), (reference.contrast, q.double())))
    )
    assert truth.max() < 1e-6
    assert (loss - truth).abs().max() < 2e-5 * truth.max()


@pytest.mark.parametrize("magnitude", [1e-20, 2e-13, 1e-11, 1e20, 2e37])
def test_large_and_small_rows(magnitude: float) -> None:
    case = cases.nt_xent(9, 2, 20)
    q, *rest = cases.contrast_inputs(case)
    assert q is not None
    q[4] *= magnitude / q[4].abs().max()
    ours = cases.run_contrast(chunked, (q, *rest), case)
    truth = cases.run_contrast(reference, (q.double(), *rest), case)
    assert (ours["lse"] - truth["lse"]).abs().max() < 2e-6 * truth["lse"].abs().max()
    # The rows' gradients differ by as many orders of magnitude as their norms: each by itself.
    for row in (4, 5):
        error = (ours["grad_q"][row] - truth["grad_q"][row]).abs().max()
        assert error < 1e-5 * truth["grad_q"][row].abs().max() + 1e-38


@pytest.mark.parametrize("dtype", EVERY)
@pytest.mark.parametrize("name", cases.BANKS)
def test_bank_contrast(name: str, dtype: torch.dtype) -> None:
    cases.check_bank(chunked, cases.BANKS[name], dtype)


@pytest.mark.parametrize("dtype", EVERY)
@pytest.mark.parametrize("name", cases.SIGMOIDS)
def test_sigmoid_contrast(name: str, dtype: torch.dtype) -> None:
    cases.check_sigmoid(chunked, cases.SIGMOIDS[name], dtype)


@pytest.mark.parametrize("dtype", EVERY)
@pytest.mark.parametrize("name", cases.NEIGHBOURS)
def test_neighbours(name: str, dtype: torch.dtype) -> None:
    cases.check_neighbours(chunked, cases.NEIGHBOURS[name], dtype)


def test_more_neighbours_than_a_program_holds() -> None:
    count = chunked.FUSED_COUNT + 1
    cases.check_neighbours(chunked, cases.Neighbours(rows=25, columns=97, count=count, groups=3))
    cases.check_neighbours(chunked, cases.Neighbours(rows=25, columns=None, count=count))


@pytest.mark.parametrize("count", [4, chunked.FUSED_COUNT + 1])
def test_of_equal_neighbours_the_first(count: int) -> None:
    # Each similarity many times, zeros of both signs among them.
    k = torch.tensor([0.0, -0.0, 1.0, -1.0]).repeat(25)[:, None]
    q = torch.tensor([[1.0], [-1.0], [0.0]])
    similarity, index = chunked.neighbours(q, k, count, None, None)
    expected, at = reference.neighbours(q, k, count, None, None)
    assert torch.equal(index, at) and torch.equal(similarity, expected)


@pytest.mark.parametrize("dtype", EVERY)
@pytest.mark.parametrize("name", cases.TRIPLETS)
def test_hardest(name: str, dtype: torch.dtype) -> None:
    cases.check_hardest(chunked, cases.TRIPLETS[name], dtype)


def test_of_equally_hard_rows_the_first() -> None:
    q, ids = torch.ones(60, 3), torch.arange(60) % 2
    negative, positive = chunked.hardest(q, ids, torch.zeros(60))
    assert negative.tolist() == [1, 0] * 30
    assert positive.tolist() == [2, 3] + [0, 1] * 29


@pytest.mark.parametrize("name", cases.TRIPLETS)
def test_triplets(name: str) -> None:
    cases.check_triplets(chunked, cases.TRIPLETS[name])


@pytest.mark.parametrize("dtype", EVERY[1:])
def test_triplets_in_half_precision(dtype: torch.dtype) -> None:
    cases.check_triplets(chunked, cases.TRIPLETS["semi-hard"], dtype)


def test_triplets_in_several_sweeps() -> None:
    with configs.force(dataclasses.replace(SMALL, sweep=8)):
        cases.check_triplets(chunked, cases.TRIPLETS["semi-hard, cosine"])


class _Watch(TorchDispatchMode):
    """Every operation's name, and its results' largest size in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.names.add(func.overloadpacket.__name__)
            made = [x.nbytes for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
            self.largest = max(self.largest, *made, 0)
        return result


def every_function(q: Tensor, k: Tensor) -> list[Tensor]:
    """The results of all functions on two sets of rows."""
    scale, ids, row = torch.tensor(5.0), torch.arange(len(q)) % 20, torch.ones(len(q))
    rest = ([ROWS | NEGATIVES, ROWS | SAME], [1.0, 1.0], 2, True)
    results = []
    for other, column_ids, terms in ((None, None, rest), (k, ids, ([ROWS, COLUMNS], *rest[1:]))):
        arguments = (q, other, scale, ids, column_ids, None, None)
        lse, positive, statistics = chunked.contrast(*arguments, *terms, True)
        grads = chunked.contrast_backward(lse, positive, *arguments, lse.detach(), *terms, True, other is not None)
        results += [lse, positive, statistics, *grads]
    results += chunked.bank_contrast(q, k, scale, ids, ids, None, *rest[:2], True)
    results += chunked.sigmoid_contrast(q, k, scale, scale, None, None, row, row, True, True, True)
    results += [*chunked.neighbours(q, k, 3, ids, ids), *chunked.neighbours(q, None, 12, None, None)]
    results += [*chunked.hardest(q, ids, row), *chunked.triplets(q, ids, 0.2, True, True)]
    return [*results, chunked.triplets_backward(row, q, ids, 0.2, True, True)]


def test_no_matrix_of_all_pairs_and_no_synchronisation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "FUSED_COUNT", 4)
    q, k = cases.embeddings(64, 2, 6).chunk(2)
    shape = Chunks(rows=16, columns=40, symmetric_rows=16, elements=1, whole_rows=10, tile_m=16, tile_n=64, sweep=64)
    with configs.force(shape), _Watch() as watch:
        every_function(q, k)
    assert watch.largest <= 64 * 64 * 4 // 2
    assert not watch.names & {
        "_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "item", "index", "unique", "_unique2"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "columns", "dim"),
    [(256, 1 << 20, 128), (65536, 65536, 512), (8192, 8192, 4096), (1 << 18, 512, 64), (7, 9, 3)],
)
def test_a_chunk_is_no_larger_than_the_inputs(rows: int, columns: int, dim: int) -> None:
    most = max(1 << 22, (rows + columns) * dim)
    with configs.force(Chunks()):
        for symmetric in (False, True):
            height, width = chunked._chunk_shape(rows, columns, dim, symmetric, False)
            assert 0 < height * width <= most and height <= 4096 and width <= 1 << 15
            assert width == columns or height * width >= min(most // 2, 1 << 22)
        height, width = chunked._chunk_shape(rows, columns, dim, False, True)
        assert width == columns and height * width <= max(256, 2 * dim) * columns


@pytest.mark.parametrize("dtype", EVERY[::2])
def test_nan_comes_out_of_contrast_as_nan(dtype: torch.dtype) -> None:
    q, k = cases.embeddings(30, 2, 8, dtype).chunk(2)
    bad = q.clone()
    bad[26, 5] = torch.nan
    for rows, columns in ((bad, None), (bad, k), (k, bad)):
        arguments = (rows, columns, torch.tensor(5.0), *(None,) * 4)
        terms = [ROWS] if columns is None else [ROWS, COLUMNS]
        rest = (terms, [1.0] * len(terms), 0, True)
        results, truth = (f.contrast(*arguments, *rest, True) for f in (chunked, reference))
        for mine, true in zip(results, truth, strict=True):
            assert torch.equal(mine.isnan(), true.isnan())
        lse, _, statistics = results
        assert lse.isnan().any() and statistics[:2].isnan().any(1).all() and torch.equal(statistics[2], truth[2][2])
        *grads, grad_scale = chunked.contrast_backward(
            torch.ones_like(lse), lse.new_empty(0, 30), *arguments, lse, *rest, True, columns is not None
        )
        assert grads[0].isnan().all() and grad_scale.isnan() and (columns is None or grads[1].isnan().all())


def test_nan_comes_out_as_nan() -> None:
    q, k = cases.embeddings(30, 2, 8).chunk(2)
    bad = q.clone()
    bad[26, 5] = torch.nan
    scale, ids, row = torch.tensor(5.0), torch.arange(30) % 3, torch.ones(30)
    lse, mean_key, statistics = chunked.bank_contrast(k, bad, scale, None, None, None, [ROWS], [1.0], True)
    assert lse.isnan().all() and mean_key.isnan().all()
    assert statistics[:2].isnan().all() and (statistics[2] == 30).all()
    loss, *grads = chunked.sigmoid_contrast(bad, k, scale, scale, None, None, row, row, True, True, True)
    assert loss.isnan().tolist() == [i == 26 for i in range(30)]
    assert grads[0][26].isnan().all() and all(x.isnan().all() for x in grads[1:])
    for count in (3, 70):
        similarity, index = chunked.neighbours(k, bad, count, None, None)
        assert similarity[:, 0].isnan().all() and (index[:, 0] == 26).all() and similarity[:, 1].isfinite().all()
    negative, positive = chunked.hardest(bad, ids, torch.zeros(30))
    assert (negative[ids != 2] == 26).all() and (positive[ids == 2][:-2] == 26).all()
    assert chunked.triplets(bad, ids, 0.2, True, True)[0].isnan().all()
    assert chunked.triplets_backward(row, bad, ids, 0.2, True, True).isnan().any()


def nan_under_limits(kernels: ModuleType, dtype: torch.dtype) -> None:
    """Pairs that are NaN are kept and travel; a limit that is NaN leaves no pair out."""
    q, k = cases.embeddings(24, 2, 20, dtype).chunk(2)
    q, k, scale = q / 5, k / 5, torch.tensor(2.0)
    clean = scale.double() * q.double() @ k.double().T
    limits = cases.limits(clean), cases.limits(clean.T)
    for limit in limits:
        limit[7] = torch.nan
    bad = k.clone()
    bad[20, 3] = torch.nan
    terms, powers = [ROWS, COLUMNS], [1.0, 1.0]
    for other in (k, bad):
        arguments = (q, other, scale, None, None, *limits, terms, powers, 0, False)
        lse, _, (largest, total, count) = kernels.contrast(*arguments, True)
        touched = torch.arange(24) == 20 if other is bad else torch.zeros(24, dtype=torch.bool)
        by_row = torch.full((24,), other is bad)
        kept = [~(scale.double() * q.double() @ other.double().T > limits[0][:, None])]
        kept += [~(scale.double() * other.double() @ q.double().T > limits[1][:, None])]
        for value in (lse, largest, total):
            assert torch.equal(value.isnan(), torch.cat((by_row, touched)))
        assert torch.equal(count, torch.cat([x.sum(1) for x in kept]).double()) and (count[[7, 31]] == 24).all()
        ones = torch.ones_like(lse)
        arguments = (*arguments[:7], lse, *arguments[7:])
        grads = kernels.contrast_backward(ones, ones.new_empty(0, 24), *arguments, True, True)
        assert all(x.isnan().all() == (other is bad) for x in grads)
        arguments = (q, other, scale, None, None, limits[0], [ROWS], [1.0])
        lse, mean_key, (largest, total, count) = kernels.bank_contrast(*arguments, True)
        for value in (lse[0], largest, total, mean_key[0, :, 3]):
            assert torch.equal(value.isnan(), by_row)
        assert torch.equal(count, kept[0].sum(1).double())


@pytest.mark.parametrize("dtype", EVERY)
def test_nan_is_beyond_no_limit(dtype: torch.dtype) -> None:
    nan_under_limits(chunked, dtype)
