"""paceline itself behind the peers' interface, so that benchmarks time it exactly as they time the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from paceline.bench.machine_clock import time_calls
from paceline.bench.peers_base import PeerRun, filler_ids, require
from paceline.core.batch import ForwardBatch, Segment

if TYPE_CHECKING:
    from paceline.engine.llm import LLM
    from paceline.memory.sequence import SequenceMemory

PREFILL_CHUNK = 512


@dataclass(slots=True)
class PacelinePeer:
    """paceline on one checkpoint.

    Args:
        method: as in `--method`; `none` is plain decoding.
        draft: folder of the draft model, for methods that take one.
        exact: bit-exact mode.
        device: where to run.
        repeats: timed forwards per `forward_cost`.
    """

    method: str = "none"
    draft: Path | None = None
    exact: bool = False
    device: str = "cpu"
    repeats: int = 5
    _llm: LLM | None = field(default=None, init=False, repr=False)
    _memory: SequenceMemory | None = field(default=None, init=False, repr=False)  # of forward_cost, kept between calls

    @property
    def name(self) -> str:
        """`paceline`, with the method and exactness where they are not the default."""
        return "paceline" + ("" if self.method == "none" else f"/{self.method}") + ("/exact" if self.exact else "")

    def available(self) -> str | None:
        """Always, but for a missing device."""
        return "no CUDA device" if self.device.startswith("cuda") and not torch.cuda.is_available() else None

    def load(self, folder: Path, dtype: str, threads: int) -> None:
        """See `Peer.load`. The number of threads is torch's, hence the process's."""
        import paceline

        torch.set_num_threads(threads)
        options: dict[str, Any] = {"draft": self.draft} if self.draft is not None else {}
        # Without prefix cache: a repeated prompt must cost what it costs the others.
        self._llm = paceline.load(
            str(folder),
            self.method,
            device=self.device,
            dtype=dtype,
            exact=self.exact,
            max_sequences=2,
            prefix_cache=False,
            **options,
        )
        self._memory = None

    def generate(self, prompt_ids: Sequence[int], max_tokens: int) -> PeerRun:
        """See `Peer.generate`."""
        require(self._llm, self.name)
        assert self._llm is not None
        (output,) = self._llm.generate([list(prompt_ids)], max_tokens=max_tokens, ignore_eos=True)
        stats = output.stats
        return PeerRun(list(output.token_ids), stats.ttft, stats.decode_seconds, stats.forwards)

    def forward_cost(self, rows: int, context: int) -> float:
        """See `Peer.forward_cost`. Reserving the rows and dropping them again is part of what a verification forward costs."""
        require(self._llm, self.name)
        assert self._llm is not None
        runner, memory = self._llm.runner, self._fill(context)
        ids = filler_ids(rows, self._llm.vocabulary, context)

        def call() -> None:
            memory.reserve(rows)
            runner.forward(ForwardBatch(ids, range(context, context + rows), [Segment(memory, rows)]))
            memory.commit(())

        return time_calls(call, self.repeats, warmup=1, device=self.device).median

    def _fill(self, context: int) -> SequenceMemory:
        """The kept memory, holding exactly `context` rows."""
        assert self._llm is not None
        if self._memory is None:
            self._memory = self._llm.runner.memory.admit([0])
        memory = self._memory
        memory.truncate(min(context, memory.length))
        while memory.length < context:
            start = memory.length
            rows = min(PREFILL_CHUNK, context - start)
            memory.reserve(rows)
            ids = filler_ids(rows, self._llm.vocabulary, start)
            self._llm.runner.forward(ForwardBatch(ids, range(start, start + rows), [Segment(memory, rows)], logit_rows=()))
            memory.commit(range(rows))
        return memory

    def close(self) -> None:
        """See `Peer.close`."""
        if self._llm is not None:
            self._llm.close()
        self._llm = self._memory = None
