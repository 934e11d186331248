from __future__ import annotations

import torch

from pyssl_fast.functional.similarity.groups import count_equal, sum_equal


def test_counts_and_sums_are_those_of_the_comparison() -> None:
    columns = torch.randn(60, 5, dtype=torch.float64, requires_grad=True)
    ids, row_ids = torch.randint(0, 20, (60,)), torch.randint(-3, 30, (17,))
    equal = row_ids[:, None] == ids
    assert torch.equal(count_equal(row_ids, ids), equal.sum(1))
    torch.testing.assert_close(sum_equal(row_ids, ids, columns), equal.double() @ columns)
    assert torch.autograd.gradcheck(lambda x: sum_equal(row_ids, ids, x), (columns,))
    assert torch.autograd.gradgradcheck(lambda x: sum_equal(row_ids, ids, x).square(), (columns,))


def test_sums_do_not_mix() -> None:
    columns, ids = torch.ones(6, 2), torch.tensor([4, 1, 4, 2, 1, 7])
    columns[0] = torch.nan
    found = sum_equal(torch.tensor([1, 4, 3]), ids, columns)
    assert found[0].tolist() == [2, 2] and found[1].isnan().all() and found[2].tolist() == [0, 0]


def test_compiles_with_its_gradient() -> None:
    torch.compiler.reset()
    compiled = torch.compile(sum_equal, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (12, 9):
        columns, ids = torch.randn(rows, 3, requires_grad=True), torch.arange(rows) % 4
        ours, eager = compiled(ids, ids, columns), sum_equal(ids, ids, columns)
        torch.testing.assert_close(ours, eager)
        gradients = (torch.autograd.grad(x.square().sum(), columns)[0] for x in (ours, eager))
        torch.testing.assert_close(*gradients)
