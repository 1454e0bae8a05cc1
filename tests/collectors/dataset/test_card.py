from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from collectors.dataset.card import write_card
from pipeline.manifest import DatasetManifest, FileEntry, SplitManifest, TaskManifest
from pipeline.tasks import select_tasks

TASKS = select_tasks("babyai-open,metaworld-reach,mujoco-ant")


def split(num_successes: int | None) -> SplitManifest:
    return SplitManifest(
        num_episodes=1200,
        num_steps=34_567,
        num_rejected=3,
        num_successes=num_successes,
        mean_return=0.9249,
        data=(FileEntry("a", 1_000_000, ""), FileEntry("b", 240_000, "")),
        episodes=(FileEntry("c", 500, ""),),
    )


@pytest.fixture
def card(tmp_path: Path) -> str:
    def task(expert: str, num_successes: int | None) -> TaskManifest:
        return TaskManifest(
            expert, f"{expert}-1", {"numpy": "2.0"}, {"train": split(num_successes), "test": split(num_successes)}
        )

    tasks = {
        "babyai-open": task("bot", 900),
        "metaworld-reach": task("0.3*random-1+0.7*scripted", 1200),
        "mujoco-ant": task("x", None),
    }
    write_card(tmp_path / "README.md", DatasetManifest("digest", tasks), TASKS)
    return (tmp_path / "README.md").read_text()


@pytest.fixture
def front(card: str) -> dict[str, Any]:
    empty, front, _ = card.split("---\n", 2)
    assert empty == ""
    parsed: dict[str, Any] = yaml.safe_load(front)
    return parsed


def test_the_front_matter_names_every_configuration_and_its_files(front: dict[str, Any]) -> None:
    assert [config["config_name"] for config in front["configs"]] == [
        "babyai-open",
        "babyai-open-episodes",
        "metaworld-reach",
        "metaworld-reach-episodes",
        "mujoco-ant",
        "mujoco-ant-episodes",
    ]
    assert front["configs"][0]["data_files"] == [
        {"split": "train", "path": "data/babyai-open/train-*-of-00002.parquet"},
        {"split": "test", "path": "data/babyai-open/test-*-of-00002.parquet"},
    ]
    assert front["configs"][1]["data_files"] == [
        {"split": "train", "path": "episodes/babyai-open/train-*-of-00001.parquet"},
        {"split": "test", "path": "episodes/babyai-open/test-*-of-00001.parquet"},
    ]
    assert front["license"] == "apache-2.0"
    assert {"babyai", "metaworld", "mujoco"} <= set(front["tags"])


def test_the_front_matter_tells_columns_and_counts(front: dict[str, Any]) -> None:
    infos = {info["config_name"]: info for info in front["dataset_info"]}
    assert list(infos) == [config["config_name"] for config in front["configs"]]
    assert [column["name"] for column in infos["babyai-open"]["features"]] == [
        "text_observations",
        "discrete_observations",
        "discrete_actions",
        "rewards",
    ]
    # The side table holds the rejected seeds as well.
    assert infos["babyai-open"]["splits"][0] == {"name": "train", "num_examples": 1200, "num_bytes": 1_240_000}
    assert infos["babyai-open-episodes"]["splits"][1] == {"name": "test", "num_examples": 1203, "num_bytes": 500}


def test_the_table_has_a_row_of_numbers_per_task(card: str) -> None:
    rows = [line for line in card.splitlines() if line.startswith("| ")][1:]
    assert rows == [
        "| babyai-open | `bot-1` | 1,200 | 34,567 | 0.92 | 0.75 | 6 | 1,200 | 2.48 |",
        "| metaworld-reach | `0.3*random-1+0.7*scripted-1` | 1,200 | 34,567 | 0.92 | 1.00 | 6 | 1,200 | 2.48 |",
        "| mujoco-ant | `x-1` | 1,200 | 34,567 | 0.92 | - | 6 | 1,200 | 2.48 |",
    ]


def test_the_text_names_the_differences_to_jat_and_the_versions(card: str) -> None:
    assert "# Expert episodes of 3 tasks" in card
    assert 'load_dataset(path, "babyai-open")' in card
    notes = [line for line in card.splitlines() if line.startswith("- ") and "Made with numpy 2.0." in line]
    assert [note.split(":")[0] for note in notes] == ["- BabyAI", "- Meta-World", "- MuJoCo"]
    assert card.isascii()
