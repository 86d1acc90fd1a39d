"""What STAND learns at a position: the target's law there, and, where wished, some of what was really said."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from paceline.core.request import Sequence
from paceline.core.sampling import Sampling
from paceline.core.transform import law_of, target_distribution, top
from paceline.drafting.stand_config import StandConfig
from paceline.drafting.stand_scope import Space
from paceline.drafting.stand_table import Context, Entry, NgramTable

UNKNOWN = -1  # what follows a node that was judged and rejected


@dataclass(frozen=True, slots=True)
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


def learn(table: NgramTable, config: StandConfig, lessons: Many[Lesson], logits: Float[Tensor, "rows vocabulary"]) -> None:
    """Average the laws of some rows into the table, for every context length, in the order given."""
    groups: dict[tuple[float, ...], list[int]] = {}
    for at, lesson in enumerate(lessons):
        groups.setdefault(law_of(lesson.sampling), []).append(at)
    laws: dict[int, Entry] = {}
    for members in groups.values():
        rows = torch.tensor([lessons[at].row for at in members], device=logits.device)
        law = target_distribution(logits[rows], remembered(lessons[members[0]].sampling, config.greedy_temperature)).float()
        if config.said > 0:
            law = _leaning(law, [lessons[at].said for at in members], config.said)
        laws.update(zip(members, _likeliest(law, config.candidates), strict=True))
    lengths = config.lengths
    for at, lesson in enumerate(lessons):
        contexts = [lesson.context[-length:] for length in lengths if length <= len(lesson.context)]
        table.observe(lesson.space, contexts, laws[at])


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


def _likeliest(law: Float[Tensor, "rows vocabulary"], count: int) -> list[Entry]:
    """The `count` largest probabilities of each row. Laws that are nearly certain, as most are, need no search among all tokens."""
    if law.device.type == "cpu":
        table = law.numpy()
        few = [np.flatnonzero(row) for row in table]
        if all(len(ids) <= count for ids in few):
            found = []
            for row, ids in zip(table, few, strict=True):
                order = np.argsort(-row[ids], kind="stable")
                found.append(Entry.of(ids[order].tolist(), row[ids[order]].tolist()))
            return found
    best, tokens = top(law, min(count, law.shape[-1]))
    return [Entry.of(ids, probs) for ids, probs in zip(tokens.tolist(), best.tolist(), strict=True)]
