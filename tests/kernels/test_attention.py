"""Attention inside the fused layers: long contexts, shared and diverging paths, patterns; a row's bits depend on its path alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from paceline.attention.gangs import gangs
from paceline.attention.sparse_pattern import BlockPattern
from paceline.core.batch import ForwardBatch, Segment, SegmentAttention
from paceline.denoising.sparsed import Following, Patterns
from paceline.engine.runner import Runner, make_runner
from paceline.kernels.build import library
from paceline.kernels.fused import fused
from paceline.memory.ledger import Ledger
from paceline.models.config import AttentionSpec, DecoderConfig, FeedForwardSpec, LayerSpec, RopeSpec
from paceline.models.decoder import Decoder

pytestmark = pytest.mark.skipif(library("decode-f32") is None, reason="no C compiler on this machine: there are no kernels here")
UNIT = fused(torch.bfloat16, torch.device("cpu"))
needs_unit = pytest.mark.skipif(UNIT is None or not UNIT.gangs(64), reason="no matrix unit on this machine: patterns run layer by layer")
TYPES = {torch.float32: 5e-5, torch.bfloat16: 6e-2}
LAYERS, VOCABULARY = 2, 50


def decoder(dtype: torch.dtype, heads: int = 4, kv_heads: int = 2, head_dim: int = 64) -> Decoder:
    mixer = AttentionSpec(heads, kv_heads, head_dim, head_dim**-0.5, RopeSpec(10000.0, head_dim))
    config = DecoderConfig("test", VOCABULARY, 64, (LayerSpec(mixer, FeedForwardSpec(96)),) * LAYERS, 1e-5, tied=True, max_positions=1024)
    torch.manual_seed(0)
    made = Decoder(config)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    made = made.to(dtype)
    made.pack()
    assert made.stack is not None
    return made


def layered(model: Decoder) -> Decoder:
    """The same weights without fused layers."""
    plain = copy.copy(model)
    plain.__dict__ = dict(model.__dict__) | {"stack": None}
    return plain


def ids(count: int) -> list[int]:
    return torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(count)).tolist()


def runner_of(model: Decoder) -> Runner:
    return make_runner(model, slots=2000, ledger=Ledger(), prefix_cache=False)


def prompt_logits(model: Decoder, count: int) -> Tensor:
    runner = runner_of(model)
    memory = runner.memory.admit([0])
    memory.reserve(count)
    return runner.forward(ForwardBatch(ids(count), range(count), [Segment(memory, count)])).logits


def tree_logits(model: Decoder, context: int) -> Tensor:
    """Nodes of a tree of four branches behind a context, beside a second sequence."""
    runner = runner_of(model)
    one, two = runner.memory.admit([0]), runner.memory.admit([1])
    for memory, count in ((one, context), (two, 40)):
        memory.reserve(count)
        runner.forward(ForwardBatch(ids(count), range(count), [Segment(memory, count)], logit_rows=()))
        memory.commit(range(count))
    nodes = 21
    mask = torch.zeros(nodes, nodes, dtype=torch.bool)
    mask[:, 0] = True
    depths = [0] + [1 + node % 5 for node in range(nodes - 1)]
    for node in range(1, nodes):
        first = 1 + (node - 1) // 5 * 5
        mask[node, first : node + 1] = True
    one.reserve(nodes)
    two.reserve(1)
    positions = [*(context + depth for depth in depths), 40]
    return runner.forward(ForwardBatch(ids(nodes + 1), positions, [Segment(one, nodes, mask), Segment(two, 1)])).logits


def near(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    return float((found.float() - expected.float()).abs().max()) <= TYPES[dtype] * float(expected.abs().max())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(4, 2, 64), (4, 1, 32), (20, 1, 32), (3, 3, 96), (6, 2, 48), (8, 2, 128)], ids=str)
def test_long_prompts_and_trees_are_those_of_the_layers(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    model = decoder(dtype, *shape)
    for context in (31, 32, 33, 300):
        assert near(prompt_logits(model, context), prompt_logits(layered(model), context), dtype)
        assert near(tree_logits(model, context), tree_logits(layered(model), context), dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(4, 2, 64), (3, 3, 96), (6, 2, 48)], ids=str)
def test_a_row_has_the_same_bits_alone_and_in_a_crowd(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    """A prompt read at once, in pieces of other sizes and row by row."""
    model, count = decoder(dtype, *shape), 70
    whole = prompt_logits(model, count)
    for size in (1, 3, 17, 33):
        runner = runner_of(model)
        memory = runner.memory.admit([0])
        found = []
        for start in range(0, count, size):
            rows = min(size, count - start)
            memory.reserve(rows)
            batch = ForwardBatch(ids(count)[start : start + rows], range(start, start + rows), [Segment(memory, rows)])
            found.append(runner.forward(batch).logits)
            memory.commit(range(rows))
        assert torch.equal(torch.cat(found), whole)


def test_a_tree_beside_others_has_the_bits_of_its_branches() -> None:
    """Branches decoded on their own, node by node."""
    model, context = decoder(torch.bfloat16), 45
    tree = tree_logits(model, context)
    tokens = ids(22)
    for branch in range(4):
        runner = runner_of(model)
        memory = runner.memory.admit([0])
        memory.reserve(context)
        runner.forward(ForwardBatch(ids(context), range(context), [Segment(memory, context)], logit_rows=()))
        memory.commit(range(context))
        nodes = [0, *range(1 + 5 * branch, 6 + 5 * branch)]
        for depth, node in enumerate(nodes):
            memory.reserve(1)
            logits = runner.forward(ForwardBatch([tokens[node]], [context + depth], [Segment(memory, 1)])).logits
            memory.commit([0])
            assert torch.equal(logits[0], tree[node])


def random_patterns(length: int, tile: int, heads: int) -> Patterns:
    """Every block of queries reads itself and some others, of every head and layer another choice."""
    blocks = -(-length // tile)
    made = Patterns(0, tile, 0.5, "isolated")
    for layer in range(LAYERS):
        kept = torch.rand(heads, blocks, blocks, generator=torch.Generator().manual_seed(layer)) < 0.4
        made.layers[layer] = BlockPattern.of(kept | torch.eye(blocks, dtype=torch.bool), tile, length)
    return made


def canvas_logits(model: Decoder, length: int, attention: SegmentAttention | None, fed: list[int] | None = None) -> Tensor:
    """A canvas beside a second one that sees everything; positions not fed are as a first forward left them."""
    runner = runner_of(model)
    one, two = runner.memory.admit([0]), runner.memory.admit([1])
    one.reserve(length)
    two.reserve(20)
    tokens = ids(length)
    runner.forward(ForwardBatch(tokens, range(length), [Segment(one, length, canvas=length)], logit_rows=()))
    rows = list(range(length)) if fed is None else fed
    segments = [Segment(two, 20, canvas=20), Segment(one, len(rows), offsets=fed, canvas=length, attention=attention)]
    return runner.forward(ForwardBatch([*ids(20), *(tokens[row] for row in rows)], [*range(20), *rows], segments)).logits


@needs_unit
@pytest.mark.parametrize(("length", "tile"), [(300, 32), (257, 32), (300, 64), (96, 32), (20, 32)])
def test_rows_follow_patterns(length: int, tile: int) -> None:
    model = decoder(torch.bfloat16)
    patterns = random_patterns(length, tile, 4)
    found, expected = (canvas_logits(each, length, Following(patterns)) for each in (model, layered(model)))
    assert near(found, expected, torch.bfloat16)
    if length > tile:  # the negative control: what is left out matters
        assert not near(canvas_logits(model, length, None), expected, torch.bfloat16)


@needs_unit
def test_rows_that_are_fed_alone_follow_the_pattern_of_their_position() -> None:
    model, length = decoder(torch.bfloat16), 257
    fed = [0, 5, 31, 32, 33, *range(100, 140), 255, 256]
    patterns = random_patterns(length, 32, 4)
    found, expected = (canvas_logits(each, length, Following(patterns, fed), fed) for each in (model, layered(model)))
    assert near(found, expected, torch.bfloat16)
    shifted = [position + 32 if position + 32 < length else position for position in fed]
    assert not near(canvas_logits(layered(model), length, Following(patterns, shifted), fed), expected, torch.bfloat16)


def test_gangs_lie_in_one_block_of_queries() -> None:
    runner = runner_of(decoder(torch.bfloat16))
    memory = runner.memory.admit([0])
    patterns = random_patterns(100, 32, 4)
    fed = [1, 2, 31, 32, *range(64, 96), 99]
    made = gangs([Segment(memory, 3), Segment(memory, len(fed), offsets=fed, canvas=100, attention=Following(patterns, fed))], LAYERS)
    assert made is not None
    assert made.rows.tolist() == [[3, 3, 0, 0], [6, 1, 1, 0], [7, 16, 2, 0], [23, 16, 2, 0], [39, 1, 3, 0]]


def test_blocks_of_other_sizes_are_left_to_the_layers() -> None:
    runner = runner_of(decoder(torch.bfloat16))
    memory = runner.memory.admit([0])
    assert gangs([Segment(memory, 48, canvas=48, attention=Following(random_patterns(48, 16, 4)))], LAYERS) is None
