"""The bench runner: fair turns, ratios within a round, decoding time told apart from prefill, and records that can be resumed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from paceline.bench.audit.toy import toy_decoder
from paceline.bench.peers_base import PeerRun
from paceline.bench.plots import plot_bench
from paceline.bench.runner import Cell, PeerContender, Sample, add_counts, decode_span, run_cell
from paceline.bench.suite import BenchSettings, run_bench, split_methods
from paceline.bench.tables import bench_markdown, bench_table
from paceline.core.errors import UsageError
from paceline.core.sampling import Sampling
from paceline.engine.load import load
from paceline.engine.output import Output, Stats


@dataclass
class Clockwork:
    """A contender that always takes the same time, and notes when it was asked."""

    name: str
    seconds: list[float]
    log: list[str]
    ids: list[list[int]] = field(default_factory=lambda: [[1, 2], [3, 4]])

    def measure(self, cell: Cell) -> Sample:
        self.log.append(self.name)
        taken = self.seconds[sum(name == self.name for name in self.log) - 1]
        return Sample(
            self.ids, 4, taken, taken + 1, [1.0], [taken / 4], 2, {"forward": 3.0, "draft": 1.0, "emit": 1.0}, (4, 2), (3, 1), 6, 4
        )


def cell(repeats: int) -> Cell:
    return Cell("w", [(1,), (2,)], Sampling(), 2, 1, repeats)


def test_contenders_take_turns_and_the_first_round_warms_up() -> None:
    log: list[str] = []
    plain = Clockwork("none", [99.0, 1.0, 2.0, 4.0], log)
    other = Clockwork("x", [99.0, 0.5, 0.5, 1.0], log, ids=[[1, 2], [3, 5]])
    rows = run_cell(cell(3), [plain, other])
    assert log == ["none", "x", "x", "none", "none", "x", "x", "none"]
    assert [row["method"] for row in rows] == ["none", "x"]
    assert rows[1]["speedup"] == 4.0  # median of 2, 4, 4, not the ratio of medians
    assert (rows[1]["speedup_lowest"], rows[1]["speedup_highest"]) == (2.0, 4.0)
    assert rows[1]["tokens_per_second"] == 8.0
    assert (rows[0]["identical_outputs"], rows[1]["identical_outputs"]) == (2, 1)
    assert rows[1]["tokens_per_forward"] == 2.0
    assert rows[1]["acceptance_by_depth"] == [0.75, 0.5]
    assert rows[1]["phase_shares"]["overhead"] == pytest.approx(0.2)
    json.dumps(rows, allow_nan=False)


def test_without_plain_decoding_there_is_no_speedup() -> None:
    assert "speedup" not in run_cell(cell(1), [Clockwork("x", [1.0, 1.0], [])])[0]


def output(times: Sequence[float], runs: Sequence[int]) -> Output:
    empty: dict[str, Any] = dict.fromkeys(Stats.__dataclass_fields__, 0)
    return Output("", [0] * sum(runs), "length", None, Stats(**(empty | {"times": tuple(times), "runs": tuple(runs), "peak_bytes": {}})))  # type: ignore[arg-type]


def test_decoding_starts_when_the_last_sequence_has_begun() -> None:
    """The second sequence waits for its prompt until 3; what the first emitted by then is prefill time's, not decoding's."""
    group = [output([1.0, 2.0, 4.0, 5.0], [1, 2, 3, 1]), output([3.0, 4.0, 7.0], [1, 1, 2])]
    assert decode_span(group) == (3 + 1 + 1 + 2, 4.0)
    assert decode_span(group[:1]) == (6, 4.0)
    assert add_counts([(1, 2, 3), (4,), ()]) == (5, 2, 3)


def test_real_statistics_agree_with_the_span() -> None:
    llm = load(toy_decoder(8, seed=1), "prompt-lookup", device="cpu", kv_tokens=400)
    (made,) = llm.generate([[1, 2, 1, 2, 1]], max_tokens=20)
    tokens, seconds = decode_span([made])
    assert tokens == 20 - made.stats.runs[0]
    assert seconds == pytest.approx(made.stats.decode_seconds)
    assert made.stats.tokens_per_second == pytest.approx(tokens / seconds)
    assert sum(made.stats.accepted_by_depth) == made.stats.accepted


class EchoPeer:
    """A peer that repeats the last token of the prompt."""

    name = "echo"

    def __init__(self) -> None:
        self.closed = False

    def available(self) -> str | None:
        return None

    def load(self, folder: Path, dtype: str, threads: int) -> None:
        assert (folder / "config.json").exists()
        assert dtype == "float32"

    def generate(self, prompt_ids: Sequence[int], max_tokens: int) -> PeerRun:
        return PeerRun([prompt_ids[-1]] * max_tokens, 0.1, 0.5, max_tokens)

    def forward_cost(self, rows: int, context: int) -> float:
        return 1.0

    def close(self) -> None:
        self.closed = True


def test_peers_are_measured_alike() -> None:
    sample = PeerContender(EchoPeer()).measure(Cell("w", [(1, 2), (3,)], Sampling(), 5, 1, 1))
    assert sample.token_ids == [[2] * 5, [3] * 5]
    assert sample.tokens_per_second == pytest.approx(8.0)


SETTINGS = BenchSettings(methods=("prompt-lookup",), workloads=("undraftable",), batches=(1, 2), prompts=2, max_tokens=6, repeats=1)


def test_bench_records_and_resumes(tmp_path: Path) -> None:
    target = toy_decoder(8, seed=1)
    path = tmp_path / "bench.json"
    seen: list[tuple[str, int, int]] = []
    record = run_bench(target, SETTINGS, out=path, on_progress=lambda *step: seen.append(step))
    assert [(row["batch"], row["method"]) for row in record.rows] == [(1, "none"), (1, "prompt-lookup"), (2, "none"), (2, "prompt-lookup")]
    assert all(row["identical_outputs"] == row["prompts"] == 2 for row in record.rows)
    assert all(row["output_tokens"] == 12 for row in record.rows)
    assert {(row["memory"], row["samples"]) for row in record.rows} == {("cold", 1)}  # nothing here keeps text
    assert seen[-1][1:] == (8, 8)
    stored = json.loads(path.read_text())
    assert stored["rows"] == json.loads(json.dumps(record.rows))

    again: list[str] = []
    kept = run_bench(target, SETTINGS, out=path, resume=True, on_progress=lambda label, *_: again.append(label))
    assert set(again) == {"undraftable, batch 1: kept", "undraftable, batch 2: kept"}
    assert kept.rows == stored["rows"]

    wider = BenchSettings(("prompt-lookup", "auto"), ("undraftable",), (1, 2), memories=("cold",), prompts=2, max_tokens=6, repeats=1)
    more = run_bench(target, wider, out=path, resume=True)
    assert [row["method"] for row in more.rows] == ["none", "prompt-lookup", "auto"] * 2
    with pytest.raises(UsageError, match="max_tokens=6, not 7"):
        run_bench(
            target, BenchSettings(("prompt-lookup",), ("undraftable",), (1,), prompts=2, max_tokens=7, repeats=1), out=path, resume=True
        )


def test_bench_with_a_peer_on_a_folder(llama_folder: Path) -> None:
    peer = EchoPeer()
    settings = BenchSettings(methods=(), workloads=("undraftable",), batches=(1,), prompts=1, max_tokens=3, repeats=1)
    record = run_bench(str(llama_folder), settings, dtype="float32", peers=[peer])
    assert [row["method"] for row in record.rows] == ["none"]  # peers are greedy, this workload is not
    assert record.settings["peers"] == ["echo"]
    assert record.settings["model"] == llama_folder.name
    assert peer.closed
    with pytest.raises(UsageError, match="checkpoint folder"):
        run_bench(toy_decoder(8), settings, peers=[peer])


@pytest.mark.parametrize(
    "wrong",
    [
        {"repeats": 0},
        {"max_tokens": 1},
        {"batches": ()},
        {"methods": ("magic",)},
        {"memories": ("lukewarm",)},
        {"memories": ()},
        {"workloads": ("poetry",)},
    ],
)
def test_bad_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        BenchSettings(**wrong)


def test_method_lists() -> None:
    assert split_methods("auto, draft-model:length=2,branching=2x1,prompt-lookup") == (
        "auto",
        "draft-model:length=2,branching=2x1",
        "prompt-lookup",
    )
    assert split_methods("draft-model:length=2+prompt-lookup:length=3,max_ngram=4") == (
        "draft-model:length=2+prompt-lookup:length=3,max_ngram=4",
    )
    assert split_methods("auto; static:block=8,cache=dual;none;") == ("auto", "static:block=8,cache=dual", "none")


def test_tables_and_pictures(tmp_path: Path) -> None:
    record = run_bench(toy_decoder(8, seed=1), SETTINGS).to_json()
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    console.print(bench_table(record))
    assert "prompt-lookup" in console.export_text()
    assert bench_markdown(record["rows"]).count("\n") == 2 + len(record["rows"])
    record["rows"][1]["acceptance_by_depth"] = [0.5, 0.25]
    pictures = plot_bench(record, tmp_path / "pictures")
    assert [path.name for path in pictures] == ["decode-speedup.png", "decode-acceptance.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    with pytest.raises(UsageError, match="compares nothing"):
        plot_bench({"rows": [], "settings": record["settings"]}, tmp_path)
