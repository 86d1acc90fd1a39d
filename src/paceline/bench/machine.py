"""What machine a measurement was taken on, as JSON: processor, memory, accelerator, versions; never a path or a host name."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("paceline", "torch", "transformers", "tokenizers", "safetensors", "numpy", "llama-cpp-python", "gguf")
# Instruction sets that decide which matrix kernels run; the names are those of /proc/cpuinfo.
FLAGS_OF_INTEREST = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "sve")


def describe_machine(device: str = "cpu") -> dict[str, Any]:
    """Everything a reader needs to judge a timing.

    Args:
        device: `"cpu"`, or a CUDA device to describe as well.

    Returns:
        A JSON-ready dict with keys `cpu`, `memory_bytes`, `python`, `platform`, `packages`, `torch`, `kernels` (types that the compiled
        kernels cover here), `commit`, `load`, and `gpu` for a CUDA device.
    """
    import torch

    from paceline.kernels.fused import fused

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    described: dict[str, Any] = {
        "cpu": _cpu(),
        "memory_bytes": _memory_bytes(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: found for name in PACKAGES if (found := _installed(name)) is not None},
        "torch": {
            "threads": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "cuda": torch.version.cuda,
        },
        "kernels": [str(dtype).removeprefix("torch.") for dtype in (torch.float32, torch.bfloat16) if fused(dtype, torch.device("cpu"))],
        "commit": _commit(),
        # Above the number of cores, somebody else was computing while we measured.
        "load": load,
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        described["gpu"] = {
            "model": properties.name,
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
        }
    return described


def machine_slug(machine: dict[str, Any]) -> str:
    """A short name of the machine for file names, such as `intel-r-xeon-r-processor-2c`."""
    name = machine["gpu"]["model"] if "gpu" in machine else f"{machine['cpu']['model']} {machine['cpu']['cores']}c"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _cpu() -> dict[str, Any]:
    """Model, usable cores, flags of interest and the last level cache in bytes (as the system reports it: a virtual machine may boast)."""
    text = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    present = set(flags.group(1).split()) if flags else set()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": model.group(1).strip() if model else platform.processor() or platform.machine(),
        "cores": cores,
        "flags": [flag for flag in FLAGS_OF_INTEREST if flag in present],
        "last_level_cache_bytes": last_level_cache_bytes(),
    }


def last_level_cache_bytes() -> int | None:
    """Size of the largest cache of core 0, or `None` where the system does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        number = re.fullmatch(r"(\d+)([KMG]?)", _read(path).strip())
        if number:
            sizes.append(int(number[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[number[2]])
    return max(sizes, default=None)


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the source tree paceline runs from, with `+` where files differ from it; `None` for an installed wheel."""
    # The source tree itself, not whatever repository a wheel's environment happens to lie in.
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10, check=True)
        status = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if status.stdout.strip() else "")


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
