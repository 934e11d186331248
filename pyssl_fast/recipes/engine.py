"""The engine: runs any recipe. It owns the loop, the optimizer, checkpoints, metrics and the evaluation.

Two runs with the same settings and number of threads give the same weights and metrics, bit for bit, on the same
machine, whether they were interrupted or not: sample order and augmentation are functions of the seed, the epoch and
the image, the learning rate is a function of the step, and everything else that a step depends on is in the checkpoint.
(On a GPU this holds where every operation of the encoder has a deterministic kernel.)
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import math
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyssl_fast import backend, use_backend
from pyssl_fast.data import DataError, ImageData, load_data
from pyssl_fast.data.augmentation import AUGMENTATIONS
from pyssl_fast.data.images import Subset
from pyssl_fast.data.loader import Batch, Schedule, ViewDataset, view_loader
from pyssl_fast.evaluation import pictures
from pyssl_fast.evaluation.collapse import Spread, measure_spread
from pyssl_fast.evaluation.protocol import (
    RAW,
    TRAINED,
    UNTRAINED,
    Score,
    calibrated,
    encoder_features,
    not_beaten,
    pixel_features,
    score,
    to_input,
)
from pyssl_fast.modules import build_encoder
from pyssl_fast.modules.encoders import SMALL
from pyssl_fast.recipes import find_recipe
from pyssl_fast.recipes.files import MetricsFile, load_checkpoint, read_metrics, save_checkpoint, write_atomically

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"
ENCODER = "encoder.pt"
LOSS_PICTURE = "loss.png"
MAP_PICTURE = "embeddings.png"

PRECISIONS = ("highest", "high", "medium", "bf16", "fp16")
WARM_UP = 0.05  # of all steps
WATCHED_IMAGES = 1024
SAVE_EVERY = 600.0  # seconds, within long epochs
TIMED_STEPS = 10  # on a GPU the loss is timed at every tenth step, because timing makes the device wait


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one line for the person who started it."""


class Interrupted(Exception):
    """Training stopped because it was asked to; the checkpoint is saved."""


@dataclass(frozen=True)
class Settings:
    """Everything that the result depends on. A run can only be resumed with the settings it was started with.

    That includes `epochs`: the learning rate falls along a cosine over all of them, so that a run which was planned
    for fewer is not the beginning of a longer one. Zeros stand for the data's or the recipe's own values.
    """

    method: str
    data: str = "mnist5k"
    full: bool = False
    image_size: int = 0
    encoder: str = SMALL
    batch_size: int = 0
    epochs: int = 0
    learning_rate: float = 0.0
    weight_decay: float = 0.0
    precision: str = "highest"
    augment: str = "pyssl_fast"
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    """How and where to compute: may change when a run is resumed.

    Attributes:
        device: "auto", "cpu", "cuda", ...
        backend: of the loss kernels; None leaves the choice as it is (PYSSL_FAST_BACKEND, or by device).
        compile: torch.compile the networks.
        workers: processes that prepare images; None chooses.
    """

    device: str = "auto"
    backend: str | None = None
    compile: bool = False
    workers: int | None = None


@dataclass(frozen=True)
class StepReport:
    """After every step. step counts from 1, epoch from 0; loss_share is a part of 1, of this epoch so far."""

    step: int
    epoch: int
    loss: float
    images_per_second: float
    loss_share: float


@dataclass(frozen=True)
class EpochReport:
    """After every epoch. loss is the mean over its steps, seconds its training time."""

    epoch: int
    loss: float
    spread: Spread
    seconds: float
    images_per_second: float
    loss_share: float


@dataclass(frozen=True)
class Report:
    """The evaluation. scores: "raw pixels", "untrained encoder", "trained encoder"; None without labels."""

    scores: dict[str, Score] | None
    not_beaten: list[str]
    spread: Spread
    training_seconds: float


def settle(given: Mapping[str, Any], stored: Mapping[str, Any] | None = None) -> tuple[Settings, ImageData]:
    """Complete the settings that were given by a run's stored ones, or by the recipe's for this data; open the data.

    Args:
        given: fields of `Settings`, with "options" as a mapping.
        stored: all fields of `Settings`, when a run is resumed.

    Raises:
        ValueError: an unknown method, encoder or precision, unusable data, a setting that differs from the stored one.
    """
    recipe = find_recipe(given["method"])
    if stored is not None:
        with _same_version():
            settings = Settings(**{"augment": "torchvision", **stored})  # the only one, before there was a choice
        _refuse_differences(given, asdict(settings))
        data = load_data(settings.data, full=settings.full, image_size=settings.image_size)
        return settings, data
    start = Settings(**given)
    if start.image_size < 0 or 0 < start.image_size < 16:
        raise ValueError(f"--image-size must be at least 16, got {start.image_size}")
    if not 0 <= start.seed < 1 << 63:
        raise ValueError(f"--seed must not be negative, and less than 2⁶³; got {start.seed}")
    if start.augment not in AUGMENTATIONS:
        raise ValueError(f"--augment must be one of {', '.join(AUGMENTATIONS)}; got {start.augment!r}")
    if start.precision not in PRECISIONS:
        raise ValueError(f"--precision must be one of {', '.join(PRECISIONS)}; got {start.precision!r}")
    data = load_data(start.data, full=start.full, image_size=start.image_size or None)
    judged = () if data.test is None else (("training", data.train), ("test", data.test))
    for part, images in judged:
        if images.labels is None or len(np.unique(images.labels)) < 2:
            raise ValueError(
                f"{data.name}: the {part} images are of fewer than two classes, so that accuracies cannot be measured;"
                " give more images of every class, or all images in one flat folder to train without labels"
            )
    if recipe.supervised and data.train.labels is None:
        raise ValueError(
            f"{recipe.title} learns from the labels of the training images, and {data.name} has none: give images of"
            " every class in a sub-folder of its own, or choose a method that needs no labels"
        )
    budget = asdict(recipe.budgets.get(data.name, recipe.budgets[""]))
    budget["batch_size"] = min(budget["batch_size"], len(data.train))
    options = {option.name: option.default for option in fields(recipe.Options)} | dict(start.options)
    settings = Settings(**{**asdict(start), **budget, **given, "image_size": data.size, "options": options})
    if settings.epochs < 1:
        raise ValueError(f"--epochs must be at least 1, got {settings.epochs}")
    if not 0 < settings.learning_rate < math.inf or not 0 <= settings.weight_decay < math.inf:
        raise ValueError("--learning-rate must be greater than 0 and --weight-decay at least 0, both finite")
    if settings.batch_size < 2:
        raise ValueError(f"--batch-size must be at least 2 (it compares images), got {settings.batch_size}")
    if settings.batch_size > len(data.train):
        raise ValueError(f"--batch-size {settings.batch_size} is larger than the {len(data.train):,} training images")
    options = recipe.complete(settings.options, len(data.train), settings.batch_size)
    return replace(settings, options=options), data


def _refuse_differences(given: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    flat_stored = {**stored, **stored["options"]}
    flat_given = {**given, **given.get("options", {})}
    for name, value in flat_given.items():
        if name != "options" and flat_stored.get(name) != value:
            why = "; the learning rate follows a schedule over all epochs" if name == "epochs" else ""
            flag = name.replace("_", "-")
            raise ValueError(f"the run to resume has --{flag} {flat_stored.get(name)}, not {value}{why}")


class Training:
    """One run, in one folder.

    Attributes:
        settings, data, machine: what it was made of.
        out: the folder of its files.
        recipe: the method with its networks.
        step: steps done; saved_step: as of the last checkpoint, None before the first one.
        total_steps: of the whole run.
        notes: what the person who resumes a run should know, in lines.
        stop_requested: set it to True, and `train` saves after the current step and raises Interrupted.
    """

    def __init__(
        self, settings: Settings, data: ImageData, machine: Machine, out: Path, state: Mapping[str, Any] | None = None
    ) -> None:
        """state: a checkpoint to continue from.

        Raises:
            ValueError: an unknown encoder, a device that is not there, hyper-parameters that the method refuses.
            RuntimeError: a backend that cannot run here.
        """
        self.settings = settings
        self.data = data
        self.machine = machine
        self.out = out
        self.stop_requested = False
        self.notes: list[str] = []
        self.device = _device(machine.device)
        if machine.compile and self.device.type == "cpu":
            _require_compiler()
        self.workers = _workers(machine.workers, self.device, data)
        torch.manual_seed(settings.seed)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True

        recipe = find_recipe(settings.method)
        self.backend = machine.backend or backend.selected()
        with use_backend(self.backend):
            self.kernels = backend.choose(recipe.family, torch.empty(0, device=self.device))
        encoder, features = build_encoder(settings.encoder, data.channels, data.size)
        self.untrained = copy.deepcopy(encoder)
        with contextlib.nullcontext() if state is None else _same_version():
            options = recipe.Options(**settings.options)
        self.recipe = recipe(encoder, features, options)
        self.recipe.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.augmentations = self.recipe.augmentations(data)
        self.optimizer = torch.optim.AdamW(_decay_groups(self.recipe, settings.weight_decay), settings.learning_rate)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")

        self.step = 0
        self.saved_step: int | None = None
        self.steps_per_epoch = len(data.train) // settings.batch_size
        self.total_steps = settings.epochs * self.steps_per_epoch
        self.seconds = 0.0  # of training, without checkpoints and evaluation
        self._epoch = {"loss": 0.0, "seconds": 0.0, "loss_seconds": 0.0}  # sums over the epoch so far
        self._metrics_length = 0
        self._data_fingerprint = [None if part is None else part.fingerprint() for part in (data.train, data.test)]
        if state is not None:
            self._restore(state)

    # The loop

    def train(self) -> Iterator[StepReport | EpochReport]:
        """Train to the end, one report after every step and every epoch.

        An earlier run in the folder is replaced when the first batch is there, not before.

        Raises:
            Interrupted: after stop_requested, even if that was the last step.
            TrainingError: the loss or the weights are not numbers any more.
            DataError: an image cannot be read.
            OSError: a file cannot be written, such as on a full disk; the last checkpoint is whole.
        """
        count, settings = len(self.data.train), self.settings
        dataset = ViewDataset(
            self.data.train, self.augmentations, settings.seed, labelled=self.recipe.supervised,
            augmentation=settings.augment,
        )  # fmt: skip
        schedule = Schedule(count, settings.batch_size, settings.epochs, settings.seed, self.step)
        with (
            use_backend(self.backend),
            _matmul_precision(settings.precision),
            contextlib.closing(view_loader(dataset, schedule, self.workers)) as loader,
        ):
            batches = self._until_stopped(loader)
            first = list(itertools.islice(batches, 1))  # none when all steps were done before
            if self.stop_requested and self.saved_step is None:
                raise KeyboardInterrupt
            if self.step == 0:
                self._save()
                for name in (ENCODER, LOSS_PICTURE, MAP_PICTURE):
                    (self.out / name).unlink(missing_ok=True)
            yield from self._steps(itertools.chain(first, batches))

    def _steps(self, batches: Iterator[Batch]) -> Iterator[StepReport | EpochReport]:
        per_epoch, batch_size = self.steps_per_epoch, self.settings.batch_size
        embed = torch.compile(self.recipe.embed) if self.machine.compile else self.recipe.embed
        with contextlib.closing(MetricsFile(self.out / METRICS, self._metrics_length)) as metrics:
            last_save = clock = time.perf_counter()
            for batch in batches:
                loss, loss_seconds = self._train_step(embed, batch)
                self.step += 1
                if not math.isfinite(loss):
                    raise TrainingError(
                        f"the loss is {loss} at step {self.step}: try a smaller --learning-rate or --precision highest"
                    )
                now = time.perf_counter()
                spent, clock = now - clock, now
                self.seconds += spent
                for name, value in (("loss", loss), ("seconds", spent), ("loss_seconds", loss_seconds)):
                    self._epoch[name] += value
                epoch, done = divmod(self.step - 1, per_epoch)
                lr = self.optimizer.param_groups[0]["lr"]
                metrics.write({"kind": "step", "step": self.step, "epoch": epoch, "loss": loss, "learning_rate": lr})
                seconds = self._epoch["seconds"]
                share = self._epoch["loss_seconds"] / seconds
                yield StepReport(self.step, epoch, loss, (done + 1) * batch_size / seconds, share)

                end_of_epoch = done + 1 == per_epoch
                if end_of_epoch:
                    mean, rate = self._epoch["loss"] / per_epoch, per_epoch * batch_size / seconds
                    report = EpochReport(epoch, mean, self.watch(), seconds, rate, share)
                    metrics.write({"kind": "epoch", **_flat(report)})
                    self._epoch = dict.fromkeys(self._epoch, 0.0)
                if end_of_epoch or self.stop_requested or clock - last_save > SAVE_EVERY:
                    self._save(metrics)
                    last_save = time.perf_counter()
                if end_of_epoch:
                    yield report
                if self.stop_requested and self.saved_step == self.step:
                    raise Interrupted
                clock = time.perf_counter()
            if self.stop_requested:
                self._save(metrics)
                raise Interrupted

    def _until_stopped(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Workers may end by the same signal that asked to stop: no failure, all steps before are whole."""
        try:
            yield from batches
        except DataError:
            if not self.stop_requested:
                raise

    def _train_step(self, embed: Callable[[Sequence[Tensor]], tuple[Tensor, ...]], batch: Batch) -> tuple[float, float]:
        """One step on uint8 views. The loss, and the seconds that its forward and backward passes took."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * schedule_factor(self.step, self.total_steps)
        self.recipe.train()
        self.optimizer.zero_grad()
        views = [self._input(view) for view in batch.views]
        labels = [] if batch.labels is None else [batch.labels.to(self.device, non_blocking=True)]
        with self._autocast():
            embeddings = embed(views)

        # The loss gets leaves of its own, so that its backward pass ends there and can be timed. Nothing else changes.
        leaves = [part.detach().requires_grad_(part.requires_grad) for part in embeddings]
        timed = self.device.type == "cpu" or self.step % TIMED_STEPS == 0
        start = self._now() if timed else 0.0
        with self._autocast():
            loss = self.recipe.loss(*leaves, *labels)
        self.scaler.scale(loss).backward()
        seconds = self._now() - start if timed else 0.0

        pairs = [(part, leaf.grad) for part, leaf in zip(embeddings, leaves, strict=True) if leaf.grad is not None]
        torch.autograd.backward([part for part, _ in pairs], [grad for _, grad in pairs])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.recipe.after_step((self.step + 1) / self.total_steps)
        return loss.item(), seconds * (1 if self.device.type == "cpu" else TIMED_STEPS)

    def _input(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> the encoder's input on the device, channels last."""
        return to_input(images.to(self.device, non_blocking=True)).contiguous(memory_format=torch.channels_last)

    def _autocast(self) -> torch.autocast:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.settings.precision)
        return torch.autocast(self.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def watch(self) -> Spread:
        """How the embeddings of some training images, the same ones every time, spread."""
        images = self.data.train
        count = min(WATCHED_IMAGES, len(images))
        some = Subset(images, np.linspace(0, len(images) - 1, count).astype(np.int64))
        return measure_spread(torch.from_numpy(encoder_features(self.recipe, some, self.data.size)))

    # Checkpoints

    def _save(self, metrics: MetricsFile | None = None) -> None:
        """metrics: None when nothing was written yet."""
        networks = self.recipe.state_dict()
        if not all(bool(value.isfinite().all()) for value in networks.values()):
            raise TrainingError(
                f"the weights are not finite at step {self.step}: try a smaller --learning-rate;"
                f" the checkpoint is still that of step {self.saved_step}"
            )
        self._metrics_length = 0 if metrics is None else metrics.sync()
        state = {
            "settings": asdict(self.settings),
            "step": self.step,
            "data_fingerprint": self._data_fingerprint,
            "threads": torch.get_num_threads(),
            "recipe": networks,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": torch.get_rng_state(),
            "device_random": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "metrics_length": self._metrics_length,
            "epoch": self._epoch,
            "seconds": self.seconds,
        }
        save_checkpoint(self.out / CHECKPOINT, state)
        self.saved_step = self.step

    def _restore(self, state: Mapping[str, Any]) -> None:
        with _same_version():
            fingerprint, threads = state["data_fingerprint"], state["threads"]
            self.recipe.load_state_dict(state["recipe"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            torch.set_rng_state(state["random"])
            if self.device.type == "cuda" and state["device_random"] is not None:
                torch.cuda.set_rng_state(state["device_random"], self.device)
            self.step = self.saved_step = state["step"]
            self._metrics_length = state["metrics_length"]
            self._epoch = dict(state["epoch"])
            self.seconds = state["seconds"]
        if fingerprint != self._data_fingerprint:
            raise ValueError(
                f"{self.settings.data} has changed since the run was started (images, names or labels):"
                " test images could have become training images; restore it, or start a new run"
            )
        if self._metrics_length:
            read_metrics(self.out / METRICS, self._metrics_length)
        if threads != torch.get_num_threads():
            self.notes.append(
                f"{threads} threads at the start, {torch.get_num_threads()} now: the result may differ in its last bits"
            )

    # What came out

    def evaluate(self, say: Callable[[str], None] = lambda stage: None) -> Report:
        """Judge the encoder by the protocol, draw the pictures, save the encoder. say: hears what is being done."""
        data, size = self.data, self.data.size
        write_encoder(self.out / ENCODER, self.recipe.encoder)
        say("drawing the loss")
        lines = read_metrics(self.out / METRICS)
        write_atomically(self.out / LOSS_PICTURE, pictures.loss_curve(lines, f"{self.recipe.title} on {data.name}"))

        say("computing features")
        spread = self.watch()
        shown = data.train if data.test is None else data.test
        trained = encoder_features(self.recipe.encoder, shown, size)
        scores = None
        if data.test is not None:
            assert data.train.labels is not None and data.test.labels is not None
            scores = {}
            for name, represent in {
                RAW: partial(pixel_features, size=size),
                UNTRAINED: partial(
                    encoder_features, calibrated(self.untrained.to(self.device), data.train, size), size=size
                ),
                TRAINED: partial(encoder_features, self.recipe.encoder, size=size),
            }.items():
                say(f"k-NN and linear probe: {name}")
                scores[name] = score(represent(data.train), data.train.labels, represent(shown), data.test.labels)
        say("drawing the map of the embeddings")
        write_atomically(
            self.out / MAP_PICTURE,
            pictures.embedding_map(trained, shown, data.classes, size, f"{self.recipe.title} on {data.name}"),
        )
        report = Report(scores, [] if scores is None else not_beaten(scores), spread, self.seconds)
        with contextlib.closing(MetricsFile(self.out / METRICS, self._metrics_length)) as metrics:
            metrics.write({"kind": "evaluation", **_flat(report)})
            metrics.sync()
        return report


def schedule_factor(step: int, total: int) -> float:
    """The learning rate at a step (from 0) as a part of its maximum: a linear warm-up, then half a cosine towards 0."""
    warm_up = max(1, round(WARM_UP * total))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total - warm_up)))


def resume_state(out: Path) -> dict[str, Any]:
    """The checkpoint in a run's folder. Raises ValueError when there is none."""
    if not (out / CHECKPOINT).is_file():
        raise ValueError(f"nothing to resume: there is no {CHECKPOINT} in {out}")
    return load_checkpoint(out / CHECKPOINT)


def write_encoder(path: Path, encoder: nn.Module) -> None:
    """The encoder's state_dict alone, on the CPU: what one takes along."""
    buffer = io.BytesIO()
    torch.save({name: value.detach().cpu() for name, value in encoder.state_dict().items()}, buffer)
    write_atomically(path, buffer.getvalue())


def _flat(report: EpochReport | Report) -> dict[str, Any]:
    line = asdict(report)
    line.update(line.pop("spread"))
    return line


def _decay_groups(recipe: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and convolutions, none for biases, norms and scalars."""
    parameters = [parameter for parameter in recipe.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in parameters if parameter.dim() > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.dim() <= 1], "weight_decay": 0.0},
    ]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" has no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def _require_compiler() -> None:
    compiler = shlex.split(os.environ.get("CXX") or "g++")[0]
    if shutil.which(compiler) is None:
        raise ValueError(f"--compile needs a C++ compiler on the CPU, and there is no {compiler} (CXX names another)")


@contextlib.contextmanager
def _same_version() -> Iterator[None]:
    """Whatever does not fit while a checkpoint is taken apart comes from a version that wrote it differently."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        detail = " ".join(str(error).strip().splitlines()[-1:]).strip()  # torch lists what does not fit, a line each
        raise ValueError(
            f"the checkpoint is of another version, which this one cannot continue ({type(error).__name__}: {detail})"
        ) from error


def _workers(asked: int | None, device: torch.device, data: ImageData) -> int:
    if asked is not None:
        if asked < 0:
            raise ValueError(f"--workers must not be negative, got {asked}")
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device.type == "cpu" and data.channels == 1:
        return 0  # varying small grey images takes a fraction of a step; processes would be in the network's way
    return min(8, cores)


@contextlib.contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision if precision in ("high", "medium") else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
