from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experts.measure import ExpertsConfig, MeasureJob, measure, measure_experts
from pipeline.errors import JobsFailedError, UserError
from pipeline.files import read_json, write_json
from pipeline.measurement import load_measurement, measurement_path
from pipeline.tasks import Task, select_tasks
from tests.fakes import FAKE_COUNT, FAKE_GRID, CountingEnv

FIRST = 1_500_000_000


class WorthlessEnv(CountingEnv):
    """Every action earns NaN, so every episode is rejected."""

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float("nan"), terminated, truncated, info


def run_measure(out: Path, tasks: Sequence[Task], episodes: int) -> None:
    measure_experts(ExpertsConfig("*", out, episodes, workers=1, expert="random"), tasks)


@pytest.mark.usefixtures("one_worker")
def test_a_measurement_holds_every_episode_of_the_measuring_seeds(tmp_path: Path) -> None:
    run_measure(tmp_path, [FAKE_COUNT, FAKE_GRID], 4)
    found = load_measurement(tmp_path, "fake-count", "random")
    assert found is not None
    assert (found.task, found.policy, found.revision, list(found.versions)) == ("fake-count", "random", "1", ["numpy"])
    assert found.seeds == [FIRST, FIRST + 1, FIRST + 2, FIRST + 3]
    assert found.lengths == [1, 2, 3, 4]
    assert found.returns == [1.0, 1.25 + 2.25, 1.5 + 2.5 + 3.5, 1.75 + 2.75 + 3.75 + 4.75]
    assert found.successes == [True, False, False, True]
    assert found.rejected == [None] * 4
    assert measurement_path(tmp_path, "toy-grid", "random").exists()
    assert read_json(tmp_path / "experts" / "config.json")["episodes"] == 4


@pytest.mark.usefixtures("one_worker")
def test_what_is_measured_stays_until_more_is_asked_for(tmp_path: Path) -> None:
    path = measurement_path(tmp_path, "fake-count", "random")
    run_measure(tmp_path, [FAKE_COUNT], 3)
    before = path.stat()
    for fewer_or_equal in (3, 2):
        run_measure(tmp_path, [FAKE_COUNT], fewer_or_equal)
        assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    run_measure(tmp_path, [FAKE_COUNT], 5)
    assert read_json(path)["lengths"] == [1, 2, 3, 4, 6]


@pytest.mark.usefixtures("one_worker")
@pytest.mark.parametrize("change", [{"revision": "0"}, {"versions": {"numpy": "0.1"}}], ids=["revision", "versions"])
def test_another_revision_or_version_is_measured_anew(change: dict[str, Any], tmp_path: Path) -> None:
    path = measurement_path(tmp_path, "fake-count", "random")
    run_measure(tmp_path, [FAKE_COUNT], 2)
    before = read_json(path)
    write_json(path, {**before, **change})
    run_measure(tmp_path, [FAKE_COUNT], 2)
    assert read_json(path) == before


def test_the_expert_and_the_random_policy_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[tuple[str, str]] = []

    def note(function: Any, jobs: Sequence[MeasureJob], workers: int) -> list[Any]:
        wanted.extend((job.task.name, job.expert) for job in jobs)
        return []

    monkeypatch.setattr("experts.measure.run_jobs", note)
    measure_experts(ExpertsConfig("*", tmp_path), select_tasks("babyai-open,metaworld-reach"))
    assert wanted == [
        ("babyai-open", "bot"),
        ("babyai-open", "random"),
        ("metaworld-reach", "scripted"),
        ("metaworld-reach", "random"),
    ]


def test_the_bot_is_measured_better_than_random(tmp_path: Path) -> None:
    (task,) = select_tasks("babyai-go-to-local")
    bot = measure(MeasureJob(task, "bot", 10, tmp_path))
    random = measure(MeasureJob(task, "random", 10, tmp_path))
    assert bot.success_rate == 1.0
    assert random.accepted_returns.mean() < 0.6 < bot.accepted_returns.mean()


def test_no_episodes_or_no_workers_are_refused(tmp_path: Path) -> None:
    config = ExpertsConfig("*", tmp_path)
    for wrong in ({"episodes": 0}, {"workers": 0}):
        with pytest.raises(UserError, match="must be at least 1"):
            measure_experts(replace(config, **wrong), [FAKE_COUNT])


@pytest.mark.usefixtures("one_worker")
def test_a_task_whose_episodes_are_all_rejected_is_an_error_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(JobsFailedError, match="every episode of fake-worthless rejected: reward not finite"):
        run_measure(tmp_path, [replace(FAKE_COUNT, name="fake-worthless", factory=WorthlessEnv)], 2)
    assert load_measurement(tmp_path, "fake-worthless", "random") is None
