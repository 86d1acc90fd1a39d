"""The tree shape of STAND: a static template whose nodes are paths of child ranks, chosen by how often each was accepted.

STAND, arXiv 2506.04708: start from a large tree, count accepted nodes on a few dozen problems, keep the most accepted ones.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import accumulate, pairwise
from math import prod
from pathlib import Path
from typing import Any

from paceline.core.errors import UsageError
from paceline.core.tree import ROOT, TokenTree

FORMAT = 1
ASSUMED = "assumed"  # stands for a template file: the tree computed from assumed acceptance
DEPTH = 20
INITIAL_NODES = 625
INITIAL_WIDTHS = (10, 5, 3, 2)  # children per node of the initial tree by depth; one below. The paper leaves its branching open.
# Assumed, not measured: chance that the child of a rank is accepted, given that its parent was. Chosen so that 80 nodes get the depth of
# about 13 that the paper reports of its optimised tree. A measured template replaces the assumption.
RANK_ACCEPTANCE = (0.72, 0.14, 0.05, 0.025, 0.015, 0.01, 0.007, 0.005, 0.004, 0.003)

RankPath = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Places:
    """The nodes of a template that want children, the root first.

    Args:
        width: how many each wants.
        first: where those of each begin in `below`.
        below: of every child the place it has itself, or -1.
    """

    width: array[int]
    first: array[int]
    below: array[int]

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Where these stand in memory."""
        return self.width.buffer_info()[0], self.first.buffer_info()[0], self.below.buffer_info()[0]


@dataclass(frozen=True, slots=True)
class Template:
    """A rooted ordered tree. Node i is the path `paths[i]` of child ranks from the root, which itself is left out.

    Paths stand in order of importance, every node behind its parent and its earlier siblings, so that any number of first paths is a
    template again.

    Args:
        paths: ranks count from 0.

    Raises:
        UsageError: if a path is empty, occurs twice, or stands before its parent or an earlier sibling.
    """

    paths: tuple[RankPath, ...]

    def __post_init__(self) -> None:
        seen: set[RankPath] = {()}
        for path in self.paths:
            before = (*path[:-1], path[-1] - 1) if path and path[-1] else ()
            if not path or path in seen or path[:-1] not in seen or before not in seen or path[-1] < 0:
                raise UsageError(f"draft tree template: path {list(path)} must be new and follow its parent and its earlier siblings")
            seen.add(path)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def depth(self) -> int:
        """Length of the longest path."""
        return max(map(len, self.paths), default=0)

    def cut(self, nodes: int, depth: int = DEPTH) -> Template:
        """The most important nodes of at most a depth."""
        return Template(tuple(path for path in self.paths if len(path) <= depth)[:nodes])

    def places(self) -> Places | None:
        """The same by places; nothing for a template without nodes."""
        widths = sorted(Counter(path[:-1] for path in self.paths).items())
        number = {path: at for at, (path, _) in enumerate(widths)}
        below = [number.get((*path, rank), -1) for path, width in widths for rank in range(width)]
        firsts = accumulate((width for _, width in widths), initial=0)
        arrays = ([width for _, width in widths], [first for first, _ in zip(firsts, widths, strict=False)], below)
        return Places(*(array("i", numbers) for numbers in arrays)) if widths else None

    def save(self, path: Path, measured: Mapping[str, Any] | None = None) -> None:
        """Write the rank paths as JSON, with a digest that `load` checks.

        Args:
            measured: what the counts behind the template were taken on (model, device, command), for the reader.

        Raises:
            UsageError: if the file cannot be written.
        """
        head = {"format": FORMAT, "kind": "draft tree template", "digest": digest(self.paths), "measured": dict(measured or {})}
        text = json.dumps(head | {"paths": self.paths})
        try:
            path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}; choose another file") from error

    @classmethod
    def load(cls, path: Path) -> Template:
        """Read what `save` wrote.

        Raises:
            UsageError: if the file is missing, is not such JSON, or holds no tree.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            version, paths = found["format"], found["paths"]
            ranks = tuple(tuple(rank for rank in entry) for entry in paths)
            signed = found.get("digest", digest(ranks))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is not a readable draft tree template ({error}); make one with optimise_template(..).save") from error
        if version != FORMAT:
            raise UsageError(f"{path} has template format {version!r}, this version reads {FORMAT}; make it again")
        if any(type(rank) is not int for entry in ranks for rank in entry):
            raise UsageError(f"{path}: the ranks of a draft tree template are whole numbers")
        if signed != digest(ranks):
            raise UsageError(f"{path}: the paths are not those that were saved; make the draft tree template again")
        return cls(ranks)


def digest(paths: Many[RankPath]) -> str:
    """Tells templates apart: the beginning of a hash of their paths."""
    return hashlib.sha256(json.dumps(paths).encode()).hexdigest()[:16]


def shipped_template() -> Template:
    """The template measured on pocket-code; the file says how."""
    return Template.load(Path(__file__).with_name("template.json"))


def named_template(name: str) -> Template | None:
    """What the option `template` names: a file, the shipped template (empty), or none to compute one (`assumed`).

    Raises:
        UsageError: if the file cannot be read.
    """
    if name == ASSUMED:
        return None
    return Template.load(Path(name)) if name else shipped_template()


def initial_template(nodes: int = INITIAL_NODES, depth: int = DEPTH) -> Template:
    """The large tree that calibration starts from: ranks 10, 5, 3, 2, then one child per level, cut by the product of ranks (from 1)."""
    widths = (*INITIAL_WIDTHS, *[1] * depth)[:depth]
    return _best(lambda path: 1 / prod(rank + 1 for rank in path), widths, nodes)


def default_template(nodes: int, depth: int = DEPTH) -> Template:
    """The tree used where none was measured: the likeliest nodes under `RANK_ACCEPTANCE`."""
    return _best(guessed, (len(RANK_ACCEPTANCE),) * depth, nodes)


def guessed(path: RankPath) -> float:
    """Assumed chance of a node to be accepted: the product over its path of what each rank is assumed to get."""
    last = len(RANK_ACCEPTANCE) - 1
    return prod(RANK_ACCEPTANCE[min(rank, last)] for rank in path)


def _best(value: Callable[[RankPath], float], widths: Many[int], nodes: int) -> Template:
    """The `nodes` paths of highest value, smaller depth first among equals; none may be worth more than its parent or earlier sibling."""
    kept: list[RankPath] = []
    heap: list[tuple[float, int, RankPath]] = []

    def offer(path: RankPath) -> None:
        if len(path) <= len(widths) and path[-1] < widths[len(path) - 1]:
            heappush(heap, (-value(path), len(path), path))

    offer((0,))
    while heap and len(kept) < nodes:
        *_, path = heappop(heap)
        kept.append(path)
        offer((*path, 0))
        offer((*path[:-1], path[-1] + 1))
    return Template(tuple(kept))


def ranks_of(tree: TokenTree, node: int) -> RankPath:
    """The child ranks that lead to a node of a draft: siblings stand in the order they were drawn."""
    path = (ROOT, *tree.path(node))
    return tuple(tree.parent[above + 1 : below].count(above) for above, below in pairwise(path))


def count_accepted(traces: Iterable[Many[int]]) -> Counter[RankPath]:
    """How often each template node was accepted, from the accepted path of every step (empty where nothing was)."""
    counts: Counter[RankPath] = Counter()
    for trace in traces:
        counts.update(tuple(trace[: length + 1]) for length in range(len(trace)))
    return counts


def most_accepted(traces: Iterable[Many[int]], size: int, depth: int = DEPTH) -> list[RankPath]:
    """The `size` nodes with the highest counts, under the ranks they were drawn with, the most accepted first.

    A child is never accepted more often than its parent, and smaller depths go first among equals, so with every node its ancestors are
    kept. Nodes of the initial tree that were never accepted fill up what is left.
    """
    counts = count_accepted(traces)
    candidates = counts.keys() | set(initial_template(depth=depth).paths)
    ordered = sorted((path for path in candidates if len(path) <= depth), key=lambda path: (-counts[path], len(path), path))
    return ordered[:size]


def optimise_template(traces: Iterable[Many[int]], size: int = 80, depth: int = DEPTH) -> Template:
    """The template of the most accepted nodes.

    Args:
        traces: of every calibration step, the child ranks along the accepted path, drafted with a large template.
        size: nodes to keep.
        depth: longest path.

    Returns:
        The kept nodes, children of a node numbered anew without gaps: a child is always the next draw, never one behind a skipped draw,
        which verification without replacement could not account for.

    Raises:
        UsageError: if the size is not positive.
    """
    if size < 1:
        raise UsageError(f"a draft tree template needs at least one node, got size={size}")
    renamed: dict[RankPath, RankPath] = {(): ()}
    children: Counter[RankPath] = Counter()
    for path in most_accepted(traces, size, depth):
        parent = renamed[path[:-1]]
        renamed[path] = (*parent, children[parent])
        children[parent] += 1
    return Template(tuple(path for path in renamed.values() if path))
