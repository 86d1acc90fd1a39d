"""Learn2PD: degenerate filters are known decoders, filters see blocks as described, files are refused where they do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from diffusion_models import BLOCK, Make, write

from paceline.bench.sort_reverse import Training, train
from paceline.core.errors import CheckpointError, UsageError
from paceline.denoising.guesses import Guesses
from paceline.denoising.learn2pd_filter import Feature, Filter, FilterFacts, file_name, load_filter, save_filter
from paceline.engine.identity import model_identity
from paceline.engine.llm import LLM
from paceline.engine.load import load

PROMPTS = [list(range(3, 13)), [4, 9], [30, 31, 32, 5, 6]]
SIZE = 8


def ids(llm: LLM, length: int = 24) -> list[list[int]]:
    return [output.token_ids for output in llm.generate(PROMPTS, max_tokens=length, ignore_eos=True)]


def forwards(llm: LLM, length: int = 24) -> int:
    return sum(output.stats.forwards for output in llm.generate(PROMPTS, max_tokens=length, ignore_eos=True))


def constant(value: float, model: str, block: int = SIZE, feature: Feature = "probability") -> Filter:
    """A filter whose weights are zero: it takes every prediction for equally final."""
    weight, bias = np.zeros((block, block), np.float32), np.zeros(block, np.float32)
    return Filter(((weight, bias), (weight, bias + np.float32(value))), FilterFacts(model, block, feature, 0.9))


def scalar(sharpness: float, bar: float, model: str) -> Filter:
    """A filter that is a threshold on the probability: sharpness * (p - bar) per position."""
    eye, zero = np.eye(SIZE, dtype=np.float32), np.zeros(SIZE, np.float32)
    return Filter(((eye, zero), (eye * np.float32(sharpness), zero - np.float32(sharpness * bar))), FilterFacts(model, SIZE))


def written(made: Filter, folder: Path) -> str:
    save_filter(made, folder / "filter.safetensors")
    return str(folder / "filter.safetensors")


@pytest.fixture
def name(loaded: dict[str, LLM]) -> str:
    return model_identity(loaded["llada"].runner.decoder)


def test_a_filter_that_accepts_nothing_is_static_decoding(make: Make, name: str, tmp_path: Path) -> None:
    file = written(constant(0.0, name), tmp_path)
    static = ids(make("llada", f"static:block={SIZE}"))
    for threshold in (1.0, 0.5, 0.9):  # zero weights: one half, which is not more than these
        llm = make("llada", f"learn2pd:block={SIZE},filter={file},threshold={threshold}")
        assert ids(llm) == static
        assert forwards(llm) == 24 * len(PROMPTS)


def test_a_filter_that_accepts_all_decides_a_block_per_forward(make: Make, name: str, tmp_path: Path) -> None:
    file = written(constant(0.0, name), tmp_path)
    whole = make("llada", f"threshold:block={SIZE},threshold=0")
    for threshold in (0.0, 0.49):
        llm = make("llada", f"learn2pd:block={SIZE},filter={file},threshold={threshold}")
        assert ids(llm) == ids(whole)
        assert forwards(llm) == 3 * len(PROMPTS)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_a_filter_that_is_a_threshold_is_threshold_decoding(make: Make, name: str, tmp_path: Path, cache: str) -> None:
    """With the published network of two layers; negative control: another bar, other forwards."""
    found = {}
    for bar in (0.2, 0.4):
        file = written(scalar(1000.0, bar, name), tmp_path)
        llm = make("llada", f"learn2pd:block={SIZE},filter={file},threshold=0.5,cache={cache}")
        plain = make("llada", f"threshold:block={SIZE},threshold={bar},cache={cache}")
        assert ids(llm) == ids(plain)
        found[bar] = forwards(llm)
        assert found[bar] == forwards(plain)
    assert found[0.2] < found[0.4]


def test_batches_are_single_runs(make: Make, name: str, tmp_path: Path) -> None:
    file = written(scalar(20.0, 0.3, name), tmp_path)
    llm = make("llada", f"learn2pd:block={SIZE},filter={file},threshold=0.7")
    alone = [llm.generate([prompt], max_tokens=24, ignore_eos=True)[0].token_ids for prompt in PROMPTS]
    assert ids(llm) == alone


def test_blocks_that_are_shorter_than_the_filter(make: Make, name: str, tmp_path: Path) -> None:
    file = written(constant(0.0, name), tmp_path)
    assert ids(make("llada", f"learn2pd:block={SIZE},filter={file}"), 21) == ids(make("llada", f"static:block={SIZE}"), 21)


@pytest.mark.parametrize("layout", ["dream", "sdar"])
def test_other_layouts(make: Make, loaded: dict[str, LLM], tmp_path: Path, layout: str) -> None:
    block = BLOCK if layout == "sdar" else SIZE
    features: tuple[Feature, ...] = ("probability", "entropy")
    for feature in features:
        made = constant(0.0, model_identity(loaded[layout].runner.decoder), block, feature)
        llm = make(layout, f"learn2pd:block={block},filter={written(made, tmp_path)}")
        assert ids(llm) == ids(make(layout, f"static:block={block}"))


def test_what_a_filter_sees() -> None:
    guesses = Guesses(
        np.array([10, 11, 13]),
        np.array([1, 2, 3]),
        np.log([0.5, 0.25, 1.0]),
        np.zeros(3),
        np.array([0.7, 1.1, 0.2]),
        np.array([1, 0, 1]) > 0,
    )
    assert constant(0, "m", 4).features(guesses, 10).tolist() == pytest.approx([0.5, 0.25, 0.0, 1.0])
    assert constant(0, "m", 4, "entropy").features(guesses, 10).tolist() == pytest.approx([-0.7, 0.0, 0.0, -0.2])


def test_the_published_size() -> None:
    assert constant(0, "m", 32).parameters == 2112
    assert constant(0, "m", 8).parameters == 144


def test_files_round_trip(tmp_path: Path) -> None:
    made = scalar(3.0, 0.4, "0123")
    made = replace(made, facts=replace(made.facts, threshold=0.77, training={"records": 3}))
    again = load_filter(Path(written(made, tmp_path)))
    assert again.facts == made.facts
    rows = np.random.default_rng(0).random((5, SIZE))
    np.testing.assert_array_equal(again.logits(rows), made.logits(rows))
    assert [path.name for path in tmp_path.iterdir()] == ["filter.safetensors"]


def test_the_filter_beside_a_model_needs_no_name(tmp_path: Path) -> None:
    """One per block size; what is missing is said, with what there is instead."""
    folder = write(tmp_path / "llada", "llada")
    plain = load(folder, dtype="float64", device="cpu", kv_tokens=2048)
    model = model_identity(plain.runner.decoder)
    with pytest.raises(CheckpointError, match=r"no filter for blocks of 32 lies beside the model.*paceline train learn2pd MODEL"):
        load(plain, "learn2pd")
    save_filter(constant(0.0, model), folder / file_name(SIZE))
    save_filter(constant(3.0, model, 32), folder / file_name(32))
    for where in (plain, folder):  # engines on the same weights, and models loaded anew
        llm = load(where, f"learn2pd:block={SIZE}", dtype="float64", device="cpu", kv_tokens=2048)
        assert ids(llm) == ids(load(plain, f"static:block={SIZE}", device="cpu", kv_tokens=2048))
        assert forwards(load(where, "learn2pd", dtype="float64", device="cpu", kv_tokens=2048)) == len(PROMPTS)
        drafting = load(where, f"freedave:block={SIZE},filter=model", dtype="float64", device="cpu", kv_tokens=2048)
        assert drafting.engine.denoiser.rule.filter.facts == llm.engine.denoiser.rule.filter.facts
        assert drafting.engine.denoiser.rule.threshold == 0.9
    with pytest.raises(CheckpointError, match=r"blocks of 16 .*; there is learn2pd-32.safetensors, learn2pd-8.safetensors"):
        load(plain, "learn2pd:block=16")
    save_filter(constant(0.0, "another", 16), folder / file_name(16))
    with pytest.raises(CheckpointError, match="trained for another model"):
        load(plain, "learn2pd:block=16")


def test_as_many_as_a_static_schedule(make: Make, name: str, tmp_path: Path) -> None:
    """A filter that accepts nothing leaves what static decoding in so many steps decides; with more steps than tokens, one per step."""
    file = written(constant(0.0, name), tmp_path)
    for steps in (3, 6, 9, 24):
        llm, static = (make("llada", f"{method},block={SIZE},steps={steps}") for method in (f"learn2pd:filter={file}", "static:per_step=1"))
        assert ids(llm) == ids(static)
        assert forwards(llm) == steps * len(PROMPTS)
    assert forwards(make("llada", f"learn2pd:filter={file},block={SIZE},steps=48")) == 24 * len(PROMPTS)
    with pytest.raises(UsageError, match="cannot be shared evenly"):
        ids(make("llada", f"learn2pd:filter={file},block={SIZE},steps=7"))


def test_filters_that_do_not_fit_are_refused(make: Make, name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="paceline train learn2pd"):
        make("llada", "learn2pd")
    with pytest.raises(UsageError, match="not loaded from a folder"):
        load(train(Training(steps=1, sequences=8)), "learn2pd", device="cpu", kv_tokens=64)
    for options in ("filter=", "per_step=0", "per_step=2,steps=4", "steps=-1"):
        with pytest.raises(UsageError, match=options.split("=")[0]):
            make("llada", f"learn2pd:{options}")
    with pytest.raises(CheckpointError, match="does not exist; make it with `paceline train learn2pd"):
        make("llada", f"learn2pd:filter={tmp_path / 'none'}")
    file = written(constant(0.0, "another"), tmp_path)
    with pytest.raises(CheckpointError, match="trained for another model"):
        make("llada", f"learn2pd:block={SIZE},filter={file}")
    file = written(constant(0.0, name), tmp_path)
    with pytest.raises(CheckpointError, match=f"blocks of {SIZE}, not 16; give block={SIZE}"):
        make("llada", f"learn2pd:block=16,filter={file}")
    (tmp_path / "text").write_text("no filter")
    with pytest.raises(CheckpointError, match="is not a filter file"):
        make("llada", f"learn2pd:filter={tmp_path / 'text'}")
    with pytest.raises(UsageError, match="between 0 and 1"):
        make("llada", f"learn2pd:filter={file},threshold=1.5")
