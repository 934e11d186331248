"""`pyssl-fast info`: what this machine has, and which kernels will run on it."""

from __future__ import annotations

import json
import types
from typing import Any, cast

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pyssl_fast import backend
from pyssl_fast.benchmark import machine
from pyssl_fast.ops.registry import operators

DEVICES = ("cpu", "cuda")
EXTENSIONS = ("_cpu", "_cuda")


def _choice(family: str, device: str) -> str:
    """What "auto" chooses for float32 tensors on a device, which need not exist here."""
    x = types.SimpleNamespace(device=torch.device(device), dtype=torch.float32)
    with backend.use_backend("auto"):
        return backend.choose(family, cast(Tensor, x))


def _extension(name: str) -> dict[str, Any]:
    module = machine.extension(name)
    return {
        "built": module is not None,
        "compiler": getattr(module, "COMPILER", None),
        "openmp": getattr(module, "HAS_OPENMP", None),
        "targets": getattr(module, "TARGETS", None),
    }


def gather() -> dict[str, Any]:
    """Everything that `pyssl-fast info` says."""
    kernels = [
        {
            "family": family,
            "operators": names,
            "auto": {device: _choice(family, device) for device in DEVICES},
            "cannot_run": {
                device: {
                    name: reason
                    for name in backend.BACKENDS[1:]
                    if (reason := backend.why_not(name, family, device)) is not None
                }
                for device in DEVICES
            },
        }
        for family, names in operators.items()
    ]
    return {
        "machine": machine.facts(),
        "extensions": {name: _extension(name) for name in EXTENSIONS},
        "backend": backend.selected(),
        "kernels": kernels,
    }


def _isas(facts: dict[str, Any]) -> str:
    if facts["isa"] is None:
        return f"unknown, _cpu is not built (torch uses {torch.backends.cpu.get_cpu_capability()})"
    return ", ".join(f"{isa} (chosen)" if isa == facts["isa"] else isa for isa in facts["isas"])


def _say(told: dict[str, Any]) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 120)
    facts = told["machine"]

    grid = Table(title="this machine", title_justify="left", title_style="bold", show_header=False)
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    memory = "memory not known" if facts["memory_gb"] is None else f"{facts['memory_gb']:.0f} GB of memory"
    lines = {
        "CPU": f"{facts['cpu_model']}, {facts['cpu_cores']} cores, {memory}",
        "instruction sets": _isas(facts),
        "threads": str(facts["threads"]),
        "GPU": "; ".join(facts["gpus"]) or "none that torch sees",
        "torch": f"{facts['torch']}, built for " + (f"CUDA {facts['cuda']}" if facts["cuda"] else "the CPU alone"),
        "triton": facts["triton"] or "not installed",
        "Python": f"{facts['python']}, {facts['os']}",
        "pyssl_fast": facts["pyssl_fast"] + (f", commit {facts['commit']}" if facts["commit"] else ""),
    }
    for name, extension in told["extensions"].items():
        compiler = f", by {extension['compiler']}" if extension["compiler"] else ""
        single = "" if extension["openmp"] in (None, True) else ", without OpenMP: single-threaded"
        targets = f", for {', '.join(extension['targets'])}" if extension["targets"] else ""
        lines[name] = f"built{compiler}{single}{targets}" if extension["built"] else "not built"
    lines["backend"] = told["backend"] + ("" if told["backend"] == "auto" else ", by PYSSL_FAST_BACKEND")
    for name, value in lines.items():
        grid.add_row(name, _plain(value))
    console.print(grid)

    gpu = "CUDA tensors" + ("" if facts["gpus"] else " (no GPU here)")
    chosen = Table(title='what "auto" chooses', title_justify="left", title_style="bold")
    for heading in ("family", "operator", "CPU tensors", gpu):
        chosen.add_column(heading, no_wrap=True)
    reasons = Table(title="what cannot run, and why", title_justify="left", title_style="bold")
    for heading in ("family", "backend", "tensors", "reason"):
        reasons.add_column(heading, no_wrap=heading != "reason", overflow="fold")
    for family in told["kernels"]:
        for name in family["operators"]:
            chosen.add_row(family["family"], name, *(f"[green]{family['auto'][device]}[/]" for device in DEVICES))
        for device, why in family["cannot_run"].items():
            for name, reason in why.items():
                reasons.add_row(family["family"], name, device.upper(), _plain(reason))
    console.print(chosen)
    console.print("float64 tensors always run reference, the plain PyTorch twin", style="dim")
    console.print(reasons)


def _plain(text: str) -> str:
    """text with its square brackets kept from being read as markup."""
    return text.replace("[", r"\[")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def info(as_json: bool) -> None:
    """Say what this machine has, and which kernels will run on it."""
    try:
        told = gather()
    except (ImportError, ValueError) as error:  # an extension that does not load, an instruction set that is not here
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        _say(told)
