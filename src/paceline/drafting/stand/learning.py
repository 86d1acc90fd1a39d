"""What STAND learns at a position: the target's law there, and, where wished, some of what was really said."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.core.request import Sequence
from paceline.core.sampling import Sampling
from paceline.core.transform import Likeliest, law_of, likeliest, target_distribution
from paceline.core.tree import ROOT, TokenTree
from paceline.core.verdict import Verdict
from paceline.drafting.stand.config import StandConfig
from paceline.drafting.stand.scope import Space
from paceline.drafting.stand.table import Table
from paceline.drafting.stand.walk import Walk

UNKNOWN = -1  # what follows a node that was judged and rejected
NOTHING: Mapping[int, Likeliest] = MappingProxyType({})


@dataclass(slots=True)
class Lesson:
    """Consecutive positions to learn from.

    Args:
        space: of the table.
        sampling: settings of the request.
        text: the first position stands in front of `text[end]`, the next one a token later, and so on.
        begin: where contexts begin at the earliest.
        rows: of the logits, by position.
        said: the token that followed each, or `UNKNOWN`.
    """

    space: Space
    sampling: Sampling
    text: array[int]
    begin: int
    end: int
    rows: Many[int]
    said: Many[int]


def along(space: Space, sequence: Sequence, start: int, rows: int) -> Lesson:
    """Lesson of `rows` tokens of a sequence from `start` on, each with the token that stands behind it."""
    said = sequence.tokens[start + 1 : start + 1 + rows]
    return Lesson(space, sequence.request.sampling, array("i", sequence.tokens[: start + rows]), 0, start + 1, range(rows), said)


def judged(walk: Walk, tree: TokenTree, verdict: Verdict, start: int, rejected: bool) -> Iterator[Lesson]:
    """Lessons of a judged tree: of the nodes on the accepted path, top down, or of all.

    Args:
        walk: up to date with what was said.
        start: row of the root.
        rejected: whether nodes that were not accepted teach too.
    """
    space, sampling, text, first = walk.space, walk.sequence.request.sampling, walk.text, walk.begin + walk.step
    said = verdict.tokens  # a sequence may end within them
    if not rejected:
        rows = [start, *(start + node for node in verdict.accepted)][: len(said)]
        yield Lesson(space, sampling, text, walk.begin, first, rows, said)
        return
    known = dict(zip((ROOT, *verdict.accepted), said, strict=False))
    before = text[walk.begin : first]
    for node in range(len(tree)):
        path = before + array("i", [tree.token[step] for step in tree.path(node)])
        yield Lesson(space, sampling, path, 0, len(path), (start + node,), (known.get(node, UNKNOWN),))


def learn(
    table: Table,
    config: StandConfig,
    lessons: Many[Lesson],
    logits: Float[Tensor, "rows vocabulary"],
    known: Mapping[int, Likeliest] = NOTHING,
) -> None:
    """Average the laws of some rows into the table, in the order given.

    Args:
        logits: processed, as taps hand them over.
        known: likeliest tokens of laws that verification has worked out already, by row; what they lack is worked out here, with the
            same bits.
    """
    missing = [lesson for lesson in lessons if lesson.sampling.greedy or any(row not in known for row in lesson.rows)]
    worked = _worked(config, missing, logits) if missing else NOTHING
    for lesson in lessons:
        laws = [worked[row] if row in worked else known[row] for row in lesson.rows]
        table.learn(lesson.space, lesson.text, lesson.begin, lesson.end, laws)


def _worked(config: StandConfig, lessons: Many[Lesson], logits: Float[Tensor, "rows vocabulary"]) -> Mapping[int, Likeliest]:
    """Likeliest tokens of the laws of some lessons, by row."""
    groups: dict[tuple[float, ...], list[Lesson]] = {}
    for lesson in lessons:
        groups.setdefault(law_of(lesson.sampling), []).append(lesson)
    found: dict[int, Likeliest] = {}
    for members in groups.values():
        rows = [row for lesson in members for row in lesson.rows]
        laws = target_distribution(
            logits[torch.tensor(rows, device=logits.device)], remembered(members[0].sampling, config.greedy_temperature)
        ).float()
        if config.said > 0:
            laws = _leaning(laws, [token for lesson in members for token in lesson.said], config.said)
        found.update(zip(rows, likeliest(list(laws), config.candidates), strict=True))
    return found


def remembered(sampling: Sampling, greedy_temperature: float) -> Sampling:
    """The settings whose law is remembered: the request's own, or a spread-out law where the target is greedy."""
    if not sampling.greedy or greedy_temperature == 0:
        return sampling
    return replace(sampling, temperature=greedy_temperature, top_k=0, top_p=1.0, min_p=0.0)


def _leaning(law: Float[Tensor, "rows vocabulary"], said: list[int], weight: float) -> Float[Tensor, "rows vocabulary"]:
    """Laws mixed with certainty of what was said, where that is known."""
    place = torch.tensor([max(token, 0) for token in said], device=law.device).unsqueeze(-1)
    share = torch.tensor([weight * (token != UNKNOWN) for token in said], device=law.device, dtype=law.dtype).unsqueeze(-1)
    return (law * (1 - share)).scatter_add_(-1, place, share)
