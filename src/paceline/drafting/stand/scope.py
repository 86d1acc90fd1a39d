"""Who shares an n-gram table: spaces of the table by scope and sampling settings, and how long they live."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Literal, get_args

from paceline.core.errors import UsageError
from paceline.core.request import Sequence
from paceline.core.sampling import Sampling
from paceline.core.transform import law_of

Scope = Literal["problem", "request", "user", "process"]
SHARED_BY: dict[Scope, Callable[[Sequence], Hashable]] = {
    "problem": lambda sequence: sequence.request.prompt,  # all trajectories of one prompt
    "request": lambda sequence: sequence.uid,  # one trajectory
    "user": lambda sequence: sequence.request.tenant,
    "process": lambda sequence: None,
}
SHORT_LIVED: tuple[Scope, ...] = ("problem", "request")


@dataclass(slots=True, eq=False)
class Space:
    """One share of the table; the object itself is its name there.

    Args:
        members: running sequences that read and feed it.
        seeds: which sequence brought each seed first.
    """

    members: set[int] = field(default_factory=set)
    seeds: dict[int, int] = field(default_factory=dict)

    def fresh(self, sequence: Sequence) -> bool:
        """Whether nothing in this space was learned from another sequence with the same random numbers.

        If something was, the table depends on numbers that this sequence will use again, and a draft sampled from it must not be judged as
        if it were independent of them.
        """
        return self.seeds.setdefault(sequence.seed, sequence.uid) == sequence.uid


class Spaces:
    """The spaces of one table.

    Args:
        scope: who shares.
        idle: spaces of `problem` and `request` scope kept after their last sequence ended, the most recent ones; those of the other
            scopes stay.
        forget: told of every space that is dropped.

    Raises:
        UsageError: for an unknown scope.
    """

    def __init__(self, scope: Scope, idle: int, forget: Callable[[Space], None]) -> None:
        if scope not in get_args(Scope):
            raise UsageError(f"stand: scope={scope!r} must be one of {', '.join(get_args(Scope))}")
        self.scope, self.idle, self.forget = scope, idle, forget
        self._spaces: dict[Hashable, Space] = {}  # the least recently entered first
        self._inside: dict[int, Space] = {}  # by sequence: a long prompt takes long to hash

    def enter(self, sequence: Sequence) -> Space:
        """The space of a sequence that starts or goes on."""
        space = self._inside.get(sequence.uid)
        if space is None:
            name = self._name(sequence)
            space = self._spaces.pop(name) if name in self._spaces else Space()
            self._spaces[name] = self._inside[sequence.uid] = space
            space.members.add(sequence.uid)
        return space

    def named(self) -> list[tuple[Hashable, Space]]:
        """All spaces with the names that tell whose they are, the least recently entered first."""
        return list(self._spaces.items())

    def adopt(self, name: Hashable, space: Space) -> None:
        """Take over a space that was kept elsewhere; one of this name that is known already goes."""
        if name in self._spaces:
            known = self._spaces.pop(name)
            self._inside = {uid: entered for uid, entered in self._inside.items() if entered is not known}
            self.forget(known)
        self._spaces[name] = space

    def leave(self, sequence: Sequence) -> None:
        """A sequence finished, was cancelled or preempted."""
        self._inside.pop(sequence.uid, None)
        name = self._name(sequence)
        if name not in self._spaces:  # it never drafted
            return
        self._spaces[name].members.discard(sequence.uid)
        if self.scope == "request" and sequence.finished:
            self.forget(self._spaces.pop(name))
        elif self.scope in SHORT_LIVED:
            unused = [name for name, space in self._spaces.items() if not space.members]
            for old in unused[: max(0, len(unused) - self.idle)]:
                self.forget(self._spaces.pop(old))

    def _name(self, sequence: Sequence) -> Hashable:
        return SHARED_BY[self.scope](sequence), signature(sequence.request.sampling)


def signature(sampling: Sampling) -> Hashable:
    """Everything that shapes the law of a context: probabilities under other settings are poor drafts, so tables are kept apart by it."""
    bias = tuple(sorted(sampling.logit_bias.items()))
    penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty, sampling.no_repeat_ngram)
    return law_of(sampling), penalties, bias
