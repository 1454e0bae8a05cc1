from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.files import location
from pipeline.run_layout import RunLayout

RELATIVE = {
    "experts/metaworld-reach/sac-1": lambda run: run.expert("metaworld-reach", "sac-1"),
    "experts/metaworld-reach/sac-1/films": lambda run: run.expert_films("metaworld-reach", "sac-1"),
    "queue/atari-pong/ppo-cpu": lambda run: run.queued_training("atari-pong", "ppo-cpu"),
    "shards/config.json": lambda run: run.shards_config,
    "dataset": lambda run: run.dataset,
    "rates.json": lambda run: run.rates,
    "train/manifest.json": lambda run: run.train_manifest,
    "evaluation/scores.json": lambda run: run.scores(),
    "evaluation/early/atari-pong.json": lambda run: run.played("atari-pong", "early"),
    "evaluation/films/atari-pong": lambda run: run.agent_films("atari-pong"),
    "report": lambda run: run.report(),
    "status/train": lambda run: run.status("train"),
}


@pytest.mark.parametrize("expected", RELATIVE)
@pytest.mark.parametrize("out", ["runs/a b", "memory://bucket/run"])
def test_paths_are_the_same_below_a_folder_and_in_an_object_store(out: str, expected: str) -> None:
    found = RELATIVE[expected](RunLayout(location(out)))
    assert str(found).rstrip("/") == f"{out}/{expected}"


def test_a_folder_inside_a_run_is_recognised(tmp_path: Path) -> None:
    run = RunLayout(tmp_path)
    run.shards.mkdir()
    run.dataset.mkdir()
    (run.dataset / "manifest.json").touch()
    assert RunLayout(run.dataset).is_inside
    assert not run.is_inside
