"""Logits become guesses: laws, measures, guidance, and random numbers that belong to a position and a moment."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusion_models import MASK, Make, Reference

from paceline.core.errors import PacelineError
from paceline.core.sampling import Sampling
from paceline.denoising.canvas import Canvas
from paceline.denoising.reading import Measure, Question, Reading, read

VOCABULARY = 7
LOGITS = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def question(sampling: Sampling, seed: int = 0, rows: int = 4, committed: int = 0, certain: int | None = None) -> Question:
    canvas = Canvas.start([1, 1], rows, block=rows, mask=MASK, seed=seed)
    canvas.committed = committed
    positions = canvas.open_in_block()
    marks = np.zeros(rows, dtype=bool)
    if certain is not None:
        marks[certain] = True
    return Question(canvas, positions, canvas.open[positions], sampling, marks)


def law(temperature: float, top_p: float = 1.0, top_k: int = 0) -> torch.Tensor:
    """Dream's: temperature, then top-p, then top-k; written with sorts."""
    made = []
    for row in LOGITS / temperature:
        chance = row.softmax(-1)
        order = chance.argsort(descending=True)
        before = chance[order].cumsum(0) - chance[order]
        kept = order[before < top_p] if top_p < 1 else order
        kept = kept[:top_k] if top_k else kept
        made.append(torch.zeros_like(chance).index_copy(0, kept, chance[kept] / chance[kept].sum()))
    return torch.stack(made)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=1.0), Sampling(temperature=0.6), Sampling(temperature=0.8, top_p=0.8), Sampling(1.2, top_p=0.9, top_k=2)],
)
def test_samples_follow_the_law(sampling: Sampling) -> None:
    draws = 4000
    counts = torch.zeros(4, VOCABULARY)
    for found in read(LOGITS.repeat(draws, 1), [question(sampling, seed) for seed in range(draws)], Reading()):
        counts[torch.arange(4), torch.from_numpy(found.tokens)] += 1
    expected = law(sampling.temperature, sampling.top_p, sampling.top_k)
    assert not counts[expected == 0].any()
    deviation = (counts - draws * expected).abs() / (draws * expected * (1 - expected)).sqrt().clamp(min=1.0)
    assert deviation.max() < 4.5


def test_numbers_belong_to_seed_position_and_moment() -> None:
    """Neither the batch nor the rows beside them matter; another moment draws other numbers."""
    hot = Sampling(temperature=1.5)
    (alone,) = read(LOGITS.clone(), [question(hot, seed=8)], Reading())
    together = read(LOGITS.repeat(3, 1), [question(hot, seed=3), question(hot, seed=8), question(Sampling())], Reading())
    assert together[1].tokens.tolist() == alone.tokens.tolist()
    assert together[2].tokens.tolist() == LOGITS.argmax(-1).tolist()
    later = [read(LOGITS.clone(), [question(hot, seed=8, committed=at)], Reading())[0].tokens.tolist() for at in range(6)]
    assert len({tuple(tokens) for tokens in later}) > 3


def test_confidence_is_at_temperature_one() -> None:
    """LLaDA's: the probability of the drawn token under the untempered law."""
    (found,) = read(LOGITS.clone(), [question(Sampling(temperature=0.3), seed=2)], Reading())
    expected = LOGITS.log_softmax(-1).gather(-1, torch.from_numpy(found.tokens)[:, None])[:, 0]
    np.testing.assert_allclose(found.logprob, expected, atol=1e-12)
    np.testing.assert_allclose(found.score, expected, atol=1e-12)


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (0.5, 1.0), (0.0, 0.7), (0.7, 0.8)])
@pytest.mark.parametrize("measure", ["law", "margin", "entropy"])
def test_measures_of_dream(measure: Measure, temperature: float, top_p: float) -> None:
    (found,) = read(LOGITS.clone(), [question(Sampling(temperature=temperature, top_p=top_p))], Reading(measure), entropy=True)
    chance = law(temperature or 1.0, top_p)
    pair = chance.sort(-1, descending=True).values
    expected = {
        "law": chance.gather(-1, torch.from_numpy(found.tokens)[:, None])[:, 0],
        "margin": pair[:, 0] - pair[:, 1],
        "entropy": (chance * (chance + 1e-10).log()).sum(-1),
    }[measure]
    np.testing.assert_allclose(found.score, expected, atol=1e-9)
    plain = LOGITS.softmax(-1)
    np.testing.assert_allclose(found.entropy, -(plain * (plain + 1e-10).log()).sum(-1), atol=1e-9)


def test_banned_unsure_and_certain() -> None:
    best = LOGITS.argmax(-1).tolist()
    (found,) = read(LOGITS.clone(), [question(Sampling(), certain=2)], Reading(banned=(best[0],), unsure=(best[1],)))
    assert found.tokens[0] != best[0]
    kept = LOGITS[0].clone()
    kept[best[0]] = -torch.inf
    np.testing.assert_allclose(found.logprob[0], kept.log_softmax(-1).max(), atol=1e-12)  # what is banned has no mass
    assert found.tokens[1] == best[1]
    assert found.score[1] == -np.inf
    assert found.score[2] == np.inf
    assert found.ranked()[0] == 2
    assert found.ranked()[-1] == 1


def test_float64_on_request() -> None:
    """In float32 two sure guesses tie and the lower position wins; float64 tells them apart."""
    logits = torch.zeros(2, 3)
    logits[0, 0], logits[1, 0] = 30.0, 31.0
    rough, fine = (read(logits.clone(), [question(Sampling(), rows=2)], Reading(double=double))[0] for double in (False, True))
    assert rough.ranked().tolist() == [0, 1]
    assert fine.ranked().tolist() == [1, 0]


def test_logits_that_are_no_numbers() -> None:
    logits = LOGITS.clone()
    logits[1, 3] = torch.nan
    with pytest.raises(PacelineError, match="NaN"):
        read(logits, [question(Sampling())], Reading())


def test_guidance_equals_its_formula(make: Make, references: dict[str, Reference]) -> None:
    """u + (s + 1)(c - u), with the prompt masked in u; in a batch, and with a cache of its own for each of the two."""
    scale, prompts, reference = 1.5, [[5, 6, 7, 8, 9], [4, 3]], references["llada"]
    llm = make("llada", f"static:block=4,guidance={scale}")
    for prompt, output in zip(prompts, llm.generate(prompts, max_tokens=8, ignore_eos=True), strict=True):
        ids = [*prompt, *[MASK] * 8]
        for low in (len(prompt), len(prompt) + 4):
            for _ in range(4):
                given, free = reference(ids), reference([MASK] * len(prompt) + ids[len(prompt) :])
                logits = free + (scale + 1) * (given - free)
                logits[:, MASK] = -torch.inf
                chance, token = logits.softmax(-1).max(-1)
                at = min((at for at in range(low, low + 4) if ids[at] == MASK), key=lambda at: -chance[at].item())
                ids[at] = int(token[at])
        assert output.token_ids == ids[len(prompt) :]
        assert output.stats.forwards == 8
        assert output.stats.rows == 8 * 2 * len(ids)
    for cache in ("prefix", "dual"):
        found = [
            make("llada", f"static:block=4,guidance={scale},cache={cache},refresh={refresh}").generate(
                prompts, max_tokens=8, ignore_eos=True
            )
            for refresh in (1, 0)
        ]
        plain = llm.generate(prompts, max_tokens=8, ignore_eos=True)
        assert [output.token_ids for output in found[0]] == [output.token_ids for output in plain]
        assert found[1][0].stats.rows < plain[0].stats.rows
