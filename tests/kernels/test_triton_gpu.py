"""The similarity kernels on a real GPU, as they ship: every precision, the tiles' edges, and large sizes."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton", reason="torch comes without Triton on this platform")

from pyssl_fast.kernels.triton import similarity
from tests.kernels.nt_xent_cases import assert_like_the_twin, embeddings, gradients, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted"),
]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.025, 0.02, 0.005, -0.2, -0.01])
@pytest.mark.parametrize("dim", [1, 33, 64, 65, 128, 129, 512, 1000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_precision_depth_and_temperature(dtype: torch.dtype, dim: int, temperature: float) -> None:
    assert_like_the_twin(similarity, embeddings(333, 2, dim, dtype).cuda(), temperature, 2)


@pytest.mark.parametrize("samples", [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1024])
@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_block_edges(dtype: torch.dtype, views: int, samples: int) -> None:
    assert_like_the_twin(similarity, embeddings(samples, views, 96, dtype).cuda(), 0.1, views)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_every_run(dtype: torch.dtype) -> None:
    z, scale = embeddings(2048, 2, 128, dtype).cuda(), torch.tensor(10.0, device="cuda")
    grad_nll = gradients(4096).cuda()
    once, again = (run(similarity, z, scale, 2, grad_nll) for _ in range(2))
    for first, second in zip(once, again, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("scale", [10.0, 200.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_comes_out_as_nan(dtype: torch.dtype, scale: float) -> None:
    z = embeddings(500, 2, 128, dtype).cuda()
    z[777, 5] = float("nan")
    nll, grad_z, grad_scale = run(similarity, z, torch.tensor(scale, device="cuda"), 2, gradients(1000).cuda())
    assert nll.isnan().all() and grad_z.isnan().all() and grad_scale.isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_is_linear_in_the_batch(dtype: torch.dtype) -> None:
    z, scale = embeddings(32768, 2, 128, dtype).cuda(), torch.tensor(10.0, device="cuda")
    grad_nll = gradients(65536).cuda()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = run(similarity, z, scale, 2, grad_nll)
    torch.cuda.synchronize()
    assert all(x.isfinite().all() for x in results)
    assert torch.cuda.max_memory_allocated() - before <= 256 << 20  # the similarities alone would be 16 GiB


def test_offsets_beyond_two_to_the_31() -> None:
    # u, its gradient and z have more than 2^31 elements each; the last rows' gradients are checked by themselves.
    samples, dim = 1050, 1 << 20
    if torch.cuda.get_device_properties(0).total_memory < 70 << 30:
        pytest.skip("needs 70 GiB of GPU memory")
    z = torch.randn(2 * samples, dim, device="cuda")
    scale, grad_nll = torch.tensor(10.0, device="cuda"), torch.ones(2 * samples, device="cuda")
    nll, grad_z, _ = run(similarity, z, scale, 2, grad_nll)
    u = torch.nn.functional.normalize(z, dim=1)
    s = (10 * u @ u.T).fill_diagonal_(-torch.inf)
    partner = torch.arange(2 * samples, device="cuda").roll(samples)
    p = s.softmax(1)
    weight = p + p.T
    weight[torch.arange(2 * samples), partner] -= 2
    assert (nll - (s.logsumexp(1) - s.gather(1, partner[:, None])[:, 0])).abs().max() < 1e-4
    for row in (0, samples, 2 * samples - 1):
        gradient = 10 * weight[row].nan_to_num() @ u
        truth = (gradient - u[row] * (u[row] @ gradient)) / z[row].norm()
        assert (grad_z[row] - truth).abs().max() < 1e-4 * truth.abs().max()
