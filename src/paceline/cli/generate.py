"""`paceline generate`: one prompt in, text out as it is made, and a line that says how."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.cli import options
from paceline.cli.console import busy, err, out, print_json
from paceline.core.errors import UsageError

if TYPE_CHECKING:
    from paceline.core.sampling import Sampling
    from paceline.engine.llm import LLM
    from paceline.engine.output import Output
    from paceline.engine.prompts import Prompt

PROMPT = "Prompt"
STANDARD_INPUT = "-"


def generate(
    model: options.Model,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The prompt.", rich_help_panel=PROMPT)] = None,
    prompt_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Read the prompt from a file; `-` is standard input.", rich_help_panel=PROMPT)
    ] = None,
    ids: Annotated[
        str | None,
        typer.Option(metavar='"1 2 3"', help="The prompt as token ids, for checkpoints without tokenizer.", rich_help_panel=PROMPT),
    ] = None,
    method: options.Method = "auto",
    draft: options.Draft = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    exact: options.Exact = False,
    coupled: options.Coupled = False,
    max_draft: options.MaxDraft = None,
    batching: options.Batching = "ragged",
    max_tokens: options.MaxTokens = 128,
    stop: options.Stop = None,
    stop_id: options.StopIds = None,
    ignore_eos: options.IgnoreEos = False,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    presence_penalty: options.PresencePenalty = 0.0,
    frequency_penalty: options.FrequencyPenalty = 0.0,
    no_repeat_ngram: options.NoRepeatNgram = 0,
    logit_bias: options.LogitBias = None,
    seed: options.Seed = 0,
    samples: options.Samples = 1,
    logprobs: options.Logprobs = None,
    compare: Annotated[bool, typer.Option("--compare", help="Decode plainly too; show speed-up and whether the tokens agree.")] = False,
    json: options.Json = False,
) -> None:
    """Complete a prompt. Text goes to standard output as it is made; tokens that were drafted and accepted are green."""
    text = read_prompt(prompt, prompt_file, ids)
    penalties = (repetition_penalty, presence_penalty, frequency_penalty, no_repeat_ngram)
    sampling = options.sampling_of(temperature, top_k, top_p, min_p, *penalties, logit_bias, seed, samples, logprobs)
    together = max(4, samples)
    llm = options.open_model(model, method, draft, dtype, device, exact, coupled, not compare, together, max_draft, batching)
    limits: dict[str, Any] = {"max_tokens": max_tokens, "stop": stop or (), "stop_ids": stop_id or (), "ignore_eos": ignore_eos}
    if compare:
        _warm_up(llm, text, sampling, limits)
    quiet = json or samples > 1
    output = _batch(llm, text, sampling, limits) if quiet else _stream(llm, text, sampling, limits)
    record = {"model": llm.name, "method": llm.method, **output.to_dict()}
    if not json:
        if samples > 1:
            _print_samples(output)
        err().print(f"[dim]{stats_line(output)}[/dim]", soft_wrap=True)
    if compare:
        record["compare"] = _compare(llm, text, sampling, limits, output, coupled, silent=json)
    if json:
        print_json(record)


def read_prompt(prompt: str | None, prompt_file: str | None, ids: str | None) -> Prompt:
    """The prompt from the one option that was given.

    Raises:
        UsageError: for none or several of them, an unreadable file, or ids that are not numbers.
    """
    given = [name for name, value in (("--prompt", prompt), ("--prompt-file", prompt_file), ("--ids", ids)) if value is not None]
    if len(given) != 1:
        raise UsageError(f"give exactly one of --prompt, --prompt-file and --ids, not {' and '.join(given) or 'none'}")
    if prompt is not None:
        return prompt
    if ids is not None:
        try:
            return [int(word) for word in ids.replace(",", " ").split()]
        except ValueError:
            raise UsageError(f"--ids {ids!r} must be numbers, as in '1 2 3'") from None
    if prompt_file == STANDARD_INPUT:
        return sys.stdin.read()
    path = Path(str(prompt_file))
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"--prompt-file {path}: {reason}") from None


def stats_line(output: Output) -> str:
    """How an output was made, in one line."""
    stats = output.stats
    parts = [
        f"{stats.output_tokens} tokens in {stats.forwards} forwards ({stats.tokens_per_forward:.2f} per forward)",
        f"{stats.tokens_per_second:.0f} tokens/s",
        f"first token after {1000 * stats.ttft:.0f} ms",
    ]
    if stats.drafted:
        parts.append(f"{stats.accepted} of {stats.drafted} drafted accepted")
    if stats.cached_prompt_tokens:
        parts.append(f"{stats.cached_prompt_tokens} prompt tokens cached")
    return " · ".join([*parts, f"ended by {output.finish_reason}"])


def _stream(llm: LLM, prompt: Prompt, sampling: Sampling, limits: dict[str, Any]) -> Output:
    """Print the answer as it comes; ids where there is no tokenizer. On a terminal, a diffusion model's positions are seen to fill in."""
    from paceline.cli.coloured import print_chunk

    console = out()
    output = None
    chunks = llm.stream(prompt, sampling, **limits)
    if llm.denoises and console.is_terminal:
        from paceline.cli.filling import watch

        output = watch(console, chunks, llm.tokenizer)
    else:
        for chunk in chunks:
            print_chunk(console, chunk, llm.tokenizer)
            output = chunk.output or output
    console.print()
    if output is None:
        raise RuntimeError("the stream ended without its last chunk")
    return output


def _batch(llm: LLM, prompt: Prompt, sampling: Sampling, limits: dict[str, Any]) -> Output:
    with busy("generating"):
        return llm.generate([prompt], sampling, **limits)[0]


def _print_samples(output: Output) -> None:
    """All samples, each under a rule."""
    console = out()
    for number, sample in enumerate(output.samples or [output], start=1):
        console.rule(f"sample {number} ({sample.finish_reason})", style="dim")
        console.print(sample.text or " ".join(map(str, sample.token_ids)), markup=False, soft_wrap=True)


def _warm_up(llm: LLM, prompt: Prompt, sampling: Sampling, limits: dict[str, Any]) -> None:
    """A few tokens first, so that neither side of a comparison pays for first calls."""
    with busy("warming up"):
        llm.generate([prompt], sampling, **(limits | {"max_tokens": min(8, limits["max_tokens"])}))


def _compare(
    llm: LLM, prompt: Prompt, sampling: Sampling, limits: dict[str, Any], output: Output, coupled: bool, silent: bool
) -> dict[str, Any]:
    """Decode plainly on the same weights and say how the two differ."""
    from paceline.core.registry import parse
    from paceline.demo.twin import first_difference, plain_twin

    twin = plain_twin(llm, max(4, sampling.n))
    _warm_up(twin, prompt, sampling, limits)
    plain = _batch(twin, prompt, sampling, limits)
    lossless = all(choice.guarantees[0].lossless for choice in parse(llm.method))
    expected = (sampling.greedy or coupled) and lossless
    pairs = zip(output.samples or [output], plain.samples or [plain], strict=True)
    different = next((at for mine, other in pairs if (at := first_difference(mine.token_ids, other.token_ids)) is not None), None)
    speed = plain.stats.tokens_per_second
    record = {
        "plain": plain.stats.to_dict(),
        "speed_up": output.stats.tokens_per_second / speed if speed else None,
        "tokens_identical": different is None,
        "first_difference": different,
        "identity_expected": expected,
        "lossless": lossless,
    }
    if not silent:
        _say_comparison(record, plain)
    return record


def _say_comparison(record: dict[str, Any], plain: Output) -> None:
    ratio = record["speed_up"]
    words = "" if ratio is None else f"[bold]{ratio:.2f}x[/bold] plain decoding ({plain.stats.tokens_per_second:.0f} tokens/s); "
    if record["tokens_identical"]:
        verdict = "[green]all tokens identical[/green]"
    elif record["identity_expected"]:
        verdict = f"[red]tokens differ from position {record['first_difference']}[/red] (`paceline audit` says whether it is a tie)"
    elif not record["lossless"]:
        verdict = f"[yellow]tokens differ from position {record['first_difference']}[/yellow]: the method is approximate"
    else:
        verdict = "another sample of the same distribution (--coupled makes it the same sample)"
    err().print(words + verdict, soft_wrap=True)
