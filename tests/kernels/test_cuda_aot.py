"""What the machine code of the built `_cuda` says, for every target; no GPU is needed for that."""

from __future__ import annotations

import collections
import functools
import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

if importlib.util.find_spec("pyssl_fast._cuda") is None:
    pytest.skip("pyssl_fast._cuda is not built here: no nvcc 12.8 or newer was found", allow_module_level=True)
if importlib.util.find_spec("triton") is None:
    pytest.skip("cuobjdump comes with Triton, which is not installed", allow_module_level=True)

import triton

from pyssl_fast import _cuda

THREADS = 256
REGISTERS = 65536  # of a multiprocessor
SUMS = ("square_sum_chunks", "lars_norms")
UPDATES = {"ema_update": 3, "adamw_update": 4, "lars_update": 4}
RESAMPLES = {f"resample<{pixel}, {bicubic}>": 3 for pixel in range(4) for bicubic in range(2)}
BLOCKS = {**UPDATES, **RESAMPLES, "move": 4, "finish": 3}  # whose registers a multiprocessor has
# Loads of 16 bytes that are under way together: 4 vectors of each list; of adamw 1; lars loads no fresh buffer.
IN_FLIGHT = {"ema_update": 8, "adamw_update": 4, "lars_update": 4, "square_sum_chunks": 4, "lars_norms": 8}
AUGMENT = (*RESAMPLES, "move", "finish")
KERNELS = (*BLOCKS, *SUMS, "square_sum_total", "adamw_prepare", "lars_trust")
TARGETS = [target for target in _cuda.TARGETS if target.startswith("sm_")]
DOUBLE = re.compile(r"D(ADD|MUL|FMA|SETP|MNMX)|F2F(\.\w+)*\.F64|I2F(\.\w+)*\.F64|MUFU\.\w*64H")

each_target = pytest.mark.parametrize("target", TARGETS)


@functools.cache
def dump(what: str) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run([str(tool), what, str(_cuda.__file__)], capture_output=True, text=True, check=True).stdout


def kernel_name(mangled: str) -> str:
    """One of KERNELS, with its template arguments."""
    if made := re.search(r"8resampleI\w+?E(\d)ELb(\d)E", mangled):
        return f"resample<{made[1]}, {made[2]}>"
    return next(name for name in KERNELS if re.search(rf"\d{name}E", mangled))


def kernels(what: str, target: str) -> dict[str, str]:
    """Kernel -> what a dump says of it, for one target."""
    found = {}
    for part in re.split(r"^(?=Fatbin elf code)", dump(what), flags=re.MULTILINE):
        if re.search(rf"^arch = {target}$", part, flags=re.MULTILINE):
            for function in re.split(r"^\s*Function ", part, flags=re.MULTILINE)[1:]:
                found[kernel_name(function.partition("\n")[0])] = function
    return found


@functools.cache
def instructions(target: str) -> dict[str, list[str]]:
    """Kernel -> its instructions' names, in order."""
    line = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
    return {name: line.findall(text) for name, text in kernels("-sass", target).items()}


def test_every_kernel_is_there_for_every_target() -> None:
    for target in TARGETS:
        assert set(kernels("--dump-resource-usage", target)) == set(KERNELS), target


def test_ptx_is_there_for_gpus_to_come() -> None:
    (virtual,) = set(_cuda.TARGETS) - set(TARGETS)
    assert re.search(rf"\.{virtual.replace('compute', 'sm')}\.ptx", dump("--list-ptx"))


@each_target
def test_no_kernel_spills(target: str) -> None:
    for name, usage in kernels("--dump-resource-usage", target).items():
        assert re.search(r"STACK:0 .*LOCAL:0 ", usage), f"{name}: {usage}"
        local = [x for x in instructions(target)[name] if re.match(r"(LDL|STL)\b", x)]
        assert not local, f"{name}: {local}"


@each_target
def test_registers_leave_room_for_blocks(target: str) -> None:
    usage = kernels("--dump-resource-usage", target)
    for name, blocks in BLOCKS.items():
        registers = int(re.search(r"REG:(\d+)", usage[name]).group(1))
        assert -(-registers // 8) * 8 * THREADS * blocks <= REGISTERS, f"{name}: {registers}"


@each_target
def test_vectors_are_loaded_and_stored_whole_and_together(target: str) -> None:
    for name, fewest in IN_FLIGHT.items():
        longest = run = 0
        for instruction in instructions(target)[name]:
            if instruction.startswith("LDG.E.128"):
                run += 1
                longest = max(longest, run)
            elif re.match(r"STG|FFMA|FADD|FMUL|DFMA|F2F", instruction):  # waits for what was loaded
                run = 0
        assert longest >= fewest, f"{name}: {longest}"
        stores = collections.Counter(instructions(target)[name])["STG.E.128"]
        assert (stores > 0) == (name in UPDATES), f"{name}: {stores}"


@each_target
def test_updates_have_no_double_precision_in_their_loops(target: str) -> None:
    found = {name: list(filter(DOUBLE.match, code)) for name, code in instructions(target).items()}
    assert not found["adamw_update"] and not found["lars_update"]
    assert len(found["ema_update"]) <= 8, found["ema_update"]  # 1 − m, once, before the loops
    for name in SUMS:
        assert "DFMA" in found[name]


@each_target
def test_augment_has_no_double_precision_but_the_tables(target: str) -> None:
    for name in AUGMENT:
        found = list(filter(DOUBLE.match, instructions(target)[name]))
        assert found == ["F2F.F32.F64"], f"{name}: {found}"


@each_target
def test_images_are_read_through_the_read_only_cache_as_they_stand(target: str) -> None:
    sizes = {"0": "", "1": ".U16", "2": ".U16", "3": ".U8"}  # by the type of the pixels
    for name in RESAMPLES:
        loads = {x for x in instructions(target)[name] if x.startswith("LDG") and x.endswith("CONSTANT")}
        assert loads == {f"LDG.E{sizes[name[9]]}.CONSTANT"}, f"{name}: {loads}"


@each_target
def test_blur_reads_its_weights_four_at_a_time(target: str) -> None:
    """16 multiplications for 5 loads, one of 16 bytes; see `slide`."""
    code = [x for x in instructions(target)["finish"] if x in ("LDS", "LDS.128", "FFMA")]
    runs = re.findall("((?:LDS(?:.128)? ){5})(?:FFMA ){16}", " ".join(code) + " ")
    assert len(runs) == 6  # along rows and down, three channels
    for loads in runs:
        assert sorted(loads.split()) == ["LDS"] * 4 + ["LDS.128"]


@each_target
def test_shared_memory_leaves_room_for_blocks(target: str) -> None:
    capacity = {"sm_80": 164, "sm_86": 100, "sm_89": 100, "sm_90": 228, "sm_100": 228, "sm_120": 100}[target] * 1024
    for name in AUGMENT:
        shared = int(re.search(r"SHARED:(\d+)", kernels("--dump-resource-usage", target)[name]).group(1))
        fit = 2 if name == "finish" and capacity == 100 * 1024 else BLOCKS[name]
        assert capacity // (shared + 1024) >= fit, f"{name}: {shared}"
