"""The target's rows of all trees of a step: processed logits, laws and decided tokens of the nodes that a rule asks about."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.core.errors import PacelineError
from paceline.core.request import Sequence
from paceline.core.rng import Purpose, uniform
from paceline.core.sampling import Sampling
from paceline.core.transform import INVALID, argmax_ids, draw, law_of, target_distribution, widen
from paceline.core.tree import TokenTree
from paceline.verification.processors import Processor

Processors = WeakKeyDictionary[Sequence, Processor]

# How many logits to transform at once while walking down a tree on a CPU: at about this many, a call costs as much as its work.
LOGITS_AHEAD = 1 << 14


def judges_all_nodes(device: torch.device) -> bool:
    """Whether to transform every row of a step at once, with one wait, or only rows on and just ahead of the accepted path.

    On a CPU there is nothing to wait for, and work over the vocabulary is what costs.
    """
    return device.type != "cpu"


class TreeRows:
    """Rows `starts[s] + node` of the logits belong to the nodes of tree s.

    Args:
        sequences, trees, logits: what `Verifier.judge` was given.
        processors: what is remembered of sequences between steps; entries are made here and vanish with their sequence.
        keep: whether laws behind decided tokens are kept in `laws` too, where nothing else needs them again.
    """

    def __init__(
        self,
        sequences: Many[Sequence],
        trees: Many[TokenTree],
        logits: Float[Tensor, "nodes vocabulary"],
        processors: Processors,
        keep: bool = False,
    ) -> None:
        self.sequences, self.trees, self.logits, self.keep = sequences, trees, logits, keep
        self.laws: dict[int, Float[Tensor, " vocabulary"]] = {}  # by row, as far as they were worked out
        self.starts: list[int] = []
        self.owner: list[int] = []
        for index, tree in enumerate(trees):
            self.starts.append(len(self.owner))
            self.owner.extend([index] * len(tree))
        self.eager = judges_all_nodes(logits.device)
        self._processor = [self._remembered(sequence, processors) for sequence in sequences]
        self._law = [law_of(sequence.request.sampling) for sequence in sequences]

    def _remembered(self, sequence: Sequence, processors: Processors) -> Processor | None:
        if sequence.request.sampling.plain_logits:
            return None
        processor = processors.get(sequence)
        if processor is None or processor.consumed > len(sequence.tokens):
            processor = Processor(sequence.request.sampling, sequence.prompt_length, self.logits.shape[-1])
            processors[sequence] = processor
        processor.catch_up(sequence.tokens)
        return processor

    def ahead(self, frontier: Mapping[int, int]) -> list[int]:
        """Rows worth deciding together when the walks of some trees have come to these nodes: they and a stretch of first children.

        Args:
            frontier: node by tree.
        """
        if self.eager:
            return [self.starts[tree] + node for tree in frontier for node in range(len(self.trees[tree]))]
        reach = max(1, LOGITS_AHEAD // (self.logits.shape[-1] * max(1, len(frontier))))
        rows: list[int] = []
        for tree, first in frontier.items():
            parents = self.trees[tree].parent
            stop = first + 1
            while stop < len(parents) and stop < first + reach and parents[stop] == stop - 1:
                stop += 1
            rows.extend(range(self.starts[tree] + first, self.starts[tree] + stop))
        return rows

    def node(self, row: int) -> int:
        return row - self.starts[self.owner[row]]

    def position(self, row: int) -> int:
        """Position, in its sequence, of the token decided at the row."""
        owner = self.owner[row]
        return len(self.sequences[owner].tokens) + self.trees[owner].depth[row - self.starts[owner]]

    def uniform(self, row: int, purpose: Purpose, draw: int = 0) -> float:
        """The sequence's number for a decision at the row."""
        return uniform(self.sequences[self.owner[row]].seed, self.position(row), purpose, draw)

    def processed(self, rows: Many[int]) -> Float[Tensor, "rows vocabulary"]:
        """Logits of some rows, grouped by owner, after bias, penalties and bans; at least float32.

        The model's own tensor is never changed.
        """
        first, stop = rows[0], rows[-1] + 1
        together = list(rows) == list(range(first, stop))
        given = self.logits[first:stop] if together else self.logits[torch.tensor(rows, device=self.logits.device)]
        logits = widen(given)
        if together and logits is given and any(self._processor):
            logits = logits.clone()
        start = 0
        while start < len(rows):
            owner = self.owner[rows[start]]
            stop = start + 1
            while stop < len(rows) and self.owner[rows[stop]] == owner:
                stop += 1
            processor = self._processor[owner]
            if processor is not None:
                processor.process(logits[start:stop], self.trees[owner], [self.node(row) for row in rows[start:stop]])
            start = stop
        return logits

    def distribution(self, rows: Many[int]) -> Float[Tensor, "rows vocabulary"]:
        """The law of the token decided at each of the rows; all rows must be of sampling sequences."""
        logits = self.processed(rows)
        groups = self._by_law(rows)
        if len(groups) == 1:
            return target_distribution(logits, self._sampling(rows[0]))
        laws = torch.empty_like(logits)
        for members in groups:
            picked = torch.tensor(members, device=logits.device)
            laws[picked] = target_distribution(logits[picked], self._sampling(rows[members[0]]))
        return laws

    def decide(self, rows: Many[int]) -> list[int]:
        """The token of plain decoding at each of the rows: the argmax, or the sample of the row's own random number.

        Raises:
            PacelineError: if logits are NaN, or leave no distribution.
        """
        logits = self.processed(rows)
        decided = [INVALID] * len(rows)
        groups = self._by_law(rows)
        for members in groups:
            sampling = self._sampling(rows[members[0]])
            part = logits if len(groups) == 1 else logits[torch.tensor(members, device=logits.device)]
            if sampling.greedy:
                tokens = argmax_ids(part)
            else:
                numbers = [self.uniform(rows[member], Purpose.TARGET) for member in members]
                laws = target_distribution(part, sampling)
                tokens = draw(laws, numbers)
                if self.keep:
                    self.laws.update(zip([rows[member] for member in members], laws, strict=True))
            for member, token in zip(members, tokens, strict=True):
                decided[member] = self.checked(rows[member], token)
        return decided

    def checked(self, row: int, token: int) -> int:
        """The token, if the row had one.

        Raises:
            PacelineError: if it is `INVALID`.
        """
        if token == INVALID:
            raise PacelineError(
                f"the model's logits are not finite at position {self.position(row)} of sequence {self.sequences[self.owner[row]].uid}; "
                "check the weights, or load them with dtype=float32"
            )
        return token

    def _sampling(self, row: int) -> Sampling:
        return self.sequences[self.owner[row]].request.sampling

    def _by_law(self, rows: Many[int]) -> list[list[int]]:
        """Places in `rows`, grouped by the law their sequences ask for."""
        groups: dict[tuple[float, ...], list[int]] = {}
        for place, row in enumerate(rows):
            groups.setdefault(self._law[self.owner[row]], []).append(place)
        return list(groups.values())
