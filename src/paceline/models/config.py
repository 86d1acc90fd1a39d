"""A decoder described by data: what each layer's mixer and feed-forward are, with norms and rope given as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh"]
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
    """A gated feed-forward, dense or a mixture of experts.

    Args:
        width: hidden width (of one expert).
        activation: of the gate.
        experts: number of experts; 0 is dense.
        active: experts per token.
        normalise: whether the chosen experts' router weights are rescaled to sum to one.
    """

    width: int
    activation: Activation = "silu"
    experts: int = 0
    active: int = 0
    normalise: bool = True


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """A mixer and a feed-forward, each behind a norm; `post_norms` adds a norm after each as well (Gemma 2 and 3)."""

    mixer: AttentionSpec
    feed_forward: FeedForwardSpec
    post_norms: bool = False


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A whole decoder.

    Args:
        family: architecture name of the checkpoint, for messages.
        vocabulary, width: sizes.
        layers: one spec per layer.
        norm_eps: epsilon of every RMS norm.
        norm_offset: added to norm weights before use (1 for Gemma, whose checkpoints store `weight - 1`).
        embed_scale: multiplier of token embeddings.
        logit_softcap: `cap * tanh(logit / cap)` on final logits.
        tied: whether the head is the embedding table.
        max_positions: longest supported context.
        bos, eos: special ids; `eos` may be several.
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
