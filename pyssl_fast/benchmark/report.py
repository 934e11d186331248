"""What is said of measurements: the table, the JSON document and its schema, the figure."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from pyssl_fast.benchmark.measure import Outcome, Side, Work, floor_ms, iqr, ratio_by_round

SCHEMA = 1
_Field = tuple[tuple[type, ...], str]  # the types that JSON may hold, and the meaning
_NUMBER, _MAYBE_NUMBER = (int, float), (int, float, type(None))
_TEXT, _MAYBE_TEXT = (str,), (str, type(None))

DOCUMENT: dict[str, _Field] = {
    "schema": ((int,), f"{SCHEMA}; grows when a field changes its meaning"),
    "machine": ((dict,), "see below"),
    "settings": ((dict,), "see below"),
    "cases": ((list,), "one entry per problem, see below"),
    "results": ((list,), "one entry per problem and side, see below"),
}
MACHINE: dict[str, _Field] = {
    "cpu_model": (_TEXT, "the processor's name, family and model"),
    "cpu_cores": ((int, type(None)), "cores that this process may use"),
    "isas": ((list,), "instruction sets that our CPU kernels can use here, best first; empty: not built"),
    "isa": (_MAYBE_TEXT, "the one they use unless another is forced"),
    "memory_gb": (_MAYBE_NUMBER, "main memory"),
    "gpus": ((list,), "names, compute capabilities and memory"),
    "threads": ((int,), "torch's threads, ours too"),
    "load_1min": (_MAYBE_NUMBER, "the load average when the run began; above 0.5, something else was running"),
    "os": (_TEXT, "operating system"),
    "python": (_TEXT, "version"),
    "torch": (_TEXT, "version"),
    "cuda": (_MAYBE_TEXT, "version that torch was built for"),
    "triton": (_MAYBE_TEXT, "version"),
    "lightly": (_MAYBE_TEXT, "version"),
    "pyssl_fast": (_TEXT, "version"),
    "commit": (_MAYBE_TEXT, "of the checkout, with -dirty where files differ from it; null: installed"),
    "date": (_TEXT, "when the run began, UTC, ISO 8601"),
}
SETTINGS: dict[str, _Field] = {
    "family": (_TEXT, "kernel family"),
    "measures": (_TEXT, "what of that family, as a title says it"),
    "mode": (_TEXT, "forward+backward or forward"),
    "device": (_TEXT, "cpu or cuda"),
    "dtype": (_TEXT, "of the embeddings"),
    "temperature": (_NUMBER, "τ"),
    "seed": ((int,), "of the inputs and of the order of sides"),
}
CASE: dict[str, _Field] = {
    "rows": ((int,), "M, embeddings over both views"),
    "dim": ((int,), "D, numbers per embedding"),
    "rounds": ((int,), "samples per side"),
    "floor_ms": (_NUMBER, "the time that the fewest operations or bytes take at the two rates below"),
    "floor_by": (_TEXT, "which of the two is larger: operations or bytes"),
    "least_gflop": (_NUMBER, "the fewest floating-point operations that the mathematics allows, in 1e9"),
    "least_mb": (_NUMBER, "the fewest bytes to and from memory, in 1e6"),
    "matmul_gflops": (_NUMBER, "rate of a bare float32 matrix product in this run, 1e9 operations per second"),
    "triad_gb_s": (_NUMBER, "rate of an in-place triad in this run, 1e9 bytes per second"),
    "left_out": ((dict,), "side -> why it was not measured"),
}
RESULT: dict[str, _Field] = {
    "rows": ((int,), "M"),
    "dim": ((int,), "D"),
    "side": (
        _TEXT,
        "a peer, or of ours: backend:precision:isa, without precision if highest, without isa if not forced",
    ),
    "label": (_TEXT, "as the table spells it"),
    "ours": ((bool,), "whether it is one of our kernels"),
    "time_ms_median": (_NUMBER, "median over the rounds"),
    "time_ms_iqr": (_NUMBER, "distance between the quartiles"),
    "speedup_over_eager": (_MAYBE_NUMBER, "median over the rounds of eager's time / this time; null: eager left out"),
    "time_over_bare": (_MAYBE_NUMBER, "median over the rounds of this time / the bare products'; null: left out"),
    "extra_peak_mb": (_MAYBE_NUMBER, "peak memory above what stood before the call, 1e6 bytes; null: not measured"),
    "gflops": (_NUMBER, "least_gflop / time: the same operations for every side, whatever it really does"),
    "over_floor": (_NUMBER, "time / floor_ms"),
    "matmul_after_ms_median": (_NUMBER, "a small torch.mm right after the call"),
    "loss": (_MAYBE_NUMBER, "its value; null: the side has none"),
}


# ---- the document --------------------------------------------------------------------------------------------------


def case_entry(rows: int, dim: int, work: Work, outcome: Outcome) -> dict[str, Any]:
    """One entry of `cases`."""
    floor, by = floor_ms(work, outcome.matmul_gflops, outcome.triad_gb_s)
    return {
        "rows": rows,
        "dim": dim,
        "rounds": outcome.rounds,
        "floor_ms": floor,
        "floor_by": by,
        "least_gflop": work.flops / 1e9,
        "least_mb": work.bytes / 1e6,
        "matmul_gflops": outcome.matmul_gflops,
        "triad_gb_s": outcome.triad_gb_s,
        "left_out": dict(outcome.left_out),
    }


def result_entries(case: Mapping[str, Any], measured: Mapping[Side, Any]) -> list[dict[str, Any]]:
    """The entries of `results` for one case."""
    times = {side.name: samples.time_ms for side, samples in measured.items()}
    entries = []
    for side, samples in measured.items():
        median = statistics.median(samples.time_ms)
        entries.append(
            {
                "rows": case["rows"],
                "dim": case["dim"],
                "side": side.name,
                "label": side.label,
                "ours": side.ours,
                "time_ms_median": median,
                "time_ms_iqr": iqr(samples.time_ms),
                "speedup_over_eager": ratio_by_round(times["eager"], samples.time_ms) if "eager" in times else None,
                "time_over_bare": ratio_by_round(samples.time_ms, times["bare"]) if "bare" in times else None,
                "extra_peak_mb": samples.extra_peak_mb,
                "gflops": case["least_gflop"] / median * 1e3,
                "over_floor": median / case["floor_ms"],
                "matmul_after_ms_median": statistics.median(samples.matmul_after_ms),
                "loss": samples.loss,
            }
        )
    return entries


def check_document(document: Any) -> None:
    """Hold a document against the schema.

    Raises:
        ValueError: a field is missing, unknown, of a wrong type, infinite or NaN; or a result belongs to no case.
    """
    _check("the document", document, DOCUMENT)
    if document["schema"] != SCHEMA:
        raise ValueError(f"schema must be {SCHEMA}; got {document['schema']}")
    _check("machine", document["machine"], MACHINE)
    _check("settings", document["settings"], SETTINGS)
    for number, case in enumerate(document["cases"]):
        _check(f"cases[{number}]", case, CASE)
    known = {(case["rows"], case["dim"]) for case in document["cases"]}
    for number, result in enumerate(document["results"]):
        _check(f"results[{number}]", result, RESULT)
        if (result["rows"], result["dim"]) not in known:
            raise ValueError(f"results[{number}] is of no case: {result['rows']} × {result['dim']}")


def _check(where: str, entry: Any, fields: Mapping[str, _Field]) -> None:
    wrong = sorted(entry.keys() ^ fields.keys()) if isinstance(entry, dict) else ["all, for it is no object"]
    if wrong:
        raise ValueError(f"{where} has missing or unknown fields: {', '.join(wrong)}")
    for name, (types, _) in fields.items():
        value = entry[name]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            allowed = " or ".join("null" if t is type(None) else t.__name__ for t in types)
            raise ValueError(f"{where}: {name} must be {allowed}; got {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{where}: {name} must be finite; got {value}")


def write_json(document: Mapping[str, Any], path: Path) -> None:
    """Whole or not at all: a file that is there already stays until its successor is written."""
    check_document(document)
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


# ---- the table -----------------------------------------------------------------------------------------------------


def _number(x: float | None, digits: int = 3) -> str:
    """x with about `digits` significant digits, never in powers of ten; a dash for None."""
    if x is None:
        return "–"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(x)))) if x else 0
    return f"{x:,.{min(decimals, 3)}f}"


def count(number: int, noun: str) -> str:
    """A number and its noun: 1 round, 2 rounds."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def table(case: Mapping[str, Any], results: Sequence[Mapping[str, Any]], mode: str) -> Table:
    """One case: a line per side, ours first, then the fastest first."""
    grid = Table(
        title=f"{case['rows']:,} × {case['dim']}   {mode}, {count(case['rounds'], 'round')}",
        title_justify="left",
        title_style="bold",
    )
    grid.add_column("", no_wrap=True)
    for column in (
        "time\nms", "spread\n(IQR)", "speed-up\nover eager", "time over\nbare prod.", "extra peak\nMB",
        "\nGFLOP/s", "time over\nfloor", "torch.mm\nafter, ms",
    ):  # fmt: skip
        grid.add_column(column, justify="right", no_wrap=True)
    for row in sorted(results, key=lambda row: (not row["ours"], row["time_ms_median"])):
        speedup = row["speedup_over_eager"]
        grid.add_row(
            row["label"],
            _number(row["time_ms_median"]),
            _number(row["time_ms_iqr"], 2),
            "–" if speedup is None else f"{_number(speedup)}×",
            _number(row["time_over_bare"]),
            "not measured" if row["extra_peak_mb"] is None else f"{row['extra_peak_mb']:,.1f}",
            f"{row['gflops']:,.0f}",
            _number(row["over_floor"]),
            _number(row["matmul_after_ms_median"]),
            style="bold green" if row["ours"] else None,
        )
    return grid


def notes(case: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines under a table: the floor, a torch operation right after ours, what was left out and why."""
    floor = (
        f"floor: {_number(case['floor_ms'])} ms by {case['floor_by']}: {_number(case['least_gflop'])} GFLOP at"
        f" {case['matmul_gflops']:,.0f} GFLOP/s (bare float32 torch.mm), {_number(case['least_mb'])} MB at"
        f" {_number(case['triad_gb_s'])} GB/s (triad)"
    )
    lines = [floor]
    after = {row["side"]: row["matmul_after_ms_median"] for row in results}
    if "bare" in after:
        lines += [
            f"a torch.mm right after {row['label']} takes {row['matmul_after_ms_median'] / after['bare']:.2f} times"
            " what it takes after a torch.mm"
            for row in results
            if row["ours"]
        ]
    return lines + [f"left out: {side}: {why}" for side, why in case["left_out"].items()]


# ---- the figure ----------------------------------------------------------------------------------------------------

_OURS = ("#0b6e4f", "#2ca25f", "#74c476", "#08519c", "#3182bd", "#6baed6")
_PEERS = {"eager": "#c0392b", "compiled": "#e08214", "lightly": "#8e5ea2", "blocked": "#7f7f7f", "bare": "#bdbdbd"}


def figure(document: Mapping[str, Any], path: Path) -> int:
    """Time and extra memory over the batch size, one line per side, as PNG (or what the path's ending says).

    Draws the one D that was measured at the most batch sizes.

    Returns:
        That D.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    dim = Counter(case["dim"] for case in document["cases"]).most_common(1)[0][0]
    cases = sorted((case for case in document["cases"] if case["dim"] == dim), key=lambda case: case["rows"])
    sizes = [case["rows"] for case in cases]
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(document["results"], key=lambda row: row["rows"]):
        if row["dim"] == dim:
            lines.setdefault(row["side"], []).append(row)
    order = sorted(lines, key=lambda side: not lines[side][0]["ours"])
    our_colours = iter(_OURS * len(lines))
    colours = {side: next(our_colours) if lines[side][0]["ours"] else _PEERS[side] for side in order}

    style: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "font.family": "DejaVu Sans"}
    with plt.rc_context(style):
        fig, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
        panels = (("time_ms_median", "time, ms"), ("extra_peak_mb", "extra peak memory, MB"))
        for axis, (key, title) in zip(axes, panels, strict=True):
            values = []
            for side in order:
                drawn = [row for row in lines[side] if row[key] is not None]
                ours = lines[side][0]["ours"]
                x, y = [row["rows"] for row in drawn], [max(row[key], 0.1) for row in drawn]
                values += y
                axis.plot(
                    x, y, label=lines[side][0]["label"], color=colours[side], marker="o", markersize=5 if ours else 3.5,
                    linewidth=2.6 if ours else 1.5, zorder=3 if ours else 2, linestyle=":" if side == "bare" else "-",
                )  # fmt: skip
            axis.set_xscale("log", base=2)
            axis.set_xticks(sizes, [_rows(size) for size in sizes])
            if values:
                axis.set_yscale("log")
                few = max(values) < 50 * min(values)
                axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if few else (1,)))
                axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
            else:
                axis.set_yticks([])
                axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color="#7f7f7f")
            axis.minorticks_off()
            axis.set_xlim(sizes[0] / 1.15, sizes[-1] * 1.15)
            axis.set_xlabel("rows (two views: twice the batch size)")
            axis.set_title(title, loc="left", fontweight="bold", fontsize=11)
            axis.set_title(_gain(lines, key), loc="right", fontsize=9, color=_OURS[0])
            axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
            axis.set_axisbelow(True)
        handles, labels = axes[0].get_legend_handles_labels()
        legend = fig.legend(handles, labels, loc="outside right center", frameon=False, labelspacing=0.9)
        for text, side in zip(legend.get_texts(), order, strict=True):
            text.set_fontweight("bold" if lines[side][0]["ours"] else "normal")
        machine, settings = document["machine"], document["settings"]
        where = ", ".join(machine["gpus"]) if settings["device"] == "cuda" else machine["cpu_model"].partition(" (")[0]
        chosen = f", {machine['isa']}" if machine["isa"] else ""
        threads = "" if settings["device"] == "cuda" else f"{chosen}, {count(machine['threads'], 'thread')}"
        fig.suptitle(
            f"{settings['measures']}, {settings['mode']}, D = {dim}, {settings['dtype']}   ·   {where}{threads},"
            f" torch {machine['torch'].partition('+')[0]}",
            x=0.01, ha="left", fontsize=10, color="#555555",
        )  # fmt: skip
        fig.savefig(path, dpi=160, facecolor="white")
        plt.close(fig)
    return int(dim)


def _rows(size: int) -> str:
    """8192 -> "8K", K = 1,024, where that is exact."""
    return f"{size // 1024}K" if size % 1024 == 0 else str(size)


def _gain(lines: Mapping[str, Sequence[Mapping[str, Any]]], key: str) -> str:
    """How many times less our first side takes than the eager twin, at the most rows that both were measured at."""
    first: Sequence[Mapping[str, Any]] = next((side for side in lines.values() if side[0]["ours"]), ())
    eager = {row["rows"]: row[key] for row in lines.get("eager", ()) if row[key]}
    common = [row for row in first if row["rows"] in eager and row[key]]
    if not common:
        return ""
    last = common[-1]  # time as the table has it, by rounds
    gain = last["speedup_over_eager"] if key == "time_ms_median" else eager[last["rows"]] / last[key]
    return f"{gain:,.{1 if gain < 20 else 0}f}× less than eager at {_rows(last['rows'])}" if gain > 1 else ""
