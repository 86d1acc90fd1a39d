"""Compile the kernels once per machine, with the system's C compiler, into the user's cache. Without a compiler there are none."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("decode.c")
# Linking is a step of its own: a library linked under -ffast-math switches denormal numbers off for the whole process.
FLAGS = ("-O3", "-march=native", "-ffast-math", "-mprefer-vector-width=512", "-fPIC")
LINK_FLAGS = ("-shared",)
SWITCH = "PACELINE_KERNELS"  # set to 0 to do without


def library(bf16: bool) -> Path | None:
    """The shared library of one element type, compiled if need be; `None` if switched off or impossible here."""
    if os.environ.get(SWITCH, "1") == "0" or platform.machine() not in ("x86_64", "AMD64"):
        return None
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    target = _cache() / f"decode-{'bf16' if bf16 else 'f32'}-{_fingerprint(compiler)}.so"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            part = made.with_suffix(".o")
            for command in (
                [compiler, *FLAGS, f"-DBF16={int(bf16)}", "-c", "-o", str(part), str(SOURCE)],
                [compiler, *LINK_FLAGS, "-o", str(made), str(part), "-lm"],
            ):
                subprocess.run(command, check=True, capture_output=True, timeout=120)
            made.replace(target)
    except (OSError, subprocess.SubprocessError):
        return None
    return target


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paceline" / "kernels"


def _fingerprint(compiler: str) -> str:
    """Changes with the source, the flags, the compiler and the processor: a cache folder may be shared between machines."""
    digest = hashlib.sha256(SOURCE.read_bytes())
    for part in (*FLAGS, *LINK_FLAGS, compiler, _processor()):
        digest.update(part.encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
