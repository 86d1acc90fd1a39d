"""Greedy output of every method equals what transformers generates with the same weights, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy_engines import METHODS, VOCABULARY, prompts
from transformers import LlamaConfig, LlamaForCausalLM

from paceline.core.sampling import Sampling
from paceline.engine.load import load

TOKENS = 24


def random_llama(seed: int, layers: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=160,
        initializer_range=0.35,  # the usual 0.02 gives nearly uniform attention, which forgives wrong masks
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).to(torch.float64).eval()


@pytest.fixture(scope="module")
def models() -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    return random_llama(3, 2), random_llama(4, 1)


def oracle(model: LlamaForCausalLM, prompt: list[int], **options: Any) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False, **options)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    ("sampling", "options"),
    [
        (Sampling(), {}),
        (Sampling(repetition_penalty=1.3), {"repetition_penalty": 1.3}),
        (Sampling(no_repeat_ngram=3), {"no_repeat_ngram_size": 3}),
    ],
    ids=["plain", "repetition", "ngram"],
)
def test_every_method_equals_transformers(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM], sampling: Sampling, options: dict[str, Any]
) -> None:
    target, draft = models
    asked = prompts(5)
    expected = [oracle(target, prompt, **options) for prompt in asked]
    assert len({tuple(tokens) for tokens in expected}) == len(asked)  # the model looks at its context
    for method in METHODS:
        llm = load(target, method, draft=draft, device="cpu", kv_tokens=1000, max_sequences=8)
        assert [output.token_ids for output in llm.generate(asked, sampling, TOKENS)] == expected, method


def test_a_different_prompt_gives_a_different_answer(models: tuple[LlamaForCausalLM, LlamaForCausalLM]) -> None:
    """Negative control: equality above is not trivial."""
    target, _ = models
    llm = load(target, "none", device="cpu", kv_tokens=400)
    changed = prompts(5)[2]
    changed[0] = (changed[0] + 1) % VOCABULARY
    assert llm.generate([changed], max_tokens=TOKENS)[0].token_ids != oracle(target, prompts(5)[2])
