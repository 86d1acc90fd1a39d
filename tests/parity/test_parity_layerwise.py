"""Layers run one by one, rows that leave and join between layers, and taps: each against the definition (float64)."""

from __future__ import annotations

import pytest
import torch
from plain_memory import PlainMemory, PlainSequence, forward
from torch import Tensor
from zoo_of_families import double_throughout, prompt, small_model

from paceline.attention.plan import Exactness
from paceline.core.batch import ForwardBatch, ForwardResult, Segment, TapRequest
from paceline.core.tree import TokenTree
from paceline.models.decoder import Decoder
from paceline.models.from_transformers import share_decoder

FAMILIES = ["llama", "mistral", "qwen3", "gemma2", "gemma3", "qwen3-moe"]  # windows, norms of heads, soft caps, experts
CONTEXT = 15
TREE = TokenTree.from_paths(5, [[1, 2, 3], [1, 7], [8]])
POSITIONS = [CONTEXT + depth for depth in TREE.depth]
ROWS = len(TREE)
CUT = 1  # the layer before which rows leave or join
EVERY = frozenset(range(3))
ALL_TAPS = TapRequest(True, EVERY, EVERY, EVERY, EVERY, EVERY)


@pytest.fixture(params=FAMILIES)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    with double_throughout():
        return share_decoder(small_model(request.param))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def after_prompt(decoder: Decoder) -> tuple[PlainMemory, PlainSequence]:
    memory = PlainMemory(decoder, scattered=True)
    sequence = memory.sequence(64)
    forward(decoder, memory, sequence, prompt(CONTEXT))
    sequence.commit(range(CONTEXT))
    return memory, sequence


def run(decoder: Decoder, memory: PlainMemory, segment: Segment, positions: list[int], hidden: Tensor, layers: range) -> Tensor:
    """Hidden states of a segment's rows behind a range of layers."""
    batch = ForwardBatch([], positions, [segment], embeddings=hidden)
    with torch.inference_mode():
        return decoder.run(hidden, decoder.step(batch, memory.keys, memory.values), layers)


def inputs(decoder: Decoder, memory: PlainMemory, sequence: PlainSequence, ids: list[int]) -> Tensor:
    with torch.inference_mode():
        return decoder.inputs(ForwardBatch(ids, [0] * len(ids), [Segment(sequence, len(ids))]))


def tapped(decoder: Decoder, taps: TapRequest) -> tuple[ForwardResult, PlainMemory, PlainSequence]:
    memory, sequence = after_prompt(decoder)
    batch = ForwardBatch(TREE.token, POSITIONS, [Segment(sequence, ROWS, TREE.ancestors())], taps=taps)
    with torch.inference_mode():
        return decoder.forward(batch, memory.keys, memory.values), memory, sequence


def test_layers_and_their_halves_one_by_one(decoder: Decoder) -> None:
    whole, *_ = tapped(decoder, TapRequest(final_hidden=True))
    for halves in (False, True):
        memory, sequence = after_prompt(decoder)
        batch = ForwardBatch(TREE.token, POSITIONS, [Segment(sequence, ROWS, TREE.ancestors())])
        with torch.inference_mode():
            step = decoder.step(batch, memory.keys, memory.values)
            hidden = decoder.inputs(batch)
            for index, layer in enumerate(decoder.layers):
                one = range(index, index + 1)
                hidden = layer.feed(layer.mix(hidden, step, index)) if halves else decoder.run(hidden, step, one)  # type: ignore[operator]
            final = decoder.norm(hidden)
            close(final, whole.taps.final_hidden)  # type: ignore[arg-type]
            close(decoder.logits(final), whole.logits)


@pytest.mark.parametrize("kept", [[0, 1, 4], [1, 3], [0, 2, 5]], ids=str)
def test_rows_that_leave_between_layers(decoder: Decoder, kept: list[int]) -> None:
    """Those that stay go on as if the others had become invisible there; a row whose whole path stays notices nothing."""
    upper = range(CUT, len(decoder.layers))
    memory, sequence = after_prompt(decoder)
    whole = Segment(sequence, ROWS, TREE.ancestors())
    hidden = run(decoder, memory, whole, POSITIONS, inputs(decoder, memory, sequence, list(TREE.token)), range(CUT))
    unchanged = run(decoder, memory, whole, POSITIONS, hidden, upper)[kept]
    blind = TREE.ancestors()
    blind[:, [row for row in range(ROWS) if row not in kept]] = False
    expected = run(decoder, memory, Segment(sequence, ROWS, blind), POSITIONS, hidden, upper)[kept]

    span = kept[-1] + 1
    rest = Segment(sequence, len(kept), blind[kept][:, :span], kept, POSITIONS[:span])
    found = run(decoder, memory, rest, [POSITIONS[row] for row in kept], hidden[kept], upper)
    close(found, expected)
    for row, state, before in zip(kept, found, unchanged, strict=True):
        if {0, *TREE.path(row)} <= set(kept):
            close(state, before)
        else:
            assert (state - before).abs().max() > 1e-6


def test_rows_that_join_between_layers(decoder: Decoder) -> None:
    """Riders: vectors attached to nodes in the middle of the stack, whose keys exist from there on and which no node sees."""
    riders, width = [2, 4], decoder.config.width  # the nodes they ride on
    vectors = torch.randn(len(riders), width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    memory, sequence = after_prompt(decoder)
    nodes = Segment(sequence, ROWS, TREE.ancestors())
    low = run(decoder, memory, nodes, POSITIONS, inputs(decoder, memory, sequence, list(TREE.token)), range(CUT))
    alone = run(decoder, memory, nodes, POSITIONS, low, range(CUT, len(decoder.layers)))

    mask = torch.zeros(ROWS + len(riders), ROWS + len(riders), dtype=torch.bool)
    mask[:ROWS, :ROWS] = TREE.ancestors()
    mask[ROWS:, :ROWS] = TREE.ancestors()[riders]
    mask[range(ROWS, len(mask)), range(ROWS, len(mask))] = True
    positions = [*POSITIONS, *(POSITIONS[node] + 1 for node in riders)]
    joined = Segment(sequence, len(mask), mask)
    found = run(decoder, memory, joined, positions, torch.cat([low, vectors]), range(CUT, len(decoder.layers)))
    close(found[:ROWS], alone)

    for at, node in enumerate(riders):  # each as the last row of a chain of its own
        path = [0, *TREE.path(node)]
        places = [POSITIONS[step] for step in path] + [POSITIONS[node] + 1]
        chain = Segment(sequence, len(places))
        expected = run(decoder, memory, chain, places, torch.cat([low[path], vectors[at : at + 1]]), range(CUT, len(decoder.layers)))
        close(found[ROWS + at], expected[-1])


def test_taps_are_what_their_names_say(decoder: Decoder) -> None:
    result, memory, sequence = tapped(decoder, ALL_TAPS)
    taps = result.taps
    slots = [sequence.slots[CONTEXT + row] for row in range(ROWS)]
    hidden = inputs(decoder, memory, sequence, list(TREE.token))
    for index, layer in enumerate(decoder.layers):
        mixer = layer.mixer
        close(taps.layer_inputs[index], hidden)
        with torch.inference_mode():
            plain, value = mixer.project(layer.mixer_norm(hidden))  # type: ignore[operator,union-attr]
        close(taps.keys[index], plain[:, mixer.spec.heads :])  # type: ignore[union-attr]
        close(taps.keys_values[index][0], memory.keys[index][slots])
        close(taps.keys_values[index][1], memory.values[index][slots])
        close(taps.keys_values[index][1], value)
        assert (taps.keys[index] - taps.keys_values[index][0]).abs().max() > 1e-3  # before and after rotation
        close(taps.lse[index], sums(taps.queries[index], memory, sequence, index, decoder))
        hidden = run(decoder, memory, Segment(sequence, ROWS, TREE.ancestors()), POSITIONS, hidden, range(index, index + 1))
    with torch.inference_mode():
        close(taps.final_hidden, decoder.norm(hidden))  # type: ignore[arg-type]
    close(result.logits, tapped(decoder, TapRequest())[0].logits)


def sums(query: Tensor, memory: PlainMemory, sequence: PlainSequence, layer: int, decoder: Decoder) -> Tensor:
    """Log-sum-exp of each row and head, key by key."""
    spec = decoder.config.layers[layer].mixer
    places = [*range(CONTEXT), *POSITIONS]
    found = torch.empty(ROWS, spec.heads, dtype=torch.float64)
    for row in range(ROWS):
        seen = [*range(CONTEXT), *(CONTEXT + node for node in TREE.ancestors()[row].nonzero()[:, 0].tolist())]
        seen = [at for at in seen if spec.window is None or places[at] > POSITIONS[row] - spec.window]
        for head in range(spec.heads):
            keys = memory.keys[layer][[sequence.slots[at] for at in seen], head // (spec.heads // spec.kv_heads)]
            score = keys @ query[row, head] * spec.scale
            found[row, head] = torch.logsumexp(score if spec.softcap is None else torch.tanh(score / spec.softcap) * spec.softcap, 0)
    return found


def test_a_forgotten_soft_cap_is_noticed() -> None:
    with double_throughout():
        decoder = share_decoder(small_model("gemma2"))
    result, memory, sequence = tapped(decoder, ALL_TAPS)
    uncapped = [memory.keys[0][sequence.slots[at], 0] @ result.taps.queries[0][0, 0] for at in range(CONTEXT + 1)]
    wrong = torch.logsumexp(torch.stack(uncapped) * decoder.config.layers[0].mixer.scale, 0)
    assert decoder.config.layers[0].mixer.softcap is not None
    assert (result.taps.lse[0][0, 0] - wrong).abs() > 1e-4


def test_padding_of_the_bit_exact_mode_is_not_tapped(decoder: Decoder) -> None:
    memory = PlainMemory(decoder, slots=2048)
    batch = ForwardBatch([5], [0], [Segment(memory.sequence(1), 1)], taps=ALL_TAPS)
    with torch.inference_mode():
        exact = decoder.forward(batch, memory.keys, memory.values, Exactness()).taps
        usual = decoder.forward(batch, memory.keys, memory.values).taps
    for index in range(len(decoder.layers)):
        close(exact.layer_inputs[index], usual.layer_inputs[index])
        close(exact.queries[index], usual.queries[index])
        close(exact.keys[index], usual.keys[index])
        close(torch.stack(exact.keys_values[index]), torch.stack(usual.keys_values[index]))
        close(exact.lse[index], usual.lse[index])


@pytest.mark.parametrize("what", ["layer_inputs", "queries", "keys", "keys_values", "lse"])
def test_taps_of_layers_that_are_not_there(what: str) -> None:
    with double_throughout():
        decoder = share_decoder(small_model("llama"))
    with pytest.raises(ValueError, match=r"taps of layers \[3\]; the decoder has layers 0 to 2"):
        tapped(decoder, TapRequest(**{what: frozenset({1, 3})}))  # type: ignore[arg-type]
