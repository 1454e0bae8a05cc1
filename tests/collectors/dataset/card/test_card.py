from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import DatasetCard
from PIL import Image

from collectors.dataset.build import DatasetConfig, build_dataset
from collectors.dataset.card.card import write_card
from collectors.dataset.card.plots import place_score, write_plot
from collectors.dataset.card.previews import Preview
from collectors.dataset.card.rows import CardRow, DomainRow
from pipeline.envs.registry import select_tasks
from pipeline.storage.manifest import DatasetManifest, FileEntry, SplitManifest, TaskManifest
from pipeline.storage.plan import ShardJob
from pipeline.storage.shards import Origin, write_shard
from pipeline.storage.statistics import Histogram, Moments, SplitStatistics, TaskStatistics
from tests.fakes import FAKE_COUNT, expected_episode

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


def statistics_of(
    returns: Sequence[float],
    successes: int | None,
    experts: dict[str, int],
    rejected: dict[str, int] | None = None,
    noise: dict[str, int] | None = None,
    length: int = 10,
) -> SplitStatistics:
    values, lengths = np.array(returns), np.full(len(returns), length)
    return SplitStatistics(
        num_episodes=len(values),
        num_steps=int(lengths.sum()),
        num_bytes=1_240_000,
        num_judged=0 if successes is None else len(values),
        num_successes=successes or 0,
        experts=experts,
        noise=noise or {"": len(values)},
        ended={"terminated": len(values)},
        rejected=rejected or {},
        returns=Moments.of(values),
        return_histogram=Histogram.of(values, 2.0**-10),
        lengths=Moments.of(lengths),
        length_histogram=Histogram.of(lengths, 1.0),
        rewards=Moments(),
        observations=Moments(),
        actions=None,
        action_counts=None,
    )


STATISTICS = [
    TaskStatistics(
        "babyai-open",
        {
            "train": statistics_of([0.5, 1.0], 2, {"bot-3.2.0": 2}, {"policy: bot: over 100 sub-goals": 2}),
            "test": statistics_of([1.0], 1, {"bot-3.2.0": 1}, {"value not finite": 1}, length=40),
        },
    ),
    TaskStatistics(
        "metaworld-reach",
        {
            "train": statistics_of([600.0, 700.0, 800.0], 1, {"scripted-3.1.1": 2, "random-1": 1}),
            "test": statistics_of([700.0], 1, {"scripted-3.1.1": 1}, noise={"gaussian=0.1": 1}),
        },
    ),
    TaskStatistics(
        "mujoco-ant",
        {"train": statistics_of([5000.0], None, {"sac-1a2b": 1}), "test": statistics_of([], None, {})},
    ),
]


def write(folder: Path, previews: Sequence[Preview] = ()) -> str:
    def task(expert: str, num_successes: int | None) -> TaskManifest:
        return TaskManifest(
            expert, f"{expert}-1", {"numpy": "2.0"}, {"train": split(num_successes), "test": split(num_successes)}
        )

    tasks = {
        "babyai-open": task("bot", 900),
        "metaworld-reach": task("0.3*random-1+0.7*scripted", 1200),
        "mujoco-ant": task("x", None),
    }
    write_card(folder, DatasetManifest("digest", tasks), TASKS, STATISTICS, previews)
    return (folder / "README.md").read_text()


@pytest.fixture
def card(tmp_path: Path) -> str:
    return write(tmp_path)


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
        "episodes",
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


def test_the_hub_s_own_reader_takes_the_card(tmp_path: Path) -> None:
    write(tmp_path)
    found = DatasetCard.load(tmp_path / "README.md")
    assert found.data.license == "apache-2.0"
    assert found.data.size_categories == ["1K<n<10K"]
    assert found.data.task_categories == ["reinforcement-learning", "robotics"]
    assert found.text.lstrip().startswith("# Expert episodes of 3 tasks")


def test_no_configuration_opens_without_a_name_as_if_it_were_all(front: dict[str, Any]) -> None:
    assert not any("default" in config for config in front["configs"])


def test_the_side_tables_of_all_tasks_are_one_configuration(front: dict[str, Any]) -> None:
    names = ("babyai-open", "metaworld-reach", "mujoco-ant")
    assert front["configs"][-1]["data_files"] == [
        {"split": split, "path": [f"episodes/{name}/{split}-*-of-00001.parquet" for name in names]}
        for split in ("train", "test")
    ]
    infos = {info["config_name"]: info for info in front["dataset_info"]}
    for place in range(2):
        for count in ("num_examples", "num_bytes"):
            of_each = [infos[f"{name}-episodes"]["splits"][place][count] for name in names]
            assert infos["episodes"]["splits"][place][count] == sum(of_each)


def table_under(card: str, heading: str) -> list[list[str]]:
    """Cells of the first table below a heading, without what is there for looks."""
    lines = card.split(f"{heading}\n", 1)[1].splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([re.sub("</?nobr>", "", cell.strip()) for cell in line.strip("|").split("|")])
    return rows


def test_the_summary_has_a_row_per_domain(card: str) -> None:
    assert table_under(card, "## What is in it")[2:] == [
        ["BabyAI", "1", "bot", "2 + 1", "60", "2.5", "0.76", "1.00", "3"],
        ["Meta-World", "1", "random, scripted", "3 + 1", "40", "2.5", "1.04", "0.33", "0"],
        ["MuJoCo", "1", "sac", "1 + 0", "10", "2.5", "0.86", "-", "0"],
    ]


def test_the_table_of_a_domain_has_a_row_per_task(card: str) -> None:
    assert table_under(card, "### BabyAI")[2:] == [
        ["`babyai-open`", "`bot-3.2.0`", "2 + 1", "0.75 (0.50 to 1.00)", "0.76", "1.00", "3", "60", "10", "2.5"]
    ]
    assert table_under(card, "### Meta-World")[2:] == [
        [
            "`metaworld-reach`", "`scripted-3.1.1` 75%, `random-1` 25%", "3 + 1", "700.00 (600.00 to 800.00)", "1.04",
            "0.33", "0", "40", "10", "2.5",
        ]
    ]  # fmt: skip
    assert table_under(card, "### MuJoCo")[2:] == [
        ["`mujoco-ant`", "`sac-1a2b`", "1 + 0", "5,000.00", "0.86", "-", "0", "10", "10", "2.5"]
    ]


def test_the_card_says_why_episodes_are_missing_and_where_experts_are_weak(card: str) -> None:
    reasons = "2 because of `policy: bot: over 100 sub-goals` and 1 because of `value not finite`"
    assert f"Rejected: {reasons}." in card
    assert "care: `babyai-open` (success 1.00, 0.76 on JAT's scale, 50% of its seeds rejected)." in card
    assert "care: `metaworld-reach` (success 0.33, 1.04 on JAT's scale)." in card
    assert "`mujoco-ant` (" not in card


def test_the_card_says_who_acted_and_with_what_noise(card: str) -> None:
    assert "- BabyAI: `bot` in 1 task." in card
    assert "- Meta-World: `random` in 1 task, `scripted` in 1 task." in card
    assert "`bot` is the planner that ships with minigrid" in card
    assert "Several experts played `metaworld-reach`" in card
    assert "Noise was added to actions: `gaussian=0.1` in 1 episode" in card


def test_the_text_names_licences_versions_differences_and_the_way_back_to_an_episode(card: str) -> None:
    assert 'load_dataset(path, "babyai-open", split="train")' in card
    assert "jat dataset replay --task babyai-open --seed 0" in card
    assert "| MuJoCo | numpy 2.0 |" in card
    assert "minigrid, which holds the BabyAI levels and the bot, is Apache-2.0" in card
    assert "Pusher-v5" in card
    assert card.count("@inproceedings{todorov2012mujoco") == 1
    assert card.isascii()


def test_the_python_of_the_card_compiles(card: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        compile(block, "README.md", "exec")


def test_pictures_are_shown_where_they_are(tmp_path: Path) -> None:
    preview = Preview(TASKS[0], 7, "card/babyai-open-12345678.webp")
    card = write(tmp_path, [preview])
    assert "![babyai-open](card/babyai-open-12345678.webp)" in card
    assert "`babyai-open`<br>seed 7" in card
    plots = re.findall(r"!\[.*?\]\((card/.*?\.png)\)", card)
    assert plots == ["card/babyai.png", "card/metaworld.png", "card/mujoco.png"]
    for name in plots:
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 800


def rows_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, returns: Sequence[float]) -> Any:
    """The axes of returns of a plot with one task."""
    drawn: list[Any] = []
    figure_class = importlib.import_module("matplotlib.figure").Figure
    monkeypatch.setattr(figure_class, "savefig", lambda figure, path, **_: drawn.append(figure) or path.touch())
    (task,) = select_tasks(name)
    train = statistics_of(returns, None, {"sac-1a2b": len(returns)})
    write_plot(tmp_path / "plot.png", DomainRow(task.domain, (CardRow(task, train, train),)))
    return drawn[0].axes[0]


@pytest.mark.parametrize(
    ("name", "returns"),
    [
        ("metaworld-assembly", [603.0, 610.0, 615.0]),  # 2.8 on JAT's scale
        ("metaworld-push-back", [339.0, 372.0]),  # 4.2
        ("mujoco-hopper", [-400_000.0, 100_000.0]),
        ("metaworld-reach", [600.0, 700.0]),
    ],
)
def test_every_return_is_on_the_axis(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, returns: list[float]
) -> None:
    axes = rows_drawn(monkeypatch, tmp_path, name, returns)
    low, high = axes.get_xlim()
    bars = [path.get_extents() for path in axes.collections[-1].get_paths()]
    assert bars and all(low <= bar.x0 < bar.x1 <= high for bar in bars)
    (mean,) = [line for line in axes.get_lines() if line.get_marker() == "D"]
    assert low < mean.get_xdata()[0] < high
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert {"0", "1"} <= set(labels) and len(labels) == len(set(labels))


def test_the_axis_of_scores_is_linear_between_random_and_expert_and_never_falls() -> None:
    assert place_score(np.array([0.0, 0.25, 1.0, 1.25])).tolist() == [0.0, 0.25, 1.0, 1.25]
    placed = place_score(np.linspace(-50, 200, 4001))
    assert (np.diff(placed) > 0).all() and placed[-1] < 9 and placed[0] > -2


def test_a_task_whose_expert_at_jat_was_hardly_better_than_random_is_named_and_has_no_score(tmp_path: Path) -> None:
    tasks = select_tasks("metaworld-disassemble,metaworld-reach")
    of_reach = STATISTICS[1].splits
    statistics = [TaskStatistics(task.name, of_reach) for task in tasks]
    manifest = TaskManifest("scripted", "scripted-1", {"numpy": "2.0"}, {"train": split(1), "test": split(1)})
    write_card(tmp_path, DatasetManifest("digest", {task.name: manifest for task in tasks}), tasks, statistics)
    card = (tmp_path / "README.md").read_text()
    assert "Not on JAT's scale: `metaworld-disassemble`; JAT has no such task, or its expert is hardly better" in card
    summary = table_under(card, "## What is in it")
    assert summary[2][6] == "1.04"  # reach's alone
    assert [row[4] for row in table_under(card, "### Meta-World")[2:]] == ["-", "1.04"]


@pytest.mark.parametrize(
    ("count", "columns", "gaps"), [(1, 1, 0), (2, 2, 0), (4, 4, 0), (5, 3, 1), (7, 4, 1), (8, 4, 0)]
)
def test_moving_pictures_leave_no_column_empty(tmp_path: Path, count: int, columns: int, gaps: int) -> None:
    previews = [Preview(TASKS[number % 3], number, f"card/{number}.webp") for number in range(count)]
    table = [line for line in write(tmp_path, previews).split("## What is in it")[0].splitlines() if line[:1] == "|"]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert {len(line) for line in cells} == {columns}
    assert sum(cell == "" for line in cells for cell in line) == 2 * gaps  # a picture and its name
    assert sum("webp" in cell for line in cells for cell in line) == count


def test_the_same_figures_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_without_matplotlib_there_is_a_card_without_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    card = write(tmp_path)
    assert "# Expert episodes of 3 tasks" in card
    assert ".png" not in card
    assert "no plots" in caplog.text


def test_names_out_of_shards_cannot_become_markup(tmp_path: Path) -> None:
    nasty = "a`|<img src=x onerror=alert(1)>|[b](javascript:c)"
    for split, first in (("train", 0), ("test", 1_000_000_000)):
        job = ShardJob(FAKE_COUNT, split, first, 2, nasty)
        lost = dataclasses.replace(expected_episode(FAKE_COUNT, first), rejected=nasty, ended="rejected")
        episodes = [lost, expected_episode(FAKE_COUNT, first + 1)]
        origin = Origin(nasty, nasty)
        write_shard(tmp_path / "imported" / FAKE_COUNT.name, job, nasty, episodes, origin=origin, folder="x")
    build_dataset(DatasetConfig("*", tmp_path), [FAKE_COUNT])
    card = (tmp_path / "dataset" / "README.md").read_text()
    assert "onerror" in card
    outside = re.sub(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", "", card.replace(r"\`", ""))  # no code spans
    assert "<img src=x" not in outside and "[b](javascript" not in outside
    num_bars = 0
    for line in card.splitlines():
        bars = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert not num_bars or bars in (0, num_bars), line  # every row has the cells of its heading
        num_bars = bars
