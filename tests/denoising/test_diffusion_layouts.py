"""LLaDA, Dream and SDAR checkpoints load into the one decoder: logits equal an independent implementation; what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusion_models import BLOCK, CONFIGS, EOS, LAYOUTS, MASK, VOCABULARY, Reference, tensors, write
from safetensors.torch import save_file
from tokenizers import models, pre_tokenizers
from torch import Tensor

from paceline.core.batch import ForwardBatch, Segment
from paceline.core.errors import CheckpointError
from paceline.engine.load import load
from paceline.engine.runner import make_runner
from paceline.memory.ledger import Ledger
from paceline.models.checkpoint import load_decoder
from paceline.models.decoder import Decoder

IDS = torch.randint(0, VOCABULARY, (23,), generator=torch.Generator().manual_seed(3)).tolist()


def logits(decoder: Decoder, ids: list[int], *, fed: list[int] | None = None, block: int | None = None) -> Tensor:
    """All rows in one forward, or some of them over the keys and values that a first forward over all left behind."""
    runner = make_runner(decoder, slots=128, ledger=Ledger())
    memory = runner.memory.admit([0])
    memory.truncate(0)
    memory.reserve(len(ids))
    number = torch.arange(len(ids)) // (block or 1)
    mask = number[:, None] >= number[None, :] if block else None
    segment = Segment(memory, len(ids), mask=mask, canvas=None if block else len(ids))
    whole = runner.forward(ForwardBatch(ids, range(len(ids)), [segment])).logits
    if fed is None:
        return whole
    part = Segment(memory, len(fed), offsets=fed, canvas=len(ids))
    return runner.forward(ForwardBatch([ids[at] for at in fed], fed, [part])).logits


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_equal_an_independent_implementation(tmp_path: Path, layout: str, pack: bool) -> None:
    decoder, _ = load_decoder(write(tmp_path, layout), dtype=torch.float32)
    if pack:
        decoder.pack()
    found = logits(decoder, IDS, block=BLOCK if layout == "sdar" else None)
    torch.testing.assert_close(found.double(), Reference(layout)(IDS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", ["llada", "dream"])
@pytest.mark.parametrize("pack", [False, True])
def test_some_rows_over_the_keys_of_all(tmp_path: Path, layout: str, pack: bool) -> None:
    """Fed rows see what others left behind, before and behind them: the same logits as the whole canvas."""
    decoder, _ = load_decoder(write(tmp_path, layout), dtype=torch.float32)
    if pack:
        decoder.pack()
    expected = Reference(layout)(IDS)
    for fed in ([7, 8, 9], [0, 4, 22], [11]):
        torch.testing.assert_close(logits(decoder, IDS, fed=fed).double(), expected[fed], rtol=0, atol=2e-5)


def test_a_causal_mask_would_be_noticed(tmp_path: Path) -> None:
    """Negative control: the attention of the other layouts gives other logits."""
    decoder, _ = load_decoder(write(tmp_path, "llada"), dtype=torch.float32)
    wrong = logits(decoder, IDS, block=1)
    assert (wrong.double() - Reference("llada")(IDS)).abs().max() > 0.1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_configs_say(tmp_path: Path, layout: str) -> None:
    decoder, _ = load_decoder(write(tmp_path, layout))
    config, spec = decoder.config, decoder.config.diffusion
    assert spec is not None
    assert (spec.mask, spec.shifted, spec.block) == (MASK, layout == "dream", BLOCK if layout == "sdar" else None)
    assert config.eos == (EOS,)
    assert config.vocabulary == VOCABULARY
    assert config.max_positions == 256
    assert not config.tied


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_type", "sequential"),
        ("block_group_size", 2),
        ("alibi", True),
        ("layer_norm_type", "default"),
        ("scale_logits", True),
        ("input_emb_norm", True),
        ("include_bias", True),
        ("include_qkv_bias", True),
        ("activation_type", "swiglu"),
        ("rope_full_precision", False),
        ("attention_layer_norm", True),
    ],
)
def test_llada_settings_that_are_refused(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=key):
        load_decoder(write(tmp_path, "llada", **{key: value}))


@pytest.mark.parametrize("layout", ["llada", "dream", "sdar"])
def test_a_missing_mask_is_named(tmp_path: Path, layout: str) -> None:
    with pytest.raises(CheckpointError, match="mask_token_id"):
        load_decoder(write(tmp_path, layout, mask_token_id=None))


def test_a_loaded_model_shares_its_weights() -> None:
    """Remote code calls itself DreamModel or LLaDAModelLM; its config says the rest."""
    import transformers

    from paceline.models.from_transformers import share_decoder

    class DreamModel(transformers.Qwen2ForCausalLM):
        pass

    entries = {key: value for key, value in CONFIGS["dream"].items() if key not in ("architectures", "model_type", "auto_map")}
    model = DreamModel(transformers.Qwen2Config(**entries)).eval()
    model.load_state_dict(tensors("dream"))
    decoder = share_decoder(model)
    assert decoder.config.diffusion is not None
    assert decoder.config.diffusion.shifted
    torch.testing.assert_close(logits(decoder, IDS).double(), Reference("dream")(IDS), rtol=0, atol=2e-5)
    assert decoder.embed.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_windows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="use_sliding_window"):
        load_decoder(write(tmp_path, "dream", use_sliding_window=True))


def test_the_head_of_llada_is_not_a_feed_forward(tmp_path: Path) -> None:
    """`model.transformer.ff_out` beside the blocks is the head; without it there is none, whatever the blocks' own `ff_out` are."""
    folder = write(tmp_path, "llada")
    held = tensors("llada")
    del held["model.transformer.ff_out.weight"]
    save_file(held, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.transformer\.ff_out\.weight"):
        load_decoder(folder)


def test_fallbacks_of_sdar(tmp_path: Path) -> None:
    """Some published configs lack the block size and the mask id: 4, and the tokenizer's own mask token."""
    folder = write(tmp_path, "sdar", block_size=None, mask_token_id=None)
    for name, content in (
        ("added_tokens.json", {"<|MASK|>": 44}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"43": {"content": "<MASK>"}}}),
        ("tokenizer.json", {"added_tokens": [{"id": 41, "content": "<|MASK|>"}]}),
    ):
        (folder / name).write_text(json.dumps(content))
        spec = load_decoder(folder)[0].config.diffusion
        (folder / name).unlink()
        assert spec is not None
        assert spec.block == 4
        assert spec.mask == {"added_tokens.json": 44, "tokenizer_config.json": 43, "tokenizer.json": 41}[name]


def test_the_end_of_turn_of_llada(tmp_path: Path) -> None:
    """No config names it; the tokenizer does."""
    folder = write(tmp_path, "llada")
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 46, "content": "<|eot_id|>"}]}))
    assert load_decoder(folder)[0].config.eos == (EOS, 46)


def test_ends_of_the_generation_config(tmp_path: Path) -> None:
    folder = write(tmp_path, "dream")
    (folder / "generation_config.json").write_text(json.dumps({"alg": "entropy", "mask_token_id": None, "eos_token_id": [EOS, 9]}))
    llm = load(folder, device="cpu", kv_tokens=64)
    assert llm.engine.eos == {EOS, 9}
    assert llm.runner.decoder.config.diffusion is not None


def test_the_tokenizer_of_dream_needs_no_remote_code(tmp_path: Path) -> None:
    """Its class is a copy of Qwen2's; the copy in the checkpoint is never run, nor is anybody asked to allow it."""
    folder = write(tmp_path, "dream")
    bytes_of_text = pre_tokenizers.ByteLevel.alphabet()
    model = models.BPE(vocab={letter: index for index, letter in enumerate(sorted(bytes_of_text))}, merges=[])
    model.save(str(folder))
    settings = {"tokenizer_class": "DreamTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "tokenization_dream.py").write_text("raise RuntimeError('this must not run')")
    tokenizer = load(folder, device="cpu", kv_tokens=64).tokenizer
    assert tokenizer is not None
    assert tokenizer.decode(tokenizer.encode("def f(x):")) == "def f(x):"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "OtherTokenizer"}))
    with pytest.raises(CheckpointError, match="tokenizer"):
        load(folder, device="cpu", kv_tokens=64)
