"""What STAND learns at a position: the target's law there, and, where wished, some of what was really said."""

from __future__ import annotations

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
from paceline.drafting.stand.table import Context, Entry, NgramTable
from paceline.drafting.stand.walk import Walk

UNKNOWN = -1  # what follows a node that was judged and rejected
NOTHING: Mapping[int, Likeliest] = MappingProxyType({})


@dataclass(slots=True)
class Lesson:
    """One position to learn from.

    Args:
        space: of the table.
        sampling: settings of the request.
        context: tokens up to the position, as many as the longest context at least.
        row: of the logits.
        said: the token that followed, or `UNKNOWN`.
    """

    space: Space
    sampling: Sampling
    context: Context
    row: int
    said: int = UNKNOWN


def along(space: Space, sequence: Sequence, longest: int, start: int, rows: int) -> list[Lesson]:
    """Lessons of `rows` tokens of a sequence from `start` on, each with the token that stands behind it."""
    tokens, sampling = sequence.tokens, sequence.request.sampling
    places = range(start, start + rows)
    return [Lesson(space, sampling, tuple(tokens[max(0, at + 1 - longest) : at + 1]), at - start, tokens[at + 1]) for at in places]


def judged(walk: Walk, tree: TokenTree, verdict: Verdict, start: int, rejected: bool) -> Iterator[Lesson]:
    """Lessons of a judged tree: of the nodes on the accepted path, top down, or of all.

    Args:
        start: row of the root.
        rejected: whether nodes that were not accepted teach too.
    """
    space, sampling, context = walk.space, walk.sequence.request.sampling, walk.tail
    said = zip((ROOT, *verdict.accepted), verdict.tokens, strict=False)  # a sequence may end within them
    if rejected:
        known = dict(said)
        for node in range(len(tree)):
            context = (*walk.tail, *(tree.token[step] for step in tree.path(node)))
            yield Lesson(space, sampling, context, start + node, known.get(node, UNKNOWN))
        return
    for node, token in said:
        if node != ROOT:
            context = (*context, tree.token[node])
        yield Lesson(space, sampling, context, start + node, token)


def learn(
    table: NgramTable,
    config: StandConfig,
    lessons: Many[Lesson],
    logits: Float[Tensor, "rows vocabulary"],
    known: Mapping[int, Likeliest] = NOTHING,
) -> None:
    """Average the laws of some rows into the table, for every context length, in the order given.

    Args:
        logits: processed, as taps hand them over.
        known: likeliest tokens of laws that verification has worked out already, by row; what they lack is worked out here, with the
            same bits.
    """
    entries: dict[int, Entry] = {}  # by lesson
    groups: dict[tuple[float, ...], list[int]] = {}
    for at, lesson in enumerate(lessons):
        likely = None if lesson.sampling.greedy else known.get(lesson.row)
        if likely is None:
            groups.setdefault(law_of(lesson.sampling), []).append(at)
        else:
            ids, probs = likely
            entries[at] = Entry.of(ids[: config.candidates], probs[: config.candidates])
    for members in groups.values():
        rows = torch.tensor([lessons[at].row for at in members], device=logits.device)
        laws = target_distribution(logits[rows], remembered(lessons[members[0]].sampling, config.greedy_temperature)).float()
        if config.said > 0:
            laws = _leaning(laws, [lessons[at].said for at in members], config.said)
        entries.update(zip(members, (Entry.of(*found) for found in likeliest(list(laws), config.candidates)), strict=True))
    lengths = config.lengths
    for at, lesson in enumerate(lessons):
        contexts = [lesson.context[-length:] for length in lengths if length <= len(lesson.context)]
        table.observe(lesson.space, contexts, entries[at])


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
