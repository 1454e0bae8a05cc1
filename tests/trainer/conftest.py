from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from collectors.dataset.build import DatasetConfig, build_dataset
from pipeline.envs.episode import Episode
from pipeline.envs.task import Task
from pipeline.files import write_json
from pipeline.scoring.measurement import Measurement
from pipeline.seeds import seeds_of
from pipeline.storage.plan import ShardJob
from pipeline.storage.shards import write_shard
from pipeline.versions import versions_of
from tests.fakes import FAKE_TASKS, assert_same_episode, expected_episode
from trainer.config import ModelConfig, TrainConfig
from trainer.train import train

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


RETURNS = {"random": [0.0, 1.0, 2.0], "scripted": [9.0, 11.0]}


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


def assert_acted_alike(task: Task, found: Iterable[Episode], expected: Iterable[Episode]) -> None:
    """The same episodes; of continuous actions, up to rounding."""
    for one, other in zip(found, expected, strict=True):
        if task.action.kind == "discrete":
            assert_same_episode(one, other)
        else:
            np.testing.assert_allclose(one.actions, other.actions, atol=1e-5)


@pytest.fixture(scope="session")
def dataset_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dataset")
    make_dataset(out)
    return out


@pytest.fixture
def run_dir(dataset_once: Path, tmp_path: Path) -> Path:
    """An output root with a dataset in it, to work in: a copy takes a hundredth of the time of a build."""
    shutil.copytree(dataset_once, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def make_config(run_dir: Path) -> Callable[..., TrainConfig]:
    return lambda **changes: tiny_config(run_dir, **changes)


def write_references(out: Path, returns: dict[str, list[float]] = RETURNS, tasks: Sequence[Task] = FAKE_TASKS) -> None:
    for task in tasks:
        for kind, values in returns.items():
            count, revision = len(values), f"{kind}-1"
            measurement = Measurement(
                task.name, kind, revision, versions_of(task.packages), seeds_of("measure", count), values,
                [1] * count, [True] * count, [None] * count,
            )  # fmt: skip
            write_json(out / "experts" / task.name / revision / "measurement.json", measurement)


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training with checkpoints at 4, 8 and 12 steps, and references."""
    out = tmp_path_factory.mktemp("trained")
    make_dataset(out)
    train(tiny_config(out, keep_checkpoints=9), FAKE_TASKS)
    write_references(out)
    return out


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path) -> Path:
    """A copy of it to work in."""
    shutil.copytree(trained_once, tmp_path, dirs_exist_ok=True)
    return tmp_path
