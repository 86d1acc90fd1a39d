"""Encoder-decoders in the one loop: sources are read once, shared, freed, read again after a preemption, and never mixed up."""

from __future__ import annotations

import pytest
from toy_engines import overbook

from paceline.bench.audit.toy_pair import toy_pair
from paceline.core.batch import ForwardBatch, ForwardResult
from paceline.core.errors import UsageError
from paceline.core.request import FinishReason, Request
from paceline.core.rng import key
from paceline.core.sampling import Sampling
from paceline.engine.llm import LLM
from paceline.engine.load import load
from paceline.engine.runner import Runner
from paceline.planning.cost import ForwardCost

VOCABULARY = 24
METHODS = ("prompt-lookup", "lookahead", "stand", "iad", "iad+prompt-lookup", "auto")


@pytest.fixture(scope="module")
def target() -> LLM:
    return load(toy_pair(VOCABULARY, seed=1, noise=0.4, eos=(5,)), "none", pack=False, device="cpu", kv_tokens=4)


def engine(target: LLM, method: str = "none", **options: object) -> LLM:
    options = {"kv_tokens": 3000, "max_sequences": 8} | options
    return load(target, method, device="cpu", **options)  # type: ignore[arg-type]


def sources(count: int, seed: int = 0) -> list[list[int]]:
    return [[key(seed, index, at) % VOCABULARY for at in range(1 + (5 * index + 3) % 17)] for index in range(count)]


def outputs(llm: LLM, asked: list[list[int]], max_tokens: int = 18, sampling: Sampling | None = None) -> list[list[int]]:
    return [output.token_ids for output in llm.generate(asked, sampling, max_tokens)]


@pytest.mark.parametrize("method", METHODS)
def test_every_drafter_works(target: LLM, method: str) -> None:
    asked = sources(20)
    assert outputs(engine(target, method), asked) == outputs(engine(target), asked)


def test_batched_and_alone_agree(target: LLM) -> None:
    asked = sources(20)
    together = outputs(engine(target), asked)
    assert together == [outputs(engine(target), [source])[0] for source in asked]
    assert len({tuple(output) for output in together}) > 15  # the source decides the output


def test_sources_are_encoded_together_and_once(target: LLM) -> None:
    llm = engine(target)
    asked = sources(6)
    outputs(llm, [*asked, *asked[:2]])
    reader = llm.runner.sources
    assert reader is not None
    assert (reader.forwards, reader.rows) == (1, sum(map(len, asked)))


def test_samples_share_their_source(target: LLM) -> None:
    llm = engine(target)
    sampling = Sampling(temperature=4.0, n=4, seed=3)
    (output,) = llm.generate([sources(1)[0]], sampling, 12)
    assert len({tuple(sample.token_ids) for sample in output.samples}) > 1
    assert llm.runner.sources is not None
    assert llm.runner.sources.forwards == 1
    assert llm.ledger.live["cross_kv"] == 0


def test_bytes_are_booked_while_they_are_held(target: LLM) -> None:
    llm = engine(target)
    source = sources(3)[2]
    (output,) = llm.generate([source], max_tokens=4)
    layers, heads, width = 2, 2, 16
    assert output.stats.peak_bytes["cross_kv"] == 2 * layers * heads * width * len(source) * 8
    assert llm.ledger.live["cross_kv"] == 0
    assert output.stats.prompt_tokens == len(source)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_cancelling_frees_the_source(target: LLM, steps: int) -> None:
    llm = engine(target)
    start = target.runner.decoder.config.start
    running = [llm.engine.submit(Request(start, max_tokens=18, source=tuple(source)))[0] for source in sources(5)]
    for _ in range(steps):
        llm.engine.step()
    for sequence in running:
        llm.engine.cancel(sequence)
    assert llm.ledger.live["cross_kv"] == 0
    assert llm.runner.sources is not None
    assert not llm.runner.sources.book.held


@pytest.mark.parametrize("method", ["none", "iad"])
def test_a_preempted_sequence_reads_its_source_again(target: LLM, method: str) -> None:
    asked = sources(8)
    expected = outputs(engine(target), asked)
    llm = overbook(engine(target, method, kv_tokens=60))
    found = llm.generate(asked, max_tokens=18)
    assert [output.token_ids for output in found] == expected
    assert sum(output.stats.preemptions for output in found) > 0
    assert llm.runner.sources is not None
    assert llm.runner.sources.rows > sum(map(len, asked))
    assert llm.ledger.live["cross_kv"] == 0


def test_targets_are_no_prefixes_for_other_sources(target: LLM) -> None:
    """Every target begins with the same start token, and its keys differ with the source all the same."""
    llm = engine(target, prefix_cache=True)
    asked = sources(6)
    for source in asked:
        assert outputs(llm, [source]) == outputs(engine(target), [source])
    assert llm.generate([asked[0]])[0].stats.cached_prompt_tokens == 0


class SwappedSources(Runner):
    """Rows of one sequence read the source of another."""

    def forward(self, batch: ForwardBatch) -> ForwardResult:
        from dataclasses import replace

        views = [segment.cross for segment in batch.segments]
        segments = [replace(segment, cross=view) for segment, view in zip(batch.segments, [*views[1:], *views[:1]], strict=True)]
        return super().forward(replace(batch, segments=segments))


def test_a_swapped_source_is_noticed(target: LLM) -> None:
    asked = sources(8)
    expected = outputs(engine(target), asked)
    llm = engine(target)
    right = llm.engine.runner
    llm.engine.runner = SwappedSources(right.decoder, right.memory, None, right.sources)
    assert sum(a != b for a, b in zip(outputs(llm, asked), expected, strict=True)) > 4


def test_streaming_and_stopping(target: LLM) -> None:
    source = sources(9)[8]
    expected = outputs(engine(target), [source])[0]
    llm = engine(target, "iad")
    chunks = list(llm.stream(source, max_tokens=18))
    assert [token for chunk in chunks for token in chunk.token_ids] == expected
    stream = llm.stream(source, max_tokens=18)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert llm.ledger.live["cross_kv"] == 0


def test_refusals_name_the_reason(target: LLM) -> None:
    llm = engine(target)
    with pytest.raises(UsageError, match="source has 65 tokens and the model's encoder reads 64"):
        llm.generate([[1] * 65])
    with pytest.raises(UsageError, match="prompt is empty"):
        llm.generate([[]])
    with pytest.raises(UsageError, match="batching='ragged'"):
        engine(target, batching="eqspec")
    with pytest.raises(UsageError, match="encoder-decoder"):
        engine(target, "draft-model", draft=target)


@pytest.mark.parametrize("seed", range(6))
def test_random_interleavings_mix_nothing_up(target: LLM, seed: int) -> None:
    """Requests come, are cancelled and preempted in any order; sources repeat, so that readers come and go."""
    asked = sources(6, seed)
    expected = outputs(engine(target), asked, 12)
    llm = engine(target, ("none", "iad", "prompt-lookup")[seed % 3], kv_tokens=30, max_sequences=5)
    reader = llm.runner.sources
    assert reader is not None
    start, live = target.runner.decoder.config.start, []
    for tick in range(60):
        if tick < 40 and key(seed, tick, 1) % 3:
            which = key(seed, tick, 2) % len(asked)
            (sequence,) = llm.engine.submit(Request(start, max_tokens=12, source=tuple(asked[which])))
            live.append((sequence, which))
        if live and key(seed, tick, 3) % 5 == 0:
            llm.engine.cancel(live[key(seed, tick, 4) % len(live)][0])
        overbook(llm).engine.step()
        readers = [active.memory.cross for active in llm.engine.scheduler.running if active.memory.cross is not None]
        assert {id(view) for view in readers} == {id(view) for view in reader.book.held.values()}
        assert sum(view.readers for view in reader.book.held.values()) == len(readers)
        assert llm.ledger.live["cross_kv"] == sum(view.bytes for view in reader.book.held.values())
    while not llm.engine.idle:
        llm.engine.step()
    assert not reader.book.held
    whole = [(sequence.output, expected[which]) for sequence, which in live if sequence.finish_reason is not FinishReason.CANCELLED]
    assert len(whole) > 5
    assert all(found == wanted for found, wanted in whole)
    assert sum(sequence.stats.preemptions for sequence, _ in live) > 0


class Flat(ForwardCost):
    """Rows are free, whatever this machine is doing."""

    def __call__(self, rows: int) -> float:
        return 1.0

    def observe(self, rows: int, seconds: float) -> None:
        """Nothing to learn."""


def test_auto_copies_the_source(target: LLM) -> None:
    """From the first token on, where prompt lookup would have nothing to look up yet."""
    asked = [[1 + key(7, index, at) % (VOCABULARY - 1) for at in range(30)] for index in range(8)]
    llm = load(toy_pair(VOCABULARY, seed=1, noise=0.1), "auto:shared=false", pack=False, device="cpu", kv_tokens=2000)
    (planned,) = llm.engine.drafter.parts
    planned.cost = Flat(lambda rows: 1.0)
    found = llm.generate(asked, max_tokens=30)
    assert [output.token_ids for output in found] == outputs(load(llm, "none", device="cpu", kv_tokens=2000), asked, 30)
    assert sum(output.stats.runs[0] > 1 for output in found) > 5
    assert llm.engine.drafter.memory_bytes() == 0
    planned.source = None
    assert all(output.stats.runs[0] == 1 for output in llm.generate(asked, max_tokens=30))
