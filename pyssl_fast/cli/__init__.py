"""The command line. Each sub-command lives in the module of its name, imported when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import click

COMMANDS = {
    "train": "Train an encoder on images without labels, and say how good it is.",
    "views": "Draw the views that an augmentation recipe makes of your images.",
    "bench": "Measure the kernels beside reference implementations.",
    "info": "Show what this machine has, and which kernels will run.",
}


class _LazyGroup(click.Group):
    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, standalone_mode: bool = True, **rest: Any
    ) -> Any:
        """Whatever is wrong with the arguments is said in one line, without a page of usage."""
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **rest)
        try:
            code = super().main(args, prog_name, standalone_mode=False, **rest)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.ClickException as error:
            click.echo(f"Error: {' '.join(error.format_message().split())}", err=True)
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            click.echo("Interrupted", err=True)
            sys.exit(130)
        sys.exit(code if isinstance(code, int) else 0)

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
