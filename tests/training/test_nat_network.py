"""The drafter's network: the page's equations, its start from a verifier, batching, and its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from paceline.core.errors import CheckpointError, UsageError
from paceline.models.nat import OFFSET, NatConfig, NatDrafter, new_nat, stack
from paceline.models.nat_files import inherit_encoder, is_nat, load_nat, save_nat

CONFIG = NatConfig(
    vocabulary=50, width=16, heads=2, encoder_layers=2, decoder_layers=3, encoder_ffn=24, decoder_ffn=20, positions=40, block=5
)
MASK = CONFIG.mask


@pytest.fixture
def network() -> NatDrafter:
    """Large random weights in float64, so that everything matters."""
    made = new_nat(CONFIG, seed=3).double().eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(len(name)))
    return made


SOURCE = torch.tensor([[7, 8, 9, 10, 11, 12]])


def test_slots_hold_the_soft_copy_of_the_source(network: NatDrafter) -> None:
    """w_ti = softmax_i((W r_t) . (e_i + s_i)), slot input = sum_i w_ti e_i, written out as loops."""
    source = network.encode(SOURCE)
    e, s, r = network.embedding.weight[SOURCE[0]], network.source_positions.weight[OFFSET:], network.target_positions.weight
    for t in range(5):
        scores = torch.stack([(network.copy.weight @ r[t]) @ (e[i] + s[i]) for i in range(6)])
        expected = sum(weight * e[i] for i, weight in enumerate(scores.softmax(0)))
        assert torch.allclose(network._copied(source, r[:5])[0, t], expected)


def test_positions_are_added_before_every_layer(network: NatDrafter) -> None:
    entered: list[Tensor] = []
    left: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        entered.append(args[0])
        left.append(out)

    for layer in network.decoder_layers:
        layer.register_forward_hook(note)
    network.fill(network.encode(SOURCE), torch.tensor([5, 6]), 3)
    positions = network.target_positions.weight[:5]
    assert len(entered) == 3
    for below, above in zip(left, entered[1:], strict=False):
        assert torch.allclose(above, below + positions)


def test_every_row_sees_every_other(network: NatDrafter) -> None:
    source, slots = network.encode(SOURCE), torch.tensor([[False] * 3 + [True] * 2])
    one = network(source, torch.tensor([[5, 6, 7, MASK, MASK]]), slots)
    other = network(source, torch.tensor([[5, 6, 8, MASK, MASK]]), slots)
    assert (one - other).abs().amax(-1).min() > 1e-6  # a later token changes the rows before it too: no causal mask


def test_known_tokens_are_never_taken_for_slots(network: NatDrafter) -> None:
    """The reference marks slots by an ordinary id, so that this id in the known prefix is read as a slot."""
    source = network.encode(SOURCE)
    prefix = torch.tensor([5, MASK, 6])
    right = network.fill(source, prefix, 3)
    ids = torch.cat([prefix, torch.full((3,), MASK)])[None]
    mistaken = network.logits(network(source, ids, ids == MASK)[0, 3:])
    assert not torch.allclose(right, mistaken)
    with torch.no_grad():
        network.embedding.weight[MASK] *= -1.0
    assert not torch.allclose(network.fill(source, prefix, 3), right)  # the known id is read through its embedding


def test_rows_of_a_batch_are_what_they_are_alone(network: NatDrafter) -> None:
    sources = [network.encode(torch.tensor([ids])) for ids in ([7, 8, 9], [20, 21, 22, 23, 24], [30])]
    prefixes: list[list[int]] = [[5], [], [6, 7, 8, 9]]
    block = 4
    width = 4 + block
    ids = torch.tensor([[*prefix, *[MASK] * (width - len(prefix))] for prefix in prefixes])
    places = torch.arange(width)
    starts = torch.tensor([len(prefix) for prefix in prefixes])[:, None]
    known, slots = places < starts + block, (places >= starts) & (places < starts + block)
    states = network(stack(sources), ids, slots, known)
    for row, (source, prefix) in enumerate(zip(sources, prefixes, strict=True)):
        alone = network.fill(source, torch.tensor(prefix, dtype=torch.long), block)
        assert torch.allclose(network.logits(states[row, slots[row]]), alone, atol=1e-10)


def test_padding_of_a_source_is_not_seen(network: NatDrafter) -> None:
    padded = torch.cat([SOURCE, torch.full((1, 3), CONFIG.pad)], dim=1)
    prefix = torch.tensor([5, 6])
    assert torch.allclose(network.fill(network.encode(padded), prefix, 4), network.fill(network.encode(SOURCE), prefix, 4), atol=1e-10)


def test_the_encoder_is_the_verifiers(network: NatDrafter) -> None:
    """Parity with transformers: the same encoder states, seen through the decoder's cross-attention keys."""
    verifier = bart()
    inherit_encoder(network, verifier.state_dict())
    states = verifier.model.encoder(input_ids=SOURCE).last_hidden_state
    for layer, keys in zip(network.decoder_layers, network.encode(SOURCE).keys, strict=True):
        assert torch.allclose(layer.cross.project(states)[0], keys, atol=1e-10)
    assert torch.equal(network.embedding.weight, verifier.model.shared.weight)


def bart(**changes: Any) -> Any:
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    shape = {"vocab_size": 50, "d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2}
    more = {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 40, "init_std": 0.3}
    return BartForConditionalGeneration(BartConfig(**(shape | more | changes))).double().eval()


def test_another_encoder_is_refused_by_name(network: NatDrafter) -> None:
    with pytest.raises(CheckpointError, match=r"encoder.layers.0.fc1.weight is \(28, 16\), and the drafter needs \(24, 16\)"):
        inherit_encoder(network, bart(encoder_ffn_dim=28).state_dict())
    with pytest.raises(CheckpointError, match=r"encoder.layers.1.self_attn.q_proj.weight is missing"):
        inherit_encoder(network, bart(encoder_layers=1).state_dict())


def test_a_new_drafter_copies_the_source_token_of_each_position() -> None:
    made = new_nat(NatConfig(400, 64, 2, 1, 1, 64, 64, 64), seed=0)
    ids = torch.arange(20, 50)[None]
    source = made.encode(ids)
    nearest = (made._copied(source, made.target_positions.weight[:30])[0] @ made.embedding.weight.T).argmax(-1)
    assert float((nearest == ids[0]).float().mean()) > 0.9


def test_files_round_trip_in_half_precision(network: NatDrafter, tmp_path: Path) -> None:
    save_nat(network, tmp_path)
    assert is_nat(tmp_path)
    again = load_nat(tmp_path)
    assert again.config == network.config
    assert not again.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.to(torch.bfloat16).float())


def test_broken_files_are_named(network: NatDrafter, tmp_path: Path) -> None:
    assert not is_nat(tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json does not describe"):
        load_nat(tmp_path)
    save_nat(network, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("copy.weight")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"copy\.weight"):
        load_nat(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key != "width"}))
    with pytest.raises(CheckpointError, match="width"):
        load_nat(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"heads": 3}, "cannot have 3 heads"), ({"block": 40}, "block=40"), ({"mask": 1}, "three different ids")],
)
def test_shapes_that_do_not_fit_are_refused(change: dict[str, int], message: str) -> None:
    fields = {name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}
    with pytest.raises(UsageError, match=message):
        NatConfig(**{**fields, **change})


def test_a_source_beyond_the_positions_is_refused(network: NatDrafter) -> None:
    with pytest.raises(UsageError, match="41 tokens and the drafter reads 40"):
        network.encode(torch.full((1, 41), 5))
