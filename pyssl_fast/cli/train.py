"""`pyssl-fast train METHOD`: what is asked for, what is shown, how it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib.util
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from pyssl_fast.recipes.engine import Machine, Report, Training

NEEDED = ("torchvision", "sklearn", "matplotlib")  # modules of the extra [train]
INTERRUPTED = 130  # exit code, as of a shell command ended by Ctrl-C
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class _OneLineErrors(click.Command):
    """Wrong options end in one line instead of a page of usage."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _one_line():
            return super().parse_args(ctx, args)


class _Methods(click.Group):
    """One sub-command per recipe; its options are those of every run and the method's own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        _require_packages()
        from pyssl_fast.recipes import RECIPES

        return list(RECIPES)

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        _require_packages()
        from pyssl_fast.recipes import find_recipe

        try:
            return _command(name, find_recipe(name))
        except ValueError as error:
            raise click.ClickException(str(error)) from None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:
            raise click.ClickException(f"name a method: {', '.join(self.list_commands(ctx))}")
        with _one_line():
            return super().parse_args(ctx, args)


@click.command(cls=_Methods, subcommand_metavar="METHOD [OPTIONS]")
def train() -> None:
    """Train an encoder on images, and say how good it is. Methods that learn from labels are marked supervised."""


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        raise click.ClickException(error.format_message()) from None


def _require_packages() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise click.ClickException(f"training needs {', '.join(missing)}: pip install pyssl-fast[train]")


def _command(method: str, recipe: Any) -> click.Command:
    from pyssl_fast.backend import BACKENDS
    from pyssl_fast.data.augmentation import AUGMENTATIONS
    from pyssl_fast.data.sources import SOURCES
    from pyssl_fast.recipes.engine import PRECISIONS

    budgets = "; ".join(f"{budget.epochs} for {name or 'other data'}" for name, budget in recipe.budgets.items())
    usual = recipe.budgets[""]

    def option(name: str, kind: Any, help: str) -> click.Option:
        return click.Option([name], type=kind, default=None, help=help)

    own = [
        option(
            f"--{flag}/--no-{flag}" if isinstance(field.default, bool) else f"--{flag}",
            type(field.default),
            f"{field.metadata['help']}  [default: {_default(field.default, flag)}]",
        )
        for field in dataclasses.fields(recipe.Options)
        for flag in [field.name.replace("_", "-")]
    ]
    sources = "; ".join(f"{name}: {what}" for name, what in SOURCES.items())
    params: list[click.Parameter] = [
        option("--data", str, f"{sources}.  [default: mnist5k]"),
        click.Option(["--full"], is_flag=True, default=None, help="Fashion-MNIST: all 60,000 images, not 20,000."),
        option("--image-size", int, "Side of the images in pixels.  [default: their own; folders: 64 at most]"),
        option("--encoder", str, "small, or a model's name in torchvision or timm.  [default: small]"),
        option("--epochs", int, f"Passes over the images.  [default: {budgets}]"),
        option("--batch-size", int, f"Images per step.  [default: {usual.batch_size}]"),
        option("--learning-rate", float, f"AdamW's, after the warm-up.  [default: {usual.learning_rate}]"),
        option("--weight-decay", float, f"AdamW's.  [default: {usual.weight_decay}]"),
        *own,
        option("--precision", click.Choice(PRECISIONS), "Of float32 products; or autocast.  [default: highest]"),
        option("--augment", click.Choice(list(AUGMENTATIONS)), "Who varies the images.  [default: pyssl_fast]"),
        option("--seed", int, "Of the weights, the order and the augmentation.  [default: 0]"),
        click.Option(["--device"], default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ..."),
        click.Option(
            ["--backend"],
            type=click.Choice(BACKENDS),
            help="Of the loss kernels.  [default: PYSSL_FAST_BACKEND, or by device]",
        ),
        click.Option(["--compile"], is_flag=True, help="torch.compile the networks."),
        click.Option(["--workers"], type=int, help="Processes preparing images.  [default: by cores, or none]"),
        click.Option(
            ["--out"], type=click.Path(path_type=Path), help=f"Folder of the run.  [default: runs/{method}-DATA]"
        ),
        click.Option(["--resume"], is_flag=True, help="Continue the run in --out, with its settings."),
        click.Option(["--overwrite"], is_flag=True, help="Replace the run in --out."),
    ]
    names = {field.name for field in dataclasses.fields(recipe.Options)}

    def callback(
        device: str, backend: str | None, compile: bool, workers: int | None, out: Path | None, resume: bool,
        overwrite: bool, **given: Any,
    ) -> None:  # fmt: skip
        from pyssl_fast.recipes.engine import Machine

        asked = {name: value for name, value in given.items() if value is not None and name not in names}
        options = {name: value for name, value in given.items() if value is not None and name in names}
        out = out or Path("runs") / f"{method}-{asked.get('data', 'mnist5k').partition(':')[0]}"
        machine = Machine(device, backend, compile, workers)
        _run({"method": method, **asked, "options": options}, machine, out, resume, overwrite)

    return _OneLineErrors(
        method, params=params, callback=callback, help=f"Train with {_title(recipe)}.",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )  # fmt: skip


def _default(value: Any, flag: str) -> str:
    return f"{'' if value else 'no-'}{flag}" if isinstance(value, bool) else str(value)


def _title(recipe: Any) -> str:
    return f"{recipe.title} (supervised: learns from labels)" if recipe.supervised else str(recipe.title)


def _run(given: dict[str, Any], machine: Machine, out: Path, resume: bool, overwrite: bool) -> None:
    from rich.console import Console

    from pyssl_fast.recipes.engine import Interrupted
    from pyssl_fast.recipes.files import locked

    console = Console(highlight=False)
    training: Training | None = None
    with _signals() as signals:
        try:
            with locked(out):
                training = _prepare(given, machine, out, resume, overwrite)
                _show_header(console, training)
                signals.training = training
                _show_training(console, training)
                signals.training = None
                if training.stop_requested:
                    raise Interrupted
                with console.status("evaluating") as status:
                    report = training.evaluate(lambda stage: status.update(stage))
                _show_report(console, training, report)
        except Interrupted:
            assert training is not None
            done = f"stopped after step {training.step} of {training.total_steps}, all saved"
            _stop(f"{done}; continue with: {_resume_command(training)}")
        except KeyboardInterrupt:
            if training is None or training.saved_step is None:
                _stop("stopped before the first step")
            else:
                saved = f"the checkpoint holds step {training.saved_step} of {training.total_steps}"
                _stop(f"stopped; {saved}; continue with: {_resume_command(training)}")
        except Exception as error:
            if os.environ.get("PYSSL_FAST_TRACEBACK") == "1":
                raise
            raise click.ClickException(_explain(error, training)) from None


def _prepare(given: dict[str, Any], machine: Machine, out: Path, resume: bool, overwrite: bool) -> Training:
    from pyssl_fast.recipes.engine import CHECKPOINT, Training, resume_state, settle

    if resume and overwrite:
        raise ValueError("--resume continues the run, --overwrite replaces it: choose one")
    state = resume_state(out) if resume else None
    if not resume and not overwrite and (out / CHECKPOINT).exists():
        raise ValueError(
            f"{out} already holds a run: --resume continues it, --overwrite replaces it, or choose another --out"
        )
    settings, data = settle(given, None if state is None else state["settings"])
    return Training(settings, data, machine, out, state)


def _explain(error: Exception, training: Training | None) -> str:
    """What went wrong in one line, and how to go on. An error that nobody expected is given with its type."""
    from pyssl_fast.data import DataError
    from pyssl_fast.recipes.engine import TrainingError

    line = _line(error)
    expected = (OSError, DataError, TrainingError) if training else (OSError, ValueError, RuntimeError, ImportError)
    if isinstance(error, OSError) and error.errno in FULL and error.filename is None and training is not None:
        line = f"cannot write to {training.out}: {line}"
    elif not isinstance(error, expected) and "out of memory" not in line.lower():
        line = f"{type(error).__name__}: {line} (a traceback: PYSSL_FAST_TRACEBACK=1)"
    if training is not None and training.saved_step is not None and not isinstance(error, TrainingError):
        line += f"; step {training.saved_step} is saved, continue with: {_resume_command(training)}"
    return line


def _line(error: Exception) -> str:
    """An exception as one line."""
    from pyssl_fast.benchmark.measure import first_line

    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if "Original Traceback" in str(error):  # from a worker process: what happened stands at the end
        return str(error).strip().splitlines()[-1]
    return first_line(error)


def _resume_command(training: Training) -> str:
    machine = training.machine
    words = ["pyssl-fast", "train", training.settings.method, "--out", str(training.out), "--resume"]
    words += [] if machine.device == "auto" else ["--device", machine.device]
    words += [] if machine.backend is None else ["--backend", machine.backend]
    words += ["--compile"] if machine.compile else []
    words += [] if machine.workers is None else ["--workers", str(machine.workers)]
    return shlex.join(words)


def _stop(message: str) -> None:
    click.echo(f"Interrupted: {message}", err=True)
    sys.exit(INTERRUPTED)


class _Signals:
    """Ctrl-C and SIGTERM: while training, stop after this step; a second time, or at other times, at once."""

    training: Training | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.training is None or self.training.stop_requested:
            raise KeyboardInterrupt
        self.training.stop_requested = True
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # workers that the same signal ends are no failure


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    handler = _Signals()
    if threading.current_thread() is not threading.main_thread():
        yield handler
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield handler
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


# What is shown


def _show_header(console: Console, training: Training) -> None:
    import torch
    from rich.markup import escape
    from rich.table import Table

    settings, data = training.settings, training.data
    images = f"{len(data.train):,} images of {data.size}x{data.size}, {'grey' if data.channels == 1 else 'RGB'}"
    if data.test is not None and data.classes is not None:
        images += f", {len(data.classes)} classes; {len(data.test):,} test images"
    else:
        images += ", unlabelled: accuracies cannot be measured"
    count = sum(parameter.numel() for parameter in training.recipe.encoder.parameters())
    where = f"{torch.get_num_threads()} threads" if training.device.type == "cpu" else f"{training.workers} workers"
    options = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.options.items())
    views = dict.fromkeys(map(repr, training.augmentations))
    by = "" if settings.augment == "pyssl_fast" else f" by {settings.augment}"
    rows = {
        "method": f"{_title(training.recipe)}: {options}",
        "data": f"{data.name}: {images}",
        "views": f"{len(training.augmentations)} of each image{by}: {' | '.join(views)}",
        "encoder": f"{settings.encoder}, {count:,} parameters",
        "training": f"{settings.epochs} epochs of {training.steps_per_epoch} steps, {settings.batch_size} images each;"
        f" learning rate {settings.learning_rate:g}, seed {settings.seed}",
        "machine": f"{training.device}, {where}; precision {settings.precision}; loss kernels: {training.kernels}",
        "files": str(training.out),
    }
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, escape(value))
    console.print(table)
    if training.step:
        console.print(f"[cyan]resuming after step {training.step} of {training.total_steps}[/]")
    for note in training.notes:
        console.print(f"[yellow]{note}[/]")


def _show_training(console: Console, training: Training) -> None:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from pyssl_fast.recipes.engine import StepReport

    text = "loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} images/s  {task.fields[share]:.0%} in the loss"
    columns = (
        TextColumn("epoch {task.fields[epoch]}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TextColumn(text),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(
            "", total=training.total_steps, completed=training.step, epoch="", loss=float("nan"), rate=0.0, share=0.0
        )
        for report in training.train():
            epoch = f"{report.epoch + 1:>{len(str(training.settings.epochs))}}/{training.settings.epochs}"
            if isinstance(report, StepReport):
                progress.update(
                    task, completed=report.step, epoch=epoch, loss=report.loss, rate=report.images_per_second,
                    share=report.loss_share,
                )  # fmt: skip
                continue
            console.print(
                f"epoch {epoch}  loss {report.loss:.3f}  {report.images_per_second:6,.0f} images/s"
                f"  {report.loss_share:3.0%} in the loss"
                f"  spread {report.spread.spread:.2f}  rank {report.spread.rank:.0f} of {report.spread.dim}"
                f"  correlation {report.spread.correlation:.2f}",
                soft_wrap=True,
            )
            if report.spread.collapsed:
                console.print(f"[bold red]{_collapse_text('the embeddings have collapsed', report.spread)}[/]")


def _collapse_text(what: str, spread: Any) -> str:
    return (
        f"{what}: spread {spread.spread:.3f} (1 is even, 0 is all equal), effective rank {spread.rank:.1f} of"
        f" {spread.dim}, correlation of the dimensions {spread.correlation:.2f} (1 is all the same)"
    )


def _show_report(console: Console, training: Training, report: Report) -> None:
    from rich.markup import escape
    from rich.table import Table

    from pyssl_fast.recipes.engine import LOSS_PICTURE, MAP_PICTURE

    if report.scores is not None:
        assert training.data.test is not None
        table = Table(title=f"accuracy on {len(training.data.test):,} test images", title_justify="left")
        table.add_column("features")
        table.add_column("k-NN", justify="right")
        table.add_column("linear probe", justify="right")
        best = {name: max(getattr(s, name) for s in report.scores.values()) for name in ("knn", "linear")}
        for name, score in report.scores.items():
            cells = [
                f"[bold green]{value:.4f}[/]" if value == best[measure] else f"{value:.4f}"
                for measure, value in (("knn", score.knn), ("linear", score.linear))
            ]
            table.add_row(name, *cells)
        console.print(table)
    out = training.out
    drawn = escape(f"{out / LOSS_PICTURE}, {out / MAP_PICTURE}")
    console.print(f"trained in {report.training_seconds:.0f} s; pictures: {drawn}")
    if report.spread.collapsed:
        console.print(f"[bold red]{_collapse_text('the embeddings have collapsed', report.spread)}[/]")
    if report.scores is None:
        console.print("[bold yellow]no labels, so no accuracies: look at the map[/]")
    elif report.not_beaten:
        console.print(f"[bold red]training did not beat {', nor '.join(report.not_beaten)}[/]")
    else:
        console.print("[bold green]training beat raw pixels and the untrained encoder, on k-NN and the linear probe[/]")
