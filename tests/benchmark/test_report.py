from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.table import Table

from pyssl_fast.benchmark import cases, machine, measure, report, similarity
from pyssl_fast.benchmark.cases import Case

README = Path(__file__).parents[2] / "benchmarks" / "README.md"


CASES = (
    Case(similarity.NT_XENT, 64, 8, targets={"eager": 1e-6, "bare": 1e-6}, target_mb=1e6),
    Case(similarity.NT_XENT, 128, 8),
    Case(similarity.MOCO, 16, 8, 64, targets={"twin": 1e6}),
)
FIRST = CASES[0].title


@pytest.fixture(scope="module")
def document() -> Iterator[dict]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(measure.PROBE_NUMBERS, "cpu", 1 << 14)  # rates are of no interest here, and take most of the time
        yield _measured()


def _measured() -> dict:
    made = {
        "schema": report.SCHEMA,
        "machine": machine.facts(),
        "settings": {"family": "similarity", "device": "cpu", "dtype": "float32", "seed": 0},
        "cases": [],
        "results": [],
    }
    for case in CASES:
        sides = cases.sides(case, ["ours", "eager", "twin", "bare"], peers=["twin", "bare"])
        outcome = measure.run(sides, sides, device=torch.device("cpu"), product=case.product, rounds=2)
        entry = report.case_entry(case, outcome)
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
    document["results"][0]["case"] = "nt-xent 32 × 8"


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
    by_side = {row["side"]: row for row in document["results"] if row["case"] == FIRST}
    case = document["cases"][0]
    assert by_side["eager"]["speedup_over"]["eager"] == by_side["bare"]["speedup_over"]["bare"] == 1
    for row in by_side.values():
        assert row["over_floor"] == pytest.approx(row["time_ms_median"] / case["floor_ms"])
        assert row["gflops"] * row["time_ms_median"] == pytest.approx(case["least_gflop"] * 1e3)


def _text(table: Table) -> str:
    console = Console(width=140)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_table_and_notes_name_every_side_and_the_floor(document: dict) -> None:
    case = dict(document["cases"][0], left_out={"lightly": "lightly is not installed"})
    rows = [row for row in document["results"] if row["case"] == FIRST]
    rows[0] = dict(rows[0], extra_peak_mb=None)
    text = _text(report.table(case, rows))
    for row in rows:
        assert row["label"] in text
    assert "–" in text
    notes = "\n".join(report.notes(case, rows))
    assert "floor:" in notes
    assert "right after ours" in notes
    assert "left out: lightly: lightly is not installed" in notes


def _ours(case: dict, document: dict, **changes) -> dict:
    return next({**row, **changes} for row in document["results"] if row["case"] == case["case"] and row["ours"])


def test_targets_are_kept_or_missed(document: dict) -> None:
    easy, without, hard = document["cases"]
    assert report._verdict(_ours(easy, document, extra_peak_mb=1.0), easy) == "kept"
    assert report._verdict(_ours(easy, document, extra_peak_mb=2e6), easy) == "missed"
    assert report._verdict(_ours(hard, document), hard) == "missed"
    for unknown in (_ours(without, document), _ours(easy, document, ours=False)):
        assert report._verdict(unknown, without if unknown["ours"] else easy) == "–"
    unmeasured = _ours(hard, document, speedup_over={})
    assert report._verdict(unmeasured, hard) == "–"
    rows = [row for row in document["results"] if row["case"] == hard["case"]]
    assert "≥ 1,000,000×" in _text(report.table(hard, rows))


def test_targets_are_those_of_the_instruction_set(document: dict) -> None:
    case = dict(document["cases"][0], targets={"eager": 1e6, "bare": 1e-6}, targets_narrow={"eager": 1e-6})
    rows = [row for row in document["results"] if row["case"] == FIRST and not row["ours"]]
    for isa, verdict in (("avx512", "missed"), ("avx2", "kept"), ("generic", "kept"), (None, "missed")):
        ours = _ours(case, document, isa=isa, label=f"ours, cpu {isa}", extra_peak_mb=1.0)
        assert report._verdict(ours, case) == verdict
        rows.append(ours)
    text = _text(report.table(case, rows))
    assert "target of cpu avx512" in text
    assert "target of cpu avx2 " in text
    assert "target of cpu generic" not in text  # has AVX2's
    assert "≥ 1,000,000×" in text
    assert "≥ 0.000×" in text


def test_views_are_told_in_images_per_second(document: dict) -> None:
    case = dict(document["cases"][0], mode="views", rows=64, targets={}, target_mb=None, target_rate=600, least_gflop=0)
    fast, slow = (_ours(case, document, time_ms_median=time) for time in (100.0, 110.0))
    assert [report._verdict(row, case) for row in (fast, slow)] == ["kept", "missed"]
    text = _text(report.table(case, [fast]))
    for word in ("images", "640", "≥ 600", "target of ours"):
        assert word in text
    assert "GFLOP" not in text
    assert "GFLOP" not in report.notes(case, [fast])[0]
    lines = report.markdown({"cases": [case], "results": [slow]})
    assert "110 ms, 582 images/s (≥ 600)" in lines
    assert lines.endswith("| missed |\n")


def test_markdown_has_a_line_per_case_and_side_of_ours(document: dict) -> None:
    head, rule, *lines = report.markdown(document).splitlines()
    ours = [row for row in document["results"] if row["ours"]]
    assert len(lines) == len(ours) >= len(CASES)
    assert all(line.count("|") == head.count("|") == rule.count("|") for line in lines)
    for line, row in zip(lines, ours, strict=True):
        assert line.startswith(f"| {row['case']} | {row['side']} | ")
    assert "(≥ 1,000,000)" in lines[-1]
    assert lines[-1].endswith("| missed |")


def test_figure_draws_the_system_with_the_most_sizes(document: dict, tmp_path: Path) -> None:
    assert report.figure(document, tmp_path / "o.png") == "NT-Xent, D = 8"
    assert (tmp_path / "o.png").read_bytes().startswith(b"\x89PNG")


def test_figure_takes_one_size_and_no_memory(document: dict, tmp_path: Path) -> None:
    lean = copy.deepcopy(document)
    lean["cases"] = lean["cases"][2:]
    title = lean["cases"][0]["case"]
    lean["results"] = [dict(row, extra_peak_mb=None) for row in lean["results"] if row["case"] == title]
    assert "MoCo" in report.figure(lean, tmp_path / "o.png")
    assert (tmp_path / "o.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("x", "text"), [(None, "–"), (0, "0"), (0.01234, "0.012"), (1.234, "1.23"), (98.76, "98.8"), (12345.6, "12,346")]
)
def test_numbers_have_three_digits_and_no_powers_of_ten(x, text) -> None:
    assert report._number(x) == text
