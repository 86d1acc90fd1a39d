"""The `batching` option: what it accepts, what it refuses and how, and that commands hand it on."""

from __future__ import annotations

import json

import pytest
from dense_engines import make, noisy, prompts, target
from typer.testing import CliRunner

from paceline.bench.audit.run import run_audit
from paceline.core.errors import UsageError
from paceline.engine.batching import STRATEGIES, parse_batching
from paceline.engine.rectangle import DenseRunner
from paceline.scheduling.dense.options import PoolOptions
from paceline.scheduling.dense.pool import SequencePool


def test_names() -> None:
    assert [row.name for row in STRATEGIES] == ["ragged", "eqspec", "exspec", "rollback", "gap"]
    assert not parse_batching("ragged").dense
    assert all(parse_batching(row.name).dense for row in STRATEGIES[1:])


def test_options() -> None:
    found = parse_batching("exspec:batch=8, window=32,max-wait=4,sort=true,reference-bonus=on")
    assert found.options == PoolOptions(8, True, window=32, max_wait=4, sort=True)
    assert found.sequences(64) == 32
    assert found.sequences(20) == 20
    assert PoolOptions(4, window=48, max_wait=4).active == 20


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("paged", "unknown batching 'paged'; known: ragged, eqspec, exspec, rollback, gap"),
        ("eqspec:window=3", "no option 'window'; it has: batch, reference_bonus"),
        ("ragged:batch=3", "it has no options at all"),
        ("eqspec:batch", "must read key=value"),
        ("eqspec:batch=0", "at least 1"),
        ("eqspec:batch=many", "option batch='many'"),
        ("exspec:batch=16,window=8", "window=8 must be at least 16"),
        ("gap:waste=1", "must be in"),
    ],
)
def test_refusals(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match="(?s)" + complaint.replace("[", "\\[")):
        parse_batching(text)


def test_engines_get_their_parts() -> None:
    base = target()
    llm = make(base, noisy(base, 0.1), "exspec:batch=2,window=4", max_sequences=3)
    assert isinstance(llm.engine.runner, DenseRunner)
    assert isinstance(llm.engine.drafter.runner, DenseRunner)  # type: ignore[attr-defined]
    assert isinstance(llm.engine.scheduler, SequencePool)
    assert llm.engine.scheduler.config.max_sequences == 3
    assert not isinstance(make(base, noisy(base, 0.1), "ragged").engine.runner, DenseRunner)


def test_streams_and_cancellation() -> None:
    base = target()
    llm = make(base, noisy(base, 0.1), "eqspec:batch=2")
    pieces = [chunk.token_ids for chunk in llm.stream(prompts(6)[5], max_tokens=9, ignore_eos=True)]
    assert sum(map(len, pieces)) == 9
    stream = llm.stream(prompts(6)[5], max_tokens=9, ignore_eos=True)
    next(stream)
    stream.close()
    assert not llm.runner.dense.sequences  # type: ignore[attr-defined]


@pytest.mark.parametrize(("batching", "sampling"), [("eqspec:batch=3", False), ("exspec:batch=3,window=4", True), ("gap:batch=3", False)])
def test_the_audit_passes(batching: str, sampling: bool) -> None:
    base = target(eos=())
    options = {"prompts": prompts(4), "max_tokens": 8, "controls": False, "sampling_checks": sampling, "dtype": "float64"}
    found = run_audit(base, "draft-model:length=3", noisy(base, 0.1), batching=batching, **options)
    found.require()
    assert found.settings["batching"] == batching
    assert any(check.name == "greedy identity" and check.numbers["violations"] == 0 for check in found.checks)


def test_the_audit_needs_a_method_to_batch() -> None:
    with pytest.raises(UsageError, match="name another method"):
        run_audit(target(), "none", batching="eqspec")


def test_the_command_line_hands_it_on() -> None:
    from paceline.cli.app import app

    found = CliRunner().invoke(app, ["generate", "pocket-code", "-p", "import os\n", "-n", "4", "--batching", "eqspec:batch=2", "--json"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["stats"]["output_tokens"] == 4
    refused = CliRunner().invoke(app, ["generate", "pocket-code", "-p", "import os\n", "--batching", "paged"])
    assert refused.exit_code == UsageError.exit_code
