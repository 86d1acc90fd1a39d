"""Aggressive decoding with a block drafter in the real loop: token-identical to greedy, calls as counted, memory as promised."""

from __future__ import annotations

from math import ceil
from typing import Any

import pytest
import torch
from torch import Tensor

import paceline
from paceline.core.errors import UsageError
from paceline.core.request import Request
from paceline.core.rng import key
from paceline.core.sampling import Sampling
from paceline.engine.llm import LLM
from paceline.models.nat import NatConfig, NatDrafter, Source, new_nat

VOCABULARY, EOS = 40, 0
CONFIG = NatConfig(VOCABULARY, 8, 2, 1, 1, 8, 8, positions=64, block=5)


class Informed(NatDrafter):
    """Drafts what the target will say, except at a share of the places (per mille), where it says something else."""

    def __init__(self, outputs: dict[tuple[int, ...], list[int]], slips: int) -> None:
        super().__init__(CONFIG)
        self.outputs, self.slips = outputs, slips

    def encode(self, ids: Tensor, known: Tensor | None = None) -> Source:
        words = ids[..., None].double()  # a source that can be recognised later
        return Source(words, words, (), (), torch.ones_like(ids, dtype=torch.bool))

    def forward(self, source: Source, ids: Tensor, slots: Tensor, known: Tensor | None = None) -> Tensor:
        said = torch.zeros(*ids.shape, VOCABULARY)
        for row in range(len(ids)):
            asked = tuple(int(word) for word in source.embedding[row, source.known[row], 0])
            output = self.outputs[asked]
            for place in range(ids.shape[1]):
                token = output[place] if place < len(output) else 5
                wrong = key(len(asked), place, *asked) % 1000 < self.slips
                said[row, place, (token + 1) % VOCABULARY if wrong else token] = 1.0
        return said

    def logits(self, states: Tensor) -> Tensor:
        return states


def bart(seed: int) -> Any:
    """A tiny BART in float64 whose outputs vary and sometimes end."""
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(seed)
    shape = {"vocab_size": VOCABULARY, "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "max_position_embeddings": 64}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "init_std": 0.5}
    special: dict[str, Any] = {
        "bos_token_id": 3,
        "eos_token_id": EOS,
        "pad_token_id": 1,
        "decoder_start_token_id": 3,
        "forced_eos_token_id": None,
    }
    options: dict[str, Any] = shape | heads | special
    return BartForConditionalGeneration(BartConfig(**options)).double().eval()


def sources(count: int, seed: int) -> list[list[int]]:
    noise = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 20, (count,), generator=noise).tolist()
    return [torch.randint(4, VOCABULARY, (length,), generator=noise).tolist() for length in lengths]


def engines(seed: int, asked: list[list[int]], tokens: int, slips: int, method: str = "gad:k=5") -> tuple[LLM, LLM, list[list[int]]]:
    """Plain engine, engine with an informed drafter, and the plain outputs."""
    plain = paceline.load(bart(seed), "none", kv_tokens=4000)
    wanted = [output.token_ids for output in plain.generate(asked, max_tokens=tokens)]
    known = {tuple(ids): output for ids, output in zip(asked, wanted, strict=True)}
    return plain, paceline.load(plain, method, draft=Informed(known, slips), kv_tokens=4000), wanted


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_output_is_that_of_greedy_decoding(seed: int) -> None:
    """500 random sources in float64, batched; the length limit falls into accepted runs (13 is no multiple of anything here)."""
    asked = sources(500, seed)
    _, gad, wanted = engines(seed, asked, 13, slips=150)
    outputs = gad.generate(asked, max_tokens=13)
    assert [output.token_ids for output in outputs] == wanted
    assert sum(output.stats.forwards for output in outputs) < 0.6 * sum(map(len, wanted))  # and drafts were accepted
    assert any(output.stats.accepted < output.stats.drafted for output in outputs)  # and not all of them
    cut = [output for output in outputs if len(output.token_ids) == 13 and 1 < output.stats.runs[-1] < 6]
    assert len(cut) > 50  # the limit ended what would have gone on
    assert any(len(ids) < 13 for ids in wanted) or any(len(set(ids)) > 3 for ids in wanted)


def test_caches_after_every_step() -> None:
    """Own keys: all tokens but the pending one. Keys of the source: the very same memory, unchanged, from first to last."""
    asked = sources(12, 8)
    _, gad, _ = engines(2, asked, 16, slips=150)
    for source in asked:
        gad.engine.submit(Request(gad.runner.decoder.config.start, max_tokens=16, source=tuple(source), ignore_eos=True))
    first: dict[int, list[tuple[int, Tensor]]] = {}
    steps = 0
    while not gad.engine.idle:
        gad.engine.step()
        for active in gad.engine.scheduler.running:
            sequence, cross = active.sequence, active.memory.cross
            assert cross is not None
            assert active.memory.length == len(sequence.tokens) - 1
            tensors = [*cross.keys, *cross.values]
            before = first.setdefault(sequence.uid, [(tensor.data_ptr(), tensor.clone()) for tensor in tensors])
            assert all(tensor.data_ptr() == at and torch.equal(tensor, kept) for tensor, (at, kept) in zip(tensors, before, strict=True))
            steps += 1
    assert len(first) == 12
    assert steps > 24


def test_an_untrained_drafter_changes_nothing() -> None:
    asked = sources(40, 9)
    plain = paceline.load(bart(2), "none", kv_tokens=4000)
    gad = paceline.load(plain, "gad", draft=new_nat(CONFIG, 1).double().eval(), kv_tokens=4000)
    found, wanted = ([output.token_ids for output in llm.generate(asked, max_tokens=12)] for llm in (gad, plain))
    assert found == wanted


@pytest.mark.parametrize("k", [1, 4, 25])
def test_a_perfect_drafter_needs_as_few_forwards_as_there_are_blocks(k: int) -> None:
    asked = sources(12, 4)
    _, gad, wanted = engines(1, asked, 17, slips=0, method=f"gad:k={k}")
    for source, ids in zip(asked, wanted, strict=True):
        (output,) = gad.generate([source], max_tokens=17)
        assert output.token_ids == ids
        assert output.stats.forwards == ceil(len(ids) / (k + 1))


def test_a_drafter_that_is_always_wrong_costs_one_forward_per_token() -> None:
    asked = sources(8, 5)
    _, gad, wanted = engines(1, asked, 9, slips=1000)
    outputs = gad.generate(asked, max_tokens=9)
    assert [output.token_ids for output in outputs] == wanted
    assert [output.stats.forwards for output in outputs] == [len(ids) for ids in wanted]


def test_full_tolerance_emits_the_drafters_own_blocks() -> None:
    """beta = vocabulary, tau = infinity: every block is accepted whole, with the target's bonus token behind it."""
    asked = sources(10, 6)
    plain = paceline.load(bart(3), "none", kv_tokens=4000)
    network = new_nat(CONFIG, 1).double().eval()
    free = paceline.load(plain, f"gad:k=5,beta={VOCABULARY},tau=inf", draft=network, kv_tokens=4000)
    for source in asked:
        (output,) = free.generate([source], max_tokens=18, ignore_eos=True)
        assert len(output.token_ids) == 18
        encoded = network.encode(torch.tensor([source]))
        start = 0
        while start < 18:
            filled = network.fill(encoded, torch.tensor(output.token_ids[:start], dtype=torch.long), 5).argmax(-1).tolist()
            block = filled[: filled.index(EOS) + 1] if EOS in filled else filled
            written = output.token_ids[start : min(17, start + len(block))]  # the last token is always the target's own
            assert written == block[: 17 - start]
            start += len(block) + 1


def test_no_tolerance_of_logits_is_greedy_up_to_ties() -> None:
    asked = sources(20, 7)
    _, gad, wanted = engines(2, asked, 12, slips=200, method="gad:k=5,beta=4,tau=0")
    assert [output.token_ids for output in gad.generate(asked, max_tokens=12)] == wanted


def test_tolerance_that_is_used_shows() -> None:
    """Negative control: a drafter that slips is believed, and the output is no longer greedy's."""
    asked = sources(20, 7)
    _, gad, wanted = engines(2, asked, 12, slips=200, method=f"gad:k=5,beta={VOCABULARY},tau=inf")
    assert [output.token_ids for output in gad.generate(asked, max_tokens=12)] != wanted


def test_samples_equal_plain_sampling() -> None:
    """Point masses are judged by sample-and-match, so even the samples are the same, tolerance or not."""
    asked, sampling = sources(20, 8), Sampling(temperature=1.0, seed=5)
    plain, gad, _ = engines(2, asked, 10, slips=100)
    wanted = [output.token_ids for output in plain.generate(asked, sampling, max_tokens=10)]
    assert [output.token_ids for output in gad.generate(asked, sampling, max_tokens=10)] == wanted


def test_drafter_memory_is_charged_and_freed() -> None:
    asked = sources(6, 3)
    plain = paceline.load(bart(1), "none", kv_tokens=4000)
    gad = paceline.load(plain, "gad", draft=new_nat(CONFIG, 1).double().eval(), kv_tokens=4000)
    assert gad.ledger.live["weights"] > plain.ledger.live["weights"]
    gad.generate(asked, max_tokens=8)
    assert gad.engine.drafter.memory_bytes() == 0


def test_a_drafter_of_another_vocabulary_is_refused() -> None:
    other = new_nat(NatConfig(VOCABULARY + 1, 8, 2, 1, 1, 8, 8, positions=64), 0)
    with pytest.raises(UsageError, match="vocabulary of 41, the target 40"):
        paceline.load(bart(1), "gad", draft=other)
    with pytest.raises(UsageError, match="non-autoregressive drafter"):
        paceline.load(bart(1), "gad")
