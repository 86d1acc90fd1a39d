"""What goes wrong in published batch speculation, on purpose: bugs of reference implementations as parts that fit a dense engine.

Each breaks the outputs of some rows while text stays fluent (arXiv 2510.22876, sec. 3 and table 2); a comparison with plain decoding must
notice every one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from torch import Tensor

from paceline.bench.audit.margins import PlainPath
from paceline.core.batch import Segment
from paceline.core.request import Sequence as Running
from paceline.core.tree import ROOT, TokenTree
from paceline.core.verdict import Verdict
from paceline.engine.llm import LLM
from paceline.engine.rectangle import DenseRunner
from paceline.memory.runs import Run
from paceline.models.decoder import Decoder
from paceline.scheduling.dense.memory import DenseMemory
from paceline.scheduling.dense.row import DenseRow
from paceline.verification.verifier import Verifier


class DraftBonus(Verifier):
    """Behind a fully accepted draft the bonus token is the draft model's own (DSD).

    Args:
        draft: the draft model.
    """

    def __init__(self, draft: Decoder) -> None:
        super().__init__()
        self._path = PlainPath(draft, None)

    def judge(self, sequences: Many[Running], trees: Many[TokenTree], logits: Float[Tensor, "nodes vocabulary"]) -> list[Verdict]:
        verdicts = super().judge(sequences, trees, logits)
        return [self._with_bonus(*each) for each in zip(sequences, trees, verdicts, strict=True)]

    def _with_bonus(self, sequence: Running, tree: TokenTree, verdict: Verdict) -> Verdict:
        last = verdict.accepted[-1] if verdict.accepted else ROOT
        if last == ROOT or last in tree.parent:
            return verdict
        text = [*sequence.tokens, *verdict.tokens[:-1]]
        return replace(verdict, tokens=(*verdict.tokens[:-1], int(self._path.all_logits(text)[-1].argmax())))


class StalePositions(DenseRunner):
    """Positions are taken from columns, as a model does that is not told them: wrong for keys that were realigned since."""

    def _positions(self, positions: Sequence[int], row: DenseRow, columns: Run) -> Sequence[int]:
        return range(*columns)


class UnmovedCache(DenseRunner):
    """Tokens, masks and positions are realigned, keys and values are not."""

    def _arrange(self, rows: Sequence[DenseRow], block: int) -> int:
        before = [pool.clone() for pool in (*self.dense.keys, *self.dense.values)]
        end = super()._arrange(rows, block)
        for pool, old in zip((*self.dense.keys, *self.dense.values), before, strict=True):
            if pool.shape == old.shape:
                pool.copy_(old)
        return end


class ZeroedSlots(DenseRunner):
    """Padding and rejected columns are set to zero instead of masked: a zero key still has weight in a softmax."""

    def _visible(self, segment: Segment, row: DenseRow, columns: Run, first: int, width: int) -> npt.NDArray[np.bool_]:
        visible = super()._visible(segment, row, columns, first, width)
        low, high = columns
        empty = np.ones(low, dtype=np.bool_)
        for start, stop in row.columns:
            empty[start:stop] = False
        base = self.dense.base(row.index or 0)
        for pool in (*self.dense.keys, *self.dense.values):
            pool[base : base + low][empty] = 0
        visible[low - first : high - first, :low] = True
        return visible


class KeptMasks(DenseRunner):
    """The mask of the round before is lengthened instead of made anew: what was rejected since stays visible."""

    def __init__(self, decoder: Decoder, memory: DenseMemory) -> None:
        super().__init__(decoder, memory)
        self._seen: dict[DenseRow, npt.NDArray[np.bool_]] = {}

    def _visible(self, segment: Segment, row: DenseRow, columns: Run, first: int, width: int) -> npt.NDArray[np.bool_]:
        visible = super()._visible(segment, row, columns, first, width)
        own = visible[columns[0] - first : columns[1] - first]
        kept = self._seen.get(row, own[-1])[: columns[0]]
        own[:, : len(kept)] = kept
        self._seen[row] = own[-1].copy()
        return visible


class PaddingAsText(DenseRunner):
    """Rows are padded behind what they accepted and the padding stays: rejected tokens remain visible and count as positions (BSP)."""

    def _positions(self, positions: Sequence[int], row: DenseRow, columns: Run) -> Sequence[int]:
        start = row.columns[0][0]
        return range(columns[0] - start, columns[1] - start)

    def _visible(self, segment: Segment, row: DenseRow, columns: Run, first: int, width: int) -> npt.NDArray[np.bool_]:
        visible = super()._visible(segment, row, columns, first, width)
        low, high = columns
        visible[low - first : high - first, row.columns[0][0] : low] = True
        return visible


@dataclass(frozen=True, slots=True)
class DenseFault:
    """A bug and where it lives.

    Args:
        name: what is done wrong.
        batching: the strategy it is a bug of.
        build: puts it into an engine, given the draft model's weights.
    """

    name: str
    batching: str
    build: Callable[[LLM, Decoder], None]


def _runner(kind: type[DenseRunner]) -> Callable[[LLM, Decoder], None]:
    def build(llm: LLM, draft: Decoder) -> None:
        assert isinstance(llm.engine.runner, DenseRunner)
        llm.engine.runner = kind(llm.engine.runner.decoder, llm.engine.runner.dense)

    return build


def _draft_bonus(llm: LLM, draft: Decoder) -> None:
    llm.engine.verifier = DraftBonus(draft)


FAULTS: tuple[DenseFault, ...] = (
    DenseFault("bonus token from the draft", "eqspec", _draft_bonus),
    DenseFault("stale positions", "eqspec", _runner(StalePositions)),
    DenseFault("cache not realigned", "eqspec", _runner(UnmovedCache)),
    DenseFault("slots zeroed, not masked", "eqspec", _runner(ZeroedSlots)),
    DenseFault("masks kept from the round before", "gap", _runner(KeptMasks)),
    DenseFault("padding appended, never removed", "gap", _runner(PaddingAsText)),
)
