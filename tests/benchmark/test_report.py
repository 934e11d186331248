from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pyssl_fast.benchmark import machine, measure, report, similarity

README = Path(__file__).parents[2] / "benchmarks" / "README.md"


@pytest.fixture(scope="module")
def document() -> dict:
    names = ["ours", "eager", "bare"]
    made = {
        "schema": report.SCHEMA,
        "machine": machine.facts(),
        "settings": {
            "family": "similarity",
            "measures": similarity.MEASURES,
            "mode": "forward+backward",
            "device": "cpu",
            "dtype": "float32",
            "temperature": 0.5,
            "seed": 0,
        },
        "cases": [],
        "results": [],
    }
    for rows in (64, 128):
        case = similarity.Case(rows, 8)
        sides = similarity.sides(case, names)
        outcome = measure.run(sides, sides, device=torch.device("cpu"), rounds=2)
        entry = report.case_entry(rows, 8, similarity.work(case), outcome)
        made["cases"].append(entry)
        made["results"] += report.result_entries(entry, outcome.measured)
    return made


def test_check_document_accepts_what_is_written(document: dict, tmp_path: Path) -> None:
    report.write_json(document, tmp_path / "o.json")
    report.check_document(json.loads((tmp_path / "o.json").read_text()))


def _without_a_field(document: dict) -> None:
    del document["results"][0]["time_ms_median"]


def _with_an_unknown_field(document: dict) -> None:
    document["cases"][0]["time_s"] = 1.0


def _with_a_wrong_type(document: dict) -> None:
    document["cases"][0]["rows"] = "64"


def _with_a_bool_for_a_number(document: dict) -> None:
    document["results"][0]["gflops"] = True


def _with_a_nan(document: dict) -> None:
    document["results"][0]["gflops"] = float("nan")


def _with_another_schema(document: dict) -> None:
    document["schema"] = 0


def _with_a_result_of_no_case(document: dict) -> None:
    document["results"][0]["rows"] = 32


def _with_a_list_for_the_machine(document: dict) -> None:
    document["machine"] = []


BREAKAGES = [
    _without_a_field, _with_an_unknown_field, _with_a_wrong_type, _with_a_bool_for_a_number, _with_a_nan,
    _with_another_schema, _with_a_result_of_no_case, _with_a_list_for_the_machine,
]  # fmt: skip


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.__name__.strip("_"))
def test_check_document_rejects(document: dict, breakage, tmp_path: Path) -> None:
    broken = copy.deepcopy(document)
    breakage(broken)
    with pytest.raises(ValueError, match=r"schema|fields|must be|is of no case"):
        report.write_json(broken, tmp_path / "o.json")
    assert not (tmp_path / "o.json").exists()


@pytest.mark.parametrize("fields", [report.DOCUMENT, report.MACHINE, report.SETTINGS, report.CASE, report.RESULT])
def test_readme_documents_every_field(fields: dict) -> None:
    readme = README.read_text()
    for name, (_, meaning) in fields.items():
        assert f"| `{name}` | {meaning} |" in readme


def test_ratios_and_floor_are_consistent(document: dict) -> None:
    by_side = {row["side"]: row for row in document["results"] if row["rows"] == 64}
    case = document["cases"][0]
    assert by_side["eager"]["speedup_over_eager"] == by_side["bare"]["time_over_bare"] == 1
    for row in by_side.values():
        assert row["over_floor"] == pytest.approx(row["time_ms_median"] / case["floor_ms"])
        assert row["gflops"] * row["time_ms_median"] == pytest.approx(case["least_gflop"] * 1e3)


def test_table_and_notes_name_every_side_and_the_floor(document: dict) -> None:
    case = dict(document["cases"][0], left_out={"lightly": "lightly is not installed"})
    rows = [row for row in document["results"] if row["rows"] == 64]
    rows[0] = dict(rows[0], extra_peak_mb=None)
    console = Console(width=120, record=True, quiet=True)
    with console.capture() as capture:
        console.quiet = False
        console.print(report.table(case, rows, "forward+backward"))
    text = capture.get()
    for row in rows:
        assert row["label"] in text
    assert "not measured" in text
    notes = "\n".join(report.notes(case, rows))
    assert "floor:" in notes
    assert "right after ours" in notes
    assert "left out: lightly: lightly is not installed" in notes


def test_figure_is_drawn(document: dict, tmp_path: Path) -> None:
    assert report.figure(document, tmp_path / "o.png") == 8
    assert (tmp_path / "o.png").read_bytes().startswith(b"\x89PNG")


def test_figure_takes_one_size_and_no_memory(document: dict, tmp_path: Path) -> None:
    lean = copy.deepcopy(document)
    lean["cases"] = lean["cases"][:1]
    lean["results"] = [dict(row, extra_peak_mb=None) for row in lean["results"] if row["rows"] == 64]
    report.figure(lean, tmp_path / "o.png")
    assert (tmp_path / "o.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("x", "text"), [(None, "–"), (0, "0"), (0.01234, "0.012"), (1.234, "1.23"), (98.76, "98.8"), (12345.6, "12,346")]
)
def test_numbers_have_three_digits_and_no_powers_of_ten(x, text) -> None:
    assert report._number(x) == text
