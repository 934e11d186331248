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
BLOCKS = {"ema_update": 3, "adamw_update": 4, "lars_update": 4}  # that fit on a multiprocessor
# Loads of 16 bytes that are under way together: 4 vectors of each list; of adamw 1; lars loads no fresh buffer.
IN_FLIGHT = {"ema_update": 8, "adamw_update": 4, "lars_update": 4, "square_sum_chunks": 4, "lars_norms": 8}
KERNELS = (*BLOCKS, *SUMS, "square_sum_total", "adamw_prepare", "lars_trust")
TARGETS = [target for target in _cuda.TARGETS if target.startswith("sm_")]
DOUBLE = re.compile(r"D(ADD|MUL|FMA|SETP|MNMX)|F2F(\.\w+)*\.F64|I2F(\.\w+)*\.F64|MUFU\.\w*64H")

each_target = pytest.mark.parametrize("target", TARGETS)


@functools.cache
def dump(what: str) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run([str(tool), what, str(_cuda.__file__)], capture_output=True, text=True, check=True).stdout


def kernels(what: str, target: str) -> dict[str, str]:
    """Kernel -> what a dump says of it, for one target."""
    found = {}
    for part in re.split(r"^(?=Fatbin elf code)", dump(what), flags=re.MULTILINE):
        if re.search(rf"^arch = {target}$", part, flags=re.MULTILINE):
            for function in re.split(r"^\s*Function ", part, flags=re.MULTILINE)[1:]:
                name = next(name for name in KERNELS if re.search(rf"\d{name}E", function.partition("\n")[0]))
                found[name] = function
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
        assert (stores > 0) == (name in BLOCKS), f"{name}: {stores}"


@each_target
def test_updates_have_no_double_precision_in_their_loops(target: str) -> None:
    found = {name: list(filter(DOUBLE.match, code)) for name, code in instructions(target).items()}
    assert not found["adamw_update"] and not found["lars_update"]
    assert len(found["ema_update"]) <= 8, found["ema_update"]  # 1 − m, once, before the loops
    for name in SUMS:
        assert "DFMA" in found[name]
