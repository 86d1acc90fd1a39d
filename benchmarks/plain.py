"""Plain greedy decoding at batch 1: tokens per second of paceline, transformers and llama.cpp on the same weights, in turns.

    python benchmarks/plain.py --json benchmarks/results      # pocket-code and the random 110M shape, fp32 and bf16: about five minutes
    python benchmarks/plain.py --model pocket-code --busy 1 --json FILE      # beside a process that keeps a core busy

What to expect: at least 1.8 times the tokens per second of transformers' generate. Prompts are arbitrary ids, since plain speed does not
depend on what is said; every engine emits the same number of tokens. Run on a quiet machine.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console

from paceline.bench.forward_cost_models import SEED, prepare
from paceline.bench.machine_clock import interleave
from paceline.bench.peers_base import Peer, PeerRun, filler_ids
from paceline.bench.peers_llamacpp import LlamaCppPeer
from paceline.bench.peers_paceline import PacelinePeer
from paceline.bench.peers_transformers import TransformersPeer
from paceline.bench.report import Column, Record, render_table
from paceline.core.errors import PacelineError

POSITIONS = 2048


def _spin() -> None:
    while True:
        pass


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Processes that each keep a core busy."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_spin, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def measure(model: str, dtype: str, prompt: int, tokens: int, rounds: int, threads: int) -> list[dict[str, Any]]:
    """One row per engine."""
    from transformers import AutoConfig

    peers: list[Peer] = [PacelinePeer(), TransformersPeer(), TransformersPeer("static"), LlamaCppPeer()]
    with TemporaryDirectory() as scratch:
        folder = prepare(model, Path(scratch), POSITIONS)
        ids = filler_ids(prompt, AutoConfig.from_pretrained(folder).vocab_size)
        ready = [peer for peer in peers if peer.available() is None]
        runs: dict[str, PeerRun] = {}
        for peer in ready:
            peer.load(folder, dtype, threads)
            peer.generate(ids, 8)

        def once(peer: Peer) -> float:
            runs[peer.name] = peer.generate(ids, tokens)
            return runs[peer.name].decode_seconds / (tokens - 1)

        timings = interleave({peer.name: lambda peer=peer: once(peer) for peer in ready}, rounds, rest=0.3)  # type: ignore[misc]
        rival = timings[ready[1].name]
        rows = []
        for peer in ready:
            speedup = sorted(theirs / ours for theirs, ours in zip(rival.samples, timings[peer.name].samples, strict=True))
            rows.append(
                {
                    "model": model,
                    "dtype": dtype,
                    "engine": peer.name,
                    "milliseconds_per_token": timings[peer.name].median * 1e3,
                    "tokens_per_second": 1 / timings[peer.name].median,
                    "speedup_over_transformers": speedup[len(speedup) // 2],
                    "same_tokens_as_transformers": runs[peer.name].token_ids == runs[ready[1].name].token_ids,
                }
            )
            peer.close()
        return rows


def main(
    model: Annotated[list[str] | None, typer.Option(help="pocket model, checkpoint folder, llama-110m or llama-6m (repeat)")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32 or bfloat16 (repeat)")] = None,
    prompt: Annotated[int, typer.Option(help="prompt tokens")] = 64,
    tokens: Annotated[int, typer.Option(help="tokens per run")] = 96,
    rounds: Annotated[int, typer.Option(help="turns per engine")] = 5,
    threads: Annotated[int, typer.Option(help="threads per engine; 0 takes all cores")] = 0,
    busy: Annotated[int, typer.Option(help="processes beside this one that keep a core busy")] = 0,
    json: Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")] = None,
) -> None:
    """Measure, print a table, and write a record with --json."""
    import torch

    console = Console(width=140)
    try:
        rows = []
        with neighbours(busy):
            for name in model or ["pocket-code", "llama-110m"]:
                for kind in dtype or ["float32", "bfloat16"]:
                    console.print(f"measuring {name} {kind}", style="dim")
                    rows += measure(name, kind, prompt, tokens, rounds, threads or torch.get_num_threads())
        settings = {"prompt": prompt, "tokens": tokens, "rounds": rounds, "threads": threads or torch.get_num_threads(), "busy": busy}
        record = Record("plain", rows, settings, {"weights": SEED})
        columns = [
            Column("model", "model", numeric=False),
            Column("type", "dtype", numeric=False),
            Column("engine", "engine", numeric=False),
        ]
        columns += [
            Column("ms/token", lambda row: f"{row['milliseconds_per_token']:.2f}"),
            Column("tokens/s", lambda row: f"{row['tokens_per_second']:.0f}"),
            Column("over transformers", lambda row: f"{row['speedup_over_transformers']:.2f}x"),
            Column("same tokens", "same_tokens_as_transformers"),
        ]
        console.print(
            render_table("plain greedy decoding, batch 1" + (f", {busy} busy processes beside it" if busy else ""), columns, rows)
        )
        if json is not None:
            console.print(f"wrote {record.write(json)}")
    except PacelineError as error:
        console.print(f"error: {error}", style="red")
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)
