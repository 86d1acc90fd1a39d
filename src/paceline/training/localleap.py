"""Watching a model decode statically, to choose LocalLeap's thresholds by how reliable its predictions are near sure ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from paceline.core.errors import UsageError
from paceline.denoising.localleap_calibration import Predictions, Watch, joined, predictions
from paceline.engine.llm import LLM
from paceline.engine.load import load


def watch(
    model: LLM,
    prompts: Sequence[Sequence[int]],
    length: int,
    *,
    block: int | None = None,
    anchor: float = 0.9,
    batch: int = 8,
    report: Callable[[int], None] | None = None,
) -> Predictions:
    """Every prediction of every step of static decoding, with how sure it was, how far from an anchor, and whether it was final.

    Args:
        model: a masked diffusion model.
        prompts: ids.
        length: tokens of every answer.
        block: positions per block; the model's own when None.
        anchor: probability that makes an open position an anchor.
        batch: answers decoded together.
        report: called with the number of prompts done.

    Raises:
        UsageError: for a prompt that leaves no room for an answer.
    """
    if long := [prompt for prompt in prompts if len(prompt) + length > model.engine.context]:
        raise UsageError(f"a prompt of {len(long[0])} tokens leaves no room for {length} more; shorten it or lower --length")
    room = batch * (max(map(len, prompts)) + length + 64)
    method = "static" if block is None else f"static:block={block}"
    llm = load(model, method, device=model.runner.decoder.device, kv_tokens=room, max_rows=1 << 20, prefix_cache=False)
    rule, parts = llm.engine.denoiser.rule, []
    for first in range(0, len(prompts), batch):
        watched = Watch(rule)
        llm.engine.denoiser = replace(llm.engine.denoiser, rule=watched)
        llm.generate([list(prompt) for prompt in prompts[first : first + batch]], max_tokens=length, ignore_eos=True)
        parts.append(predictions(watched.seen, anchor))
        if report is not None:
            report(min(first + batch, len(prompts)))
    return joined(parts)
