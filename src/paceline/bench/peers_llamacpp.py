"""Peer: llama.cpp through the C interface of llama-cpp-python, on a GGUF exported from the same weights."""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.bench.gguf import LlamaShape, export_gguf
from paceline.bench.machine_clock import time_calls
from paceline.bench.peers_base import PeerRun, filler_ids, require
from paceline.core.errors import PacelineError, UsageError

BATCH = 512  # rows per llama_decode, both logical and physical
LONGEST_CONTEXT = 8192
GGML_F32, GGML_F16 = 0, 1
KV_TYPES = {"float32": GGML_F32, "float16": GGML_F16, "bfloat16": GGML_F16}  # f16 is llama.cpp's default
# Its flash attention stays off: in float32 it casts keys and values to f16, which is not the arithmetic of the other contenders.
FLASH_OFF = 0


@dataclass(slots=True)
class LlamaCppPeer:
    """llama.cpp on one checkpoint, CPU.

    Args:
        repeats: timed forwards per `forward_cost`.
    """

    repeats: int = 5
    _api: Any = field(default=None, init=False, repr=False)
    _model: Any = field(default=None, init=False, repr=False)
    _context: Any = field(default=None, init=False, repr=False)
    _batch: Any = field(default=None, init=False, repr=False)
    _shape: LlamaShape | None = field(default=None, init=False, repr=False)
    _filled: int = field(default=0, init=False, repr=False)  # rows remembered

    @property
    def name(self) -> str:
        """`llama.cpp`."""
        return "llama.cpp"

    def available(self) -> str | None:
        """`None`, or which package is missing."""
        for package in ("llama_cpp", "gguf"):
            try:
                __import__(package)
            except (ImportError, OSError, RuntimeError) as error:  # a library built for another machine fails to load
                return f"{package} cannot be imported ({error}); install paceline[peers]"
        return None

    def load(self, folder: Path, dtype: str, threads: int) -> None:
        """See `Peer.load`. Exports the folder to a temporary GGUF, which lives only while it is read.

        Raises:
            UsageError: if llama-cpp-python is missing.
            CheckpointError: if the checkpoint cannot be exported.
        """
        if reason := self.available():
            raise UsageError(reason)
        self.close()
        import llama_cpp

        self._api = llama_cpp
        llama_cpp.llama_backend_init()
        llama_cpp.llama_log_set(_quiet(), ctypes.c_void_p(0))
        self._shape = LlamaShape.read(folder)
        with tempfile.TemporaryDirectory() as scratch:
            path = export_gguf(folder, Path(scratch) / "model.gguf", dtype).path
            self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise PacelineError(f"llama.cpp cannot load the GGUF exported from {folder}")
        self._context = llama_cpp.llama_init_from_model(self._model, self._parameters(dtype, threads))
        if not self._context:
            raise PacelineError(f"llama.cpp cannot make a context for {folder}; there may be too little memory")
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        for row in range(BATCH):
            self._batch.n_seq_id[row] = 1
            self._batch.seq_id[row][0] = 0

    def _parameters(self, dtype: str, threads: int) -> Any:
        assert self._shape is not None
        parameters = self._api.llama_context_default_params()
        parameters.n_ctx = min(self._shape.context, LONGEST_CONTEXT) + BATCH  # room for a forward behind a full context
        parameters.n_batch = parameters.n_ubatch = BATCH
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.type_k = parameters.type_v = KV_TYPES[dtype]
        parameters.flash_attn_type = FLASH_OFF
        return parameters

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits of every position of `ids`, from an empty memory: `(len(ids), vocabulary)`."""
        self._truncate(0)
        starts = range(0, len(ids), BATCH)
        return np.concatenate([self._forward(ids[start : start + BATCH], all_logits=True).copy() for start in starts])

    def generate(self, prompt_ids: Sequence[int], max_tokens: int) -> PeerRun:
        """See `Peer.generate`."""
        require(self._context, self.name)
        self._truncate(0)
        start = time.perf_counter()
        logits, forwards = np.empty((0, 0), np.float32), 0
        for first in range(0, len(prompt_ids), BATCH):
            logits = self._forward(prompt_ids[first : first + BATCH], all_logits=False)
            forwards += 1
        prompt_forwards = forwards
        tokens = [int(logits[-1].argmax())]
        ttft = time.perf_counter() - start
        while len(tokens) < max_tokens:
            tokens.append(int(self._forward(tokens[-1:], all_logits=False)[-1].argmax()))
            forwards += 1
        total = time.perf_counter() - start
        # A prompt counts as one forward, however many pieces it was fed in.
        return PeerRun(tokens, ttft, total - ttft, forwards - prompt_forwards + 1)

    def forward_cost(self, rows: int, context: int) -> float:
        """See `Peer.forward_cost`."""
        require(self._context, self.name)
        assert self._shape is not None
        if rows > BATCH:
            raise UsageError(f"llama.cpp peer: {rows} rows in one forward; at most {BATCH}")
        if self._filled > context:
            self._truncate(context)
        while self._filled < context:
            count = min(BATCH, context - self._filled)
            self._forward(filler_ids(count, self._shape.vocabulary, self._filled), all_logits=False)
        ids = filler_ids(rows, self._shape.vocabulary, context)

        def call() -> None:
            self._forward(ids, all_logits=True)
            self._truncate(context)

        return time_calls(call, self.repeats, warmup=1).median

    def _forward(self, ids: Sequence[int], *, all_logits: bool) -> NDArray[np.float32]:
        """Decode `ids` behind what is remembered. The result is a view that the next forward overwrites."""
        assert self._shape is not None
        batch, rows = self._batch, len(ids)
        batch.n_tokens = rows
        for row, token in enumerate(ids):
            batch.token[row] = token
            batch.pos[row] = self._filled + row
            batch.logits[row] = all_logits or row == rows - 1
        if status := self._api.llama_decode(self._context, batch):
            raise PacelineError(f"llama.cpp failed to decode {rows} rows behind {self._filled} (status {status})")
        self._filled += rows
        outputs = rows if all_logits else 1
        return np.ctypeslib.as_array(self._api.llama_get_logits(self._context), (outputs, self._shape.vocabulary))

    def _truncate(self, length: int) -> None:
        """Forget everything from position `length` on."""
        self._api.llama_memory_seq_rm(self._api.llama_get_memory(self._context), 0, length, -1)
        self._filled = length

    def close(self) -> None:
        """See `Peer.close`."""
        if self._batch is not None:
            self._api.llama_batch_free(self._batch)
        if self._context:
            self._api.llama_free(self._context)
        if self._model:
            self._api.llama_model_free(self._model)
        self._batch = self._context = self._model = None
        self._filled = 0


@cache
def _quiet() -> Any:
    """A log callback that drops everything. Cached because the C side keeps the pointer: it must never be collected."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda level, text, data: None)
