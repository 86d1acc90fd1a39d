"""Logit agreement: the logits behind every decision against those of plain decoding, on the scale of rounding.

Tokens alone are a blunt instrument: on a model that hardly looks at its context, a wrong mask or a lost row changes no argmax. Logits show
it. How much of a difference rounding makes is measured on the spot, by reading plain decoding's own output again in one forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.bench.audit.certificate import Check, Outcome
from paceline.bench.audit.listen import Place, listen
from paceline.bench.audit.margins import PlainPath
from paceline.bench.audit.rig import Prompts, Rig
from paceline.engine.llm import LLM

COLUMNS = 4096  # at most this many logits of a row are kept, evenly spread over the vocabulary
NOISE_FACTOR = 8.0  # differences up to this multiple of plain decoding's own rounding are rounding


def keep_row(row: Float[Tensor, " vocabulary"]) -> Float[Tensor, " columns"]:
    """A thinned copy of a row, in float64 on the host."""
    return row[:: -(-len(row) // COLUMNS)].to("cpu", torch.float64, copy=True)


@dataclass(frozen=True, slots=True)
class Yardstick:
    """Plain decoding's logits and how far rounding moves them.

    Args:
        heard: logits behind every decision of plain decoding.
        outputs: its tokens.
        noise: largest difference between decoding row by row and reading the same tokens in one forward.
        limit: differences above it are not rounding.
    """

    heard: dict[Place, Float[Tensor, " columns"]]
    outputs: list[list[int]]
    noise: float
    limit: float

    def largest(self, prompts: Prompts, outputs: Sequence[Sequence[int]], heard: dict[Place, Float[Tensor, " columns"]]) -> float:
        """Largest difference of logits behind common histories."""
        worst = 0.0
        for prompt, plain, found in zip(prompts, self.outputs, outputs, strict=True):
            common = next((at for at, (a, b) in enumerate(zip(plain, found, strict=False)) if a != b), min(len(plain), len(found)) - 1)
            for at in range(common + 1):
                if (prompt, at) in heard and (prompt, at) in self.heard:
                    worst = max(worst, float((heard[prompt, at] - self.heard[prompt, at]).abs().max()))
        return worst


def yardstick(rig: Rig, prompts: Prompts, max_tokens: int) -> Yardstick:
    """Decode plainly, one prompt after the other, and measure rounding."""
    listener, outputs = listen(rig.engine("none", prompts, max_tokens), prompts, max_tokens, keep_row, batched=False)
    path = PlainPath(rig.target.runner.decoder, rig.target.runner.exact)
    noise, largest = 0.0, 0.0
    for prompt, output in zip(prompts, outputs, strict=True):
        ids, source = rig.target.runner.decoder.config.target_of(prompt)
        again = path.all_logits([*ids, *output[:-1]], source)[len(ids) - 1 :]
        for at, row in enumerate(again):
            noise = max(noise, float((keep_row(row) - listener.heard[prompt, at]).abs().max()))
        largest = max(largest, float(again.abs().max()))
    floor = torch.finfo(rig.target.runner.decoder.dtype).eps * largest  # one unit of rounding of the largest logit
    return Yardstick(listener.heard, outputs, noise, NOISE_FACTOR * max(noise, floor))


def check_agreement(rig: Rig, llm: LLM, prompts: Prompts, max_tokens: int, measure: Yardstick, *, promised: bool) -> Check:
    """Logits of `llm`, one prompt at a time and batched, against plain decoding's."""
    worst = compared = 0.0
    for batched in (False, True):
        listener, outputs = listen(llm, prompts, max_tokens, keep_row, batched=batched)
        worst = max(worst, measure.largest(prompts, outputs, listener.heard))
        compared += len(listener.heard)
    outcome = Outcome.MEASURED if not promised else Outcome.PASSED if worst <= measure.limit else Outcome.FAILED
    detail = f"largest difference {worst:.2g}; plain decoding's own rounding {measure.noise:.2g}, limit {measure.limit:.2g}"
    numbers = {"largest": worst, "noise": measure.noise, "limit": measure.limit}
    return Check("logit agreement", rig.subject, outcome, int(compared), detail, (), numbers)
