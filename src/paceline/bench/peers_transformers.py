"""Peer: transformers `generate`, greedy: plain, prompt lookup, assistant model, static cache, static cache compiled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paceline.bench.machine_clock import time_calls
from paceline.bench.peers_base import PeerRun, filler_ids, require
from paceline.core.errors import UsageError

PREFILL_CHUNK = 512


def _compiled() -> dict[str, Any]:
    """Options that make `generate` compile its decoding forward on every device (by itself it does so on accelerators only)."""
    from transformers import CompileConfig

    config: Any = CompileConfig()
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


# Mode to the options of `generate` that make it.
MODES: dict[str, Callable[[], dict[str, Any]]] = {
    "greedy": dict,
    "prompt-lookup": lambda: {"prompt_lookup_num_tokens": 10},
    "assistant": dict,
    "static": lambda: {"cache_implementation": "static", "disable_compile": True},
    "static-compiled": _compiled,
}


@dataclass(slots=True)
class TransformersPeer:
    """transformers on one checkpoint.

    Args:
        mode: a key of `MODES`.
        assistant: checkpoint folder of the assistant model, for mode `assistant`.
        device: where to run.
        repeats: timed forwards per `forward_cost`.

    Raises:
        UsageError: for an unknown mode, or an assistant without its mode or the reverse.
    """

    mode: str = "greedy"
    assistant: Path | None = None
    device: str = "cpu"
    repeats: int = 5
    _model: Any = field(default=None, init=False, repr=False)
    _helper: Any = field(default=None, init=False, repr=False)
    _cache: Any = field(default=None, init=False, repr=False)  # of forward_cost, kept between calls
    _filled: int = field(default=0, init=False, repr=False)  # rows in it

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"transformers peer has no mode {self.mode!r}; known: {', '.join(MODES)}")
        if (self.mode == "assistant") != (self.assistant is not None):
            raise UsageError("transformers peer: mode 'assistant' and an assistant folder go together; give both or neither")

    @property
    def name(self) -> str:
        """`transformers` or `transformers/MODE`."""
        return "transformers" if self.mode == "greedy" else f"transformers/{self.mode}"

    def available(self) -> str | None:
        """Always: transformers is a dependency. Only a missing device can be in the way."""
        return "no CUDA device" if self.device.startswith("cuda") and not torch.cuda.is_available() else None

    def load(self, folder: Path, dtype: str, threads: int) -> None:
        """See `Peer.load`. The number of threads is torch's, hence the process's."""
        torch.set_num_threads(threads)
        self._model = self._read(folder, dtype)
        self._helper = self._read(self.assistant, dtype) if self.assistant else None
        self._cache, self._filled = None, 0

    def _read(self, folder: Path, dtype: str) -> Any:
        from transformers import AutoModelForCausalLM

        with _no_progress_bar():
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        model = model.to(self.device).eval()
        # Length alone ends a run: with an end-of-sequence id, token lists would differ in length between engines.
        for config in (model.generation_config, model.config):
            config.eos_token_id, config.pad_token_id = None, 0
        return model

    @torch.inference_mode()
    def generate(self, prompt_ids: Sequence[int], max_tokens: int) -> PeerRun:
        """See `Peer.generate`."""
        require(self._model, self.name)
        prompt = torch.tensor([list(prompt_ids)], device=self.device)
        clock = _FirstToken()
        helper = {"assistant_model": self._helper} if self._helper is not None else {}
        with self._counting(max_tokens) as forwards:
            clock.start()
            output = self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=max_tokens,
                do_sample=False,
                streamer=clock,
                **MODES[self.mode](),
                **helper,
            )
            tokens = output[0, len(prompt_ids) :].tolist()
            total = clock.elapsed()
        return PeerRun(tokens, clock.first, total - clock.first, forwards())

    @contextmanager
    def _counting(self, max_tokens: int) -> Iterator[Callable[[], int]]:
        """Counts forwards of the target with a hook; not where compiled, as a hook would recompile, but there they are one per token."""
        if self.mode == "static-compiled":
            yield lambda: max_tokens
            return
        count = 0

        def hook(*_: object) -> None:
            nonlocal count
            count += 1

        handle = self._model.register_forward_hook(hook)
        try:
            yield lambda: count
        finally:
            handle.remove()

    @torch.inference_mode()
    def forward_cost(self, rows: int, context: int) -> float:
        """See `Peer.forward_cost`. Uses the dynamic cache, the default of `generate`, in every mode."""
        require(self._model, self.name)
        self._fill(context)
        ids = self._ids(rows, context)

        def call() -> None:
            self._model(ids, past_key_values=self._cache, use_cache=True)
            self._cache.crop(-rows)  # part of what a verification forward costs here, and next to nothing

        return time_calls(call, self.repeats, warmup=1, device=self.device).median

    def _fill(self, context: int) -> None:
        """Make the kept cache hold exactly `context` rows."""
        from transformers import DynamicCache

        if self._cache is None or context == 0:
            self._cache, self._filled = DynamicCache(), 0
        if self._filled > context:
            self._cache.crop(context - self._filled)
            self._filled = context
        while self._filled < context:
            rows = min(PREFILL_CHUNK, context - self._filled)
            self._model(self._ids(rows, self._filled), past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            self._filled += rows

    def _ids(self, count: int, start: int) -> Tensor:
        return torch.tensor([filler_ids(count, self._model.config.vocab_size, start)], device=self.device)

    def close(self) -> None:
        """See `Peer.close`."""
        self._model = self._helper = self._cache = None


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Loading takes a moment; bars would tear the tables that benchmarks print."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class _FirstToken:
    """A streamer that notes when the first generated token arrives."""

    def __init__(self) -> None:
        self.first = 0.0
        self._started = 0.0
        self._puts = 0

    def start(self) -> None:
        self._started = time.perf_counter()

    def elapsed(self) -> float:
        return time.perf_counter() - self._started

    def put(self, value: Tensor) -> None:
        self._puts += 1
        if self._puts == 2:  # the first is the prompt
            self.first = self.elapsed()

    def end(self) -> None:
        """Nothing to flush."""
