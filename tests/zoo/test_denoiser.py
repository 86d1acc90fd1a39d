"""Networks of the zoo leave as released layouts: what is loaded computes what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from paceline.denoising.objective import masked_loss, masks, rates
from paceline.engine.canvas_logits import canvas_logits
from paceline.engine.load import load
from paceline.zoo.denoiser import Denoising, Layout, denoiser_logits, new_denoiser, save_denoiser

MASK = 30
SHAPE: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
IDS = torch.randint(0, 32, (3, 13), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layout", ["llada", "sdar"])
def test_what_is_saved_is_what_was_trained(tmp_path: Path, layout: Layout, tied: bool) -> None:
    kind = Denoising(layout, MASK)
    network = new_denoiser(kind, SHAPE | {"tie_word_embeddings": tied} | ({"head_dim": 8} if layout == "sdar" else {}), seed=1)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(weight.bfloat16())  # what a checkpoint holds
    save_denoiser(network, kind, tmp_path)
    llm = load(tmp_path, dtype="float32", device="cpu", kv_tokens=256)
    spec = llm.runner.decoder.config.diffusion
    assert spec is not None
    assert (spec.mask, spec.block) == (MASK, 4 if layout == "sdar" else None)
    with torch.no_grad():
        expected = denoiser_logits(network.eval(), IDS, kind.visible(IDS.shape[1]))
    torch.testing.assert_close(canvas_logits(llm.runner, IDS), expected, rtol=0, atol=1e-4)
    assert len(llm.generate([[3, 4, 5]], max_tokens=8, ignore_eos=True)[0].token_ids) == 8


def test_several_canvases_at_once_are_those_one_by_one(tmp_path: Path) -> None:
    """Equal canvases side by side are read through one view of memory."""
    network = new_denoiser(Denoising("llada", MASK), SHAPE, seed=2)
    save_denoiser(network, Denoising("llada", MASK), tmp_path)
    runner = load(tmp_path, dtype="float64", device="cpu", kv_tokens=256, pack=False).runner
    one_by_one = torch.cat([canvas_logits(runner, IDS[row : row + 1]) for row in range(3)])
    torch.testing.assert_close(canvas_logits(runner, IDS), one_by_one, rtol=0, atol=1e-12)


def test_an_autoregressive_start() -> None:
    """Weights are taken over; the mask is a row that the smaller vocabulary did not have."""
    kind = Denoising("llada", MASK)
    start = new_denoiser(kind, SHAPE | {"vocab_size": 30}, seed=3)
    network = new_denoiser(kind, SHAPE, seed=4, start=start)
    own, other = network.state_dict(), start.state_dict()
    assert torch.equal(own["model.layers.1.mlp.up_proj.weight"], other["model.layers.1.mlp.up_proj.weight"])
    assert torch.equal(own["model.embed_tokens.weight"][:30], other["model.embed_tokens.weight"])
    assert own["model.embed_tokens.weight"].shape[0] == 32


@pytest.mark.parametrize("layout", ["llada", "sdar"])
def test_a_step_of_training_lowers_the_loss(layout: Layout) -> None:
    kind = Denoising(layout, MASK)
    network = new_denoiser(kind, SHAPE, seed=5)
    generator = torch.Generator().manual_seed(6)
    answers = torch.ones(IDS.shape, dtype=torch.bool)
    rate = rates(len(IDS), generator, least=0.5)
    masked = masks(answers, rate, generator, at_least_one=True)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05)
    losses = []
    for _ in range(3):
        logits = denoiser_logits(network, torch.where(masked, MASK, IDS), kind.visible(IDS.shape[1]))
        loss = masked_loss(logits, IDS, masked, rate, answers)
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[2] < losses[0]
