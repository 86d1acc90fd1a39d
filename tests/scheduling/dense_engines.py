"""Toy engines in float64 for batched speculation: a target, drafts that agree with it more or less, ragged prompts."""

from __future__ import annotations

import torch

from paceline.bench.audit.toy import toy_decoder
from paceline.core.sampling import Sampling
from paceline.engine.llm import LLM
from paceline.engine.load import load
from paceline.models.decoder import Decoder

VOCABULARY = 24
EOS = 2
DENSE = ("eqspec", "exspec", "rollback", "gap")
LENGTHS = (3, 17, 1, 9, 9, 30, 4, 17)  # some of them equal


def target(**options: object) -> LLM:
    """A toy target; engines are made on its weights."""
    settings = {"seed": 1, "layers": 2, "eos": (EOS,), "max_positions": 160} | options
    return load(toy_decoder(VOCABULARY, **settings), "none", device="cpu", kv_tokens=4, pack=False)


def noisy(llm: LLM, amount: float) -> Decoder:
    """A draft whose weights are the target's with noise of that share of their size; 0 is the target itself."""
    source = llm.runner.decoder
    config = source.config
    draft = toy_decoder(config.vocabulary, seed=1, layers=len(config.layers), eos=config.eos, max_positions=config.max_positions)
    random = torch.Generator().manual_seed(7)
    copied = dict(source.state_dict())
    for name, weight in draft.named_parameters():
        noise = torch.randn(weight.shape, generator=random, dtype=torch.float64) * copied[name].std() if weight.dim() > 1 else 0.0
        weight.data.copy_(copied[name] + amount * noise)
    return draft


def make(llm: LLM, draft: Decoder | LLM, batching: str = "ragged", method: str = "draft-model:length=3", **options: object) -> LLM:
    """An engine on the target's weights; roomy unless told otherwise."""
    settings = {"kv_tokens": 4000, "max_sequences": 64, "prefix_cache": False} | options
    return load(llm, method, draft=draft, device="cpu", batching=batching, **settings)


def prompts(count: int = 8) -> list[list[int]]:
    """Ragged prompts of 1 to 30 tokens in which id 0 and the end-of-sequence id occur."""
    lengths = (LENGTHS * (1 + count // len(LENGTHS)))[:count]
    made = [[(at * (index + 3) + at // 5 + index) % VOCABULARY for at in range(length)] for index, length in enumerate(lengths)]
    for index, prompt in enumerate(made):
        prompt[-1 if index % 2 else 0] = EOS
        prompt[len(prompt) // 2] = 0
    return made


def ids(llm: LLM, asked: list[list[int]], tokens: int = 12, sampling: Sampling | None = None, ignore_eos: bool = True) -> list[list[int]]:
    """Output ids of all prompts, submitted together."""
    return [output.token_ids for output in llm.generate(asked, sampling, tokens, ignore_eos=ignore_eos)]


def alone(llm: LLM, asked: list[list[int]], tokens: int = 12, sampling: Sampling | None = None, ignore_eos: bool = True) -> list[list[int]]:
    """Plain decoding of every prompt by itself: what everything is compared with."""
    plain = load(llm, "none", device="cpu", kv_tokens=400, prefix_cache=False)
    return [ids(plain, [prompt], tokens, sampling, ignore_eos)[0] for prompt in asked]


def batching(name: str, batch: int) -> str:
    """A strategy with a batch size; the pool gets a window a little larger."""
    return "ragged" if name == "ragged" else f"{name}:batch={batch}" + (f",window={batch + 3}" if name == "exspec" else "")
