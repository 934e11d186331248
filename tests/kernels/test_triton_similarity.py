"""The streamed similarity kernels for GPUs, run by Triton's interpreter on the CPU, against the float64 twin."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 in the environment: `make test` has a run for it", allow_module_level=True)

from pyssl_fast.kernels.reference import similarity as reference
from pyssl_fast.kernels.triton import configs, similarity
from pyssl_fast.kernels.triton.configs import Row, Tile
from pyssl_fast.kernels.triton.similarity import chunked, streamed
from tests.kernels import similarity_cases as cases
from tests.kernels.similarity_cases import Contrast, embeddings, gradients, nt_xent
from tests.kernels.test_triton_chunked import nan_under_limits

pytestmark = [
    pytest.mark.triton_interpreter,
    # The interpreter is numpy: what a GPU does silently, it announces.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

ROW = Row(block_r=16, block_d=16, block=32)
IN_CHUNKS = Tile(16, 32, 16, warps=4, stages=2, block_out=32, programs=3)  # D in chunks, columns split three ways
ONE_CHUNK = Tile(32, 16, 32, warps=4, stages=2, block_out=32, one_chunk=True, programs=1)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
HALVES = DTYPES[1:]
TEMPERATURES = [0.5, 0.1, 0.025, 0.0249, 0.02, 0.005, -0.2, -0.01]  # 1/40 is the last with a constant shift


@pytest.fixture(autouse=True)
def small_tiles() -> Iterator[None]:
    with configs.force(IN_CHUNKS, ROW):
        yield


def run(
    z: Tensor, scale: float, views: int = 2, grad_lse: Tensor | None = None, grad_positive: Tensor | None = None
) -> cases.Results:
    """NT-Xent's terms with given incoming gradients."""
    given = {1: grad_lse, 2: grad_positive}
    return cases.run_contrast(
        streamed,
        (z, None, torch.tensor(scale), None, None, None, None),
        Contrast(views=views),
        grad=lambda *shape: gradients(*shape) if given[len(shape)] is None else given[len(shape)],
    )


# ---- every operator, every case -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cases.CONTRASTS)
def test_contrast(name: str) -> None:
    cases.check_contrast(streamed, cases.CONTRASTS[name])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    "name", ["NT-Xent, three views", "CLIP, more columns", "limits, normalised", "hard negatives, sharp",
             "SAME in both directions", "statistics, everything"],
)  # fmt: skip
def test_contrast_in_half_precision(name: str, dtype: torch.dtype) -> None:
    cases.check_contrast(streamed, cases.CONTRASTS[name], dtype)


@pytest.mark.parametrize("name", ["NT-Xent", "CLIP, sharp", "supervised", "limits"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_contrast_with_all_of_d_in_one_chunk(dtype: torch.dtype, name: str) -> None:
    with configs.force(ONE_CHUNK, ROW):
        cases.check_contrast(streamed, dataclasses.replace(cases.CONTRASTS[name], dim=27), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", cases.BANKS)
def test_bank_contrast(name: str, dtype: torch.dtype) -> None:
    cases.check_bank(streamed, cases.BANKS[name], dtype)


@pytest.mark.parametrize("temperature", [0.1, 0.005])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bank_of_several_tiles_to_a_program(dtype: torch.dtype, temperature: float) -> None:
    cases.check_bank(streamed, cases.Bank(columns=211, temperature=temperature, statistics=True), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", cases.SIGMOIDS)
def test_sigmoid_contrast(name: str, dtype: torch.dtype) -> None:
    cases.check_sigmoid(streamed, cases.SIGMOIDS[name], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name, case in cases.NEIGHBOURS.items() if case.count <= 8])
def test_neighbours(name: str, dtype: torch.dtype) -> None:
    cases.check_neighbours(streamed, cases.NEIGHBOURS[name], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_others_with_all_of_d_in_one_chunk(dtype: torch.dtype) -> None:
    with configs.force(ONE_CHUNK, ROW):
        cases.check_bank(streamed, cases.Bank(dim=32), dtype)
        cases.check_bank(streamed, cases.Bank(dim=29, layout="columns", groups=4), dtype)
        cases.check_sigmoid(streamed, cases.Sigmoid(dim=32, columns=37), dtype)
        cases.check_neighbours(streamed, cases.Neighbours(dim=29, count=3), dtype)


# ---- shapes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "views", "dim"),
    [
        pytest.param(1, 2, 5, id="one pair"),
        pytest.param(1, 3, 7, id="one sample, three views"),
        pytest.param(5, 2, 1, id="ten rows of one column"),
        pytest.param(8, 2, 16, id="one row block, one chunk"),
        pytest.param(15, 2, 15, id="block edges - 2, chunk edge - 1"),
        pytest.param(16, 2, 32, id="row and column block edges"),
        pytest.param(17, 2, 33, id="block edges + 2, chunk edge + 1"),
        pytest.param(33, 2, 47, id="66 rows"),
        pytest.param(11, 3, 32, id="three views, block edge + 1"),
        pytest.param(5, 7, 9, id="seven views"),
        pytest.param(49, 2, 8, id="tiles with one excluded pair, in either corner"),
        pytest.param(21, 3, 8, id="tiles with one column of padding"),
        pytest.param(6, 2, 131, id="few rows, many columns"),
    ],
)
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_shapes(samples: int, views: int, dim: int, temperature: float) -> None:
    cases.check_contrast(streamed, nt_xent(samples, views, dim, temperature))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 40), (15, 16), (16, 31), (17, 33), (32, 32), (33, 65)])
def test_rectangles(rows: int, columns: int) -> None:
    clip = dataclasses.replace(cases.CONTRASTS["CLIP, more columns"], rows=rows, columns=columns, dim=17)
    cases.check_contrast(streamed, clip)
    cases.check_bank(streamed, cases.Bank(rows=rows, columns=columns, dim=17))
    cases.check_sigmoid(streamed, cases.Sigmoid(rows=columns, columns=rows, dim=17))
    cases.check_neighbours(streamed, cases.Neighbours(rows=rows, columns=columns, dim=17, count=2))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_precision_at_every_temperature(dtype: torch.dtype, temperature: float) -> None:
    cases.check_contrast(streamed, nt_xent(17, 2, 20, temperature), dtype)


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_one_side_gets_a_gradient(needs: tuple[bool, bool]) -> None:
    cases.check_contrast(streamed, cases.CONTRASTS["CLIP, more columns"], needs=needs)


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(lambda z: z.t().contiguous().t(), id="column-major"),
        pytest.param(lambda z: torch.cat([z, z], 1)[:, : z.shape[1]], id="wide rows"),
        pytest.param(lambda z: z.repeat_interleave(2, 1)[:, ::2], id="every second column"),
        pytest.param(lambda z: z[:1].expand(z.shape), id="one row, expanded"),
    ],
)
@pytest.mark.parametrize("normalize", [True, False])
def test_strides(layout: Callable[[Tensor], Tensor], normalize: bool) -> None:
    case = Contrast(normalize=normalize)
    z = layout(embeddings(16, 2, 32))
    rest = (None, torch.tensor(2.0), None, None, None, None)
    ours, dense = (cases.run_contrast(streamed, (x, *rest), case) for x in (z, z.contiguous()))
    assert ours["grad_q"].is_contiguous()
    for name, value in ours.items():
        assert torch.equal(value, dense[name]), name


# ---- numerics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_well_trained_batch_keeps_its_digits(dtype: torch.dtype) -> None:
    # InfoNCE near 1e-7: eager has no digit left of it, the float64 twin nine. So no allowance for eager here. Weights
    # are as small; what comes in brings the gradient back into half precision's range.
    z = (torch.eye(12, 24).repeat(2, 1) + 0.01 * embeddings(12, 2, 24)).to(dtype)

    def loss_and_gradient(kernels, z: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        inputs = (z, None, torch.tensor(20.0).to(torch.promote_types(z.dtype, torch.float32)), *(None,) * 4)
        lse, positive, _ = kernels.contrast(*inputs, [0], [1.0], 2, True, False)
        grad = 1e4 * gradients(24).abs() * torch.sigmoid(lse - positive[0])
        grads = kernels.contrast_backward(grad, -grad[None], *inputs, lse, [0], [1.0], 2, True, True, False)
        return torch.nn.functional.softplus(lse - positive[0]), grads[0]

    ours, truth = loss_and_gradient(streamed, z), loss_and_gradient(reference, z.double())
    assert truth[0].max() < 1e-6
    tolerance = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    for mine, true, allowed in zip(ours, truth, (2e-5, tolerance), strict=True):
        assert (mine - true).abs().max() <= allowed * true.abs().max()


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e8])
def test_gradients_far_outside_half_precision(size: float) -> None:
    # Brought back above half precision's smallest number only by 1 / ‖z‖, or below its largest.
    z = (
        (embeddings(9, 2, 20) / min(1e4, max(1e-4, 1 / size))).half()
        if size > 1
        else (2e-4 * embeddings(9, 2, 20)).half()
    )
    mine, true = (
        cases.run_contrast(
            kernels, (x, None, torch.tensor(10.0).to(scale), *(None,) * 4), Contrast(),
            grad=lambda *shape: size * gradients(*shape),
        )["grad_scale"]
        for kernels, x, scale in ((streamed, z, torch.float32), (reference, z.double(), torch.float64))
    )  # fmt: skip
    assert (mine - true).abs() <= 2e-3 * true.abs()


@pytest.mark.parametrize("magnitude", [1e-20, 2e-13, 1e-11, 1e20, 2e37])
def test_large_and_small_rows(magnitude: float) -> None:
    z = embeddings(9, 2, 20)
    z[4] *= magnitude / z[4].abs().max()
    case = Contrast()
    ours, truth = (
        cases.run_contrast(kernels, (x, None, torch.tensor(10.0).to(x.dtype), *(None,) * 4), case)
        for kernels, x in ((streamed, z), (reference, z.double()))
    )
    assert (ours["lse"] - truth["lse"]).abs().max() < 2e-6 * truth["lse"].abs().max()
    # The rows' gradients differ by as many orders of magnitude as their norms: each by itself.
    for row in (4, 5):
        mine, true = ours["grad_q"][row], truth["grad_q"][row]
        assert (mine - true).abs().max() < 1e-5 * true.abs().max() + 1e-38


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_rows_are_torchs(dtype: torch.dtype) -> None:
    z = embeddings(9, 2, 20, dtype)
    z[3] = 0
    ours, truth = (
        cases.run_contrast(
            kernels,
            (x, None, torch.tensor(5.0).to(torch.promote_types(x.dtype, torch.float32)), *(None,) * 4),
            Contrast(),
        )
        for kernels, x in ((streamed, z), (reference, z.double()))
    )
    assert (ours["lse"] - truth["lse"]).abs().max() < 1e-5
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    true = truth["grad_q"].to(dtype).double()  # 1e12 times too large for half precision: infinite there, as torch's
    for row in (3, 4):
        finite = true[row].isfinite()
        assert torch.equal(ours["grad_q"][row].isfinite(), finite)
        error = (ours["grad_q"][row] - true[row])[finite].abs().sum()
        assert error <= tolerance * true[row][finite].abs().sum()


@pytest.mark.parametrize("scale", [10.0, 200.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_inf_come_out_as_nan(dtype: torch.dtype, bad: float, scale: float) -> None:
    for row in (0, 39):
        z = embeddings(20, 2, 20, dtype)
        z[row, 7] = bad
        result = run(z, scale)
        bystander = torch.arange(40) == (row + 20) % 40  # its positive is no negative
        assert torch.equal(result["lse"].isnan(), ~bystander)
        assert torch.equal(result["positive"][0].isnan(), bystander | (torch.arange(40) == row))
        assert result["grad_q"].isnan().all() and result["grad_scale"].isnan()


def test_nan_in_scale_and_gradient() -> None:
    z, bad = embeddings(20, 2, 20), gradients(40)
    bad[11] = float("nan")
    result = run(z, float("nan"))
    assert all(result[name].isnan().all() for name in ("lse", "positive", "grad_q", "grad_scale"))
    result = run(z, 10.0, grad_lse=bad)
    assert result["lse"].isfinite().all() and result["grad_q"].isnan().all() and result["grad_scale"].isnan()
    result = run(z, 10.0, grad_positive=bad[None])
    assert result["grad_q"][11].isnan().all() and result["grad_q"][31].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_in_the_other_operators(dtype: torch.dtype) -> None:
    for case in (cases.Bank(statistics=True), cases.Bank(groups=5, statistics=True)):
        q, k, *rest = cases.bank_inputs(case, dtype)
        k = k.clone()
        k[50, 3] = float("nan")
        results = cases.run_bank(streamed, (q, k, *rest), case)
        touched = torch.ones(len(q), dtype=torch.bool) if rest[1] is None else rest[1] != rest[2][50]
        for name in ("lse", "largest", "total"):
            assert torch.equal(results[name].isnan().reshape(-1), touched), name
    q, k, *rest = cases.sigmoid_inputs(cases.Sigmoid(), dtype)
    k = k.clone()
    k[20, 3] = float("nan")
    results = cases.run_sigmoid(streamed, (q, k, *rest), cases.Sigmoid())
    assert results["loss"].isnan().all() and results["grad_q"].isnan().all() and results["grad_k"][20].isnan().all()
    assert results["grad_scale"].isnan() and results["grad_bias"].isnan()
    q, k, *rest = cases.neighbours_inputs(cases.Neighbours(count=2), dtype)
    k = k.clone()
    k[20, 3] = float("nan")
    value, index = streamed.neighbours(q, k, *rest)
    assert value[:, 0].isnan().all() and (index[:, 0] == 20).all() and value[:, 1].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_is_beyond_no_limit(dtype: torch.dtype) -> None:
    nan_under_limits(streamed, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_comes_out_of_statistics_as_nan(dtype: torch.dtype) -> None:
    q, k = embeddings(30, 2, 8, dtype).chunk(2)
    bad = q.clone()
    bad[26, 5] = float("nan")
    for rows, columns in ((bad, None), (bad, k), (k, bad)):
        terms = [0] if columns is None else [0, cases.COLUMNS]
        arguments = (rows, columns, torch.tensor(5.0), *(None,) * 4, terms, [1.0] * len(terms), 0, True, True)
        mine, true = streamed.contrast(*arguments), reference.contrast(*arguments)
        for ours, truth in zip(mine, true, strict=True):
            assert torch.equal(ours.isnan(), truth.isnan())
        assert mine[2][:2].isnan().any(1).all() and torch.equal(mine[2][2], true[2][2])


def test_zero_gradient_gives_zero() -> None:
    result = run(
        embeddings(9, 2, 20), 10.0, grad_lse=torch.zeros(18).double(), grad_positive=torch.zeros(1, 18).double()
    )
    assert not result["grad_q"].any() and not result["grad_scale"].any()


def test_stride_zero_gradient() -> None:
    one = torch.tensor(0.3, dtype=torch.float64)
    cases.check_contrast(streamed, Contrast(), grad=lambda *shape: one.expand(shape))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_every_run(dtype: torch.dtype) -> None:
    def everything() -> list[Tensor]:
        clip, bank, sigmoid = cases.CONTRASTS["limits, normalised"], cases.Bank(), cases.Sigmoid()
        results = [
            cases.run_contrast(streamed, cases.contrast_inputs(clip, dtype), clip),
            cases.run_bank(streamed, cases.bank_inputs(bank, dtype), bank),
            cases.run_sigmoid(streamed, cases.sigmoid_inputs(sigmoid, dtype), sigmoid),
        ]
        return [value for result in results for value in result.values()]

    for first, second in zip(everything(), everything(), strict=True):
        assert torch.equal(first, second)


def test_split_columns_agree() -> None:
    # Which program takes which columns changes the order of the sums, no more.
    results = []
    for programs in (1, 7, 100):
        with configs.force(Tile(16, 16, 16, 4, 2, 32, programs=programs), ROW):
            bank, near = cases.Bank(columns=99), cases.Neighbours(columns=99, count=3)
            found = cases.run_bank(streamed, cases.bank_inputs(bank), bank)
            found["index"] = streamed.neighbours(*cases.neighbours_inputs(near))[1]
            results.append({**run(embeddings(33, 2, 20), 100.0), **{f"bank's {n}": x for n, x in found.items()}})
    for other in results[1:]:
        for name, value in results[0].items():
            assert value.numel() == 0 or (other[name] - value).abs().max() <= 2e-6 * value.abs().max(), name


def test_equal_similarities_give_the_first() -> None:
    k = torch.ones(70, 8)
    k[5] *= 2
    _, index = streamed.neighbours(torch.ones(3, 8), k, 4, None, None)
    assert index.tolist() == [[5, 0, 1, 2]] * 3


def _to_tf32(x: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.02, 0.005])
def test_three_tf32_products_keep_the_contract(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # The interpreter multiplies in float32 whatever precision is asked for. Round as the matrix units do.
    from triton.runtime import interpreter

    asked = []

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):  # type: ignore[no-untyped-def]
        asked.append(input_precision)
        a_high, b_high = _to_tf32(a.data), _to_tf32(b.data)
        a_low, b_low = _to_tf32(a.data - a_high), _to_tf32(b.data - b_high)
        product = (a_low @ b_high + a_high @ b_low) + a_high @ b_high
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
    cases.check_contrast(streamed, nt_xent(24, 2, 64, temperature))
    cases.check_bank(streamed, cases.Bank(dim=64, temperature=temperature))
    cases.check_sigmoid(streamed, cases.Sigmoid(dim=64, scale=1 / temperature))
    assert asked and {str(p).rpartition(".")[2] for p in asked} == {"TF32x3"}


# ---- which form runs ------------------------------------------------------------------------------------------------


def test_precision_follows_torch() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        for setting, kind in (("highest", "tf32x3"), ("high", "tf32"), ("medium", "tf32")):
            torch.set_float32_matmul_precision(setting)
            assert configs.kind(torch.float32) == kind
    finally:
        torch.set_float32_matmul_precision(before)


def test_form_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "_forced", {})
    for dim, dtype, sums, rows in (
        (128, torch.bfloat16, True, True),
        (256, torch.float16, True, True),
        (257, torch.float16, True, False),
        (1025, torch.bfloat16, False, False),
        (4096, torch.float32, True, False),
    ):
        q = torch.empty(2, dim, dtype=dtype)
        assert (configs.streamed(q, False), configs.streamed(q, True)) == (sums, rows)


def test_the_public_functions_pass_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("contrast", "contrast_backward", "bank_contrast", "sigmoid_contrast", "neighbours", "hardest", "triplets",
             "triplets_backward")  # fmt: skip
    seen: list[tuple[str, str, tuple[object, ...]]] = []
    for form in (streamed, chunked):
        for name in names:
            label = form.__name__.rpartition(".")[2]
            monkeypatch.setattr(
                form, name, lambda *a, label=label, name=name: seen.append((label, name, a)), raising=False
            )
    q, wide = torch.zeros(2, 8), torch.zeros(2, 5000)
    monkeypatch.setattr(configs, "_forced", {})
    arguments = {"contrast": 12, "contrast_backward": 16, "bank_contrast": 9, "sigmoid_contrast": 11}
    for name, count in arguments.items():
        at = 2 if name == "contrast_backward" else 0
        for x in (q, wide.half()):
            given = tuple(x if n == at else n for n in range(count))
            getattr(similarity, name)(*given)
            form, called, passed = seen.pop()
            assert (form, called) == ("streamed" if x is q else "chunked", name)
            assert all(a is b for a, b in zip(passed, given, strict=True))
    for x, count, expected in ((q, 8, "streamed"), (q, 9, "chunked"), (wide.half(), 1, "chunked")):
        similarity.neighbours(x, None, count, None, None)
        assert seen.pop()[0] == expected
    similarity.hardest(q, 1, 2)  # type: ignore[arg-type]
    assert seen.pop() == ("chunked", "hardest", (q, 1, 2))
    similarity.triplets(q, 1, 0.5, True, False)  # type: ignore[arg-type]
    assert seen.pop() == ("chunked", "triplets", (q, 1, 0.5, True, False))
    similarity.triplets_backward(1, q, 2, 0.5, True, False)  # type: ignore[arg-type]
    assert seen.pop() == ("chunked", "triplets_backward", (1, q, 2, 0.5, True, False))
