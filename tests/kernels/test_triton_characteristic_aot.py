"""LeJEPA's kernels, compiled ahead of time for every architecture."""

from __future__ import annotations

import os

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("an interpreted kernel cannot be compiled: run without TRITON_INTERPRET", allow_module_level=True)

import torch

from pyssl_fast.kernels.triton import aot, configs, covariance
from tests.kernels.test_triton_aot import Launches, differences


@pytest.mark.parametrize("architecture", configs.ARCHITECTURES, ids="sm_{}".format)
def test_no_kernel_spills(architecture: int) -> None:
    # The element's type changes nothing but a load and a store: elsewhere float32 alone.
    builds = list(aot.builds(architecture, "waves", lambda job: architecture == 90 or job.precision == "fp32"))
    assert len(builds) == (12 if architecture == 90 else 4)
    for build in builds:
        assert build.spilled == 0 and build.registers <= 128, build  # four blocks of four warps
        assert build.shared <= configs.SHARED_MEMORY[architecture], build


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 2, 48), (3, 700, 1000)], ids=str)
def test_a_launch_runs_what_was_inspected(
    shape: tuple[int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = Launches(monkeypatch)
    x = torch.zeros(shape, dtype=dtype)
    cosine, sine = covariance.characteristic(x, 0.2, 16)
    covariance.characteristic_backward(cosine, sine, x, 0.2)
    covariance.spread_backward(covariance.spread(x, 1), x, 1)
    assert set(launches.bound) == {job.label for job in aot.wave_jobs()}
    for name, (launched,) in launches.bound.items():
        precision = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
        (job,) = (job for job in aot.wave_jobs() if (job.label, job.precision) == (name, precision))
        assert not differences(job, launched)
