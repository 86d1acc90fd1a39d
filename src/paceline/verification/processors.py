"""Logits processing per tree node, with the history that leads to it: bias, penalties, banned n-grams.

Order: logit bias, repetition penalty, frequency and presence penalty, no-repeat n-gram; then temperature, top-k, top-p and min-p
(`paceline.core.transform`). `transformers` applies the steps it has in this order; vLLM's sampler agrees on bias before repetition before
frequency and presence, and applies min-p before top-k and top-p.

Repetition and n-grams look at prompt and output; frequency and presence at the output only. A node's history is the committed tokens,
then the path from below the root to the node.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from math import inf, isnan

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from paceline.core.errors import UsageError
from paceline.core.sampling import Sampling
from paceline.core.tree import ROOT, TokenTree

Path = tuple[int, ...]


def check_sampling(sampling: Sampling, vocabulary: int) -> None:
    """Reject settings that cannot work with this vocabulary; worth calling when a request arrives.

    Raises:
        UsageError: if `logit_bias` names an id outside the vocabulary, holds NaN or +inf, or forbids every token.
    """
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < vocabulary:
            raise UsageError(f"sampling option logit_bias names token {token}; ids of this model are 0 to {vocabulary - 1}")
        if isnan(bias) or bias == inf:
            raise UsageError(f"sampling option logit_bias[{token}]={bias} must be finite, or -inf to forbid the token")
    if sum(bias == -inf for bias in sampling.logit_bias.values()) == vocabulary:
        raise UsageError("sampling option logit_bias forbids every token; leave at least one")


class Processor:
    """Processes the logits of one sequence, and remembers what its committed tokens contribute.

    Args:
        sampling: of the sequence.
        prompt_length: where the output starts.
        vocabulary: width of the logits. Tokens beyond it (placeholders of images, say) are no candidates and need no penalty.

    Raises:
        UsageError: see `check_sampling`.
    """

    def __init__(self, sampling: Sampling, prompt_length: int, vocabulary: int) -> None:
        check_sampling(sampling, vocabulary)
        self.sampling, self.prompt_length, self.vocabulary = sampling, prompt_length, vocabulary
        self.consumed = 0
        self._counts = _Counts()
        self._ngrams = _NGrams(sampling.no_repeat_ngram)
        self._bias_ids = torch.tensor(list(sampling.logit_bias), dtype=torch.int64)
        self._bias = torch.tensor(list(sampling.logit_bias.values()), dtype=torch.float64)

    def catch_up(self, tokens: Many[int]) -> None:
        """Take in the tokens committed since the last call. `tokens` is the whole sequence, up to its pending token."""
        for index in range(self.consumed, len(tokens)):
            if 0 <= tokens[index] < self.vocabulary:
                self._counts.add(tokens[index], is_output=index >= self.prompt_length)
        self._ngrams.extend(tokens, self.consumed)
        self.consumed = len(tokens)

    def process(self, logits: Float[Tensor, "nodes vocabulary"], tree: TokenTree, nodes: Many[int]) -> None:
        """Process, in place, the rows of some nodes of a tree rooted at the pending token.

        Args:
            logits: one row per entry of `nodes`, at least float32.
            tree: judged behind the tokens that `catch_up` has seen.
            nodes: which nodes the rows belong to.
        """
        if len(self._bias_ids):
            ids, bias = self._bias_ids.to(logits.device), self._bias.to(logits.device, logits.dtype)
            logits.index_add_(1, ids, bias.expand(len(logits), -1))
        if not self.sampling.uses_history:
            return
        paths = _paths(tree, nodes)
        self._penalise(logits, paths)
        if self.sampling.no_repeat_ngram:
            self._ban(logits, paths)

    def _penalise(self, logits: Float[Tensor, "nodes vocabulary"], paths: Many[Path]) -> None:
        """Penalties touch only the columns of tokens in the history, which are few beside the vocabulary."""
        options = self.sampling
        if options.repetition_penalty == 1.0 and options.frequency_penalty == 0.0 and options.presence_penalty == 0.0:
            return
        ids, seen, counts = (torch.from_numpy(part).to(logits.device) for part in self._counts.along(paths, self.vocabulary))
        scores, counts = logits.index_select(1, ids), counts.to(logits.dtype)
        if options.repetition_penalty != 1.0:
            penalty = options.repetition_penalty
            scores = torch.where(seen, torch.where(scores > 0, scores / penalty, scores * penalty), scores)
        if options.frequency_penalty != 0.0:
            scores = scores - options.frequency_penalty * counts
        if options.presence_penalty != 0.0:
            scores = scores - options.presence_penalty * (counts > 0).to(logits.dtype)
        logits.index_copy_(1, ids, scores)

    def _ban(self, logits: Float[Tensor, "nodes vocabulary"], paths: Many[Path]) -> None:
        """Forbid tokens that would complete an n-gram a second time; where that leaves no token at all, the row keeps its scores."""
        pairs = [(row, token) for row, path in enumerate(paths) for token in self._ngrams.banned(path) if 0 <= token < self.vocabulary]
        if not pairs:
            return
        rows, ids = torch.tensor(pairs, device=logits.device).unbind(-1)
        before = logits[rows, ids]
        logits[rows, ids] = -torch.inf
        emptied = logits.amax(-1) == -torch.inf
        logits[rows, ids] = torch.where(emptied[rows], before, -torch.inf)


class _Counts:
    """Which tokens a sequence holds, and how often its output holds each; arrays grow by doubling, so a step costs what it adds."""

    def __init__(self) -> None:
        self.column: dict[int, int] = {}
        self.ids = np.zeros(256, dtype=np.int64)
        self.output = np.zeros(256, dtype=np.float32)

    def add(self, token: int, is_output: bool) -> None:
        column = self.column.setdefault(token, len(self.column))
        if column == len(self.ids):
            self.ids, self.output = np.resize(self.ids, 2 * column), np.concatenate([self.output, np.zeros_like(self.output)])
        self.ids[column] = token
        self.output[column] += is_output

    def along(self, paths: Many[Path], vocabulary: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Distinct tokens of the sequence and the paths; per path, which of them are in its history, and its output counts."""
        known = len(self.column)
        added: dict[int, int] = {}
        for token in {token for path in paths for token in path if 0 <= token < vocabulary and token not in self.column}:
            added[token] = known + len(added)
        ids = np.concatenate([self.ids[:known], np.fromiter(added, dtype=np.int64, count=len(added))])
        counts = np.zeros((len(paths), len(ids)), dtype=np.float32)
        counts[:, :known] = self.output[:known]
        for row, path in zip(counts, paths, strict=True):
            for token in path:
                if 0 <= token < vocabulary:
                    row[self.column[token] if token in self.column else added[token]] += 1
        seen = counts > 0
        seen[:, :known] = True
        return ids, seen, counts


class _NGrams:
    """What followed each (n-1)-gram of a sequence. With n = 0, nothing is kept."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.followers: dict[Path, list[int]] = {}
        self.tail: Path = ()  # the last n-1 committed tokens

    def extend(self, tokens: Many[int], start: int) -> None:
        """Take in `tokens[start:]`."""
        if self.size == 0:
            return
        context = self.size - 1
        for index in range(max(start, context), len(tokens)):
            self.followers.setdefault(tuple(tokens[index - context : index]), []).append(tokens[index])
        self.tail = tuple(tokens[max(0, len(tokens) - context) : len(tokens)])

    def banned(self, path: Path) -> set[int]:
        """Tokens that already followed the last n-1 tokens of the history that ends in `path`."""
        context = self.size - 1
        recent = self.tail + path  # holds every n-gram that ends in the path
        if len(recent) < context:
            return set()
        last = recent[len(recent) - context :]
        banned = set(self.followers.get(last, ()))
        banned.update(recent[end] for end in range(context, len(recent)) if recent[end - context : end] == last)
        return banned


def _paths(tree: TokenTree, nodes: Many[int]) -> list[Path]:
    """Tokens from below the root down to each node; a child extends its parent's path."""
    known: dict[int, Path] = {ROOT: ()}
    for node in nodes:
        missing = []
        while node not in known:
            missing.append(node)
            node = tree.parent[node]
        for below in reversed(missing):
            known[below] = (*known[tree.parent[below]], tree.token[below])
    return [known[node] for node in nodes]
