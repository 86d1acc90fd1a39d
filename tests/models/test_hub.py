"""Finding a model: folders, ids, the offline cache, and one clear line when it is nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from paceline.core.errors import CheckpointError
from paceline.models.hub import UNWANTED, WANTED, locate


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert locate(tmp_path) == tmp_path
    assert locate(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("model", ["./nowhere", "/no/such/folder", "a/b/c", Path("nowhere"), "", "org/na me"])
def test_what_cannot_be_an_id_is_a_missing_folder(model: str | Path) -> None:
    with pytest.raises(CheckpointError, match="no folder"):
        locate(model)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"is a file.*config\.json"):
        locate(tmp_path / "model.safetensors")


def test_an_id_is_fetched_without_other_formats(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def fetch(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert locate("org/name", revision="main") == tmp_path
    assert asked["name"] == "org/name"
    from huggingface_hub.utils import filter_repo_objects

    files = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
        "pytorch_model.bin",
        "consolidated.safetensors",
        "original/params.json",
        "onnx/config.json",
        "model.gguf",
    ]
    assert (asked["allow_patterns"], asked["ignore_patterns"]) == (WANTED, UNWANTED)
    assert list(filter_repo_objects(files, allow_patterns=WANTED, ignore_patterns=UNWANTED)) == files[:7]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """`HF_HUB_OFFLINE=1` with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    download = huggingface_hub.snapshot_download
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *names, **options: download(*names, cache_dir=tmp_path, **options))
    return tmp_path


def test_offline_and_not_cached(offline: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'org/name'.*HF_HUB_OFFLINE=1"):
        locate("org/name")


def test_offline_and_cached(offline: Path) -> None:
    commit = "0" * 40
    snapshot = offline / "models--org--name" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (offline / "models--org--name" / "refs").mkdir()
    (offline / "models--org--name" / "refs" / "main").write_text(commit)
    assert locate("org/name") == snapshot


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.RepositoryNotFoundError("no", response=Mock()), "check the spelling"),
        (errors.GatedRepoError("no", response=Mock()), "gated"),
        (errors.RevisionNotFoundError("no", response=Mock()), "no revision 'v9'"),
        (errors.HfHubHTTPError("teapot\nmore", response=Mock()), "teapot"),
        (errors.LocalEntryNotFoundError("no"), "cannot be reached"),
        (errors.HFValidationError("bad name"), "bad name"),
        (OSError("disk full"), "disk full"),
    ],
)
def test_every_failure_is_one_line_naming_the_model(monkeypatch: pytest.MonkeyPatch, error: Exception, words: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Mock(side_effect=error))
    with pytest.raises(CheckpointError) as caught:
        locate("org/name", revision="v9")
    assert words in str(caught.value)
    assert "'org/name'" in str(caught.value)
    assert "\n" not in str(caught.value)
