"""The streamed similarity kernels on a real GPU, as they ship: every precision, the tiles' edges, and large sizes."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch

from pyssl_fast.kernels.triton import configs
from pyssl_fast.kernels.triton.similarity import streamed
from tests.kernels import similarity_cases as cases
from tests.kernels.similarity_cases import COLUMNS, ROWS, Contrast, embeddings, gradients, nt_xent

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted"),
]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
DEPTHS = [20, 64, 65, 128, 129, 300]  # both sides of every table's edges


@pytest.mark.parametrize("dim", DEPTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", cases.CONTRASTS)
def test_contrast(name: str, dtype: torch.dtype, dim: int) -> None:
    cases.check_contrast(streamed, dataclasses.replace(cases.CONTRASTS[name], dim=dim), dtype, "cuda")


@pytest.mark.parametrize("dim", DEPTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", cases.BANKS)
def test_bank_contrast(name: str, dtype: torch.dtype, dim: int) -> None:
    cases.check_bank(streamed, dataclasses.replace(cases.BANKS[name], dim=dim), dtype, "cuda")


@pytest.mark.parametrize("dim", DEPTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", cases.SIGMOIDS)
def test_sigmoid_contrast(name: str, dtype: torch.dtype, dim: int) -> None:
    cases.check_sigmoid(streamed, dataclasses.replace(cases.SIGMOIDS[name], dim=dim), dtype, "cuda")


@pytest.mark.parametrize("dim", DEPTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "name", [n for n, case in cases.NEIGHBOURS.items() if case.count <= configs.NEIGHBOURS_AT_MOST]
)
def test_neighbours(name: str, dtype: torch.dtype, dim: int) -> None:
    cases.check_neighbours(streamed, dataclasses.replace(cases.NEIGHBOURS[name], dim=dim), dtype, "cuda")


@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.025, 0.02, 0.005, -0.2, -0.01])
@pytest.mark.parametrize("dim", [1, 33, 64, 128, 512, 1000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_precision_depth_and_temperature(dtype: torch.dtype, dim: int, temperature: float) -> None:
    cases.check_contrast(streamed, nt_xent(333, 2, dim, temperature), dtype, "cuda")


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1024])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_block_edges(dtype: torch.dtype, rows: int) -> None:
    for views in (2, 3):
        cases.check_contrast(streamed, nt_xent(rows, views, 96), dtype, "cuda")
    clip = dataclasses.replace(cases.CONTRASTS["CLIP, more columns"], rows=rows, columns=rows + 1, dim=96)
    cases.check_contrast(streamed, clip, dtype, "cuda")
    cases.check_bank(streamed, cases.Bank(rows=rows, columns=2 * rows + 1, dim=96), dtype, "cuda")
    cases.check_sigmoid(streamed, cases.Sigmoid(rows=rows, columns=rows + 1, dim=96), dtype, "cuda")
    cases.check_neighbours(streamed, cases.Neighbours(rows=rows, columns=3 * rows, dim=96, count=4), dtype, "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_every_run(dtype: torch.dtype) -> None:
    clip = dataclasses.replace(cases.CONTRASTS["limits, normalised"], rows=500, columns=700, dim=128)
    inputs = [None if x is None else x.cuda() for x in cases.contrast_inputs(clip, dtype)]
    once, again = (cases.run_contrast(streamed, tuple(inputs), clip) for _ in range(2))
    for name, value in once.items():
        assert torch.equal(value, again[name]), name


@pytest.mark.parametrize("scale", [10.0, 200.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_comes_out_as_nan(dtype: torch.dtype, scale: float) -> None:
    z = embeddings(500, 2, 128, dtype).cuda()
    z[777, 5] = float("nan")
    inputs = (z, None, torch.tensor(scale, device="cuda"), *(None,) * 4)
    result = cases.run_contrast(streamed, inputs, Contrast())
    assert result["lse"].isnan().sum() == 999  # row 277 has it as its positive
    assert result["grad_q"].isnan().all() and result["grad_scale"].isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_is_linear_in_the_batch(dtype: torch.dtype) -> None:
    z = embeddings(32768, 2, 128, dtype).cuda()
    inputs = (z, None, torch.tensor(10.0, device="cuda"), *(None,) * 4)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = cases.run_contrast(streamed, inputs, Contrast())
    torch.cuda.synchronize()
    assert all(x.isfinite().all() for x in result.values())
    assert torch.cuda.max_memory_allocated() - before <= 256 << 20  # the similarities alone would be 16 GiB


def test_no_keys_are_copied() -> None:
    queue = torch.nn.functional.normalize(torch.randn(128, 1 << 20, device="cuda"), dim=0).bfloat16()
    q = torch.nn.functional.normalize(torch.randn(256, 128, device="cuda"), dim=1).bfloat16()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    scale = torch.tensor(14.0, device="cuda")
    lse, mean_key, _ = streamed.bank_contrast(q, queue.T, scale, None, None, None, [ROWS], [1.0], False)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before <= 64 << 20  # the keys are 256 MiB
    t = 14 * q.double() @ queue.double()
    assert (lse[0] - t.logsumexp(1)).abs().max() < 1e-4
    truth = t.softmax(1) @ queue.double().T
    assert (mean_key[0] - truth).abs().max() < 1e-2 * truth.abs().max()


def test_offsets_beyond_two_to_the_31() -> None:
    # u, its gradient and z have more than 2^31 elements each; the last rows' gradients are checked by themselves.
    samples, dim = 1050, 1 << 20
    if torch.cuda.get_device_properties(0).total_memory < 70 << 30:
        pytest.skip("needs 70 GiB of GPU memory")
    z = torch.randn(2 * samples, dim, device="cuda")
    inputs = (z, None, torch.tensor(10.0, device="cuda"), *(None,) * 4)
    lse, positive, _ = streamed.contrast(*inputs, [ROWS], [1.0], 2, True, False)
    one = torch.ones(2 * samples, dtype=torch.float64, device="cuda")
    grad_z = streamed.contrast_backward(one, -one[None], *inputs, lse, [ROWS], [1.0], 2, True, True, False)[0]
    u = torch.nn.functional.normalize(z, dim=1)
    s = (10 * u @ u.T).fill_diagonal_(-torch.inf)
    row = torch.arange(2 * samples, device="cuda")
    partner = row.roll(samples)
    assert (positive[0] - s.gather(1, partner[:, None])[:, 0]).abs().max() < 1e-4
    s[row, partner] = -torch.inf
    assert (lse - s.logsumexp(1)).abs().max() < 1e-4
    p = s.softmax(1)
    weight = p + p.T
    weight[row, partner] -= 2
    for i in (0, samples, 2 * samples - 1):
        gradient = 10 * weight[i].nan_to_num() @ u
        truth = (gradient - u[i] * (u[i] @ gradient)) / z[i].norm()
        assert (grad_z[i] - truth).abs().max() < 1e-4 * truth.abs().max()


def test_both_directions_of_a_large_batch() -> None:
    u, v = torch.nn.functional.normalize(torch.randn(2, 8192, 512, device="cuda"), dim=2)
    scale = torch.tensor(100.0, device="cuda")
    inputs = (u, v, scale, *(None,) * 4)
    lse, positive, _ = streamed.contrast(*inputs, [ROWS, COLUMNS], [1.0, 1.0], 2, False, False)
    t = (100 * u.double() @ v.double().T).fill_diagonal_(-torch.inf)
    assert (lse - torch.cat((t.logsumexp(1), t.logsumexp(0)))).abs().max() < 1e-4
    assert (positive[0] - 100 * (u.double() * v.double()).sum(1)).abs().max() < 1e-4
    grad = gradients(16384).cuda()
    grads = streamed.contrast_backward(
        grad, torch.zeros_like(positive), *inputs, lse, [ROWS, COLUMNS], [1.0, 1.0], 2, False, True, True
    )
    w = t.softmax(1) * grad[:8192, None] + t.softmax(0) * grad[8192:]
    for mine, truth in zip(grads, (100 * w @ v.double(), 100 * w.T @ u.double()), strict=False):
        assert (mine - truth).abs().max() < 1e-4 * truth.abs().max()
