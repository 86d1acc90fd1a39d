"""Each entry of a decoder's description matters to the comparison with the oracle, and half precision rounds no worse than the oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from plain_memory import PlainMemory, full
from zoo_of_families import double_throughout, prompt, small_model

from paceline.core.batch import ForwardBatch, Segment
from paceline.models.config import DecoderConfig
from paceline.models.decoder import Decoder
from paceline.models.from_transformers import share_decoder

Change = Callable[[DecoderConfig], DecoderConfig]


def _mixer(**changes: object) -> Change:
    return lambda config: replace(config, layers=tuple(replace(layer, mixer=replace(layer.mixer, **changes)) for layer in config.layers))


def _feed_forward(**changes: object) -> Change:
    return lambda config: replace(
        config, layers=tuple(replace(layer, feed_forward=replace(layer.feed_forward, **changes)) for layer in config.layers)
    )


def _window(by: int) -> Change:
    return lambda config: replace(
        config,
        layers=tuple(
            layer if layer.mixer.window is None else replace(layer, mixer=replace(layer.mixer, window=layer.mixer.window + by))
            for layer in config.layers
        ),
    )


def _same_rope(config: DecoderConfig) -> DecoderConfig:
    return _mixer(rope=config.layers[0].mixer.rope)(config)


WRONG: dict[str, tuple[str, Change]] = {
    "window one too long": ("mistral", _window(1)),
    "window one too short": ("gemma3", _window(-1)),
    "window forgotten": ("qwen2-windowed", _mixer(window=None)),
    "window everywhere": ("gemma2", _mixer(window=7)),
    "scale of the head": ("gemma2", _mixer(scale=12**-0.5)),
    "score cap forgotten": ("gemma2", _mixer(softcap=None)),
    "logit cap forgotten": ("gemma2", lambda config: replace(config, logit_softcap=None)),
    "embeddings not scaled": ("gemma3", lambda config: replace(config, embed_scale=1.0)),
    "one rotation for all layers": ("gemma3", _same_rope),
    "norm offset forgotten": ("gemma2", lambda config: replace(config, norm_offset=0.0)),
    "another epsilon": ("llama", lambda config: replace(config, norm_eps=1e-5)),
    "exact gelu": ("gemma2", _feed_forward(activation="gelu")),
    "router weights rescaled": ("qwen3-moe", _feed_forward(normalise=True)),
    "router weights not rescaled": ("mixtral", _feed_forward(normalise=False)),
    "an expert more": ("mixtral", _feed_forward(active=3)),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_description_is_noticed(what: str) -> None:
    name, change = WRONG[what]
    ids = prompt(24)
    with double_throughout():
        model = small_model(name)
        expected = model(torch.tensor([ids])).logits[0]
    decoder = share_decoder(model)
    with torch.device("meta"):
        wrong = Decoder(change(decoder.config))
    wrong.load_state_dict(decoder.state_dict(), assign=True)
    assert (full(decoder, ids) - expected).abs().max() < 1e-10
    assert (full(wrong, ids) - expected).abs().max() > 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3", "gemma2", "gemma3", "mixtral", "qwen3-moe"])
def test_half_precision_rounds_no_worse(name: str, dtype: torch.dtype) -> None:
    """Distance to the float32 logits, over several prompts: at most a little more than that of transformers in the same dtype."""
    lines = [prompt(24, seed) for seed in range(3)]
    model = small_model(name).to(dtype)
    ours = torch.cat([full(share_decoder(model), line) for line in lines]).float()
    theirs = torch.cat([model(torch.tensor([line])).logits[0] for line in lines]).float()
    model = model.to(torch.float32)  # the same rounded weights
    exact = torch.cat([model(torch.tensor([line])).logits[0] for line in lines])
    assert (ours - exact).abs().mean() < 1.25 * (theirs - exact).abs().mean()


def test_embedding_scale_is_rounded_as_the_checkpoint_was_trained() -> None:
    """Gemma multiplies by the root of the width rounded to the model's type (55.5, not 55.4256, for 3072 in bfloat16)."""
    model = small_model("gemma3").to(torch.bfloat16)
    decoder = share_decoder(model)
    ids = torch.tensor(prompt(9))
    batch = ForwardBatch(ids.tolist(), range(9), [Segment(PlainMemory(decoder).sequence(9), 9)])
    assert torch.equal(decoder.inputs(batch), model.model.embed_tokens(ids))
