"""Datasets made from datasets: nothing but what was asked for changes, and the old one stays whatever happens."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from collectors.dataset.build import DatasetConfig, build_dataset
from collectors.dataset.surgery.merge import MergeConfig, merge_datasets
from collectors.dataset.surgery.places import confirm, recover, undo, undo_folder
from collectors.dataset.surgery.select import (
    FilterConfig,
    RemoveConfig,
    SplitConfig,
    filter_dataset,
    remove_episodes,
    split_dataset,
)
from collectors.dataset.validate import ValidateConfig, validate
from collectors.jobs import CollectJob, collect_shard
from pipeline import files
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.storage.manifest import DatasetManifest
from pipeline.storage.plan import ShardJob
from pipeline.storage.schema import read_blocks
from pipeline.storage.shards import IMPORTED, Origin, write_shard
from pipeline.storage.statistics import load_statistics
from tests.fakes import (
    FAKE_COUNT,
    FAKE_GRID,
    FAKE_NAN_REWARD,
    FAKE_PIXELS,
    expected_episode,
    is_success,
    random_mix,
)
from trainer.data.arrays import load_arrays

TEST = 1_000_000_000
TABLE = (FAKE_COUNT, FAKE_NAN_REWARD, FAKE_GRID, FAKE_PIXELS)


def build(out: Path, *shards: tuple[Task, str, int, int]) -> Path:
    for task, split, first, count in shards:
        mix = random_mix(out / "elsewhere", task)
        collect_shard(CollectJob(ShardJob(task, split, first, count, mix.kind), mix, out / "shards", 4))
    build_dataset(DatasetConfig(out=out), TABLE)
    return out / "dataset"


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take a second for each dataset, and are tested with the card."""
    monkeypatch.setattr("collectors.dataset.card.card._plot", lambda path, domain: False)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tasks, each with ten training episodes in two shards and two test episodes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("collectors.dataset.card.card._plot", lambda path, domain: False)
        splits = (("train", 0, 6), ("train", 6, 4), ("test", TEST, 2))
        return build(tmp_path_factory.mktemp("run"), *((task, *split) for task in TABLE for split in splits))


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256_of(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def seeds_in(folder: Path, task: Task, split: str = "train") -> list[int]:
    """Seeds of the accepted episodes; their steps must be those that were collected, bit for bit."""
    found = []
    info = DatasetManifest.load(folder / "manifest.json").tasks[task.name].splits[split]
    for data, episodes in zip(info.data, info.episodes, strict=True):
        rows = [row for row in pq.read_table(folder / episodes.name).to_pylist() if row["row"] is not None]
        blocks = list(read_blocks(task, folder / data.name))
        lengths = [int(length) for block in blocks for length in block.lengths]
        assert [row["row"] for row in rows] == list(range(len(rows))) == list(range(len(lengths)))
        for name in ("observations", "rewards"):
            expected = [getattr(expected_episode(task, row["seed"]), name) for row in rows]
            stored = [getattr(block, name) for block in blocks if len(block.lengths)]
            if rows:
                assert np.concatenate(stored).tobytes() == np.concatenate(expected).tobytes()
        found += [row["seed"] for row in rows]
    return found


def assert_sound(folder: Path, expected: dict[Task, dict[str, list[int]]]) -> None:
    """The dataset has these seeds, validates, and its statistics are those of the episodes, computed here."""
    findings = validate(ValidateConfig(folder), TABLE)
    assert findings.kinds == {}, {kind: str(what.first) for kind, what in findings.kinds.items()}
    manifest = DatasetManifest.load(folder / "manifest.json")
    assert list(manifest.tasks) == [task.name for task in expected]
    for task, splits in expected.items():
        for split, seeds in splits.items():
            assert seeds_in(folder, task, split) == seeds
            episodes = [expected_episode(task, seed) for seed in seeds]
            info = manifest.tasks[task.name].splits[split]
            assert (info.num_episodes, info.num_steps) == (len(seeds), sum(map(len, episodes)))
            statistics = load_statistics(folder, task).splits[split]
            assert (statistics.num_episodes, statistics.num_steps) == (len(seeds), sum(map(len, episodes)))
            if seeds:
                returns = [episode.total_reward for episode in episodes]
                np.testing.assert_allclose(statistics.returns.mean, [np.mean(returns)])
                np.testing.assert_allclose(statistics.returns.std, [np.std(returns)], atol=1e-12)
                steps = np.concatenate([episode.observations for episode in episodes])
                if steps.ndim == 2:
                    np.testing.assert_allclose(statistics.observations.mean, steps.mean(axis=0, dtype=np.float64))
                assert info.mean_return == pytest.approx(np.mean(returns))


def successful(seeds: range) -> list[int]:
    return [seed for seed in seeds if is_success(seed)]


def test_a_filter_keeps_what_meets_all_conditions_and_nothing_else(dataset: Path, tmp_path: Path) -> None:
    before = contents(dataset)
    filter_dataset(FilterConfig(dataset, tmp_path / "to", task="fake-count,toy-grid", success="yes"), TABLE)
    tests = successful(range(TEST, TEST + 2))
    expected = {"train": successful(range(10)), "test": tests}
    assert_sound(tmp_path / "to", {FAKE_COUNT: expected, FAKE_GRID: expected})
    assert contents(dataset) == before
    card = (tmp_path / "to" / "README.md").read_text()
    assert "`filter --task fake-count,toy-grid --success yes, of " in card


def test_images_stay_images_and_types_are_unchanged(dataset: Path, tmp_path: Path) -> None:
    filter_dataset(FilterConfig(dataset, tmp_path / "to", seeds="1-2,7"), TABLE)
    kept = {"train": [1, 2, 7], "test": list[int]()}
    # Seeds 1 and 7 of this task are rejected.
    expected = {FAKE_COUNT: kept, FAKE_NAN_REWARD: {"train": [2], "test": []}, FAKE_GRID: kept, FAKE_PIXELS: kept}
    assert_sound(tmp_path / "to", expected)
    names = [name for task in TABLE for name in (task.name, f"{task.name}-episodes")]
    for name in (*names, "episodes"):
        old, new = (load_dataset(str(path), name, cache_dir=str(tmp_path / "c")) for path in (dataset, tmp_path / "to"))
        assert new and all(rows.features == old[split].features for split, rows in new.items())
    rejected = load_dataset(str(tmp_path / "to"), "fake-nan-reward-episodes", cache_dir=str(tmp_path / "c"))["train"]
    assert [(row["seed"], row["row"], row["rejected"]) for row in rejected] == [
        (1, None, "reward not finite"),
        (2, 0, None),
        (7, None, "reward not finite"),
    ]


@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        ({"min_return": 6.0}, lambda e: e.total_reward >= 6),
        ({"max_return": 6.0, "min_length": 2}, lambda e: e.total_reward <= 6 and len(e) >= 2),
        ({"max_length": 3, "success": "no"}, lambda e: len(e) <= 3 and not e.success),
        ({"split": "train", "expert": "ran*,other"}, lambda e: e.seed < TEST),
    ],
)
def test_conditions_are_on_return_length_success_split_and_expert(
    conditions: dict[str, Any], kept: Callable[[Any], bool], dataset: Path, tmp_path: Path
) -> None:
    filter_dataset(FilterConfig(dataset, tmp_path / "to", task="fake-count", **conditions), TABLE)
    ranges = {"train": range(10), "test": range(TEST, TEST + 2)}
    expected = {s: [seed for seed in seeds if kept(expected_episode(FAKE_COUNT, seed))] for s, seeds in ranges.items()}
    assert_sound(tmp_path / "to", {FAKE_COUNT: expected})


def test_what_is_removed_and_what_is_filtered_make_up_the_whole(dataset: Path, tmp_path: Path) -> None:
    remove_episodes(RemoveConfig(dataset, tmp_path / "rest", success="yes"), TABLE)
    filter_dataset(FilterConfig(dataset, tmp_path / "won", success="yes"), TABLE)
    for name, wanted in (("rest", False), ("won", True)):
        assert validate(ValidateConfig(tmp_path / name), TABLE).kinds == {}
        for split, seeds in (("train", range(10)), ("test", range(TEST, TEST + 2))):
            expected = [seed for seed in seeds if is_success(seed) == wanted]
            assert seeds_in(tmp_path / name, FAKE_COUNT, split) == expected
    # Success is not defined in this task: all of it is in the rest, none of it in the other.
    assert seeds_in(tmp_path / "rest", FAKE_PIXELS) == list(range(10))
    assert "pixel-count" not in DatasetManifest.load(tmp_path / "won" / "manifest.json").tasks
    merge_datasets(MergeConfig((tmp_path / "won", tmp_path / "rest"), tmp_path / "both"), TABLE)
    assert validate(ValidateConfig(tmp_path / "both"), TABLE).kinds == {}
    for task in TABLE:
        for split in ("train", "test"):
            assert sorted(seeds_in(tmp_path / "both", task, split)) == seeds_in(dataset, task, split)


def test_a_task_is_removed_by_its_name_alone_and_the_other_files_are_links(dataset: Path, tmp_path: Path) -> None:
    remove_episodes(RemoveConfig(dataset, tmp_path / "to", task="toy"), TABLE)
    everything = {"train": list(range(10)), "test": [TEST, TEST + 1]}
    assert "toy-grid" not in DatasetManifest.load(tmp_path / "to" / "manifest.json").tasks
    assert seeds_in(tmp_path / "to", FAKE_COUNT) == everything["train"]
    name = "data/fake-count/train-00001-of-00002.parquet"
    assert (tmp_path / "to" / name).samefile(dataset / name)
    assert validate(ValidateConfig(tmp_path / "to"), TABLE).kinds == {}


def test_a_split_gives_a_sound_dataset_for_each_value(dataset: Path, tmp_path: Path) -> None:
    written = split_dataset(SplitConfig(dataset, tmp_path / "domains", by="domain"), TABLE)
    assert {name: list(m.tasks) for name, m in written.items()} == {
        "fake": ["fake-count", "fake-nan-reward"],
        "pixel": ["pixel-count"],
        "toy": ["toy-grid"],
    }
    assert_sound(tmp_path / "domains" / "toy", {FAKE_GRID: {"train": list(range(10)), "test": [TEST, TEST + 1]}})
    split_dataset(SplitConfig(dataset, tmp_path / "seeds", by="seed", at=4), TABLE)
    assert seeds_in(tmp_path / "seeds" / "below", FAKE_PIXELS) == [0, 1, 2, 3]
    assert seeds_in(tmp_path / "seeds" / "from", FAKE_PIXELS) == [4, 5, 6, 7, 8, 9]
    assert sorted(split_dataset(SplitConfig(dataset, tmp_path / "s", by="success"), TABLE)) == [
        "failed",
        "successful",
        "unknown",
    ]


def test_a_change_in_place_is_undone_or_confirmed(dataset: Path, tmp_path: Path) -> None:
    here = tmp_path / "dataset"
    filter_dataset(FilterConfig(dataset, here, task="fake-count"), TABLE)
    before = contents(here)
    remove_episodes(RemoveConfig(here, in_place=True, seeds="0-4"), TABLE)
    assert seeds_in(here, FAKE_COUNT) == [5, 6, 7, 8, 9]
    with pytest.raises(UserError, match="has a change that is not confirmed; run `jat dataset confirm"):
        remove_episodes(RemoveConfig(here, in_place=True, seeds="5"), TABLE)
    undo(here)
    assert contents(here) == before
    with pytest.raises(UserError, match="there is nothing to undo or confirm"):
        confirm(here)
    remove_episodes(RemoveConfig(here, in_place=True, seeds="0-4"), TABLE)
    confirm(here)
    assert not undo_folder(here).exists()
    with pytest.raises(UserError, match="there is nothing to undo or confirm"):
        undo(here)
    assert_sound(here, {FAKE_COUNT: {"train": [5, 6, 7, 8, 9], "test": [TEST, TEST + 1]}})
    assert [path.name for path in tmp_path.iterdir() if path.name != ".dataset.lock"] == ["dataset"]


def test_a_build_does_not_bring_back_what_was_removed(tmp_path: Path) -> None:
    shards = ((FAKE_COUNT, "train", 0, 3), (FAKE_COUNT, "test", TEST, 1))
    dataset = build(tmp_path, *shards)
    remove_episodes(RemoveConfig(dataset, in_place=True, seeds="0"), TABLE)
    confirm(dataset)
    before = contents(dataset)
    with pytest.raises(UserError, match=r"was changed after it was built .* move it away to build another"):
        build_dataset(DatasetConfig(out=tmp_path), TABLE)
    assert contents(dataset) == before


class Killed:
    """Ends the process at the ``number``-th call of a function of ``Path``, as a kill would."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                os._exit(9)
            return original(*arguments, **options)

        return replaced


def _remove_and_die(here: Path, number: int) -> None:
    files._swept.clear()  # as in a new process
    kill = Killed(number)
    Path.rename = kill(Path.rename)  # type: ignore[method-assign]
    Path.replace = kill(Path.replace)  # type: ignore[method-assign]
    remove_episodes(RemoveConfig(here, in_place=True, seeds="0-4"), TABLE)
    os._exit(0)


def kills(here: Path) -> Iterator[int]:
    """Kill a change in place at every rename that it makes, until it survives; yields how often it was killed."""
    context = multiprocessing.get_context("fork")
    for number in range(1, 100):
        process = context.Process(target=_remove_and_die, args=(here, number))
        process.start()
        process.join()
        if process.exitcode == 0:
            return
        assert process.exitcode == 9
        yield number


def test_a_kill_at_any_rename_loses_nothing(dataset: Path, tmp_path: Path) -> None:
    here = tmp_path / "dataset"
    filter_dataset(FilterConfig(dataset, here, task="fake-count"), TABLE)
    before = contents(here)
    count = 0
    for count in kills(here):  # noqa: B007
        recover(here)
        assert contents(here) == before
    assert count >= 4  # statistics, card, manifest, and between the two folders
    assert seeds_in(here, FAKE_COUNT) == [5, 6, 7, 8, 9]
    assert contents(undo_folder(here)) == before
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


def _run_and_die(run: Callable[[Path], None], here: Path) -> None:
    """Run with a kill where the first folder would be deleted, so that its files are already."""
    os.rmdir = Killed(1)(os.rmdir)
    run(here)
    os._exit(0)


def test_a_confirm_that_is_killed_leaves_no_half_dataset_to_go_back_to(dataset: Path, tmp_path: Path) -> None:
    here = tmp_path / "dataset"
    filter_dataset(FilterConfig(dataset, here, task="fake-count"), TABLE)
    remove_episodes(RemoveConfig(here, in_place=True, seeds="0-4"), TABLE)
    process = multiprocessing.get_context("fork").Process(target=_run_and_die, args=(confirm, here))
    process.start()
    process.join()
    assert process.exitcode == 9
    with pytest.raises(UserError, match="there is nothing to undo or confirm"):
        undo(here)
    assert_sound(here, {FAKE_COUNT: {"train": [5, 6, 7, 8, 9], "test": [TEST, TEST + 1]}})


def test_a_link_to_a_dataset_is_changed_like_the_dataset(dataset: Path, tmp_path: Path) -> None:
    here, link = tmp_path / "disk" / "dataset", tmp_path / "link"
    filter_dataset(FilterConfig(dataset, here, task="fake-count"), TABLE)
    link.symlink_to(here)
    remove_episodes(RemoveConfig(link, in_place=True, seeds="0-4"), TABLE)
    assert link.is_symlink() and seeds_in(here, FAKE_COUNT) == [5, 6, 7, 8, 9]
    undo(link)
    assert link.is_symlink() and seeds_in(here, FAKE_COUNT) == list(range(10))
    remove_episodes(RemoveConfig(link, in_place=True, seeds="0"), TABLE)
    confirm(link)
    assert seeds_in(link, FAKE_COUNT) == list(range(1, 10))
    assert sorted(path.name for path in here.parent.iterdir()) == [".dataset.lock", "dataset"]


def test_no_lock_is_left_where_there_is_no_dataset(tmp_path: Path) -> None:
    for run in (undo, confirm):
        with pytest.raises(UserError, match="nothing to undo or confirm"):
            run(tmp_path / "no" / "dataset")
    assert not list(tmp_path.iterdir())


def test_a_split_without_episodes_does_not_open_and_the_rest_does(dataset: Path, tmp_path: Path) -> None:
    filter_dataset(FilterConfig(dataset, tmp_path / "to", split="test"), TABLE)
    for name in (*(task.name for task in TABLE), "episodes"):
        assert list(load_dataset(str(tmp_path / "to"), name, cache_dir=str(tmp_path / "c"))) == ["test"]
    (tmp_path / "cache").mkdir()
    manifest = DatasetManifest.load(tmp_path / "to" / "manifest.json")
    for task in TABLE:
        assert load_arrays(tmp_path / "to", manifest, task, "train", tmp_path / "cache").num_steps == 0


def test_bad_input_is_one_line_and_nothing_is_written(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    to = tmp_path / "to"
    for run, config, reason in (
        (filter_dataset, FilterConfig(dataset, to), "no condition is given; give at least one"),
        (filter_dataset, FilterConfig(dataset, tmp_path / "full", success="yes"), "full is there and not empty"),
        (filter_dataset, FilterConfig(dataset, to, min_return=99), "no episode has --min-return 99; there are returns"),
        (filter_dataset, FilterConfig(dataset, to, expert="ppo"), "no episode has --expert ppo; there are random"),
        (filter_dataset, FilterConfig(dataset, to, seeds="20-30"), "seeds 20-30; there are seeds from 0 to 1000000001"),
        (filter_dataset, FilterConfig(dataset, to, seeds="3-x"), "'3-x' is neither a seed nor a range such as 0-99"),
        (filter_dataset, FilterConfig(dataset, to, seeds="1" * 5000), "1' is neither a seed nor a range such as 0-99"),
        (filter_dataset, FilterConfig(dataset, dataset / "good", success="yes"), "/good is within the dataset /"),
        (filter_dataset, FilterConfig(dataset, to, task="mujoco-ant"), "mujoco-ant"),
        (filter_dataset, FilterConfig(dataset, to, task="toy", seeds="3", max_length=1), "all of these conditions"),
        (filter_dataset, FilterConfig(dataset, to, in_place=True, success="yes"), "contradict each other"),
        (filter_dataset, FilterConfig(dataset.parent, to, success="yes"), "is no dataset: it has no manifest.json"),
        (remove_episodes, RemoveConfig(dataset, to, min_length=0, task="*"), "these are all its episodes"),
        (remove_episodes, RemoveConfig(dataset, to, max_length=0), "nothing to remove: no episode has --max-length 0"),
        (split_dataset, SplitConfig(dataset, to, by="expert"), "--by expert gives one dataset only"),
        (split_dataset, SplitConfig(dataset, to, by="return"), "--by return needs --at"),
        (split_dataset, SplitConfig(dataset, to, by="task", at=1), "--by task takes no --at"),
        (merge_datasets, MergeConfig((dataset,), to), "names 1; name at least two"),
        (merge_datasets, MergeConfig((dataset, dataset), to), "names one dataset twice"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=re.escape(reason)) as caught:
            run(config, TABLE)  # type: ignore[operator]
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_episodes_that_cannot_be_together_are_refused_with_how_to_take_them_out(dataset: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    filter_dataset(FilterConfig(dataset, part, task="fake-count", seeds="2-4"), TABLE)
    with pytest.raises(UserError, match=r"3 seeds of fake-count, from 2 on, are in .* --seeds 2-4`"):
        merge_datasets(MergeConfig((dataset, part), tmp_path / "to"), TABLE)
    filter_dataset(FilterConfig(dataset, tmp_path / "parts", task="fake-count", seeds=f"0,2-4,{TEST}"), TABLE)
    with pytest.raises(UserError, match=rf"5 seeds of fake-count, from 0 on, .* --seeds 0,2-4,{TEST}`"):
        merge_datasets(MergeConfig((dataset, tmp_path / "parts"), tmp_path / "to"), TABLE)
    rest = tmp_path / "rest"
    remove_episodes(RemoveConfig(dataset, rest, task="fake-count", seeds="2-4"), TABLE)
    manifest = json.loads((rest / "manifest.json").read_text())
    manifest["tasks"]["fake-count"]["versions"] = {"numpy": "1.0"}
    (rest / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"fake-count was played with numpy .* and numpy 1.0 in .*rest"):
        merge_datasets(MergeConfig((part, rest), tmp_path / "to"), TABLE)
    assert not (tmp_path / "to").exists()


def imported(out: Path, task: Task, seeds: range) -> Path:
    """A dataset of imported episodes, whose seeds are not known."""
    for split, first, count in (("train", seeds.start, len(seeds)), ("test", TEST + seeds.start, 1)):
        job = ShardJob(task, split, first, count, IMPORTED)
        origin = Origin("a folder", "Elsewhere-v1")
        episodes = (expected_episode(task, seed) for seed in job.seeds)
        write_shard(out / "imported", job, origin.revision, episodes, origin=origin, folder=f"{task.name}/source")
    build_dataset(DatasetConfig(out=out), TABLE)
    return out / "dataset"


@pytest.mark.parametrize("task", [FAKE_COUNT, FAKE_GRID], ids=lambda task: task.name)
def test_imported_episodes_are_not_merged_with_themselves(task: Task, tmp_path: Path) -> None:
    one, other = imported(tmp_path / "one", task, range(10)), imported(tmp_path / "other", task, range(20, 26))
    part = tmp_path / "part"
    filter_dataset(FilterConfig(one, part, split="train", max_length=3), TABLE)
    count = sum(len(pq.read_table(path)) for path in (part / "data").rglob("*.parquet"))
    assert 1 < count < 11
    with pytest.raises(UserError, match=rf"{count} episodes of {task.name}, whose seeds are not known, are in .*one"):
        merge_datasets(MergeConfig((one, part), tmp_path / "to"), TABLE)
    assert not (tmp_path / "to").exists()
    manifest = merge_datasets(MergeConfig((one, other), tmp_path / "to"), TABLE)
    assert manifest.tasks[task.name].splits["train"].num_episodes == 16


def test_a_damaged_dataset_is_refused_and_nothing_is_written(dataset: Path, tmp_path: Path) -> None:
    here = tmp_path / "dataset"
    filter_dataset(FilterConfig(dataset, here, task="fake-count", seeds="0-9"), TABLE)
    path = here / "data" / "fake-count" / "train-00000-of-00002.parquet"
    content = bytearray(path.read_bytes())
    path.unlink()
    content[50] ^= 1
    path.write_bytes(content)
    for seeds in ("0-3", "0-9"):
        with pytest.raises(UserError, match=r"train-00000-of-00002.parquet: the file is damaged.*jat dataset validate"):
            filter_dataset(FilterConfig(here, tmp_path / "to", seeds=seeds), TABLE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset"]
