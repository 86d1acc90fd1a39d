"""Export to GGUF: every tensor arrives, rearranged right; wrong checkpoints are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from paceline.bench.gguf_tokenizer import CONTROL, NORMAL, UNUSED, read_vocabulary
from paceline.bench.gguf_weights import Weights
from paceline.core.errors import CheckpointError, UsageError

gguf = pytest.importorskip("gguf")
from paceline.bench.gguf import export_gguf, pair_rotary  # noqa: E402


def read(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a GGUF file in float32, by name."""
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        for tensor in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_tensor_arrives(llama_folder: Path, tmp_path: Path, dtype: str) -> None:
    source = load_file(llama_folder / "model.safetensors")
    export = export_gguf(llama_folder, tmp_path / "model.gguf", dtype)
    written = read(export.path)
    assert export.tensors == len(written) == len(source)
    kept = getattr(torch, dtype)
    for ours, theirs in [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output.weight", "lm_head.weight"),
        ("blk.1.attn_v.weight", "model.layers.1.self_attn.v_proj.weight"),
        ("blk.0.attn_output.weight", "model.layers.0.self_attn.o_proj.weight"),
        ("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight"),
        ("blk.0.ffn_gate.weight", "model.layers.0.mlp.gate_proj.weight"),
    ]:
        assert np.array_equal(written[ours], source[theirs].to(kept).float().numpy()), ours
    assert np.array_equal(written["blk.1.ffn_norm.weight"], source["model.layers.1.post_attention_layernorm.weight"].numpy())
    assert list(tmp_path.iterdir()) == [export.path]  # nothing partial is left


def test_rotary_rows_are_paired_per_head() -> None:
    rows = np.arange(12, dtype=np.float32)[:, None]  # two heads of six
    assert pair_rotary(rows, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_rotary_pairing_keeps_scores() -> None:
    """Halves rotated in the original order and pairs rotated in the new one give equal query-key products; unpaired rows do not."""
    generator = np.random.default_rng(0)
    query, key = (generator.normal(size=(8, 3)).astype(np.float32) for _ in range(2))
    x, angle = generator.normal(size=3), np.array([0.9, 0.5, 0.2, 0.1])

    def rotated(values: np.ndarray, position: int, *, paired: bool) -> np.ndarray:
        first, second = (values[0::2], values[1::2]) if paired else (values[:4], values[4:])
        cos, sin = np.cos(position * angle), np.sin(position * angle)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin])

    def score(query: np.ndarray, key: np.ndarray, *, paired: bool) -> float:
        return float(rotated(query @ x, 7, paired=paired) @ rotated(key @ x, 2, paired=paired))

    wanted = score(query, key, paired=False)
    assert score(pair_rotary(query, 1), pair_rotary(key, 1), paired=True) == pytest.approx(wanted, rel=1e-5)
    assert score(query, key, paired=True) != pytest.approx(wanted, rel=1e-2)  # negative control


def test_bf16_weights_are_read_exactly(tmp_path: Path) -> None:
    stored = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    save_file({"a": stored, "b": stored[:2].clone()}, tmp_path / "x.safetensors")
    weights = Weights(tmp_path)
    assert sorted(weights) == ["a", "b"]
    assert np.array_equal(weights.float32("a"), stored.float().numpy())
    assert np.array_equal(weights.float32("b"), stored[:2].float().numpy())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["Qwen2ForCausalLM"]}, "architectures"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type is 'yarn'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_hidden_layers": 1}, r"model\.layers\.1\."),
        ({"num_hidden_layers": 3}, r"no tensor model\.layers\.2\."),
    ],
)
def test_what_cannot_be_exported_is_named(llama_folder: Path, tmp_path: Path, change: dict[str, object], message: str) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=message):
        export_gguf(folder, tmp_path / "out" / "model.gguf")
    assert not (tmp_path / "out" / "model.gguf").exists()


def test_truncated_and_missing_files_are_named(llama_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="config"):
        export_gguf(tmp_path, tmp_path / "model.gguf")
    folder = shutil.copytree(llama_folder, tmp_path / "cut")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        export_gguf(folder, tmp_path / "model.gguf")
    with pytest.raises(UsageError, match="'int3'"):
        export_gguf(llama_folder, tmp_path / "model.gguf", "int3")


def save_tokenizer(folder: Path, *, digits: bool = False, regex: bool = True) -> object:
    """A byte-level BPE with one special token, trained on a few lines."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    splitter = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level]) if digits else level
    tokenizer.pre_tokenizer = splitter  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["def mean(values):\n    return sum(values) / len(values)  # 1234\n"] * 4, trainer=trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


@pytest.mark.parametrize(
    ("digits", "regex", "splitter", "exact"), [(False, True, "gpt-2", True), (True, True, "smollm", True), (False, False, "gpt-2", False)]
)
def test_vocabulary_keeps_ids_and_says_whether_text_is_exact(tmp_path: Path, digits: bool, regex: bool, splitter: str, exact: bool) -> None:
    tokenizer = save_tokenizer(tmp_path, digits=digits, regex=regex)
    found = read_vocabulary(tmp_path, 320)
    assert found is not None
    assert (found.splitter, found.exact) == (splitter, exact)
    assert [tokenizer.id_to_token(index) for index in range(200)] == found.tokens[:200]  # type: ignore[attr-defined]
    assert (found.types[0], found.types[5], found.types[-1]) == (CONTROL, NORMAL, UNUSED)
    assert len(found.tokens) == len(found.types) == 320
    assert all(merge.count(" ") == 1 for merge in found.merges)


def test_folders_without_tokenizer_and_with_too_large_a_one(tmp_path: Path) -> None:
    assert read_vocabulary(tmp_path, 320) is None
    save_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="vocab_size is 100"):
        read_vocabulary(tmp_path, 100)
