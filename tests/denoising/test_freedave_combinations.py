"""FreeDave with sparse attention, with guidance, on top of a filter, over many prompts: the tokens of the decoder drafted for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from diffusion_models import BLOCK, Make

from paceline.denoising import freedave_decoder
from paceline.denoising.freedave_decoder import DraftAndVerify
from paceline.denoising.learn2pd_filter import Filter, FilterFacts, save_filter
from paceline.engine.identity import model_identity
from paceline.engine.llm import LLM
from paceline.engine.output import Output

PROMPTS = [np.random.default_rng(seed).integers(3, 44, 4 + 3 * seed).tolist() for seed in range(3)]
SPARSE = "attention=sparsed,sparse_tile=2,sparse_keep=0.3"


def run(make: Make, layout: str, method: str, prompts: list[list[int]] = PROMPTS, length: int = 16, **options: object) -> list[Output]:
    tail = "" if layout == "sdar" else ("," if ":" in method else ":") + "block=8"
    llm = make(layout, method + tail, **{"prefix_cache": False, "kv_tokens": 8192, **options})
    found: list[Output] = llm.generate(prompts, max_tokens=length, ignore_eos=True)
    return found


def ids(outputs: list[Output]) -> list[list[int]]:
    return [output.token_ids for output in outputs]


def forwards(outputs: list[Output]) -> list[int]:
    return [output.stats.forwards for output in outputs]


def no_more(mine: list[Output], plain: list[Output]) -> bool:
    return all(one <= other for one, other in zip(forwards(mine), forwards(plain), strict=True))


@pytest.mark.parametrize("layout", ["llada", "dream"])
def test_two_hundred_prompts(make: Make, layout: str) -> None:
    """Not one with another token, not one with more forwards; in a batch of all of them."""
    random = np.random.default_rng(5)
    prompts = [random.integers(3, 44, int(random.integers(2, 12))).tolist() for _ in range(200)]
    many = {"max_sequences": 200, "max_rows": 1 << 20, "kv_tokens": 200 * 32 * 4}
    static, found = (run(make, layout, method, prompts, **many) for method in ("static", "freedave:drafts=4"))
    assert ids(found) == ids(static)
    assert no_more(found, static)
    assert sum(forwards(found)) < 0.9 * sum(forwards(static))


@pytest.mark.parametrize("layout", ["llada", "dream"])
@pytest.mark.parametrize("skip", ["sparse_skip=0", "sparse_skip=0.3", "sparse_full=7"])
def test_sparse_attention(make: Make, layout: str, skip: str) -> None:
    """Patterns are chosen by the state that static decoding chooses them by."""
    static = run(make, layout, f"static:{SPARSE},{skip}")
    assert ids(static) != ids(run(make, layout, "static"))
    for options in ("drafts=4", "drafts=4,mode=sequential", "drafts=8,eager=true"):
        found = run(make, layout, f"freedave:{SPARSE},{skip},{options}")
        assert ids(found) == ids(static), options
        assert "sequential" in options or (no_more(found, static) and sum(forwards(found)) < sum(forwards(static)))
    assert ids(run(make, layout, f"freedave:{SPARSE},{skip}", max_sequences=1)) == ids(static)


def test_drafts_beyond_the_choosing_step_are_noticed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: states verified with full attention that static decoding computes with patterns."""
    monkeypatch.setattr(DraftAndVerify, "_reach", lambda self, canvas: self.drafts)
    wrong = 0
    for skip in range(1, 12):
        options = f"{SPARSE},sparse_full={skip}"
        wrong += ids(run(make, "llada", f"freedave:{options},drafts=8")) != ids(run(make, "llada", f"static:{options}"))
    assert wrong > 0


@pytest.mark.parametrize(
    ("layout", "cache"), [("llada", "none"), ("llada", "dual"), ("dream", "none"), ("dream", "prefix"), ("sdar", "none")]
)
def test_guidance(make: Make, layout: str, cache: str) -> None:
    """Every drafted state is computed with and without the prompt, however states share a forward."""
    static = run(make, layout, f"static:guidance=1.5,cache={cache}")
    assert ids(static) != ids(run(make, layout, f"static:cache={cache}"))
    for mode in ("batch", "tree", "sequential"):
        found = run(make, layout, f"freedave:guidance=1.5,cache={cache},mode={mode}")
        assert ids(found) == ids(static), mode
        assert mode == "sequential" or (no_more(found, static) and sum(forwards(found)) < sum(forwards(static)))
    if layout == "sdar":
        for options in ("eager=true", "store=own", "eager=true,mode=tree"):
            assert ids(run(make, layout, f"freedave:guidance=1.5,drafts=8,{options}")) == ids(static)


def test_logits_of_the_wrong_state_are_noticed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: masked rows of all states share a look, and their logits must be sorted by state before they are combined."""
    static = ids(run(make, "llada", "static:guidance=1.5"))
    monkeypatch.setattr(freedave_decoder.DraftAndVerify, "_by_state", lambda self, tasks, logits: logits)
    assert ids(run(make, "llada", "freedave:guidance=1.5,mode=tree")) != static


def written(loaded: LLM, block: int, folder: Path) -> str:
    """A filter of random weights, so that features at other positions matter."""
    random = np.random.default_rng(2)
    widths = [(random.normal(0, 2, (block, block)), random.normal(0, 1, block)) for _ in range(2)]
    layers = tuple((weight.astype(np.float32), bias.astype(np.float32)) for weight, bias in widths)
    file = folder / "filter.safetensors"
    save_filter(Filter(layers, FilterFacts(model_identity(loaded.runner.decoder), block, "probability", 0.7)), file)
    return str(file)


@pytest.mark.parametrize(("layout", "cache"), [("llada", "none"), ("dream", "dual"), ("sdar", "none")])
def test_drafting_on_top_of_a_filter(make: Make, loaded: dict[str, LLM], tmp_path: Path, layout: str, cache: str) -> None:
    """One draft is Learn2PD; exact matches keep its tokens; subsets take no more forwards."""
    file = written(loaded[layout], BLOCK if layout == "sdar" else 8, tmp_path)
    common = f"filter={file},cache={cache}"
    plain = run(make, layout, f"learn2pd:{common}")
    assert max(len(output.token_ids) - output.stats.forwards for output in plain) > 0
    one = run(make, layout, f"freedave:{common},drafts=1")
    assert (ids(one), forwards(one)) == (ids(plain), forwards(plain))
    for options in ("", ",mode=tree", *([",eager=true"] if cache == "none" else [])):
        exact = run(make, layout, f"freedave:{common},drafts=4,match=exact{options}")
        assert ids(exact) == ids(plain)
        assert no_more(exact, plain)
    near = run(make, layout, f"freedave:{common},drafts=4")
    assert sum(forwards(near)) < sum(forwards(plain))
    other = run(make, layout, f"freedave:{common},drafts=1,threshold=0.99")
    assert ids(other) == ids(run(make, layout, f"learn2pd:{common},threshold=0.99"))
    assert forwards(other) != forwards(plain)
