"""The kernels of sampling against the same functions on tensors, which know nothing of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from paceline.core import transform
from paceline.core.sampling import Sampling
from paceline.core.tree import Distribution
from paceline.kernels.laws import kernels
from paceline.verification.rejection import Opening

pytestmark = pytest.mark.skipif(kernels() is None, reason="no C compiler on this machine: there are no kernels here")

LAWS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.6, top_p=0.95),
    Sampling(temperature=1.0, top_k=1),
    Sampling(temperature=1.3, top_k=17),
    Sampling(temperature=1.5, top_k=900, top_p=0.99, min_p=1e-4),
    Sampling(temperature=1.0, top_p=1e-6),
    Sampling(temperature=1.0, min_p=0.05),
    Sampling(temperature=1e-9, top_p=0.5),
    Sampling(temperature=40.0, top_p=0.9),
]


def without(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> object:
    with monkeypatch.context() as patch:
        patch.setattr(transform, "kernels", lambda: None)
        return work()


def logits(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 250, 4099])
@pytest.mark.parametrize("sampling", LAWS)
def test_laws_are_those_of_tensors(sampling: Sampling, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = logits(5, width)
    plain = without(monkeypatch, lambda: transform.target_distribution(scores, sampling))
    torch.testing.assert_close(transform.target_distribution(scores, sampling), plain, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("sampling", LAWS)
def test_ties_go_to_the_lowest_ids(sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randint(0, 4, (20, 100), generator=torch.Generator().manual_seed(1)).float()
    law = transform.target_distribution(scores, sampling)
    plain = without(monkeypatch, lambda: transform.target_distribution(scores, sampling))
    assert isinstance(plain, torch.Tensor)
    assert torch.equal(law > 0, plain > 0)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    scores = logits(9, 1003)
    for sampling in LAWS:
        together = transform.target_distribution(scores, sampling)
        assert all(torch.equal(transform.target_distribution(scores[at : at + 1], sampling)[0], together[at]) for at in range(9))


@pytest.mark.parametrize("threads", [2, 3, 100])
def test_rows_shared_by_threads_have_the_same_bits(threads: int) -> None:
    """Large enough for the kernel to call helpers; and a number of rows that does not divide evenly."""
    scores, before = logits(13, 90_001), torch.get_num_threads()
    alone = [transform.target_distribution(scores[at : at + 1], LAWS[4])[0] for at in range(13)]
    torch.set_num_threads(threads)
    try:
        together = transform.target_distribution(scores, LAWS[4])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(mine, other) for mine, other in zip(together, alone, strict=True))


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, "nothing"])
@pytest.mark.parametrize("sampling", LAWS)
def test_a_row_without_a_law_is_nan_and_harms_no_other(sampling: Sampling, wrong: float | str) -> None:
    scores = logits(3, 50)
    sound = transform.target_distribution(scores, sampling)
    if isinstance(wrong, str):
        scores[1] = -torch.inf
    else:
        scores[1, 49] = wrong
    law = transform.target_distribution(scores, sampling)
    assert law[1].isnan().all()
    assert torch.equal(law[[0, 2]], sound[[0, 2]])
    assert transform.draw(law, [0.5, 0.5, 0.5])[1] == transform.INVALID


def test_forbidden_tokens_get_nothing() -> None:
    scores = logits(1, 40)
    scores[0, ::2] = -torch.inf
    law = transform.target_distribution(scores, Sampling(temperature=1.0))
    assert law[0, ::2].count_nonzero() == 0
    assert law[0, 1::2].count_nonzero() == 20


def test_draws_are_those_of_tensors_to_the_last_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for sampling in LAWS:
        law = transform.target_distribution(logits(200, 777), sampling)
        numbers = torch.rand(200, generator=torch.Generator().manual_seed(2), dtype=torch.float64).tolist()
        numbers[:2] = 0.0, 1 - 2.0**-53
        assert transform.draw(law, numbers) == without(monkeypatch, lambda law=law, numbers=numbers: transform.draw(law, numbers))  # type: ignore[misc]
    assert transform.draw(torch.zeros(1, 5), [0.3]) == [transform.INVALID]


def test_draws_follow_the_law() -> None:
    """Negative control: numbers on a grid hit every token as often as its probability says, and no other law as well."""
    law = transform.target_distribution(logits(1, 7), Sampling(temperature=2.0))
    grid = [(at + 0.5) / 10_000 for at in range(10_000)]
    found = torch.bincount(torch.tensor(transform.draw(law.expand(len(grid), -1), grid)), minlength=7) / len(grid)
    assert float((found - law[0]).abs().max()) < 1e-3
    other = transform.target_distribution(logits(1, 7), Sampling(temperature=1.0))
    assert float((found - other[0]).abs().max()) > 1e-2


@pytest.mark.parametrize("count", [1, 3, 10, 64])
def test_the_likeliest_are_those_of_tensors(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.cat([transform.target_distribution(logits(4, 333), sampling) for sampling in LAWS])
    rows = torch.cat([rows, torch.randint(0, 3, (8, 333), generator=torch.Generator().manual_seed(3)).float()])
    laws = list(rows)
    assert transform.likeliest(laws, count) == without(monkeypatch, lambda: transform.likeliest(laws, count))
    assert transform.likeliest(laws, count)[5:6] == transform.likeliest(laws[5:6], count), "each by itself"


@pytest.mark.parametrize("chosen", [False, True])
def test_what_a_refused_draw_leaves_is_the_rule_on_whole_laws(chosen: bool) -> None:
    """The kernel against the rule that tests enumerate; negative control: another draft leaves something else."""
    others = 0
    generator = torch.Generator().manual_seed(4)
    for law in transform.target_distribution(logits(20, 333), Sampling(temperature=0.8, top_p=0.9)):
        ids = torch.cat([law.argmax()[None], torch.randperm(333, generator=generator)])
        ids = ids[(ids != ids[0]) | (torch.arange(334) == 0)][:6]  # the likeliest token, and five others
        q = None if chosen else Distribution(torch.rand(6, generator=generator, dtype=torch.float64), ids)
        token = int(ids[0])
        opening = Opening((law,), (q,), (False,))
        left, rule = opening.left(0, token), opening.rejected([token]).residual[0]
        assert left.dtype == torch.float64
        torch.testing.assert_close(left, rule, rtol=0, atol=1e-15)
        assert opening.offer([token]) == pytest.approx(opening.odds().offer([token]), rel=1e-13)
        other = Opening((law,), (Distribution(torch.ones(2), torch.tensor([token, int(law.topk(2).indices[1])])),), (False,))
        others += float((other.left(0, token) - left).abs().max()) > 1e-6
    assert others >= 15


def test_a_law_that_is_the_drafts_stays_when_a_draw_is_refused() -> None:
    law = torch.tensor([0.0, 0.5, 0.5, 0.0])
    for q in (Distribution(torch.tensor([1.0, 1.0]), torch.tensor([1, 2])), Distribution(torch.tensor([2.0, 3.0]), torch.tensor([2, 1]))):
        opening = Opening((law,), (q,), (False,))
        torch.testing.assert_close(opening.left(0, 1), opening.rejected([1]).residual[0], rtol=0, atol=1e-15)
    assert Opening((law,), (Distribution(torch.tensor([1.0, 1.0]), torch.tensor([1, 2])),), (False,)).left(0, 1).tolist() == law.tolist()


def test_draws_from_wide_rows_are_those_of_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = logits(50, 777).double().softmax(-1) * 3
    numbers = torch.rand(50, generator=torch.Generator().manual_seed(2), dtype=torch.float64).tolist()
    assert transform.draw(rows, numbers) == without(monkeypatch, lambda: transform.draw(rows, numbers))
    assert transform.draw(torch.full((1, 5), torch.nan, dtype=torch.float64), [0.3]) == [transform.INVALID]


def test_the_share_of_a_token_is_that_of_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    for law in 3 * logits(4, 333).abs():  # of any mass
        for token in (0, 7, 332):
            found = transform.share(law, token)
            assert found == pytest.approx(float(law[token].double() / law.double().sum()), rel=1e-14)
            assert found == pytest.approx(without(monkeypatch, lambda law=law, token=token: transform.share(law, token)), rel=1e-14)  # type: ignore[misc]


def test_rows_of_a_wider_tensor_are_read_right() -> None:
    wide = logits(6, 90)
    for sampling in LAWS:
        part = wide[::2, 10:50]
        assert torch.equal(transform.target_distribution(part, sampling), transform.target_distribution(part.clone(), sampling))
