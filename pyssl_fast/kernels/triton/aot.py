"""What the kernels compile to, for every architecture and without a GPU: `python -m pyssl_fast.kernels.triton.aot`."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pyssl_fast.kernels.reference.similarity import COLUMNS, NEGATIVES, ROWS, SAME
from pyssl_fast.kernels.triton import configs, covariance
from pyssl_fast.kernels.triton.covariance import kernels as of_covariance
from pyssl_fast.kernels.triton.covariance.characteristic import (
    SIZES,
    differentiate_waves,
    gradient_constants,
    sum_constants,
    sum_waves,
)
from pyssl_fast.kernels.triton.covariance.spread import SIZES as SPREAD_SIZES
from pyssl_fast.kernels.triton.covariance.spread import differentiate_spread, sum_spread
from pyssl_fast.kernels.triton.similarity import chunked, chunked_kernels, rows, streamed, tiles

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_ELEMENT = {"tf32x3": "*fp32", "tf32": "*fp32", "bf16": "*bf16", "fp16": "*fp16"}
_IN_DTYPE = ("z", "y", "x", "keys", "grad_z")
_SCALARS = ("power", "steepest")
_DOUBLES = ("lse", "positive", "grad", "bound", "grad_scale_parts")
_LONGS = ("row_ids", "column_ids", "best")
_ALIGNED = ("depth", "padded", "own_padded", "other_padded", "row_stride", "stride")
_ALIGNED_OF_COVARIANCE = ("dim", "side", "row_stride", "position_stride")
_OF_COVARIANCE = {
    "*fp64": (
        "weight", "square", "both", "diagonal", "totals", "off", "along", "grad_square", "grad_off", "grad_distance",
        "grad_diagonal",
    ),
    "*u8": ("exact",),
    "*fp32": ("centre", "grad"),
    "fp32": ("eps",),
}  # fmt: skip
_OF_CHUNKS = {
    "*i64": ("row_ids", "column_ids", "ids", "keys", "best"),
    "*fp64": ("total", "loss", "number"),
    "i32": (*chunked_kernels.SIZES, "stride"),
    "fp32": ("lift", "margin"),
}

# The matrix instruction that each precision must show. sm_100's UTCHMMA does not name its type; the PTX does.
MATRIX = {
    80: {"tf32x3": "HMMA.1688.F32.TF32", "bf16": "HMMA.16816.F32.BF16", "fp16": "HMMA.16816.F32"},
    90: {"tf32x3": "HGMMA.F32.TF32", "bf16": "HGMMA.F32.BF16", "fp16": "HGMMA.F32"},
    100: {"tf32x3": "UTCHMMA.tf32", "bf16": "UTCHMMA.f16", "fp16": "UTCHMMA.f16"},
}
MATRIX[120] = MATRIX[80]
for _names in MATRIX.values():
    _names["tf32"] = _names["tf32x3"]
FLOAT64 = {80: "DMMA.884", 90: "DMMA", 100: "DMMA"}  # sm_120 has none: multiply and sum


@dataclasses.dataclass(frozen=True)
class Build:
    """One kernel, compiled: what its cubin says of itself."""

    label: str
    architecture: int
    precision: str
    tile: configs.Tile | None  # None for kernels without products
    registers: int  # per thread
    spilled: int  # bytes of stack per thread
    shared: int  # bytes per block
    spill_instructions: int  # loads from and stores to local memory; 0 without a tile, whose code is not read
    matrix: Mapping[str, int]  # matrix instruction -> how often it stands in the code; likewise


def _type(name: str, precision: str, terms: int) -> Any:
    if name in _IN_DTYPE:
        return _ELEMENT[precision]
    if name in rows.INTEGERS:
        return "i32"
    if name in _SCALARS:
        return "fp32"
    if name.endswith("powers"):
        return ("fp32",) * max(1, terms)
    return "*fp64" if name in _DOUBLES else "*i64" if name in _LONGS else "*fp32"


@dataclasses.dataclass(frozen=True)
class Job:
    """One kernel to compile, as it is launched."""

    label: str
    kernel: Any
    precision: str
    constants: dict[str, Any]  # argument -> value, compiled in
    warps: int
    stages: int = 3
    tile: configs.Tile | None = None
    types: Mapping[str, Any] | None = None  # argument -> Triton's name of its type; None: the streamed form's
    aligned: tuple[str, ...] = _ALIGNED  # integers that are multiples of 16


def source(job: Job) -> ASTSource:
    """A kernel with the types of a launch on ordinary tensors: aligned pointers, unit column stride, 32-bit sizes."""
    names = job.kernel.arg_names
    constants = {**{name: 1 for name in names if name == "column_stride"}, **job.constants}
    terms = {"powers": "TERMS", "own_powers": "OWN", "other_powers": "OTHER"}

    def kind(name: str) -> Any:
        if name in constants:
            return "constexpr"
        if job.types is not None:
            return job.types[name]
        return _type(name, job.precision, len(constants.get(terms.get(name, ""), ())))

    signature = {name: kind(name) for name in names}
    attributes = {
        (position,): [["tt.divisibility", 16]]
        for position, name in enumerate(names)
        if signature[name][:1] == "*" or (name in job.aligned and name not in constants)
    }
    return ASTSource(job.kernel, signature, constants, attributes)


def build(job: Job, architecture: int) -> Build:
    """A kernel compiled for an architecture, whatever this machine has: its cubin's registers, spills, instructions."""
    compiled: Any = triton.compile(
        source(job),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": job.warps, "num_stages": job.stages},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        sass = _tool("nvdisasm", "-c", file.name) if job.tile else ""  # a third of the time of a small kernel
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump said nothing of registers: {usage}")
    instructions = re.findall(r"\b(HMMA|DMMA|HGMMA|UTC\w*MMA)([\w.]*)", sass)
    kinds = ".".join(sorted(set(re.findall(r"tcgen05\.mma\S*kind::(\w+)", compiled.asm["ptx"]))))
    matrix = collections.Counter(
        f"{name}.{kinds}" if kinds else name + re.sub(r"^\.\d+x\d+x\d+", "", rest) for name, rest in instructions
    )
    return Build(
        label=job.label,
        architecture=architecture,
        precision=job.precision,
        tile=job.tile,
        registers=int(found[1]),
        spilled=int(found[2]),
        spill_instructions=len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        shared=compiled.metadata.shared,
        matrix=dict(matrix),
    )


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([str(_TOOLS / name), *arguments], capture_output=True, text=True, check=True).stdout


def tile_jobs(architecture: int) -> Iterator[Job]:
    """Every tile of an architecture's tables, in the kernel that takes most: with every optional argument."""
    no_ids: dict[str, Any] = {"row_ids": None, "column_ids": None}
    no_limits: dict[str, Any] = {"own_limit": None, "other_limit": None}
    kernels: tuple[tuple[str, Any, Any, Callable[[configs.Tile, str], dict[str, Any]]], ...] = (
        ("sums", tiles.stream_sums, configs.SUMS, lambda t, p: {
            **streamed.sums_constants(t, p, (0,), True, True, True), **no_ids, "limit": None, "statistics": None,
        }),
        ("sums of kinds", tiles.stream_sums, configs.SUMS_OF_KINDS, lambda t, p: (
            streamed.sums_constants(t, p, (0, 1), True, True, False)
        )),
        ("gradient", tiles.stream_gradient, configs.GRADIENT, lambda t, p: {
            **streamed.gradient_constants(t, p, (0,), (0,), True, True, True, True), **no_ids, **no_limits,
        }),
        ("gradient of kinds", tiles.stream_gradient, configs.GRADIENT_OF_KINDS, lambda t, p: (
            streamed.gradient_constants(t, p, (0, 1), (0, 1), False, True, True, False)
        )),
        ("bank", tiles.stream_bank, configs.BANK, lambda t, p: streamed.bank_constants(t, p, 0, True)),
        ("sigmoid", tiles.stream_sigmoid, configs.SIGMOID, lambda t, p: streamed.sigmoid_constants(t, p, False)),
        ("sigmoid, swapped", tiles.stream_sigmoid, configs.SIGMOID, lambda t, p: {
            **streamed.sigmoid_constants(t, p, True), "sums": None,
        }),
        ("neighbours", tiles.stream_neighbours, configs.NEIGHBOURS, lambda t, p: (
            streamed.neighbours_constants(t, p, False, True, configs.NEIGHBOURS_AT_MOST)
        )),
    )  # fmt: skip
    for name, kernel, table, constants in kernels:
        for precision in configs.KINDS:
            unit = {"radius": None, "x_radius": None} if precision.startswith("tf32") else {}
            own = {n: v for n, v in unit.items() if n in kernel.arg_names}
            for depth, tile in table[architecture][precision if precision.startswith("tf32") else "half"].items():
                label = f"{name} D≤{depth}" if depth < configs.ANY else f"{name} any D"
                yield Job(
                    label, kernel, precision, {**constants(tile, precision), **own}, tile.warps, tile.stages, tile
                )


def row_jobs() -> Iterator[Job]:
    """Every row kernel."""
    row = configs.ROW
    for precision in ("tf32x3", "bf16", "fp16"):
        for kernel, own in rows.row_kernels(precision):
            if precision != "tf32x3" and not set(_IN_DTYPE) & set(kernel.arg_names):
                continue  # only float32 goes in and out
            shape = {
                name: getattr(row, name.lower()) for name in ("BLOCK_R", "BLOCK_D", "BLOCK") if name in kernel.arg_names
            }
            yield Job(kernel.__name__, kernel, precision, {**shape, **own}, row.warps)


def _chunk_job(label: str, kernel: Any, constants: dict[str, Any], **types: Any) -> Job:
    """Of tensors as launchers make them; `types` says where an argument differs from what its name tells."""
    shape = configs.CHUNKS
    sizes = {
        "BLOCK_M": shape.tile_m, "BLOCK_N": shape.tile_n, "BLOCK_PARTS": shape.merge_parts,
        "BLOCK": shape.merge if kernel is chunked_kernels.merge else shape.sweep,
    }  # fmt: skip
    constants = {**{name: size for name, size in sizes.items() if name in kernel.arg_names}, **constants}
    known = {name: kind for kind, names in _OF_CHUNKS.items() for name in names}
    own = {name: types.get(name, known.get(name, "*fp32")) for name in kernel.arg_names if name not in constants}
    return Job(label, kernel, "", constants, shape.warps, types=own)


def chunk_jobs() -> Iterator[Job]:
    """Every kernel of the chunked form, with the terms of the losses that use it."""
    kernels = chunked_kernels
    everything = ("row_radius", "column_radius", "row_ids", "column_ids", "row_limit", "column_limit")
    negative, same = ROWS | NEGATIVES, ROWS | SAME
    column, same_column = COLUMNS | NEGATIVES, COLUMNS | SAME
    for label, known, exclude, by_row, by_column, watched, elements in (
        ("NT-Xent", (), True, (negative,), (negative,), False, ("*fp32",)),
        ("NT-Xent, half", everything[:2], True, (negative,), (negative,), False, ("*bf16", "*fp16")),
        ("CLIP", (), True, (negative,), (column,), False, ("*fp32", "*bf16")),
        ("MoCo", (), False, (negative,), (), False, ("*fp32", "*bf16")),
        ("supervised", everything[2:4], True, (negative, same), (negative, same), False, ("*bf16",)),
        ("all terms", everything, True, (negative, same, negative), (column, same_column), True, ("*bf16",)),
    ):
        constants: dict[str, Any] = {name: None for name in everything if name not in known}
        powers: dict[str, tuple[str, ...]] = {
            "row_powers": ("fp32",) * len(by_row),
            "column_powers": ("fp32",) * len(by_column),
        }
        terms = {"ROW_TERMS": by_row, "COLUMN_TERMS": by_column, "EXCLUDE": exclude}
        own = {"scale_parts": None} if label == "MoCo" else {}
        for element in elements:
            yield _chunk_job(f"weights, {label}", kernels.weigh, {**constants, **terms, **own}, w=element, **powers)
        if watched:
            powers = {name: (*kinds, "fp32", "fp32") for name, kinds in powers.items()}
            terms["ROW_TERMS"] = (*by_row, negative | kernels.PLAIN, negative | kernels.NUMBER)
            terms["COLUMN_TERMS"] = (*by_column, column | kernels.PLAIN, column | kernels.NUMBER)
        yield _chunk_job(f"sums, {label}", kernels.sum_terms, {**constants, **terms}, **powers)
    yield _chunk_job("merge", kernels.merge, {})
    without: dict[str, Any]
    stored: tuple[str, ...]
    for label, without, stored in (
        (", ids", {}, ("*bf16",)),
        ("", {"row_ids": None, "column_ids": None}, ("*fp32", "*bf16", "*fp16")),
    ):
        yield _chunk_job(f"sigmoid{label}", kernels.sigmoid, {**without, "w": None})
        for element in stored:
            yield _chunk_job(f"sigmoid weights{label}", kernels.sigmoid, without, w=element)
        for count in (1, chunked.FUSED_COUNT):
            yield _chunk_job(
                f"{count} neighbours{label}", kernels.insert, {**without, "SYMMETRIC": True, "COUNT": count}
            )
        yield _chunk_job(f"keys{label}", kernels.pack, {**without, "SYMMETRIC": True})
    yield _chunk_job("hardest", kernels.extremes, {}, row_parts="*i64", column_parts="*i64")
    for euclidean in (False, True):
        yield _chunk_job("distances", kernels.distances, {"EUCLIDEAN": euclidean})
        flags = {"EUCLIDEAN": euclidean, "SEMI_HARD": euclidean}
        yield _chunk_job("triplets", kernels.row_triplets, {**flags, "w": None, "grad_loss": None})
        yield _chunk_job("triplets' weights", kernels.row_triplets, {**flags, "loss": None, "number": None})


def wave_jobs() -> Iterator[Job]:
    """Every kernel of LeJEPA: characteristic functions, and views around the mean of some."""
    known = {"windows": "*i64", "partial": "*fp64", "weights": "*fp32", "step": "fp32", "grad_distance": "*fp64"}
    for element in ("*fp32", "*bf16", "*fp16"):
        for kernel, constants in (
            (sum_waves, sum_constants(configs.WAVES)),
            (differentiate_waves, gradient_constants(configs.WAVES)),
            (sum_spread, {"BLOCK": configs.ROW.block}),
            (differentiate_spread, {"BLOCK": configs.ROW.block}),
        ):
            own = {**dict.fromkeys((*SIZES, *SPREAD_SIZES), "i32"), "x": element, "grad": element, **known}
            own["partial"] = "*fp32" if kernel is sum_spread else own["partial"]
            types = {name: own[name] for name in kernel.arg_names if name not in constants}
            yield Job(kernel.fn.__name__, kernel, element[1:], constants, configs.WAVES.warps, types=types)


def _covariance_job(
    label: str, kernel: Any, of: str, precision: str, constants: dict[str, Any], warps: int,
    tile: configs.Tile | None = None,
) -> Job:  # fmt: skip
    """As launched on x and y [N, E, D] of one of _ELEMENT, every size a multiple of 16."""
    known = {name: kind for kind, names in _OF_COVARIANCE.items() for name in names}
    known |= {name: _ELEMENT[of] for name in ("x", "y", "grad_x", "grad_y")}
    double = constants.get("DOUBLE") or kernel in (of_covariance.sum_columns, of_covariance.finish_columns)
    known |= {name: "*fp64" if double else "*fp32" for name in ("parts", "gram")}
    own = {n: known.get(n, "i32") for n in kernel.arg_names if n not in constants and not n.isupper()}
    stages = tile.stages if tile else 3
    return Job(label, kernel, precision, constants, warps, stages, tile, own, _ALIGNED_OF_COVARIANCE)


def covariance_jobs(architecture: int) -> Iterator[Job]:
    """The covariance family's products in every precision and in float64, with two views where both are possible."""
    kernels = of_covariance
    for precision in (*configs.KINDS, "float64", "float64 of bf16", "float64 of fp16"):
        double = precision.startswith("float64")
        element = "tf32x3" if precision == "float64" else precision.rpartition(" ")[2]
        dots = "ieee" if double else "tf32x3" if precision == "tf32x3" else "tf32"
        known = {} if double else {"exact": None}
        for label, flags in (
            ("AAᵀ", {"ROWS": True, "TRIANGLE": True, "WEIGHTED": False}),
            ("AᵀA", {"ROWS": False, "TRIANGLE": True, "WEIGHTED": False}),
            ("AAᵀ, weighted", {"ROWS": True, "TRIANGLE": True, "WEIGHTED": True}),
            ("AᵀB, weighted", {"ROWS": False, "TRIANGLE": False, "WEIGHTED": True}),
        ):
            table = configs.WEIGHTED_MATRICES if flags["WEIGHTED"] else configs.MATRICES
            tile = configs.EXACT if double else table[architecture][dots]
            own = {"BLOCK": tile.block_m, **covariance.constants(tile, dots)}
            constants = {**known, **own, **flags, "COMMON": flags["WEIGHTED"], "DOUBLE": double}
            yield _covariance_job(label, kernels.multiply_self, element, precision, constants, tile.warps, tile)
        if not double:
            yield _covariance_job("correlations", kernels.sum_correlations, element, precision, own, tile.warps, tile)
        products = configs.PRODUCTS[architecture]
        tile = configs.EXACT if double else products[dots]
        # What is summed over its row blocks is of one height, whoever does it.
        heights = sorted({shape.block_m for shape in products.values()}) if double else [tile.block_m]
        for label, kernel, tiles_ in (
            ("gradient", kernels.auto_gradient, [tile]),
            ("gradient of two", kernels.cross_gradient, [dataclasses.replace(tile, block_m=m) for m in heights]),
        ):
            for shape, rows_ in itertools.product(tiles_, (True, False)):
                own = {"BLOCK_M": shape.block_m, "BLOCK_N": shape.block_n, **covariance.constants(shape, dots)}
                yield _covariance_job(
                    f"{label}, {'rows' if rows_ else 'columns'}", kernel, element, precision,
                    {**own, "ROWS": rows_, "DOUBLE": double}, shape.warps, shape,
                )  # fmt: skip


def covariance_row_jobs() -> Iterator[Job]:
    """What has no products."""
    kernels, row = of_covariance, configs.ROW
    tall = {"BLOCK_R": row.block_r, "BLOCK_D": row.block_d}
    for precision in ("tf32x3", "bf16", "fp16"):
        for cross in (True, False):
            yield _covariance_job(
                "sums of columns", kernels.sum_columns, precision, "", {**tall, "CROSS": cross}, row.warps
            )
            wide = {"BLOCK_D": row.block_d, "CROSS": cross}
            yield _covariance_job("columns", kernels.finish_columns, precision, "", wide, row.warps)
        yield _covariance_job("normalised gradient", kernels.normalise_gradient, precision, "", tall, row.warps)
    for double in (False, True):
        known = {} if double else {"exact": None}
        for triangle, rows_, pair, keep in (
            (True, True, False, True),
            (True, True, False, False),
            (True, True, True, True),
            (True, True, True, False),
            (True, False, False, True),
            (True, False, False, False),
            (False, False, False, True),
            (False, False, False, False),
        ):
            weighted = pair or not triangle
            constants = {
                **known, "ROWS": rows_, "TRIANGLE": triangle, "PAIR": pair, "COMMON": weighted, "KEEP": keep,
                "DOUBLE": double, "BLOCK": 32 if double else 64,
            }  # fmt: skip
            yield _covariance_job("matrices", kernels.merge_matrices, "tf32x3", "", constants, covariance.MERGE_WARPS)
        for rows_, cross in itertools.product((True, False), repeat=2):
            flags = {"ROWS": rows_, "CROSS": cross, "DOUBLE": double, "BLOCK": covariance.REDUCE}
            yield _covariance_job("totals", kernels.finish_totals, "tf32x3", "", flags, 4)


GROUPS = {
    "waves": lambda _: wave_jobs(),
    "tiles": tile_jobs,
    "rows": lambda _: row_jobs(),
    "chunks": lambda _: chunk_jobs(),
    "covariance": covariance_jobs,
    "covariance rows": lambda _: covariance_row_jobs(),
}


def builds(architecture: int, group: str, wanted: Callable[[Job], bool] = lambda job: True) -> Iterator[Build]:
    """Every kernel that is wanted of one of GROUPS, on as many processes as there are cores."""
    numbers = [n for n, job in enumerate(GROUPS[group](architecture)) if wanted(job)]
    with concurrent.futures.ProcessPoolExecutor(mp_context=multiprocessing.get_context("fork")) as pool:
        yield from pool.map(_build_nth, [architecture] * len(numbers), [group] * len(numbers), numbers)


def _build_nth(architecture: int, group: str, number: int) -> Build:
    """A kernel does not travel between processes; its place in the list does."""
    return build(list(GROUPS[group](architecture))[number], architecture)


def _main() -> None:
    print(f"{'target':7}{'kernel':36}{'precision':10}{'tile':30}{'registers':>10}{'spilled':>8}{'shared':>8}  matrix")
    for architecture in configs.ARCHITECTURES:
        for build in (build for group in GROUPS for build in builds(architecture, group)):
            t = build.tile
            shape = f"{t.block_m}×{t.block_n}×{t.block_k}" if t else ""
            if t:
                shape += (f"→{t.block_out}" if t.block_out else "") + f" {t.warps}w {t.stages}s"
            matrix = ", ".join(f"{count} {name}" for name, count in build.matrix.items())
            print(
                f"sm_{architecture:<4}{build.label:36}{build.precision:10}{shape:30}"
                f"{build.registers:>10}{build.spilled:>8}{build.shared:>8}  {matrix}"
            )


if __name__ == "__main__":
    _main()
