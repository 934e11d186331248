from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import KoLeoLoss as LightlyKoLeoLoss
from lightly.loss import NegativeCosineSimilarity as LightlyNegativeCosineSimilarity
from lightly.loss.hypersphere_loss import HypersphereLoss as LightlyHypersphereLoss

import pyssl_fast
from pyssl_fast.functional import alignment, koleo, negative_cosine_similarity, uniformity
from pyssl_fast.losses import HypersphereLoss, KoLeoLoss
from tests.functional.similarity.peers import assert_like_peer, rows


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def backend(request: pytest.FixtureRequest):
    with pyssl_fast.use_backend(request.param):
        yield


def eager_uniformity(z, t):
    apart = torch.pdist(F.normalize(z).float() if z.dtype in (torch.float16, torch.bfloat16) else F.normalize(z))
    return (-t * apart.square()).exp().mean().log()


SHAPES = [(2, 3), (9, 1), (33, 20), (70, 65)]


@pytest.mark.parametrize("dim", [1, -1, 0])
@pytest.mark.parametrize("shape", SHAPES)
def test_negative_cosine_similarity_is_lightlys(shape: tuple[int, int], dim: int) -> None:
    peer = LightlyNegativeCosineSimilarity(dim)
    assert_like_peer(lambda a, b: negative_cosine_similarity(a, b, dim), peer, (rows(*shape), rows(*shape, seed=1)))


def test_negative_cosine_similarity_of_any_shape_and_of_short_vectors() -> None:
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(negative_cosine_similarity(a, b, 2, reduction="none"), -F.cosine_similarity(a, b, 2))
    a[0, :, :, 0] = 1e-10
    torch.testing.assert_close(negative_cosine_similarity(a, b, 2), -F.cosine_similarity(a, b, 2).mean())


@pytest.mark.parametrize("t", [1.0, 2.0, 10.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_uniformity_is_the_papers(shape: tuple[int, int], t: float) -> None:
    assert_like_peer(lambda z: uniformity(z, t), lambda z: eager_uniformity(z, t), (rows(*shape),))


def test_the_sharpness_has_its_gradient() -> None:
    assert_like_peer(uniformity, eager_uniformity, (rows(30, 8), torch.tensor(2.0)))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
def test_alignment_is_the_papers(alpha: float) -> None:
    def peer(a, b):
        return (F.normalize(a) - F.normalize(b)).norm(dim=1).pow(alpha).mean()

    assert_like_peer(lambda a, b: alignment(a, b, alpha), peer, (rows(20, 6), rows(20, 6, 1)))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_views_that_agree_have_alignment_and_gradient_zero(alpha: float) -> None:
    z = rows(5, 4).requires_grad_()
    loss = alignment(z, z.detach().clone(), alpha)
    loss.backward()
    assert loss == 0 and (z.grad == 0).all()


def test_alignment_of_views_that_nearly_agree_keeps_its_digits() -> None:
    z = rows(50, 8).double()
    near = z + 1e-5 * rows(50, 8, 1)
    want = (F.normalize(z) - F.normalize(near)).square().sum(1).mean()
    ours = alignment(z.float(), near.float())
    single = (F.normalize(z.float().double()) - F.normalize(near.float().double())).square().sum(1).mean()
    torch.testing.assert_close(ours.double(), single, rtol=1e-6, atol=0)
    assert want > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_hypersphere_loss_is_lightlys(shape: tuple[int, int]) -> None:
    for settings_ in ({}, {"t": 2.0, "lam": 0.5, "alpha": 1.5}):
        assert_like_peer(
            HypersphereLoss(**settings_), LightlyHypersphereLoss(**settings_), (rows(*shape), rows(*shape, seed=1))
        )


@pytest.mark.parametrize("p", [2, 1, 3])
@pytest.mark.parametrize("shape", [(2, 3), (33, 20), (70, 65)])
def test_koleo_is_lightlys(shape: tuple[int, int], p: float) -> None:
    assert_like_peer(lambda x: koleo(x, p), LightlyKoLeoLoss(p), (rows(*shape),))


def test_koleo_of_more_neighbours() -> None:
    def peer(x, topk=3):
        u = F.normalize(x)
        s = (u @ u.T).fill_diagonal_(-2)
        index = s.topk(topk).indices
        return -(F.pairwise_distance(u[:, None], u[index], eps=1e-8) + 1e-8).log()

    assert_like_peer(lambda x: koleo(x, topk=3, reduction="none"), peer, (rows(20, 6),))


def test_koleo_of_duplicates_is_finite_in_every_dtype() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x = rows(4, 6).to(dtype)
        x[1] = x[0]
        loss = koleo(x.requires_grad_())
        loss.backward()
        assert loss.isfinite() and x.grad[2:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    z = rows(40, 16)
    assert_like_peer(lambda x: uniformity(x, 2), lambda x: eager_uniformity(x, 2), (z,), dtype)
    assert_like_peer(koleo, LightlyKoLeoLoss(), (torch.eye(16)[:, :16] + 0.1 * rows(16, 16),), dtype)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 20), st.integers(1, 8), st.integers(0, 2**31), st.floats(0.1, 10), st.floats(1e-3, 1e3))
def test_lengths_and_rotations_do_not_matter(count: int, dim: int, seed: int, t: float, length: float) -> None:
    z = rows(count, dim, seed)
    q, _ = torch.linalg.qr(rows(dim, dim, seed))
    loss = uniformity(z, t)
    assert -4 * t - 1e-4 * (1 + t) <= loss <= 1e-5 * (1 + t)
    torch.testing.assert_close(uniformity(length * z @ q, t), loss, rtol=1e-4, atol=1e-5 * (1 + t))
    torch.testing.assert_close(koleo(length * z, eps=1e-6), koleo(z, eps=1e-6), rtol=1e-3, atol=1e-3 * count)


Z = torch.randn(4, 3)
BAD = {
    "cosine list": (
        negative_cosine_similarity,
        ([1.0], Z),
        {},
        TypeError,
        "x0 must be a floating-point Tensor; got list",
    ),
    "cosine int": (negative_cosine_similarity, (Z, Z.long()), {}, TypeError, "x1 must be .*got torch.int64"),
    "cosine shapes": (negative_cosine_similarity, (Z, Z[:2]), {}, ValueError, r"x1 must have x0's shape \[4, 3\]"),
    "cosine dim": (
        negative_cosine_similarity,
        (Z, Z, 2),
        {},
        ValueError,
        "dim must be one of x0's 2 dimensions; got 2",
    ),
    "cosine empty": (negative_cosine_similarity, (Z[:0], Z[:0]), {}, ValueError, "x0 must not be empty"),
    "cosine eps": (negative_cosine_similarity, (Z, Z, 1, 0.0), {}, ValueError, "eps must be"),
    "align alpha": (alignment, (Z, Z, 0), {}, ValueError, "alpha must be"),
    "align alpha Tensor": (alignment, (Z, Z, torch.tensor(2.0)), {}, TypeError, "alpha must be a number; got Tensor"),
    "align dtypes": (alignment, (Z, Z.double()), {}, TypeError, "z1 must have z0's dtype"),
    "align reduction": (alignment, (Z, Z), {"reduction": "max"}, ValueError, "reduction must be one of"),
    "uniform one": (uniformity, (Z[:1],), {}, ValueError, r"z must have two rows or more; got shape \[1, 3\]"),
    "uniform t": (uniformity, (Z, "2"), {}, TypeError, "t must be a number or a Tensor; got str"),
    "uniform inf": (uniformity, (Z, float("inf")), {}, ValueError, "t must be finite"),
    "koleo one": (koleo, (Z[:1],), {}, ValueError, r"x must have two rows or more; got shape \[1, 3\]"),
    "koleo topk": (koleo, (Z,), {"topk": 4}, ValueError, "topk must be 3 at most, the number of other rows; got 4"),
    "koleo topk 0": (koleo, (Z,), {"topk": 0}, ValueError, "topk must be 1 or more; got 0"),
    "koleo topk float": (koleo, (Z,), {"topk": 1.5}, TypeError, "topk must be a whole number; got float"),
    "koleo p": (koleo, (Z, -1), {}, ValueError, "p must be"),
    "koleo int": (koleo, (Z.long(),), {}, TypeError, "x must be float32"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_named(case) -> None:
    function, arguments, keywords, error, message = case
    with pytest.raises(error, match=message):
        function(*arguments, **keywords)


def test_koleo_of_the_largest_difference_is_lightlys() -> None:
    loss = KoLeoLoss(p=float("inf"))
    assert_like_peer(loss, LightlyKoLeoLoss(p=float("inf")), (rows(9, 6),))
    assert loss.pairwise_distance.norm == float("inf") and loss.pairwise_distance.eps == loss.eps


@pytest.mark.parametrize("loss", [negative_cosine_similarity, alignment])
def test_two_dtypes_under_autocast_promote(loss) -> None:
    a, b = rows(6, 4).requires_grad_(), rows(6, 4, 1).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(a, b)
    torch.testing.assert_close(found, loss(a, b.float()))
    assert [x.dtype for x in torch.autograd.grad(found, [a, b])] == [torch.float32, torch.bfloat16]
