"""The method table and the method string that users write."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from paceline.core import registry
from paceline.core.errors import UsageError
from paceline.core.registry import Method, find, parse


@dataclass(frozen=True)
class Toy:
    """Stands in for an implementation; the class attribute `Config` is all that parsing needs."""

    @dataclass(frozen=True)
    class Config:
        length: int = 4
        threshold: float = 0.5
        shape: str = "chain"
        tree: bool = False


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Method:
    method = Method("toy", "drafting", "a toy", *registry.EXACT, f"{__name__}:Toy")
    monkeypatch.setattr(registry, "METHODS", (*registry.METHODS, method))
    monkeypatch.setattr(Method, "load", lambda self: Toy)
    return method


def test_rows_are_complete_and_names_unique() -> None:
    names = [method.name for method in registry.METHODS]
    assert len(set(names)) == len(names)
    for method in registry.METHODS:
        assert method.summary
        assert not set(method.name) & set("+:,= ")  # would break the method string
        assert ":" in method.target
        assert find(method.name) is method


def test_plain_decoding_is_a_method() -> None:
    assert find("none").greedy == "token-identical"


def test_an_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"nonsense.*known:.*none"):
        parse("nonsense")


def test_options_are_split_and_normalised(toy: Method) -> None:
    (choice,) = parse(" toy: length = 8 , threshold=0.25,")
    assert choice.method is toy
    assert choice.options == {"length": "8", "threshold": "0.25"}
    assert choice.config() == Toy.Config(length=8, threshold=0.25)


def test_methods_compose_with_a_plus(toy: Method) -> None:
    first, second = parse("toy:tree=true + none")
    assert (first.method.name, second.method.name) == ("toy", "none")
    assert first.config().tree is True


def test_hyphens_in_options_mean_underscores(toy: Method) -> None:
    with pytest.raises(UsageError, match="no_such"):
        parse("toy:no-such=1")[0].config()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("toy:length", "key=value"),
        ("toy:length=many", "length"),
        ("toy:size=3", r"no option 'size'.*length"),
    ],
)
def test_malformed_options_are_named(toy: Method, text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse(text)[0].config()


def test_a_method_without_options_says_so() -> None:
    with pytest.raises(UsageError, match="'none' has no option 'foo'; it has no options at all"):
        parse("none:foo=1")[0].config()


def test_a_value_out_of_range_is_said_in_the_words_of_its_method() -> None:
    with pytest.raises(UsageError) as caught:
        parse("prompt-lookup:length=-3")[0].config()
    assert str(caught.value) == "prompt-lookup: length=-3 must be >= 0"


def test_a_method_is_named_by_a_text() -> None:
    with pytest.raises(UsageError, match="method=None must be a text"):
        parse(None)  # type: ignore[arg-type]


def test_defaults_need_no_options(toy: Method) -> None:
    assert parse("toy")[0].config() == Toy.Config()
