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
from paceline.drafting.lookahead.select import Picked, best_branch, best_first, mixed, side_by_side
from paceline.drafting.lookahead.trie import SURE, Forest, Place, segments
from paceline.drafting.rest import Questions, Rest
from paceline.planning.cost import ForwardCost, StepWatch

NOTHING = Picked()
DOUBT = 16  # questions in vain after which likely candidates are sent although they seem too dear: the cost of rows may be misjudged
LIKELY = 0.5
PIECE = 8  # positions that are noted together: each step's few by themselves would cost more than they bring
BACKLOG = 16  # chunks of noted positions that wait until they are asked for
RECENT = 0  # stands for the length of the query where candidates come from output that is not inserted yet


@dataclass(slots=True)
class Row:
    """One running sequence.

    Args:
        prompt: what followed each token in its prompt; nothing where the prompt is not drafted from.
        inserted: the next position of its text that is to root an output.
        found, query: candidates of the last step, and the length of the suffix they were found by.
        rest, asked: when candidates are looked for, and whether they were in this step.
        vain: questions since one of them brought an accepted token.
    """

    prompt: Forest | None
    inserted: int
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
                self._preempted[sequence] = row.inserted
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
        for segment in segments(tokens, self.eos):
            store.add(segment, 0, len(segment), self._stops)

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
        """Write all scopes to a file that the option `forest` reads. Everything noted is inserted, and trees are squeezed, first.

        Raises:
            UsageError: if it cannot be written.
        """
        for store in self.stores.values():
            store.settle()
            if isinstance(store, Forest):
                store.squeeze(self.config.max_output_node)
        write_forest(path, self.stores, self.vocabulary)

    def _learn(self, sequence: Sequence, row: Row, verdict: Verdict) -> None:
        """Learn which candidates were right, and note new output. It is inserted when its tree is asked, so that what nobody asks for costs
        little; only a long backlog is worked off before, a bounded part of it with every step."""
        row.vain = 0 if verdict.accepted else row.vain
        if row.found:
            self.record.observe(row.found, row.query, verdict.tokens)
            row.found = NOTHING
        store = self._store(sequence)
        stop = len(sequence.tokens) - self.config.stored_length
        if stop - row.inserted >= PIECE:
            self._note(store, sequence, row, stop)
        if store.waiting > BACKLOG * self.config.chunk:
            store.settle(self.config.chunk)

    def _find(self, sequence: Sequence, row: Row, nodes: int, depth: int) -> tuple[Picked, int]:
        """Candidates below the pending token in pre-order, and the length of the suffix they follow."""
        if nodes < 1 or depth < 1:
            return NOTHING, 0
        store = self._store(sequence)
        if isinstance(store, BranchTable):
            if len(sequence.tokens) < 2:
                return NOTHING, 0
            branches = 1 if self.config.shape == "one" else max(1, -(-nodes // store.length))
            first, second = sequence.tokens[-2:]
            return store.draft(first, second, branches, nodes, depth), min(2, self.config.max_query)
        best, size = NOTHING, 0
        longest = min(self.config.max_query, len(sequence.tokens))
        for length in range(longest, 0, -1):
            query = sequence.tokens[-length:]
            if length == 1 and query[0] in self._stops:
                break
            prompt = row.prompt.find(query, self.config.chunk) if row.prompt is not None else None
            outputs = store.find(query, self.config.chunk) if self.config.source != "input" else None
            picked = self._pick(prompt, outputs, nodes, depth)
            if len(picked) > len(best):
                best, size = picked, length
            if len(best) >= min(self.config.branch_length, nodes, depth):
                break
        if size < longest and self.config.source != "input":
            recent = self._recent(sequence, row, min(nodes, depth))
            if recent:
                return recent, RECENT
        return best, size

    def _recent(self, sequence: Sequence, row: Row, length: int) -> Picked:
        """What followed the last two tokens in output too young to be inserted, taken to repeat with that period."""
        tokens = sequence.tokens
        end = len(tokens) - 1
        for at in range(end - 1, max(row.inserted, 0), -1):
            if tokens[at] == tokens[end] and tokens[at - 1] == tokens[end - 1]:
                copied = [tokens[at + 1 + step % (end - at)] for step in range(length)]
                stop = next((step for step, token in enumerate(copied) if token in self.eos), length)
                return Picked(copied[:stop], list(range(-1, stop - 1)), [SURE] * stop)
        return NOTHING

    def _pick(self, prompt: Place | None, outputs: Place | None, nodes: int, depth: int) -> Picked:
        """The best candidates below the place that a query led to in each source."""
        config = self.config
        only = prompt or outputs
        if only is None:
            return NOTHING
        if config.shape == "one":
            first = prompt if prompt is not None and prompt.ranking() else outputs or only  # as in a tree, the prompt ranks first
            return best_branch(first, min(nodes, depth))
        if prompt is None or outputs is None:
            return best_first(only.ranking(), nodes, depth).picked()
        reserve = (int(config.reserve_input * nodes), int(config.reserve_output * nodes))
        return mixed(prompt, outputs, config.output_weight, nodes, depth, reserve)

    def _row(self, sequence: Sequence) -> Row:
        row = self._rows.get(sequence.uid)
        if row is None:
            prompt = None
            if self.config.source != "output" and self.config.store == "trie":
                prompt = Forest(self.config.stored_length, self.config.max_node)
                for segment in segments(sequence.request.prompt, self.eos):
                    prompt.add(segment, 0, len(segment))
            # The last prompt token roots an output: what an answer begins with is learned too, and nothing else of the prompt.
            row = Row(prompt, self._preempted.pop(sequence, sequence.prompt_length - 1))
            self._rows[sequence.uid] = row
        return row

    def _note(self, store: Store, sequence: Sequence, row: Row, stop: int) -> None:
        """Hand the positions before `stop` to the store, with all the text there is behind them, cut at end-of-sequence ids."""
        start = row.inserted
        if stop <= start or self.config.source == "input":
            return
        row.inserted = stop
        lead = 1 if start > 0 and self.config.store == "table" else 0  # pairs need the token before
        text = sequence.tokens[start - lead : stop + self.config.stored_length]
        at = start - lead
        for segment in _placed(text, self.eos):
            first = segment[0] + at
            begin = start - first if start > first else 0
            store.add(segment[1], begin, stop - first, self._stops)
            if row.prompt is not None:
                row.prompt.add(segment[1], begin, stop - first)

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


def _placed(text: Many[int], eos: frozenset[int]) -> list[tuple[int, tuple[int, ...]]]:
    """The stretches between end-of-sequence ids with the index each begins at."""
    if eos.isdisjoint(text):
        return [(0, tuple(text))]
    found: list[tuple[int, tuple[int, ...]]] = []
    begin = 0
    for at in (*(at for at, token in enumerate(text) if token in eos), len(text)):
        if at > begin:
            found.append((begin, tuple(text[begin:at])))
        begin = at + 1
    return found
