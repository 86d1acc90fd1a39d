"""Generated documentation is up to date, and the examples in it run."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from paceline.core.registry import METHODS
from paceline.core.request import Request, Sequence
from paceline.drafting.base import DraftLimits

ROOT = Path(__file__).resolve().parents[2]


def script(path: str) -> ModuleType:
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date() -> None:
    for name, page in script("docs/generate.py").PAGES.items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == page(), "run python docs/generate.py"


def test_readme_is_up_to_date() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert script("benchmarks/render_readme.py").render(readme) == readme, "run python benchmarks/render_readme.py"
    assert all(f"`{method.name}`" in readme for method in METHODS)


def test_markers_must_be_there_once() -> None:
    replace = script("benchmarks/render_readme.py").replace_between
    assert replace("a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb", "x", "new\n") == "a\n<!-- x:begin -->\nnew\n<!-- x:end -->\nb"
    with pytest.raises(ValueError, match="exactly once"):
        replace("no markers", "x", "new")


def decode_record(date: str, tokens_per_second: float) -> dict[str, Any]:
    shared = {"prompts": 8, "identical_outputs": 8, "phase_shares": {"forward": 1.0}, "batch": 1}
    rows = [
        {"workload": "completion", "method": "none", "tokens_per_second": 99.0, "speedup": 1.0, **shared},
        {"workload": "completion", "method": "auto", "tokens_per_second": tokens_per_second, "speedup": 2.5, **shared},
        {"workload": "long", "method": "auto", "tokens_per_second": 77.0, "speedup": 0.5, **shared, "identical_outputs": 7},
    ]
    return {
        "format": 1,
        "name": "decode",
        "date": f"{date}T00:00:00+00:00",
        "command": "decode.py",
        "machine": {"cpu": {"model": "Some CPU", "cores": 2}, "packages": {"torch": "2.13.0"}},
        "settings": {"model": "pocket-code", "draft": None, "dtype": "float32"},
        "notes": [],
        "seeds": {},
        "rows": rows,
    }


def test_the_newest_record_of_a_kind_is_shown(tmp_path: Path) -> None:
    render = script("benchmarks/render_readme.py")
    assert render.result_tables(tmp_path) == render.NOTHING
    for date, speed in (("2026-01-02", 222.0), ("2026-01-01", 111.0)):
        (tmp_path / f"{date}-decode-x.json").write_text(json.dumps(decode_record(date, speed)), encoding="utf-8")
    table = render.result_tables(tmp_path)
    assert "|  | completion | long |" in table
    assert "| none | 99 |  |" in table
    assert "| auto | 222 (2.50x) | 77 (0.50x) |" in table
    assert "15 of 16; auto on long (batch 1): 7 of 8." in table
    assert "111" not in table
    assert "Some CPU, 2 cores; torch 2.13.0; 2026-01-02" in table


def test_the_example_of_a_method_works(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "how-to" / "add-a-method.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert code is not None
    example = ModuleType("echo_example")
    monkeypatch.setitem(sys.modules, "echo_example", example)  # dataclasses look their module up
    exec(code[1], example.__dict__)
    echo = example.Echo.build(example.Config(length=3), None)
    sequences = [Sequence(0, Request((1, 2, 3, 4, 5, 2))), Sequence(1, Request((1, 2, 3)))]
    trees = echo.propose(sequences, [DraftLimits(8, 8), DraftLimits(8, 8)])
    assert [tree.token for tree in trees] == [(2, 3, 4, 5), (3,)]
    assert echo.propose(sequences[:1], [DraftLimits(1, 8)])[0].token == (2, 3)


def test_relative_links_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
