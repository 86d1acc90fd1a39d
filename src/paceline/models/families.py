"""Supported architectures: one row each, saying how its config describes a decoder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from paceline.core.errors import CheckpointError, UsageError
from paceline.models.config import AttentionSpec, DecoderConfig, FeedForwardSpec, LayerSpec, RopeKind, RopeSpec
from paceline.models.config_keys import activation
from paceline.models.config_keys import stop_ids as stop_ids
from paceline.models.encdec_families import PAIR_FAMILIES, PairFamily
from paceline.models.names import GEMMA, GEMMA_WITH_IMAGES, LLADA, LLAMA, MIXTRAL, PHI3, QWEN_MOE, Layout
from paceline.models.rope import RULES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Settings that change the network in a way no layer here implements; any of them being set is an error, never ignored.
UNSUPPORTED = {
    "mlp_bias": "biases in the feed-forward",
    "use_bidirectional_attention": "bidirectional attention",
    "quantization_config": "quantised weights",
}


@dataclass(frozen=True, slots=True)
class Experts:
    """Config keys of a mixture of experts; `normalise` is a key or a constant."""

    count: str
    width: str
    normalise: str | bool = True


@dataclass(frozen=True, slots=True)
class Family:
    """How one architecture differs from Llama. Strings are keys of its config; a flag may be a constant or a key.

    Args:
        architecture, model_type: names in `config.json`.
        layout: names of its tensors.
        qkv_bias, out_bias: biases of the attention projections.
        qk_norm: norm of query and key heads.
        window: which layers slide: none, all if the config has a window, or those the config's `layer_types` names.
        post_norms: norms behind mixer and feed-forward.
        norm_offset: added to norm weights.
        scaled_embedding: embeddings are multiplied by the root of the width.
        activation: key of the gate's activation.
        scale: key of the head size that attention scores are scaled by; `None` is the head's own.
        softcap, logit_softcap: keys of the caps on scores and logits.
        experts: for mixtures.
        nested: key of the language model's config inside a larger one.
    """

    architecture: str
    model_type: str
    layout: Layout = LLAMA
    qkv_bias: str | bool = False
    out_bias: str | bool = False
    qk_norm: bool = False
    window: Literal["none", "all", "by type"] = "none"
    post_norms: bool = False
    norm_offset: float = 0.0
    scaled_embedding: bool = False
    activation: str = "hidden_act"
    scale: str | None = None
    softcap: str | None = None
    logit_softcap: str | None = None
    experts: Experts | None = None
    nested: str | None = None


GEMMA3 = Family(  # its attention has no cap, whatever the config says: qk norms took that place
    "Gemma3ForCausalLM",
    "gemma3_text",
    GEMMA,
    qkv_bias="attention_bias",
    out_bias="attention_bias",
    qk_norm=True,
    window="by type",
    post_norms=True,
    norm_offset=1.0,
    scaled_embedding=True,
    activation="hidden_activation",
    scale="query_pre_attn_scalar",
    logit_softcap="final_logit_softcapping",
)
FAMILIES: tuple[Family, ...] = (
    Family("LlamaForCausalLM", "llama", qkv_bias="attention_bias", out_bias="attention_bias"),
    Family("MistralForCausalLM", "mistral", window="all"),
    Family("Qwen2ForCausalLM", "qwen2", qkv_bias=True, window="by type"),
    Family("Qwen3ForCausalLM", "qwen3", qkv_bias="attention_bias", out_bias="attention_bias", qk_norm=True, window="by type"),
    Family("Phi3ForCausalLM", "phi3", PHI3, window="all"),
    Family(
        "Gemma2ForCausalLM",
        "gemma2",
        GEMMA,
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        window="by type",
        post_norms=True,
        norm_offset=1.0,
        scaled_embedding=True,
        activation="hidden_activation",
        scale="query_pre_attn_scalar",
        softcap="attn_logit_softcapping",
        logit_softcap="final_logit_softcapping",
    ),
    GEMMA3,
    replace(  # text alone: its image tower is left out
        GEMMA3, architecture="Gemma3ForConditionalGeneration", model_type="gemma3", layout=GEMMA_WITH_IMAGES, nested="text_config"
    ),
    Family("MixtralForCausalLM", "mixtral", MIXTRAL, window="all", experts=Experts("num_local_experts", "intermediate_size")),
    Family(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        QWEN_MOE,
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        qk_norm=True,
        window="all",
        experts=Experts("num_experts", "moe_intermediate_size", normalise="norm_topk_prob"),
    ),
    Family("LLaDAModelLM", "llada", LLADA),  # masked diffusion: see models/diffusion_configs.py
    Family("DreamModel", "Dream", qkv_bias=True),
    Family("SDARForCausalLM", "sdar", qkv_bias="attention_bias", out_bias="attention_bias", qk_norm=True),
)


KNOWN: tuple[Family | PairFamily, ...] = (*FAMILIES, *PAIR_FAMILIES)


def find_family(architecture: str | None, model_type: str | None = None) -> Family | PairFamily:
    """The row of an architecture; by `model_type` where a config names no architecture.

    Raises:
        CheckpointError: for any other, naming it and the supported ones.
    """
    for family in KNOWN:
        if architecture == family.architecture or (architecture is None and model_type == family.model_type):
            return family
    known = ", ".join(family.architecture for family in KNOWN)
    raise CheckpointError(f"architecture {architecture or model_type!r} is not supported; supported are: {known}")


def family_of(config: PreTrainedConfig, architecture: str | None = None) -> Family | PairFamily:
    """The row of a `transformers` config."""
    named = getattr(config, "architectures", None) or [None]
    return find_family(architecture or named[0], getattr(config, "model_type", None))


def decoder_config(config: PreTrainedConfig, architecture: str | None = None, context: int | None = None) -> DecoderConfig:
    """Describe the decoder of a `transformers` config.

    Args:
        config: as `AutoConfig` reads it.
        architecture: class name, where the config does not carry it (a config made in memory).
        context: longest sequence to serve, in tokens, where it is not the config's `max_position_embeddings`. It decides the regime
            of length-dependent rotary scaling (`dynamic`, `longrope`).

    Raises:
        CheckpointError: for an unsupported architecture or setting, naming it.
        UsageError: for a context without tokens.
    """
    family = family_of(config, architecture)
    if context is not None and context < 1:
        raise UsageError(f"context={context} must be at least 1 token")
    if isinstance(family, PairFamily):
        _refuse(family.architecture, config)
        return family.describe(family, config, context)
    tied = bool(config.tie_word_embeddings)
    whole, config = config, config if family.nested is None else getattr(config, family.nested)
    _refuse(family.architecture, whole, config)
    return DecoderConfig(
        family=family.architecture,
        vocabulary=config.vocab_size,
        width=config.hidden_size,
        layers=tuple(_layer(family, config, index) for index in range(config.num_hidden_layers)),
        norm_eps=config.rms_norm_eps,
        norm_offset=family.norm_offset,
        embed_scale=config.hidden_size**0.5 if family.scaled_embedding else 1.0,
        logit_softcap=_value(config, family.logit_softcap),
        tied=tied,
        max_positions=context or config.max_position_embeddings,
        bos=config.bos_token_id,
        eos=stop_ids(config.eos_token_id),
        diffusion=getattr(config, "diffusion", None),
    )


def _refuse(architecture: str, *configs: PreTrainedConfig) -> None:
    """Stop at settings that no layer here implements."""
    for key, meaning in UNSUPPORTED.items():
        if any(getattr(config, key, None) for config in configs):
            raise CheckpointError(f"config.json: {architecture} with {key!r} set ({meaning}) is not supported")


def _layer(family: Family, config: PreTrainedConfig, index: int) -> LayerSpec:
    heads = config.num_attention_heads
    kv_heads = config.num_key_value_heads or heads
    if heads % kv_heads:
        raise CheckpointError(f"config.json: {heads} attention heads cannot share {kv_heads} key-value heads evenly")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kind = config.layer_types[index] if family.window == "by type" else None
    if kind not in (None, "full_attention", "sliding_attention"):
        raise CheckpointError(f"config.json: layer_types[{index}] is {kind!r}; supported are 'full_attention' and 'sliding_attention'")
    slides = family.window == "all" or kind == "sliding_attention"
    scaled_as = _value(config, family.scale) or head_dim
    mixer = AttentionSpec(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        scale=scaled_as**-0.5,
        rope=_rope(config, kind, head_dim),
        window=config.sliding_window if slides else None,
        qk_norm=family.qk_norm,
        qkv_bias=_flag(config, family.qkv_bias),
        out_bias=_flag(config, family.out_bias),
        softcap=_value(config, family.softcap),
    )
    return LayerSpec(mixer, _feed_forward(family, config, index), family.post_norms)


def _feed_forward(family: Family, config: PreTrainedConfig, index: int) -> FeedForwardSpec:
    function = activation(config, family.activation)
    experts = family.experts
    step = getattr(config, "decoder_sparse_step", 1)
    dense = experts is None or index in (getattr(config, "mlp_only_layers", None) or ()) or (index + 1) % step != 0
    if experts is None or dense or not getattr(config, experts.count):
        return FeedForwardSpec(config.intermediate_size, function)
    return FeedForwardSpec(
        getattr(config, experts.width),
        function,
        experts=getattr(config, experts.count),
        active=config.num_experts_per_tok,
        normalise=_flag(config, experts.normalise),
    )


def _rope(config: PreTrainedConfig, kind: str | None, head_dim: int) -> RopeSpec:
    """The rotary rule of a kind of layer; configs hold one for all, or one per kind under its name."""
    found: dict[str, Any] = config.rope_parameters or {}
    if kind in found:
        found = found[kind]
    rule: RopeKind = found.get("rope_type") or found.get("type") or "default"
    if rule not in RULES:
        raise CheckpointError(f"config.json: rope scaling {rule!r} is not supported; supported are: {', '.join(RULES)}")
    trained = config.max_position_embeddings
    if rule in ("llama3", "yarn", "longrope"):
        trained = found.get("original_max_position_embeddings") or trained
    dims = int(head_dim * (found.get("partial_rotary_factor") or 1.0))
    if dims < 2 or dims % 2:
        raise CheckpointError(f"config.json: rotary embedding of {dims} of {head_dim} head dimensions; it must be a positive even number")
    values: dict[str, float | tuple[float, ...]] = {}
    if rule != "default":
        values["factor"] = config.max_position_embeddings / trained  # what an absent factor means; overwritten where it is given
        values |= {key: tuple(value) if isinstance(value, list) else value for key, value in found.items() if _numeric(key, value)}
    return RopeSpec(
        theta=float(found.get("rope_theta", 10_000.0)),
        dims=dims,
        kind=rule,
        parameters=tuple(sorted(values.items())),
        original_length=trained,
    )


def _numeric(key: str, value: object) -> bool:
    """Whether an entry of the rope parameters is a parameter of the rule (the others have fields of their own)."""
    mine = key in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    return not mine and isinstance(value, (int, float, list))


def _value(config: PreTrainedConfig, key: str | None) -> float | None:
    return None if key is None else cast("float | None", getattr(config, key, None))


def _flag(config: PreTrainedConfig, key: str | bool) -> bool:
    return key if isinstance(key, bool) else bool(getattr(config, key, False))
