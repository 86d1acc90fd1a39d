"""The transformers peer: every greedy mode gives the same tokens, of the asked number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from paceline.bench.peers_base import PeerRun, filler_ids
from paceline.bench.peers_transformers import TransformersPeer
from paceline.core.errors import UsageError

PROMPT = [3, 5, 7, 9, 11, 13] * 4
TOKENS = 24


def by_hand(folder: Path) -> list[int]:
    """Greedy decoding with a full forward per token."""
    from transformers import LlamaForCausalLM

    model, ids = LlamaForCausalLM.from_pretrained(folder).eval(), list(PROMPT)
    with torch.no_grad():
        for _ in range(TOKENS):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(PROMPT) :]


@pytest.mark.parametrize("mode", ["greedy", "prompt-lookup", "assistant", "static"])
def test_modes_agree_with_decoding_by_hand(llama_folder: Path, draft_folder: Path, mode: str) -> None:
    peer = TransformersPeer(mode, assistant=draft_folder if mode == "assistant" else None)
    assert peer.available() is None
    peer.load(llama_folder, "float32", torch.get_num_threads())
    run = peer.generate(PROMPT, TOKENS)
    assert run.token_ids == by_hand(llama_folder)
    assert run.ttft > 0
    assert run.decode_seconds > 0
    assert run.forwards <= TOKENS + 1
    if mode in ("greedy", "static"):
        assert run.forwards == TOKENS
    peer.close()


def test_end_of_sequence_is_an_ordinary_token(llama_folder: Path) -> None:
    peer = TransformersPeer()
    peer.load(llama_folder, "float32", torch.get_num_threads())
    plain = peer.generate(PROMPT, TOKENS)
    peer._model.config.eos_token_id = plain.token_ids[4]  # a checkpoint whose end of sequence comes early
    assert peer.generate(PROMPT, TOKENS).token_ids == plain.token_ids
    peer._model.generation_config.eos_token_id = plain.token_ids[4]  # negative control: this is what `load` takes away
    assert len(peer.generate(PROMPT, TOKENS).token_ids) <= 5


def test_forward_cost_leaves_the_context_as_it_was(llama_folder: Path) -> None:
    peer = TransformersPeer(repeats=2)
    peer.load(llama_folder, "float32", torch.get_num_threads())
    for rows, context in [(1, 0), (4, 10), (2, 40), (3, 20), (1, 0)]:
        assert peer.forward_cost(rows, context) > 0
        assert peer._cache.get_seq_length() == context


def test_wrong_use_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'beam'"):
        TransformersPeer("beam")
    with pytest.raises(UsageError, match="assistant"):
        TransformersPeer("assistant")
    with pytest.raises(UsageError, match="call load"):
        TransformersPeer().generate([1], 1)


def test_speeds_follow_from_a_run() -> None:
    run = PeerRun([1] * 9, ttft=1.0, decode_seconds=2.0, forwards=5)
    assert (run.tokens_per_second, run.tokens_per_forward) == (4.0, 2.0)
    assert PeerRun([1], 1.0, 0.0, 1).tokens_per_second == 0.0


def test_filler_ids_go_on_where_they_stopped() -> None:
    ids = filler_ids(50, 320)
    assert ids[20:] == filler_ids(30, 320, 20)
    assert len(set(ids)) > 40
    assert max(ids) < 320
