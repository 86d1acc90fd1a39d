"""The facade: a loaded model with a method, ready to generate, stream and be cancelled."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any

from paceline.core.errors import UsageError
from paceline.core.request import FinishReason, Request
from paceline.core.request import Sequence as Running
from paceline.core.sampling import Sampling
from paceline.core.verdict import TokenLogprob
from paceline.engine.emission import Emission, ends
from paceline.engine.lifecycle import Lifecycle
from paceline.engine.output import Chunk, Output, Stats
from paceline.engine.prompts import Prompt, Tokenizer, as_list, end_ids, prompt_ids, stop_strings
from paceline.engine.runner import Runner
from paceline.memory.ledger import Ledger
from paceline.memory.slots import SlotMemory
from paceline.verification.processors import check_sampling


class LLM:
    """A model that generates. Made by `paceline.load`.

    Several threads may stream at once; whoever waits for tokens runs the next step for everybody.

    Args:
        engine: the loop.
        tokenizer: of the checkpoint, if it has one.
        ledger: allocation book.
        name: what was loaded, for messages and certificates.
        method: the method string in force.
    """

    engine: Any  # a `Lifecycle`: `Engine`, which has a drafter and a verifier, or `DenoisingEngine`, which has a denoiser

    def __init__(self, engine: Lifecycle, tokenizer: Tokenizer | None, ledger: Ledger, name: str, method: str) -> None:
        self.engine, self.tokenizer, self.ledger, self.name, self.method = engine, tokenizer, ledger, name, method
        self._lock = Lock()
        self._inbox: dict[int, deque[Emission]] = {}

    @property
    def runner(self) -> Runner:
        """Target weights and memory."""
        runner: Runner = self.engine.runner
        return runner

    @property
    def denoises(self) -> bool:
        """Whether this is a masked diffusion model, which fills positions in any order."""
        return self.runner.decoder.config.diffusion is not None

    @property
    def vocabulary(self) -> int:
        """Size of the target's vocabulary."""
        return self.runner.decoder.config.vocabulary

    @property
    def prompt_vocabulary(self) -> int:
        """Size of the vocabulary that prompts are written in; an encoder-decoder may have another one for its output."""
        config = self.runner.decoder.config
        return (config.encoder or config).vocabulary

    def request(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        max_tokens: int = 128,
        stop: str | Sequence[str] = (),
        stop_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        priority: int = 0,
        tenant: str = "",
    ) -> Request:
        """A validated request.

        Raises:
            UsageError: for prompts, settings or limits that cannot be served, naming the remedy.
        """
        ids = prompt_ids(prompt, self.tokenizer, self.prompt_vocabulary)
        ids, source = self._as_target(ids)
        if len(ids) >= self.engine.context:
            raise UsageError(f"the prompt has {len(ids)} tokens and the model's context ends at {self.engine.context}; shorten it")
        chosen = Sampling() if sampling is None else sampling
        if not isinstance(chosen, Sampling):
            raise UsageError(f"sampling must be a paceline.Sampling, not a {type(chosen).__name__}")
        check_sampling(chosen, self.vocabulary)
        texts = stop_strings(stop)
        if texts and self.tokenizer is None:
            raise UsageError("stop strings need a tokenizer, and this checkpoint has none; use stop_ids")
        last = end_ids(stop_ids, self.vocabulary)
        return Request(ids, chosen, max_tokens, texts, last, ignore_eos, priority, tenant, source)

    def _as_target(self, prompt: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the output continues, and the source of an encoder-decoder, checked for length."""
        config = self.runner.decoder.config
        if config.encoder is not None and len(prompt) > config.encoder.max_positions:
            raise UsageError(
                f"the source has {len(prompt)} tokens and the model's encoder reads {config.encoder.max_positions}; shorten it"
            )
        return config.target_of(prompt)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: Sampling | None = None,
        max_tokens: int = 128,
        stop: str | Sequence[str] = (),
        stop_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        on_finish: Callable[[int], None] | None = None,
        tenant: str = "",
    ) -> list[Output]:
        """Generate for one prompt or many, batched.

        Args:
            prompts: text, a chat (list of `{"role", "content"}`), a list of ids, or a list of any of these.
            sampling: how tokens are chosen; greedy by default.
            max_tokens: most tokens per output.
            stop, stop_ids: strings and ids that end an output; one string may stand alone.
            ignore_eos: keep going past the model's EOS.
            on_finish: called with the number of tokens of each sequence that finishes (progress).
            tenant: on whose behalf; see `Request`.

        Returns:
            One output per prompt, in their order.
        """
        requests = [self.request(prompt, sampling, max_tokens, stop, stop_ids, ignore_eos, tenant=tenant) for prompt in as_list(prompts)]
        groups: list[list[Running]] = []
        try:
            with self._lock:  # inboxes stand before anybody else may step, and a refused request takes back those before it
                for request in requests:
                    groups.append(self.engine.submit(request))
                    self._inbox.update({member.uid: deque() for member in groups[-1]})
                self.ledger.reset_peaks()
            members = [member for group in groups for member in group]
            logs: dict[int, list[TokenLogprob]] = {member.uid: [] for member in members}
            for member in members:
                for emission in self._follow(member):
                    logs[member.uid].extend(emission.logprobs)
                if on_finish is not None:
                    on_finish(len(member.output))
        finally:
            self._abandon([member for group in groups for member in group])
        return [self._group_output(group, logs) for group in groups]

    def stream(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        max_tokens: int = 128,
        stop: str | Sequence[str] = (),
        stop_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        tenant: str = "",
    ) -> Iterator[Chunk]:
        """Generate one answer piece by piece. Closing the iterator cancels the request and frees its memory.

        Raises:
            UsageError: if `sampling.n` is not 1, or as `request`.
        """
        request = self.request(prompt, sampling, max_tokens, stop, stop_ids, ignore_eos, tenant=tenant)
        if request.sampling.n != 1:
            raise UsageError(f"streaming yields one answer; sampling option n={request.sampling.n} needs generate()")
        return self._stream(request)

    def _stream(self, request: Request) -> Iterator[Chunk]:
        with self._lock:
            (member,) = self.engine.submit(request, text=True)
            self._inbox[member.uid] = deque()
        logs: list[TokenLogprob] = []
        try:
            for emission in self._follow(member):
                logs.extend(emission.logprobs)
                last = emission.sequence.finished and not self._inbox[member.uid]
                output = self._output(member, logs) if last else None
                yield Chunk(emission.text, emission.tokens, emission.drafted, output, emission.filled)
        finally:
            self._abandon([member])

    async def astream(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        max_tokens: int = 128,
        stop: str | Sequence[str] = (),
        stop_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        tenant: str = "",
    ) -> AsyncIterator[Chunk]:
        """`stream` for `async for`; forwards run in a worker thread, and cancelling the task cancels the request."""
        chunks = self.stream(prompt, sampling, max_tokens, stop, stop_ids, ignore_eos, tenant)
        try:
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                yield chunk
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                await asyncio.shield(asyncio.to_thread(close))

    def close(self) -> None:
        """Cancel everything and forget cached prefixes."""
        with self._lock:
            for active in list(self.engine.scheduler.running):
                self.engine.cancel(active.sequence)
            for sequence in list(self.engine.scheduler.waiting):
                self.engine.cancel(sequence)
            memory = self.runner.memory
            if isinstance(memory, SlotMemory):  # the dense cache keeps no prefixes
                memory.reset()

    def _follow(self, member: Running) -> Iterator[Emission]:
        """Emissions of one sequence; runs steps for everybody while there are none."""
        inbox = self._inbox[member.uid]
        while True:
            while inbox:
                yield inbox.popleft()
            if member.finished:
                return
            with self._lock:
                if not inbox and not member.finished:
                    for emission in self.engine.step():
                        box = self._inbox.get(emission.sequence.uid)
                        if box is not None:
                            box.append(emission)

    def _abandon(self, members: list[Running]) -> None:
        """Forget finished sequences and cancel the others."""
        with self._lock:
            for member in members:
                self._inbox.pop(member.uid, None)
                self.engine.cancel(member)

    def _group_output(self, group: list[Running], logs: dict[int, list[TokenLogprob]]) -> Output:
        outputs = [self._output(member, logs[member.uid]) for member in group]
        if len(outputs) > 1:
            return replace(outputs[0], samples=outputs)
        return outputs[0]

    def _output(self, member: Running, logs: list[TokenLogprob]) -> Output:
        ids = member.output
        return Output(
            text=self._text(member),
            token_ids=ids,
            finish_reason=member.finish_reason or FinishReason.CANCELLED,
            logprobs=logs if member.request.sampling.logprobs is not None else None,
            stats=Stats.of(member, self.ledger.peak_bytes()),
            canvas=member.canvas,
        )

    def _text(self, member: Running) -> str:
        if self.tokenizer is None:
            return ""
        ids = member.output
        if ids and member.finish_reason is FinishReason.STOP and ids[-1] in ends(member.request, self.engine.eos):
            ids.pop()
        text = self.tokenizer.decode(ids)
        cuts = [at for at in (text.find(stop) for stop in member.request.stop) if at >= 0]
        return text[: min(cuts)] if cuts else text
