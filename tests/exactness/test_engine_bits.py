"""Bit-exact mode: in bf16, logits behind every decision are those of plain decoding, bit for bit, whatever shares the forward."""

from __future__ import annotations

import pytest
import torch
from toy_engines import VOCABULARY, overbook, prompts

from paceline.attention.plan import Exactness
from paceline.bench.audit.bits import digest
from paceline.bench.audit.listen import Place, listen
from paceline.bench.audit.oracle import OracleDrafter
from paceline.bench.audit.rig import Rig
from paceline.bench.audit.toy import toy_decoder
from paceline.engine.llm import LLM
from paceline.engine.load import load
from paceline.models.linear import can_pack

pytestmark = pytest.mark.skipif(
    not can_pack(torch.bfloat16, torch.device("cpu")), reason="this build of torch has no row-independent bf16 product"
)
ASKED = [*(tuple(prompt) for prompt in prompts(4)), tuple(range(20)) * 4]
TOKENS = 16


@pytest.fixture(scope="module")
def pair() -> tuple[LLM, LLM]:
    decoders = [toy_decoder(VOCABULARY, seed=seed, layers=layers, dtype=torch.bfloat16) for seed, layers in ((1, 4), (2, 1))]
    for decoder in decoders:
        decoder.pack()
    target, draft = (load(decoder, "none", device="cpu", kv_tokens=4, exact=True) for decoder in decoders)
    return target, draft


def heard(llm: LLM, batched: bool) -> dict[Place, bytes]:
    return listen(llm, ASKED, TOKENS, digest, batched=batched)[0].heard


@pytest.fixture(scope="module")
def plain(pair: tuple[LLM, LLM]) -> dict[Place, bytes]:
    return heard(load(pair[0], "none", device="cpu", exact=True, kv_tokens=800, prefix_cache=False), batched=False)


@pytest.mark.parametrize("method", ["none", "prompt-lookup", "draft-model:length=4", "auto"])
@pytest.mark.parametrize(
    "options",
    [{}, {"prefix_cache": False}, {"max_rows": 5}, {"kv_tokens": 130}],
    ids=["as it comes", "no prefix cache", "chunked prefill", "tight memory"],
)
def test_chains_are_bit_identical(pair: tuple[LLM, LLM], plain: dict[Place, bytes], method: str, options: dict[str, int]) -> None:
    target, draft = pair
    llm = overbook(load(target, method, draft=draft, device="cpu", exact=True, **({"kv_tokens": 1200} | options)))
    for batched in (False, True):  # the second round also meets what the first left in the prefix cache
        found = heard(llm, batched)
        assert {place for place in plain if found.get(place) != plain[place]} == set()


def test_known_drafts_are_too(pair: tuple[LLM, LLM], plain: dict[Place, bytes]) -> None:
    """Long accepted runs, which real methods seldom have on a toy."""
    assert pair[0].runner.exact == (Exactness() if pair[0].runner.decoder.stack is None else None)
    assert drafted(Rig(pair[0], exact=True)) == plain


def test_it_is_the_mode_that_does_it() -> None:
    """Negative control: with plain weights and shapes, the same drafts round differently from plain decoding."""
    loose = load(toy_decoder(VOCABULARY, seed=1, layers=4, dtype=torch.bfloat16), "none", device="cpu", kv_tokens=4)
    rig = Rig(loose)
    assert drafted(rig) != heard(rig.engine("none", ASKED, TOKENS), batched=False)


def drafted(rig: Rig) -> dict[Place, bytes]:
    """Digests of a loop whose drafts are nearly always right."""
    _, outputs = listen(rig.engine("none", ASKED, TOKENS), ASKED, TOKENS, digest, batched=False)
    drafter = OracleDrafter(dict(zip(ASKED, outputs, strict=True)), VOCABULARY, length=6, mistakes=0.1)
    return listen(rig.wired(drafter, ASKED, TOKENS), ASKED, TOKENS, digest, batched=True)[0].heard
