"""Draft tree templates: shape, measurement, files."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from paceline.core.errors import UsageError
from paceline.core.registry import parse
from paceline.drafting.base import DraftContext
from paceline.drafting.stand import Stand
from paceline.drafting.stand import template as stand_template
from paceline.drafting.stand.template import (
    RankPath,
    Template,
    count_accepted,
    default_template,
    digest,
    initial_template,
    most_accepted,
    optimise_template,
    shipped_template,
)


def random_traces(seed: int, steps: int = 400) -> list[RankPath]:
    """Accepted paths in the initial tree, where the second child is accepted more often than a regular tree would have it."""
    numbers = random.Random(seed)
    known = set(initial_template().paths)
    traces = []
    for _ in range(steps):
        path: RankPath = ()
        while (child := (*path, numbers.choices([0, 1, 2, 5], [5, 3, 1, 1])[0])) in known and numbers.random() < 0.7:
            path = child
        traces.append(path)
    return traces


def test_the_initial_tree_is_large_and_deep() -> None:
    template = initial_template()
    assert len(template) == 625
    assert template.depth == 20
    places = template.places()
    assert places is not None
    walked: list[tuple[RankPath, int]] = [((), 0)]
    for path, place in walked:
        width = places.width[place]
        assert width == sum(known[:-1] == path for known in template.paths)
        assert width <= (10 if len(path) != 1 else 5)
        assert width == 1 or len(path) < 4
        below = places.below[places.first[place] : places.first[place] + width]
        walked.extend(((*path, rank), child) for rank, child in enumerate(below) if child >= 0)
    assert {path for path, _ in walked} == {path[:-1] for path in template.paths}
    assert len(walked) == len(places.width)


@pytest.mark.parametrize("nodes", [1, 16, 32, 80])
def test_default_trees_have_their_size_and_grow_out_of_one_another(nodes: int) -> None:
    template = default_template(nodes)
    assert len(template) == nodes
    assert template == default_template(100).cut(nodes)
    assert template.depth <= 20


def test_the_default_tree_has_long_tails() -> None:
    """The shape that the paper reports of an optimised tree of 80 nodes: depth about 13, against 7 of a hand-made one."""
    assert 11 <= default_template(80).depth <= 15


def test_cutting_keeps_a_tree_within_its_limits() -> None:
    cut = initial_template().cut(50, depth=3)
    assert len(cut) == 50
    assert cut.depth <= 3
    assert initial_template().cut(0).places() is None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [1, 16, 80])
def test_the_kept_set_is_closed_and_no_swap_improves_it(size: int, seed: int) -> None:
    traces = random_traces(seed)
    counts = count_accepted(traces)
    kept = most_accepted(traces, size)
    assert len(set(kept)) == size
    assert all(path[:-1] in {(), *kept} for path in kept)
    accepted = sum(counts[path] for path in kept)
    assert accepted == sum(sum(trace[: length + 1] in kept for length in range(len(trace))) for trace in traces)  # tokens on the traces
    left_out = [path for path in {*initial_template().paths, *counts} if path not in kept]
    inner = {path[:-1] for path in kept}
    for gone in kept:
        for added in left_out:
            if gone not in inner and added[:-1] in {(), *kept} - {gone}:
                assert accepted - counts[gone] + counts[added] <= accepted
    # Negative control: a worse set exists, so the comparison can fail.
    if size > 1:
        assert any(counts[path] < counts[kept[0]] for path in left_out)


def test_children_are_numbered_without_gaps() -> None:
    """Skipping a drawn child is not allowed: ranks 0 and 2 of the traces become the first and second draw."""
    template = optimise_template([(0,)] * 5 + [(2, 0)] * 3, size=3)
    assert template.paths == ((0,), (1,), (1, 0))


def test_measured_templates_follow_the_measurement() -> None:
    traces = [(0,) * 15] * 9 + [(1, 0)]
    assert optimise_template(traces, size=17).depth == 15
    assert optimise_template(traces, size=17, depth=4).depth == 4
    assert len(optimise_template([], size=16)) == 16  # nothing was ever accepted
    with pytest.raises(UsageError, match="size=0"):
        optimise_template(traces, size=0)


def test_templates_come_back_from_their_files(tmp_path: Path) -> None:
    template = optimise_template(random_traces(0), 32)
    template.save(tmp_path / "tree.json")
    assert Template.load(tmp_path / "tree.json") == template
    with pytest.raises(UsageError, match="cannot write"):
        template.save(tmp_path / "no" / "tree.json")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("not json", "not a readable"),
        ("{}", "not a readable"),
        (json.dumps({"format": 1, "paths": 7}), "not a readable"),
        (json.dumps({"format": 9, "paths": []}), "format 9"),
        (json.dumps({"format": 1, "paths": [["a"]]}), "whole numbers"),
        (json.dumps({"format": 1, "paths": [[0, 0]]}), r"path \[0, 0\]"),
        (json.dumps({"format": 1, "paths": [[1]]}), r"path \[1\]"),
        (json.dumps({"format": 1, "paths": [[0], [0]]}), r"path \[0\]"),
        (json.dumps({"format": 1, "paths": [[]]}), r"path \[\]"),
        (json.dumps({"format": 1, "paths": [[-1]]}), r"path \[-1\]"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, content: str, complaint: str) -> None:
    file = tmp_path / "tree.json"
    file.write_text(content)
    with pytest.raises(UsageError, match=complaint):
        Template.load(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        Template.load(tmp_path / "nowhere.json")


@pytest.mark.parametrize("option", ["candidates=0", "candidates=65", "contexts=1x2", "contexts=a", "contexts=2x0", "nodes=-1", "depth=-1"])
def test_bad_options_are_named(option: str) -> None:
    with pytest.raises(UsageError, match=option.split("=")[0]):
        parse(f"stand:{option}")[0].config()


def test_templates_are_loaded_by_name(tmp_path: Path) -> None:
    file = tmp_path / "tree.json"
    Template(((0,), (1,))).save(file)
    config = parse(f"stand:template={file},scope=process")[0].config()
    drafter = Stand.build(config, DraftContext(12, frozenset(), lambda rows: 1.0))
    assert drafter.template == Template(((0,), (1,)))


def test_the_shipped_template_says_how_it_was_measured() -> None:
    drafter = Stand.build(parse("stand")[0].config(), DraftContext(12, frozenset(), lambda rows: 1.0))
    assert drafter.template == shipped_template()
    assert len(shipped_template()) == 80
    assumed = Stand.build(parse("stand:template=assumed")[0].config(), DraftContext(12, frozenset(), lambda rows: 1.0))
    assert assumed.template is None
    record = json.loads((Path(stand_template.__file__).with_name("template.json")).read_text())
    assert {"model", "device", "steps", "command"} <= set(record["measured"])
    assert record["digest"] == digest(shipped_template().paths)


def test_a_template_whose_paths_were_changed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tree.json"
    Template(((0,), (1,), (0, 0))).save(file, {"model": "toy"})
    record = json.loads(file.read_text())
    record["paths"].append([1, 0])
    file.write_text(json.dumps(record))
    with pytest.raises(UsageError, match="not those that were saved"):
        Template.load(file)
