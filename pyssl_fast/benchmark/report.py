"""What is said of measurements: the table, the JSON document and its schema, the figure."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from pyssl_fast.benchmark.cases import Case
from pyssl_fast.benchmark.measure import Measured, Outcome, Side, floor_ms, iqr, ratio_by_round

SCHEMA = 3
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
    "open_clip": (_MAYBE_TEXT, "version"),
    "pytorch_metric_learning": (_MAYBE_TEXT, "version"),
    "timm": (_MAYBE_TEXT, "version"),
    "albumentations": (_MAYBE_TEXT, "version"),
    "opencv": (_MAYBE_TEXT, "version of opencv-python-headless"),
    "dali": (_MAYBE_TEXT, "version"),
    "torchvision": (_MAYBE_TEXT, "version"),
    "kornia": (_MAYBE_TEXT, "version"),
    "pyssl_fast": (_TEXT, "version"),
    "commit": (_MAYBE_TEXT, "of the checkout, with -dirty where files differ from it; null: installed"),
    "date": (_TEXT, "when the run began, UTC, ISO 8601"),
}
SETTINGS: dict[str, _Field] = {
    "family": (_TEXT, "kernel family"),
    "device": (_TEXT, "cpu or cuda"),
    "dtype": (_TEXT, "of the embeddings; of parameters and views float32, and what the system says"),
    "seed": ((int,), "of the inputs and of the order of sides"),
}
CASE: dict[str, _Field] = {
    "case": (_TEXT, "its title, unlike that of any other case"),
    "system": (_TEXT, "its name on the command line"),
    "measures": (_TEXT, "what is measured, as a title says it"),
    "mode": (_TEXT, "forward+backward or forward; step: all parameters, in place; views: of all images"),
    "rows": ((int,), "M, embeddings over all views; of a step, tensors; images"),
    "columns": ((int,), "N, what they are compared with: the rows themselves, as many others, or the keys of a bank"),
    "dim": ((int,), "D, numbers per embedding; of a step, in all tensors; pixels along an image's side"),
    "temperature": (_MAYBE_NUMBER, "τ; null: there is none"),
    "rounds": ((int,), "samples per side"),
    "floor_ms": (_NUMBER, "the time that the fewest operations or bytes take at the two rates below"),
    "floor_by": (_TEXT, "which of the two is larger: operations or bytes"),
    "least_gflop": (_NUMBER, "the fewest floating-point operations that the mathematics allows, in 1e9"),
    "least_mb": (_NUMBER, "the fewest bytes to and from memory, in 1e6"),
    "matmul_gflops": (
        _NUMBER,
        "rate of a bare float32 [M, D] @ [D, N] in this run (a small one of a step, or of views), 1e9 per second",
    ),
    "triad_gb_s": (_NUMBER, "rate of an in-place triad in this run, 1e9 bytes per second"),
    "targets": ((dict,), "side -> how many times as fast as it our kernels are meant to be; empty: not said"),
    "targets_narrow": ((dict,), "the same, in their place, for our sides without AVX-512"),
    "target_mb": (_MAYBE_NUMBER, "the most extra peak memory that they are meant to take; null: not said"),
    "target_rate": (_MAYBE_NUMBER, "the fewest images a second that they are meant to augment; null: not said"),
    "left_out": ((dict,), "side -> why it was not measured"),
}
RESULT: dict[str, _Field] = {
    "case": (_TEXT, "the case's title"),
    "side": (
        _TEXT,
        "a peer, or of ours: backend:precision:isa, without precision if highest, without isa if not forced",
    ),
    "label": (_TEXT, "as the table spells it"),
    "ours": ((bool,), "whether it is one of our kernels"),
    "isa": (_MAYBE_TEXT, "the instruction set of our CPU kernels; null: another side"),
    "time_ms_median": (_NUMBER, "median over the rounds"),
    "time_ms_iqr": (_NUMBER, "distance between the quartiles"),
    "speedup_over": ((dict,), "peer -> median over the rounds of the peer's time / this time"),
    "extra_peak_mb": (_MAYBE_NUMBER, "peak memory above what stood before the call, 1e6 bytes; null: not measured"),
    "gflops": (_NUMBER, "least_gflop / time: the same operations for every side, whatever it really does"),
    "over_floor": (_NUMBER, "time / floor_ms"),
    "matmul_after_ms_median": (_NUMBER, "a small torch.mm right after the call"),
    "loss": (_MAYBE_NUMBER, "its value; null: the side has none"),
}


# ---- the document --------------------------------------------------------------------------------------------------


def case_entry(case: Case, outcome: Outcome) -> dict[str, Any]:
    """One entry of `cases`."""
    work = case.work
    floor, by = floor_ms(work, outcome.matmul_gflops, outcome.triad_gb_s)
    return {
        "case": case.title,
        "system": case.system.name,
        "measures": case.system.measures,
        "mode": case.mode,
        "rows": case.rows,
        "columns": case.columns,
        "dim": case.dim,
        "temperature": case.temperature,
        "rounds": outcome.rounds,
        "floor_ms": floor,
        "floor_by": by,
        "least_gflop": work.flops / 1e9,
        "least_mb": work.bytes / 1e6,
        "matmul_gflops": outcome.matmul_gflops,
        "triad_gb_s": outcome.triad_gb_s,
        "targets": dict(case.targets),
        "targets_narrow": dict(case.narrow),
        "target_mb": case.target_mb,
        "target_rate": case.target_rate,
        "left_out": dict(outcome.left_out),
    }


def result_entries(case: Mapping[str, Any], measured: Mapping[Side, Measured]) -> list[dict[str, Any]]:
    """The entries of `results` for one case."""
    peers = {side.name: samples.time_ms for side, samples in measured.items() if not side.ours}
    entries = []
    for side, samples in measured.items():
        median = statistics.median(samples.time_ms)
        entries.append(
            {
                "case": case["case"],
                "side": side.name,
                "label": side.label,
                "ours": side.ours,
                "isa": side.isa,
                "time_ms_median": median,
                "time_ms_iqr": iqr(samples.time_ms),
                "speedup_over": {name: ratio_by_round(times, samples.time_ms) for name, times in peers.items()},
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
    known = {case["case"] for case in document["cases"]}
    for number, result in enumerate(document["results"]):
        _check(f"results[{number}]", result, RESULT)
        if result["case"] not in known:
            raise ValueError(f"results[{number}] is of no case: {result['case']}")


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
    """Raises: ValueError, as `check_document`."""
    check_document(document)
    write_text(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Whole or not at all: a file that is there already stays until its successor is written."""
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


# The rate that a table gives, and its unit, where it is not that of the operations.
_RATES: dict[str, tuple[str, Callable[[Mapping[str, Any], Mapping[str, Any]], str]]] = {
    "step": ("\nGB/s", lambda row, case: _number(case["least_mb"] / row["time_ms_median"])),
    "views": ("images\n/s", lambda row, case: f"{_images_per_s(row, case):,.0f}"),
}
_NARROW = ("avx2", "generic")


def _references(case: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The peers that ours is told against, three at most: those of the targets, then the first ones."""
    peers = [row["side"] for row in results if not row["ours"]]
    return [name for name in dict.fromkeys([*case["targets"], *peers]) if name in peers][:3]


def _targets(row: Mapping[str, Any], case: Mapping[str, Any]) -> dict[str, float]:
    """How many times as fast as its peers a side of ours is to be, on its instruction set."""
    return {**case["targets"], **(case["targets_narrow"] if row["isa"] in _NARROW else {})}


def _images_per_s(row: Mapping[str, Any], case: Mapping[str, Any]) -> float:
    return case["rows"] / row["time_ms_median"] * 1e3


def _verdict(row: Mapping[str, Any], case: Mapping[str, Any]) -> str:
    """Whether a side of ours keeps the targets that could be measured; a dash where there is none."""
    speedups = row["speedup_over"]
    kept = [speedups[name] >= least for name, least in _targets(row, case).items() if name in speedups]
    if case["target_mb"] is not None and row["extra_peak_mb"] is not None:
        kept.append(row["extra_peak_mb"] <= case["target_mb"])
    if case["target_rate"] is not None:
        kept.append(_images_per_s(row, case) >= case["target_rate"])
    return "–" if not kept or not row["ours"] else "kept" if all(kept) else "missed"


def table(case: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Table:
    """One case: a line per side, ours first, then the fastest first. `over` a peer: how many times as fast.

    A step's rate is that of the fewest bytes.
    """
    references = _references(case, results)
    unit, rate = _RATES.get(case["mode"], ("\nGFLOP/s", lambda row, _: f"{row['gflops']:,.0f}"))
    grid = Table(
        title=f"{case['case']}   {case['measures']}, {case['mode']}, {count(case['rounds'], 'round')}",
        title_justify="left",
        title_style="bold",
    )
    grid.add_column("", no_wrap=True)
    for column in (
        "time\nms", "spread\n(IQR)", *(f"over\n{name}" for name in references), "extra\nMB",
        unit, "over\nfloor", "mm\nafter", "\ntarget",
    ):  # fmt: skip
        grid.add_column(column, justify="right", no_wrap=True)
    for row in sorted(results, key=lambda row: (not row["ours"], row["time_ms_median"])):
        grid.add_row(
            row["label"],
            _number(row["time_ms_median"]),
            _number(row["time_ms_iqr"], 2),
            *(f"{_number(row['speedup_over'][name])}×" for name in references),
            "–" if row["extra_peak_mb"] is None else f"{row['extra_peak_mb']:,.1f}",
            rate(row, case),
            _number(row["over_floor"]),
            _number(row["matmul_after_ms_median"]),
            _verdict(row, case),
            style="bold green" if row["ours"] else None,
        )
    aims = {tuple(_targets(row, case).items()): row["label"] for row in reversed(results) if row["ours"]}
    if case["targets"] or case["target_mb"] is not None or case["target_rate"] is not None:
        grid.add_section()
        for targets, label in reversed(aims.items()):
            wanted = [f"≥ {_number(dict(targets)[name])}×" if name in dict(targets) else "" for name in references]
            most = "" if case["target_mb"] is None else f"≤ {case['target_mb']:g}"
            least = "" if case["target_rate"] is None else f"≥ {case['target_rate']:,g}"
            whose = "ours" if len(aims) == 1 else label.removeprefix("ours, ")
            grid.add_row(f"target of {whose}", "", "", *wanted, most, least, "", "", "", style="dim")
    return grid


def markdown(document: Mapping[str, Any]) -> str:
    """All cases in one table, a line per side of ours."""
    lines = [
        "| case | ours | time | peers | speed-up (target) | over the floor | extra MB: ours (target) / peer | target |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in document["cases"]:
        results = [row for row in document["results"] if row["case"] == case["case"]]
        by_side = {row["side"]: row for row in results}
        references = _references(case, results)
        peers = ", ".join(f"{name} {_ms(by_side[name]['time_ms_median'])}" for name in references)
        most = "" if case["target_mb"] is None else f" (≤ {case['target_mb']:g})"
        for row in (row for row in results if row["ours"]):
            targets = _targets(row, case)
            gains = [
                f"{_number(row['speedup_over'][name])}×" + (f" (≥ {_number(targets[name])})" if name in targets else "")
                for name in references
            ]
            time = _ms(row["time_ms_median"])
            if case["mode"] == "views":
                least = "" if case["target_rate"] is None else f" (≥ {case['target_rate']:,g})"
                time += f", {_images_per_s(row, case):,.0f} images/s{least}"
            memory = [_number(row["extra_peak_mb"]) + most]
            memory += [_number(by_side[name]["extra_peak_mb"]) for name in references[:1]]
            cells = (
                case["case"], row["side"], time, peers or "–", ", ".join(gains) or "–",
                _number(row["over_floor"]), " / ".join(memory), _verdict(row, case),
            )  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _ms(time: float) -> str:
    return f"{_number(time)} ms"


def notes(case: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines under a table: the floor, a torch operation right after ours, what was left out and why."""
    operations = (
        f" {_number(case['least_gflop'])} GFLOP at {case['matmul_gflops']:,.0f} GFLOP/s (bare float32 torch.mm of this"
        " shape),"
    )
    floor = (
        f"floor: {_number(case['floor_ms'])} ms by {case['floor_by']}:{operations if case['least_gflop'] else ''}"
        f" {_number(case['least_mb'])} MB at {_number(case['triad_gb_s'])} GB/s (triad)"
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
_OTHERS = ("#8e5ea2", "#c0392b", "#e08214", "#a6761d", "#d6478d")
_ROWS = {"step": "tensors", "views": "images"}
_PEERS = {
    "eager": "#c0392b",
    "compiled": "#e08214",
    "lightly": "#8e5ea2",
    "blocked": "#7f7f7f",
    "bare": "#bdbdbd",
    "triad": "#bdbdbd",
}


def figure(document: Mapping[str, Any], path: Path) -> str:
    """Time and extra memory over the batch size, one line per side, as PNG (or what the path's ending says).

    Draws the one system, at the one D, that was measured at the most batch sizes; of steps the most numbers
    of tensors, of views of images.

    Returns:
        What was drawn.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    def kind(case: Mapping[str, Any]) -> tuple[Any, ...]:
        bank = None if case["columns"] == case["rows"] else case["columns"]
        return case["system"], case["dim"], bank, case["temperature"], case["mode"]

    common = Counter(map(kind, document["cases"])).most_common(1)[0][0]
    cases = sorted((case for case in document["cases"] if kind(case) == common), key=lambda case: case["rows"])
    sizes = [case["rows"] for case in cases]
    rows_of = {case["case"]: case["rows"] for case in cases}
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted((row for row in document["results"] if row["case"] in rows_of), key=lambda r: rows_of[r["case"]]):
        lines.setdefault(row["side"], []).append({**row, "rows": rows_of[row["case"]]})
    peers = [side for side in lines if not lines[side][0]["ours"]]
    order = [side for side in lines if side not in peers] + peers
    taken = {_PEERS.get(side) for side in peers}
    free = [colour for colour in _OTHERS if colour not in taken]
    our_colours, more_colours = iter(_OURS * len(lines)), iter(free * len(lines))
    colours = {side: _PEERS.get(side) or next(more_colours if side in peers else our_colours) for side in order}

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
                    linewidth=2.6 if ours else 1.5, zorder=3 if ours else 2,
                    linestyle=":" if side in ("bare", "triad") else "-",
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
            axis.set_xlabel(_ROWS.get(cases[0]["mode"], "rows, over all views"))
            axis.set_title(title, loc="left", fontweight="bold", fontsize=11)
            axis.set_title(_gain(lines, key, peers), loc="right", fontsize=9, color=_OURS[0])
            axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
            axis.set_axisbelow(True)
        handles, labels = axes[0].get_legend_handles_labels()
        legend = fig.legend(handles, labels, loc="outside right center", frameon=False, labelspacing=0.9)
        for text, side in zip(legend.get_texts(), order, strict=True):
            text.set_fontweight("bold" if lines[side][0]["ours"] else "normal")
        machine, settings = document["machine"], document["settings"]
        dim = cases[0]["dim"]
        numbers = {"step": f"{dim:,} numbers", "views": f"{dim}² pixels"}.get(cases[0]["mode"], f"D = {dim}")
        shown = f"{cases[0]['measures']}, {numbers}"
        where = ", ".join(machine["gpus"]) if settings["device"] == "cuda" else machine["cpu_model"].partition(" (")[0]
        chosen = f", {machine['isa']}" if machine["isa"] else ""
        threads = "" if settings["device"] == "cuda" else f"{chosen}, {count(machine['threads'], 'thread')}"
        fig.suptitle(
            f"{shown}, {cases[0]['mode']}, {settings['dtype']}   ·   {where}{threads},"
            f" torch {machine['torch'].partition('+')[0]}",
            x=0.01, ha="left", fontsize=10, color="#555555",
        )  # fmt: skip
        fig.savefig(path, dpi=160, facecolor="white")
        plt.close(fig)
    return shown


def _rows(size: int) -> str:
    """8192 -> "8K", K = 1,024, where that is exact."""
    return f"{size // 1024}K" if size % 1024 == 0 else str(size)


def _gain(lines: Mapping[str, Sequence[Mapping[str, Any]]], key: str, peers: Sequence[str]) -> str:
    """How many times less our first side takes than the first peer, at the most rows that both were measured at."""
    first: Sequence[Mapping[str, Any]] = next((side for side in lines.values() if side[0]["ours"]), ())
    if not peers:
        return ""
    peer = {row["rows"]: row[key] for row in lines[peers[0]] if row[key]}
    common = [row for row in first if row["rows"] in peer and row[key]]
    if not common:
        return ""
    last = common[-1]  # time as the table has it, by rounds
    gain = last["speedup_over"][peers[0]] if key == "time_ms_median" else peer[last["rows"]] / last[key]
    return f"{gain:,.{1 if gain < 20 else 0}f}× less than {peers[0]} at {_rows(last['rows'])}" if gain > 1 else ""
