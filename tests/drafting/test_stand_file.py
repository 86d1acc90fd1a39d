"""STAND's tables on disk: they come back as they were, and nothing else is accepted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from paceline.bench.markov_source import MarkovSource, trajectories
from paceline.core.errors import UsageError
from paceline.core.registry import parse
from paceline.core.sampling import Sampling
from paceline.drafting.base import DraftContext
from paceline.drafting.stand import Stand
from paceline.drafting.stand.config import StandConfig

SOURCE = MarkovSource.random(vocabulary=12, support=3, seed=2)
CONTEXT = DraftContext(12, frozenset(), lambda rows: 1.0)
SAMPLED = Sampling(temperature=1.0, top_p=0.9)


def taught(scope: str = "process") -> Stand:
    drafter = Stand(StandConfig(scope=scope, nodes=12), vocabulary=12)  # type: ignore[arg-type]
    SOURCE.run(drafter, trajectories(5, 80, SAMPLED))
    return drafter


def entries(drafter: Stand) -> dict[object, object]:
    return {
        (name, context): (entry.ids, tuple(np.float32(entry.probs)), entry.count)
        for name, space in drafter._spaces.named()
        for context, entry in drafter.table.contexts(space)
    }


@pytest.mark.parametrize("scope", ["process", "user", "problem"])
def test_tables_come_back(tmp_path: Path, scope: str) -> None:
    first = taught(scope)
    first.save(tmp_path / "table")
    second = Stand.build(parse(f"stand:scope={scope},nodes=12,table={tmp_path / 'table'}")[0].config(), CONTEXT)
    assert entries(second) == entries(first)
    assert len(second.table) == len(first.table) > 50
    fresh = [SOURCE.run(Stand(StandConfig(scope=scope, nodes=12)), [member]) for member in trajectories(2, 80, SAMPLED, first_seed=50)]  # type: ignore[arg-type]
    warm = [SOURCE.run(second, [member]) for member in trajectories(2, 80, SAMPLED, first_seed=50)]
    assert sum(warm) < sum(fresh)


def test_a_saved_seed_is_still_a_used_seed(tmp_path: Path) -> None:
    """Laws were learned from sequences with these random numbers: who repeats one is judged by plain samples."""
    taught().save(tmp_path / "table")
    second = Stand(StandConfig(scope="process", nodes=12), vocabulary=12)
    second.load(tmp_path / "table")
    ((_, space),) = second._spaces.named()
    old, new = trajectories(1, 10, SAMPLED)[0], trajectories(1, 10, SAMPLED, first_seed=999)[0]
    assert not space.fresh(old)
    assert space.fresh(new)


def test_forgetting_leaves_nothing() -> None:
    drafter = taught()
    drafter.forget()
    assert len(drafter.table) == 0
    assert not drafter._spaces.named()


@pytest.mark.parametrize(("option", "complaint"), [("candidates=5", "width"), ("scope=user", "scope")])
def test_files_of_other_options_are_refused(tmp_path: Path, option: str, complaint: str) -> None:
    taught().save(tmp_path / "table")
    with pytest.raises(UsageError, match=complaint):
        Stand.build(
            parse(f"stand:{option},table={tmp_path / 'table'}" + ("" if "scope" in option else ",scope=process"))[0].config(), CONTEXT
        )
    with pytest.raises(UsageError, match="vocabulary"):
        Stand.build(parse(f"stand:scope=process,table={tmp_path / 'table'}")[0].config(), DraftContext(13, frozenset(), lambda rows: 1.0))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    drafter = taught()
    path = tmp_path / "table"
    drafter.save(path)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}

    def wrong(**changed: object) -> None:
        with (tmp_path / "bad").open("wb") as file:
            np.savez(file, **(arrays | changed))  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"damaged|no table file"):
            drafter.load(tmp_path / "bad")

    wrong(**{"0_probs": arrays["0_probs"] * 3})
    wrong(**{"0_probs": arrays["0_probs"] * 0})
    wrong(**{"0_ids": arrays["0_ids"] + 90})
    wrong(**{"0_length": arrays["0_length"] + 1})
    wrong(head=np.array(json.dumps({"format": 1})))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UsageError, match="option table"):
        drafter.load(path)
    with pytest.raises(UsageError, match="nowhere"):
        drafter.load(tmp_path / "nowhere")
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        drafter.save(blocked / "table")
