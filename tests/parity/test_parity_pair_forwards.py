"""However a target is cut into forwards, its logits are those of one full forward (float64); wrong positions, masks and sources are not."""

from __future__ import annotations

import pytest
import torch
from plain_memory import PlainMemory, PlainSequence
from test_parity_pairs import full
from torch import Tensor
from zoo_of_pairs import NAMES, double_throughout, small_model, words

from paceline.core.batch import ForwardBatch, Segment
from paceline.core.tree import TokenTree
from paceline.models.decoder import Decoder
from paceline.models.encoder import EncodedSource, encode, encode_sources
from paceline.models.from_transformers import share_decoder

SOURCE, TARGET = words(33, seed=3), words(30, seed=4)


@pytest.fixture(params=NAMES)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    with double_throughout():
        return share_decoder(small_model(request.param))


@pytest.fixture(params=["t5", "bart"])
def either(request: pytest.FixtureRequest) -> Decoder:
    with double_throughout():
        return share_decoder(small_model(request.param))


def read(decoder: Decoder, *sources: list[int]) -> list[EncodedSource]:
    with torch.inference_mode():
        return encode_sources(decoder, sources)


def forward(
    decoder: Decoder,
    memory: PlainMemory,
    sequence: PlainSequence,
    view: EncodedSource,
    ids: list[int],
    positions: list[int] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    rows = positions if positions is not None else range(sequence.length, sequence.length + len(ids))
    batch = ForwardBatch(ids, list(rows), [Segment(sequence, len(ids), mask, cross=view)])
    with torch.inference_mode():
        return decoder.forward(batch, memory.keys, memory.values).logits


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scattered", [False, True])
def test_chunks_and_single_rows(decoder: Decoder, scattered: bool) -> None:
    (view,) = read(decoder, SOURCE)
    memory = PlainMemory(decoder, scattered)
    memory.sequence(3)  # the sequence does not begin at slot 0
    sequence = memory.sequence(len(TARGET))
    parts = []
    for rows in (1, 9, 5, 1, 1, 12, 1):
        parts.append(forward(decoder, memory, sequence, view, TARGET[sequence.length : sequence.length + rows]))
        sequence.commit(range(rows))
    close(torch.cat(parts), full(decoder, TARGET, SOURCE))


@pytest.mark.parametrize("scattered", [False, True])
def test_trees_then_commit(decoder: Decoder, scattered: bool) -> None:
    """Every node has the logits of the target that leads to it; after a commit by path, nothing else is remembered."""
    (view,) = read(decoder, SOURCE)
    ids = TARGET[:25]  # nodes lie beyond the furthest bucketed distance of T5
    tree = TokenTree.from_paths(5, [[1, 2, 3, 4], [1, 2, 9], [1, 7, 0, 2, 2], [0, 0], [8]])
    memory = PlainMemory(decoder, scattered)
    sequence = memory.sequence(64)
    forward(decoder, memory, sequence, view, ids)
    sequence.commit(range(len(ids)))
    positions = [len(ids) + depth for depth in tree.depth]
    logits = forward(decoder, memory, sequence, view, list(tree.token), positions, tree.ancestors())
    lines = [[*ids, tree.token[0], *(tree.token[step] for step in tree.path(node))] for node in range(len(tree))]
    close(logits, torch.stack([full(decoder, line, SOURCE)[-1] for line in lines]))

    node = max(range(len(tree)), key=lambda at: tree.depth[at])
    sequence.commit([0, *tree.path(node)])
    close(forward(decoder, memory, sequence, view, [6, 3]), full(decoder, [*lines[node], 6, 3], SOURCE)[-2:])


def test_several_sources_side_by_side(decoder: Decoder) -> None:
    """Ragged sources in one encoder forward, ragged targets in one decoder forward: nobody sees another's."""
    sources = [words(length, seed=length) for length in (4, 1, 23, 4)]
    lines = [words(length, seed=9 + length) for length in (3, 1, 17, 6)]
    with torch.inference_mode():
        close(encode(decoder, sources), torch.cat([encode(decoder, [source]) for source in sources]))
    memory = PlainMemory(decoder)
    views = read(decoder, *sources)
    segments = [Segment(memory.sequence(20), len(line), cross=view) for line, view in zip(lines, views, strict=True)]
    batch = ForwardBatch([token for line in lines for token in line], [at for line in lines for at in range(len(line))], segments)
    with torch.inference_mode():
        found = decoder.forward(batch, memory.keys, memory.values).logits
    close(found, torch.cat([full(decoder, line, source) for line, source in zip(lines, sources, strict=True)]))


def test_a_source_is_kept_in_memory_of_its_own(either: Decoder) -> None:
    first, second = read(either, SOURCE, SOURCE[:5])
    for view in (first, second):
        for tensor in (*view.keys, *view.values):
            assert tensor.is_contiguous()
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_the_encoder_looks_both_ways(either: Decoder) -> None:
    """A change at the end of a source changes what its beginning looks like."""
    with torch.inference_mode():
        one, other = encode(either, [SOURCE]), encode(either, [[*SOURCE[:-1], (SOURCE[-1] + 1) % 50]])
    assert (one[0] - other[0]).abs().max() > 1e-3


def test_a_wrong_position_is_noticed(either: Decoder) -> None:
    (view,) = read(either, SOURCE)
    memory = PlainMemory(either)
    sequence = memory.sequence(64)
    forward(either, memory, sequence, view, TARGET[:9])
    sequence.commit(range(9))
    expected = full(either, [*TARGET[:9], 5], SOURCE)[-1]
    close(forward(either, memory, sequence, view, [5], [9])[-1], expected)
    assert (forward(either, memory, sequence, view, [5], [11])[-1] - expected).abs().max() > 1e-3


def test_a_wrong_mask_is_noticed(either: Decoder) -> None:
    (view,) = read(either, SOURCE)
    memory = PlainMemory(either)
    sequence = memory.sequence(64)
    tree = TokenTree.from_paths(5, [[1], [2, 3]])
    expected = full(either, [5, 2, 3], SOURCE)[-1]
    right = tree.ancestors()
    close(forward(either, memory, sequence, view, list(tree.token), list(tree.depth), right)[3], expected)
    for row, column in ((3, 1), (3, 2)):
        wrong = right.clone()
        wrong[row, column] ^= True
        assert (forward(either, memory, sequence, view, list(tree.token), list(tree.depth), wrong)[3] - expected).abs().max() > 1e-3


def test_a_missing_source_is_an_error(either: Decoder) -> None:
    memory = PlainMemory(either)
    batch = ForwardBatch([1], [0], [Segment(memory.sequence(4), 1)])
    with pytest.raises(ValueError, match="has no source"):
        either.forward(batch, memory.keys, memory.values)
    with pytest.raises(ValueError, match="empty source"):
        encode(either, [[]])


def test_log_sum_exps_under_a_bias_are_refused() -> None:
    from paceline.core.batch import TapRequest

    decoder = share_decoder(small_model("t5"))
    memory = PlainMemory(decoder)
    (view,) = read(decoder, SOURCE)
    batch = ForwardBatch([1], [0], [Segment(memory.sequence(4), 1, cross=view)], taps=TapRequest(lse=frozenset({0})))
    with pytest.raises(ValueError, match="log-sum-exps"):
        decoder.forward(batch, memory.keys, memory.values)
