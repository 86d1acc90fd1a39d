"""paceline makes generative models decode faster and shows what it preserved."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# OpenMP threads that wait for each other spin. On a machine with anything else to do they would spin for whole time slices and make a
# forward a hundred times slower; this bound (about 0.1 ms) costs nothing on a quiet one. Read once, when torch loads (docs/decisions/0008).
if "torch" not in sys.modules:
    os.environ.setdefault("GOMP_SPINCOUNT", "50000")

# Heavy rooms load on first use, so that `import paceline` and `paceline --help` stay instant.
_EXPORTS = {
    "LLM": "paceline.engine.llm",
    "Output": "paceline.engine.output",
    "Sampling": "paceline.core.sampling",
    "TokenTree": "paceline.core.tree",
    "load": "paceline.engine.load",
}
__all__ = ["LLM", "Output", "Sampling", "TokenTree", "__version__", "load"]

if TYPE_CHECKING:
    from paceline.core.sampling import Sampling as Sampling
    from paceline.core.tree import TokenTree as TokenTree
    from paceline.engine.llm import LLM as LLM
    from paceline.engine.load import load as load
    from paceline.engine.output import Output as Output


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'paceline' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
