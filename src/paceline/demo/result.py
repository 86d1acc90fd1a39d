"""What the demo found: every prompt completed both ways, with the runs of every forward, and totals over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paceline.core.sampling import Sampling
    from paceline.engine.output import Stats
    from paceline.zoo.prompts import HeldOutPrompt


@dataclass(frozen=True, slots=True)
class Run:
    """The tokens that one forward made.

    Args:
        ids: in order.
        drafted: how many of them, from the first, were drafted and accepted; the target chose the rest itself.
        seconds: when they were there, since the prompt arrived.
    """

    ids: tuple[int, ...]
    drafted: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Side:
    """One way of completing one prompt; of several repeats, the one with the median decoding time."""

    runs: tuple[Run, ...]
    stats: Stats

    @property
    def ids(self) -> list[int]:
        """All tokens."""
        return [token for run in self.runs for token in run.ids]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether two outputs agree.

    Args:
        kind: `identical`, `tie` (the two candidates were equal up to rounding) or `violation`.
        position: of the first difference, in the output.
        margin: by how much the plain choice led in logits there.
    """

    kind: str
    position: int | None = None
    margin: float | None = None

    def __str__(self) -> str:
        if self.position is None:
            return self.kind
        margin = "" if self.margin is None else f", margin {self.margin:.2g}"
        return f"{self.kind} at token {self.position}{margin}"


@dataclass(frozen=True, slots=True)
class Completion:
    """One prompt, completed both ways.

    Args:
        prompt: what was completed, and what the file really says.
        pieces: text of every token of `fast`.
        plain, fast: the two sides.
        verdict: of the audit: `identical`, or what differed and how much that means.
    """

    prompt: HeldOutPrompt
    pieces: tuple[str, ...]
    plain: Side
    fast: Side
    verdict: Verdict

    @property
    def speed_up(self) -> float:
        """Decoding speed over plain decoding speed."""
        plain = self.plain.stats.tokens_per_second
        return self.fast.stats.tokens_per_second / plain if plain else 0.0


@dataclass(frozen=True, slots=True)
class Demo:
    """Everything the table, the picture and the page show."""

    model: str
    method: str
    draft: str | None
    dtype: str
    repeats: int
    sampling: Sampling
    completions: tuple[Completion, ...]

    def total(self, side: str) -> float:
        """Tokens per second over all prompts of `plain` or `fast`."""
        stats: list[Stats] = [getattr(entry, side).stats for entry in self.completions]
        seconds = sum(entry.decode_seconds for entry in stats)
        return sum(entry.tokens_per_second * entry.decode_seconds for entry in stats) / seconds if seconds else 0.0

    @property
    def speed_up(self) -> float:
        """Total decoding speed over plain total decoding speed."""
        plain = self.total("plain")
        return self.total("fast") / plain if plain else 0.0

    @property
    def tokens_per_forward(self) -> float:
        """Output tokens of the accelerated side per target forward."""
        forwards = sum(entry.fast.stats.forwards for entry in self.completions)
        return sum(len(entry.fast.ids) for entry in self.completions) / forwards if forwards else 0.0

    @property
    def acceptance(self) -> float:
        """Accepted share of drafted tokens."""
        drafted = sum(entry.fast.stats.drafted for entry in self.completions)
        return sum(entry.fast.stats.accepted for entry in self.completions) / drafted if drafted else 0.0

    @property
    def identical(self) -> int:
        """Prompts whose two outputs agree token for token."""
        return sum(entry.verdict.kind == "identical" for entry in self.completions)

    @property
    def violated(self) -> bool:
        """Whether any output differs by more than rounding."""
        return any(entry.verdict.kind == "violation" for entry in self.completions)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "model": self.model,
            "method": self.method,
            "draft": self.draft,
            "dtype": self.dtype,
            "repeats": self.repeats,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "seed": self.sampling.seed,
            "plain_tokens_per_second": self.total("plain"),
            "tokens_per_second": self.total("fast"),
            "speed_up": self.speed_up,
            "tokens_per_forward": self.tokens_per_forward,
            "acceptance_rate": self.acceptance,
            "identical": self.identical,
            "prompts": [
                {
                    "file": entry.prompt.name,
                    "line": entry.prompt.line,
                    "plain_tokens_per_second": entry.plain.stats.tokens_per_second,
                    "tokens_per_second": entry.fast.stats.tokens_per_second,
                    "speed_up": entry.speed_up,
                    "tokens_per_forward": entry.fast.stats.tokens_per_forward,
                    "verdict": str(entry.verdict),
                    "runs": [len(run.ids) for run in entry.fast.runs],
                    "text": "".join(entry.pieces),
                    "stats": entry.fast.stats.to_dict(),
                }
                for entry in self.completions
            ],
        }
