"""NVIDIA DALI in front of our augmentation: it decodes, and what comes is a function of seed, epoch and image alone."""

from __future__ import annotations

import dataclasses
import io
import itertools
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pyssl_fast.augment import Parameters, Recipe, Views
from pyssl_fast.augment.parameters import DTYPES, SATURATION
from pyssl_fast.augment.sampling import check_counter
from pyssl_fast.data.encoded import Source, open_source, unreadable
from pyssl_fast.data.images import DataError
from pyssl_fast.functional.checks import check_choice, check_count

try:
    from nvidia.dali import Pipeline, fn, pipeline_def, types
    from nvidia.dali import math as dali_math
except ImportError as error:
    raise ImportError("pyssl_fast.data.dali needs NVIDIA DALI: pip install pyssl_fast[dali]") from error

Bytes = npt.NDArray[np.uint8]


class DALIBatch(NamedTuple):
    """views: one [B, C, height, width] per recipe; labels: [B] int64, None where the source has none; indices: [B]
    int64, each image's number in the source."""

    views: list[Tensor]
    labels: Tensor | None
    indices: Tensor


class _Planned(NamedTuple):
    """A batch to come. cursor: the place in the order that follows it."""

    indices: list[int]
    cursor: int


class _Unreadable(Exception):
    def __init__(self, index: int, message: str) -> None:
        self.index = index
        self.message = message


class DALILoader:
    """Batches of views from encoded images, for one process: `for views, labels, indices in loader`.

    An image is decoded once for all its views. Which views it gets depends on (seed, epoch, index) alone, not on batch
    size, rank or threads; the order of the images on (seed, epoch). Rank r takes every world_size-th image from the
    r-th on: batch k of all ranks together is batch k of one process with world_size times the batch size. Every rank
    has as many batches as the others.

    Every `for` is an epoch, each time the next one. `state_dict()` counts the batches that were handed out: a loader
    with the same arguments that loads it goes on with the batch that would have come next, in mid-epoch too.
    After an error too the next `for` is the next epoch; `load_state_dict(state_dict())` first goes on in mid-epoch.

    Images come as a viewer shows them: upright by their EXIF orientation (torchvision's ImageFolder with Transform
    leaves them as they are stored), grey and CMYK as RGB, 16 bits scaled to 8; transparency is dropped. JPEG, PNG,
    WebP, BMP, TIFF and PNM are read, of archives the first three. A JPEG that is complete, but damaged inside,
    may be decoded as noise.

    Args:
        source: a folder of class folders, or of images; a list of files, or of pairs (file, label); WebDataset's .tar
            archives, as a path, a pattern or a list. See `encoded.open_source`. Archives are indexed here; images are
            read when they are due.
        recipe: of pyssl_fast.augment; Views for several views of an image.
        batch_size: images per batch and rank.
        device: "cpu", or the CUDA device that decodes, augments, and holds the batches; a number is a CUDA device's.
        epoch: of the first `for`, counted from 0.
        seed: of order and views, 0 to 2⁶³ − 1, as the epoch.
        shuffle: whether each epoch has an order of its own, or the source's.
        rank, world_size: of this process, and how many there are.
        drop_last: leave out what does not fill a batch on every rank. Else the last batch is short, and ranks that have
            an image less than others repeat one from the beginning of the order.
        dtype: of the views: uint8 or floating-point.
        on_error: of an image that cannot be read: "raise" a DataError that names it; "skip" warns once per image,
            leaves it out from then on, and puts the next of the order in its place, after the last one the first,
            where a rank has none left another rank's: batches stay full, and ranks in step.
        threads: DALI's, and as many that read files.
        prefetch: batches that are decoded ahead.
        augment: "pyssl_fast"; or "dali": the same crops, flips and factors by DALI's operators, rounded to uint8 after
            each. The jitter is another there: one matrix per image, in one order for all, contrast before brightness;
            contrast about mid-grey, not the image's mean; hue as a rotation in YIQ, not HSV. No quarter turns, affine
            maps, inversion, posterising or erasing.
        decode_size: where the shorter side of an image is longer, it is scaled to it, in pixels, antialiased, before
            anything else: less memory for each batch decoded ahead. None: all stay as they are.

    Raises:
        TypeError, ValueError: a wrong argument.
        DataError: a source without images; while iterating, an image that cannot be read, or none that can.
    """

    def __init__(
        self,
        source: Source,
        recipe: Recipe | Views,
        batch_size: int,
        *,
        device: str | int | torch.device = "cpu",
        epoch: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
        dtype: torch.dtype = torch.float32,
        on_error: str = "raise",
        threads: int = 2,
        prefetch: int = 2,
        augment: str = "pyssl_fast",
        decode_size: int | None = None,
    ) -> None:
        if not isinstance(recipe, (Recipe, Views)):
            raise TypeError(f"recipe must be a Recipe or Views of pyssl_fast.augment; got {type(recipe).__name__}")
        for name, value, low in (
            *(("batch_size", batch_size, 1), ("rank", rank, 0), ("world_size", world_size, 1)),
            *(("threads", threads, 1), ("prefetch", prefetch, 1)),
            ("decode_size", 1 if decode_size is None else decode_size, 1),
        ):
            check_count(name, value, low)
        check_counter("epoch", epoch)
        check_counter("seed", seed)
        if rank >= world_size:
            raise ValueError(f"rank must be less than world_size = {world_size}; got {rank}")
        check_choice("on_error", on_error, ("raise", "skip"))
        check_choice("augment", augment, ("pyssl_fast", "dali"))
        if dtype not in DTYPES:
            raise TypeError(f"dtype must be uint8 or floating-point; got {dtype}")
        self.views = recipe if isinstance(recipe, Views) else Views((recipe,))
        self.device = _device(device)
        self.images = open_source(source)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.drop_last = drop_last
        self.dtype = dtype
        self.on_error = on_error
        self.threads = threads
        self.prefetch = prefetch
        self.decode_size = decode_size
        count = len(self.images)
        if drop_last and count // world_size < batch_size:
            raise ValueError(
                f"batch_size must be {count // world_size} or less, for {count} images on {world_size} ranks to fill a"
                f" batch; got {batch_size}"
            )
        self._per_rank = count // world_size // batch_size * batch_size if drop_last else -(-count // world_size)
        self._dali = DALIViews(self.views, batch_size, self.device, threads) if augment == "dali" else None
        self._unreadable: set[int] = set()
        self._iteration = 0  # the latest one's number: older ones are over
        self._decoding = self._decode(iter(()))
        self.set_epoch(epoch)

    def __len__(self) -> int:
        """Batches per epoch and rank."""
        return -(-self._per_rank // self.batch_size)

    @property
    def epoch(self) -> int:
        """The epoch that is under way, or due where none was begun."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """End an iteration under way; the next `for` is that epoch, from its beginning."""
        check_counter("epoch", epoch)
        self.close()
        self._epoch = epoch
        self._batches = self._cursor = 0  # handed out; the place in the order that follows
        self._begun = False

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on behind the last batch that was handed out: plain numbers and text."""
        return {
            **self._identity(),
            "epoch": self._epoch,
            "batches": self._batches,
            "cursor": self._cursor,
            "unreadable": sorted(self._unreadable),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """End an iteration under way; the next `for` goes on there.

        Raises ValueError for the state of a loader with other batches or views (the dtype may differ), and ValueError
        or TypeError for a place that the loader does not have.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                if name == "source" and name in state:  # digests would say nothing
                    raise ValueError(
                        f"state must be of a loader with the same source; of the {len(self.images)} images here files"
                        " (their names below the folder that holds them all), order or labels differ from the state's"
                    )
                raise ValueError(f"state must be of a loader with {name} = {value}; got {state.get(name)}")
        place: list[Any] = [state.get(name) for name in ("epoch", "batches", "cursor", "unreadable")]
        epoch, batches, cursor, unreadable = place
        if not isinstance(unreadable, (list, tuple)):
            raise TypeError(f"unreadable must be a list; got {type(unreadable).__name__}")
        for name, value in (
            *(("epoch", epoch), ("batches", batches), ("cursor", cursor)),
            *(("unreadable", index) for index in unreadable),
        ):
            check_count(name, value, 0)
        handed_out = min(batches * self.batch_size, self._per_rank)
        for name, value, low, high in (
            ("batches", batches, 0, len(self)),
            # Each image may have been looked for through a whole order.
            ("cursor", cursor, handed_out, handed_out * max(len(self.images), self._per_rank * self.world_size)),
            *(("unreadable", index, 0, len(self.images) - 1) for index in unreadable),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} must be {low} to {high}; got {value}")
        done = batches == len(self)
        self.set_epoch(epoch + done)
        if not done:
            self._batches, self._cursor = batches, cursor
        self._unreadable = set(unreadable)

    def _identity(self) -> dict[str, Any]:
        names = ("batch_size", "seed", "shuffle", "rank", "world_size", "drop_last", "decode_size")
        return {
            "images": len(self.images),
            "source": self.images.fingerprint,
            "views": repr([dataclasses.astuple(recipe) for recipe in self.views.recipes]),  # repr rounds
            "augment": "pyssl_fast" if self._dali is None else "dali",
            **{name: getattr(self, name) for name in names},
        }

    def close(self) -> None:
        """End an iteration under way, and free its threads and memory; the next `for` is another epoch."""
        self._iteration += 1
        self._decoding.close()

    def __enter__(self) -> DALILoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[DALIBatch]:
        if self._begun:
            self.set_epoch(self._epoch + 1)
        self._begun = True
        mine = self._iteration
        order = self._order()
        while self._batches < len(self):
            # Planned anew, from the last batch that was handed out, when an image turns out to be unreadable.
            decoding = self._decoding = self._decode(self._read(self._plan(order)))
            try:
                for planned, decoded in decoding:
                    batch = self._batch(planned.indices, decoded)
                    self._batches, self._cursor = self._batches + 1, planned.cursor
                    yield batch
                    if mine != self._iteration:
                        raise RuntimeError("this iteration is over: another was begun or set, or the loader closed")
            except _Unreadable as error:
                self._leave_out(error)
            finally:
                decoding.close()

    def _order(self) -> npt.NDArray[np.int64]:
        """All ranks' images; behind those of their batches what may take the place of one that cannot be read."""
        count = len(self.images)
        shuffled = np.random.default_rng((self.seed, self._epoch)).permutation
        order = shuffled(count) if self.shuffle else np.arange(count)
        if not self.drop_last:
            order = np.resize(order, self._per_rank * self.world_size)  # repeats from the beginning
        return order

    def _plan(self, order: npt.NDArray[np.int64]) -> Iterator[_Planned]:
        mine = order[self.rank :: self.world_size].tolist()
        if self._unreadable.issuperset(mine):  # the others' then, for ranks to stay in step
            mine = np.roll(order, -self.rank).tolist()
        if self._unreadable.issuperset(mine):
            raise DataError(f"none of the {len(self.images)} images can be read")
        cursor = self._cursor
        for number in range(self._batches, len(self)):
            size = min(self.batch_size, self._per_rank - number * self.batch_size)
            indices: list[int] = []
            while len(indices) < size:
                index = mine[cursor % len(mine)]
                cursor += 1
                if index not in self._unreadable:
                    indices.append(index)
            yield _Planned(indices, cursor)

    def _leave_out(self, error: _Unreadable) -> None:
        if self.on_error == "raise":
            raise DataError(error.message) from error.__cause__
        warnings.warn(f"{error.message}; it is left out", stacklevel=3)
        self._unreadable.add(error.index)

    def _read(self, plan: Iterator[_Planned]) -> Iterator[tuple[_Planned, list[Bytes]]]:
        """Each batch's files; the next one's are read meanwhile."""
        pool = ThreadPoolExecutor(self.threads)
        try:
            reading: deque[tuple[_Planned, list[Future[Bytes]]]] = deque()
            for planned in itertools.chain(plan, [None]):
                if planned is not None:
                    reading.append((planned, [pool.submit(self.images.read, index) for index in planned.indices]))
                if len(reading) > 1 or planned is None:
                    yield self._gather(*reading.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _gather(self, planned: _Planned, files: list[Future[Bytes]]) -> tuple[_Planned, list[Bytes]]:
        raw = []
        for index, file in zip(planned.indices, files, strict=True):
            try:
                raw.append(file.result())
            except DataError as error:
                raise _Unreadable(index, str(error)) from error
        return planned, raw

    def _decode(self, read: Iterator[tuple[_Planned, list[Bytes]]]) -> Generator[tuple[_Planned, Any], None, None]:
        """Each batch as DALI's TensorList of uint8 [H, W, 3]; `prefetch` of them are decoded ahead.

        By a pipeline of its own, built in 2 ms: one that has met an image it cannot decode is of no use any more.
        """
        decoding = deque(itertools.islice(read, self.prefetch))
        pipeline = self._pipeline(self.batch_size, len(decoding))
        for _, raw in decoding:
            pipeline.feed_input("encoded", raw)
        pipeline.schedule_run()  # the first time, as often as the queue is deep
        while decoding:
            planned, raw = decoding.popleft()
            try:
                (decoded,) = pipeline.outputs(self._stream())
            except Exception as error:  # DALI has several
                self._find_unreadable(planned.indices, raw, error)
                raise
            following = next(read, None)
            if following is not None:
                decoding.append(following)
                pipeline.feed_input("encoded", following[1])
                pipeline.schedule_run()
            yield planned, decoded

    def _pipeline(self, batch_size: int, depth: int) -> Pipeline:
        on_gpu = self.device.type == "cuda"
        pipeline = Pipeline(batch_size, self.threads, self.device.index, prefetch_queue_depth=depth)
        with pipeline:
            encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
            images = fn.decoders.image(encoded, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
            if self.decode_size is not None:
                shape = fn.peek_image_shape(encoded)
                shorter = dali_math.min(dali_math.min(shape[0], shape[1]), self.decode_size)
                images = fn.resize(images, resize_shorter=fn.cast(shorter, dtype=types.FLOAT))
            pipeline.set_outputs(images)
        pipeline.build()
        return pipeline

    def _stream(self) -> Any:
        """What DALI hands over is ordered on this stream, and freed in its order."""
        return torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None

    def _find_unreadable(self, indices: list[int], raw: list[Bytes], cause: Exception) -> None:
        """Raises _Unreadable for the first image that cannot be decoded by itself: DALI does not always tell."""
        pipeline = self._pipeline(1, 1)
        for index, encoded in zip(indices, raw, strict=True):
            pipeline.feed_input("encoded", [encoded])
            try:
                pipeline.run()
            except Exception:
                raise _Unreadable(index, unreadable(self.images.places[index], _reason(encoded))) from cause

    def _batch(self, indices: list[int], decoded: Any) -> DALIBatch:
        index = torch.tensor(indices, device="cpu")
        seed, epoch = self.seed, self._epoch
        if self._dali is not None:
            sizes = [tuple(image.shape()[:2]) for image in decoded]
            views = self._dali(decoded, self.views.sample(sizes, seed=seed, epoch=epoch, index=index), self._stream())
            views = [_to_dtype(view, self.dtype) for view in views]
        else:
            # Channels first, in place: an image 3 pixels high would be taken for one that is so already.
            images = [from_dlpack(image).permute(2, 0, 1) for image in decoded]
            views = self.views(images, seed=seed, epoch=epoch, index=index, dtype=self.dtype)
        labels = None if self.images.labels is None else torch.from_numpy(self.images.labels[indices]).to(self.device)
        return DALIBatch(views, labels, index.to(self.device))


def _device(device: str | int | torch.device) -> torch.device:
    try:
        found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be cpu or a CUDA device; got {device!r}") from error
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or a CUDA device; got {found}")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device must be cpu where torch finds no CUDA device; got {found}")
    return found


def _to_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    return (x * 255).round_().clamp_(0, 255).to(dtype) if dtype == torch.uint8 else x.to(dtype)


def _reason(encoded: Bytes) -> str:
    """Pillow's, whose words say more than DALI's."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(encoded.tobytes())) as image:
            warnings.simplefilter("ignore")
            image.load()
            return f"DALI cannot decode this {image.format}"
    except Exception as error:  # what a broken file raises differs by format: OSError, SyntaxError, ValueError, ...
        return "not an image" if "cannot identify" in str(error) else str(error)


class DALIViews:
    """Views by DALI's operators, from our parameters: a peer, not a twin, as DALILoader's `augment` says.

    Args:
        recipes: one per view.
        batch_size: images at most.
        device: of the images and of the views.
        threads: on the CPU.

    Raises:
        ValueError: a recipe has an operation that is missing here.
    """

    def __init__(self, recipes: Views, batch_size: int, device: torch.device, threads: int) -> None:
        for recipe in recipes.recipes:
            for name in ("turns", "affine", "invert", "posterize", "erase"):
                if recipe.moves if name == "affine" else getattr(recipe, name):
                    raise ValueError(f"recipe must have no {name} with augment='dali'; got {recipe!r}")
        self._pipeline = _chains(
            recipes.recipes,
            "gpu" if device.type == "cuda" else "cpu",
            batch_size=batch_size,
            num_threads=threads,
            device_id=device.index,
            prefetch_queue_depth=1,
        )
        self._pipeline.build()

    def __call__(self, images: Any, parameters: Sequence[Parameters], stream: Any = None) -> list[Tensor]:
        """float32 [B, 3, height, width] per view. images: DALI's TensorList of B images, uint8 [H, W, 3]."""
        self._pipeline.feed_input("images", images, cuda_stream=stream)
        for number, p in enumerate(parameters):
            self._pipeline.feed_input(f"rows{number}", list(_rows(p).numpy()))
        return [from_dlpack(view.as_tensor()).clone() for view in self._pipeline.run(stream)]


def _rows(p: Parameters) -> Tensor:
    """[B, 12] float32: box, flips, the jitter's factors, σ, whether solarized.

    Grey is a saturation of 0, before the jitter as after it: in YIQ neither saturation nor hue changes a pixel's grey.
    """
    factors = torch.where(p.jitter, p.factors, p.factors.new_tensor([1.0, 1.0, 1.0, 0.0]))
    factors[:, SATURATION] *= ~p.grey
    columns = [p.horizontal_flip, p.vertical_flip, *factors.unbind(1), p.sigma, p.solarize]
    return torch.cat([p.box.float(), torch.stack([x.float() for x in columns], 1)], 1)


@pipeline_def(enable_conditionals=True)  # type: ignore[untyped-decorator]
def _chains(recipes: Sequence[Recipe], device: str) -> Any:
    images = fn.external_source(name="images", device=device, dtype=types.UINT8, ndim=3, layout="HWC")
    views = []
    for number, recipe in enumerate(recipes):
        row = fn.external_source(name=f"rows{number}", dtype=types.FLOAT, ndim=1)
        views.append(_chain(images, row, recipe))
    return tuple(views)


def _chain(images: Any, row: Any, recipe: Recipe) -> Any:
    box = fn.cast(row[0:4], dtype=types.INT32)
    x = fn.slice(images, start=box[0:2], shape=box[2:4], axis_names="HW")
    interpolation = types.INTERP_CUBIC if recipe.interpolation == "bicubic" else types.INTERP_LINEAR
    x = fn.resize(x, size=recipe.size, interp_type=interpolation, antialias=recipe.antialias)
    flips = fn.cast(row[4:6], dtype=types.INT32)
    x = fn.flip(x, horizontal=flips[0], vertical=flips[1])
    if recipe.jitters or recipe.grey > 0:
        x = fn.color_twist(x, brightness=row[6], contrast=row[7], saturation=row[8], hue=360 * row[9])
    if recipe.blur > 0 and row[10] > 0:
        x = fn.gaussian_blur(x, sigma=row[10], window_size=recipe.taps())
    if recipe.solarize > 0 and row[11] > 0:
        light = x >= 255 * recipe.threshold
        x = fn.cast(x + light * (255 - 2 * fn.cast(x, dtype=types.INT16)), dtype=types.UINT8)
    mean, std = recipe.mean or (0.0,), recipe.std or (1.0,)
    return fn.crop_mirror_normalize(
        x,
        dtype=types.FLOAT,
        output_layout="CHW",
        mean=[255 * number for number in mean],
        std=[255 * number for number in std],
    )
