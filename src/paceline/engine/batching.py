"""Batching strategies by name: ragged slots, or a dense cache with one of several ways to keep its rows in line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from paceline.core.errors import UsageError
from paceline.core.options import read_options, split_options
from paceline.drafting.base import Drafter
from paceline.engine.loop import Engine, EngineConfig
from paceline.engine.prompts import Tokenizer
from paceline.engine.rectangle import DenseRunner
from paceline.engine.runner import Runner, make_runner
from paceline.memory.ledger import Ledger
from paceline.memory.slots import KVLayout
from paceline.models.decoder import Decoder
from paceline.scheduling.continuous import Former, Scheduler, SchedulerConfig
from paceline.scheduling.dense.alignment import Alignment, Gaps, LeftPadded
from paceline.scheduling.dense.cuts import CutVerifier
from paceline.scheduling.dense.fixed import FixedBatch
from paceline.scheduling.dense.memory import DenseMemory
from paceline.scheduling.dense.options import DenseOptions, GapOptions, PoolOptions
from paceline.scheduling.dense.pool import SequencePool


@dataclass(frozen=True, slots=True)
class Strategy:
    """A way to put sequences into one forward.

    Args:
        name: as in `batching=`.
        summary: one line.
        options: dataclass of its options.
        alignment: where rows stand, given the options; `None` for ragged slots.
        former: who shares a forward, given the options.
        common: whether all sequences of a step commit equally many tokens.
    """

    name: str
    summary: str
    options: type[Any]
    alignment: Callable[[Any], Alignment] | None
    former: Callable[[Any], Former]
    common: bool = False


@dataclass(frozen=True, slots=True)
class RaggedOptions:
    """No options."""


def _fixed(options: DenseOptions) -> Former:
    return FixedBatch


def _pool(options: PoolOptions) -> Former:
    return partial(SequencePool, options=options)


def _scheduler(options: RaggedOptions) -> Former:
    return Scheduler


def _left_padded(options: DenseOptions) -> Alignment:
    return LeftPadded()


def _gaps(options: GapOptions) -> Alignment:
    return Gaps(options.waste)


STRATEGIES: tuple[Strategy, ...] = (
    Strategy("ragged", "flat rows over token slots: nothing is padded or realigned", RaggedOptions, None, _scheduler),
    Strategy("eqspec", "dense rectangle, realigned after every step", DenseOptions, _left_padded, _fixed),
    Strategy("exspec", "dense rectangle of sequences of equal length, chosen from a pool", PoolOptions, _left_padded, _pool),
    Strategy("rollback", "dense rectangle; all rows keep what the worst one keeps", DenseOptions, _left_padded, _fixed, common=True),
    Strategy("gap", "dense rectangle; rejected tokens stay, masked", GapOptions, _gaps, _fixed),
)


@dataclass(frozen=True, slots=True)
class Batching:
    """A strategy with its options; makes runners and the engine that go with it.

    Args:
        strategy: row of `STRATEGIES`.
        options: of its options type.
    """

    strategy: Strategy
    options: Any

    @property
    def dense(self) -> bool:
        return self.strategy.alignment is not None

    def sequences(self, most: int) -> int:
        """Sequences under way at once, given the user's limit."""
        if isinstance(self.options, PoolOptions):
            return min(most, self.options.active)
        return min(most, self.options.batch) if isinstance(self.options, DenseOptions) else most

    def runner(self, decoder: Decoder, *, slots: int, ledger: Ledger, category: str = "kv", **ragged: Any) -> Runner:
        """A runner with a fresh memory of this strategy's kind.

        Args:
            ragged: options of `make_runner` that only slot memory has; a dense cache ignores them.
        """
        if self.strategy.alignment is None:
            return make_runner(decoder, slots=slots, ledger=ledger, category=category, **ragged)
        shapes = tuple((spec.mixer.kv_heads, spec.mixer.head_dim) for spec in decoder.config.layers)
        layout = KVLayout(layers=shapes, dtype=decoder.dtype, device=decoder.device)
        return DenseRunner(decoder, DenseMemory(layout, slots, self.strategy.alignment(self.options), ledger, category))

    def engine(self, runner: Runner, drafter: Drafter, tokenizer: Tokenizer | None, config: EngineConfig) -> Engine:
        """The loop, with this strategy forming batches and, where it cuts, judging."""
        if not self.dense:
            return Engine(runner, drafter, tokenizer, config)
        # How far rows get must not change what they say: with other rows cutting them short, only coupled samples stay the same.
        coupled = config.coupled or self.strategy.common
        verifier = CutVerifier(coupled, common=self.strategy.common, bonus=not self.options.reference_bonus)
        return Engine(runner, drafter, tokenizer, config, self.strategy.former(self.options), verifier)

    def scheduler(self, max_sequences: int, max_rows: int) -> SchedulerConfig:
        """Limits of a step."""
        return SchedulerConfig(self.sequences(max_sequences), max_rows)


def parse_batching(text: str) -> Batching:
    """`NAME[:key=value,...]`, as in `exspec:batch=8,window=32`.

    Raises:
        UsageError: for an unknown strategy or option, or a value it cannot have.
    """
    name, given = split_options(text, "batching")
    strategy = next((row for row in STRATEGIES if row.name == name), None)
    if strategy is None:
        raise UsageError(f"unknown batching {name!r}; known: {', '.join(row.name for row in STRATEGIES)}")
    return Batching(strategy, read_options(strategy.options, given, f"batching {name!r}"))
