"""The files of a run, written so that a crash or a full disk never leaves half a file."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing a run into the folder, which is made when it is not there.

    The lock ends with the process, however that ends, and worker processes do not inherit it. A folder that was made
    here is removed again when nothing was written into it.

    Raises:
        ValueError: another process holds the lock.
    """
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with open(path, "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(f"another run is writing to {folder}") from None
        if os.fstat(file.fileno()).st_nlink == 0:  # its holder removed it between our two steps
            raise ValueError(f"another run was writing to {folder} until now: try again")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if not existed:
                with contextlib.suppress(OSError):
                    folder.rmdir()


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by a file with this content, or, when that fails, leave it as it was.

    One writer at a time: what a killed one leaves behind has a fixed name, and the next one replaces it.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
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
        self._file.write(json.dumps(_without_nan(line)).encode() + b"\n")

    def sync(self) -> int:
        """Bring everything onto the disk; the length of the file in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def _without_nan(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: null stands for them."""
    if isinstance(value, Mapping):
        return {key: _without_nan(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path, length: int | None = None) -> list[dict[str, Any]]:
    """The lines of a metrics file, or of its first `length` bytes. Raises ValueError when one is not whole."""
    raw = path.read_bytes()
    if length is not None and len(raw) < length:
        raise ValueError(f"{path} is shorter than at the time of the checkpoint; it cannot be continued")
    lines = []
    for number, text in enumerate(raw[:length].splitlines(), start=1):
        try:
            lines.append(dict(json.loads(text)))
        except (ValueError, TypeError):
            raise ValueError(f"{path} is damaged at line {number}") from None
    return lines
