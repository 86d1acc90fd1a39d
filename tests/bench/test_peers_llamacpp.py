"""llama.cpp on the exported weights computes what transformers computes; a wrong export does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from paceline.bench import gguf as export
from paceline.bench.peers_llamacpp import LlamaCppPeer
from paceline.bench.peers_transformers import TransformersPeer
from paceline.core.errors import UsageError

pytest.importorskip("llama_cpp")

PROMPT = [3, 5, 7, 9, 300, 11, 13, 2] * 3
TOLERANCE = 1e-3


def oracle(folder: Path) -> np.ndarray:
    """Logits of transformers for every position of the prompt."""
    from transformers import LlamaForCausalLM

    with torch.no_grad():
        found: np.ndarray = LlamaForCausalLM.from_pretrained(folder).eval()(torch.tensor([PROMPT])).logits[0].numpy()
    return found


@pytest.mark.parametrize("fixture", ["llama_folder", "draft_folder"])
def test_logits_and_greedy_tokens_agree(fixture: str, request: pytest.FixtureRequest) -> None:
    """Grouped queries with an untied head, and one layer with a tied one."""
    folder: Path = request.getfixturevalue(fixture)
    peer, reference = LlamaCppPeer(), TransformersPeer()
    peer.load(folder, "float32", 1)
    assert np.abs(peer.logits(PROMPT) - oracle(folder)).max() < TOLERANCE
    reference.load(folder, "float32", torch.get_num_threads())
    run = peer.generate(PROMPT, 32)
    assert run.token_ids == reference.generate(PROMPT, 32).token_ids
    assert run.forwards == 32
    assert peer.generate(PROMPT, 32).token_ids == run.token_ids  # memory is emptied between runs
    peer.close()


@pytest.mark.parametrize("wrong", [lambda weight, heads: weight, lambda weight, heads: pair(weight, 2 * heads)], ids=["unpaired", "heads"])
def test_wrong_rotary_order_is_seen(llama_folder: Path, monkeypatch: pytest.MonkeyPatch, wrong: object) -> None:
    """Negative control: with the query and key rows in another order, logits are far off."""
    monkeypatch.setattr(export, "pair_rotary", wrong)
    peer = LlamaCppPeer()
    peer.load(llama_folder, "float32", 1)
    assert np.abs(peer.logits(PROMPT) - oracle(llama_folder)).max() > 100 * TOLERANCE
    peer.close()


pair = export.pair_rotary


def test_half_precision_is_close(llama_folder: Path) -> None:
    peer = LlamaCppPeer()
    peer.load(llama_folder, "bfloat16", 1)
    wanted = oracle(llama_folder)
    assert np.abs(peer.logits(PROMPT) - wanted).mean() < 0.1 * np.abs(wanted).mean()
    peer.close()


def test_forward_cost_leaves_the_context_as_it_was(llama_folder: Path) -> None:
    peer = LlamaCppPeer(repeats=2)
    peer.load(llama_folder, "float32", 1)
    for rows, context in [(1, 0), (4, 10), (2, 40), (3, 20), (1, 0)]:
        assert peer.forward_cost(rows, context) > 0
        assert peer._filled == context
    with pytest.raises(UsageError, match="at most"):
        peer.forward_cost(10_000, 0)
    peer.close()


def test_use_before_load_is_named() -> None:
    with pytest.raises(UsageError, match="call load"):
        LlamaCppPeer().forward_cost(1, 0)
