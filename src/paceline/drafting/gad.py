"""Generalised aggressive decoding: a non-autoregressive network fills a whole block, the target verifies it as one chain.

Ge et al. 2022 (Lossless Acceleration for Seq2seq Generation with Aggressive Decoding, arXiv 2205.10350) and Xia et al. 2022 (Speculative
Decoding, arXiv 2203.16487). The drafter reads the source and the whole output so far, unshifted, and predicts the next `k` tokens in one
pass; slot j of the draft is judged by row j of the target's forward, whose row 0 is the pending token. Since its attention is
bidirectional nothing of the output can be cached: the cost of a draft grows with the output's length. The encoded source is kept.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.core.batch import NO_TAPS, TapRequest, Taps
from paceline.core.errors import UsageError
from paceline.core.guarantee import Guarantee
from paceline.core.request import Sequence
from paceline.core.tolerance import Tolerance
from paceline.core.transform import INVALID, argmax_ids
from paceline.core.tree import TokenTree
from paceline.core.verdict import Verdict
from paceline.drafting.base import DraftContext, DraftLimits
from paceline.models.nat import NatDrafter, Source, stack


@dataclass(frozen=True, slots=True)
class GadConfig:
    """Options of generalised aggressive decoding.

    Args:
        k: slots filled per draft; best left at what the drafter was trained with.
        beta: accept a drafted token that is among the target's `beta` likeliest; 1 is exact, more is approximate (GAD++).
        tau: and whose logit is at most this far below the likeliest one's; without effect at beta 1.
        confidence: verify only as many slots as the drafter believes to be all right with at least this probability; 0 verifies the whole
            block. Our own option: rows of the target that would be rejected are not free on a CPU.
    """

    k: int = 25
    beta: int = 1
    tau: float = 0.0
    confidence: float = 0.0

    def __post_init__(self) -> None:
        if self.k < 0:
            raise UsageError(f"gad: k={self.k} must be at least 0 (0 never drafts)")
        if not 0 <= self.confidence <= 1:
            raise UsageError(f"gad: confidence={self.confidence:g} must be a probability between 0 (verify everything) and 1")
        Tolerance(self.beta, self.tau)

    @property
    def tolerance(self) -> Tolerance | None:
        """What the trees carry; `None` where the rule is exact matching."""
        return None if self.beta == 1 else Tolerance(self.beta, self.tau)

    @property
    def guarantees(self) -> tuple[Guarantee, Guarantee] | None:
        """What these options promise, greedy and sampling, where it is less than the method's row says."""
        return None if self.beta == 1 else (Guarantee.BOUNDED, Guarantee.DISTRIBUTION_IDENTICAL)

    @property
    def most_draft(self) -> int:
        """Draft nodes per step."""
        return self.k


class Gad:
    """Drafts chains with a non-autoregressive network.

    Sequences whose source or output outgrow the network's positions are decoded plainly.

    Args:
        config: options.
        network: the drafter, in evaluation mode, on the target's device.
        eos: ids after which nothing is drafted.
    """

    Config = GadConfig

    def __init__(self, config: GadConfig, network: NatDrafter, eos: frozenset[int]) -> None:
        self.config, self.network, self.eos = config, network, eos
        self._sources: dict[int, Source] = {}

    @classmethod
    def build(cls, config: GadConfig, context: DraftContext) -> Gad:
        """A drafter over the context's network.

        Raises:
            UsageError: if the user named no such drafter.
        """
        if not isinstance(context.network, NatDrafter):
            raise UsageError("method 'gad' needs a non-autoregressive drafter; name one with draft=... (--draft), such as pocket-edit-nat")
        return cls(config, context.network, context.eos)

    @property
    def taps(self) -> TapRequest:
        """Nothing: the drafter reads tokens."""
        return NO_TAPS

    def propose(self, sequences: Many[Sequence], limits: Many[DraftLimits]) -> list[TokenTree]:
        """One chain per sequence, all filled in one pass of the network."""
        trees = [TokenTree.chain(sequence.tokens[-1]) for sequence in sequences]
        lengths = [min(self.config.k, limit.nodes, limit.depth) for limit in limits]
        asked = [at for at, length in enumerate(lengths) if length > 0 and self._block(sequences[at]) > 0]
        if asked:
            drafts = self._fill([sequences[at] for at in asked])
            for at, draft in zip(asked, drafts, strict=True):
                chain = until(draft[: lengths[at]], self.eos)
                trees[at] = TokenTree.chain(sequences[at].tokens[-1], chain, tolerance=self.config.tolerance)
        return trees

    def observe(self, sequences: Many[Sequence], trees: Many[TokenTree], verdicts: Many[Verdict], taps: Taps) -> None:
        """The next draft reads the output itself."""

    def release(self, sequence: Sequence) -> None:
        self._sources.pop(sequence.uid, None)

    def memory_bytes(self) -> int:
        """Encoded sources."""
        return sum(source.nbytes() for source in self._sources.values())

    def _block(self, sequence: Sequence) -> int:
        """Slots that fit behind the output; 0 where the network cannot read the sequence."""
        positions = self.network.config.positions
        if not 0 < len(sequence.request.source) <= positions:
            return 0
        return max(0, min(self.config.k, positions - len(sequence.output)))

    @torch.inference_mode()
    def _fill(self, sequences: Many[Sequence]) -> list[list[int]]:
        """The likeliest token of every slot, sequence by sequence.

        All of a block's slots are filled even where fewer will be used: attention among slots makes their number part of the question.
        """
        device = self.network.embedding.weight.device
        outputs, blocks = [sequence.output for sequence in sequences], [self._block(sequence) for sequence in sequences]
        ends = [len(output) + block for output, block in zip(outputs, blocks, strict=True)]
        width, mask = max(ends), self.network.config.mask
        ids = torch.tensor([[*output, *[mask] * (width - len(output))] for output in outputs], device=device)
        places = torch.arange(width, device=device)
        known = places < torch.tensor(ends, device=device)[:, None]
        slots = known & (places >= torch.tensor([len(output) for output in outputs], device=device)[:, None])
        source = stack([self._source(sequence, device) for sequence in sequences])
        logits = self.network.logits(self.network(source, ids, slots, known)[slots])
        tokens = argmax_ids(logits)
        drafts = []
        for end, block in zip(accumulate(blocks), blocks, strict=True):
            draft = until(tokens[end - block : end], frozenset({INVALID}), keep=False)
            drafts.append(draft[: self._believed(logits[end - block : end])])
        return drafts

    def _believed(self, logits: Float[Tensor, "block vocabulary"]) -> int:
        """Leading slots that the drafter takes to be all right, as if slots were independent, with the asked confidence."""
        if self.config.confidence == 0:
            return len(logits)
        odds = logits.float().log_softmax(-1).amax(-1).double().cumsum(0).exp()
        return int((odds >= self.config.confidence).sum())

    def _source(self, sequence: Sequence, device: torch.device) -> Source:
        if sequence.uid not in self._sources:
            self._sources[sequence.uid] = self.network.encode(torch.tensor([sequence.request.source], device=device))
        return self._sources[sequence.uid]


def until(tokens: Many[int], ends: frozenset[int], keep: bool = True) -> list[int]:
    """Tokens up to the first that is one of `ends`, itself included if `keep`."""
    stop = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[: stop + keep])
