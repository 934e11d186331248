"""Samples varied by their own numbers, in loaders of any kind."""

import copy
import pickle

import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from pyssl_fast.augment import AugmentedDataset, Recipe, Transform, two_views

IMAGES = torch.randint(0, 256, (10, 3, 20, 17), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
TRANSFORM = Transform(two_views(Recipe(size=(12, 10), horizontal_flip=0.5, brightness=0.4)), seed=3)


def loaded(data: AugmentedDataset, **options: object) -> dict[int, list[torch.Tensor]]:
    """The views by label, which is the sample's number."""
    made = {}
    for views, labels in DataLoader(data, **options):
        made |= {int(label): [view[i] for view in views] for i, label in enumerate(labels)}
    return made


def same(some: dict, others: dict) -> bool:
    return some.keys() == others.keys() and all(all(map(torch.equal, some[i], others[i])) for i in some)


def test_views_of_a_sample_are_its_own_in_every_loader():
    data = AugmentedDataset(TensorDataset(IMAGES, torch.arange(10)), TRANSFORM)
    expected = {i: TRANSFORM(IMAGES[i], index=i) for i in range(10)}
    assert len(data) == 10 and same(loaded(data, batch_size=4), expected)
    assert same(loaded(data, batch_size=3, shuffle=True, num_workers=2), expected)
    assert same(loaded(data, batch_size=1, sampler=range(0, 10, 3)), {i: expected[i] for i in range(0, 10, 3)})
    assert torch.equal(data[-1][0][0], expected[9][0])


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("made", [lambda x: x, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_workers_that_persist_learn_of_the_epoch(start, made):
    data = made(AugmentedDataset(TensorDataset(IMAGES, torch.arange(10)), TRANSFORM))
    loader = DataLoader(data, batch_size=5, num_workers=1, persistent_workers=True, multiprocessing_context=start)
    for epoch in (0, 1, 5):
        data.set_epoch(epoch)
        views = [view for (view, _), _ in loader]
        assert torch.equal(torch.cat(views), TRANSFORM(IMAGES, index=range(10), epoch=epoch)[0])


def test_images_alone_are_samples_too():
    first, second = AugmentedDataset(list(IMAGES), TRANSFORM)[2]
    assert all(map(torch.equal, (first, second), TRANSFORM(IMAGES[2], index=2)))
    half = AugmentedDataset(Subset(list(IMAGES), [4, 2]), TRANSFORM)  # a number is that in the data set that is given
    assert torch.equal(half[1][0], TRANSFORM(IMAGES[2], index=1)[0])


def test_wrong_arguments():
    with pytest.raises(TypeError, match="transform must be a Transform; got function"):
        AugmentedDataset(list(IMAGES), lambda x: x)
    with pytest.raises(ValueError, match="transform must have a seed"):
        AugmentedDataset(list(IMAGES), Transform(Recipe(size=8)))
    data = AugmentedDataset(list(IMAGES), TRANSFORM)
    with pytest.raises(ValueError, match="epoch must be 0 or more"):
        data.set_epoch(-1)
    for index in (10, -11):
        with pytest.raises(IndexError, match=f"there are 10 samples; got index {index}"):
            data[index]
