"""`paceline chat`: a conversation in the terminal; every turn reuses the memory of the turns before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli import options
from paceline.cli.console import err, out
from paceline.core.errors import CapacityError, UsageError

if TYPE_CHECKING:
    from paceline.core.sampling import Sampling
    from paceline.engine.llm import LLM

QUIT, RESET = "/quit", "/reset"


def chat(
    model: options.Model,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System message.")] = None,
    method: options.Method = "auto",
    draft: options.Draft = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    exact: options.Exact = False,
    coupled: options.Coupled = False,
    max_tokens: options.MaxTokens = 512,
    stop: options.Stop = None,
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
) -> None:
    """Talk to a model. `/reset` starts over, `/quit` or Ctrl-D ends, Ctrl-C stops an answer."""
    penalties = (repetition_penalty, presence_penalty, frequency_penalty, no_repeat_ngram)
    sampling = options.sampling_of(temperature, top_k, top_p, min_p, *penalties, logit_bias, seed)
    llm = options.open_model(model, method, draft, dtype, device, exact, coupled)
    if llm.tokenizer is None:
        raise UsageError(f"{model!r} has no tokenizer, so it cannot chat; use `paceline generate --ids`")
    llm.tokenizer.chat([{"role": "user", "content": "?"}])  # a missing template is an error now, not after the first question
    opening = [] if system is None else [{"role": "system", "content": system}]
    messages = list(opening)
    err().print(f"[dim]{llm.name}, method {llm.method}. {RESET} starts over, {QUIT} ends.[/dim]")
    while (line := _ask()) is not None and line != QUIT:
        if line == RESET:
            messages = list(opening)
            err().print("[dim]forgotten[/dim]")
        elif line:
            messages.append({"role": "user", "content": line})
            answer = _answer(llm, messages, sampling, max_tokens, stop or [])
            if answer is None:
                messages.pop()
            else:
                messages.append({"role": "assistant", "content": answer})


def _ask() -> str | None:
    """The next line of the user, or `None` at the end of input."""
    try:
        return input("> " if err().is_terminal else "").strip()
    except EOFError:
        return None


def _answer(llm: LLM, messages: list[dict[str, str]], sampling: Sampling, max_tokens: int, stop: list[str]) -> str | None:
    """Stream one answer; `None` when it could not be given. Ctrl-C keeps what was said so far."""
    from paceline.cli.coloured import print_chunk
    from paceline.cli.generate import stats_line
    from paceline.cli.guard import say

    console, said = out(), ""
    try:
        chunks = llm.stream(messages, sampling, max_tokens=max_tokens, stop=stop)
    except (UsageError, CapacityError) as error:  # mostly a conversation that outgrew the context
        say(f"{error} ({RESET} starts over)")
        return None
    try:
        for chunk in chunks:
            print_chunk(console, chunk, llm.tokenizer)
            said += chunk.text
            if chunk.output is not None:
                console.print()
                err().print(f"[dim]{stats_line(chunk.output)}[/dim]", soft_wrap=True)
    except KeyboardInterrupt:
        console.print()
    return said
