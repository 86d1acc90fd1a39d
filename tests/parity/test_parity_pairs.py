"""Every encoder-decoder computes what `transformers` computes: encoder output, logits, greedy tokens, shared or loaded weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from plain_memory import PlainMemory
from torch import Tensor
from zoo_of_pairs import NAMES, double_throughout, small_model, words

from paceline.core.batch import ForwardBatch, Segment
from paceline.core.sampling import Sampling
from paceline.engine.load import load
from paceline.models.checkpoint import load_decoder
from paceline.models.decoder import Decoder
from paceline.models.encoder import encode, encode_sources
from paceline.models.from_transformers import share_decoder

SOURCE, TARGET = words(45, seed=1), words(40, seed=2)  # longer than the furthest bucketed distance of T5


def full(decoder: Decoder, target: list[int], source: list[int]) -> Tensor:
    """Logits of every position of a target, in one forward."""
    memory = PlainMemory(decoder)
    with torch.inference_mode():
        (view,) = encode_sources(decoder, [source])
        batch = ForwardBatch(target, range(len(target)), [Segment(memory.sequence(len(target)), len(target), cross=view)])
        return decoder.forward(batch, memory.keys, memory.values).logits


@pytest.mark.parametrize("name", NAMES)
def test_float32(name: str) -> None:
    model = small_model(name)
    expected = model(input_ids=torch.tensor([SOURCE]), decoder_input_ids=torch.tensor([TARGET]))
    decoder = share_decoder(model)
    assert expected.logits.std() > 0.3  # the comparison says something
    with torch.inference_mode():
        torch.testing.assert_close(encode(decoder, [SOURCE]), expected.encoder_last_hidden_state[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(full(decoder, TARGET, SOURCE), expected.logits[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_float64(name: str) -> None:
    """With the oracle's float32 islands lifted, only real differences are left."""
    with double_throughout():
        model = small_model(name, seed=1)
        expected = model(input_ids=torch.tensor([SOURCE]), decoder_input_ids=torch.tensor([TARGET])).logits[0]
    torch.testing.assert_close(full(share_decoder(model), TARGET, SOURCE), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ngram", [0, 2])
def test_greedy_tokens(name: str, ngram: int) -> None:
    """Through the engine, several sources in one ragged batch; `transformers` counts a forced BOS among its new tokens.

    Random models with tied tables love to repeat themselves; forbidding that makes their outputs diverse.
    """
    model = small_model(name, seed=2)
    llm = load(model, "none", device="cpu", kv_tokens=600)
    start = len(llm.runner.decoder.config.start)
    sources = [words(length, seed=length) for length in (7, 31)]
    found = llm.generate(sources, Sampling(no_repeat_ngram=ngram), max_tokens=64)
    for source, output in zip(sources, found, strict=True):
        asked = {"max_new_tokens": 63 + start, "do_sample": False, "no_repeat_ngram_size": ngram}
        assert output.token_ids == model.generate(torch.tensor([source]), **asked)[0].tolist()[start:]
    if ngram:
        assert all(len(set(output.token_ids)) > 8 for output in found)


def test_forbidden_tokens(tmp_path: Path) -> None:
    """Marian's generation config forbids padding, whose logit would often win; forbidding EOS has no effect."""
    model = small_model("marian", seed=2)
    source = words(20, seed=5)
    favourite = load(model, "none", device="cpu", kv_tokens=300).generate([source], max_tokens=1)[0].token_ids[0]
    model.generation_config.bad_words_ids = [[favourite], [3, 4]]
    model.save_pretrained(tmp_path)
    expected = model.generate(torch.tensor([source]), max_new_tokens=20, do_sample=False)[0, 1:].tolist()
    assert favourite not in expected
    for held in (model, tmp_path):
        llm = load(held, "none", device="cpu", kv_tokens=300)
        assert llm.runner.decoder.config.never == (favourite,)
        assert llm.generate([source], max_tokens=20)[0].token_ids == expected
    assert load_decoder(tmp_path)[0].config.eos == ()
    model.generation_config.eos_token_id = favourite
    assert share_decoder(model).config.never == ()


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    """A checkpoint on disk gives the very same weights; packed for this machine, the same logits up to rounding."""
    model = small_model(name)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    decoder, config = load_decoder(tmp_path)
    assert config.model_type == model.config.model_type
    shared = share_decoder(model)
    assert decoder.config == shared.config
    expected = full(shared, TARGET, SOURCE)
    assert torch.equal(full(decoder, TARGET, SOURCE), expected)
    decoder.pack()
    torch.testing.assert_close(full(decoder, TARGET, SOURCE), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_shared_not_copied(name: str) -> None:
    model = small_model(name)
    decoder, held = share_decoder(model), {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert {weight.data_ptr() for weight in decoder.parameters()} <= held
    assert decoder.encoder is not None
    assert (decoder.encoder.embed is decoder.embed) is (name != "marian-apart")


def test_the_wrong_start_token_is_noticed() -> None:
    model = small_model("bart")
    decoder = share_decoder(model)
    assert decoder.config.start == (2,)
    right, wrong = full(decoder, [2, *TARGET], SOURCE), full(decoder, [0, *TARGET], SOURCE)
    assert (right - wrong)[-1].abs().max() > 1e-3
