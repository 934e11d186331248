"""`pyssl-fast bench`: the kernels beside their peers, on this machine."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import torch
from click.core import ParameterSource
from rich.console import Console

from pyssl_fast import benchmark
from pyssl_fast.benchmark import cases, machine, measure, report
from pyssl_fast.cli.options import writable

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# How far, relatively, a side's loss may stand from the first side's: matrix products at "medium" round to bfloat16.
RTOL = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 5e-3}
PRECISIONS = ("highest", "high", "medium")

T = TypeVar("T")


def _several(convert: Callable[[str], T], expected: str) -> Callable[[Any, click.Parameter, Sequence[str]], list[T]]:
    """An option that is given several times, or once with commas."""

    def callback(_: Any, option: click.Parameter, values: Sequence[str]) -> list[T]:
        words = [word.strip() for value in values for word in value.split(",")]
        try:
            return list(dict.fromkeys(convert(word) for word in words))
        except ValueError:
            raise click.ClickException(f"{option.opts[0]} must be {expected}; got {','.join(words)!r}") from None

    return callback


def _one_of(words: Sequence[str]) -> Callable[[str], str]:
    def convert(word: str) -> str:
        if word not in words:
            raise ValueError
        return word

    return convert


def _word(word: str) -> str:
    if not word:
        raise ValueError
    return word


def _positive(_: Any, option: click.Parameter, value: float | None) -> float | None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise click.ClickException(f"{option.opts[0]} must be greater than 0; got {value:g}")
    return value


@contextmanager
def _clear_errors() -> Iterator[None]:
    """One line instead of a traceback: bad values, files, and memory that there is not enough of."""
    try:
        yield
    except (ValueError, TypeError, OSError, RuntimeError, MemoryError, ImportError) as error:
        raise click.ClickException(measure.first_line(error)) from error


def _refuse(*options: str, why: str) -> None:
    """Options that would be without effect, where they were given."""
    for name in options:
        if click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise ValueError(f"--{name}: {why}")


def _check_isas(isas: Sequence[str]) -> None:
    cpu = machine.extension("_cpu")
    if cpu is None:
        raise click.ClickException("--isa: the extension pyssl_fast._cpu is not built")
    for isa in isas:
        if isa not in cpu.isas():
            raise click.ClickException(f"--isa: {isa!r} does not run here; there are: {', '.join(cpu.isas())}")


@click.command()
@click.argument("family", default="similarity")
@click.option(
    "--case",
    "names",
    multiple=True,
    callback=_several(_word, "names"),
    help="Systems: nt-xent, clip, moco, …; an unknown one names them all.  [default: all, or with a size the first]",
)
@click.option(
    "--rows",
    multiple=True,
    callback=_several(int, "numbers"),
    help="Embeddings over all views, tensors of a step, or images: several times, or with commas."
    "  [default: the family's set]",
)
@click.option(
    "--dim",
    multiple=True,
    callback=_several(int, "numbers"),
    help="Numbers per embedding, in all tensors, or an image's side in pixels, likewise.  [default: the case's first]",
)
@click.option("--columns", type=int, callback=_positive, help="Keys of a bank.  [default: the case's]")
@click.option(
    "--sides",
    multiple=True,
    callback=_several(_word, "names"),
    help="ours, cpu, triton, cuda, reference, or peers: eager, compiled, lightly, timm, …  [default: all]",
)
@click.option(
    "--mode", type=click.Choice(["forward+backward", "forward"]), default="forward+backward", show_default=True
)
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True)
@click.option("--temperature", type=float, help="Of the losses that have one.  [default: the case's]")
@click.option(
    "--precision",
    multiple=True,
    callback=_several(_one_of(PRECISIONS), "highest, high or medium"),
    help="Of our float32 matrix products (peers: highest).  [default: highest, and medium where it differs]",
)
@click.option(
    "--isa",
    multiple=True,
    callback=_several(_word, "names"),
    help="Force the instruction set of our CPU kernels: generic, avx2, avx512, amx.  [default: the best]",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=int, callback=_positive, help="[default: torch's]")
@click.option("--rounds", type=int, callback=_positive, help="Samples per side.  [default: what fits into 40 s]")
@click.option(
    "--skip-above-gb",
    type=float,
    callback=_positive,
    help="Leave out sides that would take more memory.  [default: half of what is free]",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "json", callback=writable, metavar="FILE", help="Write everything measured.")
@click.option("--markdown", "markdown", callback=writable, metavar="FILE", help="Write a summary: a line per case.")
@click.option("--png", "png", callback=writable, metavar="FILE", help="Draw time and memory over the rows.")
def bench(
    family: str, names: list[str], rows: list[int], dim: list[int], columns: int | None, sides: list[str], mode: str,
    dtype: str, temperature: float | None, precision: list[str], isa: list[str], device: str, threads: int | None,
    rounds: int | None, skip_above_gb: float | None, seed: int, json: Path | None, markdown: Path | None,
    png: Path | None,
) -> None:  # fmt: skip
    """Measure the kernels of FAMILY beside the eager twin, the compiled twin and other implementations."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 128)
    if isa:
        with _clear_errors():
            _check_isas(isa)
    if png is not None and importlib.util.find_spec("matplotlib") is None:
        raise click.ClickException("--png needs matplotlib: pip install matplotlib")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("--device cuda: torch sees no GPU here")

    with _clear_errors():
        if threads is not None:
            if threads > 4096:
                raise ValueError(f"--threads must be at most 4096; got {threads}")
            torch.set_num_threads(threads)
        table = benchmark.family(family).CASES
        if not any(case.system.gradient for case in table):
            _refuse("mode", "temperature", "precision", why=f"{family} has no backward and no products")
        chosen = cases.configure(
            cases.select(table, names, rows, dim, columns),
            temperature=temperature,
            dtype=DTYPES[dtype],
            device=torch.device(device),
            mode=mode,
        )
        ours = cases.precisions(family, torch.device(device))
        options: dict[str, Any] = {
            "names": sides,
            "precisions": (precision or ours) if dtype == "float32" else ["highest"],
            "isas": isa or [None],
            "seed": seed,
            "peers": list(dict.fromkeys(peer for case in table for peer in case.system.peers)),
        }
        cases.sides(chosen[0].small(), **options)  # unknown sides are known before anything is measured
        document: dict[str, Any] = {
            "schema": report.SCHEMA,
            "machine": machine.facts(),
            "settings": {"family": family, "device": device, "dtype": dtype, "seed": seed},
            "cases": [],
            "results": [],
        }
        _say_machine(console, document["machine"])
        failed: list[str] = []
        for case in chosen:
            failed += _measure(console, case, options, document, rounds, skip_above_gb, RTOL[dtype])
            if json is not None:  # after every case: what was measured stays if the next one is interrupted
                report.write_json(document, json)
            if markdown is not None:
                report.write_text(report.markdown(document), markdown)
        for path in (json, markdown):
            if path is not None:
                console.print(f"wrote {path}", highlight=False)
        if png is not None:
            drawn = report.figure(document, png)
            console.print(f"wrote {png} ({drawn})", highlight=False)
    if failed:
        raise click.ClickException(f"failed or wrong: {', '.join(failed)}")


def _say_machine(console: Console, facts: dict[str, Any]) -> None:
    isa = f", {facts['isa']}" if facts["isa"] else ""
    gpus = "".join(f"; {gpu}" for gpu in facts["gpus"])
    console.print(
        f"{facts['cpu_model']}, {report.count(facts['threads'], 'thread')}{isa}{gpus}; torch {facts['torch']},"
        f" pyssl_fast {facts['pyssl_fast']}",
        highlight=False,
    )
    if (facts["load_1min"] or 0) > 0.5:
        console.print(
            f"[yellow]load {facts['load_1min']}: something else has been running; times may be far too long,"
            " most of all of sides with many short parallel regions[/]",
            highlight=False,
        )


def _measure(
    console: Console, case: cases.Case, options: dict[str, Any], document: dict[str, Any],
    rounds: int | None, limit_gb: float | None, rtol: float,
) -> list[str]:  # fmt: skip
    """Measure one case, print it, add it to the document; our sides that failed."""
    with Console(stderr=True).status(case.title) as status:
        outcome = measure.run(
            cases.sides(case, **options),
            cases.sides(case.small(), **options),
            device=case.device,
            product=case.product,
            rounds=rounds,
            rtol=rtol,
            limit_gb=limit_gb,
            seed=options["seed"],
            progress=lambda doing: status.update(f"{case.title}: {doing}"),
        )
    outcome.left_out.update(cases.missing(case, options["names"]))
    entry = report.case_entry(case, outcome)
    results = report.result_entries(entry, outcome.measured)
    document["cases"].append(entry)
    document["results"] += results
    console.print()
    if results:
        console.print(report.table(entry, results))
    else:
        console.print(f"[bold]{case.title}[/]: no side was measured", highlight=False)
    for line in report.notes(entry, results):
        console.print(line, highlight=False, soft_wrap=True, style="dim", markup=False)
    return [f"{name} of {case.title}" for name in outcome.failed]
