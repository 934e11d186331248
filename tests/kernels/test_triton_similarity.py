"""The similarity kernels for GPUs, run by Triton's interpreter on the CPU, against the float64 twin."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="torch comes without Triton on this platform")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 in the environment: `make test` has a run for it", allow_module_level=True)

from pyssl_fast.kernels.triton import configs, similarity
from pyssl_fast.kernels.triton.configs import Row, Tile
from tests.kernels.nt_xent_cases import assert_like_the_twin, embeddings, gradients, run, twin

pytestmark = [
    pytest.mark.triton_interpreter,
    # The interpreter is numpy: what a GPU does silently, it announces.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

ROW = Row(block_r=16, block_d=16, block=32, block_reduce=2)
CHUNKED = Tile(16, 32, 16, warps=4, stages=2, block_out=32, programs=3)  # D in chunks, columns split three ways
ONE_CHUNK = Tile(32, 16, 32, warps=4, stages=2, block_out=32, one_chunk=True, programs=1)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TEMPERATURES = [0.5, 0.1, 0.025, 0.0249, 0.02, 0.005, -0.2, -0.01]  # 1/40 is the last with a constant shift


@pytest.fixture(autouse=True)
def small_tiles() -> Iterator[None]:
    with configs.force(CHUNKED, ROW):
        yield


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_precision_at_every_temperature(dtype: torch.dtype, temperature: float) -> None:
    assert_like_the_twin(similarity, embeddings(19, 2, 20, dtype), temperature, 2)


@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_columns_in_one_chunk(dtype: torch.dtype, temperature: float) -> None:
    with configs.force(ONE_CHUNK, ROW):
        assert_like_the_twin(similarity, embeddings(19, 3, 27, dtype), temperature, 3)


@pytest.mark.parametrize(
    ("samples", "views", "dim"),
    [
        pytest.param(1, 2, 5, id="one pair"),
        pytest.param(1, 3, 7, id="one sample, three views"),
        pytest.param(2, 2, 1, id="one column"),
        pytest.param(5, 2, 1, id="ten rows of one column"),
        pytest.param(8, 2, 16, id="one row block, one chunk"),
        pytest.param(15, 2, 15, id="block edges - 2, chunk edge - 1"),
        pytest.param(16, 2, 32, id="row and column block edges"),
        pytest.param(17, 2, 33, id="block edges + 2, chunk edge + 1"),
        pytest.param(31, 2, 31, id="62 rows"),
        pytest.param(33, 2, 47, id="66 rows"),
        pytest.param(11, 3, 32, id="three views, block edge + 1"),
        pytest.param(21, 3, 17, id="three views, block edge - 1"),
        pytest.param(5, 7, 9, id="seven views"),
        pytest.param(49, 2, 8, id="tiles with one excluded pair, in either corner"),
        pytest.param(53, 3, 8, id="tiles with one column of padding"),
        pytest.param(6, 2, 131, id="few rows, many columns"),
    ],
)
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_shapes(samples: int, views: int, dim: int, temperature: float) -> None:
    assert_like_the_twin(similarity, embeddings(samples, views, dim), temperature, views)


def test_a_single_pair_costs_nothing() -> None:
    z = embeddings(1, 2, 6)
    for scale in (10.0, 200.0):
        nll, grad_z, grad_scale = run(similarity, z, torch.tensor(scale), 2, torch.ones(2))
        assert nll.tolist() == [0.0, 0.0]
        assert not grad_z.any() and not grad_scale.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_well_trained_batch_keeps_its_digits(dtype: torch.dtype) -> None:
    # Losses near 1e-7: eager has no digit left of them, the float64 twin nine. So no allowance for eager here. Weights
    # are as small; grad_nll brings the gradient back into half precision's range.
    z = (torch.eye(12, 24).repeat(2, 1) + 0.01 * embeddings(12, 2, 24)).to(dtype)
    scale, grad_nll = torch.tensor(20.0), 1e4 * gradients(24).abs()
    ours = run(similarity, z, scale, 2, grad_nll)
    truth = twin(z, scale, 2, grad_nll, torch.float64)
    assert truth[0].max() < 1e-6
    tolerance = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    for mine, true, allowed in zip(ours, truth, (2e-5, tolerance, tolerance), strict=True):
        assert (mine - true).abs().max() <= allowed * true.abs().max()


def test_half_precision_weights_below_its_range() -> None:
    # Weights near 1e-12, brought back above half precision's smallest number only by 1 / ‖z‖.
    z = (2.0**-13 * (torch.eye(12, 24).repeat(2, 1) + 0.01 * embeddings(12, 2, 24))).half()
    scale, grad_nll = torch.tensor(20.0), 1e-3 * gradients(24).abs()
    _, grad_z, _ = run(similarity, z, scale, 2, grad_nll)
    truth = twin(z, scale, 2, grad_nll, torch.float64)[1]
    assert (grad_z - truth).abs().max() <= 1.5e-2 * truth.abs().max()


@pytest.mark.parametrize("magnitude", [1e-20, 2e-13, 1e-11, 1e20, 2e37])
def test_large_and_small_rows(magnitude: float) -> None:
    z = embeddings(9, 2, 20)
    z[4] *= magnitude / z[4].abs().max()
    scale, grad_nll = torch.tensor(10.0), gradients(18)
    ours = run(similarity, z, scale, 2, grad_nll)
    truth = twin(z, scale, 2, grad_nll, torch.float64)
    assert (ours[0] - truth[0]).abs().max() < 2e-6 * truth[0].abs().max()
    # The rows' gradients differ by as many orders of magnitude as their norms: each by itself.
    for row in (4, 5):
        assert (ours[1][row] - truth[1][row]).abs().max() < 1e-5 * truth[1][row].abs().max() + 1e-38


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_rows_are_torchs(dtype: torch.dtype) -> None:
    z = embeddings(9, 2, 20, dtype)
    z[3] = 0
    scale, grad_nll = torch.tensor(5.0), gradients(18)
    nll, grad_z, _ = run(similarity, z, scale, 2, grad_nll)
    true_nll, true_z, _ = twin(z, scale, 2, grad_nll, torch.float64)
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    assert (nll - true_nll).abs().max() < 1e-5
    true_z = true_z.to(dtype).double()  # 1e12 times too large for half precision: infinite there, as torch's
    for row in (3, 4):
        finite = true_z[row].isfinite()
        assert torch.equal(grad_z[row].isfinite(), finite)
        assert (grad_z[row] - true_z[row])[finite].abs().sum() <= tolerance * true_z[row][finite].abs().sum()


@pytest.mark.parametrize("scale", [10.0, 200.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_inf_come_out_as_nan(dtype: torch.dtype, bad: float, scale: float) -> None:
    for row in (0, 39):
        z = embeddings(20, 2, 20, dtype)
        z[row, 7] = bad
        nll, grad_z, grad_scale = run(similarity, z, torch.tensor(scale), 2, gradients(40))
        assert nll.isnan().all() and grad_z.isnan().all() and grad_scale.isnan()


def test_nan_in_scale_and_gradient() -> None:
    z = embeddings(20, 2, 20)
    nll, grad_z, grad_scale = run(similarity, z, torch.tensor(float("nan")), 2, gradients(40))
    assert nll.isnan().all() and grad_z.isnan().all() and grad_scale.isnan()
    grad_nll = gradients(40)
    grad_nll[11] = float("nan")
    nll, grad_z, grad_scale = run(similarity, z, torch.tensor(10.0), 2, grad_nll)
    assert nll.isfinite().all() and grad_z.isnan().all() and grad_scale.isnan()


def test_zero_gradient_gives_zero() -> None:
    _, grad_z, grad_scale = run(similarity, embeddings(9, 2, 20), torch.tensor(10.0), 2, torch.zeros(18))
    assert not grad_z.any() and not grad_scale.any()


@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_stride_zero_gradient(temperature: float) -> None:
    assert_like_the_twin(similarity, embeddings(19, 2, 20), temperature, 2, torch.tensor(0.3).expand(38))


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(lambda z: z.t().contiguous().t(), id="column-major"),
        pytest.param(lambda z: torch.cat([z, z], 1)[:, : z.shape[1]], id="wide rows"),
        pytest.param(lambda z: z.repeat_interleave(2, 1)[:, ::2], id="every second column"),
        pytest.param(lambda z: z[:1].expand(z.shape), id="one row, expanded"),
    ],
)
def test_strides(layout: Callable[[Tensor], Tensor]) -> None:
    z = layout(embeddings(19, 2, 20))
    ours = run(similarity, z, torch.tensor(10.0), 2, gradients(38))
    dense = run(similarity, z.contiguous(), torch.tensor(10.0), 2, gradients(38))
    assert ours[1].is_contiguous()
    for mine, theirs in zip(ours, dense, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_every_run(dtype: torch.dtype) -> None:
    z = embeddings(19, 2, 20, dtype)
    once, again = (run(similarity, z, torch.tensor(10.0), 2, gradients(38)) for _ in range(2))
    for first, second in zip(once, again, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("scale", [10.0, 200.0])
def test_what_forward_saves(scale: float, views: int) -> None:
    z = embeddings(13, views, 20)
    _, shift, negative_sum = similarity.nt_xent(z, torch.tensor(scale), views)
    u = torch.nn.functional.normalize(z.double(), dim=1)
    s = scale * u @ u.T
    row = torch.arange(13 * views)
    excluded = (row[:, None] - row[None, :]) % 13 == 0
    truth = (s - shift.double()[:, None]).exp().masked_fill(excluded, 0).sum(1)
    assert (negative_sum - truth).abs().max() < 1e-4 * truth.abs().max()
    if scale <= 40:
        assert (shift == scale).all()
    else:
        largest = s.fill_diagonal_(-torch.inf).amax(1)
        assert (shift - largest).abs().max() < 1e-4


def test_split_columns_agree() -> None:
    # Which program takes which columns changes the order of the sums, no more.
    z = embeddings(33, 2, 20)
    results = []
    for programs in (1, 7, 100):
        with configs.force(Tile(16, 16, 16, 4, 2, 32, programs=programs), ROW):
            results.append(run(similarity, z, torch.tensor(100.0), 2, gradients(66)))
    for other in results[1:]:
        for mine, theirs in zip(other, results[0], strict=True):
            assert (mine - theirs).abs().max() <= 2e-6 * theirs.abs().max()


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
    assert_like_the_twin(similarity, embeddings(24, 2, 64), temperature, 2)
    assert asked and {str(p).rpartition(".")[2] for p in asked} == {"TF32x3"}


def test_precision_follows_torch() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        for setting, kind in (("highest", "tf32x3"), ("high", "tf32"), ("medium", "tf32")):
            torch.set_float32_matmul_precision(setting)
            assert configs.kind(torch.float32) == kind
    finally:
        torch.set_float32_matmul_precision(before)
