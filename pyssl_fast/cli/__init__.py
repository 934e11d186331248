"""The command line. Each sub-command lives in the module of its name, imported when it is called."""

from __future__ import annotations

import importlib

import click

COMMANDS = {
    "train": "Train an encoder on images without labels, and say how good it is.",
    "bench": "Measure the kernels beside reference implementations.",
    "info": "Show what this machine has, and which kernels will run.",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"pyssl_fast.cli.{name}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pyssl_fast", prog_name="pyssl-fast")
def main() -> None:
    """Fused kernels for self-supervised learning."""
