"""The files of a run, written so that a crash or a full disk never leaves half a file."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by a file with this content, or, when that fails, leave it as it was."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the new name is on the disk too
    finally:
        os.close(directory)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    buffer = io.BytesIO()  # torch.save to a file reports a full disk as a RuntimeError; a plain write as what it is
    torch.save(dict(state), buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Raises ValueError when the file is not a whole checkpoint."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        state["step"], state["settings"], state["recipe"]
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is not a checkpoint of a training run") from error
    return state


class MetricsFile:
    """metrics.jsonl: one JSON object per line. A checkpoint remembers how long the file was; resuming cuts it to that
    length, so that the lines after the checkpoint are written once, by the steps that are repeated."""

    def __init__(self, path: Path, length: int = 0) -> None:
        """Open the file and cut it to `length` bytes. Raises ValueError when it is shorter."""
        self._file = open(path, "ab")  # noqa: SIM115
        if self._file.tell() < length:
            self._file.close()
            raise ValueError(f"{path} is shorter than at the time of the checkpoint; it cannot be continued")
        self._file.truncate(length)
        self._file.seek(length)

    def write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")

    def sync(self) -> int:
        """Bring everything onto the disk; the length of the file in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
