from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pyssl_fast.benchmark import augment, measure, report
from pyssl_fast.cli.bench import bench

FAST = ["similarity", "--case", "nt-xent", "--rows", "64", "--dim", "8", "--rounds", "2", "--device", "cpu"]


@pytest.fixture(autouse=True)
def small_probes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine's rates are of no interest here, and take most of the time; so do collections of garbage."""
    gc.freeze()
    monkeypatch.setitem(measure.PROBE_NUMBERS, "cpu", 1 << 14)
    yield
    gc.unfreeze()


def _bench(*arguments: str) -> Result:
    return CliRunner().invoke(bench, list(arguments))


def test_bench_prints_a_table_and_writes_json_and_png(tmp_path: Path) -> None:
    json_path, png_path = tmp_path / "o.json", tmp_path / "o.png"
    files = ["--json", str(json_path), "--png", str(png_path)]
    result = _bench(*FAST, "--rows", "128,256", "--sides", "ours,eager,blocked,bare", *files)
    assert result.exit_code == 0, result.output
    for word in ("64 × 8", "256 × 8", "eager PyTorch", "blocked torch.mm", "bare products", "floor:", "ours"):
        assert word in result.output
    document = json.loads(json_path.read_text())
    report.check_document(document)
    assert [case["rows"] for case in document["cases"]] == [64, 128, 256]
    assert png_path.stat().st_size > 0


def test_bench_measures_several_systems_and_summarises_them(tmp_path: Path) -> None:
    json_path, summary = tmp_path / "o.json", tmp_path / "o.md"
    names = ["moco", "koleo", "clip"]
    sizes = ["--rows", "64", "--dim", "8", "--columns", "256", "--rounds", "1", "--device", "cpu"]
    sides = ["--sides", "ours,eager,twin,lightly,open_clip,pml", "--precision", "highest"]
    files = ["--json", str(json_path), "--markdown", str(summary)]
    result = _bench("similarity", "--case", "moco,koleo", "--case", "clip", *sizes, *sides, *files)
    assert result.exit_code == 0, result.output
    document = json.loads(json_path.read_text())
    report.check_document(document)
    assert list(dict.fromkeys(case["system"] for case in document["cases"])) == names
    assert not any(case["left_out"] for case in document["cases"])
    for case in document["cases"]:
        (ours,) = (row for row in document["results"] if row["case"] == case["case"] and row["ours"])
        assert ours["speedup_over"]
        assert case["case"] in summary.read_text()


def test_bench_shows_targets_where_they_were_stated() -> None:
    fixed = ["similarity", "--case", "koleo", "--sides", "ours,lightly", "--device", "cpu", "--skip-above-gb", "1e-6"]
    small = ["--precision", "highest", "--rounds", "1"]
    result = _bench(*fixed, *small, "--rows", "64")
    assert "target of ours" not in result.output
    result = _bench("similarity", "--case", "mean-shift", *small)
    assert result.exit_code == 0, result.output
    assert "target of ours" in result.output
    assert "≥ 1.80×" in result.output


def test_bench_measures_steps_by_their_bytes(tmp_path: Path) -> None:
    json_path, png_path, summary = tmp_path / "o.json", tmp_path / "o.png", tmp_path / "o.md"
    sizes = ["--rows", "4,8", "--dim", "1000", "--rounds", "1", "--device", "cpu"]
    files = ["--json", str(json_path), "--png", str(png_path), "--markdown", str(summary)]
    result = _bench("multi_tensor", "--case", "ema,adamw-ema", *sizes, "--sides", "ours,triad,foreach,fused", *files)
    assert result.exit_code == 0, result.output
    assert "GB/s" in result.output
    assert "GFLOP" not in result.output
    assert "EMA of parameters, 1,000 numbers" in result.output  # what was drawn
    document = json.loads(json_path.read_text())
    report.check_document(document)
    assert [(case["system"], case["rows"], case["mode"]) for case in document["cases"]] == [
        (system, rows, "step") for system in ("ema", "adamw-ema") for rows in (4, 8)
    ]
    assert [case["floor_by"] for case in document["cases"]] == ["bytes"] * 4
    assert {row["side"] for row in document["results"]} == {"cpu", "triad", "foreach", "fused"}
    assert all(row["loss"] is None for row in document["results"])
    assert "| adamw-ema 8 × 1,000 | cpu |" in summary.read_text()
    assert png_path.stat().st_size > 0


def test_bench_measures_views_by_images_per_second(tmp_path: Path) -> None:
    json_path, png_path, summary = tmp_path / "o.json", tmp_path / "o.png", tmp_path / "o.md"
    sizes = ["--rows", "2,3", "--dim", "32", "--rounds", "1", "--device", "cpu"]
    files = ["--json", str(json_path), "--png", str(png_path), "--markdown", str(summary)]
    sides = ["--sides", "ours,torchvision,torchvision-uint8"]
    result = _bench("augment", "--case", "mae,simclr", *sizes, *sides, *files)
    assert result.exit_code == 0, result.output
    assert "images" in result.output
    assert "GFLOP" not in result.output
    assert "MAE, 32² pixels" in result.output  # what was drawn
    document = json.loads(json_path.read_text())
    report.check_document(document)
    assert [(case["system"], case["rows"], case["mode"]) for case in document["cases"]] == [
        (system, rows, "views") for system in ("mae", "simclr") for rows in (2, 3)
    ]
    assert [case["floor_by"] for case in document["cases"]] == ["bytes"] * 4
    assert {row["side"] for row in document["results"]} == {"cpu", "torchvision", "torchvision-uint8"}
    assert all(row["loss"] is None for row in document["results"])
    assert "images/s" in summary.read_text()
    assert png_path.stat().st_size > 0


def test_bench_has_targets_of_narrower_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = (case for case in augment.CASES if case.system.name == "simclr")
    goals = {"targets": {"torchvision": 1e6}, "narrow": {"torchvision": 1e-6}}
    monkeypatch.setattr(augment, "CASES", (replace(case, rows=2, dim=32, **goals),))
    result = _bench("augment", "--sides", "ours,torchvision", "--isa", "generic", "--rounds", "1", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "≥ 0.000×" in result.output
    assert "kept" in result.output


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_bench_forward_in_low_precision(dtype: str) -> None:
    result = _bench(*FAST, "--mode", "forward", "--dtype", dtype, "--sides", "ours,eager")
    assert result.exit_code == 0, result.output


def test_bench_has_a_side_per_precision_and_instruction_set(tmp_path: Path) -> None:
    path = tmp_path / "o.json"
    result = _bench(*FAST, "--sides", "cpu", "--precision", "highest,medium", "--isa", "generic", "--json", str(path))
    assert result.exit_code == 0, result.output
    sides = [row["side"] for row in json.loads(path.read_text())["results"]]
    assert sides == ["cpu:generic", "cpu:medium:generic"]


def test_bench_leaves_out_what_is_too_large_and_says_so() -> None:
    result = _bench(*FAST, "--sides", "eager,blocked", "--skip-above-gb", "1e-6")
    assert result.exit_code == 0, result.output
    assert "left out: eager" in result.output
    assert "blocked torch.mm" in result.output


def test_bench_measures_nothing_and_says_so() -> None:
    result = _bench(*FAST, "--sides", "eager", "--skip-above-gb", "1e-6")
    assert result.exit_code == 0, result.output
    assert "no side was measured" in result.output


def test_bench_fails_when_ours_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyssl_fast import functional

    monkeypatch.setattr(functional, "nt_xent", lambda z0, z1, temperature: (z0 + z1).sum())
    result = _bench(*FAST, "--sides", "eager,ours")
    assert result.exit_code == 1
    assert "failed or wrong" in result.output
    assert "its loss is" in result.output


BAD = {
    "unknown family": (["nonsense"], "unknown family 'nonsense'"),
    "unknown case": (["--case", "nonsense"], "unknown case 'nonsense'; there are: nt-xent, clip"),
    "odd rows": (["--rows", "7"], "rows of nt-xent must be 2 views of 2 samples or more"),
    "no bank": (["--columns", "64"], "columns are a bank's"),
    "no columns": (["--columns", "0"], "--columns must be greater than 0"),
    "no number": (["--rows", "12,many"], "--rows must be numbers"),
    "empty": (["--dim", ""], "--dim must be numbers"),
    "negative dim": (["--dim", "-4"], "dim must be 1 or more"),
    "zero temperature": (["--temperature", "0"], "temperature must be 1e-8 to 1e30"),
    "nan temperature": (["--temperature", "nan"], "temperature must be 1e-8 to 1e30"),
    "no dtype of a step": (
        ["multi_tensor", "--dtype", "bfloat16"],
        "dtypes of ema are part of it; dtype must be float32",
    ),
    "no backward of a step": (["multi_tensor", "--mode", "forward"], "--mode: multi_tensor has no backward"),
    "no products of a step": (
        ["multi_tensor", "--precision", "high"],
        "--precision: multi_tensor has no backward and no products",
    ),
    "no backward of views": (["augment", "--mode", "forward"], "--mode: augment has no backward and no products"),
    "no temperature of views": (["augment", "--temperature", "1"], "--temperature: augment has no backward"),
    "no dtype of views": (["augment", "--dtype", "float16"], "dtypes of simclr are part of it; dtype must be float32"),
    "no images of 4 pixels": (["augment", "--dim", "4"], "dim of simclr, pixels along a side, must be 5 or more"),
    "no bank of images": (["augment", "--columns", "64"], "columns are a bank's"),
    "unknown side": (["--sides", "nonsense"], "unknown side 'nonsense'"),
    "unknown precision": (["--precision", "low"], "--precision must be highest, high or medium"),
    "unknown instruction set": (["--isa", "mmx"], "--isa"),
    "no rounds": (["--rounds", "0"], "--rounds must be greater than 0"),
    "no threads": (["--threads", "-1"], "--threads must be greater than 0"),
    "no memory": (["--skip-above-gb", "nan"], "--skip-above-gb must be greater than 0"),
    "no such folder": (["--json", "/nonexistent/o.json"], "--json: cannot write /nonexistent/o.json"),
    "a folder": (["--png", "."], "--png: cannot write ."),
}


@pytest.mark.parametrize(("arguments", "says"), BAD.values(), ids=BAD)
def test_bad_arguments_are_one_clear_line(arguments: list[str], says: str) -> None:
    result = _bench(*arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)  # click's own end, no traceback
    assert says in result.output
    assert result.output.count("\n") == 1
