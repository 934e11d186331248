"""What keeps methods without negatives from collapse, taken away, is seen by the watch within an epoch."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.data.tiny import idx
from tests.recipes.test_engine import begin

DIGITS = 1024  # scikit-learn's, of 8x8 pixels, each made 2x2


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    found = load_digits()
    images = np.kron(found.images[:DIGITS], np.full((1, 2, 2), 15)).astype(np.uint8)
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(found.target[:DIGITS].astype(np.uint8)))
    return folder


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("method", "options"), [("byol", {}), ("simsiam", {"output_norm": False})])
def test_the_watch_sees_collapse_without_predictor_or_stop_gradient_within_an_epoch(
    digits, tmp_path, method, options, seed
):
    spreads = {}
    for ablation in (None, "predictor", "stop_gradient"):
        settings = {"batch_size": 32, "epochs": 1, "learning_rate": 1e-2, "seed": seed}
        chosen = options | ({} if ablation is None else {ablation: False})
        *_, last = begin(digits, tmp_path / str(ablation), method=method, options=chosen, **settings).train()
        spreads[ablation] = last.spread
    healthy = spreads.pop(None)
    assert not healthy.collapsed
    assert all(spread.collapsed for spread in spreads.values())
    assert all(spread.spread < healthy.spread / 4 for spread in spreads.values())
