"""Files that are whole or not there."""

import errno
import os
import subprocess
import sys

import pytest

from pyssl_fast.recipes.files import (
    MetricsFile,
    load_checkpoint,
    locked,
    read_metrics,
    save_checkpoint,
    write_atomically,
)


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


def test_what_a_killed_write_left_is_replaced_and_the_umask_holds(tmp_path):
    (tmp_path / ".file.tmp").write_bytes(b"half")
    before = os.umask(0o077)
    try:
        write_atomically(tmp_path / "file", b"whole")
    finally:
        os.umask(before)
    (path,) = tmp_path.iterdir()
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"whole", 0o600)


def test_a_locked_folder_is_refused_until_its_process_is_killed(tmp_path):
    code = (
        "import fcntl, os, sys, time; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print('locked', flush=True); time.sleep(60)"
    )
    out = tmp_path / "run"
    out.mkdir()
    with subprocess.Popen([sys.executable, "-c", code, str(out / ".lock")], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(ValueError, match=f"another run is writing to {out}"), locked(out):
            pass
        process.kill()
    with locked(out):
        pass
    assert list(out.iterdir()) == []
    with pytest.raises(KeyError), locked(tmp_path / "new"):
        raise KeyError
    assert not (tmp_path / "new").exists()


def test_metrics_have_null_for_what_is_not_a_number(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.write({"rank": float("nan"), "scores": {"one": float("inf")}, "step": 1})
    metrics.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"rank": null, "scores": {"one": null}, "step": 1}\n'


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
