"""Tensors of a safetensors checkpoint as numpy arrays, read from a memory map one at a time; knows bf16, which numpy does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.core.errors import CheckpointError

# Stored type to the numpy type of its bytes. bf16 is read as 16-bit integers: the upper halves of float32.
STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class Weights:
    """The tensors of every `*.safetensors` file in a folder, by name.

    Raises:
        CheckpointError: if there is none, a file is truncated, or a tensor is stored in a type that is not a float.
    """

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{folder} holds no *.safetensors file; give a checkpoint folder in the layout of transformers")
        self._entries: dict[str, tuple[Path, int, dict[str, Any]]] = {}
        for file in files:
            self._read_header(file)

    def _read_header(self, file: Path) -> None:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if 8 + length > size:
                raise CheckpointError(f"{file} is truncated: its header claims {length} bytes; download it again")
            try:
                header = json.loads(stream.read(length))
            except (UnicodeDecodeError, json.JSONDecodeError) as error:
                raise CheckpointError(f"{file} is not a safetensors file ({error})") from error
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if 8 + length + entry["data_offsets"][1] > size:
                raise CheckpointError(f"{file} is truncated: tensor {name} ends beyond the file; download it again")
            if entry["dtype"] not in STORED:
                raise CheckpointError(f"{file}: tensor {name} is stored as {entry['dtype']}; supported: {', '.join(STORED)}")
            self._entries[name] = (file, 8 + length, entry)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def float32(self, name: str) -> NDArray[np.float32]:
        """A copy of the tensor in float32; exact for every stored type but F64.

        Raises:
            CheckpointError: if there is no such tensor.
        """
        if name not in self._entries:
            raise CheckpointError(f"the checkpoint has no tensor {name}")
        file, base, entry = self._entries[name]
        start, stop = entry["data_offsets"]
        stored = np.dtype(STORED[entry["dtype"]])
        raw = np.memmap(file, dtype=stored, mode="r", offset=base + start, shape=((stop - start) // stored.itemsize,))
        numbers = (raw.astype(np.uint32) << 16).view(np.float32) if entry["dtype"] == "BF16" else raw.astype(np.float32)
        return numbers.reshape(entry["shape"])
