from __future__ import annotations

import pytest

from pipeline.envs.registry import select_tasks
from tests.benchmarks.metaworld_stepping import as_markdown, measure_rows

pytestmark = pytest.mark.filterwarnings("ignore")


def test_stepping_is_measured_beside_metaworld_and_physics_in_one_run() -> None:
    rows = measure_rows(select_tasks("metaworld-reach,metaworld-button-press"), num_episodes=2)
    assert [row.name for row in rows] == ["metaworld-button-press", "metaworld-reach", "median", "smallest"]
    for row in rows[:2]:
        assert row.rates is not None
        steps, own, physics = row.rates
        assert 0 < own < physics  # three times as fast at least, so the assertion holds on a busy machine
        assert steps > 0
    assert [min(pair) for pair in zip(rows[0].ratios, rows[1].ratios, strict=True)] == list(rows[3].ratios)
    lines = as_markdown(rows).splitlines()
    assert len(lines) == 6
    assert {line.count("|") for line in lines} == {9}
