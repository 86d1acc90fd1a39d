"""Rewrite the generated parts of README.md: the result tables from `benchmarks/results/*.json`, the method table from the registry.

    python benchmarks/render_readme.py            # rewrite
    python benchmarks/render_readme.py --check    # exit 1 if something is out of date

Of several records of one benchmark on one model, type, set of workloads and machine, the newest counts. Numbers are shown as measured;
nothing is rounded up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from paceline.bench.forward_cost import table_columns, table_rows
from paceline.bench.report import Column, markdown_table, read_record
from paceline.core.registry import METHODS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NOTHING = "No results are checked in yet.\n"
FORWARD_ROWS = (1, 4, 8, 16)  # of the forward-cost record; the file has more

METHOD_COLUMNS = (
    Column("method", lambda row: f"`{row['method'].name}`", numeric=False),
    Column("what it does", lambda row: str(row["method"].summary), numeric=False),
    Column("greedy", lambda row: str(row["method"].greedy), numeric=False),
    Column("sampling", lambda row: str(row["method"].sampling), numeric=False),
    Column("needs", lambda row: row["method"].needs or "nothing", numeric=False),
    Column("trains", lambda row: row["method"].trains or "nothing", numeric=False),
    Column("paper", lambda row: str(row["method"].paper), numeric=False),
)


def method_table() -> str:
    """The registry as Markdown."""
    return markdown_table(METHOD_COLUMNS, [{"method": method} for method in METHODS])


def result_tables(folder: Path = RESULTS) -> str:
    """Tables of the newest records, decoding first."""
    newest: dict[tuple[str, ...], tuple[Path, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        record = read_record(path)
        if record["name"] not in TABLES:
            continue
        settings = record["settings"]
        shared = ("model", "models", "dtype", "dtypes", "workloads")
        key = (record["name"], *(str(settings.get(name)) for name in shared), _machine(record["machine"]))
        if key not in newest or newest[key][1]["date"] <= record["date"]:
            newest[key] = (path, record)
    records = sorted(newest.values(), key=lambda found: (list(TABLES).index(found[1]["name"]), found[0].name))
    return "\n".join(TABLES[record["name"]](record, path) for path, record in records) or NOTHING


def _decode(record: Mapping[str, Any], path: Path) -> str:
    """One table per batch size: contenders down, workloads across."""
    settings, rows = record["settings"], record["rows"]
    draft = f" with draft `{settings['draft']}`" if settings["draft"] else ""
    head = (
        f"**Decoding**, `{settings['model']}`{draft}, {settings['dtype']}: tokens per second, in brackets the ratio to plain decoding "
        f"(`none`) in the same run. {_identity(rows)}\n"
    )
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    columns = [Column("", "method", numeric=False), *(Column(name, name) for name in workloads)]
    batches = {batch: [row for row in rows if row["batch"] == batch] for batch in sorted({row["batch"] for row in rows})}
    tables = [f"Batch {batch}:\n\n{markdown_table(columns, _across(mine))}" for batch, mine in batches.items()]
    return "\n".join([head, *tables, _source(record, path)])


def _across(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per contender with its speed under the name of each workload."""
    merged: dict[str, dict[str, Any]] = {}
    for row in rows:
        ratio = f" ({row['speedup']:.2f}x)" if "speedup" in row and row["method"] != "none" else ""
        merged.setdefault(row["method"], {"method": row["method"]})[row["workload"]] = f"{row['tokens_per_second']:.0f}{ratio}"
    return list(merged.values())


def _identity(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many outputs of our own methods equal plain decoding's; the others are named."""
    ours = [row for row in rows if row["phase_shares"] and "identical_outputs" in row and row["method"] != "none"]
    same, whole = sum(row["identical_outputs"] for row in ours), sum(row["prompts"] for row in ours)
    others = [
        f"{row['method']} on {row['workload']} (batch {row['batch']}): {row['identical_outputs']} of {row['prompts']}"
        for row in ours
        if row["identical_outputs"] < row["prompts"]
    ]
    return (
        f"Outputs of paceline's methods that equal plain decoding's, token for token: {same} of {whole}"
        + "".join(f"; {entry}" for entry in others)
        + "."
    )


def _forward_cost(record: Mapping[str, Any], path: Path) -> str:
    rows = [row for row in table_rows(record["rows"]) if row["rows"] in FORWARD_ROWS]
    rows = [row for row in rows if row["context"] == _middle([row["context"] for row in rows])]
    heading = (
        "**One forward** by number of rows, in milliseconds. In brackets, times the floor: bytes over measured bandwidth, or operations "
        "over measured peak, whichever is larger."
    )
    return f"{heading}\n\n{markdown_table(table_columns(record['rows']), rows)}\n{_source(record, path)}"


def _plain(record: Mapping[str, Any], path: Path) -> str:
    """Engines down, models and types across."""
    merged: dict[str, dict[str, Any]] = {}
    for row in record["rows"]:
        cell = f"{row['tokens_per_second']:.0f} ({row['speedup_over_transformers']:.2f}x)"
        merged.setdefault(row["engine"], {"engine": row["engine"]})[f"{row['model']}, {row['dtype']}"] = cell
    shown = list(dict.fromkeys(f"{row['model']}, {row['dtype']}" for row in record["rows"]))
    columns = [Column("", "engine", numeric=False), *(Column(name, name) for name in shown)]
    heading = "**Plain decoding**, greedy, batch 1: tokens per second, in brackets the ratio to transformers' generate in the same rounds."
    return f"{heading}\n\n{markdown_table(columns, list(merged.values()))}\n{_source(record, path)}"


TABLES = {"decode": _decode, "plain": _plain, "forward-cost": _forward_cost}


def _middle(values: Sequence[int]) -> int:
    """The middle one of the distinct values."""
    distinct = sorted(set(values))
    return distinct[len(distinct) // 2]


def _source(record: Mapping[str, Any], path: Path) -> str:
    machine = record["machine"]
    where = machine["gpu"]["model"] if "gpu" in machine else f"{machine['cpu']['model']}, {machine['cpu']['cores']} cores"
    versions = ", ".join(
        f"{name} {machine['packages'][name]}" for name in ("torch", "transformers", "llama-cpp-python") if name in machine["packages"]
    )
    return f"{where}; {versions}; {record['date'][:10]}; `{record['command']}` ([record](benchmarks/results/{path.name})).\n"


def _machine(machine: Mapping[str, Any]) -> str:
    return str(machine.get("gpu", machine["cpu"])["model"])


def replace_between(text: str, name: str, content: str) -> str:
    """`text` with everything between the markers of `name` replaced.

    Raises:
        ValueError: if the markers are not there exactly once.
    """
    pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    replaced, count = pattern.subn(lambda match: match[1] + content + match[2], text)
    if count != 1:
        raise ValueError(f"README.md must hold the markers <!-- {name}:begin --> and <!-- {name}:end --> exactly once")
    return replaced


def render(readme: str) -> str:
    """The README with its generated parts renewed."""
    return replace_between(replace_between(readme, "results", result_tables()), "methods", method_table())


def main(check: Annotated[bool, typer.Option("--check", help="Change nothing; exit 1 if README.md is out of date.")] = False) -> None:
    """Renew the tables of README.md."""
    path = ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    new = render(old)
    if check and new != old:
        typer.echo("README.md is out of date; run python benchmarks/render_readme.py", err=True)
        raise typer.Exit(1)
    if not check:
        path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
