"""However a sequence is cut into forwards, its logits are those of one full forward (float64); wrong positions and masks are not."""

from __future__ import annotations

import pytest
import torch
from plain_memory import PlainMemory, PlainSequence, forward, full
from torch import Tensor
from zoo_of_families import NAMES, double_throughout, prompt, small_model

from paceline.core.batch import ForwardBatch, Segment
from paceline.core.tree import TokenTree
from paceline.models.decoder import Decoder
from paceline.models.from_transformers import share_decoder

TOLERANCE = 1e-10
LENGTH = 30


@pytest.fixture(params=NAMES)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    with double_throughout():
        return share_decoder(small_model(request.param))


@pytest.fixture
def mistral() -> Decoder:
    with double_throughout():
        return share_decoder(small_model("mistral"))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("scattered", [False, True])
def test_chunks_and_single_rows(decoder: Decoder, scattered: bool) -> None:
    ids = prompt(LENGTH)
    memory = PlainMemory(decoder, scattered)
    memory.sequence(3)  # the sequence does not begin at slot 0
    sequence = memory.sequence(LENGTH)
    parts = []
    for rows in (1, 9, 5, 1, 1, 12, 1):  # single rows, chunks within and across the window
        part = ids[sequence.length : sequence.length + rows]
        parts.append(forward(decoder, memory, sequence, part))
        sequence.commit(range(rows))
    close(torch.cat(parts), full(decoder, ids))


@pytest.mark.parametrize("scattered", [False, True])
def test_trees_then_commit(decoder: Decoder, scattered: bool) -> None:
    """Every node has the logits of the sequence that leads to it; after a commit by path, nothing else is remembered."""
    ids = prompt(15)
    tree = TokenTree.from_paths(5, [[1, 2, 3, 4], [1, 2, 9], [1, 7, 0, 2, 2], [0, 0], [8]])
    memory = PlainMemory(decoder, scattered)
    sequence = memory.sequence(64)
    forward(decoder, memory, sequence, ids)
    sequence.commit(range(len(ids)))
    positions = [len(ids) + depth for depth in tree.depth]
    logits = forward(decoder, memory, sequence, tree.token, positions, tree.ancestors())
    lines = [[*ids, tree.token[0], *(tree.token[step] for step in tree.path(node))] for node in range(len(tree))]
    close(logits, torch.stack([full(decoder, line)[-1] for line in lines]))

    node = max(range(len(tree)), key=lambda at: tree.depth[at])
    sequence.commit([0, *tree.path(node)])
    close(forward(decoder, memory, sequence, [6, 3]), full(decoder, [*lines[node], 6, 3])[-2:])


def test_sequences_side_by_side(decoder: Decoder) -> None:
    """Rows of several sequences in one forward do not see each other."""
    lines = [prompt(length, seed=length) for length in (3, 1, 17)]
    memory = PlainMemory(decoder)
    segments = [Segment(memory.sequence(20), len(line)) for line in lines]
    batch = ForwardBatch([token for line in lines for token in line], [at for line in lines for at in range(len(line))], segments)
    with torch.inference_mode():
        found = decoder.forward(batch, memory.keys, memory.values).logits
    close(found, torch.cat([full(decoder, line) for line in lines]))


def test_embeddings_as_inputs(decoder: Decoder) -> None:
    """Input vectors in place of ids give the same logits (scaled as the family scales them)."""
    ids = prompt(12)
    memory = PlainMemory(decoder)
    vectors = decoder.embed.weight[torch.tensor(ids)] * decoder.config.embed_scale
    batch = ForwardBatch([], range(12), [Segment(memory.sequence(12), 12)], embeddings=vectors)
    with torch.inference_mode():
        close(decoder.forward(batch, memory.keys, memory.values).logits, full(decoder, ids))


def _after_prompt(decoder: Decoder) -> tuple[PlainMemory, PlainSequence, list[int]]:
    ids = prompt(15)
    memory = PlainMemory(decoder)
    sequence = memory.sequence(64)
    forward(decoder, memory, sequence, ids)
    sequence.commit(range(len(ids)))
    return memory, sequence, ids


def test_a_wrong_position_is_noticed(mistral: Decoder) -> None:
    memory, sequence, ids = _after_prompt(mistral)
    expected = full(mistral, [*ids, 5])[-1]
    close(forward(mistral, memory, sequence, [5], [15])[-1], expected)
    assert (forward(mistral, memory, sequence, [5], [16])[-1] - expected).abs().max() > 1e-3


def test_a_wrong_mask_is_noticed(mistral: Decoder) -> None:
    """A node that sees its sibling, and a node that does not see its parent, have other logits."""
    memory, sequence, ids = _after_prompt(mistral)
    tree = TokenTree.from_paths(5, [[1], [2, 3]])
    positions = [15 + depth for depth in tree.depth]
    expected = full(mistral, [*ids, 5, 2, 3])[-1]
    right = tree.ancestors()
    close(forward(mistral, memory, sequence, tree.token, positions, right)[3], expected)
    for row, column in ((3, 1), (3, 2)):
        wrong = right.clone()
        wrong[row, column] ^= True
        assert (forward(mistral, memory, sequence, tree.token, positions, wrong)[3] - expected).abs().max() > 1e-3


def test_a_lost_row_is_noticed(mistral: Decoder) -> None:
    """A commit that keeps a sibling's row in place of the accepted one changes what follows."""
    memory, sequence, ids = _after_prompt(mistral)
    tree = TokenTree.from_paths(5, [[1], [2]])
    forward(mistral, memory, sequence, tree.token, [15, 16, 16], tree.ancestors())
    sequence.commit([0, 1])  # but the path was 0, 2
    assert (forward(mistral, memory, sequence, [3])[-1] - full(mistral, [*ids, 5, 2, 3])[-1]).abs().max() > 1e-3
