"""A trained pocket model as a folder that `transformers` and paceline both load."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from paceline.zoo.network import load_network, save_network

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Where and how a file was made is no business of a config, and an absolute path would differ between machines.
_PRIVATE_KEYS = ("name_or_path", "_name_or_path", "local_files_only", "is_local", "_from_model_config")


def export(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    save: Callable[[nn.Module, Path], None] = save_network,
    load: Callable[[Path], nn.Module] = load_network,
) -> nn.Module:
    """Write bf16 safetensors, config and tokenizer to `folder`, replacing what was there, and load the result again.

    Args:
        save, load: how this kind of model is written and read.

    Returns:
        The exported weights (rounded to bf16) in an fp32 model on the CPU: what users will run, for measuring.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save(model, partial)
    tokenizer.save_pretrained(partial)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        if (partial / name).is_file():
            _strip(partial / name)
    for file in partial.iterdir():
        file.chmod(0o644)  # safetensors are written for the owner alone, which an installed package must not be
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return load(folder)


def _strip(file: Path) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    kept = {key: value for key, value in content.items() if key not in _PRIVATE_KEYS}
    file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
