"""Options of Lookahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from paceline.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class LookaheadConfig:
    """Options of Lookahead. Defaults are those of its paper's code but where decision 0013 says otherwise.

    Args:
        mode: `hier` a tree, `par` its branches side by side without sharing, `one` the best branch; `_mix` drafts from the request
            itself (prompt and what was answered so far) and from all outputs, `_input` from the prompt alone, `_output` from outputs alone.
        decoding_length: rows of a step that one forward judges, roots included; shared by the sequences of a batch.
        branch_length: deepest draft below the pending token.
        max_query: most recent tokens looked up, longest suffix first.
        budget: `fixed` sends all that was found; `critical` as many rows as cost about one; `measured` as many as pay, given the cost of
            a forward on this device and how often such candidates were right.
        store: `trie`, or `table` for the hash table of flat branches (outputs only).
        output_weight: of outputs beside the prompt when ranking in `mix`; small means the prompt comes first.
        reserve_output, reserve_input: share of an overfull `mix` tree kept for the likeliest branches of that source alone.
        max_output_node: nodes of one output tree (all that followed one token) beyond which it is squeezed.
        max_node: tokens kept in one prompt tree beyond which it grows no more.
        squeeze_after: changed output trees after which sizes are checked, when a request ends.
        stop_words: ids joined by x, as in 13x198, that are no query by themselves and root no output tree (punctuation).
        forest: file written by `paceline warm` to start from.
        scope: tenant of requests that name none; tenants never draft from one another's outputs.
        max_scopes: most tenants whose outputs are kept; the one served longest ago is forgotten.
        table_bytes: size of a tenant's hash table.
    """

    mode: Literal["hier_mix", "hier_input", "hier_output", "par_mix", "par_input", "par_output", "one_mix", "one_input", "one_output"] = (
        "hier_mix"
    )
    decoding_length: int = 64
    branch_length: int = 16
    max_query: int = 4
    budget: Literal["fixed", "critical", "measured"] = "measured"
    store: Literal["trie", "table"] = "trie"
    output_weight: float = 1e-4
    reserve_output: float = 0.5
    reserve_input: float = 0.0
    max_output_node: int = 512
    max_node: int = 65536
    squeeze_after: int = 1024
    stop_words: str = ""
    forest: str = ""
    scope: str = ""
    max_scopes: int = 64
    table_bytes: int = 1 << 24

    def __post_init__(self) -> None:
        lowest = {"decoding_length": 1, "branch_length": 0, "max_query": 1, "max_output_node": 1, "max_node": 1, "squeeze_after": 1}
        for name, least in (lowest | {"max_scopes": 1, "table_bytes": 1 << 12}).items():
            if getattr(self, name) < least:
                raise UsageError(f"lookahead: {name}={getattr(self, name)} must be at least {least}")
        for name in ("output_weight", "reserve_output", "reserve_input"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"lookahead: {name}={getattr(self, name)} must be between 0 and 1")
        if self.reserve_output + self.reserve_input > 1:
            raise UsageError("lookahead: reserve_output and reserve_input together must not exceed 1")
        if self.store == "table" and self.source == "input":
            raise UsageError(f"lookahead: store=table holds outputs only, mode={self.mode} needs store=trie")
        try:
            words = self.stops
        except ValueError:
            raise UsageError(f"lookahead: stop_words={self.stop_words!r} must be ids joined by x, as in 13x198") from None
        if any(word < 0 for word in words):
            raise UsageError(f"lookahead: stop_words={self.stop_words!r} must not be negative")

    @property
    def most_draft(self) -> int:
        """Nodes of the largest draft."""
        return self.decoding_length - 1

    @property
    def shape(self) -> str:
        """`hier`, `par` or `one`."""
        return self.mode.partition("_")[0]

    @property
    def source(self) -> str:
        """`mix`, `input` or `output`."""
        return self.mode.partition("_")[2]

    @property
    def stops(self) -> frozenset[int]:
        """The stop words as ids."""
        return frozenset(int(part) for part in self.stop_words.split("x") if part)

    @property
    def stored_length(self) -> int:
        """Tokens kept behind a tree's root, so that the longest query still leaves a whole branch."""
        return self.branch_length + self.max_query - 1
