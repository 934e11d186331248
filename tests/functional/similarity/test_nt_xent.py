"""pyssl_fast.functional.nt_xent as its users call it."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import NTXentLoss as LightlyNTXentLoss
from pytorch_metric_learning.losses import NTXentLoss as MetricLearningNTXentLoss
from pytorch_metric_learning.losses import SelfSupervisedLoss

import pyssl_fast
from pyssl_fast.functional import nt_xent
from tests.contract import assert_within_contract
from tests.functional.similarity.cases import embeddings


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def backend(request: pytest.FixtureRequest):
    with pyssl_fast.use_backend(request.param):
        yield request.param


@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.01, -0.4])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (33, 20), (130, 65)])
def test_value_and_gradient_are_lightlys(backend: str, shape: tuple[int, int], temperature: float) -> None:
    z0, z1 = (x.clone().requires_grad_() for x in embeddings(shape[0], 2, shape[1]).split(shape[0]))
    wide = [x.detach().double().requires_grad_() for x in (z0, z1)]
    ours, lightly = nt_xent(z0, z1, temperature), LightlyNTXentLoss(temperature)(z0, z1)
    truth = LightlyNTXentLoss(temperature)(*wide)
    if backend == "reference":  # the twin rounds its logits to float32
        torch.testing.assert_close(ours, lightly, rtol=1e-6, atol=1e-6 / abs(temperature))
        return
    assert_within_contract(ours, truth, lightly, torch.float32, "loss")
    grads = [
        torch.autograd.grad(loss, inputs) for loss, inputs in ((ours, (z0, z1)), (truth, wide), (lightly, (z0, z1)))
    ]
    for mine, true, theirs in zip(*grads, strict=True):
        assert_within_contract(mine, true, theirs, torch.float32, "gradient")


@pytest.mark.parametrize("temperature", [0.5, 0.07])
def test_value_and_gradient_are_pytorch_metric_learnings(backend: str, temperature: float) -> None:
    inputs = [x.clone().requires_grad_() for x in embeddings(9, 2, 6).split(9)]
    ours = nt_xent(*inputs, temperature)
    theirs = SelfSupervisedLoss(MetricLearningNTXentLoss(temperature))(*inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for mine, other in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_more_views_are_the_mean_over_the_positives() -> None:
    views = embeddings(6, 3, 5).split(6)
    loss = nt_xent(*views[:2], 0.3, extra_views=views[2:], reduction="none")
    assert loss.shape == (3, 6)
    u = torch.nn.functional.normalize(torch.stack(list(views)), dim=2)
    for v in range(3):
        for i in range(6):
            s = torch.einsum("d,wjd->wj", u[v, i], u) / 0.3
            others = torch.cat([s.flatten()[: v * 6 + i], s.flatten()[v * 6 + i + 1 :]])
            want = torch.stack([others.logsumexp(0) - s[w, i] for w in range(3) if w != v]).mean()
            torch.testing.assert_close(loss[v, i], want, rtol=1e-5, atol=1e-6)


def test_reductions() -> None:
    z0, z1 = embeddings(7, 2, 5).split(7)
    rows = nt_xent(z0, z1, reduction="none")
    assert rows.shape == (2, 7)
    torch.testing.assert_close(nt_xent(z0, z1, reduction="mean"), rows.mean())
    torch.testing.assert_close(nt_xent(z0, z1, reduction="sum"), rows.sum())


def test_temperature_may_be_any_real_number() -> None:
    z0, z1 = embeddings(7, 2, 5).split(7)
    for number in (Fraction(1, 4), np.float32(0.25), torch.tensor(0.25)):
        assert torch.equal(nt_xent(z0, z1, number), nt_xent(z0, z1, 0.25))


def test_temperature_gradient_is_exact(backend: str) -> None:
    z0, z1 = embeddings(50, 2, 16).split(50)
    temperature = torch.tensor([0.2], requires_grad=True)
    nt_xent(z0, z1, temperature).backward()
    wide = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    with pyssl_fast.use_backend("reference"):
        nt_xent(z0.double(), z1.double(), wide).backward()
    assert temperature.grad is not None and temperature.grad.shape == (1,)
    torch.testing.assert_close(temperature.grad[0].double(), wide.grad, rtol=2e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtypes(backend: str, dtype: torch.dtype) -> None:
    if backend == "cpu" and dtype == torch.float64:
        with pytest.raises(RuntimeError, match=r"no kernels for torch\.float64"):
            nt_xent(Z.double(), Z.double())
        return
    z0, z1 = (x.clone().requires_grad_() for x in embeddings(7, 2, 5, dtype).split(7))
    loss = nt_xent(z0, z1)
    loss.backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert z0.grad is not None and z0.grad.dtype == dtype


# ---- what must always hold -------------------------------------------------------------------------------------------

batches = st.builds(
    lambda samples, dim, seed: embeddings(samples, 2, dim, seed=seed).split(samples),
    st.integers(1, 60),
    st.integers(1, 50),
    st.integers(0, 2**31),
)
temperatures = st.floats(0.05, 2.0)
always = settings(max_examples=25, deadline=None, print_blob=True)


@always
@given(batches, temperatures)
def test_swapping_the_views_swaps_the_rows(batch: tuple[torch.Tensor, torch.Tensor], temperature: float) -> None:
    z0, z1 = batch
    rows, swapped = (nt_xent(a, b, temperature, reduction="none") for a, b in ((z0, z1), (z1, z0)))
    torch.testing.assert_close(swapped.flip(0), rows, rtol=1e-5, atol=1e-5)


@always
@given(batches, temperatures, st.randoms(use_true_random=False))
def test_the_order_of_the_samples_does_not_matter(batch, temperature: float, random) -> None:
    z0, z1 = batch
    order = torch.tensor(random.sample(range(len(z0)), len(z0)))
    rows = nt_xent(z0, z1, temperature, reduction="none")
    permuted = nt_xent(z0[order], z1[order], temperature, reduction="none")
    torch.testing.assert_close(permuted, rows[:, order], rtol=1e-5, atol=1e-5)


@always
@given(batches, temperatures)
def test_bounds_and_gradient_across_the_embeddings(batch, temperature: float) -> None:
    z0, z1 = (x.clone().requires_grad_() for x in batch)
    loss = nt_xent(z0, z1, temperature, reduction="none")
    others = 2 * len(z0) - 1
    assert (loss >= 0).all() and (loss <= math.log(others) + 2 / temperature + 1e-4).all()
    loss.sum().backward()
    # The loss does not see lengths, so its gradient is perpendicular to the embedding.
    for z in (z0, z1):
        along = (z.grad * z.detach()).sum(1).abs()
        assert (along <= 1e-5 * (1 + z.grad.norm(dim=1) * z.detach().norm(dim=1))).all()


# ---- what is refused -------------------------------------------------------------------------------------------------

Z = torch.randn(4, 3)
BAD = {
    "no tensor": (([1.0], Z), {}, TypeError, r"z0 must be a Tensor \[N, D\]; got list"),
    "one dimension": ((Z[0], Z), {}, ValueError, r"z0 must have shape \[N, D\]; got \[3\]"),
    "integers": ((Z.long(), Z.long()), {}, TypeError, r"z0 must be float32.*got torch.int64"),
    "empty batch": ((Z[:0], Z[:0]), {}, ValueError, r"z0 must not be empty; got shape \[0, 3\]"),
    "no columns": ((Z[:, :0], Z[:, :0]), {}, ValueError, r"z0 must not be empty; got shape \[4, 0\]"),
    "shapes": ((Z, Z[:3]), {}, ValueError, r"z1 must have z0's shape \[4, 3\]; got \[3, 3\]"),
    "dtypes": ((Z, Z.double()), {}, TypeError, r"z1 must have z0's dtype torch.float32; got torch.float64"),
    "devices": ((Z, Z.to("meta")), {}, ValueError, r"z1 must be on z0's device cpu; got meta"),
    "third view": ((Z, Z), {"extra_views": [Z[:3]]}, ValueError, r"extra_views\[0\] must have z0's shape"),
    "temperature 0": ((Z, Z, 0), {}, ValueError, "temperature must be 1e-8 to 1e30 in size; got 0"),
    "temperature NaN": ((Z, Z, math.nan), {}, ValueError, "temperature must be 1e-8 to 1e30"),
    "temperature inf": ((Z, Z, math.inf), {}, ValueError, "temperature must be 1e-8 to 1e30"),
    "temperature huge": ((Z, Z, 10**400), {}, ValueError, "temperature must be 1e-8 to 1e30"),
    "float8": ((Z.to(torch.float8_e4m3fn),) * 2, {}, TypeError, "z0 must be float32.*got torch.float8_e4m3fn"),
    "sparse": ((Z.to_sparse(),) * 2, {}, TypeError, "z0 must be a dense Tensor; got layout torch.sparse_coo"),
    "temperature text": ((Z, Z, "warm"), {}, TypeError, "temperature must be a number or a Tensor; got str"),
    "temperature bool": ((Z, Z, True), {}, TypeError, "temperature must be a number or a Tensor; got bool"),
    "temperature None": ((Z, Z, None), {}, TypeError, "temperature must be a number or a Tensor; got NoneType"),
    "temperature Tensor 0": ((Z, Z, torch.tensor(0.0)), {}, ValueError, "temperature must be 1e-8 to 1e30"),
    "temperatures": (
        (Z, Z, torch.ones(2)),
        {},
        ValueError,
        r"one floating-point number; got torch.float32 of shape \[2\]",
    ),
    "reduction": ((Z, Z), {"reduction": "max"}, ValueError, "reduction must be one of none, mean, sum; got 'max'"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_named(case) -> None:
    arguments, keywords, error, message = case
    with pytest.raises(error, match=message):
        nt_xent(*arguments, **keywords)
