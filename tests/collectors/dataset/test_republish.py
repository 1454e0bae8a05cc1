from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from collectors.dataset.republish import RepublishConfig, measure_collection, share_of_shards
from pipeline.envs.episode import Episode
from pipeline.envs.registry import select_tasks
from pipeline.errors import UserError
from pipeline.storage.plan import ShardJob
from pipeline.storage.shards import write_shard

(HOPPER,) = select_tasks("mujoco-hopper")
(MAZE,) = select_tasks("babyai-go-to")


def walk(seed: int) -> Episode:
    """An episode of 150 to 250 steps of numbers that nothing compresses."""
    rng = np.random.default_rng(seed)
    steps = int(rng.integers(150, 250))
    return Episode(
        seed=seed,
        observations=rng.normal(size=(steps, 11)).astype(np.float32),
        texts=None,
        actions=rng.uniform(-1, 1, (steps, 3)).astype(np.float32),
        rewards=rng.normal(size=steps).astype(np.float32),
        ended="terminated",
        success=None,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 training episodes in two shards, 11 MB."""
    out = tmp_path_factory.mktemp("run")
    for split, first, count in (("train", 0, 500), ("train", 500, 500), ("test", 1_000_000_000, 5)):
        job = ShardJob(HOPPER, split, first, count, "random")
        write_shard(out / "shards", job, "1", map(walk, range(first, first + count)))
    return out


def test_one_hundredth_of_the_episodes_made_again_moves_less_than_a_tenth_of_the_bytes(run: Path) -> None:
    moved = measure_collection(RepublishConfig(run))["mujoco"]
    assert (moved.episodes, moved.changed) == (1000, 10)
    written = sum(path.stat().st_size for path in (run / "shards").rglob("train*.parquet") if "epis" not in path.name)
    assert moved.total == pytest.approx(written, rel=0.01)
    assert 0.01 * moved.total < moved.side_by_side < 0.1 * moved.total
    # Files compared whole would move the shard, half of everything.
    assert moved.whole_files == pytest.approx(moved.total / 2, rel=0.1)


def test_everything_made_again_moves_nearly_everything(run: Path) -> None:
    moved = measure_collection(RepublishConfig(run, changed=1.0))["mujoco"]
    assert moved.changed == 1000
    # Five other episodes stand in for all, in turns, so some pieces are equal to each other; none is an old one.
    assert min(moved.side_by_side, moved.scattered) > 0.02 * moved.total


def test_whole_shards_are_taken_until_they_have_enough_episodes() -> None:
    shards = [(10, 100)] * 8
    assert share_of_shards(shards, 0.01) == 1 / 8
    assert share_of_shards(shards, 0.125) == 1 / 8
    assert share_of_shards(shards, 0.126) == 2 / 8
    assert share_of_shards(shards, 1.0) == 1.0


def test_what_cannot_be_measured_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--changed is 0"):
        RepublishConfig(run, changed=0)
    with pytest.raises(UserError, match="nothing is collected"):
        measure_collection(RepublishConfig(tmp_path))
    write_shard(tmp_path / "shards", ShardJob(HOPPER, "train", 0, 1, "random"), "1", [walk(0)])
    with pytest.raises(UserError, match="mujoco-hopper lacks training or test episodes"):
        measure_collection(RepublishConfig(tmp_path))
