"""A data set whose samples are varied by their own numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset

from pyssl_fast.augment.sampling import check_counter
from pyssl_fast.augment.transform import Transform


class AugmentedDataset(Dataset[Any]):
    """Another data set's samples through a Transform with a seed, which is told their index and the epoch.

    A sample gets the same views in an epoch whatever the batches, the sampler, the number of workers or the rank.

    Args:
        dataset: of known length; `dataset[i]` is an image as Transform takes them, or a tuple or list that begins with
            one.
        transform: of a seed.

    Raises:
        TypeError, ValueError: it is no Transform, or one without a seed.
    """

    def __init__(self, dataset: Any, transform: Transform) -> None:
        if not isinstance(transform, Transform):
            raise TypeError(f"transform must be a Transform; got {type(transform).__name__}")
        if transform.seed is None:
            raise ValueError("transform must have a seed; one without draws by itself, and can stand in the data set")
        self.dataset = dataset
        self.transform = transform
        # In shared memory: workers that persist read it there.
        self._epoch = torch.zeros((), dtype=torch.int64, device="cpu").share_memory_()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._epoch.share_memory_()  # a copy's is its own; a worker's, which arrives shared, stays

    def set_epoch(self, epoch: int) -> None:
        """Of the samples to come: to be called before the loader is iterated. 0 at first."""
        check_counter("epoch", epoch)
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """The views, or a tuple of them and what came with the image."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} samples; got index {index}")
        index %= len(self)
        sample = self.dataset[index]
        image, *others = sample if isinstance(sample, (tuple, list)) else (sample,)
        return self.transform(image, *others, index=index, epoch=int(self._epoch))
