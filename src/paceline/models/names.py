"""Where every tensor of a decoder comes from: tables of released names, and the recipes they imply."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A checkpoint tensor, or some of its rows, and where they go.

    Args:
        key: name in the checkpoint.
        shape: the whole checkpoint tensor must have.
        rows: half-open range of its rows to take; `None` takes all.
        into: index of the decoder's tensor to fill; empty fills all of it.
    """

    key: str
    shape: Shape
    rows: tuple[int, int] | None = None
    into: tuple[int | slice, ...] = ()


Recipe = tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """Names of a mixture of experts inside a layer.

    Args:
        blocks: module that holds router (`gate`) and `experts`, under each name it has been given.
        gate, up, down: modules of one expert, where experts are stored one by one; stacked ones are `gate_up_proj` and `down_proj`.
    """

    blocks: tuple[str, ...]
    gate: str
    up: str
    down: str


@dataclass(frozen=True, slots=True)
class Layout:
    """Names of one family's tensors.

    Args:
        modules: decoder module -> checkpoint module, inside a layer.
        fused: checkpoint module -> decoder modules whose rows it stacks, in order.
        experts: for mixtures.
        roots: module that holds embeddings, layers and final norm, under each name it has been given.
        heads: the same for the head.
        others: beginnings of names that belong to other parts of a larger model.
        outer: decoder module outside the layers -> checkpoint module below the root.
        layers: module below the root that holds the layers.
        named: decoder tensor -> its whole name in the checkpoint, under each it has been given; for what lies outside every root.
        optional: decoder tensors that a checkpoint may leave out, meaning zeros.
        encoder: names of the encoder's tensors, for encoder-decoders.
    """

    modules: Mapping[str, str]
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    experts: ExpertNames | None = None
    roots: tuple[str, ...] = ("model",)
    heads: tuple[str, ...] = ("lm_head",)
    others: tuple[str, ...] = ()
    outer: Mapping[str, str] = field(default_factory=lambda: {"embed": "embed_tokens", "norm": "norm"})
    layers: str = "layers"
    named: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    encoder: Layout | None = None

    def has_no_use_for(self, key: str, tied: bool) -> bool:
        """Whether a tensor may lie unused in a checkpoint: a second copy of a tied head, a buffer, a part of a larger model."""
        return key.endswith(BUFFERS) or key.startswith(self.others) or (tied and key in {f"{head}.weight" for head in self.heads})


ENCODER = "encoder."  # what names of an encoder's tensors begin with, here
ZEROS = 0.5  # rank of a recipe without pieces: behind a complete one, before one of which nothing is there
BUFFERS = (".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached")  # in old checkpoints; computed here

_ATTENTION = {
    "mixer_norm": "input_layernorm",
    "mixer.q": "self_attn.q_proj",
    "mixer.k": "self_attn.k_proj",
    "mixer.v": "self_attn.v_proj",
    "mixer.o": "self_attn.o_proj",
    "mixer.q_norm": "self_attn.q_norm",
    "mixer.k_norm": "self_attn.k_norm",
}
_FEED_FORWARD = {
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
}
LLAMA = Layout(_ATTENTION | _FEED_FORWARD)
GEMMA = Layout(
    _ATTENTION
    | _FEED_FORWARD
    | {
        "mixer_post_norm": "post_attention_layernorm",
        "feed_forward_norm": "pre_feedforward_layernorm",
        "feed_forward_post_norm": "post_feedforward_layernorm",
    }
)
GEMMA_WITH_IMAGES = replace(  # the language model inside Gemma 3 with vision; as released, and as transformers holds it
    GEMMA,
    roots=("language_model.model", "model.language_model"),
    heads=("language_model.lm_head", "lm_head"),
    others=tuple(f"{outer}{part}." for outer in ("", "model.") for part in ("vision_tower", "multi_modal_projector")),
)
PHI3 = Layout(
    _ATTENTION | _FEED_FORWARD,
    fused={
        "self_attn.qkv_proj": ("mixer.q", "mixer.k", "mixer.v"),
        "mlp.gate_up_proj": ("feed_forward.gate", "feed_forward.up"),
    },
)
MIXTRAL = Layout(_ATTENTION | _FEED_FORWARD, experts=ExpertNames(("block_sparse_moe", "mlp"), "w1", "w3", "w2"))
LLADA = Layout(  # inside a block `ff_out` is the down projection; beside the blocks it is the head
    {
        "mixer_norm": "attn_norm",
        "mixer.q": "q_proj",
        "mixer.k": "k_proj",
        "mixer.v": "v_proj",
        "mixer.o": "attn_out",
        "feed_forward_norm": "ff_norm",
        "feed_forward.gate": "ff_proj",
        "feed_forward.up": "up_proj",
        "feed_forward.down": "ff_out",
    },
    roots=("model.transformer",),
    heads=("model.transformer.ff_out",),
    outer={"embed": "wte", "norm": "ln_f"},
    layers="blocks",
)
QWEN_MOE = Layout(_ATTENTION | _FEED_FORWARD, experts=ExpertNames(("mlp",), "gate_proj", "up_proj", "down_proj"))


def recipes(layout: Layout, shapes: Mapping[str, Shape]) -> dict[str, tuple[Recipe, ...]]:
    """For every tensor of a decoder, the ways a checkpoint may hold it, likeliest first.

    Args:
        layout: of the family.
        shapes: name and shape of the decoder's tensors.
    """
    if layout.encoder is not None:
        own = recipes(layout.encoder, {name.removeprefix(ENCODER): shape for name, shape in shapes.items() if name.startswith(ENCODER)})
        rest = recipes(replace(layout, encoder=None), {name: shape for name, shape in shapes.items() if not name.startswith(ENCODER)})
        return rest | {ENCODER + name: ways for name, ways in own.items()}
    found = {name: tuple(_ways(layout, shapes, name)) for name in shapes}
    if not layout.heads:
        return found
    table = "head.weight" if "head.weight" in shapes else "embed.weight"  # a tied table may be stored under the head's name alone
    heads = tuple((Piece(f"{head}.weight", shapes[table]),) for head in layout.heads)
    return found | {table: (*heads, *found[table]) if table == "head.weight" else (*found[table], *heads)}


def choose(alternatives: tuple[Recipe, ...], present: Collection[str]) -> Recipe:
    """The first recipe whose pieces are all present, else the one with most of them (for naming what is missing).

    A recipe without pieces means zeros, and is chosen where nothing is there.
    """
    return max(alternatives, key=lambda recipe: sum(piece.key in present for piece in recipe) / len(recipe) if recipe else ZEROS)


def _ways(layout: Layout, shapes: Mapping[str, Shape], name: str) -> Iterator[Recipe]:
    """Recipes of one tensor under every root, then those by its whole name."""
    for root in layout.roots:
        yield from _recipes(layout, shapes, name, root)
    for key in layout.named.get(name, ()):
        yield (Piece(key, shapes[name]),)
    if name in layout.optional:
        yield ()


def _recipes(layout: Layout, shapes: Mapping[str, Shape], name: str, root: str) -> Iterator[Recipe]:
    shape = shapes[name]
    module, _, leaf = name.rpartition(".")
    if module in layout.outer:
        yield (Piece(f"{root}.{layout.outer[module]}.{leaf}", shape),)
    if not module.startswith("layers."):
        return
    _, index, inner = module.split(".", 2)
    prefix = f"{root}.{layout.layers}.{index}"
    if layout.experts is not None and (inner == "feed_forward" or inner == "feed_forward.router"):
        for block in layout.experts.blocks:
            yield from _expert_recipes(layout.experts, f"{prefix}.{block}", leaf, shape)
        return
    for fused, parts in layout.fused.items():
        if inner in parts:
            heights = [shapes[f"layers.{index}.{part}.{leaf}"][0] for part in parts]
            start = sum(heights[: parts.index(inner)])
            yield (Piece(f"{prefix}.{fused}.{leaf}", (sum(heights), *shape[1:]), (start, start + shape[0])),)
            return
    yield (Piece(f"{prefix}.{layout.modules[inner]}.{leaf}", shape),)


def _expert_recipes(names: ExpertNames, block: str, leaf: str, shape: Shape) -> Iterator[Recipe]:
    """Router, or an expert stack: stored one expert at a time, or stacked."""
    if leaf == "weight":
        yield (Piece(f"{block}.gate.weight", shape),)
        return
    experts, height, width = shape
    if leaf == "down":
        yield tuple(Piece(f"{block}.experts.{e}.{names.down}.weight", (height, width), into=(e,)) for e in range(experts))
        yield (Piece(f"{block}.experts.down_proj", shape),)
        return
    half = height // 2
    halves = ((names.gate, slice(0, half)), (names.up, slice(half, height)))
    yield tuple(Piece(f"{block}.experts.{e}.{part}.weight", (half, width), into=(e, rows)) for e in range(experts) for part, rows in halves)
    yield (Piece(f"{block}.experts.gate_up_proj", shape),)
