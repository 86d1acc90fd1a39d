"""The demo as one self-contained HTML page: the text, coloured by what every forward drafted and accepted."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from paceline.demo.palette import SHADES, shade_of

if TYPE_CHECKING:
    from paceline.demo.result import Completion, Demo, Run

PROMPT_LINES = 14


def render(demo: Demo) -> str:
    """The page."""
    template = Template(files("paceline.demo").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(f"{demo.model}, {demo.method}"),
        lede=_lede(demo),
        cards="\n".join(_cards(demo)),
        swatches="".join(f'<span class="swatch n{index}"><i></i>{shade.label}</span>' for index, shade in enumerate(SHADES)),
        light="\n".join(f".n{index} {{ --run: {shade.light}; --tint: {shade.tint:.0%}; }}" for index, shade in enumerate(SHADES)),
        dark="\n".join(f"  .n{index} {{ --run: {shade.dark}; }}" for index, shade in enumerate(SHADES)),
        files="\n".join(_section(number, entry) for number, entry in enumerate(demo.completions, start=1)),
        timing=json.dumps([_timing(entry) for entry in demo.completions]),
    )


def _lede(demo: Demo) -> str:
    draft = f" with draft <b>{escape(demo.draft)}</b>" if demo.draft else ""
    sampling = demo.sampling
    if sampling.greedy:
        manner = "greedily"
    else:
        manner = f"sampled at temperature {sampling.temperature:g}: every position has its own random number, so both ways must agree"
    return (
        f"<b>{escape(demo.model)}</b> completes held-out files of the Python standard library in {escape(demo.dtype)}, {manner}. "
        f"Method <b>{escape(demo.method)}</b>{draft}. Every coloured token was drafted, then accepted because the model itself "
        "would have written it."
    )


def _cards(demo: Demo) -> list[str]:
    count = len(demo.completions)
    verdict = "every output identical to plain decoding" if demo.identical == count else "; ".join(_differences(demo))
    facts = [
        (f"{demo.speed_up:.2f}x", "the speed of plain decoding", ""),
        (f"{demo.total('fast'):.0f}", f"tokens per second (plain: {demo.total('plain'):.0f})", ""),
        (f"{demo.tokens_per_forward:.2f}", "tokens per forward of the model (plain: 1)", ""),
        (f"{100 * demo.acceptance:.0f} %", "of drafted tokens accepted", ""),
        (f"{demo.identical} of {count}", verdict, "bad" if demo.violated else "good"),
    ]
    return [f'<div class="card {kind}"><b>{value}</b><span>{escape(meaning)}</span></div>' for value, meaning, kind in facts]


def _differences(demo: Demo) -> list[str]:
    return [f"{entry.prompt.name}: {entry.verdict}" for entry in demo.completions if entry.verdict.kind != "identical"]


def _section(number: int, entry: Completion) -> str:
    stats = entry.fast.stats
    tail = "".join(entry.prompt.prefix.splitlines(keepends=True)[-PROMPT_LINES:])
    facts = (
        f"{entry.speed_up:.2f}x · {stats.output_tokens} tokens in {stats.forwards} forwards · "
        f"{stats.tokens_per_second:.0f} against {entry.plain.stats.tokens_per_second:.0f} tokens/s"
    )
    return f"""<section class="file" data-file="{number - 1}">
<header><div><h2>{escape(entry.prompt.name)}<small>line {entry.prompt.line}</small></h2><p class="facts">{facts}</p></div>
<span class="verdict {escape(entry.verdict.kind)}">{escape(str(entry.verdict))}</span>
<button type="button" class="replay" hidden>Replay</button></header>
<div class="strip" aria-hidden="true">{"".join(_segment(at, run) for at, run in enumerate(entry.fast.runs))}</div>
<div class="lanes" hidden><div class="lane"><span>plain</span><i></i></div><div class="lane fast"><span>paceline</span><i></i></div></div>
<pre><span class="prompt">{escape(tail)}</span>{_runs(entry)}</pre>
</section>"""


def _segment(at: int, run: Run) -> str:
    return f'<i class="n{shade_of(len(run.ids))}" data-run="{at}" style="flex:{len(run.ids)}"></i>'


def _runs(entry: Completion) -> str:
    """Every forward a span, drafted tokens inside it marked."""
    html, at = [], 0
    for number, run in enumerate(entry.fast.runs):
        drafted = escape("".join(entry.pieces[at : at + run.drafted]))
        own = escape("".join(entry.pieces[at + run.drafted : at + len(run.ids)]))
        at += len(run.ids)
        tip = f"forward {number + 1}: {_plural(len(run.ids), 'token')}, {run.drafted} of them drafted and accepted"
        html.append(f'<span class="run n{shade_of(len(run.ids))}" data-run="{number}" title="{tip}"><u>{drafted}</u>{own}</span>')
    return "".join(html)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _timing(entry: Completion) -> dict[str, list[float]]:
    """Seconds at which the tokens of each forward were there, for the replay."""
    return {
        "fast": [round(run.seconds, 5) for run in entry.fast.runs],
        "plain": [round(run.seconds, 5) for run in entry.plain.runs],
    }
