from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.envs.policy import GiveUp
from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task
from pipeline.files import write_json
from pipeline.run_layout import RunLayout
from pipeline.scoring.measurement import (
    Measurement,
    load_measurement,
    load_measurements,
    summarise,
)
from pipeline.seeds import seeds_of
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


@pytest.fixture
def written(tmp_path: Path) -> Measurement:
    """A valid measurement, in ``tmp_path/experts/fake-count/ppo-1``."""
    seeds = seeds_of("measure", 4)
    found = replace(EXPECTED, policy="ppo", revision="ppo-1", versions={"numpy": np.__version__}, seeds=seeds)
    write_json(tmp_path / "experts" / "fake-count" / "ppo-1" / "measurement.json", found)
    return found


def test_a_measurement_comes_back_from_its_file(tmp_path: Path, written: Measurement) -> None:
    folder = RunLayout(tmp_path).experts_of("fake-count") / "ppo-1"
    assert load_measurement(folder, FAKE_COUNT) == written
    assert load_measurement(folder.with_name("ppo-2"), FAKE_COUNT) is None
    assert load_measurements(tmp_path, FAKE_COUNT) == {"ppo-1": written}
    assert load_measurements(tmp_path, FAKE_PIXELS) == {}


@pytest.mark.parametrize(
    "change",
    [{"versions": {"numpy": "0.1"}}, {"revision": "ppo-2"}, {"task": "toy-grid"}, {"seeds": [0, 1, 2, 3]}],
    ids=["versions", "revision", "task", "seeds"],
)
def test_a_measurement_of_something_else_is_not_valid(
    tmp_path: Path, written: Measurement, change: dict[str, Any]
) -> None:
    folder = tmp_path / "experts" / "fake-count" / "ppo-1"
    write_json(folder / "measurement.json", replace(written, **change))
    assert load_measurement(folder, FAKE_COUNT) is None
    assert load_measurements(tmp_path, FAKE_COUNT) == {}


def test_a_folder_that_is_being_written_is_not_read(tmp_path: Path, written: Measurement) -> None:
    folder = tmp_path / "experts" / "fake-count" / "ppo-1"
    folder.rename(folder.with_name(".ppo-1.77.tmp"))
    assert load_measurements(tmp_path, FAKE_COUNT) == {}
