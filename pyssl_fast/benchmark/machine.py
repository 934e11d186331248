"""What this machine is: the facts that stand beside every measurement, and that `pyssl-fast info` prints."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import pyssl_fast


def extension(name: str) -> ModuleType | None:
    """The compiled module pyssl_fast.<name> ("_cpu", "_cuda"), or None where it is not built."""
    if importlib.util.find_spec(f"pyssl_fast.{name}") is None:
        return None
    return importlib.import_module(f"pyssl_fast.{name}")


def isa() -> str | None:
    """The instruction set that our CPU kernels use; None: not built."""
    cpu = extension("_cpu")
    return cpu.isa() if cpu else None


def installed(package: str) -> bool:
    """Whether a package, or one inside another, can be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # there is not even the outer one
        return False


def _proc(path: str, key: str) -> str | None:
    """The value of the first line `key : value` of a file in /proc; None on a system without it."""
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            name, colon, value = line.partition(":")
            if colon and name.strip() == key:
                return value.strip()
    return None


def memory_gb(key: str = "MemTotal") -> float | None:
    """A line of /proc/meminfo ("MemTotal", "MemAvailable") in GB = 1e9 bytes; None where there is none."""
    value = _proc("/proc/meminfo", key)
    return None if value is None else int(value.split()[0]) * 1024 / 1e9


def cpu_model() -> str:
    """The processor's name, with its family and model numbers, which tell apart what the name may not."""
    cpuinfo = "/proc/cpuinfo"
    name = _proc(cpuinfo, "model name") or platform.processor() or platform.machine()
    numbers = [_proc(cpuinfo, key) for key in ("cpu family", "model")]
    return f"{name} (family {numbers[0]}, model {numbers[1]})" if all(numbers) else name


def version(package: str) -> str | None:
    """The installed version of a package, or None."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def commit() -> str | None:
    """The commit of the checkout that the package is imported from, "-dirty" behind it if files differ from it."""
    root = Path(pyssl_fast.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip() or None
    return None


def gpus() -> list[str]:
    """The GPUs that torch sees: name, compute capability, memory."""
    if not torch.cuda.is_available():
        return []
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [f"{gpu.name} (sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 1e9:.0f} GB)" for gpu in found]


def facts() -> dict[str, Any]:
    """The machine and the software on it; keys and meanings in `report.MACHINE`."""
    cpu = extension("_cpu")
    memory = memory_gb()
    return {
        "cpu_model": cpu_model(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isas": list(cpu.isas()) if cpu else [],
        "isa": isa(),
        "memory_gb": None if memory is None else round(memory, 1),
        "gpus": gpus(),
        "threads": torch.get_num_threads(),
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": version("triton"),
        "lightly": version("lightly"),
        "open_clip": version("open_clip_torch"),
        "pytorch_metric_learning": version("pytorch-metric-learning"),
        "timm": version("timm"),
        "albumentations": version("albumentations"),
        "opencv": version("opencv-python-headless"),
        "dali": version("nvidia-dali-cuda130"),
        "torchvision": version("torchvision"),
        "kornia": version("kornia"),
        "pyssl_fast": pyssl_fast.__version__,
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
