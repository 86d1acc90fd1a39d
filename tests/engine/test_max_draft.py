"""How large drafts may be: what the method's options ask for, unless the user says otherwise."""

from __future__ import annotations

import pytest

from paceline.bench.audit.toy import toy_decoder
from paceline.core.errors import UsageError
from paceline.core.registry import METHODS, parse
from paceline.drafting.base import USUAL_DRAFT, largest_draft
from paceline.engine.llm import LLM
from paceline.engine.load import load


@pytest.fixture(scope="module")
def target() -> LLM:
    return load(toy_decoder(16, seed=3), "none", device="cpu", pack=False, kv_tokens=4)


@pytest.mark.parametrize(
    ("method", "most"),
    [
        ("stand", 80),
        ("stand:nodes=300", 300),
        ("lookahead", 63),
        ("dyspec:budget=768", 768),
        ("dyspec:budget=auto", USUAL_DRAFT),
        ("sequoia:nodes=128", 128),
        ("draft-model:length=3,branching=4x3x2", 4 + 12 + 24),
        ("lookahead+stand", 63 + 80),
    ],
)
def test_options_say_how_much_is_wanted(target: LLM, method: str, most: int) -> None:
    assert largest_draft([choice.config() for choice in parse(method)]) == most
    llm = load(target, method, draft=target, device="cpu", kv_tokens=600, max_sequences=2)
    assert llm.engine.config.max_draft == most


def test_every_method_has_room_for_a_draft() -> None:
    assert all(largest_draft([row.load().Config()]) >= 0 for row in METHODS if hasattr(row.load(), "Config"))


def test_a_budget_of_768_is_not_cut(target: LLM) -> None:
    method = "dyspec:budget=768,mode=budget,depth=4,temperature=5"
    llm = load(target, method, draft=target, device="cpu", kv_tokens=2000, max_sequences=1)
    (output,) = llm.generate([[1, 2, 3]], max_tokens=9, ignore_eos=True)
    assert output.stats.drafted / output.stats.forwards > 200


@pytest.mark.parametrize("most", [0, 5])
def test_the_user_has_the_last_word(target: LLM, most: int) -> None:
    llm = load(target, "dyspec:budget=30", draft=target, device="cpu", kv_tokens=600, max_draft=most)
    (output,) = llm.generate([[1, 2, 3]], max_tokens=12, ignore_eos=True)
    assert output.stats.drafted <= most * output.stats.forwards
    with pytest.raises(UsageError, match="max_draft=-1"):
        load(target, "none", device="cpu", max_draft=-1)
