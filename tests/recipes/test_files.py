"""Files that are whole or not there."""

import errno
import os

import pytest

from pyssl_fast.recipes.files import MetricsFile, load_checkpoint, read_metrics, save_checkpoint, write_atomically


def full_disk(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_metrics_are_cut_to_what_a_checkpoint_remembers(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.write({"step": 1})
    length = metrics.sync()
    metrics.write({"step": 2})
    metrics.close()
    metrics = MetricsFile(path, length)
    metrics.write({"step": 3})
    metrics.close()
    assert read_metrics(path) == [{"step": 1}, {"step": 3}]
    with pytest.raises(ValueError, match="shorter"):
        MetricsFile(path, 1000)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04"])
def test_a_damaged_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is not a checkpoint"):
        load_checkpoint(path)


def test_a_checkpoint_of_something_else_is_named(tmp_path):
    save_checkpoint(tmp_path / "checkpoint.pt", {"step": 1})
    with pytest.raises(ValueError, match="is not a checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt")
