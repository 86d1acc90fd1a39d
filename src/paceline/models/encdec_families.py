"""Supported encoder-decoders: one row each, and how T5's and BART's words describe the two stacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paceline.core.errors import CheckpointError, UsageError
from paceline.models.config import AttentionSpec, DecoderConfig, FeedForwardSpec, LayerSpec, PositionSpec, RelativeSpec
from paceline.models.config_keys import activation, stop_ids
from paceline.models.encdec_names import BART, MARIAN, MARIAN_APART, T5
from paceline.models.names import Layout

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

T5_LENGTH = 512  # tokens T5 was trained on; distances have no end, so `context` may ask for more
LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class PairFamily:
    """How one architecture describes its encoder and decoder.

    Args:
        architecture, model_type: names in `config.json`.
        layout: names of its tensors.
        describe: makes the config of both stacks; arguments and errors as for `families.decoder_config`.
        layout_apart: names where source and target have vocabularies of their own.
        positions: absolute positions of the BART class.
        embed_norm: of the BART class.
    """

    architecture: str
    model_type: str
    layout: Layout
    describe: Callable[[PairFamily, PreTrainedConfig, int | None], DecoderConfig]
    layout_apart: Layout | None = None
    positions: PositionSpec | None = None
    embed_norm: bool = False

    def layout_of(self, config: DecoderConfig) -> Layout:
        """Names for a model of this family."""
        return self.layout if config.shared_embedding or self.layout_apart is None else self.layout_apart


def _t5(family: PairFamily, config: PreTrainedConfig, context: int | None) -> DecoderConfig:
    """Distance-biased attention without scaling, RMS norms before each part; the first generation scales hidden states before a tied head,
    later ones (T5 1.1, Flan, mT5) have a head of their own."""
    heads, head_dim = config.num_heads, config.d_kv
    attention = AttentionSpec(heads, heads, head_dim, scale=1.0, rope=None)
    feed_forward = FeedForwardSpec(config.d_ff, activation(config, "dense_act_fn"), gated=bool(config.is_gated_act))
    longest = context or getattr(config, "n_positions", None) or T5_LENGTH
    first_generation = bool(getattr(config, "scale_decoder_outputs", False))

    def stack(layers: int, cross: AttentionSpec | None, encoder: DecoderConfig | None) -> DecoderConfig:
        return DecoderConfig(
            family=family.architecture,
            vocabulary=config.vocab_size,
            width=config.d_model,
            layers=(LayerSpec(attention, feed_forward, cross=cross),) * layers,
            norm_eps=config.layer_norm_epsilon,
            tied=encoder is None or first_generation,
            max_positions=longest,
            bos=getattr(config, "bos_token_id", None),
            eos=stop_ids(config.eos_token_id),
            relative=RelativeSpec(
                heads, config.relative_attention_num_buckets, config.relative_attention_max_distance, both_sides=encoder is None
            ),
            head_scale=config.d_model**-0.5 if encoder is not None and first_generation else 1.0,
            encoder=encoder,
            shared_embedding=encoder is not None,
        )

    return stack(config.num_decoder_layers or config.num_layers, attention, stack(config.num_layers, None, None))


def _bart(family: PairFamily, config: PreTrainedConfig, context: int | None) -> DecoderConfig:
    """Absolute positions, layer norms behind each part, biases everywhere."""
    trained = config.max_position_embeddings
    positions = family.positions
    if positions is not None and positions.kind == "learned":
        if context is not None and context > trained:
            raise UsageError(f"context={context}: the learned positions of this {family.architecture} end at {trained}")
        positions = PositionSpec("learned", trained + positions.offset, positions.offset)
    apart = not getattr(config, "share_encoder_decoder_embeddings", True)
    target = config.decoder_vocab_size if apart else config.vocab_size

    def stack(side: str, vocabulary: int, encoder: DecoderConfig | None) -> DecoderConfig:
        heads = getattr(config, f"{side}_attention_heads")
        attention = _with_biases(config.d_model, heads, side)
        inner = FeedForwardSpec(getattr(config, f"{side}_ffn_dim"), activation(config, "activation_function"), gated=False, bias=True)
        layer = LayerSpec(attention, inner, cross=None if encoder is None else attention, norm_after=True)
        return DecoderConfig(
            family=family.architecture,
            vocabulary=vocabulary,
            width=config.d_model,
            layers=(layer,) * getattr(config, f"{side}_layers"),
            norm_eps=LAYER_NORM_EPS,
            embed_scale=config.d_model**0.5 if config.scale_embedding else 1.0,
            tied=encoder is None or bool(config.tie_word_embeddings),
            max_positions=context or trained,
            bos=config.bos_token_id,
            eos=stop_ids(config.eos_token_id),
            norm="layer",
            final_norm=False,
            embed_norm=family.embed_norm,
            positions=positions,
            logit_bias=encoder is not None,
            encoder=encoder,
            shared_embedding=encoder is not None and not apart,
        )

    return stack("decoder", target, stack("encoder", config.vocab_size, None))


def _with_biases(width: int, heads: int, side: str) -> AttentionSpec:
    if width % heads:
        raise CheckpointError(f"config.json: d_model {width} is not divisible by {side}_attention_heads {heads}")
    head_dim = width // heads
    return AttentionSpec(heads, heads, head_dim, scale=head_dim**-0.5, rope=None, qkv_bias=True, out_bias=True)


_BART_POSITIONS = PositionSpec("learned", offset=2)
PAIR_FAMILIES: tuple[PairFamily, ...] = (
    PairFamily("T5ForConditionalGeneration", "t5", T5, _t5),
    PairFamily("MT5ForConditionalGeneration", "mt5", T5, _t5),
    PairFamily("BartForConditionalGeneration", "bart", BART, _bart, positions=_BART_POSITIONS, embed_norm=True),
    PairFamily("BartModel", "bart", BART, _bart, positions=_BART_POSITIONS, embed_norm=True),
    PairFamily("MarianMTModel", "marian", MARIAN, _bart, MARIAN_APART, positions=PositionSpec("sinusoidal")),
)


def start_ids(config: PreTrainedConfig, generation: Mapping[str, Any]) -> tuple[int, ...]:
    """What every target begins with: the decoder's start token, and the BOS that some models force behind it.

    Args:
        config: of the checkpoint.
        generation: entries of its generation config, which go before.

    Raises:
        CheckpointError: if neither names a start token.
    """

    def entry(key: str) -> int | None:
        value = generation.get(key)
        return getattr(config, key, None) if value is None else value

    start, forced = entry("decoder_start_token_id"), entry("forced_bos_token_id")
    if start is None:
        raise CheckpointError("config.json has no 'decoder_start_token_id', which an encoder-decoder's targets begin with; add the entry")
    return (start,) if forced is None else (start, forced)
