from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.files import write_json
from pipeline.measurement import Measurement, load_measurement, measurement_path, summarise
from pipeline.policy import GiveUp
from pipeline.rollout import rollout
from pipeline.tasks import Task
from tests.fakes import FAKE_COUNT, FAKE_PIXELS, AssertingPolicy


def measured(task: Task) -> Measurement:
    policy = AssertingPolicy(task, {(2, 1): GiveUp("lost")})
    return summarise(task, rollout(task, policy, [0, 1, 2, 3]), "random", "7", {"numpy": "2"})


EXPECTED = Measurement(
    task="fake-count",
    policy="random",
    revision="7",
    versions={"numpy": "2"},
    seeds=[0, 1, 2, 3],
    returns=[1.0, 3.5, 1.5, 13.0],
    lengths=[1, 2, 1, 4],
    successes=[True, False, False, True],
    rejected=[None, None, "policy: lost", None],
)


def test_a_measurement_is_literally_every_episode() -> None:
    assert measured(FAKE_COUNT) == EXPECTED


def test_rejected_episodes_do_not_count_towards_the_returns() -> None:
    np.testing.assert_array_equal(EXPECTED.accepted_returns, [1.0, 3.5, 13.0])


def test_the_success_rate_counts_a_rejected_episode_as_a_failure() -> None:
    assert EXPECTED.success_rate == 0.5


def test_a_task_without_success_has_no_success_rate() -> None:
    measurement = measured(FAKE_PIXELS)
    assert measurement.successes is None
    assert measurement.success_rate is None


def test_a_measurement_comes_back_from_its_file(tmp_path: Path) -> None:
    path = measurement_path(tmp_path, "fake-count", "random")
    assert path == tmp_path / "experts" / "fake-count" / "random.json"
    assert load_measurement(tmp_path, "fake-count", "random") is None
    write_json(path, EXPECTED)
    assert load_measurement(tmp_path, "fake-count", "random") == EXPECTED
