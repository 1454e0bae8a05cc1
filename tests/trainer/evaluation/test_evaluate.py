from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experts.prepare import ExpertsConfig, prepare
from pipeline.envs.task import Task
from pipeline.errors import JobsFailedError, UserError
from pipeline.files import read_json, write_json
from pipeline.scoring.measurement import Measurement
from pipeline.seeds import FIRST_SEED, seeds_of
from tests.fakes import FAKE_COUNT, FAKE_GRID, FAKE_TASKS, CountingEnv
from tests.trainer.conftest import write_references
from trainer.evaluation.evaluate import EvaluateConfig, plan
from trainer.evaluation.evaluate import evaluate as evaluate_with_workers
from trainer.evaluation.playing import lockstep_of
from trainer.evaluation.results import TaskScore, find_evaluation, load_evaluation, load_measurement_of, load_scores
from trainer.pretrained.folders import checkpoint_folder


def evaluate(config: EvaluateConfig, tasks: Sequence[Task]) -> list[TaskScore]:
    """Without workers, which take seconds to start."""
    return evaluate_with_workers(config, tasks, is_worker=True)


class BreakingEnv(CountingEnv):
    """Breaks at the fifth seed of evaluation."""

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if self.seed == FIRST_SEED["evaluate"] + 4:
            raise RuntimeError("the simulator broke")
        return super().step(action)


def make_breaking(task: Task) -> BreakingEnv:
    return BreakingEnv(task)


class BrokenEnv(CountingEnv):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], Any]:
        raise RuntimeError("no such game")


def make_broken(task: Task) -> BrokenEnv:
    return BrokenEnv(task)


@pytest.fixture
def config(trained: Path) -> EvaluateConfig:
    return EvaluateConfig(out=trained, episodes=4, workers=1, video_episodes=0)


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


@pytest.mark.parametrize("wanted", [False, True])
def test_the_libraries_own_environments_are_played_if_wanted(config: EvaluateConfig, wanted: bool) -> None:
    jobs = plan(replace(config, reference_envs=wanted), FAKE_TASKS).jobs
    assert sorted(task.name for job in jobs for task in job.tasks) == ["fake-count", "toy-grid"]
    assert {task.is_reference for job in jobs for task in job.tasks} == {wanted}


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


def test_evaluating_one_task_keeps_the_scores_of_the_others(config: EvaluateConfig) -> None:
    assert [score.task for score in evaluate(replace(config, task="toy-grid"), FAKE_TASKS)] == ["toy-grid"]
    both = evaluate(config, FAKE_TASKS)
    evaluate(replace(config, task="toy-grid", episodes=6), FAKE_TASKS)
    again = load_scores(config.out)
    assert [(score.task, score.num_episodes) for score in again] == [("fake-count", 4), ("toy-grid", 6)]
    assert again[0] == both[0]


def test_more_episodes_play_only_the_missing_ones_and_fewer_lose_none(config: EvaluateConfig) -> None:
    evaluate(replace(config, task="toy-grid", episodes=2), FAKE_TASKS)
    path = config.out / "evaluation" / "toy-grid.json"
    before = read_json(path)
    write_json(path, {**before, "returns": [100.0, 200.0]})  # would be lost if these were played again
    evaluate(replace(config, task="toy-grid", episodes=5), FAKE_TASKS)
    after = load_measurement_of(config.out, "toy-grid")
    assert after is not None
    assert after.returns[:2] == [100.0, 200.0]
    assert after.seeds == seeds_of("evaluate", 5)
    assert [len(values) for values in (after.returns, after.lengths, after.successes or [], after.rejected)] == [5] * 4
    (score,) = evaluate(replace(config, task="toy-grid", episodes=3), FAKE_TASKS)
    assert score.num_episodes == 5


def test_what_was_played_in_two_parts_is_what_is_played_at_once(config: EvaluateConfig) -> None:
    evaluate(replace(config, episodes=3), FAKE_TASKS)
    in_parts = evaluate(replace(config, episodes=7), FAKE_TASKS)
    at_once = evaluate(replace(config, episodes=7, name="again"), FAKE_TASKS)
    assert in_parts == at_once
    assert (config.out / "evaluation" / "again" / "scores.json").exists()


def test_results_of_other_settings_are_neither_mixed_nor_lost(config: EvaluateConfig) -> None:
    evaluate(config, FAKE_TASKS)
    path = config.out / "evaluation" / "toy-grid.json"
    content = path.read_text()
    cold = replace(config, temperature=0.0, task="toy-grid")
    with pytest.raises(UserError, match=r"results of 2 tasks .* at temperature 1.*; now .* at temperature 0.*--name"):
        evaluate(cold, FAKE_TASKS)
    assert path.read_text() == content
    evaluate(replace(cold, name="greedy"), FAKE_TASKS)
    assert path.read_text() == content
    assert load_evaluation(config.out, "greedy").settings.temperature == 0.0
    evaluate(replace(cold, replace=True), FAKE_TASKS)
    assert [score.task for score in load_scores(config.out)] == ["toy-grid"]
    assert load_evaluation(config.out).settings.revision.endswith("at temperature 0")


@pytest.mark.slow
def test_results_of_another_checkpoint_are_named_before_anything_is_played(config: EvaluateConfig) -> None:
    evaluate(config, FAKE_TASKS)
    first = min((config.out / "train" / "checkpoints").iterdir())
    with pytest.raises(UserError, match=r"evaluation holds results of 2 tasks played otherwise.*--replace"):
        evaluate(replace(config, checkpoint=first), FAKE_TASKS)
    assert load_evaluation(config.out).settings.step == 12
    evaluate(replace(config, checkpoint=first, name="early"), FAKE_TASKS)
    assert load_evaluation(config.out, "early").settings.step < 12


def test_results_of_other_packages_are_not_taken_for_ours(config: EvaluateConfig) -> None:
    evaluate(config, FAKE_TASKS)
    path = config.out / "evaluation" / "toy-grid.json"
    write_json(path, {**read_json(path), "versions": {"numpy": "0.1"}})
    with pytest.raises(UserError, match=r"toy-grid: weights .*, numpy 0\.1; now"):
        evaluate(config, FAKE_TASKS)


def test_an_environment_that_breaks_loses_its_episode_with_the_reason(config: EvaluateConfig) -> None:
    breaking = replace(FAKE_COUNT, factory=make_breaking)
    (score,) = evaluate(replace(config, task="fake-count", episodes=5), (breaking, FAKE_GRID))
    assert (score.num_episodes, len(score.returns)) == (4, 4)
    assert score.rejected == {"environment: RuntimeError: the simulator broke": 1}


def test_a_task_of_which_no_episode_counts_fails_and_the_others_are_scored(config: EvaluateConfig) -> None:
    broken = replace(FAKE_COUNT, factory=make_broken)
    with pytest.raises(JobsFailedError, match=r"no episode of 1 task counts.*fake-count: environment"):
        evaluate(config, (broken, FAKE_GRID))
    assert [score.task for score in load_scores(config.out)] == ["toy-grid"]


def test_the_last_round_is_about_as_full_as_the_others() -> None:
    assert [lockstep_of(count) for count in (1, 20, 32, 33, 100)] == [1, 20, 32, 17, 25]


def test_a_task_it_was_not_trained_on_is_named(config: EvaluateConfig) -> None:
    tasks = (*FAKE_TASKS, replace(FAKE_COUNT, name="fake-other"))
    with pytest.raises(UserError, match="was not trained on fake-other, only on: fake-count, toy-grid"):
        evaluate(replace(config, task="toy-grid,fake-other"), tasks)
    with pytest.raises(UserError, match="fake-nothing"):
        evaluate(replace(config, task="fake-nothing"), tasks)


def test_a_task_whose_expert_is_not_better_than_random_is_not_scorable(config: EvaluateConfig) -> None:
    write_references(config.out, {"random": [5.0], "scripted": [5.0]})
    scores = evaluate(config, FAKE_TASKS)
    assert [(score.scores, score.score) for score in scores] == [(None, None)] * 2
    assert load_evaluation(config.out).overall.not_scorable == ["fake-count", "toy-grid"]
    assert load_evaluation(config.out).overall.expert is None
    assert load_scores(config.out) == scores


@pytest.mark.slow
def test_the_evaluation_of_a_checkpoint_is_found_under_whatever_name(config: EvaluateConfig, tmp_path: Path) -> None:
    last = checkpoint_folder(config.out, None)
    first = min((config.out / "train" / "checkpoints").iterdir())
    assert find_evaluation(config.out, last) is None
    evaluate(config, FAKE_TASKS)
    evaluate(replace(config, checkpoint=first, name="early"), FAKE_TASKS)
    assert find_evaluation(config.out, last) == ("", load_evaluation(config.out))
    assert find_evaluation(config.out, first) == ("early", load_evaluation(config.out, "early"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"other weights")
    assert find_evaluation(config.out, other) is None


def test_how_far_it_looked_back_is_part_of_what_was_played(config: EvaluateConfig) -> None:
    evaluate(replace(config, task="toy-grid", contexts={"toy": 2}), FAKE_TASKS)
    path = config.out / "evaluation" / "toy-grid.json"
    assert read_json(path)["revision"].endswith(" at temperature 1, looking back toy 2")
    evaluate(replace(config, task="toy-grid", replace=True), FAKE_TASKS)
    assert read_json(path)["revision"].endswith(" at temperature 1")


def test_looking_back_further_than_there_are_positions_is_refused_before_anything_is_played(
    config: EvaluateConfig,
) -> None:
    with pytest.raises(UserError, match="--contexts: 5 time steps in toy-grid take 10 positions; the checkpoint has 8"):
        evaluate(replace(config, contexts={"toy": 5}), FAKE_TASKS)
    with pytest.raises(UserError, match="each must be at least 1"):
        replace(config, contexts={"toy": 0})
    assert not (config.out / "evaluation").exists()


def test_without_training_the_error_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `jat train`"):
        evaluate(EvaluateConfig(out=tmp_path), FAKE_TASKS)


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a checkpoint"):
        evaluate(EvaluateConfig(out=tmp_path, checkpoint=tmp_path), FAKE_TASKS)


def test_missing_references_are_found_before_anything_is_played(config: EvaluateConfig) -> None:
    (config.out / "experts" / "toy-grid" / "random-1" / "measurement.json").unlink()
    with pytest.raises(UserError, match="jat experts --task toy-grid"):
        evaluate(config, FAKE_TASKS)
    assert not (config.out / "evaluation" / "fake-count.json").exists()


@pytest.mark.parametrize("changes", [{"episodes": 0}, {"temperature": -1.0}, {"workers": 0}])
def test_impossible_settings_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(changes))} is"):
        EvaluateConfig(**changes)  # type: ignore[arg-type]


def test_references_of_other_package_versions_are_none(config: EvaluateConfig) -> None:
    path = config.out / "experts" / "fake-count" / "scripted-1" / "measurement.json"
    write_json(path, {**read_json(path), "versions": {"numpy": "0.1"}})
    with pytest.raises(UserError, match=r"with the installed packages .*jat experts --task fake-count"):
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


@pytest.mark.usefixtures("one_worker")
def test_workers_play_what_one_process_plays(config: EvaluateConfig) -> None:
    assert evaluate_with_workers(config, FAKE_TASKS) == evaluate(replace(config, name="here"), FAKE_TASKS)


@pytest.mark.usefixtures("one_worker", "nothing_embedded")
def test_measurements_of_the_experts_stage_are_what_evaluation_reads(trained: Path) -> None:
    for task in FAKE_TASKS:
        (trained / "experts" / task.name / "random-1" / "measurement.json").unlink()
    prepare(ExpertsConfig(task="*", out=trained, episodes=3, workers=1, expert="random"), FAKE_TASKS)
    scores = evaluate(EvaluateConfig(out=trained, episodes=2, workers=1, video_episodes=0), FAKE_TASKS)
    assert all(score.expert_kind == "scripted" for score in scores)
