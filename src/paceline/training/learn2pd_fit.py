"""Fitting a Learn2PD filter to traces: split by prompt, binary cross-entropy, a threshold that meets a target, and baselines beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from paceline.core.errors import UsageError
from paceline.denoising.canvas import Flags, Floats
from paceline.denoising.learn2pd_filter import Feature, Filter, FilterFacts
from paceline.training.learn2pd_traces import Traces

Counted = Literal["all", "masked"]

BARS = (*np.arange(0.5, 0.99, 0.01).round(2).tolist(), 0.99, 0.995, 0.999, 1.0)
BINS = 10
WATCH = 50  # training steps between looks at the validation loss


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How a filter is trained.

    Args:
        iterations: steps of AdamW over all training records.
        rate: its learning rate.
        layers: of the network.
        loss_on: `all` positions of a block, or those that are still `masked`.
        target: share of wrong predictions among the accepted open ones that the threshold may leave on validation prompts.
        seed: of weights and split.
    """

    iterations: int = 3000
    rate: float = 3e-3
    layers: int = 2
    loss_on: Counted = "all"
    target: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "iterations": (self.iterations >= 0, "at least 0"),
            "layers": (self.layers >= 1, "at least 1"),
            "loss_on": (self.loss_on in get_args(Counted), " or ".join(get_args(Counted))),
            "target": (0 <= self.target <= 1, "between 0 and 1"),
        }
        for name, (valid, wanted) in rules.items():
            if not valid:
                raise UsageError(f"learn2pd training: option {name}={getattr(self, name)!r} must be {wanted}")


@dataclass(frozen=True, slots=True)
class Chosen:
    """A decision rule at one setting, on one split.

    Attributes:
        accepted: share of the open positions that it decides.
        wrong: share of those that are not final.
    """

    accepted: float
    wrong: float


def split(traces: Traces, seed: int) -> tuple[Flags, Flags, Flags]:
    """Records for training, validation and test: 80, 10 and 10 per cent of the prompts, at least one each.

    Raises:
        UsageError: with fewer than three prompts.
    """
    prompts = np.unique(traces.prompt)
    if len(prompts) < 3:
        raise UsageError(f"a filter is trained, validated and tested on different prompts; give at least 3, not {len(prompts)}")
    order = np.random.default_rng(seed).permutation(prompts)
    held = max(1, len(order) // 10)
    parts = (order[2 * held :], order[:held], order[held : 2 * held])
    train, validation, test = (np.isin(traces.prompt, part) for part in parts)
    return train, validation, test


def fit(traces: Traces, model: str, feature: Feature, options: FitOptions, report: Callable[[int, float], None] | None = None) -> Filter:
    """A trained filter with its threshold, and the figures of its training in `facts.training`.

    Args:
        traces: records of at least three prompts.
        model: identity of the model that they come from.
        report: called with iterations done and the loss, now and then.
    """
    train, validation, test = split(traces, options.seed)
    size = traces.features.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = nn.Sequential(*[part for _ in range(options.layers) for part in (nn.ReLU(), nn.Linear(size, size))][1:])
    inputs, wanted = (torch.from_numpy(part[train]).float() for part in (traces.features, traces.labels))
    counts = torch.from_numpy(traces.masked[train]) if options.loss_on == "masked" else torch.ones_like(wanted, dtype=torch.bool)
    raw, best = _filter(network, FilterFacts(model, size, feature)), float("inf")
    optimiser = torch.optim.AdamW(network.parameters(), lr=options.rate)
    for step in range(options.iterations):
        loss = F.binary_cross_entropy_with_logits(network(inputs)[counts], wanted[counts])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % WATCH == WATCH - 1 or step + 1 == options.iterations:
            # Few prompts are soon learnt by heart: what is kept is what does best on those held out for validation.
            now = _filter(network, FilterFacts(model, size, feature))
            found = _entropy(now.logits(traces.features[validation]), traces.labels[validation])
            if found < best:
                best, raw = found, now
            if report is not None:
                report(step + 1, float(loss.detach()))
    threshold = next((bar for bar in BARS if _judge(raw, traces, validation, bar).wrong <= options.target), 1.0)
    figures = {"options": asdict(options), **_figures(raw, traces, train, validation, test, threshold, options.target)}
    return Filter(raw.layers, FilterFacts(model, size, feature, threshold, figures))


def _filter(network: nn.Sequential, facts: FilterFacts) -> Filter:
    """The network as it is now."""
    linear = [part for part in network if isinstance(part, nn.Linear)]
    return Filter(tuple((part.weight.detach().numpy().copy(), part.bias.detach().numpy().copy()) for part in linear), facts)


def _judge(made: Filter, traces: Traces, rows: Flags, threshold: float) -> Chosen:
    with np.errstate(divide="ignore"):
        bar = np.log(threshold) - np.log1p(-threshold)
    return _chosen(made.logits(traces.features[rows]) > bar, traces, rows)


def _chosen(accepts: Flags, traces: Traces, rows: Flags) -> Chosen:
    still = traces.masked[rows]
    taken = accepts & still
    wrong = taken & ~traces.labels[rows]
    return Chosen(float(taken.sum() / max(1, still.sum())), float(wrong.sum() / max(1, taken.sum())))


def _figures(made: Filter, traces: Traces, train: Flags, validation: Flags, test: Flags, threshold: float, target: float) -> dict[str, Any]:
    """Everything a report of the training needs."""
    share = float(traces.labels[train].mean())
    logistic = _logistic(traces.features[train], traces.labels[train])
    scalar = _bars(traces, validation, target, per_position=False)
    each = _bars(traces, validation, target, per_position=True)
    return {
        "prompts": len(np.unique(traces.prompt)),
        "records": traces.forwards,
        "forced": int(traces.forced.sum()),
        "static_forwards": traces.static,
        "positives": round(share, 4),
        "loss": {name: round(_entropy(made.logits(traces.features[rows]), traces.labels[rows]), 4)
                 for name, rows in (("train", train), ("validation", validation), ("test", test))},
        "loss_constant": round(_entropy(np.full(traces.labels[validation].shape, _odds(share)), traces.labels[validation]), 4),
        "loss_logistic": round(_entropy(logistic[0] * traces.features[validation] + logistic[1], traces.labels[validation]), 4),
        "validation": asdict(_judge(made, traces, validation, threshold)),
        "test": asdict(_judge(made, traces, test, threshold)),
        "scalar_threshold": {"bar": float(scalar[0]), **asdict(_chosen(traces.features[test] >= scalar, traces, test))},
        "threshold_per_position": asdict(_chosen(traces.features[test] >= each, traces, test)),
        "calibration": _calibration(made, traces, test),
    }  # fmt: skip


def _bars(traces: Traces, rows: Flags, target: float, per_position: bool) -> Floats:
    """Smallest bars on the feature that meet the target among open positions: one for all, or one for each position."""
    features, right, still = traces.features[rows], traces.labels[rows], traces.masked[rows]
    size = features.shape[1]
    groups = [[place] for place in range(size)] if per_position else [list(range(size))]
    bars = np.full(size, np.inf)
    for group in groups:
        chosen = still[:, group]
        values, good = features[:, group][chosen], right[:, group][chosen]
        order = np.argsort(-values, kind="stable")
        wrong = np.cumsum(~good[order]) / np.arange(1, len(order) + 1)
        met = np.flatnonzero(wrong <= target)
        if len(met):
            bars[group] = values[order][met[-1]]
    return bars


def _logistic(features: Floats, labels: Flags) -> tuple[float, float]:
    """Slope and offset of the log-odds of being final in the position's own feature, by Newton's method."""
    inputs = np.stack([features.ravel(), np.ones(features.size)], 1)
    wanted, weights = labels.ravel().astype(float), np.zeros(2)
    for _ in range(25):
        guess = 1 / (1 + np.exp(-np.clip(inputs @ weights, -30, 30)))
        curvature = (inputs * (guess * (1 - guess))[:, None]).T @ inputs + 1e-6 * np.eye(2)
        weights = weights + np.linalg.solve(curvature, inputs.T @ (wanted - guess))
    return float(weights[0]), float(weights[1])


def _entropy(logits: Floats, labels: Flags) -> float:
    """Mean binary cross-entropy, in nats."""
    return float(np.mean(np.logaddexp(0, logits) - labels * logits))


def _odds(share: float) -> float:
    bounded = min(max(share, 1e-6), 1 - 1e-6)
    return float(np.log(bounded) - np.log1p(-bounded))


def _calibration(made: Filter, traces: Traces, rows: Flags) -> list[dict[str, float]]:
    """Of open positions, by promised probability: how many, mean promise, and how often it was kept."""
    still = traces.masked[rows]
    promised = 1 / (1 + np.exp(-np.clip(made.logits(traces.features[rows])[still], -50, 50)))
    kept, bins = traces.labels[rows][still], np.minimum((promised * BINS).astype(int), BINS - 1)
    return [
        {
            "count": int((bins == at).sum()),
            "promised": round(float(promised[bins == at].mean()), 4),
            "kept": round(float(kept[bins == at].mean()), 4),
        }
        for at in range(BINS)
        if (bins == at).any()
    ]
