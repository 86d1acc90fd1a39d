"""The fused path computes what the layers compute, for every shape it accepts, and a row's bits do not depend on the rows beside it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from paceline.attention.paths import paths
from paceline.attention.plan import Exactness
from paceline.core.batch import ForwardBatch, Segment, TapRequest
from paceline.engine.runner import make_runner
from paceline.kernels.build import SWITCH, library
from paceline.kernels.fused import fused
from paceline.memory.ledger import Ledger
from paceline.models.config import AttentionSpec, DecoderConfig, FeedForwardSpec, LayerSpec, RopeSpec
from paceline.models.decoder import Decoder
from paceline.models.stack import Ends

needs_compiler = pytest.mark.skipif(library("decode-f32") is None, reason="no C compiler on this machine: no fused path")


def decoder(dtype: torch.dtype, window: int | None = None, head_dim: int = 32, partial: bool = False, bias: bool = False) -> Decoder:
    rope = RopeSpec(10000.0, head_dim // 2 if partial else head_dim)
    mixer = AttentionSpec(4, 2, head_dim, head_dim**-0.5, rope, window=window, qkv_bias=bias)
    layer = LayerSpec(mixer, FeedForwardSpec(96))
    config = DecoderConfig("test", 50, 64, (layer,) * 3, 1e-5, tied=True, max_positions=256)
    torch.manual_seed(0)
    made = Decoder(config)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    made = made.to(dtype)
    made.pack()
    return made


def tree_mask(*parents: int) -> Tensor:
    mask = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            mask[node] |= mask[parent]
    return mask


def run(model: Decoder, kernels: bool, exact: Exactness | None = None, taps: TapRequest | None = None) -> list[Tensor]:
    """Logits of a prefill, a tree, its commit and two more steps of two sequences."""
    model = copy.copy(model)
    model.__dict__ = dict(model.__dict__)
    if not kernels:
        model.stack = None
    runner = make_runner(model, slots=200, ledger=Ledger(), exact=exact)
    one, two = runner.memory.admit(range(9)), runner.memory.admit([7] * 20)
    for memory, count in ((one, 9), (two, 12)):
        memory.reserve(count)
    wanted = TapRequest() if taps is None else taps
    out = []

    def forward(ids: list[int], positions: list[int], segments: list[Segment]) -> None:
        result = runner.forward(ForwardBatch(ids, positions, segments, taps=wanted))
        out.append(result.logits)
        out.extend(result.taps.layer_inputs.values())

    forward([*range(9), *range(12)], [*range(9), *range(12)], [Segment(one, 9), Segment(two, 12)])
    one.commit(range(9))
    two.commit(range(12))
    one.reserve(5)
    two.reserve(1)
    forward([1, 2, 3, 4, 5, 6], [9, 10, 11, 10, 11, 12], [Segment(one, 5, tree_mask(-1, 0, 1, 0, 3)), Segment(two, 1)])
    one.commit([0, 3, 4])
    two.commit([0])
    one.reserve(1)
    forward([9], [12], [Segment(one, 1)])
    one.reserve(4)
    forward([8], [13], [Segment(one, 1, torch.tensor([[True, False, False, True]]), [3], [12, 13, 13, 13])])
    return out


SHAPES = [{}, {"window": 5}, {"partial": True}, {"bias": True}, {"head_dim": 48}, {"head_dim": 64}]


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 6e-2)])
def test_fused_equals_layers(dtype: torch.dtype, tolerance: float, shape: dict[str, object]) -> None:
    model = decoder(dtype, **shape)  # type: ignore[arg-type]
    assert model.stack is not None
    taps = TapRequest(layer_inputs=frozenset({0, 2}))
    for with_kernels, without in zip(run(model, True, taps=taps), run(model, False, taps=taps), strict=True):
        torch.testing.assert_close(with_kernels.float(), without.float(), atol=tolerance * float(without.abs().max()), rtol=0)


@needs_compiler
def test_a_wrong_slot_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: one key too few in every path shows up far above the tolerance."""
    import paceline.models.stack as stack

    def short(segments, positions, window):  # type: ignore[no-untyped-def]
        seen = paths(segments, positions, window)
        for at in range(0, len(seen.runs), 2):
            seen.runs[at] += 1
        return seen

    model = decoder(torch.float32)
    expected = run(model, False)
    monkeypatch.setattr(stack, "paths", short)
    assert (run(model, True)[0] - expected[0]).abs().max() > 1e-2


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tree_rows_have_the_bits_of_plain_decoding(dtype: torch.dtype) -> None:
    """In exact mode a node's logits equal, bit for bit, those of decoding its path one token at a time."""
    model = decoder(dtype, head_dim=64)
    runner = make_runner(model, slots=400, ledger=Ledger(), exact=Exactness(), prefix_cache=False)
    prompt, token, parents = list(range(30)), [1, 2, 3, 4, 5, 6], [-1, 0, 1, 0, 3, 0]
    depth = [0, 1, 2, 1, 2, 1]

    def prefilled():  # type: ignore[no-untyped-def]
        memory = runner.memory.admit([*prompt, 0])
        memory.reserve(30)
        runner.forward(ForwardBatch(prompt, range(30), [Segment(memory, 30)], logit_rows=[]))
        memory.commit(range(30))
        return memory

    memory = prefilled()
    memory.reserve(6)
    tree = runner.forward(ForwardBatch(token, [30 + d for d in depth], [Segment(memory, 6, tree_mask(*parents))])).logits
    for node in range(6):
        path = [node]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        plain = prefilled()
        for step, member in enumerate(path):
            plain.reserve(1)
            logits = runner.forward(ForwardBatch([token[member]], [30 + step], [Segment(plain, 1)])).logits
            plain.commit([0])
        assert torch.equal(logits[0], tree[node])


WANTED = [None, [0], [4], [3, 4], [4, 1, 1], range(5)]


@needs_compiler
@pytest.mark.parametrize("wanted", WANTED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", ["tied", "own"])
def test_from_ids_to_logits_in_one_call_has_the_bits_of_part_by_part(dtype: torch.dtype, wanted: list[int] | None, head: str) -> None:
    whole = decoder(dtype)
    if head == "own":
        whole = Decoder(replace(whole.config, tied=False))
        torch.manual_seed(1)
        for parameter in whole.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        whole = whole.to(dtype)
        whole.pack()
    assert whole.ends is not None
    parts, wrong = copy.copy(whole), copy.copy(whole)
    for changed in (parts, wrong):
        changed.__dict__ = dict(changed.__dict__)
    parts.ends = None
    other = Decoder(whole.config).norm.to(dtype)
    torch.nn.init.normal_(other.weight, std=0.3)
    other.pack()
    wrong.ends = Ends.of(whole.ends.table, other, whole.output)
    found = []
    for model in (whole, parts, wrong):
        runner = make_runner(model, slots=50, ledger=Ledger())
        memory = runner.memory.admit([1] * 8)
        memory.reserve(5)
        batch = ForwardBatch([7, 49, 0, 7, 3], [0, 1, 2, 1, 2], [Segment(memory, 5, tree_mask(-1, 0, 1, 0, 3))], logit_rows=wanted)
        found.append(runner.forward(batch).logits)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])  # the control


@needs_compiler
@pytest.mark.parametrize("token", [-1, 50])
def test_ids_outside_the_vocabulary_are_refused(token: int) -> None:
    runner = make_runner(decoder(torch.float32), slots=50, ledger=Ledger())
    memory = runner.memory.admit([1] * 8)
    memory.reserve(2)
    with pytest.raises(IndexError, match="0 to 49"):
        runner.forward(ForwardBatch([3, token], [0, 1], [Segment(memory, 2)]))


def test_the_switch_turns_kernels_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    assert library("decode-f32") is None


def test_no_compiler_means_no_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    assert library("decode-f32") is None
    failing = tmp_path / "cc"
    failing.write_text("#!/bin/sh\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv("CC", str(failing))
    assert library("decode-f32") is None
    assert not list(tmp_path.glob("paceline/kernels/*.so"))


def test_other_types_and_devices_have_none() -> None:
    assert fused(torch.float64, torch.device("cpu")) is None
    assert fused(torch.float32, torch.device("cuda")) is None


@needs_compiler
def test_loading_the_kernels_leaves_denormal_numbers_alone() -> None:
    """Startup code of -ffast-math would flush them to zero in every thread that loads the library."""
    assert fused(torch.float32, torch.device("cpu")) is not None
    tiny = 2.0**-1070
    assert tiny / 2 > 0
    assert float(torch.tensor([tiny], dtype=torch.float64) / 2) > 0
