"""Names of encoder-decoder tensors in released checkpoints: tables for T5 and for the BART class."""

from __future__ import annotations

from dataclasses import replace

from paceline.models.names import Layout

_TABLES = ("shared", "decoder.embed_tokens", "encoder.embed_tokens")  # the same table under each name it has been given
_RELATIVE = "block.0.layer.0.SelfAttention.relative_attention_bias"  # stored in the first layer, used by all


def _t5_modules(feed_forward: int) -> dict[str, str]:
    """A T5 layer, whose sub-layers are numbered; the feed-forward is the last."""
    dense = f"layer.{feed_forward}.DenseReluDense"
    return {
        "mixer_norm": "layer.0.layer_norm",
        "mixer.q": "layer.0.SelfAttention.q",
        "mixer.k": "layer.0.SelfAttention.k",
        "mixer.v": "layer.0.SelfAttention.v",
        "mixer.o": "layer.0.SelfAttention.o",
        "cross_norm": "layer.1.layer_norm",
        "cross.q": "layer.1.EncDecAttention.q",
        "cross.k": "layer.1.EncDecAttention.k",
        "cross.v": "layer.1.EncDecAttention.v",
        "cross.o": "layer.1.EncDecAttention.o",
        "feed_forward_norm": f"layer.{feed_forward}.layer_norm",
        "feed_forward.inner": f"{dense}.wi",
        "feed_forward.gate": f"{dense}.wi_0",
        "feed_forward.up": f"{dense}.wi_1",
        "feed_forward.down": f"{dense}.wo",
    }


T5 = Layout(
    _t5_modules(2),
    roots=("decoder",),
    others=("encoder.embed_tokens.", "decoder.embed_tokens.", "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias."),
    outer={"norm": "final_layer_norm", "relative": _RELATIVE},
    layers="block",
    named={name: tuple(f"{table}.weight" for table in _TABLES) for name in ("embed.weight", "head.weight")},
    encoder=Layout(
        _t5_modules(1),
        roots=("encoder",),
        heads=(),
        outer={"norm": "final_layer_norm", "relative": _RELATIVE},
        layers="block",
    ),
)

_BART_LAYER = {
    "mixer_norm": "self_attn_layer_norm",
    "mixer.q": "self_attn.q_proj",
    "mixer.k": "self_attn.k_proj",
    "mixer.v": "self_attn.v_proj",
    "mixer.o": "self_attn.out_proj",
    "cross_norm": "encoder_attn_layer_norm",
    "cross.q": "encoder_attn.q_proj",
    "cross.k": "encoder_attn.k_proj",
    "cross.v": "encoder_attn.v_proj",
    "cross.o": "encoder_attn.out_proj",
    "feed_forward_norm": "final_layer_norm",
    "feed_forward.inner": "fc1",
    "feed_forward.down": "fc2",
}
_BART_OUTER = {"positions": "embed_positions", "embed_norm": "layernorm_embedding", "norm": "layer_norm"}
_ROOTS = ("model.", "")  # checkpoints of the bare network (bart-base) lack the outermost name
BART = Layout(
    _BART_LAYER,
    roots=tuple(f"{root}decoder" for root in _ROOTS),
    others=tuple(f"{root}{side}.{part}" for root in _ROOTS for side in ("encoder", "decoder") for part in ("embed_tokens.", "version")),
    outer=_BART_OUTER,
    named={
        "embed.weight": tuple(f"{root}{table}.weight" for root in _ROOTS for table in _TABLES),
        "logit_bias": ("final_logits_bias",),
    },
    optional=frozenset({"logit_bias"}),
    encoder=Layout(
        _BART_LAYER,
        roots=tuple(f"{root}encoder" for root in _ROOTS),
        heads=(),
        outer={"embed": "embed_tokens", **_BART_OUTER},
    ),
)
MARIAN = replace(  # its sinusoidal tables are stored in old checkpoints; they are computed here
    BART, others=(*BART.others, *(f"{root}{side}.embed_positions." for root in _ROOTS for side in ("encoder", "decoder")))
)
MARIAN_APART = replace(  # source and target have tables of their own
    MARIAN, named={**MARIAN.named, "embed.weight": tuple(f"{root}decoder.embed_tokens.weight" for root in _ROOTS)}
)
