from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset, Features, Image, List, Value

from collectors.dataset.build import DatasetConfig, build_dataset
from collectors.dataset.findings import Findings, problem_table
from collectors.dataset.validate import ValidateConfig, main, validate
from collectors.jobs import CollectJob, collect_shard
from pipeline.envs.task import Task
from pipeline.errors import JobsFailedError, UserError
from pipeline.files import read_json, sha256_of, write_json
from pipeline.storage.plan import ShardJob
from pipeline.storage.shards import write_shard
from tests.fakes import FAKE_COUNT, FAKE_GRID, FAKE_NAN_REWARD, FAKE_PIXELS, expected_episode, random_mix
from tests.jat_sources import continuous_row, write_jat

TEST = 1_000_000_000
TABLE = (FAKE_COUNT, FAKE_NAN_REWARD, FAKE_GRID, FAKE_PIXELS)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Ours: two tasks, two training shards and one for tests each."""
    for task in (FAKE_NAN_REWARD, FAKE_GRID):
        for split, first, count in (("train", 0, 3), ("train", 3, 2), ("test", TEST, 2)):
            mix = random_mix(tmp_path / "elsewhere", task)
            job = ShardJob(task, split, first, count, mix.kind)
            collect_shard(CollectJob(job, mix, tmp_path / "run" / "shards", 4))
    build_dataset(DatasetConfig(out=tmp_path / "run"), TABLE)
    return tmp_path / "run" / "dataset"


def kinds(found: Findings) -> dict[str, int]:
    return {name: kind.count for name, kind in found.kinds.items()}


def check(dataset: Path, tasks: Sequence[Task] = TABLE, task: str = "*") -> Findings:
    return validate(ValidateConfig(dataset, task), tasks)


def test_a_dataset_as_built_has_no_problems_and_its_totals(dataset: Path) -> None:
    found = check(dataset)
    assert kinds(found) == {}
    # Seeds 0 to 4 have 1, 2, 3, 4 and 6 steps, the test seeds 1 and 2; the first task rejects 1 and 4.
    fake, toy = found.totals["fake"], found.totals["toy"]
    assert (fake.tasks, fake.episodes, fake.steps) == ({"fake-nan-reward"}, {"train": 3, "test": 2}, 8 + 3)
    assert (toy.tasks, toy.episodes, toy.steps) == ({"toy-grid"}, {"train": 5, "test": 2}, 16 + 3)
    assert toy.num_bytes == sum(path.stat().st_size for path in (dataset / "data" / "toy-grid").iterdir())


def test_only_the_chosen_tasks_are_checked(dataset: Path) -> None:
    (dataset / "data" / "fake-nan-reward" / "test-00000-of-00001.parquet").unlink()
    assert kinds(check(dataset, task="toy")) == {}
    assert kinds(check(dataset, task="fake")) == {"file missing": 1, "no file where the card says there are some": 1}


def replace_table(dataset: Path, name: str, change: Any, **totals: int) -> None:
    """Change a table of a dataset and write its new checksum, and other totals, into the manifest."""
    path = dataset / name
    table = change(pq.read_table(path))
    path.unlink()  # it is linked to the shard
    pq.write_table(table, path)
    raw = read_json(dataset / "manifest.json")
    for task in raw["tasks"].values():
        for split in task["splits"].values():
            for entry in split["data"] + split["episodes"]:
                if entry["name"] == name:
                    entry.update(num_bytes=path.stat().st_size, sha256=sha256_of(path))
                    split.update(totals)
    write_json(dataset / "manifest.json", raw)


def with_values(column: str, change: dict[int, Any]) -> Any:
    def apply(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        for row, value in change.items():
            values[row] = value
        field = table.schema.field(column)
        return table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))

    return apply


GRID_TRAIN, GRID_SIDE = (f"{kind}/toy-grid/train-00001-of-00002.parquet" for kind in ("data", "episodes"))


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        (GRID_TRAIN, with_values("rewards", {1: [0.0] * 5 + [float("nan")]}), {"value not finite": 1}),
        (GRID_TRAIN, with_values("discrete_actions", {0: [5, 0, 0, 0]}), {"action outside its range": 1}),
        (GRID_TRAIN, with_values("discrete_actions", {0: [0, 0, 0]}), {"columns of different lengths": 1}),
        (GRID_TRAIN, lambda table: table.drop_columns(["text_observations"]), {"column missing": 1}),
        (GRID_TRAIN, lambda table: table.append_column("x", pa.array([1, 2])), {"column too many": 1}),
        (GRID_SIDE, with_values("seed", {1: 0}), {"seeds in two shards": 1}),
        (GRID_SIDE, with_values("seed", {1: TEST + 7}), {"seeds": 1}),
        (GRID_SIDE, with_values("versions", {1: "numpy 0"}), {"mixed package versions": 1}),
        (GRID_SIDE, with_values("row", {0: 1, 1: 0}), {"rows of the side table": 1}),
        (GRID_SIDE, with_values("length", {0: 5}), {"columns of different lengths": 1}),
    ],
)
def test_each_fault_in_a_file_is_found_alone(name: str, change: Any, expected: dict[str, int], dataset: Path) -> None:
    replace_table(dataset, name, change)
    found = check(dataset)
    assert kinds(found) == expected
    (kind,) = found.kinds.values()
    assert kind.first.file == dataset / (GRID_TRAIN if "lengths" in kind.first.kind else name)


def test_wrong_totals_are_found(dataset: Path) -> None:
    replace_table(dataset, GRID_TRAIN, lambda table: table, num_steps=17, num_rejected=1)
    found = check(dataset)
    assert kinds(found) == {"manifest and files disagree": 2}
    assert "toy-grid, train: 17 steps, the files have 16" in str(found.kinds["manifest and files disagree"].first)


def test_a_flipped_bit_and_a_lost_file_are_both_found(dataset: Path) -> None:
    content = bytearray((dataset / GRID_TRAIN).read_bytes())
    content[50] ^= 1
    (dataset / GRID_TRAIN).write_bytes(content)
    (dataset / "episodes" / "fake-nan-reward" / "test-00000-of-00001.parquet").unlink()
    found = kinds(check(dataset))
    assert found == {"checksum": 1, "file missing": 1, "no file where the card says there are some": 1}


def test_what_the_card_does_not_show_or_the_manifest_does_not_know_is_found(dataset: Path) -> None:
    card = (dataset / "README.md").read_text()
    (dataset / "README.md").write_text(card.replace("data/toy-grid/train-*", "data/toy-grid/train-00000"))
    write_other = dataset / "data" / "toy-grid" / "test-00001-of-00001.parquet"
    write_other.write_bytes((dataset / GRID_TRAIN).read_bytes())
    found = check(dataset)
    assert kinds(found) == {"card and manifest disagree": 2}
    assert found.kinds["card and manifest disagree"].files == {dataset / GRID_TRAIN, write_other}


def test_folders_that_hold_no_dataset_are_refused_with_where_one_is(dataset: Path) -> None:
    with pytest.raises(UserError, match=f"try --dataset {re.escape(str(dataset))}$"):
        check(dataset.parent)
    with pytest.raises(UserError, match=f"try --dataset {re.escape(str(dataset))}$"):
        check(dataset.parent / "shards")
    with pytest.raises(UserError, match="is no folder"):
        check(dataset / "nowhere")
    empty = dataset.parent.parent / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="holds no Parquet files"):
        check(empty)


# JAT's own dataset: one configuration per task, lists of variable length, no seeds, and its known faults.

VECTORS = List(List(Value("float32")))
NUMBERS = List(Value("int64"))
REWARDS = List(Value("float32"))


def png(value: int, shape: tuple[int, ...] = (84, 84, 4)) -> Any:
    from PIL import Image as Pictures

    return Pictures.fromarray(np.full(shape, value, np.uint8))


def jat_like(folder: Path) -> Path:
    """A small imitation of JAT's dataset with every fault that is known of it."""

    def write(config: str, split: str, features: dict[str, Any], rows: dict[str, Any]) -> None:
        path = folder / config / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(rows, features=Features(features)).to_parquet(path)

    walk = {"continuous_observations": VECTORS, "continuous_actions": VECTORS, "rewards": REWARDS}
    maze = {
        "text_observations": List(Value("string")), "discrete_observations": List(NUMBERS),
        "discrete_actions": NUMBERS, "rewards": REWARDS,
    }  # fmt: skip
    game = {"image_observations": List(Image()), "discrete_actions": NUMBERS, "rewards": REWARDS}
    for number, split in enumerate(("train", "test")):
        # Actions unclipped, up to 9 in size.
        rows = {
            "continuous_observations": [[[0.5 + number] * 17] * 3, [[0.5 + number] * 17] * 2],
            "continuous_actions": [[[0.5] * 6] * 3, [[0.5] * 6, [-9.0] * 6]],
            "rewards": [[1.0] * 3, [1.0] * 2],
        }
        write("mujoco-halfcheetah", split, walk, rows)
        # Empty episodes.
        rows = {
            "text_observations": [["pick up"] * 2, [], []],
            "discrete_observations": [[[number] * 148] * 2, [], []],
            "discrete_actions": [[2, 3], [], []],
            "rewards": [[0.0, 1.0], [], []],
        }
        write("babyai-pickup-dist", split, maze, rows)
        # Four frames as the channels of one PNG.
        images = [[png(number), png(number + 1)]]
        rows = {"image_observations": images, "discrete_actions": [[0, 5]], "rewards": [[0.0, 1.0]]}
        write("atari-pong", split, game, rows)
        write("wikipedia", split, {"text": Value("string")}, {"text": ["a", "b"]})
    return folder


JAT_FAULTS = {
    # Observations and actions of the cheetah and observations of the maze, in two splits.
    "lists of variable length where it is fixed": 6,
    "no seeds: no episode can be made again": 6,
    "empty episode": 4,
    "action outside its range": 2,
    "stacked frames as PNG, every frame stored up to four times": 2,
}


def with_card(folder: Path) -> None:
    configs = [
        {
            "config_name": path.name,
            "data_files": [{"split": s, "path": f"{path.name}/{s}-*"} for s in ("train", "test")],
        }
        for path in sorted(folder.iterdir())
    ]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n# JAT\n")


@pytest.mark.parametrize("card", [True, False])
def test_the_known_faults_of_jat_s_dataset_are_told_and_counted(card: bool, tmp_path: Path) -> None:
    folder = jat_like(tmp_path / "jat")
    if card:
        with_card(folder)
    found = validate(ValidateConfig(folder))
    assert kinds(found) == JAT_FAULTS
    empty = found.kinds["empty episode"].first
    assert (empty.file, empty.row, empty.reason) == (
        folder / "babyai-pickup-dist" / "train-00000-of-00001.parquet", 1, "0 steps",
    )  # fmt: skip
    assert "row 1: action outside [-1.0, 1.0]" in str(found.kinds["action outside its range"].first)
    totals = {name: (t.episodes, t.steps) for name, t in found.totals.items()}
    assert totals == {
        "mujoco": ({"train": 2, "test": 2}, 10),
        "babyai": ({"train": 3, "test": 3}, 4),
        "atari": ({"train": 1, "test": 1}, 4),
        "texts and pictures": ({"train": 2, "test": 2}, 0),
    }


def test_the_layout_of_the_hub_s_parquet_branch_is_read_too(tmp_path: Path) -> None:
    folder = jat_like(tmp_path / "jat")
    for path in sorted(folder.rglob("*.parquet")):
        target = path.parent / path.name.split("-")[0] / "0000.parquet"
        target.parent.mkdir()
        path.rename(target)
    assert kinds(validate(ValidateConfig(folder))) == JAT_FAULTS


def test_files_that_are_broken_foreign_or_out_of_place_are_told_and_the_rest_is_checked(tmp_path: Path) -> None:
    folder = jat_like(tmp_path / "jat")
    whole = folder / "mujoco-halfcheetah" / "train-00000-of-00001.parquet"
    for name, content in (("train-00001", whole.read_bytes()[:-9]), ("train-00002", b""), ("train-00003", b"no")):
        (whole.parent / f"{name}-of-00004.parquet").write_bytes(content)
    (folder / "atari-pong" / "train-00001-of-00002.parquet").write_bytes(whole.read_bytes())
    (folder / "kitchen").mkdir()
    (folder / "kitchen" / "train-0.parquet").write_bytes(whole.read_bytes())
    found = kinds(validate(ValidateConfig(folder)))
    assert found.pop("unreadable file") == 3
    assert found.pop("file of no task or split") == 1
    # A cheetah's file among the games: neither images nor discrete actions, but their opposites.
    assert found.pop("column missing") == 2
    assert found.pop("column too many") == 1
    assert found == JAT_FAULTS | {"no seeds: no episode can be made again": 6 + 4}


def test_values_that_cannot_be_are_told_with_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "jat" / "mujoco-halfcheetah" / "train-0.parquet"
    path.parent.mkdir(parents=True)
    good = [[0.5] * 17] * 2
    table = pa.table(
        {
            "continuous_observations": [good, good, [[0.5] * 16, [0.5] * 17], None, [[0.5] * 17, None], good],
            "continuous_actions": pa.array([[[0.5] * 6] * 2] * 6, pa.list_(pa.list_(pa.float64()))),
            "rewards": [[1.0, 2.0], [1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, float("inf")]],
        }
    )
    pq.write_table(table, path)
    found = validate(ValidateConfig(tmp_path / "jat")).kinds
    rows = {name: (kind.count, kind.first.row) for name, kind in found.items() if kind.first.row is not None}
    assert rows == {
        "columns of different lengths": (1, 1),
        "vector of another size": (1, 2),
        "value missing": (2, 3),
        "value not finite": (1, 5),
    }


def test_images_that_cannot_be_shown_are_told(tmp_path: Path) -> None:
    path = tmp_path / "jat" / "atari-pong" / "train" / "0000.parquet"
    path.parent.mkdir(parents=True)
    small = {
        "image_observations": [[png(1), png(2, (42, 42, 4))]],
        "discrete_actions": [[0, 5]],
        "rewards": [[0.0, 1.0]],
    }
    features = Features({"image_observations": List(Image()), "discrete_actions": NUMBERS, "rewards": REWARDS})
    images = Dataset.from_dict(small, features=features).with_format("arrow")[:]
    broken_file = {"bytes": b"\x89PNG\r\n\x1a\nno", "path": None}
    no_bytes = {"bytes": None, "path": "elsewhere.png"}
    rows = [*images["image_observations"].to_pylist(), [broken_file], [no_bytes]]
    table = pa.table(
        [
            pa.array(rows, images.schema.field("image_observations").type),
            pa.array([[0, 5], [1], [1]]),
            pa.array([[0.0, 1.0], [0.0], [0.0]], pa.list_(pa.float32())),
        ],
        schema=images.schema,
    )
    pq.write_table(table, path)
    found = validate(ValidateConfig(tmp_path / "jat"))
    broken = found.kinds["image broken or of another shape"]
    assert (broken.count, broken.first.row) == (3, 0)
    assert "(42, 42, 4)" in str(broken.first)


@pytest.mark.parametrize("front", ["configs: [", "configs: [{config_name: a, data_files: [{split: train}]}]"])
def test_a_card_that_cannot_be_read_is_told_and_names_decide(front: str, tmp_path: Path) -> None:
    folder = jat_like(tmp_path / "jat")
    (folder / "README.md").write_text(f"---\n{front}\n---\n")
    assert kinds(validate(ValidateConfig(folder))) == JAT_FAULTS | {"card that cannot be read": 1}


def test_a_card_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    folder = jat_like(tmp_path / "jat")
    configs = [
        {"config_name": "mujoco-ant", "data_files": pattern} for pattern in ("../**/*.parquet", "/etc/*", "none-*")
    ]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    found = kinds(validate(ValidateConfig(folder)))
    assert found.pop("no file where the card says there are some") == 3
    assert found == JAT_FAULTS


def test_the_command_ends_with_an_error_that_counts_if_anything_is_wrong(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = jat_like(dataset.parent.parent / "jat")
    monkeypatch.setattr(sys, "argv", ["validate", "--dataset", str(folder), "--task", "babyai"])
    with pytest.raises(JobsFailedError, match="8 problems of 3 kinds"):
        main()
    printed = capsys.readouterr().out
    assert "empty episode" in printed
    table = problem_table(validate(ValidateConfig(folder)))
    assert len(table.rows) == len(JAT_FAULTS)


def test_somebody_s_repeated_episodes_are_told_with_where_the_first_is(tmp_path: Path) -> None:
    rows = [continuous_row(number, 2, 11, 3, 0.25) for number in range(3)]
    splits = {"train": [*rows, rows[1]], "test": [rows[2], continuous_row(9, 2, 11, 3, 0.25)]}
    found = validate(ValidateConfig(write_jat(tmp_path / "jat", {"mujoco-hopper": splits}, 1))).kinds
    repeated, leaked = found["episode that is there twice"], found["test episode that is a training episode, too"]
    assert (repeated.count, repeated.first.row, repeated.first.reason) == (
        1, 3, "is row 1 of train-00000-of-00001.parquet (train), too",
    )  # fmt: skip
    assert (leaked.count, leaked.first.row, leaked.first.reason) == (
        1, 0, "is row 2 of train-00000-of-00001.parquet (train), too",
    )  # fmt: skip


def test_equal_episodes_of_different_seeds_are_counted_and_no_problem(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("test", 1_000_000_000)):
        same = expected_episode(FAKE_COUNT, 3)
        episodes = [dataclasses.replace(same, seed=first + number) for number in range(3)]
        write_shard(tmp_path / "shards", ShardJob(FAKE_COUNT, split, first, 3, "random"), "1", episodes)
    build_dataset(DatasetConfig("*", tmp_path), [FAKE_COUNT])
    findings = validate(ValidateConfig(tmp_path / "dataset"), [FAKE_COUNT])
    assert (findings.kinds, findings.num_equal) == ({}, 5)


def test_files_that_are_links_out_of_their_folder_are_told_and_not_read(dataset: Path, tmp_path: Path) -> None:
    path = next((dataset / "data" / FAKE_GRID.name).glob("train-00000*"))
    path.rename(tmp_path / "elsewhere.parquet")
    path.symlink_to(tmp_path / "elsewhere.parquet")
    foreign = jat_like(tmp_path / "jat")
    (foreign / "atari-pong" / "train-00001-of-00002.parquet").symlink_to(tmp_path / "elsewhere.parquet")
    for folder in (dataset, foreign):
        assert kinds(check(folder))["link that leads out of its folder"] >= 1


def test_the_hub_s_cache_is_a_folder_of_links_and_read(tmp_path: Path) -> None:
    repository = tmp_path / "datasets--somebody--jat"
    snapshot = repository / "snapshots" / "0123"
    jat_like(snapshot)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(snapshot.rglob("*.parquet"))):
        path.rename(repository / "blobs" / str(number))
        path.symlink_to(repository / "blobs" / str(number))
    assert kinds(validate(ValidateConfig(snapshot))) == JAT_FAULTS


@pytest.mark.parametrize(
    "files",
    ["[{split: [a], path: x}]", "[{split: train, path: 3}]", "[{split: train, path: ''}]", "'\\0'", "{a: b}", "[[a]]"],
)
def test_a_card_of_other_types_is_told(files: str, tmp_path: Path) -> None:
    folder = jat_like(tmp_path / "jat")
    (folder / "README.md").write_text(f"---\nconfigs: [{{config_name: wikipedia, data_files: {files}}}]\n---\n")
    assert set(kinds(validate(ValidateConfig(folder)))) >= set(JAT_FAULTS)


def test_a_card_nested_without_end_is_told(tmp_path: Path) -> None:
    folder = jat_like(tmp_path / "jat")
    (folder / "README.md").write_text(f"---\nconfigs: {'[' * 5_000}\n---\n")
    assert "card that cannot be read" in kinds(validate(ValidateConfig(folder)))
