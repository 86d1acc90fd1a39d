"""Training of one pocket model: Muon and AdamW, a schedule that ends on tokens or on time, and checkpoints that continue exactly.

Given a token budget alone, a run is deterministic on one machine and thread count, and an interrupted run continues as if it had
not been. With a time limit the learning rate also follows the clock (whichever of the two is further along), so the weights depend
on the machine's speed.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from paceline.core.errors import CheckpointError
from paceline.zoo.courses import Course, Place
from paceline.zoo.recipes import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"


@dataclass(slots=True)
class Progress:
    """How far a run is; all of it is saved, so a resumed run keeps its clock."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    ended_by: str = ""  # "tokens" or "time" once finished

    def share(self, recipe: Recipe, limit_seconds: float | None) -> float:
        """Share of the schedule behind us, by tokens or by time, whichever is further; at most 1."""
        by_time = self.seconds / limit_seconds if limit_seconds else 0.0
        return min(1.0, max(self.tokens / recipe.tokens, by_time))


@dataclass(slots=True)
class Trainer:
    """One training run in one work folder.

    Args:
        recipe: what to train.
        course: the batches, the network and the loss.
        folder: work folder of this model; holds checkpoint and metrics.
        device: where to train.
        limit_seconds: time limit, or None for the token budget alone.
        checkpoint_seconds: time between checkpoints.
        validate: called now and then with the model, returns figures for the metrics file.
        on_step: called after every step with (share of the schedule, metrics), for progress displays.
    """

    recipe: Recipe
    course: Course
    folder: Path
    device: torch.device
    limit_seconds: float | None = None
    checkpoint_seconds: float = 180.0
    validate: Callable[[nn.Module], dict[str, float]] | None = None
    validate_every: int = 500
    on_step: Callable[[float, dict[str, float]], None] | None = None
    model: nn.Module = field(init=False)
    optimizers: tuple[torch.optim.Optimizer, ...] = field(init=False)
    progress: Progress = field(default_factory=Progress, init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model = self.course.network().to(self.device)
        self.optimizers = make_optimizers(self.model, self.recipe)

    def run(self, resume: bool = True, max_steps: int | None = None) -> Progress:
        """Train to the end of the schedule (or for `max_steps` more steps) and leave a checkpoint behind.

        Raises:
            CheckpointError: if `resume` finds a checkpoint of a different recipe or corpus.
        """
        if resume and (self.folder / CHECKPOINT).is_file():
            self.load()
        started, base, saved = time.perf_counter(), self.progress.seconds, time.perf_counter()
        last = None if max_steps is None else self.progress.step + max_steps
        try:
            while not self.progress.ended_by and (last is None or self.progress.step < last):
                metrics = self._step()
                self.progress.seconds = base + time.perf_counter() - started
                self._finish_if_due()
                self._report(metrics)
                if time.perf_counter() - saved > self.checkpoint_seconds:
                    self.save()
                    saved = time.perf_counter()
        finally:  # also on Ctrl-C: at most the running step is lost
            self.save()
        return self.progress

    def save(self) -> None:
        """Write the checkpoint next to its final name, then rename: a crash leaves the old one whole."""
        state = {
            "fingerprint": self.fingerprint(),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": torch.get_rng_state(),
            "progress": asdict(self.progress),
        }
        partial = self.folder / f"{CHECKPOINT}.partial"
        torch.save(state, partial)
        os.replace(partial, self.folder / CHECKPOINT)

    def load(self) -> None:
        """Continue from the checkpoint.

        Raises:
            CheckpointError: if it belongs to a different recipe or corpus.
        """
        state: dict[str, Any] = torch.load(self.folder / CHECKPOINT, map_location=self.device, weights_only=True)
        if state["fingerprint"] != self.fingerprint():
            raise CheckpointError(
                f"{self.recipe.name}/{CHECKPOINT} belongs to another recipe or corpus; use a new --work-dir or --no-resume"
            )
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["rng"].cpu())
        self.progress = Progress(**state["progress"])
        self._drop_later_metrics()

    def fingerprint(self) -> str:
        """Identifies recipe and corpus; a checkpoint of another one is refused."""
        decisive = {key: value for key, value in asdict(self.recipe).items() if key != "description"}
        return json.dumps([decisive, *self.course.signature()], sort_keys=True, default=dict)

    def _step(self) -> dict[str, float]:
        share = self.progress.share(self.recipe, self.limit_seconds)
        place = Place(self.progress.step, self.progress.tokens, share, self.recipe.context_at(share))
        scale = self._learning_rate_scale(share)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * scale
        lesson = self.course.lesson(self.model, place)
        lesson.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.tokens += lesson.tokens
        return {
            "cross_entropy": float(lesson.cross_entropy),
            "loss": float(lesson.loss.detach()),
            "grad_norm": float(norm),
            "lr_scale": scale,
            "context": place.context,
        }

    def _learning_rate_scale(self, share: float) -> float:
        """Linear warm-up by tokens, then linear decay to zero over the whole schedule."""
        warmup = min(1.0, (self.progress.tokens + self.recipe.tokens_per_step) / self.recipe.warmup_tokens)
        return warmup * (1.0 - share)

    def _finish_if_due(self) -> None:
        if self.progress.tokens >= self.recipe.tokens:
            self.progress.ended_by = "tokens"
        elif self.limit_seconds and self.progress.seconds >= self.limit_seconds:
            self.progress.ended_by = "time"

    def _drop_later_metrics(self) -> None:
        """Forget what a killed run logged after its last checkpoint: those steps will be made, and logged, again."""
        log = self.folder / METRICS
        if log.is_file():
            lines = log.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # a kill may have cut the last one
            log.write_text("".join(line for line in whole if json.loads(line)["step"] <= self.progress.step))

    def _report(self, metrics: dict[str, float]) -> None:
        record: dict[str, Any] = {**asdict(self.progress), **metrics}
        if self.validate and (self.progress.step % self.validate_every == 0 or self.progress.ended_by):
            record |= self.validate(self.model)
            self.model.train()
        with (self.folder / METRICS).open("a") as log:
            log.write(json.dumps(record) + "\n")
        if self.on_step:
            self.on_step(self.progress.share(self.recipe, self.limit_seconds), metrics)


def make_optimizers(model: nn.Module, recipe: Recipe) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW without weight decay for embeddings (tied or not), norms and biases."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and id(p) not in tables and "lm_head" not in name]
    chosen = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(hidden, lr=recipe.muon_lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=recipe.adamw_lr, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return muon, adamw
