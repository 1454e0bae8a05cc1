"""Labels on their way through a dataset: built, opened, validated, cut, merged, replayed, exported and imported."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collectors.dataset.build import DatasetConfig, build_dataset
from collectors.dataset.exporting.export import ExportConfig, export
from collectors.dataset.importing.imports import ImportConfig, import_jobs
from collectors.dataset.surgery.merge import MergeConfig, merge_datasets
from collectors.dataset.surgery.select import FilterConfig, SplitConfig, filter_dataset, split_dataset
from collectors.dataset.validate import ValidateConfig, validate
from collectors.jobs import CollectJob, collect_shard
from collectors.replay import ReplayConfig, replay
from experts.choice import Mix
from pipeline.envs.task import Task
from pipeline.errors import JobsFailedError
from pipeline.files import sha256_of, write_json
from pipeline.storage.manifest import DatasetManifest, FileEntry, ShardManifest
from pipeline.storage.plan import ShardJob
from pipeline.storage.schema import label_column, read_blocks
from pipeline.storage.statistics import load_statistics
from tests.fakes import FAKE_COUNT, FAKE_GRID, random_mix, store_network

TEST = 1_000_000_000
TABLE = (FAKE_COUNT, FAKE_GRID)
LABEL = 0.5  # of every step


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collectors.dataset.card.card._plot", lambda path, domain: False)


def build(out: Path, first: int = 0) -> Path:
    """Per split: random episodes without labels, then random ones that a network labels, then its own noisy ones."""
    actor = random_mix(out, FAKE_COUNT)
    expert = Mix((store_network(out, FAKE_COUNT, LABEL),), (1.0,))
    for split, begin in (("train", first), ("test", TEST + first)):
        for place, (mix, labels, noise) in enumerate(
            ((actor, None, None), (actor, expert, None), (expert, expert, "gaussian=0.1"))
        ):
            shard = ShardJob(
                FAKE_COUNT, split, begin + 4 * place, 4, mix.kind, noise, labels.revision if labels else None
            )
            collect_shard(CollectJob(shard, mix, out / "shards", 3, labels=labels))
        mix = random_mix(out, FAKE_GRID)
        collect_shard(CollectJob(ShardJob(FAKE_GRID, split, begin, 4, mix.kind), mix, out / "shards", 3))
    build_dataset(DatasetConfig(out=out), TABLE)
    return out / "dataset"


def labels_of(dataset: Path, split: str = "train", task: Task = FAKE_COUNT) -> dict[int, np.ndarray | None]:
    """Labels by seed, None for an episode without."""
    found: dict[int, np.ndarray | None] = {}
    info = DatasetManifest.load(dataset / "manifest.json").tasks[task.name].splits[split]
    for data, side in zip(info.data, info.episodes, strict=True):
        seeds = pq.read_table(dataset / side.name)["seed"].to_pylist()
        for block in read_blocks(task, dataset / data.name):
            ends = np.cumsum(block.lengths)[:-1]
            parts = [None] * len(block.lengths) if block.labels is None else np.split(block.labels, ends)
            found |= dict(zip(seeds[: len(parts)], parts, strict=True))
            seeds = seeds[len(parts) :]
    return found


def assert_labels_kept(dataset: Path, seeds: range, first: int = 0) -> None:
    assert validate(ValidateConfig(dataset), TABLE).kinds == {}
    found = labels_of(dataset)
    assert sorted(found) == list(seeds)
    for seed, labels in found.items():
        assert (labels is None) == (seed - first < 4)
        assert labels is None or (labels == LABEL).all()


def test_labels_are_a_column_of_the_dataset_null_in_episodes_without(tmp_path: Path) -> None:
    dataset = build(tmp_path)
    assert_labels_kept(dataset, range(12))
    opened = datasets.load_dataset(str(dataset), FAKE_COUNT.name, split="train", cache_dir=str(tmp_path / "c"))
    assert opened.column_names == ["continuous_observations", "continuous_actions", "rewards", label_column(FAKE_COUNT)]
    for row in opened:
        labels = row["expert_continuous_actions"]
        assert labels is None or labels == [[LABEL, LABEL]] * len(row["rewards"])
    assert [row["expert_continuous_actions"] is None for row in opened] == [True] * 4 + [False] * 8
    grid = datasets.load_dataset(str(dataset), FAKE_GRID.name, split="train", cache_dir=str(tmp_path / "c"))
    assert label_column(FAKE_GRID) not in grid.column_names
    sides = datasets.load_dataset(str(dataset), "episodes", split="train", cache_dir=str(tmp_path / "c"))
    assert [row["num_labelled"] is None for row in sides] == [True] * 4 + [False] * 8 + [True] * 4
    statistics = load_statistics(dataset, FAKE_COUNT).splits["train"]
    assert list(statistics.label_experts.values()) == [8] and statistics.num_unlabelled == 0
    card = " ".join((dataset / "README.md").read_text().split())
    assert "what an expert would have done at every step" in card and "`fake-count` (16 episodes), by `ppo-" in card


def test_a_dataset_without_labels_says_nothing_of_them(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("test", TEST)):
        mix = random_mix(tmp_path, FAKE_GRID)
        collect_shard(CollectJob(ShardJob(FAKE_GRID, split, first, 4, mix.kind), mix, tmp_path / "shards", 3))
    build_dataset(DatasetConfig(out=tmp_path), TABLE)
    card = (tmp_path / "dataset" / "README.md").read_text()
    assert "label" not in card and "expert_discrete_actions" not in card


def test_surgery_keeps_labels(tmp_path: Path) -> None:
    dataset = build(tmp_path / "a")
    filter_dataset(FilterConfig(dataset=dataset, to=tmp_path / "some", seeds="2-9"), TABLE)
    assert_labels_kept(tmp_path / "some", range(2, 10))
    split_dataset(SplitConfig(dataset=dataset, to=tmp_path / "two", by="seed", at=6), TABLE)
    assert_labels_kept(tmp_path / "two" / "below", range(6))
    assert_labels_kept(tmp_path / "two" / "from", range(6, 12))
    other = build(tmp_path / "b", first=100)
    merge_datasets(MergeConfig((tmp_path / "two" / "below", other), tmp_path / "both"), TABLE)
    assert validate(ValidateConfig(tmp_path / "both"), TABLE).kinds == {}
    found = labels_of(tmp_path / "both")
    assert {seed for seed, labels in found.items() if labels is None} == {*range(4), *range(100, 104)}
    statistics = load_statistics(tmp_path / "both", FAKE_COUNT).splits["train"]
    assert list(statistics.label_experts.values()) == [2 + 8]


@pytest.mark.parametrize("seed", [7, 9])
def test_a_replay_asks_for_the_labels_again_and_compares_them(
    seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(tmp_path)
    caplog.set_level(logging.INFO)
    replay(ReplayConfig(FAKE_COUNT.name, seed, tmp_path), TABLE)
    assert "labelled by ppo-" in caplog.text and "equal in all columns" in caplog.text
    change_label(tmp_path, seed)
    with pytest.raises(JobsFailedError, match=r"step 1, expert_continuous_actions\[1\]: 0.25 stored, 0.5 played"):
        replay(ReplayConfig(FAKE_COUNT.name, seed, tmp_path), TABLE)


def change_label(out: Path, seed: int) -> None:
    """Change one label of a seed's shard, and its manifest with it; the dataset is gone."""
    (out / "dataset").rename(out / "old")
    folder = out / "shards" / FAKE_COUNT.name
    sidecar = folder / f"train-{seed // 4 * 4:010d}-000004.json"
    shard = ShardManifest.load(sidecar)
    path = folder / shard.data.name
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    rows[seed % 4][label_column(FAKE_COUNT)][1][1] = 0.25
    schema = pq.read_schema(path)
    path.unlink()  # the dataset links to it
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    write_json(sidecar, replace(shard, data=FileEntry(path.name, path.stat().st_size, sha256_of(path))))


def test_exports_and_imports_leave_labels_out_and_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = build(tmp_path)
    import_jobs(ImportConfig(str(dataset), FAKE_COUNT.name, tmp_path / "again"), [FAKE_COUNT], tmp_path / "again")
    assert f"the labels of {FAKE_COUNT.name} are left out; `jat dataset merge` keeps them" in caplog.text
    caplog.clear()
    export(ExportConfig(format="lerobot", to=str(tmp_path / "x"), dataset=dataset, task="fake"), TABLE)
    assert "the labels of fake-count are left out: an export has what was executed" in caplog.text
