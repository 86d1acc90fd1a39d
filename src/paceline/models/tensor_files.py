"""The safetensors files of a model folder, as one mapping from key to tensor, read lazily."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from paceline.core.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file.

    Raises:
        CheckpointError: if the file is missing, unreadable or not a JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}; give a model folder as transformers saves it") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); fetch the file again") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a JSON {type(found).__name__}, not an object; fetch the file again")
    return found


class TensorFiles:
    """Tensors of a folder, single file or sharded. A context manager: tensors read from it must be copied before it closes.

    Args:
        folder: holds `model.safetensors`, or an index and its shards.

    Raises:
        CheckpointError: for absent, truncated or unreadable files, naming them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open = ExitStack()
        self._files: dict[str, Any] = {}
        self.file_of: dict[str, str] = {}  # key -> file name
        index = folder / INDEX
        try:
            if index.exists():
                self._read_index(index)
            else:
                name = _only_file(folder)
                self.file_of = dict.fromkeys(self._handle(name).keys(), name)
        except CheckpointError:
            self._open.close()
            raise

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor, from its file's header."""
        return tuple(self._slice(key).get_shape())

    def dtype(self, key: str) -> torch.dtype:
        """Type a tensor is stored in.

        Raises:
            CheckpointError: if it is not a plain floating type (quantised weights), naming the tensor.
        """
        stored = self._slice(key).get_dtype()
        if stored not in FLOATS:
            raise CheckpointError(f"{self.where(key)} is stored as {stored}; only {', '.join(FLOATS)} weights are supported")
        return FLOATS[stored]

    def read(self, key: str, rows: tuple[int, int] | None = None) -> Tensor:
        """A tensor, or some of its rows, as stored."""
        part: Tensor = self._slice(key)[:] if rows is None else self._slice(key)[rows[0] : rows[1]]
        return part

    def where(self, key: str) -> str:
        """File and key, for messages."""
        return f"{self.folder / self.file_of[key]}: tensor {key!r}"

    def _slice(self, key: str) -> Any:
        return self._handle(self.file_of[key]).get_slice(key)

    def _handle(self, name: str) -> Any:
        if name not in self._files:
            path = self.folder / name
            try:
                self._files[name] = self._open.enter_context(safe_open(path, framework="pt"))
            except FileNotFoundError:
                raise CheckpointError(f"{self.folder / INDEX} names the file {name!r}, which is missing; fetch it again") from None
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path} is truncated or not a safetensors file ({error}); fetch it again") from None
        return self._files[name]

    def _read_index(self, index: Path) -> None:
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise CheckpointError(f"{index} has no 'weight_map'; fetch the file again")
        inside: dict[str, str] = {}
        for name in sorted(set(named.values())):
            if Path(name).name != name:
                raise CheckpointError(f"{index} names the file {name!r}, which is not in its folder; fetch the index again")
            inside.update(dict.fromkeys(self._handle(name).keys(), name))
        for key, name in named.items():
            if inside.get(key) != name:
                raise CheckpointError(f"{index} places tensor {key!r} in {name!r}, which does not hold it; fetch both files again")
        self.file_of = inside


def _only_file(folder: Path) -> str:
    """The one weights file of a folder without an index."""
    if (folder / SINGLE).exists():
        return SINGLE
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(f"{folder} has {len(found)} safetensors files but no {INDEX}; fetch the index, or keep one {SINGLE}")
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{folder} has only pickled weights ({pickled[0]}), which can run code when opened; "
            "load them with transformers and save them again with save_pretrained, which writes safetensors"
        )
    raise CheckpointError(f"{folder} has no {SINGLE} and no {INDEX}; fetch the weights")
