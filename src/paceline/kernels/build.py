"""Compile the kernels once per machine, with the system's C compiler, into the user's cache. Without a compiler there are none."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
FLAGS = ("-O3", "-march=native", "-mprefer-vector-width=512", "-pthread", "-fPIC")
STRICT = ("pool.c", "amx.c", "product.c", "product_tiles.c", "attend.c", "attend_tiles.c")
DECODE: dict[str, tuple[str, ...]] = {**dict.fromkeys(("decode.c", "attention.c"), ("-ffast-math",)), **dict.fromkeys(STRICT, ())}
LIBRARIES: dict[str, tuple[dict[str, tuple[str, ...]], tuple[str, ...]]] = {  # sources, and flags of all of them
    "decode-f32": (DECODE, ("-DBF16=0",)),
    "decode-bf16": (DECODE, ("-DBF16=1",)),
    "law": ({"law.c": (), "judge.c": ()}, ()),
    "forest": ({"forest.c": ("-ffp-contract=off",), "squeeze.c": ()}, ()),
    "stand": ({"ngrams.c": (), "stand.c": ()}, ("-ffp-contract=off",)),
}
# Linking is a step of its own: a library linked under -ffast-math switches denormal numbers off for the whole process.
LINK_FLAGS = ("-shared", "-pthread")
SWITCH = "PACELINE_KERNELS"  # set to 0 to do without


def library(name: str) -> Path | None:
    """One of `LIBRARIES`, compiled if need be; `None` if switched off or impossible here."""
    sources, common = LIBRARIES[name]
    if os.environ.get(SWITCH, "1") == "0" or platform.machine() not in ("x86_64", "AMD64"):
        return None
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    target = _cache() / f"{name}-{_fingerprint(compiler)}.so"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            parts = {source: str(made.with_name(f"{source}.o")) for source in sources}
            commands = [
                [compiler, *FLAGS, *own, *common, "-c", "-o", parts[source], str(FOLDER / source)] for source, own in sources.items()
            ]
            for command in (*commands, [compiler, *LINK_FLAGS, "-o", str(made), *parts.values(), "-lm"]):
                subprocess.run(command, check=True, capture_output=True, timeout=120)
            made.replace(target)
    except (OSError, subprocess.SubprocessError):
        return None
    return target


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paceline" / "kernels"


def _fingerprint(compiler: str) -> str:
    """Changes with the sources, the flags, the compiler and the processor: a cache folder may be shared between machines."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*.[ch]"))))
    for part in (*FLAGS, str(LIBRARIES), *LINK_FLAGS, compiler, _processor()):
        digest.update(part.encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
