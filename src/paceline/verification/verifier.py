"""The judge of every step: picks the rule for each sequence and turns target logits into verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from itertools import accumulate
from types import MappingProxyType
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.core.errors import UsageError
from paceline.core.request import Sequence
from paceline.core.sampling import Sampling
from paceline.core.transform import INVALID, Likeliest, argmax_ids, likeliest
from paceline.core.tree import ROOT, TokenTree
from paceline.core.verdict import TokenLogprob, Verdict
from paceline.kernels.judging import Walked
from paceline.verification.compiled import path, walked
from paceline.verification.logprobs import token_logprobs
from paceline.verification.rejection import Rejection
from paceline.verification.rows import Processors, TreeRows
from paceline.verification.tolerant import tolerated
from paceline.verification.walk import Path, follow, matched

Rule = Literal["auto", "match", "rejection"]
RULES: tuple[Rule, ...] = ("auto", "match", "rejection")


class Verifier:
    """Judges trees. All rules are exact; they differ in how often they accept and in whether samples equal those of plain decoding.

    The one exception is asked for by a tree: greedy sequences whose tree carries a tolerance are judged by it (`tolerant.py`).

    Args:
        rule: for sampling requests (greedy ones always follow the argmax). `match`: sample-and-match, token-identical to plain sampling
            with the same seed. `rejection`: recursive rejection, which accepts more of a *sampled* draft; for trees without a proposal, and
            for nodes that a proposal leaves out, children count as chosen. `auto`: rejection for trees with a proposal, else match.
        coupled: use `match` for everything, so that sampled output can be audited token for token.

    Attributes:
        keeps: how many likeliest tokens of the laws that a step's judging works out are kept until `likeliest` is asked or the next step
            is judged.

    Raises:
        UsageError: for an unknown rule.
    """

    keeps: int = 0
    _likeliest: Mapping[int, Likeliest] = MappingProxyType({})

    def __init__(self, rule: Rule = "auto", coupled: bool = False) -> None:
        if rule not in RULES:
            raise UsageError(f"unknown verification rule {rule!r}; known: {', '.join(RULES)}")
        self.rule = rule
        self.coupled = coupled
        self._processors: Processors = WeakKeyDictionary()

    def judge(self, sequences: Many[Sequence], trees: Many[TokenTree], logits: Float[Tensor, "nodes vocabulary"]) -> list[Verdict]:
        """Decide, for each sequence, which nodes of its tree to keep and which token comes next.

        Nothing that one sequence is given depends on the others. End-of-sequence tokens and id 0 are ordinary tokens here.

        Args:
            sequences: their `tokens` end with the pending token, which is their tree's root.
            trees: one per sequence.
            logits: the target's rows of all trees one after the other, in node order, on any device; not modified.

        Raises:
            PacelineError: if logits are NaN, or a proposal contradicts its tree.
            UsageError: if a `logit_bias` does not fit the vocabulary.
            ValueError: if sequences, trees and logits do not belong together.
        """
        for sequence, tree in zip(sequences, trees, strict=True):
            if tree.token[ROOT] != sequence.tokens[-1]:
                raise ValueError(f"the root of a tree is token {tree.token[ROOT]}, but the pending token is {sequence.tokens[-1]}")
        if sum(map(len, trees)) != len(logits):
            raise ValueError(f"{len(logits)} rows of logits for trees of {sum(map(len, trees))} nodes")
        self._likeliest = {}
        compiled = walked(sequences, trees, logits, self._rejects, self.keeps)
        if not compiled and all(
            _is_plain_greedy(sequence.request.sampling) and tree.tolerance is None for sequence, tree in zip(sequences, trees, strict=True)
        ):
            return self._judge_greedy(sequences, trees, logits)
        return self._judge(sequences, trees, logits, compiled)

    def processed(
        self, sequences: Many[Sequence], trees: Many[TokenTree], logits: Float[Tensor, "nodes vocabulary"]
    ) -> Float[Tensor, "nodes vocabulary"]:
        """Logits of all nodes after bias, penalties and bans: what every law of this step is made from. Arguments as for `judge`.

        Returns:
            The given tensor itself where no sequence asks for processing.
        """
        if all(sequence.request.sampling.plain_logits for sequence in sequences):
            return logits
        with torch.inference_mode():
            return TreeRows(sequences, trees, logits, self._processors).processed(range(len(logits)))

    def likeliest(self) -> Mapping[int, Likeliest]:
        """Of the laws on the accepted paths of the last judging, by row of its logits, the likeliest tokens; handed over once.

        Every law that a sampled token was drawn from or a drafted one was held against is among them; of greedy sequences there are none.
        """
        found, self._likeliest = self._likeliest, {}
        return found

    def _judge_greedy(self, sequences: Many[Sequence], trees: Many[TokenTree], logits: Float[Tensor, "nodes vocabulary"]) -> list[Verdict]:
        """The common case on a device: one argmax over all rows, one transfer, then plain Python."""
        decided = argmax_ids(logits)
        if INVALID in decided:
            TreeRows(sequences, trees, logits, self._processors).checked(decided.index(INVALID), INVALID)
        verdicts, start = [], 0
        for tree in trees:
            verdicts.append(Verdict(*follow(tree, decided, start)))
            start += len(tree)
        return verdicts

    def _judge(
        self, sequences: Many[Sequence], trees: Many[TokenTree], logits: Float[Tensor, "nodes vocabulary"], compiled: Mapping[int, Walked]
    ) -> list[Verdict]:
        paths = {index: path(trees[index], answer) for index, answer in compiled.items()}
        scored = [index for index, sequence in enumerate(sequences) if sequence.request.sampling.logprobs is not None]
        logprobs: Mapping[int, tuple[TokenLogprob, ...]] = {}
        found: dict[int, Likeliest] = {}
        if len(paths) < len(trees) or scored:
            with torch.inference_mode():
                rows = TreeRows(sequences, trees, logits, self._processors, self.keeps > 0)
                others = self._interpreted(rows, [index for index in range(len(trees)) if index not in paths])
                paths.update(others)
                logprobs = self._logprobs(rows, {index: paths[index] for index in scored})
                found = self._kept(rows, others)
        if self.keeps:
            starts = list(accumulate(map(len, trees), initial=0))
            for index, answer in compiled.items():
                found.update((starts[index] + node, likely) for node, likely in answer.likeliest.items())
            self._likeliest = found
        return [Verdict(*paths[index], logprobs.get(index, ())) for index in range(len(trees))]

    def _kept(self, rows: TreeRows, paths: Mapping[int, Path]) -> dict[int, Likeliest]:
        """What is kept of the laws on these paths."""
        wanted = [rows.starts[index] + node for index, (accepted, _) in paths.items() for node in (ROOT, *accepted)] if self.keeps else []
        known = [row for row in wanted if row in rows.laws]
        return dict(zip(known, likeliest([rows.laws[row].float() for row in known], self.keeps), strict=True)) if known else {}

    def _interpreted(self, rows: TreeRows, members: Many[int]) -> dict[int, Path]:
        """Paths of some of the trees by the rules in Python."""
        kinds: dict[bool, list[int]] = {False: [], True: []}
        paths: dict[int, Path] = {}
        for index in members:
            sampling, tree = rows.sequences[index].request.sampling, rows.trees[index]
            if tree.tolerance is not None and sampling.greedy:
                paths[index] = tolerated(rows, index)
            else:
                kinds[self._rejects(sampling, tree)].append(index)
        if kinds[False]:
            paths.update(zip(kinds[False], matched(rows, kinds[False]), strict=True))
        if kinds[True]:
            paths.update(zip(kinds[True], Rejection(rows, kinds[True]).paths(), strict=True))
        return paths

    def _rejects(self, sampling: Sampling, tree: TokenTree) -> bool:
        if sampling.greedy or self.coupled or self.rule == "match":
            return False
        return self.rule == "rejection" or tree.proposal is not None

    @staticmethod
    def _logprobs(rows: TreeRows, paths: dict[int, Path]) -> dict[int, tuple[TokenLogprob, ...]]:
        """Scores of every emitted token of the given paths, in one batch."""
        places: list[int] = []
        tokens: list[int] = []
        alternatives: list[int] = []
        for index, (accepted, emitted) in paths.items():
            places.extend(rows.starts[index] + node for node in (ROOT, *accepted))
            tokens.extend(emitted)
            alternatives.extend([rows.sequences[index].request.sampling.logprobs or 0] * len(emitted))
        if not places:
            return {}
        scored = iter(token_logprobs(rows.logits[torch.tensor(places, device=rows.logits.device)], tokens, alternatives))
        return {index: tuple(next(scored) for _ in emitted) for index, (_, emitted) in paths.items()}


def _is_plain_greedy(sampling: Sampling) -> bool:
    return sampling.temperature == 0.0 and sampling.logprobs is None and sampling.plain_logits
