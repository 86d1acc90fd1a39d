"""Forward costs: the arithmetic of the floor against a real model, and that a small plan is measured completely."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from paceline.bench.forward_cost import Plan, measure, table_columns, table_rows
from paceline.bench.forward_cost_models import RANDOM_SHAPES, ForwardWork, prepare
from paceline.bench.gguf import LlamaShape
from paceline.core.errors import UsageError

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "forward_cost.py"


def test_work_counts_what_the_model_has(llama_folder: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(llama_folder, attn_implementation="eager")
    work = ForwardWork.of(LlamaShape.read(llama_folder))
    embedding = model.model.embed_tokens.weight.numel()
    assert work.weight_bytes(4) == 4 * (sum(weight.numel() for weight in model.parameters()) - embedding)

    rows = 8
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        cache = model(torch.arange(rows)[None]).past_key_values
    assert work.kv_bytes(rows, 4) == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    # The eager model scores all pairs, the floor only those a causal row sees.
    unseen = work.score * (rows * rows - rows * (rows + 1) // 2)
    assert counter.get_total_flops() == work.flops(rows, 0) + unseen


def test_shape_of_the_issue_has_110_million_parameters() -> None:
    shape = RANDOM_SHAPES["llama-110m"]
    layers, width, feed_forward = shape["num_hidden_layers"], shape["hidden_size"], shape["intermediate_size"]
    assert 109e6 < layers * (4 * width**2 + 3 * width * feed_forward) + width * shape["vocab_size"] < 111e6


def test_prepared_folders_allow_the_positions(llama_folder: Path, tmp_path: Path) -> None:
    assert LlamaShape.read(prepare(str(llama_folder), tmp_path, 5000)).context == 5000
    assert LlamaShape.read(llama_folder).context == 256
    random = LlamaShape.read(prepare("llama-6m", tmp_path, 300))
    assert (random.width, random.context, random.tied) == (256, 300, True)
    with pytest.raises(UsageError, match="'nothing'"):
        prepare("nothing", tmp_path, 10)


def test_a_plan_is_measured_completely(llama_folder: Path) -> None:
    plan = Plan(
        (str(llama_folder),), ("float32",), rows=(1, 3), contexts=(0, 20), contenders=("transformers",), rounds=2, repeats=2, threads=1
    )
    record = measure(plan)
    places = {(row["contender"], row["context"], row["rows"]) for row in record.rows}
    assert places == {(name, context, rows) for name in ("floor", "transformers") for context in (0, 20) for rows in (1, 3)}
    assert all(row["seconds"] >= row["best_seconds"] > 0 for row in record.rows)
    assert all(row["over_floor"] == 1 for row in record.rows if row["contender"] == "floor")
    json.dumps(record.to_json())
    table = table_rows(record.rows)
    assert len(table) == 4
    cells = [column.cell(table[0]) for column in table_columns(record.rows)]
    assert cells[-1] == f"{table[0]['transformers']:.3g} ({table[0]['transformers/floor']:.2f}x)"


def test_paceline_is_measured_beside_the_others(llama_folder: Path) -> None:
    from paceline.bench.peers_paceline import PacelinePeer
    from paceline.bench.peers_transformers import TransformersPeer

    ours, theirs = PacelinePeer(repeats=2), TransformersPeer(repeats=2)
    for peer in (ours, theirs):
        peer.load(llama_folder, "float32", 1)
    for rows, context in [(1, 0), (4, 30), (2, 10)]:
        assert ours.forward_cost(rows, context) > 0
        assert ours._memory is not None
        assert (ours._memory.length, ours._memory.live) == (context, context)
    run, wanted = ours.generate([3, 5, 7, 9] * 3, 20), theirs.generate([3, 5, 7, 9] * 3, 20)
    assert run.token_ids == wanted.token_ids
    assert run.forwards == wanted.forwards
    ours.close()


def test_unknown_contenders_are_named() -> None:
    with pytest.raises(UsageError, match="'vapour'"):
        Plan(contenders=("vapour",))


def test_script_prints_one_line_for_a_wrong_model() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--model", "nothing"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == UsageError.exit_code
    assert "there is no model 'nothing'" in done.stdout.replace("\n", " ")
    assert "Traceback" not in done.stdout + done.stderr
