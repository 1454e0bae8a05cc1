from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experts.prepare import ExpertsConfig, prepare
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.measurement import Measurement
from pipeline.seeds import FIRST_SEED, seeds_of
from pipeline.versions import versions_of
from tests.fakes import FAKE_TASKS
from trainer.config import TrainConfig
from trainer.evaluate import (
    EvaluateConfig,
    TaskScore,
    domain_scores,
    evaluate,
    load_scores,
    scores_of,
)
from trainer.pretrained import checkpoint_folder
from trainer.train import train

RETURNS = {"random": [0.0, 1.0, 2.0], "scripted": [9.0, 11.0]}


def write_references(out: Path, returns: dict[str, list[float]] = RETURNS) -> None:
    for task in FAKE_TASKS:
        for kind, values in returns.items():
            count, revision = len(values), f"{kind}-1"
            measurement = Measurement(
                task.name, kind, revision, versions_of(task.packages), seeds_of("measure", count), values,
                [1] * count, [True] * count, [None] * count,
            )  # fmt: skip
            write_json(out / "experts" / task.name / revision / "measurement.json", measurement)


@pytest.fixture
def trained(make_config: Callable[..., TrainConfig], run_dir: Path) -> Path:
    train(make_config(), FAKE_TASKS)
    write_references(run_dir)
    return run_dir


@pytest.fixture
def config(trained: Path) -> EvaluateConfig:
    return EvaluateConfig(out=trained, episodes=4, workers=1, video_episodes=0)


@pytest.mark.usefixtures("one_worker")
def test_scores_are_the_returns_on_the_scale_of_random_and_expert(config: EvaluateConfig) -> None:
    scores = evaluate(config, FAKE_TASKS)
    assert [score.task for score in scores] == ["fake-count", "toy-grid"]
    for score in scores:
        measured = Measurement(**read_json(config.out / "evaluation" / f"{score.task}.json"))
        first = FIRST_SEED["evaluate"]
        assert measured.seeds == [first, first + 1, first + 2, first + 3]
        assert (score.random, score.expert) == (1.0, 10.0)
        assert score.scores == pytest.approx([(value - 1.0) / 9.0 for value in measured.returns])
        assert score.score is not None
        assert score.score.mean == pytest.approx(np.mean(score.scores))
        assert score.agent.mean == pytest.approx(np.mean(measured.returns))
    assert load_scores(config.out) == scores


@pytest.mark.usefixtures("one_worker")
def test_what_is_evaluated_stays_and_only_the_missing_task_is_played(config: EvaluateConfig) -> None:
    evaluate(config, FAKE_TASKS)
    directory = config.out / "evaluation"
    before = {path.name: path.stat().st_mtime_ns for path in directory.glob("*.json")}
    evaluate(config, FAKE_TASKS)
    assert {path.name: path.stat().st_mtime_ns for path in directory.glob("*.json")} == before
    content = (directory / "toy-grid.json").read_text()
    (directory / "toy-grid.json").unlink()
    evaluate(config, FAKE_TASKS)
    assert (directory / "fake-count.json").stat().st_mtime_ns == before["fake-count.json"]
    assert (directory / "toy-grid.json").read_text() == content


@pytest.mark.usefixtures("one_worker")
def test_evaluating_one_task_keeps_the_scores_of_the_others(config: EvaluateConfig) -> None:
    assert [score.task for score in evaluate(replace(config, task="toy-grid"), FAKE_TASKS)] == ["toy-grid"]
    both = evaluate(config, FAKE_TASKS)
    evaluate(replace(config, task="toy-grid", episodes=2), FAKE_TASKS)
    again = load_scores(config.out)
    assert [(score.task, score.num_episodes) for score in again] == [("fake-count", 4), ("toy-grid", 2)]
    assert again[0] == both[0]


@pytest.mark.usefixtures("one_worker")
def test_other_settings_are_evaluated_anew(config: EvaluateConfig) -> None:
    evaluate(config, FAKE_TASKS)
    hot = evaluate(replace(config, temperature=0.5), FAKE_TASKS)
    more = evaluate(replace(config, temperature=0.5, episodes=6), FAKE_TASKS)
    assert [score.num_episodes for score in hot] == [4, 4]
    assert [score.num_episodes for score in more] == [6, 6]


@pytest.mark.usefixtures("one_worker")
def test_a_task_whose_expert_is_not_better_than_random_is_not_scorable(config: EvaluateConfig) -> None:
    write_references(config.out, {"random": [5.0], "scripted": [5.0]})
    scores = evaluate(config, FAKE_TASKS)
    assert [(score.scores, score.score) for score in scores] == [(None, None)] * 2
    assert domain_scores(scores) == {}
    assert load_scores(config.out) == scores


@pytest.mark.usefixtures("one_worker")
def test_scores_of_a_checkpoint_are_those_it_played_itself(config: EvaluateConfig, tmp_path: Path) -> None:
    assert scores_of(config.out, checkpoint_folder(config.out, None)) == []
    scores = evaluate(config, FAKE_TASKS)
    assert scores_of(config.out, checkpoint_folder(config.out, None)) == scores
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"other weights")
    assert scores_of(config.out, other) == []


@pytest.mark.usefixtures("one_worker")
def test_how_far_it_looked_back_is_part_of_what_was_played(config: EvaluateConfig) -> None:
    evaluate(replace(config, task="toy-grid", contexts={"toy": 2}), FAKE_TASKS)
    path = config.out / "evaluation" / "toy-grid.json"
    assert read_json(path)["revision"].endswith(" at temperature 1, looking back toy 2")
    evaluate(replace(config, task="toy-grid"), FAKE_TASKS)
    assert read_json(path)["revision"].endswith(" at temperature 1")


def test_looking_back_further_than_there_are_positions_is_refused_before_anything_is_played(
    config: EvaluateConfig,
) -> None:
    with pytest.raises(UserError, match="--contexts: 5 time steps in toy-grid take 10 positions; the checkpoint has 8"):
        evaluate(replace(config, contexts={"toy": 5}), FAKE_TASKS)
    with pytest.raises(UserError, match="each must be at least 1"):
        replace(config, contexts={"toy": 0})
    assert not (config.out / "evaluation").exists()


def test_domains_are_means_over_their_tasks(config: EvaluateConfig) -> None:
    write_json(config.out / "x.json", {})
    base = TaskScore(
        "a", "d", 0, 1, "bot", agent=None, scores=[0.0, 1.0], score=None, success_rate=None,  # type: ignore[arg-type]
        num_episodes=2, num_reference_episodes=1, jat_expert=None, score_on_jat_scale=None, jat_score=None,
    )  # fmt: skip
    means = domain_scores([base, replace(base, task="b", scores=[1.0] * 50), replace(base, task="c", domain="e")])
    assert (means["d"].mean, means["e"].mean) == (0.75, 0.5)
    assert (means["d"].low, means["d"].high) == (0.5, 1.0)


def test_without_training_the_error_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `make train`"):
        evaluate(EvaluateConfig(out=tmp_path), FAKE_TASKS)


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a checkpoint"):
        evaluate(EvaluateConfig(out=tmp_path, checkpoint=tmp_path), FAKE_TASKS)


def test_missing_references_are_found_before_anything_is_played(config: EvaluateConfig) -> None:
    (config.out / "experts" / "toy-grid" / "random-1" / "measurement.json").unlink()
    with pytest.raises(UserError, match="make experts TASK=toy-grid"):
        evaluate(config, FAKE_TASKS)
    assert not (config.out / "evaluation" / "fake-count.json").exists()


@pytest.mark.parametrize("changes", [{"episodes": 0}, {"temperature": -1.0}, {"workers": 0}])
def test_impossible_settings_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(changes))} is"):
        EvaluateConfig(**changes)  # type: ignore[arg-type]


def test_references_of_other_package_versions_are_none(config: EvaluateConfig) -> None:
    path = config.out / "experts" / "fake-count" / "scripted-1" / "measurement.json"
    write_json(path, {**read_json(path), "versions": {"numpy": "0.1"}})
    with pytest.raises(UserError, match=r"with the installed packages .*make experts TASK=fake-count"):
        evaluate(config, FAKE_TASKS)


@pytest.mark.parametrize(
    ("collected_by", "expected"),
    [
        ("ppo-1", ("ppo", 4.0)),  # although the scripted one is better
        ("ppo-gone", ("scripted", 10.0)),
        ("0.5*ppo-1+0.5*scripted-1", ("scripted", 10.0)),
        ("random-1", ("scripted", 10.0)),
    ],
)
@pytest.mark.usefixtures("one_worker")
def test_the_reference_is_the_expert_that_collected_the_dataset_or_else_the_best(
    collected_by: str, expected: tuple[str, float], config: EvaluateConfig
) -> None:
    write_references(config.out, {"ppo": [3.0, 5.0]})
    path = config.out / "dataset" / "manifest.json"
    manifest = read_json(path)
    for task in manifest["tasks"].values():
        task["expert_revision"] = collected_by
    write_json(path, manifest)
    (score,) = evaluate(replace(config, task="toy-grid", episodes=1), FAKE_TASKS)
    assert (score.expert_kind, score.expert) == expected


@pytest.mark.usefixtures("one_worker", "nothing_embedded")
def test_measurements_of_the_experts_stage_are_what_evaluation_reads(trained: Path) -> None:
    for task in FAKE_TASKS:
        (trained / "experts" / task.name / "random-1" / "measurement.json").unlink()
    prepare(ExpertsConfig(task="*", out=trained, episodes=3, workers=1, expert="random"), FAKE_TASKS)
    scores = evaluate(EvaluateConfig(out=trained, episodes=2, workers=1, video_episodes=0), FAKE_TASKS)
    assert all(score.expert_kind == "scripted" for score in scores)
