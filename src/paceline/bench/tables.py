"""The decode benchmark as a table: one line per workload, batch size and method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paceline.bench.report import Column, markdown_table, render_table

if TYPE_CHECKING:
    from rich.table import Table


def _speedup(row: Mapping[str, Any]) -> str:
    return f"{row['speedup']:.2f}x" if "speedup" in row else ""


def _acceptance(row: Mapping[str, Any]) -> str:
    return " ".join(f"{100 * rate:.0f}" for rate in row["acceptance_by_depth"][:6])


def _identical(row: Mapping[str, Any]) -> str:
    return f"{row['identical_outputs']}/{row['prompts']}" if "identical_outputs" in row else ""


def _overhead(row: Mapping[str, Any]) -> str:
    shares = row["phase_shares"]
    return f"{100 * shares['overhead']:.0f}%" if shares else ""


def _peak(row: Mapping[str, Any]) -> str:
    """Weights, and keys and values in use, of target and draft."""
    peak = row["peak_bytes"]
    used = sum(peak.get(name, 0) for name in ("weights", "kv_used", "draft_kv_used"))
    return f"{used / 2**20:.1f}" if used else ""


COLUMNS = (
    Column("workload", "workload", numeric=False),
    Column("batch", "batch"),
    Column("method", "method", numeric=False),
    Column("tokens/s", lambda row: f"{row['tokens_per_second']:.0f}"),
    Column("speed-up", _speedup),
    Column("tokens/forward", lambda row: f"{row['tokens_per_forward']:.2f}"),
    Column("accepted % by depth", _acceptance, numeric=False),
    Column("TTFT ms", lambda row: f"{row['ttft_ms']:.1f}"),
    Column("TPOT p50/p95 ms", lambda row: f"{row['tpot_p50_ms']:.2f}/{row['tpot_p95_ms']:.2f}"),
    Column("overhead", _overhead),
    Column("peak MiB", _peak),
    Column("identical", _identical),
)
NARROW = ("workload", "batch", "method", "tokens/s", "speed-up", "tokens/forward", "identical")
WIDE = 140  # characters that all columns need


def bench_table(record: Mapping[str, Any], width: int = 160) -> Table:
    """A record of `run_bench`, as JSON, for a terminal of `width` characters; a narrow one gets the columns of `NARROW`."""
    settings = record["settings"]
    draft = f", draft {settings['draft']}" if settings["draft"] else ""
    title = f"{settings['model']}{draft}, {settings['dtype']} on {settings['device']}, {settings['max_tokens']} tokens"
    columns = [column for column in COLUMNS if width >= WIDE or column.heading in NARROW]
    return render_table(title, columns, record["rows"])


def bench_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""
    return markdown_table(COLUMNS, rows)
