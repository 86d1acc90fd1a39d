"""The training text: Python's standard library as it lies beside the running interpreter, split by file.

Nothing is downloaded. The split depends on a file's relative path alone, so a held-out file is held out for every user, on every
Python version and for every model of the zoo, and anyone can regenerate the held-out text from their own interpreter.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from paceline.core.errors import UsageError

LICENCE = "Python standard library, Copyright Python Software Foundation, PSF License Version 2"
MAX_FILE_BYTES = 200_000  # larger ones are generated tables or giant test data, and would dominate the mix

# Not library source: third-party code, machine-specific build settings, and tables whose bytes teach a code model nothing.
EXCLUDED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__", "pydoc_data", "lib-dynload"})
EXCLUDED_PREFIXES = (
    "_sysconfigdata",
    "config-",
    "encodings/cp",
    "encodings/iso",
    "encodings/mac_",
    "encodings/koi8",
    "encodings/hp_",
    "encodings/ptcp",
    "test/cjkencodings",
)

_SPLIT_SALT = "paceline"  # fixed for good: changing it would leak training files into the held-out set of shipped models


class Split(StrEnum):
    """Which part of the corpus a file belongs to."""

    TRAIN = "train"
    VALIDATION = "validation"
    HELD_OUT = "held-out"


# Upper bounds on the hash of the path, which is uniform in [0, 1).
_SHARES = ((0.02, Split.HELD_OUT), (0.04, Split.VALIDATION), (1.0, Split.TRAIN))


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One Python file: `name` is its path relative to the library root, with forward slashes."""

    name: str
    text: str

    @property
    def split(self) -> Split:
        """The part of the corpus this file belongs to."""
        return split_of(self.name)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a model was trained on, small enough for its card.

    Attributes:
        python: version of the interpreter whose library was read, such as `3.11.7`.
        files, bytes: count and UTF-8 size, by split.
        sha256: digest over the sorted (name, content digest) list of all files of all splits.
    """

    python: str
    files: dict[str, int]
    bytes: dict[str, int]
    sha256: str
    licence: str = LICENCE

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return asdict(self)


def stdlib_root() -> Path:
    """The folder of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def unit_hash(text: str) -> float:
    """A reproducible number in [0, 1) for `text`, independent of Python's per-process string hashing."""
    digest = hashlib.sha256(f"{_SPLIT_SALT}:{text}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def split_of(name: str) -> Split:
    """The split of the file with relative path `name`: a pure function of the path."""
    position = unit_hash(name)
    return next(split for bound, split in _SHARES if position < bound)


def stdlib_files(root: Path | None = None, split: Split | None = None) -> list[SourceFile]:
    """Every usable source file of the library, sorted by name, exact duplicates dropped (the first name wins, whatever its split).

    Args:
        root: library folder; the running interpreter's when None.
        split: only this part of the corpus; all when None.

    Raises:
        UsageError: if the folder holds no Python source (some minimal distributions ship bytecode only).
    """
    candidates = _candidates(root or stdlib_root())
    if not candidates:
        raise UsageError("the interpreter's standard library holds no .py files; use a Python built with its library source")
    wanted = {candidate.size for candidate in candidates if split in (None, split_of(candidate.name))}
    seen: set[bytes] = set()
    files: list[SourceFile] = []
    for candidate in candidates:
        if candidate.size not in wanted:  # can neither be of the split nor a duplicate of a file that is
            continue
        content = candidate.path.read_bytes()
        digest = hashlib.sha256(content).digest()
        if digest in seen:
            continue
        seen.add(digest)
        if split not in (None, split_of(candidate.name)):
            continue
        with contextlib.suppress(UnicodeDecodeError):  # a few test files are in other encodings on purpose
            files.append(SourceFile(candidate.name, content.decode("utf-8")))
    return files


def held_out_files(root: Path | None = None) -> list[SourceFile]:
    """The files that no model of the zoo has seen, read from the interpreter's own library."""
    return stdlib_files(root, Split.HELD_OUT)


def manifest(files: Iterable[SourceFile]) -> Manifest:
    """Describe a corpus: counts, bytes and a digest that changes when any name or content does."""
    counts = {split.value: 0 for split in Split}
    sizes = {split.value: 0 for split in Split}
    whole = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        content = file.text.encode()
        counts[file.split] += 1
        sizes[file.split] += len(content)
        whole.update(f"{file.name} {hashlib.sha256(content).hexdigest()}\n".encode())
    version = ".".join(map(str, sys.version_info[:3]))
    return Manifest(python=version, files=counts, bytes=sizes, sha256=whole.hexdigest())


@dataclass(frozen=True, slots=True)
class _Candidate:
    name: str
    path: Path
    size: int


def _candidates(base: Path) -> list[_Candidate]:
    """Files that may be library source, neither empty nor too large, in name order."""
    found = []
    for path in base.rglob("*.py"):
        name = path.relative_to(base).as_posix()
        if EXCLUDED_FOLDERS.intersection(name.split("/")) or name.startswith(EXCLUDED_PREFIXES) or not path.is_file():
            continue
        size = path.stat().st_size
        if 0 < size <= MAX_FILE_BYTES:
            found.append(_Candidate(name, path, size))
    return sorted(found, key=lambda candidate: candidate.name)
