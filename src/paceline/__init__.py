"""paceline makes generative models decode faster and shows what it preserved."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

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
