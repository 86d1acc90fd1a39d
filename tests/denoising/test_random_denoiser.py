"""The untrained model that timings of denoising are made with."""

from __future__ import annotations

from paceline.bench.random_denoiser import random_denoiser
from paceline.engine.load import load


def test_untrained_models_decode() -> None:
    for pack in (False, True):
        decoder = random_denoiser(128, layers=1, pack=pack)
        llm = load(decoder, "static", device="cpu", kv_tokens=256, pack=pack)
        (output,) = llm.generate([[5, 6, 7]], max_tokens=6, ignore_eos=True)
        assert len(output.token_ids) == 6
        assert llm.runner.decoder.config.max_positions == 128
