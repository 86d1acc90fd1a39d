"""Drafters that ask for it are shown what the target said along the prompt: the very laws that decoding there would have had."""

from __future__ import annotations

import pytest
import torch

from paceline.bench.audit.margins import PlainPath
from paceline.bench.audit.toy import toy_decoder
from paceline.core.request import Sequence
from paceline.core.sampling import Sampling
from paceline.drafting.stand import Stand
from paceline.engine.llm import LLM
from paceline.engine.load import load

PROMPTS = [[1, 2, 3, 1, 2, 5, 9, 8, 1, 2], [7, 7, 3], [4]]


@pytest.fixture(scope="module")
def target() -> LLM:
    return load(toy_decoder(16, seed=3), "none", device="cpu", dtype="float64", pack=False, kv_tokens=4)


def shown(llm: LLM, sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> dict[int, list[tuple[int, torch.Tensor]]]:
    seen: dict[int, list[tuple[int, torch.Tensor]]] = {}
    learn = Stand.observe_prompt

    def listen(self: Stand, sequence: Sequence, start: int, logits: torch.Tensor) -> None:
        seen.setdefault(sequence.prompt_length, []).append((start, logits.clone()))
        learn(self, sequence, start, logits)

    monkeypatch.setattr(Stand, "observe_prompt", listen)
    llm.generate(PROMPTS, sampling, 6, ignore_eos=True)
    return seen


@pytest.mark.parametrize("method", ["stand:observe_prompt=true", "prompt-lookup+stand:observe_prompt=true"])
def test_every_prompt_position_but_the_pending_one_is_shown_once(target: LLM, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = load(target, method, device="cpu", kv_tokens=600, max_rows=5)  # prompts are read in chunks
    found = shown(llm, Sampling(), monkeypatch)
    assert set(found) == {10, 3}
    path = PlainPath(target.runner.decoder, None)
    for prompt in PROMPTS[:2]:
        plain = path.all_logits(prompt)
        places = [start + row for start, logits in found[len(prompt)] for row in range(len(logits))]
        assert places == list(range(len(prompt) - 1))
        rows = torch.cat([logits for _, logits in found[len(prompt)]])
        assert torch.allclose(rows.double(), plain[: len(rows)].double(), atol=1e-5)


def test_penalties_count_what_stood_before_each_position(target: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(no_repeat_ngram=2)
    llm = load(target, "stand:observe_prompt=true", device="cpu", kv_tokens=600)
    found = shown(llm, sampling, monkeypatch)
    ((_, logits),) = found[10]
    assert torch.isinf(logits[3]).nonzero().flatten().tolist() == [2]  # behind 1 2 3 1, another 2 would repeat a pair
    assert not torch.isinf(logits[:3]).any()


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, seed=3)])
def test_output_stays_that_of_the_target(target: LLM, sampling: Sampling) -> None:
    plain = load(target, "none", device="cpu", kv_tokens=600).generate(PROMPTS, sampling, 20, ignore_eos=True)
    mine = load(target, "stand:observe_prompt=true", device="cpu", kv_tokens=600, coupled=True).generate(
        PROMPTS, sampling, 20, ignore_eos=True
    )
    assert [output.token_ids for output in mine] == [output.token_ids for output in plain]


def test_nobody_else_pays_for_it(target: LLM) -> None:
    llm = load(target, "stand", device="cpu", kv_tokens=600)
    rows: list[int] = []
    honest = llm.runner.forward

    def count(batch):  # type: ignore[no-untyped-def]
        rows.append(len(batch.logit_rows))
        return honest(batch)

    llm.runner.forward = count  # type: ignore[method-assign]
    llm.generate(PROMPTS[:1], max_tokens=1)
    assert rows == [1]
