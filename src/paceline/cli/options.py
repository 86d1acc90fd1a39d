"""Options that several commands share, and what they add up to."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.core.errors import UsageError

if TYPE_CHECKING:
    from paceline.core.sampling import Sampling
    from paceline.engine.llm import LLM

RUN = "Model and method"
SAMPLING = "Sampling"
LIMITS = "Limits"

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A pocket model's name, a local folder or a Hub id.", show_default=False)]
Method = Annotated[
    str,
    typer.Option("--method", "-m", metavar="NAME[:key=value,...]", help="How to decode; `a+b` composes.", rich_help_panel=RUN),
]
Draft = Annotated[
    str | None, typer.Option("--draft", metavar="MODEL", help="Draft model, where the method takes one.", rich_help_panel=RUN)
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype", metavar="fp32|bf16|fp16|fp64", rich_help_panel=RUN,
        help="Of weights and KV. Default: the checkpoint's; fp32 for small ones on a CPU that cannot multiply bf16.",
    ),
]  # fmt: skip
Device = Annotated[
    str | None, typer.Option("--device", metavar="cpu|cuda", help="Where to run. Default: a GPU if there is one.", rich_help_panel=RUN)
]
Exact = Annotated[
    bool, typer.Option("--exact", help="Bit-exact mode: logits equal those of plain decoding bit for bit.", rich_help_panel=RUN)
]
Coupled = Annotated[
    bool,
    typer.Option("--coupled", help="Sampled output is token-identical to plain sampling with the same seed.", rich_help_panel=RUN),
]
MaxDraft = Annotated[
    int | None,
    typer.Option("--max-draft", min=0, help="Most draft nodes per step. Default: as many as the method wants.", rich_help_panel=LIMITS),
]
Batching = Annotated[
    str,
    typer.Option(
        "--batching", metavar="NAME[:key=value,...]", help="How sequences share a forward: ragged, eqspec, exspec, rollback or gap.",
        rich_help_panel=RUN,
    ),
]  # fmt: skip
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Most tokens to generate.", rich_help_panel=LIMITS)]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="End the output before this text; repeatable.", rich_help_panel=LIMITS)
]
StopIds = Annotated[
    list[int] | None, typer.Option("--stop-id", metavar="ID", help="End the output with this id; repeatable.", rich_help_panel=LIMITS)
]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Keep going past the model's EOS.", rich_help_panel=LIMITS)]
Temperature = Annotated[float, typer.Option(help="0 is greedy.", rich_help_panel=SAMPLING)]
TopK = Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.", rich_help_panel=SAMPLING)]
TopP = Annotated[float, typer.Option(help="Keep the smallest set whose mass reaches p.", rich_help_panel=SAMPLING)]
MinP = Annotated[float, typer.Option(help="Drop tokens less likely than this share of the likeliest.", rich_help_panel=SAMPLING)]
RepetitionPenalty = Annotated[float, typer.Option(help="Divides logits of tokens seen before.", rich_help_panel=SAMPLING)]
PresencePenalty = Annotated[float, typer.Option(help="Subtracted once for tokens in the output.", rich_help_panel=SAMPLING)]
FrequencyPenalty = Annotated[float, typer.Option(help="Subtracted per occurrence in the output.", rich_help_panel=SAMPLING)]
NoRepeatNgram = Annotated[int, typer.Option(help="Forbid repeated n-grams of this size; 0 allows them.", rich_help_panel=SAMPLING)]
LogitBias = Annotated[
    list[str] | None,
    typer.Option("--logit-bias", metavar="ID=VALUE", help="Added to a logit; -inf forbids the id. Repeatable.", rich_help_panel=SAMPLING),
]  # fmt: skip
Seed = Annotated[int, typer.Option(help="Key of all randomness.", rich_help_panel=SAMPLING)]
Samples = Annotated[int, typer.Option("--samples", min=1, help="Independent samples of the prompt.", rich_help_panel=SAMPLING)]
Logprobs = Annotated[
    int | None, typer.Option(help="Report log-probabilities and this many alternatives (with --json).", rich_help_panel=SAMPLING)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output, and nothing else there.")]


def sampling_of(
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    presence_penalty: float,
    frequency_penalty: float,
    no_repeat_ngram: int,
    logit_bias: list[str] | None,
    seed: int,
    samples: int = 1,
    logprobs: int | None = None,
) -> Sampling:
    """The sampling settings that the options add up to.

    Raises:
        UsageError: for a value outside its range, naming the option.
    """
    from paceline.core.sampling import Sampling

    return Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        no_repeat_ngram=no_repeat_ngram,
        logit_bias=dict(bias_of(entry) for entry in logit_bias or ()),
        seed=seed,
        n=samples,
        logprobs=logprobs,
    )


def bias_of(entry: str) -> tuple[int, float]:
    """`ID=VALUE` as a pair.

    Raises:
        UsageError: if it does not read so.
    """
    token, equals, value = entry.partition("=")
    try:
        if equals:
            return int(token), float(value)
    except ValueError:
        pass
    raise UsageError(f"--logit-bias {entry!r} must read ID=VALUE, as in 42=-inf")


def open_model(
    model: str,
    method: str,
    draft: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    exact: bool = False,
    coupled: bool = False,
    prefix_cache: bool = True,
    sequences: int = 4,
    max_draft: int | None = None,
    batching: str = "ragged",
) -> LLM:
    """`paceline.load` with a spinner.

    Args:
        sequences: most sequences decoded at once; KV memory is sized for them.
        max_draft: most draft nodes per sequence and step; by default as many as the method wants.
        batching: how sequences share a forward.

    Raises:
        UsageError: for options that do not fit together.
        CheckpointError: for models that cannot be read, or are not built.
    """
    from paceline.cli.console import busy

    with busy(f"loading {model}"):
        from paceline.engine.load import load

        llm = load(
            model,
            method,
            draft=draft,
            dtype=dtype,
            device=device,
            exact=exact,
            coupled=coupled,
            prefix_cache=prefix_cache,
            max_sequences=sequences,
            max_draft=max_draft,
            batching=batching,
        )
    gc.freeze()  # what stays to the end need not be searched for garbage, which takes a tenth of a second amid somebody's tokens
    return llm
