"""Witnesses of a denoising engine: what each forward fed, what memory held before it, and the logits that were read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from paceline.core.batch import MemoryView
from paceline.denoising.canvas import Canvas, Flags
from paceline.denoising.dkv import Delayed, Ordered
from paceline.denoising.policies import Look
from paceline.engine.llm import LLM


@dataclass(frozen=True)
class Watched:
    """A policy that writes down every look: step in its block, open positions, positions fed, and the memory's keys before the forward."""

    policy: Delayed | Ordered
    memory: object = None
    anew: bool = True
    seen: list[tuple[int, Flags, list[int]]] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    layers: list[list[tuple[Tensor, Tensor]]] = field(default_factory=list)  # keys and values of every layer

    def look(self, canvas: Canvas, view: MemoryView, room: int) -> Look:
        look = self.policy.look(canvas, view, room)
        self.seen.append((canvas.step, canvas.open.copy(), list(look.positions)))
        if self.memory is not None:
            slots = [slot for low, high in view.runs(canvas.length) for slot in range(low, high)]
            self.keys.append(self.memory.keys[-1][slots].clone())  # type: ignore[attr-defined]
            stored = zip(self.memory.keys, self.memory.values, strict=True)  # type: ignore[attr-defined]
            self.layers.append([(keys[slots].clone(), values[slots].clone()) for keys, values in stored])
        return look


@dataclass(frozen=True)
class Listening:
    """Keeps the logits of every step."""

    seen: list[Tensor]

    def tokens(self, step: int | None, canvas: Canvas) -> None:
        """Nothing to see."""

    def logits(self, step: int, canvas: Canvas, logits: Tensor) -> Tensor:
        self.seen.append(logits.clone())
        return logits


def watch(llm: LLM, **changes: object) -> Watched:
    """Put a witness into an engine, with fields of its policy changed."""
    denoiser = llm.engine.denoiser
    watched = Watched(replace(denoiser.policy, **changes), llm.runner.memory)
    llm.engine.denoiser = replace(denoiser, policy=watched)
    return watched
