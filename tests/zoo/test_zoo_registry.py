"""Names resolve to folders, cheaply."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from paceline.zoo import registry

PROBE = """
import sys
from paceline.zoo import corpus, prompts, registry
registry.resolve("pocket-code"); registry.pocket_models()
print([name for name in ("torch", "transformers", "tokenizers", "numpy") if name in sys.modules])
"""


def test_asking_imports_nothing_heavy() -> None:
    shown = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_only_built_models_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MODELS_FOLDER", tmp_path)
    assert registry.resolve("pocket-code") is None
    assert not registry.pocket_models()["pocket-code"].available
    (tmp_path / "pocket-code").mkdir()
    (tmp_path / "pocket-code" / registry.WEIGHTS).touch()
    assert registry.resolve("pocket-code") == tmp_path / "pocket-code"
    assert registry.pocket_models()["pocket-code"].available
    assert not registry.pocket_models()["pocket-code-draft"].available


def test_other_names_do_not_resolve() -> None:
    assert registry.resolve("gpt-17") is None
    assert registry.resolve("../models/pocket-code") is None
