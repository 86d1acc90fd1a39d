"""Forest files: what was saved is loaded, nothing is unpickled, damage is refused, and writing is all or nothing."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from lookahead_games import VOCABULARY, drafted, lookahead, play

from paceline.core.errors import UsageError
from paceline.drafting.lookahead.trie import Forest


def target(tokens: list[int]) -> int:
    return (tokens[-1] * 21 + tokens[0]) % VOCABULARY


@pytest.mark.parametrize("store", ["trie", "table"])
def test_a_loaded_forest_drafts_the_same(tmp_path: Path, store: str) -> None:
    path = tmp_path / "new" / "forest.npz"
    saved = lookahead(store=store)
    for tenant in ("", "a"):
        for first in (1, 2, 3):
            play(saved, [first, 5], 40, target, tenant=tenant)
    play(saved, [4, 5], 40, target, tenant="a")
    saved.save(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["forest.npz"]
    loaded = lookahead(store=store, forest=str(path))
    assert list(loaded.stores) == list(saved.stores)
    for tenant in ("", "a", "b"):
        for tokens in ([1, 5], [2, 5], [4, 5], [9, 101]):
            tree = drafted(saved, tokens, tenant=tenant)
            assert drafted(loaded, tokens, tenant=tenant) == tree
    assert len(drafted(loaded, [4, 5], tenant="a")) > 8


def test_saving_squeezes(tmp_path: Path) -> None:
    drafter = lookahead(max_output_node=20)
    drafter.learn([1, *range(20), 1, *range(30), 1, 5, 1, 6, 1, 7, 8, 9])
    before = drafter.stores[""]
    assert isinstance(before, Forest)
    assert len(before.nodes(1)) > 1 + 20
    drafter.save(tmp_path / "f")
    store = lookahead(forest=str(tmp_path / "f")).stores[""]
    assert isinstance(store, Forest)
    assert store.trees
    assert all(1 < len(store.nodes(root)) <= 1 + 20 for root in store.trees)


def test_every_count_survives_a_file_whatever_was_squeezed(tmp_path: Path) -> None:
    drafter = lookahead(max_output_node=12)
    for text in ([1, 2, 3, 1, 2, 4], [1, 2, 3, 5], [1, 2], [1, 2, 3, 1, 2, 4]):
        for _ in range(3):
            drafter.learn(text)
    drafter.save(tmp_path / "f")
    loaded = lookahead(forest=str(tmp_path / "f"))
    one, other = drafter.stores[""], loaded.stores[""]
    assert isinstance(one, Forest)
    assert isinstance(other, Forest)
    found = {root: other.nodes(root) for root in other.trees}
    assert found == {root: one.nodes(root) for root in one.trees}
    assert {count for tree in found.values() for _, _, count in tree} - {1.0}  # not only what was seen once


def test_files_of_tries_that_stored_their_nodes_are_read(tmp_path: Path) -> None:
    """As they were written before: by stretches, and roots count what was squeezed away below them."""
    drafter = lookahead()
    drafter.learn([1, 2])
    drafter.save(tmp_path / "f.npz")
    token, parent = np.array([1, 2, 3, 4, 5], np.int32), np.array([-1, 0, 1, 1, 0])
    path = changed(tmp_path / "f.npz", **{"0_token": token, "0_parent": parent, "0_freq": np.array([4.0, 2.0, 1.0, 0.5, 1.0])})
    store = lookahead(forest=str(path)).stores[""]
    assert isinstance(store, Forest)
    assert store.nodes(1) == [(1, -1, 3.0), (2, 0, 2.0), (3, 1, 1.0), (4, 1, 0.5), (5, 0, 1.0)]


def changed(path: Path, **arrays: object) -> Path:
    """A copy of a file with some arrays replaced."""
    with np.load(path) as file:
        old = {name: file[name] for name in file.files}
    made = path.with_name("changed.npz")
    with made.open("wb") as file:
        np.savez(file, **(old | arrays))  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize(
    "arrays",
    [
        {"format": np.array(99)},
        {"vocabulary": np.array(7)},
        {"0_token": np.array([1, 2, VOCABULARY], np.int32)},
        {"0_parent": np.array([-1, 2, 0])},
        {"0_parent": np.array([-1, -2, 0])},
        {"0_parent": np.array([-1, 0])},
        {"0_freq": np.array([1.0, np.nan, 1.0])},
        {"0_token": np.array([1, 2, 2], np.int32), "0_parent": np.array([-1, 0, 0])},
        {"scopes": np.array(["", "b"])},
        {"0_token": np.array([{}, 1, 2], object)},
    ],
    ids=lambda arrays: "+".join(arrays),
)
def test_damage_is_refused_in_one_line(tmp_path: Path, arrays: dict[str, object]) -> None:
    drafter = lookahead()
    drafter.learn([1, 2])
    drafter.learn([1, 3])
    drafter.save(tmp_path / "f.npz")
    lookahead(forest=str(tmp_path / "f.npz"))
    with pytest.raises(UsageError, match="forest") as caught:
        lookahead(forest=str(changed(tmp_path / "f.npz", **arrays)))
    assert "\n" not in str(caught.value)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path(self.where),)  # type: ignore[attr-defined, return-value]


@pytest.mark.parametrize("kind", ["missing", "text", "pickle", "cut", "folder"])
def test_anything_else_is_refused_and_never_run(tmp_path: Path, kind: str) -> None:
    path, trace = tmp_path / "f.npz", tmp_path / "ran"
    drafter = lookahead()
    drafter.learn(list(range(50)))
    drafter.save(path)
    bomb = Bomb()
    bomb.where = str(trace)  # type: ignore[attr-defined]
    contents = {"text": b"hello", "pickle": pickle.dumps(bomb), "cut": path.read_bytes()[:-40]}
    path.unlink()
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(UsageError, match="forest"):
        lookahead(forest=str(path))
    assert not trace.exists()


def test_the_other_kind_of_store_is_named(tmp_path: Path) -> None:
    for store, other in (("trie", "table"), ("table", "trie")):
        drafter = lookahead(store=store)
        drafter.learn([1, 2, 3])
        drafter.save(tmp_path / store)
        with pytest.raises(UsageError, match=f"store={store}"):
            lookahead(store=other, forest=str(tmp_path / store))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.npz"
    drafter = lookahead()
    drafter.learn([1, 2, 3])
    drafter.save(path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    drafter.learn([4, 5, 6])
    with pytest.raises(UsageError, match="No space left"):
        drafter.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["f.npz"]
