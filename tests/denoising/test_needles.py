"""The long-prompt task and the untrained model that benchmarks of attention are made of."""

from __future__ import annotations

from dataclasses import replace

import torch

from paceline.bench import needles
from paceline.bench.random_denoiser import random_denoiser
from paceline.engine.load import load


def test_every_slot_has_one_needle() -> None:
    prompts, answers = needles.examples(5, 40, torch.Generator().manual_seed(0))
    assert prompts.shape == (5, 40)
    assert (prompts[:, 0] == needles.BOS).all()
    assert (prompts[:, -1] == needles.SEP).all()
    for prompt, answer in zip(prompts.tolist(), answers.tolist(), strict=True):
        found = sorted(token - needles.NEEDLE for token in prompt if needles.NEEDLE <= token < needles.DIGIT)
        assert [code // needles.DIGITS for code in found] == list(range(needles.SLOTS))
        assert [code % needles.DIGITS for code in found] == [token - needles.DIGIT for token in answer]
    assert not torch.equal(prompts[0], prompts[1])
    assert needles.VOCABULARY == needles.MASK + 1


def test_training_lowers_the_loss_and_is_repeatable() -> None:
    settings = replace(needles.TRAINING, steps=30, batch=8, warm_up=5)
    losses: list[list[float]] = [[], []]
    for own in losses:
        decoder = needles.train(settings, lambda _, loss, own=own: own.append(loss))  # type: ignore[misc]
    assert losses[0] == losses[1]
    assert sum(losses[0][-5:]) < 0.8 * sum(losses[0][:5])
    llm = load(decoder, "static:block=16", device="cpu", kv_tokens=256, pack=False)
    prompt = needles.examples(1, 40, torch.Generator().manual_seed(1))[0][0].tolist()
    assert len(llm.generate([prompt], max_tokens=16, ignore_eos=True)[0].token_ids) == 16


def test_untrained_models_decode() -> None:
    for pack in (False, True):
        decoder = random_denoiser(128, layers=1, pack=pack)
        llm = load(decoder, "static", device="cpu", kv_tokens=256, pack=pack)
        (output,) = llm.generate([[5, 6, 7]], max_tokens=6, ignore_eos=True)
        assert len(output.token_ids) == 6
        assert llm.runner.decoder.config.max_positions == 128
