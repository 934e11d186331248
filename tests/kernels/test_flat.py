"""What is read off lists of tensors: the same with and without torch's C functions, and nothing stale."""

import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn

from pyssl_fast.kernels import flat
from pyssl_fast.kernels.flat import Members, TensorList


def tensors() -> list[torch.Tensor]:
    x = torch.randn(2, 3, 4, 5)
    return [
        x,
        nn.Parameter(x.to(torch.bfloat16)),
        x.to(memory_format=torch.channels_last),
        x[:, 1:, ::2],
        x.transpose(0, 3),
        torch.empty(0),
        torch.empty(3, 0, 2),
        torch.tensor(1.0),
        torch.arange(7),
        torch.empty(2, 2, device="meta"),
        x.to(torch.complex64),
    ]


@pytest.fixture(params=["torch's C functions", "Python"])
def reader(request, monkeypatch):
    if request.param == "Python":
        monkeypatch.setattr(flat, "_TORCH", None)
    elif flat._TORCH is None:
        pytest.skip("the extension is not built, or torch has no libtorch_cpu.so here")


def test_says_what_the_tensors_say(reader):
    found = TensorList(tensors())
    signature = found.signature
    assert found.addresses == [x.data_ptr() for x in found]
    assert signature.dtypes == tuple(x.dtype for x in found)
    assert signature.shapes == tuple(x.shape for x in found)
    assert signature.strides == tuple(x.stride() for x in found)
    assert signature.devices == tuple(x.device for x in found)


def test_equal_lists_have_one_signature(reader):
    assert TensorList(tensors()).signature is TensorList(tensors()).signature


def test_both_readers_give_one_signature(monkeypatch):
    one = TensorList(tensors()).signature
    monkeypatch.setattr(flat, "_TORCH", None)
    assert TensorList(tensors()).signature is one


def test_any_difference_gives_another_signature(reader):
    x = torch.zeros(2, 6)
    lists = ([x], [x.double()], [x.view(6, 2)], [x.t()], [x, x], [x[:1]], [x.to("meta")], [x.view(2, 6, 1)])
    signatures = [TensorList(of).signature for of in lists]
    assert all(a is not b for a, b in itertools.combinations(signatures, 2))


def test_a_list_is_read_again_by_refresh_alone(reader):
    p = nn.Parameter(torch.zeros(3))
    found = TensorList([p])
    before = found.addresses
    assert found.refresh()
    p.data = torch.zeros(4)
    assert found.addresses == before
    assert not found.refresh()
    assert found.addresses == [p.data_ptr()] and found.signature.shapes == (torch.Size([4]),)
    assert found.refresh()


def test_swapped_tensors_are_followed(reader):
    p, q = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(5))
    found = TensorList([p])
    assert found.refresh() is False
    torch.utils.swap_tensors(p, q)
    assert not found.refresh()
    assert found.addresses == [p.data_ptr()] and found.signature.shapes == (torch.Size([5]),)


def test_what_has_no_memory_is_left_to_python():
    if flat._TORCH is None:
        pytest.skip("the extension is not built, or torch has no libtorch_cpu.so here")
    sparse = torch.eye(3).to_sparse()
    assert flat._TORCH.look([torch.zeros(1), sparse]) is None
    assert flat._TORCH.look([torch.zeros(1), "no tensor"]) is None


def test_the_signatures_that_are_kept_are_bounded(monkeypatch):
    monkeypatch.setattr(flat, "_SIGNATURES", {})
    monkeypatch.setattr(flat, "_MOST_SIGNATURES", 4)
    for size in range(1, 20):
        assert TensorList([torch.empty(size)]).signature.shapes == (torch.Size([size]),)
        assert len(flat._SIGNATURES) <= 4 or flat._TORCH is None


@pytest.mark.parametrize("built", [True, False])
def test_members_notice_every_change(built, monkeypatch):
    if not built:
        monkeypatch.setattr(flat, "_cpu", None)
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    dicts = [d for m in model.modules() for d in (m._parameters, m._buffers, m._modules)]

    def noticed(change) -> bool:
        members = Members(dicts)
        assert members.unchanged()
        change()
        return not members.unchanged()

    assert noticed(lambda: model.append(nn.ReLU()))
    assert noticed(lambda: model.register_buffer("count", torch.zeros(1)))
    assert noticed(lambda: setattr(model[0], "weight", nn.Parameter(torch.zeros(2, 2))))
    assert noticed(lambda: model[0].register_parameter("bias", None))
    assert noticed(lambda: (model.pop(0), model.insert(0, nn.Linear(2, 2))))  # often at the address of the old one
    assert not noticed(lambda: model[0].weight.data.zero_())


class Liar(torch.Tensor):
    """Says that it has another shape than it has."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), settings=None):
        found = super().__torch_function__(function, types, arguments, settings or {})
        return torch.Size([10**8]) if function is torch.Tensor.shape.__get__ else found


def test_what_a_subclass_says_holds_for_no_other_tensor(reader):
    _ = TensorList([torch.zeros(77).as_subclass(Liar)]).signature
    assert TensorList([torch.zeros(77)]).signature.shapes == (torch.Size([77]),)


def test_the_default_device_is_left_alone():
    code = "import torch; torch.set_default_device('cuda'); import pyssl_fast.optim"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
