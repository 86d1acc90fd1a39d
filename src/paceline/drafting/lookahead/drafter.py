"""The drafter: looks the last tokens up in the request's prompt and in the outputs of its scope, and learns from every output."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakKeyDictionary

from paceline.core.batch import NO_TAPS, TapRequest, Taps
from paceline.core.request import Sequence
from paceline.core.tree import TokenTree
from paceline.core.verdict import Verdict
from paceline.drafting.base import DraftContext, DraftLimits
from paceline.drafting.lookahead.branch_table import BranchTable
from paceline.drafting.lookahead.budget import Record, critical_length, worthwhile
from paceline.drafting.lookahead.config import LookaheadConfig
from paceline.drafting.lookahead.forest_file import Store, read_forest, write_forest
from paceline.drafting.lookahead.select import Picked, Selection, repeated, side_by_side
from paceline.drafting.lookahead.trie import Forest, segments
from paceline.drafting.rest import Questions, Rest
from paceline.planning.cost import ForwardCost, StepWatch

NOTHING = Picked()
DOUBT = 16  # questions in vain after which likely candidates are sent although they seem too dear: the cost of rows may be misjudged
LIKELY = 0.5
PIECE = 8  # positions that are noted together: each step's few by themselves would cost more than they bring
RECENT = 0  # stands for the length of the query where candidates come from output that is not noted yet


@dataclass(slots=True)
class Row:
    """One running sequence.

    Args:
        prompt: what followed each token in its prompt; nothing where the prompt is not drafted from.
        noted: the next position of its text that is to root an output.
        found, query: candidates of the last step, and the length of the suffix they were found by.
        rest, asked: when candidates are looked for, and whether they were in this step.
        vain: questions since one of them brought an accepted token.
    """

    prompt: Forest | None
    noted: int
    found: Picked = field(default_factory=Picked)
    query: int = 0
    rest: Rest = field(default_factory=Rest)
    asked: bool = False
    vain: int = 0


class Lookahead:
    """Drafts many branches from a trie of the prompt and of everything answered before; deterministic, so every verification is exact.

    Zhao et al. 2023, "Lookahead: An Inference Acceleration Framework for Large Language Model with Lossless Generation Accuracy",
    arXiv 2312.12728. Outputs are learned per scope (`Request.tenant`): no scope drafts from another's.

    Args:
        config: options.
        context: what the house offers.
        rests: with a measured budget, whether sequences are looked up less often while nothing is accepted; else others see to it.
    """

    Config = LookaheadConfig
    taps: TapRequest = NO_TAPS

    def __init__(self, config: LookaheadConfig, context: DraftContext, rests: bool = True) -> None:
        self.rests = rests and config.budget == "measured"
        self.config, self.vocabulary, self.eos = config, context.vocabulary, context.eos
        self.cost = ForwardCost(context.probe)
        self.record = Record(config.max_query)
        self.stores: dict[str, Store] = {}
        self._stops = config.stops
        self._select = Selection(config.output_weight, config.reserve_input, config.reserve_output, config.shape == "one")
        self._shares = config.source != "input"  # whether outputs are drafted from
        self._stored = config.stored_length
        self._rows: dict[int, Row] = {}
        self._watch = StepWatch(self.cost)
        self._questions = Questions()
        self._idle = False  # nobody was looked up in this step
        self._preempted: WeakKeyDictionary[Sequence, int] = WeakKeyDictionary()
        if config.forest:
            self.load(Path(config.forest))
        if config.budget != "fixed":
            self.cost(1)  # probe while loading, not inside the first request

    @classmethod
    def build(cls, config: LookaheadConfig, context: DraftContext) -> Lookahead:
        """A drafter for this context.

        Raises:
            UsageError: if the forest file cannot be used.
        """
        return cls(config, context)

    def propose(self, sequences: Many[Sequence], limits: Many[DraftLimits]) -> list[TokenTree]:
        """What earlier text says may come next. The sequences share `decoding_length`."""
        self._questions.begin()
        rows = [self._row(sequence) for sequence in sequences]
        for row in rows:
            row.asked = not self.rests or row.rest.asks()
        asking = [at for at, row in enumerate(rows) if row.asked]
        self._idle = not asking
        if self._idle:
            return [TokenTree.chain(sequence.tokens[-1]) for sequence in sequences]
        found = [NOTHING] * len(rows)
        shared = self.config.decoding_length
        if self.config.budget == "critical":
            shared = critical_length(self.cost, len(sequences), shared)
        nodes = shared // len(sequences) - 1
        for at in asking:
            row, limit = rows[at], limits[at]
            row.vain += 1
            depth = min(self.config.branch_length, limit.depth)
            found[at], row.query = self._find(sequences[at], row, min(nodes, limit.nodes), depth)
            row.found = found[at]
        if self.config.budget == "measured" and any(found):
            reaches = [self.record.reaches(picked, row.query) for row, picked in zip(rows, found, strict=True)]
            keep = worthwhile(reaches, len(sequences), self.cost)
            for at, row in enumerate(rows):
                if row.vain % DOUBT == 0 and not any(keep[at]):
                    keep[at] = [chance >= LIKELY for chance in reaches[at]]
            found = [picked.kept(marks) for picked, marks in zip(found, keep, strict=True)]
        if self.config.shape == "par":
            found = [side_by_side(picked, len(picked)) for picked in found]
        trees = [picked.tree(sequence.tokens[-1]) for sequence, picked in zip(sequences, found, strict=True)]
        self._watch.begin(sequences, trees)
        self._questions.drafted()
        return trees

    def observe(self, sequences: Many[Sequence], trees: Many[TokenTree], verdicts: Many[Verdict], taps: Taps) -> None:
        """Learn what the step cost and which candidates were right, and note new output."""
        if self._idle:
            return
        self._questions.judged()
        known = [
            (sequence, row, verdict) for sequence, verdict in zip(sequences, verdicts, strict=True) if (row := self._rows.get(sequence.uid))
        ]
        asked = [each for each in known if each[1].asked]
        if asked and self.config.budget != "fixed":
            self._watch.end(trees)
        for sequence, row, verdict in asked:
            self._learn(sequence, row, verdict)
        if not self.rests:
            return
        # A step is worth a token to each sequence: what a question cost is weighed against its sequence's part of the step.
        cost = self._questions.end()[1] * len(known) / max(1, len(asked))
        for _, row, verdict in asked:
            row.rest.note(cost, len(verdict.accepted))

    def release(self, sequence: Sequence) -> None:
        """Forget the prompt; keep the output, its end with shorter continuations. A preempted sequence goes on later where it stopped."""
        row = self._rows.pop(sequence.uid, None)
        if not sequence.finished:
            if row is not None:
                self._preempted[sequence] = row.noted
            return
        if row is None:  # others drafted for it; its answer is learned all the same
            row = Row(None, self._preempted.pop(sequence, sequence.prompt_length - 1))
        store, row.prompt = self._store(sequence), None  # nobody drafts from the prompt again
        self._note(store, sequence, row, len(sequence.tokens))
        if isinstance(store, Forest) and len(store.changed) >= self.config.squeeze_after:
            store.squeeze(self.config.max_output_node)

    def memory_bytes(self) -> int:
        """An estimate of what tries and tables take."""
        prompts = sum(row.prompt.memory_bytes() for row in self._rows.values() if row.prompt is not None)
        return prompts + sum(store.memory_bytes() for store in self.stores.values())

    def learn(self, tokens: Many[int], scope: str = "") -> None:
        """Take a text in as if it had been answered before (warm-up)."""
        store = self._scoped(scope or self.config.scope)
        for _, segment in segments(tokens, self.eos):
            _add(store, segment, 0, len(segment), self._stops)

    def forget(self) -> None:
        """Forget all outputs but those of the option `forest`, and how often candidates were right. Only while nothing runs."""
        self.stores = {}
        self.record = Record(self.config.max_query)
        if self.config.forest:
            self.load(Path(self.config.forest))

    def load(self, path: Path) -> None:
        """Take over the scopes of a file written by `save`; a scope that both have is the file's.

        Raises:
            UsageError: if the file cannot be used.
        """
        self.stores.update(read_forest(path, self._new_store, self.vocabulary))

    def save(self, path: Path) -> None:
        """Write all scopes to a file that the option `forest` reads. Trees are squeezed first.

        Raises:
            UsageError: if it cannot be written.
        """
        for store in self.stores.values():
            if isinstance(store, Forest):
                store.squeeze(self.config.max_output_node)
        write_forest(path, self.stores, self.vocabulary)

    def _learn(self, sequence: Sequence, row: Row, verdict: Verdict) -> None:
        """Learn which candidates were right, and note new output."""
        row.vain = 0 if verdict.accepted else row.vain
        if row.found:
            self.record.observe(row.found, row.query, verdict.tokens)
            row.found = NOTHING
        stop = len(sequence.tokens) - self._stored
        if stop - row.noted >= PIECE:
            self._note(self._store(sequence), sequence, row, stop)

    def _find(self, sequence: Sequence, row: Row, nodes: int, depth: int) -> tuple[Picked, int]:
        """Candidates below the pending token in pre-order, and the length of the suffix they follow."""
        if nodes < 1 or depth < 1:
            return NOTHING, 0
        config, tokens = self.config, sequence.tokens
        store = self._store(sequence)
        if isinstance(store, BranchTable):
            if len(tokens) < 2:
                return NOTHING, 0
            branches = 1 if config.shape == "one" else max(1, -(-nodes // store.length))
            return store.draft(tokens[-2], tokens[-1], branches, nodes, depth), min(2, config.max_query)
        outputs = store if self._shares else None
        best, size = NOTHING, 0
        suffix = tokens[-config.max_query :]
        longest, enough = len(suffix), min(config.branch_length, nodes, depth)
        for length in range(longest, 0, -1):
            if length == 1 and suffix[-1] in self._stops:
                break
            picked = self._select(suffix[longest - length :], row.prompt, outputs, nodes, depth)
            if len(picked) > len(best):
                best, size = picked, length
            if len(best) >= enough:
                break
        if size < longest and self._shares:
            recent = repeated(tokens, max(row.noted, 0), min(nodes, depth), self.eos)
            if recent:
                return recent, RECENT
        return best, size

    def _row(self, sequence: Sequence) -> Row:
        row = self._rows.get(sequence.uid)
        if row is None:
            prompt = None
            if self.config.source != "output" and self.config.store == "trie":
                prompt = Forest(self.config.stored_length, self.config.max_node)
                for _, segment in segments(sequence.request.prompt, self.eos):
                    prompt.add(segment, 0, len(segment))
            # The last prompt token roots an output: what an answer begins with is learned too, and nothing else of the prompt.
            row = Row(prompt, self._preempted.pop(sequence, sequence.prompt_length - 1))
            self._rows[sequence.uid] = row
        return row

    def _note(self, store: Store, sequence: Sequence, row: Row, stop: int) -> None:
        """Hand the positions before `stop` to the store, with all the text there is behind them, cut at end-of-sequence ids."""
        start = row.noted
        if stop <= start or not self._shares:
            return
        row.noted = stop
        lead = 1 if start > 0 and self.config.store == "table" else 0  # pairs need the token before
        text = sequence.tokens[start - lead : stop + self.config.stored_length]
        for index, segment in segments(text, self.eos):
            first = index + start - lead
            begin = start - first if start > first else 0
            _add(store, segment, begin, stop - first, self._stops)
            if row.prompt is not None:
                row.prompt.add(segment, begin, stop - first)

    def _store(self, sequence: Sequence) -> Store:
        return self._scoped(sequence.request.tenant or self.config.scope)

    def _scoped(self, scope: str) -> Store:
        """The scope's outputs, now the most recently used."""
        store = self.stores.pop(scope, None)
        if store is None:
            store = self._new_store()
            while len(self.stores) >= self.config.max_scopes:
                del self.stores[next(iter(self.stores))]
        self.stores[scope] = store
        return store

    def _new_store(self) -> Store:
        config = self.config
        if config.store == "trie":
            return Forest(config.stored_length)
        branches = max(1, config.decoding_length // max(1, config.branch_length))
        return BranchTable(self.vocabulary, config.branch_length, branches, config.table_bytes)


def _add(store: Store, segment: tuple[int, ...], start: int, stop: int, skip: frozenset[int]) -> None:
    """Take the positions `start..stop` of a segment in at once; a table would keep them waiting."""
    store.add(segment, start, stop, skip)
    if isinstance(store, BranchTable):
        store.settle()
