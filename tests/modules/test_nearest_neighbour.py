from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F
from lightly.models.modules import NNMemoryBankModule as LightlyNNMemoryBankModule

import pyssl_fast
from pyssl_fast.losses import NNCLRLoss
from pyssl_fast.modules import NNMemoryBankModule


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def backend(request: pytest.FixtureRequest):
    with pyssl_fast.use_backend(request.param):
        yield


def test_takes_the_place_of_lightlys() -> None:
    """With drop_on_wrap bit for bit, around the end of the bank too."""
    ours, theirs = NNMemoryBankModule((20, 6), drop_on_wrap=True), LightlyNNMemoryBankModule((20, 6))
    ours.queue.keys.copy_(theirs.bank)
    for step in range(7):
        output = 3 * torch.randn(6, 6)
        assert torch.equal(ours(output, update=step % 3 != 0), theirs(output, update=step % 3 != 0))
        assert torch.equal(ours.bank, theirs.bank)


def test_finds_what_was_put_in_but_not_in_the_same_call() -> None:
    bank = NNMemoryBankModule(size=50)
    first = torch.randn(8, 5)
    before = bank(first, update=True)
    assert not torch.equal(before, first)
    assert torch.equal(bank(2.5 * first), first)
    assert bank.bank.shape == (50, 5)


def test_normalized_keys_have_length_one_and_the_same_loss() -> None:
    raw, unit = NNMemoryBankModule((30, 5)), NNMemoryBankModule((30, 5), normalize=True)
    keys, output, prediction = 4 * torch.randn(30, 5), torch.randn(8, 5), torch.randn(8, 5)
    raw(keys, update=True)
    unit(keys, update=True)
    torch.testing.assert_close(unit(output), F.normalize(raw(output)))
    loss = NNCLRLoss()
    torch.testing.assert_close(loss(unit(output), prediction), loss(raw(output), prediction))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_keeps_the_outputs_dtype_and_gives_no_gradient(dtype: torch.dtype) -> None:
    bank = NNMemoryBankModule((30, 5))
    nearest = bank(torch.randn(8, 5, dtype=dtype, requires_grad=True), update=True)
    assert nearest.dtype == dtype and not nearest.requires_grad


def test_a_row_that_is_not_a_number_has_no_neighbour() -> None:
    output = torch.randn(8, 5)
    output[3, 1] = torch.nan
    nearest = NNMemoryBankModule((30, 5))(output)
    assert nearest.isnan().any(1).nonzero().tolist() == [[3]]


def test_the_state_dict_carries_the_bank() -> None:
    bank, other = NNMemoryBankModule(30), NNMemoryBankModule(30)
    bank(torch.randn(8, 5), update=True)
    other.load_state_dict(bank.state_dict())
    output = torch.randn(4, 5)
    assert torch.equal(other(output), bank(output))


def test_a_bank_survives_pickling_and_a_second_load_and_sees_the_queues_updates() -> None:
    bank, other = NNMemoryBankModule((30, 5)), NNMemoryBankModule((30, 5))
    output = torch.randn(6, 5)
    bank(output, update=True)
    assert torch.equal(pickle.loads(pickle.dumps(bank))(output), output)
    other(output)  # it has divided its own keys by now
    other.load_state_dict(bank.state_dict())
    assert torch.equal(other(output), output)
    later = 7 * torch.randn(3, 5)
    other.queue.update(later)
    assert torch.equal(other(later), later)


def test_compiles_whole() -> None:
    torch.compiler.reset()
    bank = NNMemoryBankModule((30, 5))
    output = torch.randn(8, 5)
    want = bank(output)
    compiled = torch.compile(bank, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(output, update=True), want)
    assert torch.equal(bank.bank[:8], output)


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (0, ValueError, "size must be 1 or more; got 0"),
        ((30, 0), ValueError, "size must be 1 or more; got 0"),
        (2.5, TypeError, "size must be a whole number; got float"),
        ((1, 2, 3), ValueError, r"size must be a number of keys, or \(number, length\); got \(1, 2, 3\)"),
    ],
)
def test_refuses_a_size(size, error, message) -> None:
    with pytest.raises(error, match=message):
        NNMemoryBankModule(size)


def test_refuses_an_output_of_another_length() -> None:
    with pytest.raises(ValueError, match=r"keys must be \[B, 5\]; got \[8, 4\]"):
        NNMemoryBankModule((30, 5))(torch.randn(8, 4))
