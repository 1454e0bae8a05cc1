"""The README's examples of using a dataset run as they are written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from collectors.dataset.build import DatasetConfig, build_dataset
from collectors.jobs import CollectJob, collect_shard
from pipeline.envs.registry import select_tasks
from pipeline.storage.plan import ShardJob
from tests.fakes import random_mix

README = Path(__file__).parents[1] / "README.md"


def code_after(heading: str) -> str:
    """The first Python block after a heading of the README."""
    text = README.read_text(encoding="utf-8")
    match = re.search(r"```python\n(.*?)```", text[text.index(f"## {heading}\n") :], re.DOTALL)
    assert match is not None
    return match[1]


def test_the_readme_s_example_of_the_dataset_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "runs" / "demo"
    for task in select_tasks("metaworld-reach,babyai-open-door"):
        for split, first, count in (("train", 0, 2), ("test", 1_000_000_000, 1)):
            mix = random_mix(out / "elsewhere", task)
            collect_shard(CollectJob(ShardJob(task, split, first, count, mix.kind), mix, out / "shards", 2))
    build_dataset(DatasetConfig(out=out))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    names: dict[str, Any] = {}
    exec(code_after("The dataset"), names)
    assert len(names["episodes"]) == len(names["accepted"]) == 2
    assert list(names["episodes"][0]) == ["continuous_observations", "continuous_actions", "rewards"]
    assert names["batch"]["observations"].shape[1:] == (32, 148)
    assert names["batch"]["actions"].shape == names["batch"]["mask"].shape
