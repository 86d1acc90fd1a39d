"""A decoder described by data: what each layer's mixer and feed-forward are, with norms and rope given as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
NormKind = Literal["rms", "layer"]
RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary embedding of one layer kind.

    Args:
        theta: base period.
        dims: rotated leading dimensions of a head (less than the head for partial rotary).
        kind: frequency scaling rule; its parameters are in `parameters`, under the names of the checkpoint's config.
        original_length: context the base frequencies were trained for.
    """

    theta: float
    dims: int
    kind: RopeKind = "default"
    parameters: tuple[tuple[str, float | tuple[float, ...]], ...] = ()
    original_length: int = 0


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Grouped-query attention of one layer.

    Args:
        heads, kv_heads, head_dim: shape.
        scale: multiplier of query-key products.
        rope: rotary embedding, or `None` for none.
        window: a row sees keys at positions greater than its own minus `window`; `None` sees all.
        qk_norm: RMS norm of each query and key head before rotation (Qwen3, Gemma 3).
        qkv_bias, out_bias: biases of the projections.
        softcap: `cap * tanh(score / cap)` on scores (Gemma 2).
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec | None
    window: int | None = None
    qk_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class FeedForwardSpec:
    """A feed-forward, gated or not, dense or a mixture of experts.

    Args:
        width: hidden width (of one expert).
        activation: of the gate, or of the hidden layer where there is no gate.
        experts: number of experts; 0 is dense.
        active: experts per token.
        normalise: whether the chosen experts' router weights are rescaled to sum to one.
        gated: whether the activation gates a second projection (Llama, Flan-T5), or is all there is between two (BART, T5).
        bias: biases of the projections of an ungated one.
    """

    width: int
    activation: Activation = "silu"
    experts: int = 0
    active: int = 0
    normalise: bool = True
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """A mixer, perhaps a second one that reads an encoded source, and a feed-forward, each behind a norm.

    Args:
        mixer, feed_forward: the halves.
        post_norms: a second norm after each half, before it is added to the residual stream (Gemma 2 and 3).
        cross: attention over the source, between the halves (encoder-decoders).
        norm_after: the norm of each part stands behind the sum of residual stream and part instead of before the part (BART, Marian).
    """

    mixer: AttentionSpec
    feed_forward: FeedForwardSpec
    post_norms: bool = False
    cross: AttentionSpec | None = None
    norm_after: bool = False


@dataclass(frozen=True, slots=True)
class PositionSpec:
    """Absolute positions, added to the token embeddings.

    Args:
        kind: a learned table, or sines and cosines (Vaswani et al. 2017, sec. 3.5; all sines before all cosines, as Marian has them).
        rows: height of the learned table.
        offset: row of position 0 (2 in BART, whose first rows belong to padding).
    """

    kind: Literal["learned", "sinusoidal"]
    rows: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class RelativeSpec:
    """A bias of attention scores by distance, one table for all layers (Raffel et al. 2020, sec. 2.1).

    Args:
        heads: columns of the table.
        buckets: rows: half of them for single distances, half for ranges that grow exponentially.
        longest: distance from which on everything shares one bucket.
        both_sides: half of the buckets are for keys behind the query (encoders); otherwise those all share distance 0.
    """

    heads: int
    buckets: int
    longest: int
    both_sides: bool


@dataclass(frozen=True, slots=True)
class DiffusionSpec:
    """What makes a decoder a masked diffusion model: its positions see each other, and it fills masks instead of appending tokens.

    Args:
        mask: id of a position that is not decided yet.
        shifted: the output at position i predicts token i + 1 (Dream), not token i.
        block: positions see their own block of this many and all blocks before it (SDAR); `None` lets all positions see each other.
    """

    mask: int
    shifted: bool = False
    block: int | None = None


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A whole decoder.

    Args:
        family: architecture name of the checkpoint, for messages.
        vocabulary, width: sizes.
        layers: one spec per layer.
        norm_eps: epsilon of every norm.
        norm_offset: added to norm weights before use (1 for Gemma, whose checkpoints store `weight - 1`).
        embed_scale: multiplier of token embeddings.
        logit_softcap: `cap * tanh(logit / cap)` on final logits.
        tied: whether the head is the embedding table.
        max_positions: longest supported context.
        bos, eos: special ids; `eos` may be several.
        diffusion: for masked diffusion models; `None` is autoregressive.
        norm: kind of every norm.
        final_norm: whether there is one behind the last layer.
        embed_norm: whether there is one behind the embeddings.
        positions: absolute positions, for models without rotary embedding.
        relative: bias of self-attention by distance.
        head_scale: multiplier of hidden states before the head.
        logit_bias: whether a bias is added to the logits.
        encoder: the stack that reads a source, itself described as a decoder whose head is never used; `None` for decoder-only models.
        shared_embedding: whether the encoder embeds with the decoder's table.
        start: ids every target begins with (decoder start, forced BOS), for encoder-decoders.
        never: ids that are never generated, because the generation config forbids them (Marian's padding, whose logit means nothing).
    """

    family: str
    vocabulary: int
    width: int
    layers: tuple[LayerSpec, ...]
    norm_eps: float
    norm_offset: float = 0.0
    embed_scale: float = 1.0
    logit_softcap: float | None = None
    tied: bool = False
    max_positions: int = 2048
    bos: int | None = None
    eos: tuple[int, ...] = ()
    diffusion: DiffusionSpec | None = None
    norm: NormKind = "rms"
    final_norm: bool = True
    embed_norm: bool = False
    positions: PositionSpec | None = None
    relative: RelativeSpec | None = None
    head_scale: float = 1.0
    logit_bias: bool = False
    encoder: DecoderConfig | None = None
    shared_embedding: bool = False
    start: tuple[int, ...] = ()
    never: tuple[int, ...] = ()

    def target_of(self, prompt: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the output continues, and the source it is made from: in an encoder-decoder the prompt is the source."""
        return (prompt, ()) if self.encoder is None else (self.start, prompt)
