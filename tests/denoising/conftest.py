"""One loaded model per layout, shared by all tests of the folder; engines with other methods are made on its weights."""

from __future__ import annotations

from typing import Any

import pytest
from diffusion_models import LAYOUTS, Make, Reference, write

from paceline.engine.llm import LLM
from paceline.engine.load import load


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LLM]:
    """Float64 models of all layouts."""
    folder = tmp_path_factory.mktemp("diffusion")
    return {layout: load(write(folder / layout, layout), dtype="float64", device="cpu", kv_tokens=8, pack=False) for layout in LAYOUTS}


@pytest.fixture(scope="session")
def references() -> dict[str, Reference]:
    return {layout: Reference(layout) for layout in LAYOUTS}


@pytest.fixture
def make(loaded: dict[str, LLM]) -> Make:
    """An engine with a method on the weights of a layout."""

    def build(layout: str, method: str = "static", **options: Any) -> LLM:
        return load(loaded[layout], method, device="cpu", **{"kv_tokens": 2048, **options})

    return build
