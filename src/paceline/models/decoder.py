"""The one decoder: layers given by data, run whole or layer by layer over flat rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from paceline.attention.cross import CrossPlan
from paceline.attention.plan import AttentionPlan, Exactness
from paceline.core.batch import ForwardBatch, ForwardResult
from paceline.kernels.fused import fused
from paceline.models.config import DecoderConfig, FeedForwardSpec, LayerSpec
from paceline.models.cross import CrossAttention
from paceline.models.layers import Attention, FeedForward, PlainFeedForward, RMSNorm, Step
from paceline.models.linear import Linear
from paceline.models.moe import MoE
from paceline.models.norms import make_norm
from paceline.models.positions import RelativeBias, make_positions
from paceline.models.rope import RotaryTable
from paceline.models.stack import Ends, Stack, fusable

PACKED_PARTS = (Attention, CrossAttention, FeedForward, PlainFeedForward, RMSNorm)


class Layer(nn.Module):
    """A mixer and a feed-forward, each added to the residual stream. The two halves can be run apart.

    In an encoder-decoder the first half is two mixers, one for the row's own past and one for the source.
    """

    def __init__(self, spec: LayerSpec, config: DecoderConfig) -> None:
        super().__init__()
        self.norm_after = spec.norm_after
        self.mixer_norm = make_norm(config)
        self.mixer = Attention(spec.mixer, config.width, config.norm_eps, config.norm_offset)
        self.feed_forward_norm = make_norm(config)
        self.feed_forward = _feed_forward(spec.feed_forward, config.width)
        self.mixer_post_norm = make_norm(config) if spec.post_norms else None
        self.feed_forward_post_norm = make_norm(config) if spec.post_norms else None
        self.cross: CrossAttention | None = None
        if spec.cross is not None and config.encoder is not None:
            self.cross_norm = make_norm(config)
            self.cross = CrossAttention(spec.cross, config.width, config.encoder.width)

    def mix(self, hidden: Float[Tensor, "rows width"], step: Step, layer: int) -> Float[Tensor, "rows width"]:
        """Residual stream behind the mixer, or both of them."""
        if self.norm_after:
            hidden = self.mixer_norm.forward(hidden + self.mixer.forward(hidden, step, layer))
            return hidden if self.cross is None else self.cross_norm.forward(hidden + self.cross.forward(hidden, step, layer))
        out = self.mixer.forward(self.mixer_norm.forward(hidden), step, layer)
        hidden = hidden + (out if self.mixer_post_norm is None else self.mixer_post_norm.forward(out))
        return hidden if self.cross is None else hidden + self.cross.forward(self.cross_norm.forward(hidden), step, layer)

    def feed(self, hidden: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        """Residual stream behind the feed-forward."""
        if self.norm_after:
            return self.feed_forward_norm.forward(hidden + self.feed_forward.forward(hidden))
        out = self.feed_forward.forward(self.feed_forward_norm.forward(hidden))
        return hidden + (out if self.feed_forward_post_norm is None else self.feed_forward_post_norm.forward(out))

    def parts(self) -> tuple[RMSNorm, Attention, RMSNorm, FeedForward]:
        """The parts of a dense layer without norms behind its halves, in order."""
        assert isinstance(self.feed_forward, FeedForward)
        assert isinstance(self.mixer_norm, RMSNorm)
        assert isinstance(self.feed_forward_norm, RMSNorm)
        return self.mixer_norm, self.mixer, self.feed_forward_norm, self.feed_forward


def _feed_forward(spec: FeedForwardSpec, width: int) -> FeedForward | PlainFeedForward | MoE:
    if spec.experts:
        return MoE(spec, width)
    return FeedForward(spec, width) if spec.gated else PlainFeedForward(spec, width)


class Decoder(nn.Module):
    """A transformer described by a `DecoderConfig`. With an encoder in its config it reads sources too (see `models/encoder.py`).

    `forward` runs a whole batch. Methods that need more compose the same pieces: `step` prepares a range of layers for some rows,
    `run` executes it, and `Layer.mix` / `Layer.feed` execute half layers.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.embed.weight.requires_grad_(False)
        self._layers = [Layer(spec, config) for spec in config.layers]  # a plain list is faster to index
        self.layers = nn.ModuleList(self._layers)
        self._indices = frozenset(range(len(self._layers)))
        self.norm = make_norm(config) if config.final_norm else nn.Identity()
        self.embed_norm = make_norm(config) if config.embed_norm else None
        self.positions = make_positions(config.positions, config.width)
        self.relative = None if config.relative is None else RelativeBias(config.relative)
        self.logit_bias = nn.Parameter(torch.empty(1, config.vocabulary), requires_grad=False) if config.logit_bias else None
        self.encoder = None if config.encoder is None else Decoder(config.encoder)
        if self.encoder is not None and config.shared_embedding:
            self.encoder.borrow_embedding(self.embed)
        self.head = None if config.tied else Linear(config.width, config.vocabulary)
        self._ropes = list({spec.mixer.rope: None for spec in config.layers if spec.mixer.rope is not None})
        self._rope_of = [None if spec.mixer.rope is None else self._ropes.index(spec.mixer.rope) for spec in config.layers]
        self._tables: list[RotaryTable] | None = None  # one for each way to rotate, made when it is known for which type and device
        self._tied_head: Linear | None = None
        self.folder: Path | None = None  # of the checkpoint, where there is one: small networks that methods need may lie beside it
        self.stack: Stack | None = None  # all layers in one kernel call, once packed, where this machine and these layers can have it
        self.ends: Ends | None = None  # and what stands around them

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def pack(self) -> None:
        """Fuse and pack weights for fast inference, layer by layer; originals are released as it goes.

        Not for decoders that share weights with another model, nor for training.
        """
        for part in self.modules():
            if isinstance(part, PACKED_PARTS):
                part.pack()
        self.output.pack(keep=self.head is None)
        kernels = fused(self.dtype, self.device)
        packed = all(part.panels is not None for part in self.modules() if isinstance(part, Linear))
        if kernels is not None and packed and fusable(self.config):
            self.stack = Stack(kernels, [layer.parts() for layer in self._layers], [rope or 0 for rope in self._rope_of])
            config = self.config
            plain = config.embed_scale == config.head_scale == 1.0 and config.logit_softcap is None and not config.never
            bare = self.positions is None and self.embed_norm is None and self.logit_bias is None
            if plain and bare and isinstance(self.norm, RMSNorm) and self.norm.packed is not None and self.output.panels is not None:
                self.ends = Ends.of(self.embed.weight.detach().contiguous(), self.norm, self.output)

    def borrow_embedding(self, embed: nn.Embedding) -> None:
        """Embed with another decoder's table, which stays that decoder's submodule alone."""
        del self.embed
        self.__dict__["embed"] = embed

    def cross_mixers(self) -> list[CrossAttention]:
        """The mixers that read a source, layer by layer; none in a decoder-only model."""
        return [layer.cross for layer in self._layers if layer.cross is not None]

    @property
    def output(self) -> Linear:
        """The head; with tied embeddings, a linear layer over the embedding table."""
        if self.head is not None:
            return self.head
        if self._tied_head is None:
            # not a submodule: its weight is already in the state dict
            self.__dict__["_tied_head"] = Linear.over(self.embed.weight)
        return self.__dict__["_tied_head"]  # type: ignore[no-any-return]  # set just above

    def weight_bytes(self) -> int:
        """Bytes of all weights as they are held, packed copies included."""
        linears = [module for module in self.modules() if isinstance(module, Linear)]
        packed = sum(linear.packed_bytes for linear in linears) + (self._tied_head.packed_bytes if self._tied_head is not None else 0)
        return packed + sum(weight.numel() * weight.element_size() for weight in self.parameters())

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of activations that a row of a forward needs at once: hidden states and the widest layer's intermediates, no scores."""
        specs = [(layer.mixer, layer.feed_forward) for layer in self.config.layers]
        inner = max(max(mixer.heads * mixer.head_dim, feed.width) for mixer, feed in specs)
        wide = max(max((mixer.heads + 2 * mixer.kv_heads) * mixer.head_dim, (1 + feed.gated) * feed.width) for mixer, feed in specs)
        return (3 * self.config.width + inner + wide) * self.dtype.itemsize

    def step(
        self,
        batch: ForwardBatch,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        exact: Exactness | None = None,
    ) -> Step:
        """Prepare a range of layers for the rows of `batch`. To drop or add rows between layers, prepare a second step for the rest.

        Raises:
            ValueError: for taps of layers that are not there, or that have no log-sum-exp to tap.
        """
        if not batch.taps.layers <= self._indices:
            raise ValueError(
                f"taps of layers {sorted(batch.taps.layers - self._indices)}; the decoder has layers 0 to {len(self._indices) - 1}"
            )
        dtype, device = self.embed.weight.dtype, self.embed.weight.device
        plan = AttentionPlan(batch.segments, batch.positions, dtype, device, exact)
        positions = torch.tensor(batch.positions, device=device)
        if exact is not None and len(positions) < exact.min_rows:
            positions = torch.nn.functional.pad(positions, (0, exact.min_rows - len(positions)))
        if self._tables is None:
            self._tables = [RotaryTable(rope, self.config.max_positions, dtype, device) for rope in self._ropes]
        tables, highest = self._tables, max(batch.positions)
        for table in tables:
            table.reserve(highest + 1)
        if self.relative is not None and batch.taps.lse:
            raise ValueError(f"{self.config.family} biases attention scores by distance; log-sum-exps of its layers cannot be tapped")
        bias = None if self.relative is None else self.relative.forward(plan)
        cross = None if self.encoder is None else CrossPlan.of(batch.segments)
        return Step(plan, keys, values, positions, tables, self._rope_of, batch.taps, bias=bias, cross=cross)

    def inputs(self, batch: ForwardBatch, exact: Exactness | None = None) -> Float[Tensor, "rows width"]:
        """Input vectors of the rows, padded to the bit-exact minimum if there is one."""
        if batch.embeddings is None:
            weight = self.embed.weight
            hidden = torch.embedding(weight, torch.tensor(batch.ids, device=weight.device))
            if self.config.embed_scale != 1.0:
                hidden = hidden * torch.tensor(self.config.embed_scale, dtype=hidden.dtype)
        else:
            hidden = batch.embeddings.to(self.device, self.dtype)
        if self.positions is not None:
            hidden = hidden + self.positions.forward(torch.tensor(list(batch.positions), device=self.device), self.dtype)
        if self.embed_norm is not None:
            hidden = self.embed_norm.forward(hidden)
        if exact is not None and len(hidden) < exact.min_rows:
            hidden = torch.nn.functional.pad(hidden, (0, 0, 0, exact.min_rows - len(hidden)))
        return hidden

    def run(self, hidden: Float[Tensor, "rows width"], step: Step, layers: range | None = None) -> Float[Tensor, "rows width"]:
        """Hidden states behind a range of layers."""
        chosen = layers if layers is not None else range(len(self.layers))
        views = None if self.stack is None else self.stack.views(step)
        if self.stack is not None and views is not None:
            return self.stack.run(hidden, step, views, chosen)
        for index in chosen:
            if index in step.wanted.layer_inputs:
                step.taps.layer_inputs[index] = hidden[: len(step.plan.positions)]
            layer = self._layers[index]
            hidden = layer.feed(layer.mix(hidden, step, index))
        return hidden

    def logits(self, final_hidden: Float[Tensor, "rows width"]) -> Float[Tensor, "rows vocabulary"]:
        """Logits of rows behind the final norm."""
        if self.config.head_scale != 1.0:
            final_hidden = final_hidden * self.config.head_scale
        logits = self.output.kernel(final_hidden)
        if self.logit_bias is not None:
            logits = logits + self.logit_bias
        if self.config.logit_softcap is not None:
            logits = torch.tanh(logits / self.config.logit_softcap) * self.config.logit_softcap
        if self.config.never:
            logits[:, list(self.config.never)] = float("-inf")
        return logits

    def forward(
        self,
        batch: ForwardBatch,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        exact: Exactness | None = None,
    ) -> ForwardResult:
        """One forward over flat rows; their keys and values are written to the pools as scratch.

        Args:
            batch: rows, positions and segments.
            keys, values: pools of each layer, (slots, kv_heads, head_dim).
            exact: pad shapes so that bits do not depend on the number of rows.
        """
        step = self.step(batch, keys, values, exact)
        if (straight := self._straight(batch, step, exact)) is not None:
            return ForwardResult(straight, step.taps, step.plan.mask_bytes)
        hidden = self.run(self.inputs(batch, exact), step)
        rows = batch.rows
        wanted = rows if batch.logit_rows is None else len(batch.logit_rows)
        if batch.taps.final_hidden:
            final = self.norm.forward(hidden)
            step.taps.final_hidden = final[:rows]
            chosen = _select(final, batch.logit_rows, exact) if wanted else final
        elif wanted:
            chosen = self.norm.forward(_select(hidden, batch.logit_rows, exact))
        if not wanted:  # a chunk in the middle of a prompt
            return ForwardResult(hidden.new_empty(0, self.config.vocabulary), step.taps, step.plan.mask_bytes)
        logits = self.logits(chosen)
        return ForwardResult(logits if len(logits) == wanted else logits[:wanted], step.taps, step.plan.mask_bytes)

    def _straight(self, batch: ForwardBatch, step: Step, exact: Exactness | None) -> Float[Tensor, "wanted vocabulary"] | None:
        """Logits in one kernel call, where nothing is asked for on the way and layers, ends and rows are plain."""
        wanted = range(len(batch.ids)) if batch.logit_rows is None else batch.logit_rows
        if self.ends is None or self.stack is None or exact is not None or batch.embeddings is not None or not wanted:
            return None
        if batch.taps.final_hidden or batch.taps.layers:
            return None
        views = self.stack.views(step)
        return None if views is None else self.stack.logits(batch.ids, wanted, step, views, self.ends)


def _select(hidden: Tensor, rows: Sequence[int] | None, exact: Exactness | None) -> Tensor:
    """The rows that need logits, kept at the bit-exact minimum height."""
    if rows is None or list(rows) == list(range(len(hidden))):
        return hidden
    chosen = hidden[rows[0] : rows[-1] + 1] if list(rows) == list(range(rows[0], rows[-1] + 1)) else hidden[list(rows)]
    if exact is not None and len(chosen) < exact.min_rows:
        chosen = torch.nn.functional.pad(chosen, (0, 0, 0, exact.min_rows - len(chosen)))
    return chosen
