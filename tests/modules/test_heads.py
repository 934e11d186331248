"""Heads: their shapes, and that lightly's of the same name can be replaced by them, weights included."""

import lightly.models.modules.heads as lightly_heads
import pytest
import torch

from pyssl_fast import modules
from pyssl_fast.modules import ProjectionHead


def test_projection_head():
    assert ProjectionHead(6, 5, 4)(torch.randn(3, 6)).shape == (3, 4)
    expander = ProjectionHead(6, 5, 4, hidden_layers=2)
    assert expander(torch.randn(3, 6)).shape == (3, 4)
    linear = [layer for layer in expander.layers if isinstance(layer, torch.nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linear] == [(5, 6), (5, 5), (4, 5)]


def test_output_norm_leaves_embeddings_of_mean_0_and_variance_1():
    embeddings = ProjectionHead(6, 5, 4, output_norm=True)(torch.randn(50, 6))
    torch.testing.assert_close(embeddings.mean(0), torch.zeros(4), rtol=0, atol=1e-6)
    torch.testing.assert_close(embeddings.var(0, correction=0), torch.ones(4), rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    "name", ["BYOLProjectionHead", "BYOLPredictionHead", "SimSiamProjectionHead", "SimSiamPredictionHead"]
)
def test_heads_are_lightlys(name):
    torch.manual_seed(0)
    peer, ours = getattr(lightly_heads, name)(6, 5, 4), getattr(modules, name)(6, 5, 4)
    ours.load_state_dict(peer.state_dict())
    features = torch.randn(7, 6)
    for _ in range(2):  # in training, then in evaluation
        assert torch.equal(ours(features), peer(features))
        ours.eval(), peer.eval()
    with torch.device("meta"):
        default, peer = getattr(modules, name)(), getattr(lightly_heads, name)()
    shapes = [{key: value.shape for key, value in head.state_dict().items()} for head in (default, peer)]
    assert shapes[0] == shapes[1]
