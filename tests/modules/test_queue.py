from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from lightly.models.modules.memory_bank import MemoryBankModule as LightlyMemoryBankModule

from pyssl_fast.modules import KeyQueue, MemoryBankModule


def test_starts_with_random_directions() -> None:
    queue = KeyQueue(50, 8)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(50))
    assert (queue.keys @ queue.keys.T - torch.eye(50)).abs().max() < 0.999
    assert queue.filled == 0 and queue.pointer == 0


@pytest.mark.parametrize("sizes", [[3, 3, 3], [4, 4, 4, 4], [7, 7], [1, 6, 2, 7, 5]])
def test_goes_round(sizes: list[int]) -> None:
    queue, written = KeyQueue(7, 2), []
    storage = queue.keys.data_ptr()
    for rows in sizes:
        keys = torch.randn(rows, 2)
        queue.update(keys)
        written.extend(F.normalize(keys, dim=1))
    assert queue.keys.data_ptr() == storage
    for place in range(len(written) - min(7, len(written)), len(written)):
        torch.testing.assert_close(queue.keys[place % 7], written[place])
    assert queue.pointer == len(written) % 7 and queue.filled == min(7, len(written))


def test_takes_no_gradient_and_normalizes_half_precision_in_float32() -> None:
    queue = KeyQueue(4, 2)
    queue.update(torch.tensor([[6e4, 6e4], [1e-7, 0.0]], dtype=torch.float16).requires_grad_())
    assert not queue.keys.requires_grad
    torch.testing.assert_close(queue.keys[:2], torch.tensor([[0.5**0.5, 0.5**0.5], [1.0, 0.0]]))
    raw = KeyQueue(4, 2, normalize=False)
    raw.update(torch.tensor([[3.0, 4.0]]))
    assert raw.keys[0].tolist() == [3, 4]


def test_sized_by_the_first_keys_or_by_a_state() -> None:
    queue = KeyQueue(5)
    assert "keys" in queue.state_dict() and queue.keys.shape == (5, 0)
    fresh = KeyQueue(5)
    fresh.load_state_dict(queue.state_dict())
    queue.update(torch.randn(2, 3))
    assert queue.keys.shape == (5, 3)
    for other in (fresh, KeyQueue(5, 3)):
        other.load_state_dict(queue.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(other.buffers(), queue.buffers(), strict=True))
    with pytest.raises(RuntimeError, match="size mismatch for keys"):
        KeyQueue(5, 4).load_state_dict(queue.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch for keys"):
        KeyQueue(6).load_state_dict(queue.state_dict())


def test_copies_and_moves() -> None:
    queue = KeyQueue(5, 3)
    queue.update(torch.randn(2, 3))
    twin = copy.deepcopy(queue)
    twin.update(torch.randn(2, 3))
    assert queue.filled == 2 and twin.filled == 4
    half = copy.deepcopy(queue).to(torch.bfloat16)
    half.update(torch.randn(4, 3))
    assert half.keys.dtype == torch.bfloat16 and half.pointer.dtype == torch.int64 and half.pointer == 1
    assert queue.to("meta").keys.is_meta


def test_compiles_without_a_graph_break() -> None:
    torch.compiler.reset()
    eager = KeyQueue(7, 3)
    ours = copy.deepcopy(eager)
    update = torch.compile(ours.update, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (4, 5, 7):
        keys = torch.randn(rows, 3)
        update(keys)
        eager.update(keys)
        assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), eager.buffers(), strict=True))


def test_prints_its_size() -> None:
    assert repr(KeyQueue(5, 3)) == "KeyQueue(size=5, dim=3)" and repr(KeyQueue(5)) == "KeyQueue(size=5, dim=None)"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 3), ValueError, "size must be 1 or more; got 0"),
        ((4, 0), ValueError, "dim must be 1 or more; got 0"),
        ((4.0, 3), TypeError, "size must be a whole number; got float"),
        ((True, 3), TypeError, "size must be a whole number; got bool"),
    ],
)
def test_refuses_sizes(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        KeyQueue(*arguments)


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        (torch.randn(6, 3), ValueError, "keys must be 5 rows at most, the queue's size; got 6"),
        (torch.randn(2, 4), ValueError, r"keys must be \[B, 3\]; got \[2, 4\]"),
        (torch.randn(3), ValueError, r"keys must have shape \[N, D\]; got \[3\]"),
        (torch.randn(0, 3), ValueError, "keys must not be empty"),
        (torch.ones(2, 3).long(), TypeError, "keys must be float32"),
        (torch.randn(2, 3, device="meta"), ValueError, "keys must be on the queue's device cpu; got meta"),
    ],
)
def test_refuses_keys(keys, error, message) -> None:
    with pytest.raises(error, match=message):
        KeyQueue(5, 3).update(keys)


# ---- the memory bank -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feature_dim_first", [True, False])
@pytest.mark.parametrize(("batch", "drop_on_wrap"), [(4, False), (5, True), (12, True), (14, True), (12, False)])
def test_memory_bank_is_lightlys(feature_dim_first: bool, batch: int, drop_on_wrap: bool) -> None:
    ours = MemoryBankModule((12, 3), False, feature_dim_first, drop_on_wrap=drop_on_wrap)
    theirs = LightlyMemoryBankModule((12, 3), False, feature_dim_first)
    theirs.bank.copy_(ours.bank)
    for step in range(8):
        output = torch.randn(batch, 3)
        mine, bank = ours(output, labels=None, update=step % 3 != 2)
        other, want = theirs(output, labels=None, update=step % 3 != 2)
        assert mine is output and other is output
        assert torch.equal(bank, want) and torch.equal(ours.bank, theirs.bank)


def test_memory_bank_of_size_0_is_none() -> None:
    bank = MemoryBankModule(0)
    output = torch.randn(2, 3)
    assert bank(output, update=True) == (output, None) and bank.bank is None and not bank.state_dict()


def test_memory_bank_of_a_number_takes_its_length_from_the_first_output() -> None:
    module = MemoryBankModule(6)
    _, bank = module(torch.randn(2, 3), update=True)
    assert bank.shape == (3, 6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1,), ValueError, "size must be 0 or more; got -1"),
        (((4, 3, 2),), ValueError, r"size must be a number of keys, or \(number, length\); got \(4, 3, 2\)"),
        (((4, 3), True), NotImplementedError, "gather_distributed=True"),
    ],
)
def test_memory_bank_refuses(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        MemoryBankModule(*arguments)


def test_a_state_without_keys_leaves_the_start() -> None:
    unfed = KeyQueue(5).state_dict()
    for state in ({}, unfed):
        queue = KeyQueue(5, 3)
        before = queue.keys.clone()
        queue.load_state_dict(state)
        assert torch.equal(queue.keys, before) and queue.pointer == 0
    KeyQueue(5).load_state_dict({})
    with pytest.raises(RuntimeError, match="Missing key"):
        queue.load_state_dict({"keys": torch.zeros(5, 3)})
    with pytest.raises(RuntimeError, match="size mismatch for keys"):
        queue.load_state_dict({**unfed, "keys": torch.zeros(6, 0)})


def test_memory_bank_names_its_next_row_as_lightly() -> None:
    module = MemoryBankModule((6, 3))
    module(torch.randn(4, 3), update=True)
    assert module.bank_ptr == 4 and MemoryBankModule(0).bank_ptr is None
