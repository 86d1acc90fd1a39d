"""Ties and violations: when a token differs from plain decoding, by how much would the logits have to be off to explain it?

Forwards with different numbers of rows add up in different orders, so logits differ in their last bits, and where two tokens are nearly
equal the choice may flip. Such a difference is a *tie*. It is told from a mistake by the *gap*: the smallest error of the logits, at most
`gap` on every token, with which plain decoding would have chosen the method's token. A gap within the tolerance

    tolerance = SLACK[dtype] * eps(dtype) * max |logit|

is a tie, anything above a violation. `SLACK` is how many units of rounding a logit may have gathered on its way through the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.attention.plan import Exactness
from paceline.core.batch import ForwardBatch, Segment
from paceline.core.request import Request, Sequence
from paceline.core.sampling import Sampling
from paceline.core.tree import ROOT, TokenTree
from paceline.engine.runner import make_runner
from paceline.memory.ledger import Ledger
from paceline.models.decoder import Decoder
from paceline.models.encoder import encode_sources
from paceline.verification.processors import Processor
from paceline.verification.verifier import Verifier

# Largest difference between a forward of one row and one of many, in units of eps * max |logit|, on random decoders of 4 to 32 layers:
# 4 to 7 in float32 and float64 and 1 to 2 in half precision at ordinary weight scales, up to 54 and 9 at scales that amplify every error.
# Half precision rounds every intermediate result, the wider types mostly the sums inside products, hence the different counts.
SLACK = {torch.float64: 128.0, torch.float32: 128.0, torch.bfloat16: 8.0, torch.float16: 8.0}
CHUNK = 512  # rows per forward when a prefix is read again
MAGNITUDES = 24  # gaps are first looked for on a geometric grid with this many steps of a factor 2, up to the largest logit
RANDOM_DIRECTIONS = 16
REFINEMENTS = 16


def tolerance(logits: Float[Tensor, " vocabulary"], dtype: torch.dtype) -> float:
    """The gap that rounding may explain, for logits computed in `dtype`."""
    finite = logits[logits.isfinite()].double()
    return SLACK[dtype] * torch.finfo(dtype).eps * float(finite.abs().max())


@dataclass(frozen=True, slots=True)
class Margin:
    """How close plain decoding's choice was.

    Args:
        top2: difference of the two largest logits, penalties applied.
        gap: smallest error found with which plain decoding would choose either token.
        tolerance: see the module.
    """

    top2: float
    gap: float
    tolerance: float

    @property
    def is_tie(self) -> bool:
        """Whether rounding can explain the other choice."""
        return self.gap <= self.tolerance


class PlainPath:
    """Plain decoding's choice after any prefix, recomputed by one forward of the whole prefix.

    Args:
        decoder: the audited weights.
        exact: shapes of the bit-exact mode, or `None`.
    """

    def __init__(self, decoder: Decoder, exact: Exactness | None = None) -> None:
        self.decoder, self.exact = decoder, exact
        self._verifier = Verifier()

    def logits(self, ids: list[int], source: tuple[int, ...] = ()) -> Float[Tensor, " vocabulary"]:
        """Raw logits behind a prefix, in float64 on the host. Arguments as for `all_logits`."""
        return self.all_logits(ids, source, last_only=True)[0]

    def all_logits(self, ids: list[int], source: tuple[int, ...] = (), last_only: bool = False) -> Float[Tensor, "rows vocabulary"]:
        """Raw logits behind every prefix (or the whole alone), in float64 on the host.

        Args:
            ids: the sequence; of an encoder-decoder, the target.
            source: what an encoder-decoder makes it from.
        """
        runner = make_runner(self.decoder, slots=len(ids) + 1, ledger=Ledger(), exact=self.exact, prefix_cache=False)
        memory = runner.memory.admit(ids)
        with torch.inference_mode():
            cross = encode_sources(self.decoder, [source])[0] if source else None
        parts = []
        for start in range(0, len(ids), CHUNK):
            rows = min(CHUNK, len(ids) - start)
            memory.reserve(rows)
            wanted = [rows - 1] if last_only else None
            batch = ForwardBatch(ids[start : start + rows], range(start, start + rows), [Segment(memory, rows, cross=cross)], wanted)
            parts.append(runner.forward(batch).logits.to("cpu", torch.float64))
            memory.commit(range(rows))
        return parts[-1] if last_only else torch.cat(parts)

    def margin(self, prompt: list[int], output: list[int], sampling: Sampling, plain: int, other: int) -> Margin:
        """How close the two choices are after `output`: read anew, the prefix may favour either."""
        ids, source = self.decoder.config.target_of(tuple(prompt))
        prompt = list(ids)
        logits = self.logits(prompt + output, source)
        pick = _Pick(self._verifier, prompt, output, sampling, logits)
        best = _processed(prompt, output, sampling, logits).topk(2).values
        allowed = tolerance(logits, self.decoder.dtype)
        return Margin(float(best[0] - best[1]), max(pick.gap_to(plain), pick.gap_to(other)), allowed)


def _processed(
    prompt: list[int], output: list[int], sampling: Sampling, logits: Float[Tensor, " vocabulary"]
) -> Float[Tensor, " vocabulary"]:
    """Logits as sampling options change them for the next token."""
    rows = logits[None].clone()
    if not sampling.plain_logits:
        processor = Processor(sampling, len(prompt), len(logits))
        processor.catch_up(prompt + output)
        processor.process(rows, TokenTree.chain((prompt + output)[-1]), [ROOT])
    return rows[0]


class _Pick:
    """What plain decoding chooses when the logits are disturbed."""

    def __init__(
        self, verifier: Verifier, prompt: list[int], output: list[int], sampling: Sampling, logits: Float[Tensor, " vocabulary"]
    ) -> None:
        self._verifier, self._logits = verifier, logits
        request = Request(tuple(prompt), sampling, max_tokens=len(output) + 2)
        self._sequence = Sequence(0, request, tokens=prompt + output)
        self.plain = self._chosen(logits[None])[0]

    def _chosen(self, rows: Float[Tensor, "rows vocabulary"]) -> list[int]:
        tree = TokenTree.chain(self._sequence.tokens[-1])
        count = len(rows)
        return [verdict.tokens[0] for verdict in self._verifier.judge([self._sequence] * count, [tree] * count, rows)]

    def gap_to(self, token: int) -> float:
        """Smallest disturbance found that makes plain decoding choose `token`; infinity if none does."""
        if token == self.plain:
            return 0.0
        directions = self._directions(token)
        largest = 2 * float(self._logits[self._logits.isfinite()].abs().max()) + 1.0
        sizes = [largest * 2.0**-step for step in range(MAGNITUDES, -1, -1)]
        for at, size in enumerate(sizes):
            hits = [row for row, chosen in enumerate(self._chosen(self._logits + size * directions)) if chosen == token]
            if hits:
                low = sizes[at - 1] if at else 0.0
                return min(self._refine(directions[row], token, low, size) for row in hits)
        return float("inf")

    def _refine(self, direction: Float[Tensor, " vocabulary"], token: int, low: float, high: float) -> float:
        for _ in range(REFINEMENTS):
            middle = (low + high) / 2
            if self._chosen((self._logits + middle * direction)[None])[0] == token:
                high = middle
            else:
                low = middle
        return high

    def _directions(self, token: int) -> Float[Tensor, "directions vocabulary"]:
        """Disturbances of at most 1 per token, among them those that move a greedy choice or a sampling boundary the most."""
        ids = torch.arange(len(self._logits))
        favour = torch.where(ids == token, 1.0, -1.0)
        towards = torch.where(ids <= token, 1.0, -1.0)  # of the cumulative sums that sampling inverts
        before = torch.where(ids < token, 1.0, -1.0)
        sharper = torch.where(self._logits >= self._logits[token], 1.0, -1.0)  # of the nucleus
        generator = torch.Generator().manual_seed(token)
        noise = torch.randint(0, 2, (RANDOM_DIRECTIONS, len(ids)), generator=generator) * 2.0 - 1.0
        return torch.cat([torch.stack([favour, towards, -towards, before, -before, sharper, -sharper]), noise]).double()
