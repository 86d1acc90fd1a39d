"""Sampling settings: ranges are checked where they are made, and the flags that choose a code path are right."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import numpy as np
import pytest

from paceline.core.errors import UsageError
from paceline.core.sampling import Sampling


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", -0.1),
        ("temperature", inf),
        ("temperature", nan),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", nan),
        ("min_p", -0.01),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", inf),
        ("presence_penalty", nan),
        ("frequency_penalty", -inf),
        ("no_repeat_ngram", -2),
        ("n", 0),
        ("logprobs", -1),
        ("temperature", None),
        ("temperature", "hot"),
        ("top_k", 2.5),
        ("top_k", "3"),
        ("top_p", [0.5]),
        ("no_repeat_ngram", 1.5),
        ("seed", 1.5),
        ("seed", None),
        ("n", 2.5),
        ("logprobs", 2.5),
        ("logit_bias", [3]),
        ("logit_bias", {"a": 1.0}),
        ("logit_bias", {3: "x"}),
    ],
)
def test_a_value_out_of_range_is_named(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{option}=") as caught:
        Sampling(**{option: value})
    assert "\n" not in str(caught.value)


def test_limits_of_the_ranges_are_allowed() -> None:
    Sampling(temperature=0, top_k=0, top_p=1, min_p=1, repetition_penalty=1e-3, presence_penalty=-2, frequency_penalty=-2, logprobs=0)


def test_numbers_of_numpy_are_numbers() -> None:
    Sampling(temperature=np.float32(0.5), top_k=np.int64(3), seed=np.uint32(7), logit_bias={np.int64(3): np.float64(-1)})


def test_the_default_is_plain_greedy() -> None:
    assert (Sampling().greedy, Sampling().plain_logits, Sampling().uses_history) == (True, True, False)
    assert not Sampling(temperature=1e-6).greedy


@pytest.mark.parametrize(
    "option", [{"repetition_penalty": 1.1}, {"presence_penalty": -0.5}, {"frequency_penalty": 0.1}, {"no_repeat_ngram": 3}]
)
def test_options_that_read_history_say_so(option: dict[str, Any]) -> None:
    sampling = Sampling(**option)
    assert sampling.uses_history
    assert not sampling.plain_logits


def test_bias_changes_greedy_but_reads_no_history() -> None:
    sampling = Sampling(logit_bias={0: 1.0})
    assert not sampling.uses_history
    assert not sampling.plain_logits
    assert Sampling(top_k=5, top_p=0.5, min_p=0.1).plain_logits  # none of these moves the argmax
