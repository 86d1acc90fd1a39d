"""SparseD in the loop: full steps first, one choice per answer, patterns per head, and settings in which it is dense decoding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusion_models import HEADS, KV_HEADS, LAYERS, MASK, Make, write

from paceline.attention.sparse_pattern import choose_pattern
from paceline.bench.audit.certificate import Outcome
from paceline.bench.audit.run import run_audit
from paceline.core.errors import UsageError
from paceline.core.request import Sequence
from paceline.denoising import sparsed
from paceline.denoising.canvas import Canvas
from paceline.denoising.schedule import DreamSteps, EvenSteps, PerStep
from paceline.denoising.sparsed import Choosing, Following, Sparse
from paceline.engine.llm import LLM

PROMPTS = [list(range(3, 40)), [4, 9, 11], [30, 31, 32, 5, 6, 7, 8, 9, 10, 11, 12, 13]]
SPARSE = "attention=sparsed,sparse_tile=4,sparse_keep=0.3"


def ids(llm: LLM, length: int = 24) -> list[list[int]]:
    return [output.token_ids for output in llm.generate(PROMPTS, max_tokens=length, ignore_eos=True)]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls of both kinds of attention, in order."""
    calls: list[str] = []
    for kind in (Choosing, Following):
        plain = kind.__call__

        def told(self, layer, *parts, plain=plain, kind=kind):  # type: ignore[no-untyped-def]
            calls.append(f"{kind.__name__} {layer}")
            return plain(self, layer, *parts)

        monkeypatch.setattr(kind, "__call__", told)
    return calls


@pytest.mark.parametrize("layout", ["llada", "dream"])
@pytest.mark.parametrize("method", ["static", "static:per_step=3", "threshold:threshold=0.3"])
def test_degenerate_settings_are_dense(make: Make, layout: str, method: str) -> None:
    head, _, tail = method.partition(":")

    def tokens(*options: str) -> list[list[int]]:
        return ids(make(layout, f"{head}:{','.join(filter(None, [tail, 'block=8', *options]))}"))

    plain = tokens()
    assert tokens("attention=sparsed", "sparse_tile=4", "sparse_keep=1") == plain
    assert tokens(SPARSE, "sparse_skip=1") == plain
    assert tokens(SPARSE, "sparse_full=99") == plain
    assert tokens("attention=sparsed", "sparse_tile=64") == plain  # one block
    if method == "static":
        assert tokens(SPARSE, "sparse_skip=0") != plain


@pytest.mark.parametrize(
    ("options", "full"),
    [("sparse_skip=0.2", 5), ("sparse_skip=0", 1), ("sparse_full=3", 3), ("sparse_select=reference", 6), ("per_step=2", 3)],
)
def test_full_steps_and_one_choice(make: Make, monkeypatch: pytest.MonkeyPatch, options: str, full: int) -> None:
    """24 tokens: `floor(24 * 0.2) + 1` full forwards, the last of which chooses, once per layer; the number of forwards is what it was."""
    calls = counted(monkeypatch)
    llm = make("llada", f"static:block=8,{SPARSE},{options}")
    (output,) = llm.generate(PROMPTS[:1], max_tokens=24, ignore_eos=True)
    steps = 12 if "per_step" in options else 24
    assert output.stats.forwards == steps
    assert output.stats.rows == steps * 61
    chosen = [call for call in calls if call.startswith("Choosing")]
    assert chosen == [f"Choosing {layer}" for layer in range(LAYERS)]
    assert calls[:LAYERS] == chosen
    assert len(calls) == LAYERS * (steps - full + 1)


def test_masked_and_gathered_blocks_decode_alike(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ids(make("dream", f"static:block=8,{SPARSE}"))
    monkeypatch.setattr("paceline.attention.sparse.kernel_for", lambda device: "masked")
    assert ids(make("dream", f"static:block=8,{SPARSE}")) == found


def test_patterns_are_those_of_the_model_at_that_step(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen again outside the loop from tapped queries and keys; heads differ."""
    from paceline.core.batch import ForwardBatch, Segment, TapRequest

    seen: list[tuple[Canvas, list[int]]] = []
    plain = Sparse.attention

    def watched(self, canvas, view, positions):  # type: ignore[no-untyped-def]
        seen.append((canvas, canvas.ids.tolist()))
        return plain(self, canvas, view, positions)

    monkeypatch.setattr(Sparse, "attention", watched)
    llm = make("llada", f"static:block=8,{SPARSE},sparse_skip=0.25")
    llm.generate(PROMPTS[:1], max_tokens=24, ignore_eos=True)
    canvas, state = seen[6]
    (patterns,) = canvas.patterns.values()
    assert 0.3 <= patterns.density < 0.5
    view = llm.runner.memory.admit([0])
    view.truncate(0)
    view.reserve(len(state))
    taps = TapRequest(queries=frozenset(range(LAYERS)), keys_values=frozenset(range(LAYERS)))
    batch = ForwardBatch(state, range(len(state)), [Segment(view, len(state), canvas=len(state))], taps=taps)
    found = llm.runner.forward(batch).taps
    differs = False
    for layer, own in patterns.layers.items():
        query, keys = found.queries[layer], found.keys_values[layer][0]
        scale = query.shape[-1] ** -0.5
        again = choose_pattern(query, keys, 37, tile=4, keep=0.3, scale=scale)
        assert torch.equal(own.kept, again.kept)
        wrong = choose_pattern(query, keys, 37, tile=4, keep=0.3, scale=HEADS**-0.5)  # as released code for LLaDA scales
        differs |= not torch.equal(own.kept, wrong.kept)
        assert not torch.equal(own.kept[0], own.kept[1])
    assert differs


def test_attention_kept_is_more_than_a_window_keeps(make: Make) -> None:
    """Weight that falls on kept blocks at the last step, against a band of the same density around the diagonal."""
    from paceline.core.batch import ForwardBatch, Segment, TapRequest

    llm = make("llada", f"static:block=8,{SPARSE}")
    kept_canvases: list[Canvas] = []
    inner = llm.engine.denoiser.start

    def start(*given: object) -> Canvas:
        kept_canvases.append(inner(*given))  # type: ignore[arg-type]
        return kept_canvases[-1]

    llm.engine.scheduler.start = lambda sequence: start(sequence.request, sequence.seed, 256)
    llm.generate(PROMPTS[:1], max_tokens=24, ignore_eos=True)
    (canvas,) = kept_canvases
    (patterns,) = canvas.patterns.values()
    view = llm.runner.memory.admit([0])
    view.truncate(0)
    view.reserve(canvas.length)
    taps = TapRequest(queries=frozenset(range(LAYERS)), keys_values=frozenset(range(LAYERS)))
    batch = ForwardBatch(canvas.ids.tolist(), range(canvas.length), [Segment(view, canvas.length, canvas=canvas.length)], taps=taps)
    found = llm.runner.forward(batch).taps
    own, band = [], []
    blocks = torch.arange(-(-canvas.length // 4))
    for layer, pattern in patterns.layers.items():
        query, keys = found.queries[layer], found.keys_values[layer][0]
        weights = (torch.einsum("ihd,jhd->hij", query, keys) * query.shape[-1] ** -0.5).softmax(-1)
        count = int(pattern.kept[0, 0].sum())
        near = torch.zeros_like(pattern.kept).scatter_(
            -1, (blocks[:, None] - blocks).abs().argsort(dim=-1, stable=True)[:, :count].expand(HEADS, -1, -1), True
        )
        window = replace(pattern, kept=near)
        own.append((weights * pattern.expanded()).sum(-1).mean())
        band.append((weights * window.expanded()).sum(-1).mean())
    assert sum(own) > sum(band)


def test_one_pattern_for_heads_that_share_keys(make: Make) -> None:
    """They read what any of them would: more blocks, and never fewer than each would alone."""
    found = {}
    for heads in ("query", "kv"):
        llm = make("dream", f"static:block=8,{SPARSE},sparse_skip=0,sparse_heads={heads}")
        canvases = started(llm)
        llm.generate(PROMPTS[:1], max_tokens=24, ignore_eos=True)
        (found[heads],) = canvases[0].patterns.values()
    for layer, joint in found["kv"].layers.items():
        apart = found["query"].layers[layer]
        pairs = joint.kept.view(KV_HEADS, HEADS // KV_HEADS, *joint.kept.shape[1:])
        assert torch.equal(pairs[:, 0], pairs[:, 1])
        assert torch.equal(pairs[:, 0], apart.kept.view_as(pairs).any(1)) or layer  # later layers have seen other inputs
    assert found["kv"].density > found["query"].density


def test_guidance_with_patterns_in_common(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The canvas with the prompt chooses, the other one follows it; each has its own otherwise."""
    outputs = {}
    for guided, owners, choices in (("own", 2, 2), ("shared", 1, 1)):
        calls = counted(monkeypatch)
        llm = make("llada", f"static:block=8,guidance=1.5,{SPARSE},sparse_guided={guided}", max_rows=130)
        canvases = started(llm)
        outputs[guided] = [output.token_ids for output in llm.generate(PROMPTS[:2], max_tokens=24, ignore_eos=True)]
        assert [len(canvas.patterns) for canvas in canvases] == [owners] * 2
        assert sum(call.startswith("Choosing") for call in calls) == 2 * choices * LAYERS
        assert sum(call.startswith("Following") for call in calls) == 2 * 2 * 19 * LAYERS
        monkeypatch.undo()
    assert outputs["own"] != outputs["shared"]


def started(llm: LLM) -> list[Canvas]:
    """Canvases that an engine will start."""
    found: list[Canvas] = []
    plain = llm.engine.scheduler.start

    def start(sequence: Sequence) -> Canvas:
        found.append(plain(sequence))
        return found[-1]

    llm.engine.scheduler.start = start
    return found


def test_what_is_planned() -> None:
    canvas = Canvas.start([1, 2, 3], 26, block=8, mask=MASK)
    assert [PerStep(count).planned(canvas) for count in (1, 3, 8, 100)] == [26, 10, 4, 4]
    assert EvenSteps(12).planned(canvas) == DreamSteps(12).planned(canvas) == 12
    assert Sparse(None).chooses(canvas) == 5  # type: ignore[arg-type]
    assert Sparse(None, schedule=PerStep(8), skip=0.5).chooses(canvas) == 2  # type: ignore[arg-type]
    assert Sparse(None, full=7).chooses(canvas) == 6  # type: ignore[arg-type]


def test_long_canvases_have_settings_of_their_own(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, expected in ((4096, (32, 0.5)), (32, (128, 0.3))):
        monkeypatch.setattr(sparsed, "LONG", limit)
        policy = make("llada", "static:attention=sparsed,sparse_skip=0").engine.denoiser.policy
        canvas = Canvas.start(PROMPTS[0], 24, block=8, mask=MASK)
        policy.attention(canvas, object())
        (patterns,) = canvas.patterns.values()
        assert (patterns.tile, patterns.keep) == expected


def test_a_canvas_that_changes_its_length() -> None:
    """Shorter: the pattern is cut. Longer: chosen again."""
    policy = Sparse(None, tile=4, skip=0)  # type: ignore[arg-type]
    canvas, view = Canvas.start([1, 2, 3], 13, block=8, mask=MASK), object()
    generator = torch.Generator().manual_seed(0)

    def run(length: int) -> object:
        attention = policy.attention(canvas, view)  # type: ignore[arg-type]
        attention(0, *(torch.randn(length, 2, 8, generator=generator) for _ in range(3)), 0.3)  # type: ignore[misc]
        return attention

    assert isinstance(run(16), Choosing)
    canvas.ids, canvas.open = canvas.ids[:10], canvas.open[:10]
    assert isinstance(run(10), Following)
    canvas.ids, canvas.open = canvas.ids.repeat(3), canvas.open.repeat(3)
    assert isinstance(run(30), Choosing)


CACHES = ("prefix", "dual", "dkv-decode", "dkv-pd")


@pytest.mark.parametrize("layout", ["llada", "dream"])
@pytest.mark.parametrize("cache", CACHES)
def test_patterns_beside_a_cache(make: Make, monkeypatch: pytest.MonkeyPatch, layout: str, cache: str) -> None:
    """Rows that are fed follow the patterns of their positions. Nothing changes where all is kept, or where the cache keeps nothing."""
    method = f"static:block=8,cache={cache}"
    plain = ids(make(layout, method))
    assert ids(make(layout, f"{method},attention=sparsed,sparse_tile=4,sparse_keep=1")) == plain
    if cache != "dkv-pd":  # PD holds the prompt even so
        assert ids(make(layout, f"{method},refresh=1,{SPARSE}")) == ids(make(layout, f"static:block=8,{SPARSE}"))
    calls = counted(monkeypatch)
    assert ids(make(layout, f"{method},{SPARSE},sparse_skip=0")) != plain
    assert "Following 0" in calls


def test_a_cache_chooses_when_everything_is_fed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 9 would choose, but the next forward of all positions is the one that begins the third block: step 16."""
    for options, first in (("cache=dual", 16), ("cache=none", 9)):
        calls = counted(monkeypatch)
        (output,) = make("llada", f"static:block=8,{options},{SPARSE},sparse_full=10").generate(PROMPTS[:1], max_tokens=24, ignore_eos=True)
        assert output.stats.forwards == 24
        assert calls[:LAYERS] == [f"Choosing {layer}" for layer in range(LAYERS)]
        assert calls[LAYERS:] == [f"Following {layer}" for _ in range(24 - first - 1) for layer in range(LAYERS)]
        monkeypatch.undo()


@pytest.mark.parametrize("cache", CACHES)
def test_a_batch_with_caches_changes_nothing(make: Make, cache: str) -> None:
    method = f"threshold:threshold=0.2,block=8,cache={cache},{SPARSE},sparse_full=2"
    alone = [make("llada", method).generate([prompt], max_tokens=20, ignore_eos=True)[0] for prompt in PROMPTS]
    together = make("llada", method).generate(PROMPTS, max_tokens=20, ignore_eos=True)
    assert [output.token_ids for output in alone] == [output.token_ids for output in together]


@pytest.mark.parametrize("options", ["", ",guidance=1.5"])
@pytest.mark.parametrize("layout", ["llada", "dream"])
def test_a_batch_changes_nothing(make: Make, layout: str, options: str) -> None:
    """Answers in their full and in their sparse phase share forwards; each memory has patterns of its own."""
    method = f"threshold:threshold=0.2,block=8,{SPARSE},sparse_full=2{options}"
    alone = [make(layout, method).generate([prompt], max_tokens=20, ignore_eos=True)[0] for prompt in PROMPTS]
    for limits in ({}, {"max_rows": 64}, {"max_sequences": 2}):
        together = make(layout, method, **limits).generate(PROMPTS, max_tokens=20, ignore_eos=True)
        assert [output.token_ids for output in alone] == [output.token_ids for output in together]


def test_the_audit_measures_it(tmp_path: Path) -> None:
    """Nothing is promised but that an answer does not depend on those beside it."""
    method = f"static:block=8,{SPARSE}"
    certificate = run_audit(write(tmp_path, "llada"), method, dtype="float64", prompts=PROMPTS, max_tokens=12, controls=False)
    certificate.require()
    assert certificate.guarantee["greedy"] == "bounded"
    assert [check.outcome for check in certificate.checks] == [Outcome.MEASURED, Outcome.PASSED]


@pytest.mark.parametrize(
    ("layout", "method", "named"),
    [
        ("llada", "freedave:attention=sparsed,cache=dual", "attention"),
        ("llada", "static:attention=sparsed,sparse_keep=1.5", "sparse_keep"),
        ("llada", "static:attention=sparsed,sparse_skip=-1", "sparse_skip"),
        ("sdar", "static:attention=sparsed", "attention=dense"),
        ("llada", "freedave:attention=sparsed,mode=tree", "mode"),
        ("llada", "freedave:cache=dkv-decode", "cache"),
    ],
)
def test_what_does_not_fit_is_said(make: Make, layout: str, method: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        make(layout, method)
