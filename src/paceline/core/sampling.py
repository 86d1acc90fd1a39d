"""How the next token is chosen from logits: the user's settings, validated once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from numbers import Integral, Real

from paceline.core.errors import UsageError

REAL = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
WHOLE = ("top_k", "no_repeat_ngram", "seed", "n", "logprobs")


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings of a request. The default is greedy decoding.

    Args:
        temperature: 0 is greedy (ties to the lowest id).
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set whose mass reaches p.
        min_p: drop tokens less likely than `min_p` times the most likely one.
        repetition_penalty: divide (multiply if negative) logits of tokens seen in prompt or output (Keskar et al. 2019, sec. 4.1).
        presence_penalty: subtract once for tokens already in the output.
        frequency_penalty: subtract per occurrence in the output.
        no_repeat_ngram: forbid n-grams of this size to occur twice in prompt and output; 0 allows them.
        logit_bias: added to the logits of given ids; `-inf` forbids a token.
        seed: key of all randomness of the request.
        n: independent samples of the same prompt.
        logprobs: number of most likely alternatives to report per token (0 reports the chosen token only); `None` reports none.

    Raises:
        UsageError: for a value of the wrong type or outside its range, naming the option.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    n: int = 1
    logprobs: int | None = None

    def __post_init__(self) -> None:
        self._check_types()
        rules = {
            "temperature": (isfinite(self.temperature) and self.temperature >= 0, "a finite number >= 0"),
            "top_k": (self.top_k >= 0, "an integer >= 0 (0 keeps every token)"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "min_p": (0 <= self.min_p <= 1, "in [0, 1]"),
            "repetition_penalty": (isfinite(self.repetition_penalty) and self.repetition_penalty > 0, "a finite number > 0"),
            "presence_penalty": (isfinite(self.presence_penalty), "finite"),
            "frequency_penalty": (isfinite(self.frequency_penalty), "finite"),
            "no_repeat_ngram": (self.no_repeat_ngram >= 0, "an integer >= 0 (0 allows repeats)"),
            "n": (self.n >= 1, "an integer >= 1"),
            "logprobs": (self.logprobs is None or self.logprobs >= 0, "None or an integer >= 0"),
        }
        for name, (valid, wanted) in rules.items():
            if not valid:
                raise UsageError(f"sampling option {name}={getattr(self, name)!r} must be {wanted}")

    def _check_types(self) -> None:
        """NumPy's numbers are as good as Python's."""
        for name in (*REAL, *WHOLE):
            value, kind = getattr(self, name), Real if name in REAL else Integral
            if not isinstance(value, kind) and not (name == "logprobs" and value is None):
                raise UsageError(f"sampling option {name}={value!r} must be {'a number' if kind is Real else 'an integer'}")
        bias = self.logit_bias
        pairs = bias.items() if isinstance(bias, Mapping) else [(None, None)]
        if not all(isinstance(token, Integral) and isinstance(value, Real) for token, value in pairs):
            raise UsageError(f"sampling option logit_bias={bias!r} must map token ids to numbers")

    @property
    def greedy(self) -> bool:
        """Whether every token is the argmax of the processed logits."""
        return self.temperature == 0.0

    @property
    def uses_history(self) -> bool:
        """Whether the processed logits depend on the tokens before them."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.no_repeat_ngram > 0

    @property
    def plain_logits(self) -> bool:
        """Whether greedy decoding may take the argmax of raw logits."""
        return not self.uses_history and not self.logit_bias
