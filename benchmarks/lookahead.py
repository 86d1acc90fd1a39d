"""Lookahead: tokens per forward from a cold, a prompt-only and a warm trie; tree, parallel and single branches; host time of a draft.

    python benchmarks/lookahead.py pocket-code --json benchmarks/results   # everything: about five minutes on two cores
    python benchmarks/lookahead.py FOLDER --quick                          # few prompts and tokens

Two kinds of text. `templated`: 200 call patterns with slot values, of which half the prompts' siblings have been answered before (the warm
trie). `free`: held-out files, warmed with answers to other files. Every contender decodes greedily at batch 1 on the same weights and its
output is compared with plain decoding's. What to expect: warm `templated` at least 3 tokens per forward; cold `free` 1.0 to 1.3; `hier` at
least `par` at least `one` at equal decoding_length; a gain in time only up to the critical length that the record states, and with
budget=measured no loss beyond a few per cent anywhere. Run on a quiet machine. Sampled output is held against the exact law too, with
100,000 outputs of three tokens from a random source: p must not be tiny.
"""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter
from rich.console import Console

from paceline.bench.markov_source import MarkovSource, trajectories
from paceline.bench.report import Column, Record, public_name, render_table
from paceline.core.errors import PacelineError, UsageError
from paceline.core.request import Request, Sequence
from paceline.core.rng import key
from paceline.core.sampling import Sampling
from paceline.core.tree import TokenTree
from paceline.drafting.base import DraftContext, DraftLimits
from paceline.drafting.lookahead import Lookahead, LookaheadConfig
from paceline.drafting.lookahead.budget import critical_length
from paceline.engine.llm import LLM
from paceline.engine.load import load
from paceline.planning.cost import ForwardCost
from paceline.zoo.prompts import held_out_prompts

TEMPLATES = 200
VERBS = ("load", "save", "parse", "merge", "check", "build", "count", "split", "close", "print")
NOUNS = ("table", "record", "header", "packet", "matrix", "token", "buffer", "module", "socket", "widget")
COLUMNS = (
    Column("text", "text", numeric=False),
    Column("trie", "trie", numeric=False),
    Column("method", "method", numeric=False),
    Column("tokens/forward", lambda row: f"{row['tokens_per_forward']:.2f}"),
    Column("rows/forward", lambda row: f"{row['rows_per_forward']:.1f}"),
    Column("speed-up", lambda row: f"{row['speedup']:.2f}x"),
    Column("draft share", lambda row: f"{100 * row['draft_share']:.1f} %"),
    Column("identical", lambda row: f"{row['identical']} of {row['prompts']}"),
)


def templated(count: int, seed: int) -> list[str]:
    """Beginnings of functions made from templates with slot values."""
    texts = []
    for index in range(count):
        template = key(seed, index, 0) % TEMPLATES
        verb, noun = VERBS[template % 10], NOUNS[template // 10 % 10]
        slot = key(seed, index, 1) % 50
        second = f", {noun}s" if template >= 100 else ""
        texts.append(f"def {verb}_{noun}_{slot}(self, {noun}{second}):\n    if {noun} is None:\n        raise ValueError('")
    return texts


def decode(llm: LLM, prompts: list[str], max_tokens: int) -> dict[str, Any]:
    """Greedy outputs one by one with forwards, rows and seconds."""
    before = dict(llm.engine.phases.seconds)
    begin = perf_counter()
    outputs = [llm.generate(prompt, max_tokens=max_tokens, ignore_eos=True)[0] for prompt in prompts]
    seconds = perf_counter() - begin
    spent = {phase: total - before[phase] for phase, total in llm.engine.phases.seconds.items()}
    forwards = sum(output.stats.forwards for output in outputs)
    return {
        "ids": [output.token_ids for output in outputs],
        "seconds": seconds,
        "tokens_per_forward": sum(len(output.token_ids) for output in outputs) / forwards,
        "rows_per_forward": 1 + sum(output.stats.drafted for output in outputs) / forwards,
        "draft_share": spent["draft"] / max(sum(spent.values()), 1e-9),
    }


def contenders(shapes: list[str], length: int) -> list[tuple[str, str]]:
    """Trie state and method string of every row."""
    found = []
    for shape in shapes:
        options = f"budget=fixed,decoding_length={length}"
        found += [("prompt only", f"lookahead:mode={shape}_input,{options}"), ("cold", f"lookahead:mode={shape}_mix,{options}")]
        found += [("warm", f"lookahead:mode={shape}_mix,{options}"), ("warm", f"lookahead:mode={shape}_output,{options}")]
    found += [(trie, f"lookahead:decoding_length={length}") for trie in ("cold", "warm")]
    return [*found, ("warm", f"lookahead:store=table,budget=fixed,decoding_length={length}")]


def host_time(decoding_length: int, repeats: int) -> list[dict[str, Any]]:
    """Microseconds to draft a full tree from a large forest, beside a naive search that ranks every candidate."""
    texts = [[key(1, text, at) % 8 + 8 * (at % 4) for at in range(200)] for text in range(100)]
    slow = [_timed(partial(naive, texts, texts[0], decoding_length)) for _ in range(max(3, repeats // 50))]
    rows = []
    for mode in ("hier_output", "hier_mix"):
        config = TypeAdapter(LookaheadConfig).validate_python({"mode": mode, "budget": "fixed", "decoding_length": decoding_length})
        drafter = Lookahead.build(config, DraftContext(4096, frozenset(), lambda rows: 1.0))
        for text in texts:
            drafter.learn(text)
        sequence = Sequence(0, Request(tuple(texts[0]), max_tokens=100))
        ask = partial(drafter.propose, [sequence], [DraftLimits(decoding_length, 64)])
        nodes = len(ask()[0]) - 1
        fast = [_timed(ask) for _ in range(repeats)]
        rows.append({"mode": mode, "nodes": nodes, "microseconds": 1e6 * median(fast), "naive_microseconds": 1e6 * median(slow)})
    return rows


def naive(texts: list[list[int]], context: list[int], budget: int) -> TokenTree:
    """The same draft without a data structure: scan all text, count every continuation, sort."""
    counts: dict[tuple[int, ...], int] = {}
    for text in texts:
        for at in range(2, len(text)):
            if text[at - 2 : at] == context[-2:]:
                for end in range(at + 1, min(at + 12, len(text)) + 1):
                    path = tuple(text[at:end])
                    counts[path] = counts.get(path, 0) + 1
    return TokenTree.from_paths(context[-1], sorted(counts, key=lambda path: (-counts[path], len(path)))[: budget - 1])


def law(runs: int) -> dict[str, Any]:
    """Chi-square of many outputs of three tokens, each drafted from what all before it answered, against the law of a random source."""
    batch = 500
    config = LookaheadConfig(budget="fixed", branch_length=2, decoding_length=6 * batch, max_output_node=40, squeeze_after=1)
    drafter = Lookahead.build(config, DraftContext(8, frozenset(), lambda rows: 1.0))
    source = MarkovSource.random(8, 8, seed=4)
    members = trajectories(runs, 3, Sampling(temperature=1.0))
    steps = sum(source.run(drafter, members[at : at + batch], nodes=5) for at in range(0, runs, batch))
    found = source.test(members)
    return {
        "runs": runs,
        "tokens_per_step": 3 * runs / steps,
        "statistic": found.statistic,
        "freedom": found.freedom,
        "p": found.p_value,
    }


def _timed(call: Any) -> float:
    begin = perf_counter()
    call()
    return perf_counter() - begin


def measure(model: str, count: int, warm_count: int, max_tokens: int, length: int, repeats: int, law_runs: int, say: Any) -> Record:
    """All rows on one set of weights; repeats interleave contenders, medians are kept."""
    target = load(model, "none", prefix_cache=False)
    if target.tokenizer is None:
        raise UsageError("this benchmark decodes text and the checkpoint has no tokenizer; choose another model")
    cost = ForwardCost(target.runner.probe)
    held_out = [prompt.prefix for prompt in held_out_prompts(count + warm_count, prefix_chars=800, continuation_chars=200)]
    texts = {"templated": (templated(count, 1), templated(warm_count, 2)), "free": (held_out[:count], held_out[count:])}
    rows = []
    for name, (asked, earlier) in texts.items():
        answers = [output.token_ids for output in target.generate(earlier, max_tokens=max_tokens, ignore_eos=True)]
        lineup = [("", "none"), *contenders(["hier", "par", "one"], length)]
        runs: dict[tuple[str, str], list[dict[str, Any]]] = {entry: [] for entry in lineup}
        for repeat in range(repeats):
            for trie, method in lineup:
                say(f"{name} {trie} {method} {repeat + 1}/{repeats}")
                llm = load(target, method, prefix_cache=False)
                drafter = llm.engine.drafter
                if trie == "warm" and isinstance(drafter, Lookahead):
                    for answer in answers:
                        drafter.learn(answer)
                gc.collect()
                runs[trie, method].append(decode(llm, asked, max_tokens))
        plain = runs["", "none"]
        for (trie, method), found in runs.items():
            ratios = [one["seconds"] / other["seconds"] for one, other in zip(plain, found, strict=True)]
            first = {field: value for field, value in found[0].items() if field not in ("ids", "seconds")}
            same = sum(one == other for one, other in zip(found[0]["ids"], plain[0]["ids"], strict=True))
            rows.append(
                {"text": name, "trie": trie, "method": method, **first, "speedup": median(ratios), "identical": same, "prompts": len(asked)}
            )
    forward = {str(size): cost(size) for size in (1, 2, 4, 8, 16, 32, 64)}
    critical = critical_length(cost, 1, 256)
    return Record(
        "lookahead",
        rows,
        settings={"model": public_name(model), "max_tokens": max_tokens, "warm": warm_count, "decoding_length": length},
        seeds={"templates": 1, "warm templates": 2},
        extra={
            "critical_length": critical,
            "forward_seconds": forward,
            "host": host_time(length, 20 * repeats),
            "law": law(law_runs),
        },
    )


def main(
    model: Annotated[str, typer.Argument(help="pocket model, checkpoint folder or Hub id")] = "pocket-code",
    prompts: Annotated[int, typer.Option(help="per kind of text")] = 40,
    warm: Annotated[int, typer.Option(help="answers the warm trie has seen")] = 200,
    max_tokens: Annotated[int, typer.Option(help="per prompt")] = 64,
    decoding_length: Annotated[int, typer.Option(help="rows per forward")] = 64,
    repeats: Annotated[int, typer.Option(help="rounds in which contenders take turns")] = 3,
    law_runs: Annotated[int, typer.Option(help="sampled outputs held against the exact law")] = 100_000,
    quick: Annotated[bool, typer.Option(help="4 prompts, 8 answers, 16 tokens, one round, 2,000 sampled outputs")] = False,
    json: Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")] = None,
) -> None:
    """Measure, print a table, and write a record with --json."""
    console = Console(width=160)
    try:
        sizes = (4, 8, 16, decoding_length, 1, 2000) if quick else (prompts, warm, max_tokens, decoding_length, repeats, law_runs)
        record = measure(model, *sizes, say=lambda line: console.print(line, style="dim"))
        console.print(render_table("Lookahead, greedy, batch 1", COLUMNS, record.rows))
        console.print(f"critical decoding length: {record.extra['critical_length']}")
        for row in record.extra["host"]:
            console.print(f"{row['mode']}: {row['nodes']} nodes in {row['microseconds']:.0f} us; naive {row['naive_microseconds']:.0f} us")
        exact = record.extra["law"]
        console.print(f"{exact['runs']} sampled outputs, {exact['tokens_per_step']:.2f} tokens a step: chi-square p = {exact['p']:.3f}")
        if json is not None:
            console.print(f"wrote {record.write(json)}")
    except PacelineError as error:
        console.print(f"error: {error}", style="red")
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)
