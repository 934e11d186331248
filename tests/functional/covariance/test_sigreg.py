from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss.lejepa_loss import LeJEPALoss as LightlyLeJEPALoss
from lightly.loss.lejepa_loss import SIGReg as LightlySIGReg
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pyssl_fast
from pyssl_fast.functional import LeJEPATerms, lejepa, sigreg
from tests.functional.similarity.peers import assert_like_peer, value_and_gradients

SHAPES = [(1, 1), (1, 5), (2, 1), (9, 20), (40, 7), (2, 9, 4), (2, 1, 3, 5)]
SETTINGS = [{}, {"knots": 2, "t_max": 1.0}, {"knots": 9, "t_max": 5.0}, {"knots": 40, "t_max": 0.5}]


def directions(dim: int, count: int = 33, seed: int = 7) -> Tensor:
    drawn = torch.randn(dim, count, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm(dim=0)


def embeddings(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.2)


def lightlys(module: LightlySIGReg | LightlyLeJEPALoss, vectors: Tensor) -> Callable[..., Tensor]:
    """lightly's loss of given directions, on frequencies and weights in float64 where the embeddings are."""

    def call(*z: Tensor) -> Tensor:
        loss = copy.deepcopy(module)
        regularizer = getattr(loss, "sigreg", loss)
        regularizer._generate_unit_vectors = lambda device, dtype, dim: vectors.to(dtype)
        if z[0].dtype == torch.float64:
            t = torch.linspace(0, float(regularizer.t[-1]), len(regularizer.t), dtype=torch.float64)
            weights = torch.full_like(t, 2 * float(t[1]))
            weights[[0, -1]] /= 2
            gaussian = (-t.square() / 2).exp()
            regularizer.t, regularizer.phi, regularizer.weights = t, gaussian, weights * gaussian
        return loss(*z) if regularizer is loss else loss(local_proj=z[0], global_proj=z[1])

    return call


def written_out(z: Tensor, vectors: Tensor, knots: int, t_max: float) -> Tensor:
    """SIGReg of z [N, D] from its definition, one direction and one frequency after the other."""
    n, step, total = len(z), t_max / (knots - 1), z.new_zeros(())
    for a in vectors.T:
        for k in range(knots):
            t = k * step
            characteristic = torch.exp(1j * t * (z @ a)).mean()
            distance = (characteristic - math.exp(-t * t / 2)).abs() ** 2
            total = total + n * math.exp(-t * t / 2) * distance * step * (1 if k in (0, knots - 1) else 2)
    return total / vectors.shape[1]


# ---- lightly's values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sigreg_is_lightlys(shape: tuple[int, ...], options: dict[str, float], backend: str) -> None:
    vectors = directions(shape[-1])
    for dtype in (torch.float32, torch.bfloat16):
        peer = lightlys(LightlySIGReg(**options), vectors.to(dtype))
        assert_like_peer(
            lambda z, dtype=dtype: sigreg(z, vectors.to(dtype), **options), peer, [embeddings(*shape)], dtype
        )


@pytest.mark.parametrize("scale", [1e-6, 50.0, 1e4, 1e8])
def test_sigreg_of_any_scale_is_lightlys(scale: float, backend: str) -> None:
    # Along the axes projections are exact, and what is compared is the statistic of large angles.
    vectors = torch.eye(5)[:, [0, 1, 2, 3, 4, 0]]
    assert_like_peer(lambda z: sigreg(z, vectors), lightlys(LightlySIGReg(), vectors), [embeddings(40, 5, scale=scale)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("local", "of_all"), [((2, 9, 6), (2, 9, 6)), ((6, 20, 5), (1, 20, 5)), ((1, 1, 3), (3, 1, 3))], ids=str
)
def test_lejepa_is_lightlys(local: tuple[int, ...], of_all: tuple[int, ...], dtype: torch.dtype, backend: str) -> None:
    vectors = directions(local[-1]).to(dtype)
    inputs = [embeddings(*local), embeddings(*of_all, seed=1)]
    for weight in (0.05, 0.0, 1.0):
        peer = lightlys(LightlyLeJEPALoss(weight), vectors)
        assert_like_peer(lambda a, b, weight=weight: lejepa(a, b, vectors, lambda_param=weight), peer, inputs, dtype)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(2, 30), st.floats(0.1, 10), st.integers(0, 2**31))
def test_sigreg_is_its_definition(samples: int, dim: int, knots: int, t_max: float, seed: int) -> None:
    z, vectors = embeddings(samples, dim, seed=seed).double(), directions(dim, 3, seed).double()
    mine = value_and_gradients(lambda z: sigreg(z, vectors, knots=knots, t_max=t_max), [z], torch.float64)
    theirs = value_and_gradients(lambda z: written_out(z, vectors, knots, t_max), [z], torch.float64)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_terms_make_the_loss(backend: str) -> None:
    local, of_all = embeddings(4, 9, 6).requires_grad_(), embeddings(2, 9, 6, seed=1)
    vectors = directions(6)
    loss, terms = lejepa(local, of_all, vectors, lambda_param=0.3, return_terms=True)
    assert isinstance(terms, LeJEPATerms) and all(term.dtype == torch.float32 for term in terms)
    torch.testing.assert_close(loss, terms.weighted(0.3))
    torch.testing.assert_close(terms.sigreg, sigreg(torch.cat((local, of_all)), vectors))
    spread = (torch.cat((local, of_all)) - of_all.mean(0)).square().mean()
    torch.testing.assert_close(terms.invariance, spread)
    for mine, want in zip(terms, (sigreg(local, vectors) * 4 / 6, spread), strict=True):
        ours, theirs = (torch.autograd.grad(x, local, retain_graph=True)[0] for x in (mine, want))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


# ---- directions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_one_seed_gives_lightlys_loss(dtype: torch.dtype) -> None:
    local, of_all = embeddings(2, 30, 6).to(dtype), embeddings(2, 30, 6, seed=1).to(dtype)
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    torch.manual_seed(3)
    ours = [lejepa(local, of_all), sigreg(local, num_vectors=50)]
    after = torch.rand(())
    torch.manual_seed(3)
    theirs = [LightlyLeJEPALoss()(local_proj=local, global_proj=of_all), LightlySIGReg(num_vectors=50)(local)]
    assert torch.equal(after, torch.rand(()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=tolerance, atol=0)


def test_a_generator_draws_in_place_of_torchs_own() -> None:
    z = embeddings(9, 6)
    torch.manual_seed(3)
    want = sigreg(z, num_vectors=5)
    state = torch.get_rng_state()
    assert torch.equal(sigreg(z, num_vectors=5, generator=torch.Generator().manual_seed(3)), want)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(sigreg(z, directions(6), generator=torch.Generator()), sigreg(z, directions(6)))


def test_drawn_directions_have_length_one() -> None:
    # A large embedding along one axis is seen as large only through unit directions: its angles keep their scale.
    z = torch.zeros(1, 3)
    assert sigreg(z, num_vectors=7, knots=2, t_max=2.0) == pytest.approx(2 * math.exp(-2) * (1 - math.exp(-2)) ** 2)
    z[0, 0] = 1.0
    drawn = torch.randn(3, 7, generator=torch.Generator().manual_seed(4))
    want = sigreg(z, drawn / drawn.norm(dim=0))
    assert torch.equal(sigreg(z, num_vectors=7, generator=torch.Generator().manual_seed(4)), want)


def test_directions_may_be_learned(backend: str) -> None:
    z, vectors = embeddings(9, 4), directions(4, 5).requires_grad_()
    sigreg(z, vectors).backward()
    want = vectors.detach().double().requires_grad_()
    with pyssl_fast.use_backend("reference"):
        sigreg(z.double(), want).backward()
    torch.testing.assert_close(vectors.grad, want.grad.float(), rtol=1e-4, atol=1e-6)


# ---- precision and memory --------------------------------------------------------------------------------------------


def test_autocast_does_not_touch_the_statistic(backend: str) -> None:
    z, vectors = embeddings(40, 6), directions(6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sigreg(z, vectors), sigreg(z, vectors))
        under = [sigreg(z, vectors), sigreg(z.bfloat16(), vectors)]
    assert torch.equal(under[0], sigreg(z, vectors))
    assert torch.equal(under[1], sigreg(z.bfloat16().float(), vectors))


def test_gaussian_samples_have_a_small_loss() -> None:
    z = embeddings(2000, 8) - 0.2
    # The statistic's mean under the null, 2·∫₀³ φ(t)·(1 − φ(t)²) dt, whatever N.
    t = torch.linspace(0, 3, 4001, dtype=torch.float64)
    null = 2 * torch.trapezoid((-t.square() / 2).exp() * (1 - (-t.square()).exp()), t)
    assert sigreg(z, directions(8, 400)).item() == pytest.approx(null.item(), rel=0.5)
    assert sigreg(1.5 * z, directions(8, 400)) > 20 * null


class _Largest(TorchDispatchMode):
    """The largest tensor that is made, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.bytes = max([self.bytes, *(x.nbytes for x in tree_leaves(result) if isinstance(x, Tensor))])
        return result


def test_nothing_is_larger_than_the_projections() -> None:
    local, of_all = embeddings(3, 200, 30).requires_grad_(), embeddings(2, 200, 30).requires_grad_()
    with pyssl_fast.use_backend("cpu"), _Largest() as largest:
        lejepa(local, of_all, num_vectors=64).backward()
    assert largest.bytes == 5 * 200 * 64 * 4


# ---- what is refused -------------------------------------------------------------------------------------------------

Z, A = torch.randn(2, 4, 3), torch.randn(3, 5)
BAD = {
    "no tensor": (sigreg, ([1.0],), {}, TypeError, r"z must be a Tensor \[…, N, D\]; got list"),
    "integers": (
        sigreg,
        (Z.long(),),
        {},
        TypeError,
        "z must be float32, float16, bfloat16 or float64; got torch.int64",
    ),
    "one dimension": (sigreg, (Z[0, 0],), {}, ValueError, r"z must have shape \[…, N, D\]; got \[3\]"),
    "empty": (sigreg, (Z[:, :0],), {}, ValueError, r"z must not be empty; got shape \[2, 0, 3\]"),
    "no vectors": (sigreg, (Z, A[:, :0]), {}, ValueError, "vectors must not be empty"),
    "list of vectors": (sigreg, (Z, [1.0]), {}, TypeError, r"vectors must be a Tensor \[D, M\]; got list"),
    "integer vectors": (sigreg, (Z, A.long()), {}, TypeError, "vectors must be float32"),
    "long vectors": (sigreg, (Z, A.T), {}, ValueError, r"vectors must have shape \[3, 3\]; got \[5, 3\]"),
    "vectors elsewhere": (sigreg, (Z, A.to("meta")), {}, ValueError, "vectors must be on z's device cpu; got meta"),
    "one knot": (sigreg, (Z,), {"knots": 1}, ValueError, "knots must be 2 or more; got 1"),
    "knots": (sigreg, (Z,), {"knots": 17.0}, TypeError, "knots must be a whole number; got float"),
    "t_max 0": (sigreg, (Z,), {"t_max": 0}, ValueError, "t_max must be .* got 0"),
    "t_max NaN": (sigreg, (Z,), {"t_max": math.nan}, ValueError, "t_max must be"),
    "none drawn": (sigreg, (Z,), {"num_vectors": 0}, ValueError, "num_vectors must be 1 or more; got 0"),
    "lambda": (lejepa, (Z, Z), {"lambda_param": 1.5}, ValueError, "lambda_param must be 0 to 1; got 1.5"),
    "local of two": (lejepa, (Z[0], Z), {}, ValueError, r"local_proj must have shape \[V, N, D\]; got \[4, 3\]"),
    "global of two": (lejepa, (Z, Z[0]), {}, ValueError, r"global_proj must have shape \[V, N, D\]; got \[4, 3\]"),
    "no view": (lejepa, (Z[:0], Z), {}, ValueError, "local_proj must not be empty"),
    "batches": (lejepa, (Z, Z[:, :3]), {}, ValueError, r"local_proj must have shape \[2, 3, 3\]; got \[2, 4, 3\]"),
    "lengths": (lejepa, (Z, Z[..., :2]), {}, ValueError, r"local_proj must have shape \[2, 4, 2\]; got \[2, 4, 3\]"),
    "dtypes": (lejepa, (Z, Z.double()), {}, TypeError, "local_proj must have global_proj's dtype torch.float64"),
    "devices": (lejepa, (Z, Z.to("meta")), {}, ValueError, "local_proj must be on global_proj's device meta; got cpu"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_named(case) -> None:
    function, arguments, options, error, message = case
    with pytest.raises(error, match=message):
        function(*arguments, **options)
