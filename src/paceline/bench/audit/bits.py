"""Bit identity: in bit-exact mode the logits of every decided position equal those of plain decoding, bit for bit."""

from __future__ import annotations

from hashlib import blake2b

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.bench.audit.certificate import Check, Outcome
from paceline.bench.audit.listen import Place, listen
from paceline.bench.audit.rig import Prompts, Rig
from paceline.engine.llm import LLM


def digest(row: Float[Tensor, " vocabulary"]) -> bytes:
    """Fingerprint of the bits of a row."""
    return blake2b(row.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes(), digest_size=16).digest()


def plain_digests(rig: Rig, prompts: Prompts, max_tokens: int) -> dict[Place, bytes]:
    """Fingerprints of plain decoding's logits, each prompt alone."""
    return listen(rig.engine("none", prompts, max_tokens), prompts, max_tokens, digest, batched=False)[0].heard


def check_bits(rig: Rig, llm: LLM, prompts: Prompts, max_tokens: int, *, promised: bool) -> Check:
    """Compare logits of plain decoding with those of `llm`, one prompt at a time and batched.

    Args:
        promised: whether token identity is guaranteed. Bit identity then is too for chains, and with the fused kernels for trees; what
            is not promised is only measured.
    """
    plain = plain_digests(rig, prompts, max_tokens)
    same = compared = 0
    chains_only = True
    for batched in (False, True):
        listener, _ = listen(llm, prompts, max_tokens, digest, batched=batched)
        both = plain.keys() & listener.heard.keys()
        compared += len(both)
        same += sum(plain[place] == listener.heard[place] for place in both)
        chains_only &= listener.chains_only
    covered = chains_only or rig.target.runner.decoder.stack is not None
    outcome = Outcome.MEASURED
    if promised and covered:
        outcome = Outcome.PASSED if same == compared else Outcome.FAILED
    shape = "chains" if chains_only else "trees" if covered else "trees, which are bit-exact only with the fused kernels"
    numbers = {"rows": compared, "identical_rows": same, "chains_only": chains_only, "promised": promised and covered}
    return Check(
        "bit identity",
        rig.subject,
        outcome,
        compared,
        f"{same} of {compared} rows of logits identical; drafts are {shape}",
        (),
        numbers,
    )
