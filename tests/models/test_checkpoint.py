"""Loading: one file or shards, types, tied heads, memory; and an error that names file and key for everything that can be wrong."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from paceline.core.errors import CheckpointError, UsageError
from paceline.models.checkpoint import load_decoder
from paceline.models.tensor_files import TensorFiles

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NORM = "model.norm.weight"
Q0 = "model.layers.0.self_attn.q_proj.weight"


def _edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Rewrite the single weights file with changed tensors."""
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / WEIGHTS).items()}
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def _edit_json(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_single_file(folder: Path, llama: LlamaForCausalLM) -> None:
    decoder, config = load_decoder(folder)
    assert config.model_type == "llama"
    assert torch.equal(decoder.embed.weight, llama.model.embed_tokens.weight)
    assert torch.equal(decoder.state_dict()["layers.1.feed_forward.down.weight"], llama.model.layers[1].mlp.down_proj.weight)
    assert not any(weight.requires_grad for weight in decoder.parameters())
    assert all(weight.device.type == "cpu" for weight in decoder.parameters())


def test_shards(sharded: Path, llama: LlamaForCausalLM) -> None:
    assert len(list(sharded.glob("*.safetensors"))) > 3
    decoder, _ = load_decoder(str(sharded))
    assert torch.equal(decoder.state_dict()["head.weight"], llama.lm_head.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_types(folder: Path, llama: LlamaForCausalLM, dtype: torch.dtype) -> None:
    decoder, _ = load_decoder(folder, dtype=dtype)
    assert {weight.dtype for weight in decoder.parameters()} == {dtype}
    assert torch.equal(decoder.embed.weight, llama.model.embed_tokens.weight.to(dtype))


def test_the_stored_type_is_the_default(folder: Path) -> None:
    _edit(folder, lambda tensors: tensors.update({key: tensor.to(torch.bfloat16) for key, tensor in tensors.items()}))
    assert load_decoder(folder)[0].dtype is torch.bfloat16


def test_a_type_that_is_none(folder: Path) -> None:
    with pytest.raises(UsageError, match="int8"):
        load_decoder(folder, dtype=torch.int8)


@pytest.mark.parametrize("kept", ["model.embed_tokens.weight", "lm_head.weight", "both"])
def test_tied_head(folder: Path, llama: LlamaForCausalLM, kept: str) -> None:
    """A tied model may keep its one table under either name, or twice."""
    _edit_json(folder / "config.json", tie_word_embeddings=True)

    def tie(tensors: dict[str, Tensor]) -> None:
        table = tensors.pop("model.embed_tokens.weight")
        tensors.pop("lm_head.weight")
        for name in ("model.embed_tokens.weight", "lm_head.weight") if kept == "both" else (kept,):
            tensors[name] = table.clone()

    _edit(folder, tie)
    decoder, _ = load_decoder(folder)
    assert decoder.head is None
    assert torch.equal(decoder.embed.weight, llama.model.embed_tokens.weight)


def test_old_buffers_are_ignored(folder: Path) -> None:
    _edit(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(3)}))
    load_decoder(folder)


def test_a_file_of_another_name(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "weights-of-mine.safetensors")
    load_decoder(folder)


def test_end_of_turn_ids_come_from_the_generation_config(folder: Path) -> None:
    _edit_json(folder / "generation_config.json", eos_token_id=[7, 2])
    assert load_decoder(folder)[0].config.eos == (2, 7)


def test_experts_one_by_one_and_stacked(tmp_path: Path) -> None:
    """Mixtral checkpoints keep experts apart; transformers keeps them stacked in memory and can save them so."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = MixtralForCausalLM(MixtralConfig(**sizes, num_hidden_layers=2, num_local_experts=3))
    model.save_pretrained(tmp_path / "apart")
    model.save_pretrained(tmp_path / "stacked", save_original_format=False)
    stored = [set(load_file(tmp_path / kind / WEIGHTS)) for kind in ("apart", "stacked")]
    assert "model.layers.0.block_sparse_moe.experts.2.w1.weight" in stored[0]
    assert "model.layers.0.mlp.experts.gate_up_proj" in stored[1]
    apart, stacked = (load_decoder(tmp_path / kind)[0].state_dict() for kind in ("apart", "stacked"))
    assert all(torch.equal(apart[name], stacked[name]) for name in apart)
    assert torch.equal(apart["layers.1.feed_forward.gate_up"], model.model.layers[1].mlp.experts.gate_up_proj)

    lost = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    _edit(tmp_path / "apart", lambda tensors: tensors.pop(lost))
    with pytest.raises(CheckpointError, match=lost):
        load_decoder(tmp_path / "apart")


class _Allocations(TorchDispatchMode):
    """Bytes of every tensor with memory that torch makes meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.device.type == "cpu" and func.namespace == "aten" and "empty" in func.name():
            self.bytes.append(out.untyped_storage().nbytes())
        elif "clone" in func.name() or "_to_copy" in func.name():
            raise AssertionError(f"{func.name()} copies a tensor")
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_double_memory(sharded: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """What is allocated is the weights, once; of the checkpoint, never more than one tensor is alive."""
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0
    read = TensorFiles.read

    def counted(self: TensorFiles, key: str, rows: tuple[int, int] | None = None) -> Tensor:
        nonlocal most
        tensor = read(self, key, rows)
        alive.add(tensor)
        most = max(most, len(alive))
        return tensor

    monkeypatch.setattr(TensorFiles, "read", counted)
    gc.disable()  # tensors must go by themselves, not when a collection happens to come
    try:
        with _Allocations() as allocations:
            decoder, _ = load_decoder(sharded, dtype=dtype)
    finally:
        gc.enable()
    weights = sum(weight.numel() * weight.element_size() for weight in decoder.parameters())
    assert sum(allocations.bytes) == weights
    assert most == 1
    assert not alive


BROKEN: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no config": (lambda at: (at / "config.json").unlink(), ["config.json"]),
    "config not JSON": (lambda at: (at / "config.json").write_text("{nope"), ["config.json", "JSON"]),
    "config a list": (lambda at: (at / "config.json").write_text("[]"), ["config.json", "list"]),
    "config not text": (lambda at: (at / "config.json").write_bytes(b"\xff\xfe\x00"), ["config.json"]),
    "no weights": (lambda at: (at / WEIGHTS).unlink(), [WEIGHTS]),
    "only pickled weights": (lambda at: (at / WEIGHTS).rename(at / "pytorch_model.bin"), ["pytorch_model.bin", "save_pretrained"]),
    "truncated": (lambda at: (at / WEIGHTS).write_bytes((at / WEIGHTS).read_bytes()[:-5]), [WEIGHTS, "truncated"]),
    "truncated header": (lambda at: (at / WEIGHTS).write_bytes((at / WEIGHTS).read_bytes()[:40]), [WEIGHTS, "truncated"]),
    "empty": (lambda at: (at / WEIGHTS).write_bytes(b""), [WEIGHTS, "truncated"]),
    "missing tensor": (lambda at: _edit(at, lambda tensors: tensors.pop(NORM)), [NORM, "lacks"]),
    "missing embedding": (lambda at: _edit(at, lambda tensors: tensors.pop("model.embed_tokens.weight")), ["embed_tokens", "lacks"]),
    "missing tensors": (lambda at: _edit_json(at / "config.json", num_hidden_layers=3), ["model.layers.2", "and 6 more"]),
    "unexpected tensor": (lambda at: _edit(at, lambda tensors: tensors.update({"model.extra": torch.zeros(2)})), ["model.extra", "holds"]),
    "unexpected layer": (lambda at: _edit_json(at / "config.json", num_hidden_layers=1), ["model.layers.1", "holds"]),
    "wrong shape": (lambda at: _edit(at, lambda tensors: tensors.update({NORM: torch.ones(23)})), [WEIGHTS, NORM, "[23]", "[24]"]),
    "wrong config": (lambda at: _edit_json(at / "config.json", vocab_size=54), ["embed_tokens", "[53, 24]", "[54, 24]"]),
    "quantised": (lambda at: _edit(at, lambda tensors: tensors.update({Q0: tensors[Q0].to(torch.int8)})), [WEIGHTS, Q0, "I8"]),
    "two files, no index": (
        lambda at: ((at / "a.safetensors").write_bytes((at / WEIGHTS).read_bytes()), (at / WEIGHTS).rename(at / "b.safetensors")),
        ["2 safetensors files", INDEX],
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_checkpoints(folder: Path, what: str) -> None:
    spoil, words = BROKEN[what]
    spoil(folder)
    with pytest.raises(CheckpointError) as error:
        load_decoder(folder)
    message = str(error.value)
    assert str(folder) in message
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def _shard(at: Path, number: int) -> Path:
    return sorted(at.glob("model-*.safetensors"))[number]


def _index(at: Path, change: Callable[[dict[str, str]], object]) -> None:
    found = json.loads((at / INDEX).read_text())
    change(found["weight_map"])
    (at / INDEX).write_text(json.dumps(found))


BROKEN_SHARDS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "absent shard": (lambda at: _shard(at, 1).unlink(), [INDEX, "model-00002", "missing"]),
    "truncated shard": (lambda at: _shard(at, 1).write_bytes(_shard(at, 1).read_bytes()[:-1]), ["model-00002", "truncated"]),
    "index not JSON": (lambda at: (at / INDEX).write_text(""), [INDEX, "JSON"]),
    "index without a map": (lambda at: (at / INDEX).write_text("{}"), [INDEX, "weight_map"]),
    "tensor not in its shard": (
        lambda at: _index(at, lambda keys: keys.update({NORM: keys["model.embed_tokens.weight"]})),
        [INDEX, NORM],
    ),
    "shard elsewhere": (lambda at: _index(at, lambda keys: keys.update({NORM: "../x.safetensors"})), [INDEX, "../x.safetensors"]),
}


@pytest.mark.parametrize("what", BROKEN_SHARDS)
def test_broken_shards(sharded: Path, what: str) -> None:
    spoil, words = BROKEN_SHARDS[what]
    spoil(sharded)
    with pytest.raises(CheckpointError) as error:
        load_decoder(sharded)
    assert [word for word in words if word not in str(error.value)] == []
