"""The corpus is complete, free of duplicates, and split for good by path."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline.core.errors import UsageError
from paceline.zoo import corpus
from paceline.zoo.corpus import SourceFile, Split, held_out_files, manifest, split_of, stdlib_files

# Shipped models were trained without these files: should any of them move to another split, their held-out figures would be worthless.
PINNED = {
    "json/decoder.py": Split.HELD_OUT,
    "typing.py": Split.HELD_OUT,
    "weakref.py": Split.HELD_OUT,
    "warnings.py": Split.HELD_OUT,
    "concurrent/futures/thread.py": Split.HELD_OUT,
    "json/encoder.py": Split.VALIDATION,
    "ntpath.py": Split.VALIDATION,
    "argparse.py": Split.TRAIN,
}


def fill(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


@pytest.mark.parametrize(("name", "split"), PINNED.items())
def test_split_is_pinned(name: str, split: Split) -> None:
    assert split_of(name) is split


def test_split_shares_are_near_two_percent() -> None:
    splits = [split_of(f"package/module_{n}.py") for n in range(20_000)]
    assert 0.015 < splits.count(Split.HELD_OUT) / 20_000 < 0.025
    assert 0.015 < splits.count(Split.VALIDATION) / 20_000 < 0.025


def test_unusable_files_are_left_out(tmp_path: Path) -> None:
    root = fill(
        tmp_path,
        {
            "good.py": b"x = 1\n",
            "pkg/other.py": b"y = 2\n",
            "empty.py": b"",
            "latin.py": b"# \xe9\n",
            "huge.py": b"#" * (corpus.MAX_FILE_BYTES + 1),
            "notes.txt": b"text",
            "site-packages/third.py": b"z = 3\n",
            "_sysconfigdata_x.py": b"w = 4\n",
            "encodings/cp037.py": b"table = 5\n",
        },
    )
    assert [file.name for file in stdlib_files(root)] == ["good.py", "pkg/other.py"]


def test_newlines_are_kept_as_stored(tmp_path: Path) -> None:
    assert stdlib_files(fill(tmp_path, {"dos.py": b"a\r\nb\n"}))[0].text == "a\r\nb\n"


def test_duplicates_are_dropped_whatever_their_split(tmp_path: Path) -> None:
    """A held-out file whose content is also in the training set (under an earlier name) is no held-out file."""
    copies = {"argparse.py": b"same\n", "json/decoder.py": b"same\n", "typing.py": b"else\n"}
    root = fill(tmp_path, copies)
    assert [file.name for file in stdlib_files(root)] == ["argparse.py", "typing.py"]
    assert [file.name for file in held_out_files(root)] == ["typing.py"]


def test_one_split_equals_the_filtered_whole() -> None:
    whole = stdlib_files()
    assert held_out_files() == [file for file in whole if file.split is Split.HELD_OUT]
    assert all(file.split is split_of(file.name) for file in whole)


def test_a_library_without_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no \.py files"):
        stdlib_files(tmp_path)


def test_manifest_notices_every_change() -> None:
    base = [SourceFile("argparse.py", "x"), SourceFile("typing.py", "yé")]
    reference = manifest(base)
    assert reference.files == {"train": 1, "validation": 0, "held-out": 1}
    assert reference.bytes["held-out"] == 3  # UTF-8 bytes, not characters
    assert manifest(reversed(base)) == reference
    assert manifest([SourceFile("argparse.py", "z"), base[1]]).sha256 != reference.sha256
    assert manifest([SourceFile("argument.py", "x"), base[1]]).sha256 != reference.sha256
