"""STAND's kernels give what the rules in plain Python give: the same tables, in the same order of use, and the same drafts."""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_tables import compiled_table

from paceline.core.request import Request, Sequence
from paceline.core.sampling import Sampling
from paceline.core.transform import Likeliest
from paceline.core.tree import TokenTree
from paceline.drafting.stand.budget import Prospects
from paceline.drafting.stand.compiled import CompiledDrawing
from paceline.drafting.stand.draw import COPIES, Drawing
from paceline.drafting.stand.scope import Space
from paceline.drafting.stand.table import NgramTable, Table
from paceline.drafting.stand.template import Template, default_template, initial_template
from paceline.drafting.stand.walk import Walk
from paceline.kernels.ngrams import MOST_TOKENS, ngrams
from paceline.planning.cost import ForwardCost

WIDTH, TOKENS = 4, 7
LENGTHS = [(3, 2, 1), (1,), (5, 2), (4,)]


def law(numbers: random.Random) -> Likeliest:
    """Sorted as verification hands laws over, with ties, and often the same."""
    size = numbers.choice([1, 1, 2, 3, WIDTH, WIDTH + 2])
    probs = [float(np.float32(numbers.choice([0.5, 0.25, 0.125, numbers.random()]) / size)) for _ in range(size)]
    pairs = sorted(zip((-prob for prob in probs), numbers.sample(range(TOKENS), size), strict=True))
    return [token for _, token in pairs], [-prob for prob, _ in pairs]


def use(table: Table, spaces: list[Space], seed: int, capacity: int) -> None:
    """Whatever is done to tables, at random."""
    numbers = random.Random(seed)
    for _ in range(60):
        space, text = numbers.choice(spaces), array("i", [numbers.randrange(TOKENS) for _ in range(12)])
        deed = numbers.random()
        if deed < 0.6:
            begin = numbers.randrange(4)
            end = numbers.randrange(begin, 8)
            table.learn(space, text, begin, end, [law(numbers) for _ in range(numbers.randrange(5))])
        elif deed < 0.8:
            table.longest(space, tuple(text[: numbers.randrange(7)]))
        elif deed < 0.9:
            table.use(space)
        elif deed < 0.93:
            table.drop(space)
        else:
            for context, entry in table.contexts(space)[:2]:
                table.restore(space, context, entry)
                table.restore(space, (*context, 1, 2, 3, 4, 5, 6), entry)  # of no length that is looked up
        assert len(table) <= capacity


def tables(lengths: tuple[int, ...], seed: int, capacity: int) -> tuple[list[Space], NgramTable, Table]:
    """Two tables that went through the same."""
    spaces, plain, compiled = [Space() for _ in range(3)], NgramTable(lengths, WIDTH, capacity), compiled_table(lengths, WIDTH, capacity)
    use(plain, spaces, seed, capacity)
    use(compiled, spaces, seed, capacity)
    return spaces, plain, compiled


@given(st.sampled_from(LENGTHS), st.integers(0, 2**32), st.sampled_from([9, 40, 1000]))
@settings(max_examples=120, deadline=None, derandomize=True)
def test_tables_are_equal(lengths: tuple[int, ...], seed: int, capacity: int) -> None:
    spaces, plain, compiled = tables(lengths, seed, capacity)
    for space in spaces:
        assert compiled.contexts(space) == plain.contexts(space)  # to the bit, in the same order
    assert len(compiled) == len(plain)
    assert compiled.evictions == plain.evictions


def test_a_table_grows_as_it_must() -> None:
    plain, compiled = NgramTable((2, 1), 3, 20_000), compiled_table((2, 1), 3, 20_000)
    numbers = random.Random(0)
    text = array("i", [numbers.randrange(300) for _ in range(30_000)])
    laws: list[Likeliest] = [([token], [0.5]) for token in text]
    spaces = [Space() for _ in range(40)]
    for table in (plain, compiled):
        for at, space in enumerate(spaces):
            table.learn(space, text, 0, 500 * at + 1, laws[500 * at : 500 * at + 700])
    assert plain.evictions > 5000
    for space in spaces:
        assert compiled.contexts(space) == plain.contexts(space)


@dataclass(frozen=True)
class Game:
    """One batch to draft for."""

    seed: int
    lengths: tuple[int, ...]
    priced: bool
    copies: bool
    batch: int

    def walks(self, spaces: list[Space]) -> list[Walk]:
        numbers = random.Random(self.seed)
        made = []
        for uid in range(self.batch):
            source = tuple(numbers.randrange(TOKENS) for _ in range(numbers.choice([0, 0, 3])))
            text = tuple(numbers.randrange(TOKENS) for _ in range(numbers.choice([1, 2, 5, 30, 200])))
            sampling = Sampling(temperature=1.0, seed=numbers.randrange(-5, 2**40))
            ends = frozenset(numbers.sample(range(TOKENS), numbers.choice([0, 0, 1, 2])))
            member = Sequence(uid, Request(text, sampling, source=source))
            walk = Walk(member, numbers.choice(spaces), numbers.random() < 0.8, ends, len(source))
            walk.read()
            template = numbers.choice([default_template(20), initial_template(60), Template(((0,), (1,), (0, 0))), Template(())])
            walk.step, walk.most, walk.depth = len(text), numbers.choice([0, 1, 7, 40]), numbers.choice([0, 2, 20])
            walk.places, walk.due = template.cut(walk.most, walk.depth).places(), numbers.random() < 0.5
            made.append(walk)
        return made

    def odds(self) -> Prospects | None:
        if not self.priced:
            return None
        numbers = random.Random(self.seed)
        row = numbers.choice([0.0, 0.03, 0.3])
        odds = Prospects(ForwardCost(lambda rows: 1.0 + row * rows), self.lengths[0], COPIES.max_ngram)
        for kind in range(len(odds.rates)):
            odds.rates[kind] = numbers.random() ** 3
        odds.stepped(5, numbers.randrange(1, 100))
        odds.hand = numbers.choice([0.0, 0.01])
        return odds


@given(
    st.builds(Game, st.integers(0, 2**32), st.sampled_from(LENGTHS), st.booleans(), st.booleans(), st.integers(1, 5)),
    st.integers(0, 2**32),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_drafts_are_equal(game: Game, taught: int) -> None:
    spaces, plain, compiled = tables(game.lengths, taught, 400)
    drawn = []
    for drawing in (Drawing(plain, game.copies), CompiledDrawing(compiled, game.copies, WIDTH)):  # type: ignore[arg-type]
        walks = game.walks(spaces)
        rows = drawing(walks, game.odds())
        drawn.append((rows, [(*told(walk.tree), list(walk.kinds), walk.asked) for walk in walks]))
    assert drawn[0] == drawn[1]
    for space in spaces:
        assert compiled.contexts(space) == plain.contexts(space)  # a look-up is a use


def told(tree: TokenTree | None) -> tuple[object, ...]:
    assert tree is not None
    law = None if tree.proposal is None else {node: (drawn.ids, drawn.probs) for node, drawn in tree.proposal.q.items()}
    return tree.token, tree.parent, law


def test_such_batches_hold_what_they_should() -> None:
    """Control of the test above: among them are trees, copies, laws that were drawn from, and doubts."""
    found = []
    for seed in range(120):
        game = Game(seed, (3, 2, 1), seed % 3 > 0, seed % 2 > 0, 3)
        spaces, _, compiled = tables(game.lengths, seed, 400)
        walks = game.walks(spaces)
        CompiledDrawing(compiled, game.copies, WIDTH)(walks, game.odds())  # type: ignore[arg-type]
        found.extend(walks)
    trees = [walk.tree for walk in found if walk.tree is not None]
    assert sum(not tree.is_chain for tree in trees) > 20
    assert sum(tree.proposal is not None for tree in trees) > 20
    assert sum(walk.asked for walk in found) > 5
    assert sum(len(tree) > 8 for tree in trees) > 5


def test_kernels_are_not_asked_for_rows_that_are_too_wide() -> None:
    assert ngrams((1,), MOST_TOKENS + 1, 10) is None
