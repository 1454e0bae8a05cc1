"""Find one stored episode by task and seed in a dataset or in shards, without reading the others."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from collectors.dataset.sources import shards_of
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.run_layout import RunLayout
from pipeline.storage.manifest import DatasetManifest
from pipeline.storage.schema import EpisodeBlock, read_episode
from pipeline.storage.validate import read_side, refuse

MAX_RANGES = 5  # of seeds, shown in an error message


@dataclass(frozen=True)
class StoredEpisode:
    """The stored data of one seed.

    Attributes:
        seed: None if it was imported.
        place: data file and row, for messages.
        steps: its data, a block of one episode.
        expert, expert_revision: the acting expert.
        noise: action noise in the syntax of ``--noise``, or None.
        total_reward, length, success, ended: as in the side table.
        versions: of the packages it was made with, by name.
        label_expert: revision of the expert that labelled it, or None.
    """

    task: Task
    seed: int | None
    place: str
    steps: EpisodeBlock
    expert: str
    expert_revision: str
    noise: str | None
    total_reward: float
    length: int
    success: bool | None
    ended: str
    versions: dict[str, str]
    label_expert: str | None = None

    @property
    def playable_seed(self) -> int:
        """The seed to play again. Raises UserError if the episode was imported."""
        if self.seed is None:
            raise UserError("an imported episode has no seed, so it cannot be played again")
        return self.seed


@dataclass(frozen=True)
class _Files:
    """A data file and its side table."""

    data: Path
    side: Path


def one_task(pattern: str, tasks: Sequence[Task] | None = None) -> Task:
    """The task with this name.

    Raises:
        UserError: the pattern matches none, or several.
    """
    found = select_tasks(pattern, tasks)
    if len(found) > 1:
        raise UserError(f"--task {pattern!r} matches {len(found)} tasks; name one, such as {found[0].name}")
    return found[0]


@contextlib.contextmanager
def naming_missing_packages(task: Task) -> Iterator[None]:
    """Convert an ImportError of a task's environment, expert or renderer to a ``UserError``."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"{task.name} cannot be played here: {error}; install jat-pipeline[all]") from error


def find_episode(task: Task, seed: int, out: Path, dataset: Path | None = None) -> StoredEpisode:
    """Find the episode of a seed.

    Args:
        task: its task.
        seed: its seed.
        out: root of a run; its dataset is searched first, then its shards.
        dataset: search only this dataset.

    Raises:
        UserError: there are no episodes of the task, the seed was not played, or its episode was rejected.
    """
    files = _files_of_dataset(task, dataset) if dataset else _files_of_run(task, out)
    for pair in files:
        side_table = _read_side(pair.side)
        rows = side_table.filter(pc.equal(side_table["seed"], seed)).to_pylist()
        if not rows:
            continue
        side = rows[0]
        if side["row"] is None:
            raise UserError(
                f"seed {seed} of {task.name} was played, but its episode was rejected, so there are no steps: "
                f"{side['rejected']}. {_seeds_there(files)}"
            )
        return load_episode(task, pair.data, side)
    raise UserError(f"seed {seed} of {task.name} is not in {dataset or out}. {_seeds_there(files)}")


def load_episode(task: Task, data: Path, side: Mapping[str, Any]) -> StoredEpisode:
    """Read the steps of an episode.

    Args:
        task: its task.
        data: its data file.
        side: its row of the side table; it must not be rejected.

    Raises:
        UserError: the data file has no such row.
    """
    return StoredEpisode(
        task=task,
        seed=side["seed"],
        place=f"{data}, row {side['row']}",
        steps=read_episode(task, data, side["row"]),
        expert=side["expert"],
        expert_revision=side["expert_revision"],
        noise=side.get("noise"),
        total_reward=side["return"],
        length=side["length"],
        success=side["success"],
        ended=side["ended"],
        versions=_parse_versions(side["versions"] or ""),
        label_expert=side.get("label_expert"),
    )


def _files_of_run(task: Task, out: Path) -> list[_Files]:
    dataset = RunLayout(out).dataset
    files = []
    if (dataset / DatasetManifest.FILE_NAME).exists():
        files += list(_named_by_manifest(task, dataset))
    for shard in shards_of(out, task):
        manifest = shard.manifest
        files.append(_Files(shard.directory / manifest.data.name, shard.directory / manifest.episodes.name))
    if not files:
        raise UserError(
            f"{out} has no episodes of {task.name}, neither in dataset/ nor in shards/; "
            f"name another run with --out, or collect some with `jat collect --task {task.name}`"
        )
    return files


def _files_of_dataset(task: Task, dataset: Path) -> list[_Files]:
    if not (dataset / DatasetManifest.FILE_NAME).exists():
        raise UserError(f"{dataset} is no dataset: it has no {DatasetManifest.FILE_NAME}; `jat dataset` builds one")
    files = list(_named_by_manifest(task, dataset))
    if not files:
        there = ", ".join(DatasetManifest.load(dataset / DatasetManifest.FILE_NAME).tasks)
        raise UserError(f"{dataset} has no {task.name}; it has: {there}")
    return files


def _named_by_manifest(task: Task, dataset: Path) -> Iterator[_Files]:
    manifest = DatasetManifest.load(dataset / DatasetManifest.FILE_NAME)
    if task.name in manifest.tasks:
        for split in manifest.tasks[task.name].splits.values():
            for data, side in zip(split.data, split.episodes, strict=True):
                yield _Files(dataset / data.name, dataset / side.name)


def _read_side(path: Path) -> pa.Table:
    """Raises UserError if the file is not a side table."""
    table = read_side(path, refuse)
    if table is None:  # unreachable, as `refuse` raises
        raise UserError(f"{path} is no side table")
    return table


def _seeds_there(files: Sequence[_Files]) -> str:
    """Describe which seeds have an episode."""
    seeds: set[int] = set()
    num_without_seed = 0
    contents = {pair.side.stat().st_ino: pair for pair in files}  # files of a dataset are hard links to those of shards
    for pair in contents.values():
        side = _read_side(pair.side)
        accepted = side.filter(side["row"].is_valid())
        seeds.update(accepted["seed"].drop_null().to_pylist())
        num_without_seed += accepted["seed"].null_count
    words = [f"There are seeds {_ranges(sorted(seeds))}."] if seeds else []
    if num_without_seed:
        words.append(f"{num_without_seed} imported episodes have no seed and cannot be re-created.")
    return " ".join(words) or "No seed has an episode."


def _ranges(seeds: Sequence[int]) -> str:
    """Format as ``0 to 109, 1000000000 to 1000000009``."""
    numbers = np.array(seeds)
    parts = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    words = [str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts]
    shown = list(itertools.islice(words, MAX_RANGES))
    return ", ".join(shown) + (f" and {len(words) - len(shown)} more ranges" if len(words) > len(shown) else "")


def _parse_versions(text: str) -> dict[str, str]:
    """Parse ``metaworld 3.1.1, mujoco 3.3.0``, as written by ``format_versions``, to versions by name."""
    pairs = (part.split(" ", 1) for part in text.split(", ") if part)
    return {pair[0]: pair[-1] for pair in pairs}
