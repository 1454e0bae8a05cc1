from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.run_layout import RunLayout
from pipeline.scoring.measurement import Measurement
from pipeline.scoring.scores import Interval
from pipeline.seeds import seeds_of
from trainer.evaluation.results import Settings, TaskScore, load_evaluation, load_scores, write_evaluation
from trainer.evaluation.scoring import evaluation_of, score_task

SETTINGS = Settings("train/checkpoints/step-1", "abc", 1, 100, 1.0, {})


def measured(task: str, policy: str, returns: list[float], rejected: list[str | None] | None = None) -> Measurement:
    count = len(returns)
    return Measurement(
        task, policy, f"{policy}-1", {}, seeds_of("evaluate", count), returns, [1] * count, [r > 0 for r in returns],
        rejected or [None] * count,
    )  # fmt: skip


def scored(task: str, returns: list[float], random: float = 0.0, expert: float = 10.0) -> TaskScore:
    references = measured(task, "random", [random]), measured(task, "scripted", [expert, expert])
    return score_task(task.split("-")[0], measured(task, "agent", returns), *references)


def test_a_game_is_scored_on_all_three_scales() -> None:
    # JAT published for alien: random 227.8, human 7127.7, expert 16912.5, its agent 1518.7.
    score = scored("atari-alien", [227.8, 16912.5], expert=20000.0)
    assert score.scores == pytest.approx([0.01139, 0.845625])
    assert score.jat_scale_scores == pytest.approx([0.0, 1.0])
    assert score.human_scores == pytest.approx([0.0, 16684.7 / 6899.9])
    assert score.score_on_jat_scale == pytest.approx(0.5)
    assert score.jat_score == pytest.approx(1290.9 / 16684.7)
    assert score.jat_human_score == pytest.approx(1290.9 / 6899.9)
    assert (score.jat_random, score.jat_return, score.human, score.jat_expert) == (227.8, 1518.7, 7127.7, 16912.5)
    assert score.num_reference_episodes == 1


def test_other_domains_have_no_human_scale() -> None:
    score = scored("mujoco-ant", [1.0, 2.0])
    assert (score.human, score.human_scores, score.human_score, score.jat_human_score) == (None,) * 4
    assert score.jat_scale_scores is not None


def test_a_game_whose_published_expert_is_not_better_than_random_has_no_score_on_that_scale() -> None:
    # JAT's own code gives 1.0 for bowling and venture.
    for task in ("atari-bowling", "atari-venture"):
        score = scored(task, [5.0, 6.0])
        assert (score.jat_scale_scores, score.score_on_jat_scale, score.jat_score) == (None, None, None)
        assert score.scores == [0.5, 0.6]


def test_episodes_that_do_not_count_are_counted_by_reason() -> None:
    references = measured("mujoco-ant", "random", [0.0]), measured("mujoco-ant", "scripted", [10.0])
    agent = measured("mujoco-ant", "agent", [0.0, 4.0, 0.0, 0.0], ["broke", None, "broke", "reward not finite"])
    score = score_task("mujoco", agent, *references)
    assert (score.num_episodes, score.returns, score.scores) == (1, [4.0], [0.4])
    assert score.rejected == {"broke": 2, "reward not finite": 1}


def test_a_task_that_cannot_be_scored_is_listed_and_in_no_aggregate() -> None:
    tasks = [scored("mujoco-ant", [5.0]), scored("mujoco-hopper", [7.0], expert=0.0), scored("babyai-go-to", [2.0])]
    evaluation = evaluation_of(SETTINGS, tasks)
    mujoco, babyai = evaluation.domains
    assert (mujoco.domain, mujoco.num_tasks, mujoco.not_scorable) == ("mujoco", 2, ["mujoco-hopper"])
    assert mujoco.expert is not None
    assert (mujoco.expert.num_tasks, mujoco.expert.iqm.mean) == (1, 0.5)
    assert evaluation.overall.not_scorable == ["mujoco-hopper"]
    assert evaluation.overall.expert is not None
    assert evaluation.overall.expert.mean.mean == pytest.approx(np.mean([0.5, 0.2]))
    assert babyai.success_rate == 1.0


def test_where_nothing_can_be_scored_there_is_no_number() -> None:
    evaluation = evaluation_of(SETTINGS, [scored("other-task", [7.0], expert=0.0)])
    assert (evaluation.overall.expert, evaluation.overall.jat_scale) == (None, None)
    assert evaluation.domains[0].jat_mean is None


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    evaluation = evaluation_of(SETTINGS, [scored("atari-alien", [5.0, 600.0]), scored("mujoco-ant", [7.0], expert=0.0)])
    write_evaluation(tmp_path, "", evaluation)
    assert load_evaluation(tmp_path) == evaluation
    assert load_scores(tmp_path) == evaluation.tasks


def test_a_list_of_tasks_of_before_is_read_and_other_versions_are_refused(tmp_path: Path) -> None:
    row = {
        "task": "a-b", "domain": "a", "random": 0.0, "expert": 1.0, "expert_kind": "bot",
        "agent": {"mean": 1.0, "low": 0.0, "high": 2.0}, "scores": [1.0], "score": None, "success_rate": None,
        "num_episodes": 1, "num_reference_episodes": 1, "jat_expert": None, "score_on_jat_scale": None,
        "jat_score": None,
    }  # fmt: skip
    write_json(RunLayout(tmp_path).scores(), [row])
    assert load_scores(tmp_path)[0].agent == Interval(1.0, 0.0, 2.0)
    with pytest.raises(UserError, match="another version"):
        load_evaluation(tmp_path)
