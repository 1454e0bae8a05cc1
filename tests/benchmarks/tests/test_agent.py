from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.envs.task import Task
from tests.benchmarks.agent import bench_acting
from tests.fakes import FAKE_COUNT, FAKE_GRID
from tests.trainer.conftest import tiny_config
from trainer.config import BaseModelConfig

pytestmark = pytest.mark.slow

SMALL = BaseModelConfig(hidden_size=32, num_layers=1, vocab_size=320, discrete_encoder="flat")


@pytest.mark.parametrize("task", [FAKE_COUNT, FAKE_GRID], ids=lambda task: task.name)
@pytest.mark.parametrize("changes", [{}, {"model": SMALL}], ids=["jat", "base"])
def test_networks_of_both_kinds_are_timed_in_any_task(task: Task, changes: dict[str, object], tmp_path: Path) -> None:
    assert bench_acting(tiny_config(tmp_path, **changes), task, num_slots=3, num_steps=5) > 0
