"""Training learns, follows its schedule, and continues after an interruption as if there had been none."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from paceline.core.errors import CheckpointError
from paceline.zoo.courses import LanguageCourse
from paceline.zoo.network import embedding_of, new_network
from paceline.zoo.packing import Ids, PackedDocuments
from paceline.zoo.recipes import Recipe
from paceline.zoo.training import CHECKPOINT, METRICS, Progress, Trainer

CPU = torch.device("cpu")


def trainer(recipe: Recipe, documents: list[Ids], folder: Path, teacher: nn.Module | None = None, **options: object) -> Trainer:
    course = LanguageCourse(recipe, PackedDocuments(documents, recipe.seed), CPU, teacher)
    return Trainer(recipe, course, folder, CPU, **options)  # type: ignore[arg-type]


def weights(run: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def identical(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def uninterrupted(micro: Recipe, documents: list[Ids], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    run = trainer(micro, documents, tmp_path_factory.mktemp("whole"))
    assert run.run() == Progress(step=8, tokens=512, seconds=run.progress.seconds, ended_by="tokens")
    return weights(run)


@pytest.mark.parametrize("stop_after", [1, 3, 4, 7])  # 4 is where the rows change their length
def test_resumed_run_equals_uninterrupted_run(
    micro: Recipe, documents: list[Ids], tmp_path: Path, uninterrupted: dict[str, Tensor], stop_after: int
) -> None:
    trainer(micro, documents, tmp_path).run(max_steps=stop_after)
    torch.manual_seed(12345)  # whatever happened in between must not matter
    second = trainer(micro, documents, tmp_path)
    second.run()
    assert second.progress.step == 8
    assert identical(weights(second), uninterrupted)


@pytest.mark.parametrize("lost", ["optimizers", "tokens"])
def test_a_checkpoint_that_loses_state_is_noticed(
    micro: Recipe, documents: list[Ids], tmp_path: Path, uninterrupted: dict[str, Tensor], lost: str
) -> None:
    """Negative control: without momenta, or without the data position, the comparison above must fail."""
    first = trainer(micro, documents, tmp_path)
    first.run(max_steps=3)
    path = tmp_path / CHECKPOINT
    state = torch.load(path, weights_only=True)
    if lost == "optimizers":
        state["optimizers"] = [optimizer.state_dict() for optimizer in trainer(micro, documents, tmp_path).optimizers]
    else:
        state["progress"]["tokens"] = 0
    torch.save(state, path)
    second = trainer(micro, documents, tmp_path)
    second.run(max_steps=5)
    assert not identical(weights(second), uninterrupted)


def test_interrupted_run_leaves_a_checkpoint(micro: Recipe, documents: list[Ids], tmp_path: Path) -> None:
    def interrupt(share: float, metrics: dict[str, float]) -> None:
        if share > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(micro, documents, tmp_path, on_step=interrupt).run()
    again = trainer(micro, documents, tmp_path)
    again.load()
    assert again.progress.step == 3
    assert not list(tmp_path.glob("*.partial"))


def test_killed_run_logs_every_step_once(micro: Recipe, documents: list[Ids], tmp_path: Path) -> None:
    run = trainer(micro, documents, tmp_path)
    run.run(max_steps=3)
    checkpoint = (tmp_path / CHECKPOINT).read_bytes()
    run.run(max_steps=2)
    (tmp_path / CHECKPOINT).write_bytes(checkpoint)  # as if steps 4 and 5 had not been saved,
    with (tmp_path / METRICS).open("a") as log:
        log.write('{"step": 6, "tok')  # and the kill had come while logging the sixth
    trainer(micro, documents, tmp_path).run()
    records = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 9))


def test_checkpoint_of_another_recipe_or_corpus_is_refused(micro: Recipe, documents: list[Ids], tmp_path: Path) -> None:
    trainer(micro, documents, tmp_path).run(max_steps=1)
    for other, text in ((replace(micro, muon_lr=1.0), documents), (micro, documents[:-1])):
        with pytest.raises(CheckpointError, match="another recipe or corpus"):
            trainer(other, text, tmp_path).run()
        trainer(other, text, tmp_path / "fresh").run(resume=False, max_steps=1)


def test_learning_rate_warms_up_and_reaches_zero(micro: Recipe, documents: list[Ids], tmp_path: Path) -> None:
    trainer(micro, documents, tmp_path).run()
    records = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    scales = [record["lr_scale"] for record in records]
    assert scales == pytest.approx([min(1.0, (n + 1) / 2) * (1 - n / 8) for n in range(8)])
    assert [record["context"] for record in records] == [16] * 4 + [32] * 4


def test_schedule_is_whichever_of_tokens_and_time_is_further(micro: Recipe) -> None:
    progress = Progress(tokens=128, seconds=30.0)
    assert progress.share(micro, None) == 0.25
    assert progress.share(micro, 60.0) == 0.5
    assert progress.share(micro, 1200.0) == 0.25
    assert Progress(tokens=10_000).share(micro, None) == 1.0


def test_time_limit_ends_a_run(micro: Recipe, documents: list[Ids], tmp_path: Path) -> None:
    reached = trainer(replace(micro, tokens=10**9), documents, tmp_path, limit_seconds=0.2).run()
    assert reached.ended_by == "time"
    assert reached.tokens < 10**9


def test_fingerprints_of_language_models_are_what_they_were(micro: Recipe, documents: list[Ids], tmp_path: Path) -> None:
    """Checkpoints written before there were other kinds of models must still be continued."""
    fields = {key: value for key, value in asdict(micro).items() if key != "description"}
    tokens = sum(map(len, documents))
    assert trainer(micro, documents, tmp_path).fingerprint() == json.dumps([fields, tokens, micro.seed], sort_keys=True, default=dict)


def test_only_hidden_matrices_go_to_muon(micro: Recipe, documents: list[Ids], tmp_path: Path) -> None:
    run = trainer(micro, documents, tmp_path)
    muon, adamw = run.optimizers
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    assert {names[id(p)] for group in adamw.param_groups for p in group["params"]} >= {"model.embed_tokens.weight", "model.norm.weight"}
    assert all("proj" in names[id(p)] for group in muon.param_groups for p in group["params"])


def test_training_learns(micro: Recipe, documents: list[Ids], tmp_path: Path) -> None:
    trainer(replace(micro, tokens=64 * 60), documents, tmp_path).run()
    losses = [json.loads(line)["cross_entropy"] for line in (tmp_path / METRICS).read_text().splitlines()]
    assert losses[0] > 5.5  # ln 400 = 5.99: knows nothing
    assert losses[-1] < 0.7 * losses[0]


def divergence(teacher: nn.Module, student: nn.Module, rows: Tensor) -> float:
    with torch.no_grad():
        wanted, found = (torch.log_softmax(network(input_ids=rows).logits, -1) for network in (teacher, student.eval()))
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


def test_distillation_pulls_towards_the_teacher(micro: Recipe, documents: list[Ids], tmp_path: Path) -> None:
    teacher = new_network(micro.shape, seed=7).eval().requires_grad_(False)
    with torch.no_grad():
        embedding_of(teacher).mul_(20.0)  # a teacher with opinions, though not about Python
    rows = PackedDocuments(documents, 0).batch(0, 8, 16)[:, :-1]
    reached = {}
    for weight in (0.0, 1.0):  # the first is the control: same steps, same start, teacher not listened to
        student = replace(micro, teacher="pocket-code", distil_weight=weight, tokens=64 * 60)
        run = trainer(student, documents, tmp_path / str(weight), teacher=teacher)
        run.run()
        reached[weight] = divergence(teacher, run.model, rows)
    assert reached[1.0] < 0.8 * reached[0.0]


def test_the_teacher_is_asked_only_late(micro: Recipe, documents: list[Ids], tmp_path: Path) -> None:
    teacher = new_network(micro.shape, seed=7).eval().requires_grad_(False)
    trainer(replace(micro, teacher="pocket-code", distil_from=0.5), documents, tmp_path, teacher=teacher).run()
    records = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [record["loss"] == record["cross_entropy"] for record in records] == [True] * 4 + [False] * 4


def test_a_missing_teacher_is_named(micro: Recipe, documents: list[Ids], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="distilled from pocket-code, which is not built"):
        trainer(replace(micro, teacher="pocket-code"), documents, tmp_path)
