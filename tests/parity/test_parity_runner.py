"""The decoder as it is served: packed weights, slot memory, a runner. Same logits and tokens as `transformers`."""

from __future__ import annotations

import pytest
import torch
from plain_memory import full, greedy
from zoo_of_families import NAMES, double_throughout, prompt, small_model

from paceline.core.batch import ForwardBatch, Segment
from paceline.core.tree import TokenTree
from paceline.engine.runner import make_runner
from paceline.memory.ledger import Ledger
from paceline.models.from_transformers import share_decoder


@pytest.mark.parametrize("name", NAMES)
def test_packed_weights(name: str) -> None:
    """Fused and reordered weights: float32 logits within 1e-4, 64 greedy tokens equal."""
    model, ids = small_model(name, seed=3), prompt(33, seed=3)
    expected = model(torch.tensor([ids])).logits[0]
    tokens = model.generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False)[0, len(ids) :]
    decoder = share_decoder(model)
    decoder.pack()
    torch.testing.assert_close(full(decoder, ids), expected, rtol=0, atol=1e-4)
    assert greedy(decoder, ids, 64) == tokens.tolist()


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gemma3", "phi3", "qwen3-moe"])
def test_slot_memory(name: str) -> None:
    """Two sequences decode side by side in slot memory: chunked prefill beside a tree, commits by path, a fork (float64)."""
    with double_throughout():
        decoder = share_decoder(small_model(name))
    runner = make_runner(decoder, slots=256, ledger=Ledger())
    first, second = prompt(19, seed=4), prompt(23, seed=5)
    one, two = runner.memory.admit(first), runner.memory.admit(second)

    one.reserve(len(first))
    runner.forward(ForwardBatch(first, range(len(first)), [Segment(one, len(first))], logit_rows=[]))
    one.commit(range(len(first)))

    tree = TokenTree.from_paths(7, [[1, 2], [3, 4, 5], [0]])
    one.reserve(len(tree))
    two.reserve(11)
    segments = [Segment(one, len(tree), tree.ancestors()), Segment(two, 11)]
    positions = [len(first) + depth for depth in tree.depth] + list(range(11))
    logits = runner.forward(ForwardBatch([*tree.token, *second[:11]], positions, segments)).logits
    leaf = max(range(len(tree)), key=lambda at: tree.depth[at])
    path = [0, *tree.path(leaf)]
    line = [*first, *(tree.token[node] for node in path)]
    torch.testing.assert_close(logits[leaf], full(decoder, line)[-1], rtol=0, atol=1e-10)
    torch.testing.assert_close(logits[len(tree) :], full(decoder, second)[:11], rtol=0, atol=1e-10)
    one.commit(path)
    two.commit(range(11))

    fork = one.fork()
    for sequence, rows, whole in ((one, [6], [*line, 6]), (fork, [2, 2], [*line, 2, 2]), (two, second[11:], second)):
        start = sequence.length
        sequence.reserve(len(rows))
        batch = ForwardBatch(rows, range(start, start + len(rows)), [Segment(sequence, len(rows))], logit_rows=[len(rows) - 1])
        torch.testing.assert_close(runner.forward(batch).logits[0], full(decoder, whole)[-1], rtol=0, atol=1e-10)
        sequence.commit(range(len(rows)))
