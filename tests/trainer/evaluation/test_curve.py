from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.files import read_json
from tests.fakes import FAKE_TASKS
from tests.trainer.conftest import write_references
from trainer.checkpoint import load_progress
from trainer.config import BaseModelConfig, ModelConfig
from trainer.evaluation.curve import CurveConfig, choose_checkpoints, evaluate_checkpoints, training_flops
from trainer.evaluation.results import load_curve, load_scores

STEPS = ["step-00000004", "step-00000008", "step-00000012"]


@pytest.fixture
def config(trained: Path) -> CurveConfig:
    return CurveConfig(out=trained, episodes=3, workers=1)


def test_every_checkpoint_is_a_point_with_its_own_scores_and_cost(config: CurveConfig) -> None:
    curve = evaluate_checkpoints(config, FAKE_TASKS, is_worker=True)
    assert load_curve(config.out) == curve
    assert (curve.tasks, curve.episodes, curve.settings) == (["fake-count", "toy-grid"], 3, "at temperature 1")
    assert [(point.name, point.step) for point in curve.points] == list(zip(STEPS, (4, 8, 12), strict=True))
    for point in curve.points:
        progress = load_progress(config.out / "train" / "checkpoints" / point.name)
        assert (point.timesteps, point.seconds) == (progress.timesteps, progress.seconds)
        # Two blocks of width 50, two positions per time step: 6 * (12 * 2 * 50 * 50) * 2.
        assert point.flops == 720_000 * progress.padded_timesteps > 0
        scores = {score.domain: score for score in load_scores(config.out, point.name)}
        assert set(point.domains) == {"fake", "toy", "overall"}
        assert scores["toy"].score is not None
        assert point.domains["toy"].mean.mean == pytest.approx(scores["toy"].score.mean)
        assert (point.domains["toy"].num_episodes, point.domains["overall"].num_tasks) == (3, 2)
    assert (config.out / "evaluation" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert not (config.out / "evaluation" / "scores.json").exists()


@pytest.mark.slow
def test_what_is_played_stays_and_a_checkpoint_that_is_gone_stays_in_the_curve(config: CurveConfig) -> None:
    before = evaluate_checkpoints(config, FAKE_TASKS, is_worker=True)
    results = config.out / "evaluation" / STEPS[1] / "toy-grid.json"
    written = results.stat().st_mtime_ns
    shutil.rmtree(config.out / "train" / "checkpoints" / STEPS[0])
    assert evaluate_checkpoints(config, FAKE_TASKS, is_worker=True) == before
    assert results.stat().st_mtime_ns == written
    other = evaluate_checkpoints(replace(config, task="toy-grid"), FAKE_TASKS, is_worker=True)
    assert [point.name for point in other.points] == STEPS[1:]


def test_checkpoints_are_chosen_by_step_name_and_stride(config: CurveConfig) -> None:
    def names(**changes: object) -> list[str]:
        return [path.name for path in choose_checkpoints(replace(config, **changes))]  # type: ignore[arg-type]

    assert names() == STEPS
    assert names(every=2) == [STEPS[0], STEPS[2]]
    assert names(checkpoints="12, step-00000004") == [STEPS[0], STEPS[2]]
    with pytest.raises(UserError, match=r"no checkpoint step-00000005 in .*there are: step-00000004, step-0"):
        names(checkpoints="5")


def test_without_checkpoints_the_error_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `jat train`"):
        evaluate_checkpoints(CurveConfig(out=tmp_path), FAKE_TASKS)
    with pytest.raises(UserError, match="--episodes is 0"):
        CurveConfig(episodes=0)


@pytest.mark.slow
def test_results_of_another_training_are_not_taken_for_this_one(config: CurveConfig) -> None:
    evaluate_checkpoints(config, FAKE_TASKS, is_worker=True)
    first, second = (config.out / "train" / "checkpoints" / name for name in STEPS[:2])
    shutil.copyfile(second / "model.safetensors", first / "model.safetensors")
    with pytest.raises(UserError, match="step-00000004 holds results of 2 tasks played otherwise"):
        evaluate_checkpoints(config, FAKE_TASKS, is_worker=True)
    evaluate_checkpoints(replace(config, replace=True), FAKE_TASKS, is_worker=True)


def test_where_no_task_is_scorable_the_curve_is_empty(config: CurveConfig) -> None:
    write_references(config.out, {"random": [5.0], "scripted": [5.0]})
    curve = evaluate_checkpoints(replace(config, checkpoints="12"), FAKE_TASKS, is_worker=True)
    assert (curve.tasks, [point.domains for point in curve.points]) == ([], [{}])
    assert read_json(config.out / "evaluation" / "curve.json")["points"][0]["step"] == 12


def test_compute_is_six_per_weight_of_the_blocks_and_position() -> None:
    assert training_flops(ModelConfig(), 1) == 6 * 12 * 12 * 768**2 * 2
    assert training_flops(BaseModelConfig(), 10) == 6 * 12 * 4 * 128**2 * 10
