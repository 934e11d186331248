"""Augment family: whole recipes, our kernels beside their peers.

A case is a batch of `rows` decoded pictures, uint8 [dim, dim, 3]: of each the recipe's views, normalised float32
[3, height, width], by parameters drawn anew in every call. What is written to is there before the first measured call,
and so are the peers' processes and pipelines.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from pyssl_fast import augment
from pyssl_fast.augment import Parameters, Recipe, Views
from pyssl_fast.benchmark.cases import Call, Case, Peer, System

# ---- inputs --------------------------------------------------------------------------------------------------------


def pictures(views: Views, case: Case, generator: Generator) -> tuple[Tensor, ...]:
    """Cuts [B, dim, dim, 3] of two photographs that scikit-learn ships, uint8; a float32 result for every view."""
    from sklearn.datasets import load_sample_images

    photos = [torch.from_numpy(np.array(photo)) for photo in load_sample_images().images]
    images = torch.empty(case.rows, case.dim, case.dim, 3, dtype=torch.uint8)
    for i, image in enumerate(images):
        photo = photos[i % len(photos)]
        height, width = (max(side, case.dim) for side in photo.shape[:2])
        if (height, width) != photo.shape[:2]:
            photo = F.interpolate(photo.permute(2, 0, 1)[None].float(), (height, width)).byte()[0].permute(1, 2, 0)
        top, left = (int(torch.randint(side - case.dim + 1, (), generator=generator)) for side in (height, width))
        image.copy_(photo[top : top + case.dim, left : left + case.dim])
    # Filled, or the first call would take the memory.
    results = (torch.ones(case.rows, 3, *recipe.size, device=case.device) for recipe in views.recipes)
    return images.to(case.device), *results


# ---- ours, and torchvision with the same parameters ------------------------------------------------------------------

Run = Callable[[Tensor, Parameters, Tensor], object]  # (images, parameters, out)


def _with_parameters(run: Run, views: Views, case: Case, images: Tensor, *results: Tensor) -> Call:
    """Each call draws the next epoch's: in one round of a benchmark, the same for all sides that take them."""
    epochs = itertools.count()

    def call() -> None:
        drawn = views.sample(images.shape, seed=0, epoch=next(epochs))
        for parameters, out in zip(drawn, results, strict=True):
            run(images, parameters, out)

    return call


def _ours(images: Tensor, parameters: Parameters, out: Tensor) -> None:
    augment.apply(images, parameters, out=out)


def torchvision_loop(images: Tensor, parameters: Parameters, out: Tensor, *, floats: bool = True) -> None:
    """Image by image through torchvision's functions, on floats from the start, or from the normalisation on."""
    from torchvision.transforms.v2 import functional as tv

    p = parameters
    mode = tv.InterpolationMode(p.interpolation)
    colours = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    rows = (p.box, p.horizontal_flip, p.order, p.jitter, p.factors, p.grey, p.sigma, p.solarize, p.threshold)
    for x, y, *row in zip(images.permute(0, 3, 1, 2), out, *(column.tolist() for column in rows), strict=True):
        box, flip, order, jitter, factors, grey, sigma, solarize, threshold = row
        x = tv.to_dtype(x, torch.float32, scale=True) if floats else x
        x = tv.resized_crop(x, *box, list(p.size), mode, p.antialias)
        x = tv.horizontal_flip(x) if flip else x
        for k in order:
            x = colours[k](x, factors[k]) if jitter[k] else x
        x = tv.rgb_to_grayscale(x, 3) if grey else x
        x = tv.gaussian_blur(x, [p.blur_kernel] * 2, [sigma] * 2) if sigma else x
        x = tv.solarize(x, threshold if floats else 255 * threshold) if solarize else x
        x = x if floats else tv.to_dtype(x, torch.float32, scale=True)
        y.copy_(tv.normalize(x, list(p.mean), list(p.std)))


# ---- peers that draw their own parameters ----------------------------------------------------------------------------


def _factors(strength: float) -> tuple[float, float]:
    return max(0.0, 1 - strength), 1 + strength


def albumentations_chain(recipe: Recipe, seed: int) -> Callable[..., dict[str, Any]]:
    """(image=[H, W, 3] uint8) -> {"image": [height, width, 3] float32}. No interpolation is antialiased."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or the import asks the network for a newer version
    import albumentations
    import cv2

    r, make = recipe, albumentations
    bicubic = r.interpolation == "bicubic"
    steps = [
        make.RandomResizedCrop(r.size, r.scale, r.ratio, cv2.INTER_CUBIC if bicubic else cv2.INTER_LINEAR),
        make.HorizontalFlip(p=r.horizontal_flip),
    ]
    if r.jitters:
        colours = (_factors(v) for v in (r.brightness, r.contrast, r.saturation))
        steps.append(make.ColorJitter(*colours, (-r.hue, r.hue), p=r.jitter))
    if r.grey:
        steps.append(make.ToGray(p=r.grey))
    if r.blur:
        steps.append(make.GaussianBlur((r.taps(), r.taps()), r.sigma, p=r.blur))
    if r.solarize:
        steps.append(make.Solarize((r.threshold, r.threshold), p=r.solarize))
    return make.Compose([*steps, make.Normalize(r.mean, r.std)], seed=seed)


def _serve(
    wire: Any, number: int, views: Views, images: Any, shape: Sequence[int], results: Sequence[Any], claimed: Any
) -> None:
    """What each of the processes does: it takes images, one by one, until there are no more, and waits to be asked."""
    try:
        import cv2

        cv2.setNumThreads(0)
        chains = [albumentations_chain(recipe, number + 1) for recipe in views.recipes]
        each_image = np.frombuffer(images, np.uint8).reshape(shape)
        outs = [_planes(out, shape[0], recipe) for out, recipe in zip(results, views.recipes, strict=True)]
        while wire.recv():
            while True:
                with claimed.get_lock():
                    i = claimed.value
                    claimed.value += 1
                if i >= len(each_image):
                    break
                for chain, out in zip(chains, outs, strict=True):
                    cv2.split(chain(image=each_image[i])["image"], list(out[i]))  # 38 µs; copying a transpose 54
            wire.send(None)
    except EOFError:  # nobody will ask again
        pass
    except Exception as error:
        wire.send(f"{type(error).__name__}: {error}")


def _planes(memory: Any, images: int, recipe: Recipe) -> Any:
    return np.frombuffer(memory, np.float32).reshape(images, 3, *recipe.size)


class Workers:
    """albumentations in processes that stay, one for each of torch's threads, from and into shared memory.

    Two processes are its fastest way on two cores: of SimCLR's views 2,640 images/s, where one process reaches 1,460
    with two threads of OpenCV and 1,400 with one, two threads of Python 1,810 (Zen 4).

    Attributes:
        results: [B, 3, height, width] float32 of every view.
    """

    def __init__(self, views: Views, images: Tensor) -> None:
        context = multiprocessing.get_context("spawn")  # fork would copy the locks that torch's threads hold
        memory = context.RawArray("B", images.numel())
        np.frombuffer(memory, np.uint8)[:] = images.flatten().numpy()
        outs = [context.RawArray("f", len(images) * 3 * recipe.size[0] * recipe.size[1]) for recipe in views.recipes]
        self.results = [_planes(out, len(images), recipe) for out, recipe in zip(outs, views.recipes, strict=True)]
        self._claimed = context.Value("q", 0)
        self._wires = []
        for number in range(torch.get_num_threads()):
            wire, theirs = context.Pipe()
            arguments = (theirs, number, views, memory, tuple(images.shape), outs, self._claimed)
            context.Process(target=_serve, args=arguments, daemon=True).start()
            theirs.close()
            self._wires.append(wire)

    def __call__(self) -> None:
        """Augment all images once.

        Raises:
            RuntimeError: a process has failed.
        """
        self._claimed.value = 0
        try:
            for wire in self._wires:
                wire.send(True)
            failed = [failure for failure in [wire.recv() for wire in self._wires] if failure]
        except (EOFError, OSError):
            failed = ["it has ended"]
        if failed:
            raise RuntimeError(f"a process of albumentations: {failed[0]}")


def _albumentations(views: Views, case: Case, images: Tensor, *results: Tensor) -> Call:
    workers = cache(partial(Workers, views, images))  # the processes start with the first call
    return lambda: workers()()


def dali_pipeline(views: Views, images: Tensor) -> Any:
    """`run()` -> ([B, 3, height, width] float32 in DALI's memory) of a recipe without solarization.

    It draws its own parameters: by ours, as `data.dali.DALIViews` does it, SimCLR takes 1.14 times as long, a crop 1.9.
    """
    from nvidia.dali import fn, pipeline_def, types

    (r,) = views.recipes
    pictures = list(images.numpy())
    interpolation = types.INTERP_CUBIC if r.interpolation == "bicubic" else types.INTERP_LINEAR
    mean, std = ([255 * x for x in numbers] for numbers in (r.mean, r.std))

    # Left as it is, a pipeline makes the next batch while other sides are measured: its own call then takes 0.8 ms, of
    # 150. Without, it makes as many images a second.
    settings = {"enable_conditionals": True, "exec_async": False, "exec_pipelined": False}
    sizes = {"batch_size": len(pictures), "num_threads": torch.get_num_threads(), "device_id": None, "seed": 1}

    def pipeline() -> Any:
        x = fn.external_source(source=lambda: pictures, layout="HWC", dtype=types.UINT8, ndim=3, no_copy=True)
        x = fn.random_resized_crop(
            x,
            size=r.size,
            random_area=r.scale,
            random_aspect_ratio=r.ratio,
            interp_type=interpolation,
            antialias=r.antialias,
        )
        if r.jitters:
            if fn.random.coin_flip(probability=r.jitter, dtype=types.BOOL):
                x = fn.color_twist(
                    x,
                    brightness=fn.random.uniform(range=_factors(r.brightness)),
                    contrast=fn.random.uniform(range=_factors(r.contrast)),
                    saturation=fn.random.uniform(range=_factors(r.saturation)),
                    hue=fn.random.uniform(range=(-360 * r.hue, 360 * r.hue)),
                )
            if fn.random.coin_flip(probability=r.grey, dtype=types.BOOL):
                x = fn.hsv(x, saturation=0.0)
        if r.blur:  # noqa: SIM102
            if fn.random.coin_flip(probability=r.blur, dtype=types.BOOL):
                x = fn.gaussian_blur(x, window_size=r.taps(), sigma=fn.random.uniform(range=r.sigma))
        mirror = fn.random.coin_flip(probability=r.horizontal_flip)
        return fn.crop_mirror_normalize(x, dtype=types.FLOAT, output_layout="CHW", mirror=mirror, mean=mean, std=std)

    made = pipeline_def(**sizes, **settings)(pipeline)()
    made.build()
    return made


def _dali(views: Views, case: Case, images: Tensor, *results: Tensor) -> Call:
    made = cache(partial(dali_pipeline, views, images))

    def call() -> None:
        made().run()

    return call


def kornia_chain(views: Views) -> Callable[[Tensor], Tensor]:
    """[B, H, W, 3] uint8 -> [B, 3, height, width] of a recipe without solarization; one order of colours for all."""
    import kornia.augmentation as make

    (r,) = views.recipes
    steps = [
        make.RandomResizedCrop(r.size, r.scale, r.ratio, resample=r.interpolation, align_corners=False),
        make.RandomHorizontalFlip(p=r.horizontal_flip),
    ]
    if r.jitters:
        colours = (_factors(v) for v in (r.brightness, r.contrast, r.saturation))
        steps.append(make.ColorJitter(*colours, (-r.hue, r.hue), p=r.jitter))
    if r.grey:
        steps.append(make.RandomGrayscale(p=r.grey))
    if r.blur:
        steps.append(make.RandomGaussianBlur((r.taps(), r.taps()), r.sigma, p=r.blur))
    chain = torch.nn.Sequential(*steps, make.Normalize(torch.tensor(r.mean), torch.tensor(r.std)))

    @torch.no_grad()
    def whole(images: Tensor) -> Tensor:
        return chain(images.permute(0, 3, 1, 2).float() / 255)

    return whole


def _kornia(views: Views, case: Case, images: Tensor, *results: Tensor) -> Call:
    made = cache(partial(kornia_chain, views))

    def call() -> None:
        made()(images)

    return call


def _cpu_alone(case: Case) -> str | None:
    return None if case.device.type == "cpu" else "works on the CPU alone"


# ---- systems: whose views, beside whom -------------------------------------------------------------------------------


def system(name: str, measures: str, views: Views, peers: Sequence[str] = ("albumentations", "torchvision")) -> System:
    """Views of every image by a recipe, beside these peers."""
    known = {
        "albumentations": Peer(partial(_albumentations, views), compiles=True, elsewhere=True, why_not=_cpu_alone),
        "dali": Peer(partial(_dali, views), why_not=_cpu_alone),
        "torchvision": Peer(partial(_with_parameters, torchvision_loop, views)),
        "torchvision-uint8": Peer(partial(_with_parameters, partial(torchvision_loop, floats=False), views)),
        "kornia": Peer(partial(_kornia, views), copies=4.0),
    }
    return System(
        name,
        measures,
        inputs=partial(pictures, views),
        ours=partial(_with_parameters, _ours, views),
        peers={peer: known[peer] for peer in peers},
        keys="images",
        gradient=False,
        copies=1.0,
        family="augment",
        traffic=sum(12.0 * recipe.size[0] * recipe.size[1] for recipe in views.recipes),
    )


def _one(recipe: Recipe) -> Views:
    return Views((recipe,))


SIMCLR = system(
    "simclr",
    "SimCLR",
    _one(augment.simclr().recipes[0]),
    ("albumentations", "dali", "torchvision", "torchvision-uint8", "kornia"),
)
CROP_FLIP = system(
    "crop-flip",
    "crop and flip",
    _one(Recipe(horizontal_flip=0.5)),
    ("albumentations", "dali", "torchvision", "torchvision-uint8", "kornia"),
)
BYOL = system("byol", "BYOL", augment.byol())
MAE = system("mae", "MAE", _one(augment.mae()))
DINO = system("dino", "DINO", augment.dino())

# What the kernels are built to be good at, and how good they are to be on two cores with AVX-512.
CASES = (
    Case(SIMCLR, 64, 256, targets={"albumentations": 3, "dali": 15, "torchvision": 60}, narrow={"albumentations": 2}),
    Case(CROP_FLIP, 64, 256, targets={"albumentations": 4}),
    Case(BYOL, 64, 256),
    Case(MAE, 64, 256),
    Case(DINO, 64, 256, target_rate=600),
)
