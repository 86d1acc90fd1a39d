"""STAND's table and its draws by kernels, on a CPU that has them: the rules of `table` and `draw`, number for number."""

from __future__ import annotations

from array import array
from collections.abc import Hashable
from collections.abc import Sequence as Many

from paceline.core.transform import Likeliest
from paceline.core.tree import Proposal, TokenTree
from paceline.drafting.stand.budget import EAGER, SPAN, Prospects
from paceline.drafting.stand.draw import COPIES
from paceline.drafting.stand.table import Context, Entry
from paceline.drafting.stand.walk import Walk
from paceline.kernels.drafts import RECORD, Drafts
from paceline.kernels.judging import SEED
from paceline.kernels.ngrams import FOUND, ODDS, WALK, Ngrams

NO_COPIES = -1


class CompiledTable:
    """A `Table` whose rows a kernel keeps.

    Args:
        ngrams: the kernel.
        lengths: of contexts that it keeps.
    """

    def __init__(self, ngrams: Ngrams, lengths: tuple[int, ...]) -> None:
        self.ngrams, self.lengths = ngrams, lengths
        self._numbers: dict[Hashable, int] = {}
        self._free: list[int] = []

    @property
    def evictions(self) -> int:
        return self.ngrams.told()[1]

    def __len__(self) -> int:
        return self.ngrams.told()[0]

    def number(self, space: Hashable) -> int:
        """What the kernel knows a space by."""
        number = self._numbers.get(space)
        if number is None:
            number = self._numbers[space] = self._free.pop() if self._free else len(self._numbers)
        return number

    def learn(self, space: Hashable, text: array[int], begin: int, end: int, laws: Many[Likeliest]) -> None:
        self.ngrams.learn(self.number(space), text, begin, end, laws)

    def longest(self, space: Hashable, context: Context) -> tuple[Entry, int] | None:
        row = self.ngrams.longest(self.number(space), context)
        return None if row is None else (Entry(row[1], row[2], row[3]), len(row[0]))

    def contexts(self, space: Hashable) -> list[tuple[Context, Entry]]:
        return [(context, Entry(ids, probs, count)) for context, ids, probs, count in self.ngrams.rows(self.number(space))]

    def restore(self, space: Hashable, context: Context, entry: Entry) -> None:
        if len(context) in self.lengths:  # else nobody would find it
            self.ngrams.restore(self.number(space), context, entry.ids, entry.probs, entry.count)

    def use(self, space: Hashable) -> None:
        self.ngrams.use(self.number(space))

    def drop(self, space: Hashable) -> None:
        number = self._numbers.pop(space, None)
        if number is not None:
            self.ngrams.drop(number)
            self._free.append(number)

    def bytes(self) -> int:
        return self.ngrams.told()[2]


class CompiledDrawing:
    """Draws from such a table, as `draw.Drawing` does.

    Args:
        table: drawn from.
        copies: as there.
        width: most tokens of a row.
    """

    def __init__(self, table: CompiledTable, copies: bool, width: int) -> None:
        self.table, self._copies, self._width = table, copies, width
        self._nothing = ODDS.pack(0, 0, 0, SPAN, table.lengths[0], 0.0, 0.0, EAGER)

    def __call__(self, walks: Many[Walk], odds: Prospects | None) -> int:
        """Draw all trees together; see `draw.Drawing`."""
        asked, held = bytearray(WALK.size * len(walks)), []
        for at, walk in enumerate(walks):
            nodes = walk.most + 1
            room = array("q", bytes(8 * nodes * (3 + RECORD + 2 * self._width)))
            ends = array("q", walk.ends)
            held.append((room, ends))
            start, places = room.buffer_info()[0], walk.places
            widths, firsts, below = (0, 0, 0) if places is None else places.addresses
            text, end = walk.text.buffer_info()
            laws = start + 8 * nodes * 3
            ids = laws + 8 * nodes * RECORD
            WALK.pack_into(
                asked,
                at * WALK.size,
                self.table.number(walk.space),
                text,
                walk.begin,
                end,
                walk.step,
                widths,
                firsts,
                below,
                walk.most,
                min(COPIES.length, walk.most, walk.depth) if self._copies else NO_COPIES,
                ends.buffer_info()[0],
                len(ends),
                walk.sampled,
                walk.due,
                walk.sequence.seed & SEED,
                start,
                start + 8 * nodes,
                start + 16 * nodes,
                laws,
                ids,
                ids + 8 * nodes * self._width,
                0,
                0,
                0,
            )
        rows = self.table.ngrams.draw(asked, len(walks), self._nothing if odds is None else self._odds(odds))
        for at, (walk, (room, _)) in enumerate(zip(walks, held, strict=True)):
            nodes, drawn, doubted = FOUND.unpack_from(asked, (at + 1) * WALK.size - FOUND.size)
            most = walk.most + 1
            law = Proposal(Drafts(room, 3 * most, drawn)) if drawn else None
            walk.tree = TokenTree(tuple(room[:nodes]), tuple(room[most : most + nodes]), law)
            walk.kinds = room[2 * most : 2 * most + nodes]
            walk.asked = bool(doubted)
        return rows

    def release(self, walk: Walk) -> None:
        """Nothing is kept of a sequence."""

    def _odds(self, odds: Prospects) -> bytes:
        cost = odds.cost.table
        return ODDS.pack(
            odds.rates.buffer_info()[0], cost.buffer_info()[0], len(cost), SPAN, self.table.lengths[0], odds.pace, odds.hand, EAGER
        )
