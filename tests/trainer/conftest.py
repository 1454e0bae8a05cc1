from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from collectors.dataset.build import DatasetConfig, build_dataset
from pipeline.plan import ShardJob
from pipeline.shards import write_shard
from tests.fakes import FAKE_TASKS, expected_episode
from trainer.config import ModelConfig, TrainConfig

TINY = ModelConfig(
    hidden_size=50,
    num_layers=2,
    num_heads=2,
    window_size=3,
    max_positions=8,
    vocab_size=320,
    max_continuous_size=6,
    max_discrete_size=10,
)


def make_dataset(out: Path, num_train: int = 40) -> None:
    """Shards and dataset of the two fake tasks, without Ray."""
    for task in FAKE_TASKS:
        for split, first_seed, count in (("train", 0, num_train), ("test", 1_000_000_000, 4)):
            job = ShardJob(task, split, first_seed, count, "random")
            write_shard(out / "shards", job, "1", [expected_episode(task, seed) for seed in job.seeds])
    build_dataset(DatasetConfig(out=out), FAKE_TASKS)


def tiny_config(out: Path, **changes: object) -> TrainConfig:
    """Twelve steps of seconds; context of 4 steps, so episodes of 6 are cut."""
    settings: dict[str, object] = {
        "out": out,
        "steps": 12,
        "batch_steps": 16,
        "micro_batches": 2,
        "context_steps": 4,
        "text_tokens": 6,
        "warmup_steps": 2,
        "dtype": "float32",
        "threads": 1,
        "checkpoint_every": 4,
        "model": TINY,
    }
    return TrainConfig(**{**settings, **changes})  # type: ignore[arg-type]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """An output root with a dataset in it."""
    make_dataset(tmp_path)
    return tmp_path


@pytest.fixture
def make_config(run_dir: Path) -> Callable[..., TrainConfig]:
    return lambda **changes: tiny_config(run_dir, **changes)
