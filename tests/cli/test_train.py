"""`pyssl-fast train` as one meets it: what it prints, what it leaves behind, how it ends."""

import dataclasses
import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from PIL import Image

from pyssl_fast.cli import COMMANDS, main
from pyssl_fast.recipes import RECIPES, find_recipe
from tests.data.tiny import write_fashion, write_images

FILES = {"checkpoint.pt", "metrics.jsonl", "encoder.pt", "loss.png", "embeddings.png"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return f"fashion-mnist:{write_fashion(tmp_path_factory.mktemp('data'), count=24, size=16)}"


def invoke(*arguments):
    return CliRunner().invoke(main, ["train", *map(str, arguments)])


def refused(outcome, message):
    """It ended with an exit code, and one line on stderr that holds the message."""
    assert outcome.exit_code == 1, outcome.output
    assert isinstance(outcome.exception, SystemExit)
    assert outcome.stderr.startswith("Error: ")
    assert outcome.stderr.count("\n") == 1, outcome.stderr
    assert message in outcome.stderr
    return True


def test_a_run_from_end_to_end(data, tmp_path):
    out = tmp_path / "run"
    arguments = ("simclr", "--data", data, "--batch-size", 8, "--epochs", 2, "--temperature", 0.3, "--out", out)
    outcome = invoke(*arguments)
    assert outcome.exit_code == 0, outcome.output
    for expected in ("temperature 0.3", "raw pixels", "untrained encoder", "trained encoder", "epoch 2/2", "training "):
        assert expected in outcome.output
    assert re.search(r"spread \d\.\d\d  rank \d+ of 128  correlation 0\.\d\d\n", outcome.output)
    assert {path.name for path in out.iterdir()} == FILES
    for name in ("loss.png", "embeddings.png"):
        Image.open(out / name).load()
    assert refused(invoke(*arguments), "already holds a run")
    assert refused(invoke(*arguments, "--resume", "--seed", 3), "--seed 0, not 3")
    assert refused(invoke(*arguments, "--resume", "--overwrite"), "choose one")
    again = invoke("simclr", "--out", out, "--resume")  # everything else is in the checkpoint
    assert again.exit_code == 0, again.output
    assert invoke(*arguments, "--overwrite").exit_code == 0


def test_unlabelled_images(tmp_path):
    write_images(tmp_path / "images", 6)
    outcome = invoke("simclr", "--data", f"folder:{tmp_path / 'images'}", "--epochs", 1, "--out", tmp_path / "run")
    assert outcome.exit_code == 0, outcome.output
    assert "unlabelled" in outcome.output
    assert "k-NN" not in outcome.output
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES


@pytest.mark.parametrize("method", ["supcon", "triplet"])
def test_supervised_methods_say_so_and_need_labels(data, tmp_path, method):
    outcome = invoke(method, "--data", data, "--epochs", 1, "--out", tmp_path / "run")
    assert outcome.exit_code == 0, outcome.output
    assert "supervised" in outcome.output
    write_images(tmp_path / "images", 6)
    outcome = invoke(method, "--data", f"folder:{tmp_path / 'images'}", "--out", tmp_path / "other")
    assert refused(outcome, "learns from the labels of the training images, and folder has none")
    assert not (tmp_path / "other").exists()


def test_flags_are_switched_on_and_off(data, tmp_path):
    arguments = ("moco", "--data", data, "--epochs", 1, "--batch-size", 8, "--overwrite", "--out", tmp_path)
    assert "symmetric True" in invoke(*arguments, "--symmetric").output
    assert "symmetric False" in invoke(*arguments, "--no-symmetric").output
    assert "predictor False" in invoke("byol", *arguments[1:], "--no-predictor").output


@pytest.mark.parametrize(
    ("by", "said"), [("pyssl_fast", "2 of each image: "), ("torchvision", "2 of each image by torchvision: ")]
)
def test_the_views_are_described(data, tmp_path, by, said):
    outcome = invoke("simclr", "--data", data, "--epochs", 1, "--out", tmp_path, "--augment", by)
    assert outcome.exit_code == 0, outcome.output
    text = " ".join(outcome.output.split())
    assert f"{said}clothes: crop 30 to 100 % → 16 × 16 bilinear, flip 50 %, jitter 0.4/0.4/0/0" in text


def test_collapse_is_said_aloud(data, tmp_path, monkeypatch):
    from pyssl_fast.recipes.simclr import SimCLR

    monkeypatch.setattr(SimCLR, "forward", lambda self, images: self.projector(self.encoder(images)) * 0 + 1)
    outcome = invoke("simclr", "--data", data, "--epochs", 1, "--out", tmp_path)
    assert "the embeddings have collapsed" in outcome.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a method: simclr, moco"),
        (("simclear",), "unknown method 'simclear'; known: simclr, moco"),
        (("simclr", "--data", "folder:/nowhere"), "there is no folder /nowhere"),
        (("simclr", "--data", "cifar100"), "unknown data 'cifar100'"),
        (("simclr", "--batch-size", "1"), "--batch-size must be at least 2"),
        (("simclr", "--batch-size", "100"), "larger than the 24 training images"),
        (("simclr", "--batch-size", "many"), "'many' is not a valid integer"),
        (("simclr", "--epohcs", "3"), "--epohcs"),
        (("simclr", "--encoder", "resnet17"), "unknown encoder 'resnet17'"),
        (("simclr", "--temperature", "0"), "temperature must be"),
        (("simclr", "--temperature", "nan"), "temperature must be"),
        (("simclr", "--device", "cuda:99"), "--device cuda:99 cannot be used here"),
        (("simclr", "--device", "meta"), "--device meta cannot be used here"),
        (("simclr", "--learning-rate", "inf"), "both finite"),
        (("simclr", "--device", "toaster"), "--device toaster cannot be used here"),
        (("simclr", "--backend", "cuda", "--device", "cpu"), "backend 'cuda' cannot run here"),
        (("simclr", "--resume"), "nothing to resume"),
        (("simclr", "--workers", "-1"), "--workers must not be negative"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(data, tmp_path, arguments, message):
    if arguments[:1] == ("simclr",):
        arguments = ("simclr", "--data", data, "--out", str(tmp_path / "run"), *arguments[1:])
    assert refused(invoke(*arguments), message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(tmp_path, workers):
    folder = write_images(tmp_path / "images", 6)
    (folder / "3.png").write_bytes(b"broken")
    arguments = ("--data", f"folder:{folder}", "--out", tmp_path / "run", "--epochs", 1, "--workers", workers)
    assert refused(invoke("simclr", *arguments), f"cannot read the image {folder / '3.png'}")


def test_an_empty_folder(tmp_path):
    assert refused(invoke("simclr", "--data", f"folder:{tmp_path}"), "there are no images in")


def test_an_output_folder_that_cannot_be(data, tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "run"
    assert refused(invoke("simclr", "--data", data, "--out", out), "Not a directory")


def test_a_full_disk(data, tmp_path, monkeypatch):
    fsync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    outcome = invoke("simclr", "--data", data, "--out", tmp_path, "--batch-size", 8, "--epochs", 9)
    assert refused(outcome, "No space left on device; step 6 is saved, continue with: pyssl-fast train simclr")
    assert not list(tmp_path.glob(".*"))


def test_a_folder_of_any_name_and_how_to_go_on(data, tmp_path, monkeypatch):
    from pyssl_fast.recipes.engine import Training

    out = tmp_path / "a[/b] $x"
    arguments = ("simclr", "--data", data, "--epochs", 1, "--out", out, "--workers", 0, "--device", "cpu")
    monkeypatch.setattr(Training, "evaluate", lambda *arguments: {}["nothing"])
    outcome = invoke(*arguments)
    monkeypatch.undo()
    assert refused(outcome, "KeyError: 'nothing' (a traceback: PYSSL_FAST_TRACEBACK=1); step 1 is saved")
    command = shlex.split(outcome.stderr.partition("continue with: ")[2])
    assert command == [
        "pyssl-fast",
        "train",
        "simclr",
        "--out",
        str(out),
        *shlex.split("--resume --device cpu --workers 0"),
    ]
    outcome = CliRunner().invoke(main, command[1:])
    assert outcome.exit_code == 0, outcome.output
    monkeypatch.setattr(Training, "evaluate", lambda *arguments: {}["nothing"])
    monkeypatch.setenv("PYSSL_FAST_TRACEBACK", "1")
    assert isinstance(CliRunner().invoke(main, command[1:]).exception, KeyError)


def test_compiling_needs_a_compiler(data, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    assert refused(invoke("simclr", "--data", data, "--out", tmp_path, "--compile"), "there is no no-such-compiler")


def test_missing_packages_are_named(monkeypatch):
    from pyssl_fast.cli import train

    monkeypatch.setattr(train, "NEEDED", ("torchvision", "no_such_package"))
    assert refused(invoke("simclr"), "training needs no_such_package: pip install pyssl-fast[train]")


def test_help_names_every_option():
    text = CliRunner().invoke(main, ["train", "simclr", "--help"]).output
    for name in ("data", "full", "encoder", "epochs", "batch-size", "temperature", "precision", "backend", "resume"):
        assert f"--{name}" in text
    methods = CliRunner().invoke(main, ["train", "--help"]).output
    assert all(name in methods for name in RECIPES)
    assert all(name in CliRunner().invoke(main, ["--help"]).output for name in COMMANDS)


@pytest.mark.parametrize("method", RECIPES)
def test_help_names_the_options_of_a_method(method):
    text = " ".join(CliRunner().invoke(main, ["train", method, "--help"]).output.split())
    for field in dataclasses.fields(find_recipe(method).Options):
        flag = field.name.replace("_", "-")
        assert f"--{flag}" in text
        if isinstance(field.default, bool):
            assert f"[default:{'' if field.default else 'no-'}{flag}]" in text.replace(" ", "")  # wrapped at hyphens


def test_the_package_and_the_help_import_nothing_heavy():
    code = (
        "import sys, pyssl_fast, pyssl_fast.cli\n"
        "pyssl_fast.cli.main(['--help'], standalone_mode=False)\n"
        "print(sorted({'torchvision', 'sklearn', 'matplotlib', 'mlxtend'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_a_run_and_going_on(data, tmp_path, number):
    command = [
        sys.executable,
        "-c",
        "from pyssl_fast.cli import main; main()",
        "train",
        "simclr",
        "--out",
        str(tmp_path),
    ]
    more = ["--data", data, "--batch-size", "4", "--epochs", "500", "--workers", "1"]
    process = subprocess.Popen(
        [*command, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    metrics = tmp_path / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    os.killpg(process.pid, number)  # as a terminal does: to the workers too
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr.startswith("Interrupted: stopped after step ")
    assert stderr.count("\n") == 1
    assert f"pyssl-fast train simclr --out {tmp_path} --resume" in stderr
    steps = [line["step"] for line in map(json.loads, metrics.read_text().splitlines()) if line["kind"] == "step"]
    assert steps == list(range(1, len(steps) + 1))

    process = subprocess.Popen([*command, "--resume"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    size = metrics.stat().st_size
    while process.poll() is None and metrics.stat().st_size <= size:
        time.sleep(0.05)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert f"resuming after step {len(steps)} of 3000" in stdout
