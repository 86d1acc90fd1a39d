"""Encoder-decoder checkpoints: what their configs mean, how their tensors may be stored, and errors that name file and key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BartConfig, BartForConditionalGeneration, MarianConfig, MarianMTModel, T5Config, T5ForConditionalGeneration

from paceline.core.errors import CheckpointError, UsageError
from paceline.engine.load import load
from paceline.engine.prompts import Tokenizer
from paceline.models.checkpoint import load_decoder
from paceline.models.config import PositionSpec, RelativeSpec
from paceline.models.encoder import encode
from paceline.models.families import decoder_config

WEIGHTS = "model.safetensors"
SIZES = {
    "vocab_size": 31,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 48,
}
T5_SIZES = {"vocab_size": 31, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}


@pytest.fixture
def bart(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = BartForConditionalGeneration(BartConfig(**SIZES))
    model.final_logits_bias.normal_()
    model.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def t5(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    T5ForConditionalGeneration(T5Config(**T5_SIZES)).save_pretrained(tmp_path)
    return tmp_path


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / WEIGHTS).items()}
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def edit_json(path: Path, **entries: Any) -> None:
    kept = {key: value for key, value in (json.loads(path.read_text()) | entries).items() if value is not ...}
    path.write_text(json.dumps(kept))


def test_bart_in_the_decoders_words() -> None:
    config = decoder_config(BartConfig(**SIZES, scale_embedding=True), "BartForConditionalGeneration")
    encoder = config.encoder
    assert encoder is not None
    assert (len(encoder.layers), len(config.layers)) == (2, 1)
    assert (encoder.layers[0].mixer.heads, config.layers[0].mixer.heads) == (4, 2)
    assert (encoder.layers[0].feed_forward.width, config.layers[0].feed_forward.width) == (20, 24)
    assert encoder.layers[0].cross is None
    assert config.layers[0].cross is not None
    assert config.layers[0].norm_after
    assert config.positions == PositionSpec("learned", 50, 2)
    assert config.embed_scale == 4.0
    assert config.norm == "layer"
    assert config.embed_norm
    assert not config.final_norm
    assert config.shared_embedding
    assert config.tied


def test_t5_in_the_decoders_words() -> None:
    config = decoder_config(T5Config(**T5_SIZES), "T5ForConditionalGeneration")
    assert config.encoder is not None
    assert config.relative == RelativeSpec(2, 32, 128, both_sides=False)
    assert config.encoder.relative == RelativeSpec(2, 32, 128, both_sides=True)
    assert config.layers[0].mixer.scale == 1.0
    assert (config.tied, config.head_scale) == (True, 0.25)
    assert not config.layers[0].feed_forward.gated
    later = decoder_config(T5Config(**T5_SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False), "T5ForConditionalGeneration")
    assert (later.tied, later.head_scale) == (False, 1.0)
    assert later.layers[0].feed_forward.gated
    assert later.layers[0].feed_forward.activation == "gelu_tanh"


def test_a_head_of_its_own_is_read(t5: Path) -> None:
    """Flan-T5 stores one; transformers 5 writes tied ones without it, whatever their config says."""
    edit_json(t5 / "config.json", tie_word_embeddings=False, scale_decoder_outputs=False)
    table = load_file(t5 / WEIGHTS)["shared.weight"]
    head = load_decoder(t5)[0].head
    assert head is not None
    assert torch.equal(head.weight, table)
    edit(t5, lambda tensors: tensors.update({"lm_head.weight": torch.full((31, 16), 0.5)}))
    head = load_decoder(t5)[0].head
    assert head is not None
    assert torch.equal(head.weight, torch.full((31, 16), 0.5))


def test_copies_of_the_table_are_not_read_twice(bart: Path) -> None:
    """Older files hold it under every name it is used by."""
    whole = load_decoder(bart)[0]

    def copy(tensors: dict[str, Tensor]) -> None:
        for name in ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors["model.shared.weight"].clone()
        tensors["model.encoder.version"] = torch.zeros(1)

    edit(bart, copy)
    decoder = load_decoder(bart)[0]
    assert decoder.encoder is not None
    assert decoder.encoder.embed is decoder.embed
    assert decoder.weight_bytes() == whole.weight_bytes()


def test_files_of_the_bare_network(bart: Path) -> None:
    """bart-base was released without the outermost name, and without a logit bias."""
    expected = load_decoder(bart)[0].state_dict()

    def strip(tensors: dict[str, Tensor]) -> None:
        for key in list(tensors):
            tensors[key.removeprefix("model.")] = tensors.pop(key)
        del tensors["final_logits_bias"]

    edit(bart, strip)
    edit_json(bart / "config.json", architectures=["BartModel"])
    found = load_decoder(bart)[0].state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected if name != "logit_bias")
    assert not found["logit_bias"].any()
    assert expected["logit_bias"].any()


def test_stored_sinusoids_are_ignored(tmp_path: Path) -> None:
    MarianMTModel(MarianConfig(**SIZES, pad_token_id=30, decoder_start_token_id=30)).save_pretrained(tmp_path)
    edit(
        tmp_path,
        lambda tensors: tensors.update({f"model.{side}.embed_positions.weight": torch.zeros(48, 16) for side in ("encoder", "decoder")}),
    )
    assert load_decoder(tmp_path)[0].config.start == (30,)


def test_types(bart: Path) -> None:
    decoder = load_decoder(bart, dtype=torch.bfloat16)[0]
    assert {weight.dtype for weight in decoder.parameters()} == {torch.bfloat16}
    with torch.inference_mode():
        assert encode(decoder, [[1, 2, 3]]).dtype is torch.bfloat16


def test_start_ids_come_from_either_config(bart: Path) -> None:
    assert load_decoder(bart)[0].config.start == (2,)
    edit_json(bart / "config.json", forced_bos_token_id=0)
    assert load_decoder(bart)[0].config.start == (2, 0)
    edit_json(bart / "generation_config.json", decoder_start_token_id=7, forced_bos_token_id=9)
    assert load_decoder(bart)[0].config.start == (7, 9)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("model.decoder.layers.0.encoder_attn.k_proj.weight", None, "lacks tensor 'model.decoder.layers.0.encoder_attn.k_proj.weight'"),
        ("model.encoder.embed_positions.weight", None, "lacks tensor 'model.encoder.embed_positions.weight'"),
        ("model.shared.weight", None, "lacks tensor 'model.shared.weight'"),
        ("model.decoder.layers.0.fc1.bias", torch.zeros(5), r"model.safetensors: tensor 'model.decoder.layers.0.fc1.bias' has shape \[5\]"),
        ("model.decoder.layers.7.fc1.bias", torch.zeros(5), "holds tensor 'model.decoder.layers.7.fc1.bias'"),
    ],
)
def test_wrong_tensors_are_named(bart: Path, key: str, change: Tensor | None, message: str) -> None:
    edit(bart, lambda tensors: tensors.pop(key) if change is None else tensors.update({key: change}))
    with pytest.raises(CheckpointError, match=message):
        load_decoder(bart)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"activation_function": "mish"}, "activation_function 'mish' is not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised weights"),
        ({"encoder_attention_heads": 5}, "d_model 16 is not divisible by encoder_attention_heads 5"),
        ({"decoder_start_token_id": None}, "has no 'decoder_start_token_id'"),
        ({"architectures": ["BartForSequenceClassification"]}, "'BartForSequenceClassification' is not supported; supported are: .*T5For"),
    ],
)
def test_unsupported_settings_are_named(bart: Path, entries: dict[str, Any], message: str) -> None:
    edit_json(bart / "config.json", **entries)
    (bart / "generation_config.json").unlink()
    with pytest.raises(CheckpointError, match=message):
        load_decoder(bart)


def test_learned_positions_have_an_end(bart: Path, tmp_path: Path) -> None:
    assert load_decoder(bart, context=20)[0].config.max_positions == 20
    with pytest.raises(UsageError, match="context=49: the learned positions of this BartForConditionalGeneration end at 48"):
        load_decoder(bart, context=49)


def test_distances_have_no_end(t5: Path) -> None:
    assert load_decoder(t5)[0].config.max_positions == 512
    assert load_decoder(t5, context=2000)[0].config.max_positions == 2000


def test_bit_exact_mode_is_refused(bart: Path) -> None:
    with pytest.raises(UsageError, match="exact=True does not cover encoder-decoders"):
        load(bart, "none", exact=True, device="cpu")


class TwoVocabularies:
    """A tokenizer like Marian's with separate vocabularies."""

    target_encoder = {"hund": 0, "</s>": 1}  # noqa: RUF012

    def get_vocab(self) -> dict[str, int]:
        return {"dog": 0, "cat": 1, "</s>": 2}


def test_vocabularies_of_a_tokenizer() -> None:
    source, target = Tokenizer(TwoVocabularies()).vocabularies()
    assert (len(source), len(target)) == (3, 2)


def test_prompts_are_checked_against_the_source_vocabulary() -> None:
    torch.manual_seed(0)
    apart = MarianConfig(**SIZES, share_encoder_decoder_embeddings=False, decoder_vocab_size=11, pad_token_id=10, decoder_start_token_id=10)
    with pytest.warns(UserWarning, match="iad is off"):  # no tokenizer says which pieces the vocabularies share
        llm = load(MarianMTModel(apart), "iad", device="cpu", kv_tokens=300)
    assert (llm.prompt_vocabulary, llm.vocabulary) == (31, 11)
    (output,) = llm.generate([[30, 12]], max_tokens=5, ignore_eos=True)
    assert all(token < 11 for token in output.token_ids)
    with pytest.raises(UsageError, match="outside the model's vocabulary of 31"):
        llm.generate([[31]])
