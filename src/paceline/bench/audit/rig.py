"""Engines for the audit: all on one set of weights, with parts replaced where a check listens in or a control breaks something."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from paceline.bench.report import public_name
from paceline.core.errors import UsageError
from paceline.core.sampling import Sampling
from paceline.denoising.base import canvases
from paceline.drafting.base import Drafter
from paceline.engine.llm import LLM
from paceline.engine.load import load
from paceline.engine.loop import Engine, EngineConfig
from paceline.engine.output import Output
from paceline.engine.runner import Runner, make_runner
from paceline.memory.ledger import Ledger
from paceline.models.nat import NatDrafter
from paceline.scheduling.continuous import SchedulerConfig

Prompts = Sequence[tuple[int, ...]]
SPARE = 128  # slots beyond prompt and output that a sequence may use for drafts and headroom


@dataclass(frozen=True, slots=True)
class Rig:
    """Weights loaded once, and how to put engines around them.

    Args:
        target: an `LLM` whose weights (and exactness of packing) every engine shares.
        draft: likewise for the draft model, or a draft network that is no decoder, if there is one.
        exact: bit-exact mode for every engine.
        batching: of engines with a method; those of plain decoding and those put together by hand use token slots.
    """

    target: LLM
    draft: LLM | NatDrafter | None = None
    exact: bool = False
    batching: str = "ragged"

    @property
    def subject(self) -> str:
        """The audited model's name, fit for a certificate."""
        return public_name(self.target.name)

    def engine(self, method: str, prompts: Prompts, max_tokens: int, *, coupled: bool = False, prefix_cache: bool = False) -> LLM:
        """An engine with a method, with memory for these prompts at once."""
        draft: dict[str, Any] = {} if self.draft is None else {"draft": self.draft}
        return load(
            self.target,
            method,
            device=self.target.runner.decoder.device,
            exact=self.exact,
            coupled=coupled,
            kv_tokens=slots_for(prompts, max_tokens) * canvases(method),
            max_sequences=len(prompts),
            prefix_cache=prefix_cache,
            batching="ragged" if method == "none" else self.batching,
            **draft,
        )

    def wired(self, drafter: Drafter, prompts: Prompts, max_tokens: int, runner: type[Runner] = Runner) -> LLM:
        """An engine put together by hand, around any drafter and kind of runner."""
        ledger = Ledger()
        slots = slots_for(prompts, max_tokens)
        base = make_runner(self.target.runner.decoder, slots=slots, ledger=ledger, exact=self.target.runner.exact, prefix_cache=False)
        config = EngineConfig(SchedulerConfig(max_sequences=len(prompts)))
        engine = Engine(runner(base.decoder, base.memory, base.exact, base.sources), drafter, self.target.tokenizer, config)
        return LLM(engine, self.target.tokenizer, ledger, self.target.name, "hand-made")

    def draft_runner(self, prompts: Prompts, max_tokens: int) -> Runner:
        """The draft model with a memory of its own.

        Raises:
            UsageError: if there is none.
        """
        if not isinstance(self.draft, LLM):
            raise UsageError("this audit needs a draft model; name one with draft=... (--draft)")
        return make_runner(self.draft.runner.decoder, slots=slots_for(prompts, max_tokens), ledger=Ledger(), prefix_cache=False)


def slots_for(prompts: Prompts, max_tokens: int) -> int:
    """KV slots that hold all prompts and outputs at once, with room for drafts."""
    return sum(len(prompt) + max_tokens + SPARE for prompt in prompts) + SPARE


def decode(
    llm: LLM, prompts: Prompts, sampling: Sampling, max_tokens: int, *, batched: bool, on_output: Callable[[], None] | None = None
) -> list[Output]:
    """Outputs of all prompts, at once or one after the other. End-of-sequence ids do not end them: more tokens, more evidence."""
    told = None if on_output is None else (lambda _: on_output())
    ids = [list(prompt) for prompt in prompts]
    if batched:
        return llm.generate(ids, sampling, max_tokens, ignore_eos=True, on_finish=told)
    return [llm.generate([prompt], sampling, max_tokens, ignore_eos=True, on_finish=told)[0] for prompt in ids]
