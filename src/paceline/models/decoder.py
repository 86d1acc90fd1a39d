"""The one decoder: layers given by data, run whole or layer by layer over flat rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from paceline.attention.plan import AttentionPlan, Exactness
from paceline.core.batch import ForwardBatch, ForwardResult
from paceline.kernels.fused import Fused, fused
from paceline.models.config import DecoderConfig, LayerSpec, RopeSpec
from paceline.models.few_rows import FewRows, FusedLayer, fusable
from paceline.models.layers import Attention, FeedForward, RMSNorm, Rotation, Step
from paceline.models.linear import Linear
from paceline.models.moe import MoE
from paceline.models.rope import RotaryTable


class Layer(nn.Module):
    """A mixer and a feed-forward, each added to the residual stream. The two halves can be run apart."""

    def __init__(self, spec: LayerSpec, config: DecoderConfig) -> None:
        super().__init__()
        eps, offset = config.norm_eps, config.norm_offset
        self.mixer_norm = RMSNorm(config.width, eps, offset)
        self.mixer = Attention(spec.mixer, config.width, eps, offset)
        self.feed_forward_norm = RMSNorm(config.width, eps, offset)
        self.feed_forward = (MoE if spec.feed_forward.experts else FeedForward)(spec.feed_forward, config.width)
        self.mixer_post_norm = RMSNorm(config.width, eps, offset) if spec.post_norms else None
        self.feed_forward_post_norm = RMSNorm(config.width, eps, offset) if spec.post_norms else None

    def mix(self, hidden: Float[Tensor, "rows width"], step: Step, layer: int) -> Float[Tensor, "rows width"]:
        """Residual stream behind the mixer."""
        out = self.mixer.forward(self.mixer_norm.forward(hidden), step, layer)
        return hidden + (out if self.mixer_post_norm is None else self.mixer_post_norm.forward(out))

    def feed(self, hidden: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        """Residual stream behind the feed-forward."""
        out = self.feed_forward.forward(self.feed_forward_norm.forward(hidden))
        return hidden + (out if self.feed_forward_post_norm is None else self.feed_forward_post_norm.forward(out))

    def fused(self) -> FusedLayer:
        """The fused form of a packed dense layer."""
        assert isinstance(self.feed_forward, FeedForward)
        return FusedLayer.of(self.mixer_norm, self.mixer, self.feed_forward_norm, self.feed_forward)


class Decoder(nn.Module):
    """A decoder-only transformer described by a `DecoderConfig`.

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
        self.norm = RMSNorm(config.width, config.norm_eps, config.norm_offset)
        self.head = None if config.tied else Linear(config.width, config.vocabulary)
        self._ropes = list({spec.mixer.rope: None for spec in config.layers if spec.mixer.rope is not None})
        self._rope_of = [None if spec.mixer.rope is None else self._ropes.index(spec.mixer.rope) for spec in config.layers]
        self._rotary: dict[RopeSpec, RotaryTable] = {}
        self._tied_head: Linear | None = None
        self._fused_layers: list[FusedLayer] = []
        self.kernels: Fused | None = None  # fused kernels, once packed, where this machine and these layers can have them

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
            if isinstance(part, (Attention, FeedForward, RMSNorm)):
                part.pack()
        self.output.pack(keep=self.head is None)
        self.kernels = fused(self.dtype, self.device) if fusable(self.config) else None
        if self.kernels is not None:
            self._fused_layers = [layer.fused() for layer in self._layers]

    @property
    def output(self) -> Linear:
        """The head; with tied embeddings, a linear layer over the embedding table."""
        if self.head is not None:
            return self.head
        if self._tied_head is None:
            # not a submodule: its weight is already in the state dict
            self.__dict__["_tied_head"] = Linear.over(self.embed.weight)
        return self.__dict__["_tied_head"]  # type: ignore[no-any-return]

    def weight_bytes(self) -> int:
        """Bytes of all weights as they are held, packed copies included."""
        linears = [module for module in self.modules() if isinstance(module, Linear)]
        packed = sum(linear.packed_bytes for linear in linears) + (self._tied_head.packed_bytes if self._tied_head is not None else 0)
        return packed + sum(weight.numel() * weight.element_size() for weight in self.parameters())

    def step(
        self,
        batch: ForwardBatch,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        exact: Exactness | None = None,
    ) -> Step:
        """Prepare a range of layers for the rows of `batch`. To drop or add rows between layers, prepare a second step for the rest."""
        plan = AttentionPlan(batch.segments, batch.positions, self.dtype, self.device, exact)
        positions = torch.tensor(list(batch.positions), device=self.device)
        if exact is not None and len(positions) < exact.min_rows:
            positions = torch.nn.functional.pad(positions, (0, exact.min_rows - len(positions)))
        highest = max(batch.positions)
        rotations = [Rotation.of(*self._table(rope).lookup(positions, highest), self.dtype) for rope in self._ropes]
        return Step(plan, keys, values, [None if which is None else rotations[which] for which in self._rope_of], batch.taps)

    def inputs(self, batch: ForwardBatch, exact: Exactness | None = None) -> Float[Tensor, "rows width"]:
        """Input vectors of the rows, padded to the bit-exact minimum if there is one."""
        if batch.embeddings is None:
            hidden = self.embed.weight[torch.tensor(batch.ids, device=self.device)]
            if self.config.embed_scale != 1.0:
                hidden = hidden * torch.tensor(self.config.embed_scale, dtype=hidden.dtype)
        else:
            hidden = batch.embeddings.to(self.device, self.dtype)
        if exact is not None and len(hidden) < exact.min_rows:
            hidden = torch.nn.functional.pad(hidden, (0, 0, 0, exact.min_rows - len(hidden)))
        return hidden

    def run(self, hidden: Float[Tensor, "rows width"], step: Step, layers: range | None = None) -> Float[Tensor, "rows width"]:
        """Hidden states behind a range of layers."""
        chosen = layers if layers is not None else range(len(self.layers))
        few = None if self.kernels is None else FewRows.of(self.kernels, step, self._fused_layers)
        if few is not None:
            hidden = hidden.clone(memory_format=torch.contiguous_format)  # updated in place
        for index in chosen:
            if index in step.wanted.layer_inputs:
                step.taps.layer_inputs[index] = hidden if few is None else few.settle(hidden).clone()
            if few is None:
                layer = self._layers[index]
                hidden = layer.feed(layer.mix(hidden, step, index))
            else:
                few.layer(hidden, index, self._fused_layers[index])
        return hidden if few is None else few.settle(hidden)

    def logits(self, final_hidden: Float[Tensor, "rows width"]) -> Float[Tensor, "rows vocabulary"]:
        """Logits of rows behind the final norm."""
        logits = self.output.kernel(final_hidden)
        cap = self.config.logit_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

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
            return ForwardResult(hidden.new_empty(0, self.config.vocabulary), step.taps)
        logits = self.logits(chosen)
        return ForwardResult(logits if len(logits) == wanted else logits[:wanted], step.taps)

    def _table(self, rope: RopeSpec) -> RotaryTable:
        if rope not in self._rotary:
            self._rotary[rope] = RotaryTable(rope, self.config.max_positions, self.dtype, self.device)
        return self._rotary[rope]


def _select(hidden: Tensor, rows: Sequence[int] | None, exact: Exactness | None) -> Tensor:
    """The rows that need logits, kept at the bit-exact minimum height."""
    if rows is None or list(rows) == list(range(len(hidden))):
        return hidden
    chosen = hidden[rows[0] : rows[-1] + 1] if list(rows) == list(range(rows[0], rows[-1] + 1)) else hidden[list(rows)]
    if exact is not None and len(chosen) < exact.min_rows:
        chosen = torch.nn.functional.pad(chosen, (0, 0, 0, exact.min_rows - len(chosen)))
    return chosen
