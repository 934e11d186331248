"""What several commands ask of their options."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click


def writable(_: Any, option: click.Parameter, value: str | None) -> Path | None:
    """Say now, not after minutes of work, that a file cannot be written."""
    if value is None:
        return None
    path = Path(value)
    try:
        if path.is_dir():
            raise IsADirectoryError
        with tempfile.TemporaryFile(dir=path.parent):  # permission bits say nothing to root
            pass
    except OSError:
        raise click.ClickException(f"{option.opts[0]}: cannot write {value}") from None
    return path
