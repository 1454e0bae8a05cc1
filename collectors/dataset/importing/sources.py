"""Find the episodes to import in a source, and assign them to tasks and splits.

folder                     Parquet files in JAT's columns, assigned by the card or by file names; or a Minari dataset
owner/name, hub:owner/name  a dataset on the Hub, @revision allowed; streamed, never downloaded as a whole
minari:mujoco/hopper/expert-v0   a Minari dataset
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collectors.dataset.importing.lerobot import INFO as LEROBOT
from collectors.dataset.importing.lerobot import LeRobotRows, folder_digest, open_lerobot
from collectors.dataset.importing.minari import MINARI, MinariRows, data_folder, describe_minari, find_minari
from collectors.dataset.importing.rows import ParquetRows, Rows, check_columns, count_rows, schema_of
from collectors.dataset.layout import read_layout
from collectors.documents.sources import list_hub, tail_digest
from pipeline.envs.registry import all_tasks
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import digest_of
from pipeline.publishing.hub import HUB, readable_errors
from pipeline.seeds import SPLITS
from pipeline.storage.episode_rules import Problem
from pipeline.storage.manifest import DatasetManifest
from pipeline.storage.schema import label_column
from pipeline.text import format_count

log = logging.getLogger(__name__)

_REPOSITORY = re.compile(r"(?:hub:)?(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
# Splits that may serve as the test split, best first.
TESTS = ("test", "validation")


class NotThereError(UserError):
    """The source has nothing of this task, but has other tasks."""


@dataclass(frozen=True)
class EpisodeSource:
    """One task's episodes in a source.

    Attributes:
        name: of the source, the same for all its revisions.
        revision: identifies the content: a commit, or a digest.
        environment: id of the environment, or None if neither the source nor its kind determines it.
        rows: of both splits.
    """

    name: str
    revision: str
    environment: str | None
    rows: Mapping[str, Rows]

    @property
    def text(self) -> str:
        """The value of ``ShardManifest.source``."""
        return f"{self.name}@{self.revision}"


def source_name(text: str) -> str:
    """The name of a source without its revision.

    Raises:
        UserError: it is neither a folder nor the name of a repository.
    """
    if text.startswith(MINARI):
        return text
    if not text.startswith(HUB) and Path(text).expanduser().is_dir():
        return str(Path(text).expanduser().resolve())
    match = _REPOSITORY.fullmatch(text)
    if Path(text).expanduser().exists():
        raise UserError(f"--source {text!r} is a file; give the folder of the dataset that it is of")
    if not match or text.startswith((".", "/", "~")):
        raise UserError(
            f"--source {text!r} is neither a folder that is there, nor owner/name of a dataset on the Hub, nor "
            f"{MINARI}NAME"
        )
    return HUB + match["repository"]


def resolve_source(
    text: str, task: Task, limit: int | None, test_share: float, known_revision: str | None = None
) -> EpisodeSource:
    """Find a task's episodes in a source.

    Args:
        text: one of the forms in the module's docstring.
        task: the task.
        limit: number of training episodes requested, so that no more files are opened than needed; None for all.
        test_share: share of the episodes, the last ones, used as the test split where the source has none.
        known_revision: the commit to use where the source names none.

    Raises:
        NotThereError: it has nothing of this task.
        UserError: it cannot be reached or read, is not a dataset, or is of another environment.
    """
    name = source_name(text)
    if text.startswith(MINARI):
        return _minari_source(name, find_minari(text.removeprefix(MINARI)), task, test_share)
    if name.startswith(HUB):
        match = _REPOSITORY.fullmatch(text)
        revision = (match["revision"] if match else None) or known_revision
        return _hub_source(name, revision, task, limit, test_share)
    if (Path(name) / LEROBOT).is_file():
        return _lerobot_source(name, Path(name), folder_digest(Path(name)), task, test_share)
    folder = data_folder(Path(name))
    if folder is not None:
        return _minari_source(name, folder, task, test_share)
    return _folder_source(name, task, limit, test_share)


def _minari_source(name: str, folder: Path, task: Task, test_share: float) -> EpisodeSource:
    info = describe_minari(folder, task)
    num_train = _num_train(name, info.num_episodes, test_share)
    rows = {
        "train": MinariRows(str(folder), 0, num_train),
        "test": MinariRows(str(folder), num_train, info.num_episodes - num_train),
    }
    return EpisodeSource(name, info.digest, info.environment, rows)


def _lerobot_source(name: str, root: Path | str, revision: str, task: Task, test_share: float) -> EpisodeSource:
    found = open_lerobot(str(root), task)
    if not any(found.episodes.values()):
        raise NotThereError(f"{name} has nothing of {task.name}; it has {', '.join(found.tasks)}")
    train, test = found.episodes["train"], found.episodes["test"]
    if not found.has_splits:
        num_train = _num_train(name, len(train), test_share)
        train, test = train[:num_train], train[num_train:]
    rows = {
        split: LeRobotRows(str(root), chosen, found.columns) for split, chosen in (("train", train), ("test", test))
    }
    return EpisodeSource(name, revision, found.environment, rows)


def _folder_source(name: str, task: Task, limit: int | None, test_share: float) -> EpisodeSource:
    folder = Path(name)
    known = [known.name for known in all_tasks()]
    layout = read_layout(folder, {*known, task.name}, _refuse)
    files = {split: [str(path) for path in paths] for split, paths in layout.files.get(task.name, {}).items()}
    if not files:
        _refuse_folder(folder, task, [config for config in layout.files if not config.endswith("episodes")])
    paths = [Path(file) for of_split in files.values() for file in of_split]
    revision = digest_of([(str(p.relative_to(folder)), p.stat().st_size, tail_digest(p)) for p in paths])
    is_ours = (folder / DatasetManifest.FILE_NAME).exists()
    environment = task.env_id if is_ours else task.jat_env_id
    return EpisodeSource(name, revision, environment, _parquet_rows(name, task, files, limit, test_share))


def _refuse(problem: Problem) -> None:
    raise UserError(str(problem))


def _refuse_folder(folder: Path, task: Task, there: list[str]) -> None:
    if there:
        raise NotThereError(f"{folder} has nothing of {task.name}; it has {', '.join(sorted(there))}")
    if any(folder.rglob("*.arrow")):
        raise UserError(
            f"{folder} holds Arrow files, as `datasets` keeps them in its cache or writes them with save_to_disk; "
            f"write them as Parquet first: load_from_disk(...).to_parquet('{task.name}/train-00000-of-00001.parquet')"
        )
    if any(folder.rglob("*.parquet")):
        raise UserError(
            f"{folder} holds Parquet files, but neither a card nor their names say which is of {task.name} and of "
            f"which split; name them as in {task.name}/train-00000-of-00001.parquet"
        )
    raise UserError(f"{folder} is no dataset: no Parquet file is in it, and nothing of Minari's")


def _hub_source(name: str, revision: str | None, task: Task, limit: int | None, test_share: float) -> EpisodeSource:
    repository = name.removeprefix(HUB)
    commit, names = list_hub(repository, revision)
    if LEROBOT in names:
        return _lerobot_source(name, f"hf://datasets/{repository}@{commit}", commit, task, test_share)
    files = _hub_files(repository, commit, task)
    for file in (file for of_split in files.values() for file in of_split):
        if not file.endswith(".parquet"):
            raise UserError(f"{repository} keeps {task.name} in {file.rsplit('/', 1)[-1]}; only Parquet is imported")
    environment = task.env_id if DatasetManifest.FILE_NAME in names else task.jat_env_id
    return EpisodeSource(name, commit, environment, _parquet_rows(name, task, files, limit, test_share))


def _hub_files(repository: str, commit: str, task: Task) -> dict[str, list[str]]:
    """Addresses of a task's files by split, as ``datasets`` finds them."""
    from datasets import get_dataset_config_names, load_dataset_builder

    with readable_errors(repository, commit, "download the repository elsewhere and give its folder"):
        there: list[str] = get_dataset_config_names(repository, revision=commit)
        if task.name in there:
            found: Any = load_dataset_builder(repository, task.name, revision=commit).config.data_files
            files = {str(split): list(map(str, of_split)) for split, of_split in found.items()}
            _check_inside(repository, commit, files)
            return files
    tasks = [config for config in there if not config.endswith("episodes")]
    raise NotThereError(f"{repository} has nothing of {task.name}; it has {', '.join(tasks)}")


def _check_inside(repository: str, commit: str, files: Mapping[str, list[str]]) -> None:
    """Refuse a card that names files outside the repository, such as on this machine or its network."""
    for file in (file for of_split in files.values() for file in of_split):
        if not file.startswith(f"hf://datasets/{repository}@{commit}/") or ".." in file.split("/"):
            raise UserError(f"the card of {repository} names {file}, which is not in the repository; it is not read")


def _parquet_rows(
    name: str, task: Task, files: Mapping[str, list[str]], limit: int | None, test_share: float
) -> dict[str, Rows]:
    """Rows of both splits; without a test split, the last rows of the source become it."""
    train_files = files.get("train", [])
    tests = next((files[split] for split in TESTS if files.get(split)), [])
    if not train_files:
        raise UserError(f"{name} has no train split of {task.name}; it has {', '.join(files)}")
    check_columns(task, train_files[0], schema_of(train_files[0]))
    rows = _rows_of_splits(name, task, train_files, tests, limit, test_share)
    # Only of files that are read anyway: asking for others would download more of a repository.
    read = rows["train"].files
    if any(label_column(task) in schema_of(file).names for file in {read[0], read[-1]}):
        log.warning("%s: the labels of %s are left out; `jat dataset merge` keeps them", name, task.name)
    return {**rows}


def _rows_of_splits(
    name: str, task: Task, train_files: list[str], tests: list[str], limit: int | None, test_share: float
) -> dict[str, ParquetRows]:
    if tests:
        wanted = {"train": limit, "test": None if limit is None else num_tests(limit, test_share)}
        return {
            split: _all_rows(found, wanted[split]) for split, found in zip(SPLITS, (train_files, tests), strict=True)
        }
    counts = count_rows(train_files, None)
    num_train = _num_train(name, sum(counts), test_share)
    return {
        "train": ParquetRows(tuple(train_files), counts, 0, num_train),
        "test": ParquetRows(tuple(train_files), counts, num_train, sum(counts) - num_train),
    }


def _all_rows(files: list[str], wanted: int | None) -> ParquetRows:
    counts = count_rows(files, wanted)
    return ParquetRows(tuple(files[: len(counts)]), counts, 0, sum(counts))


def num_tests(num_train: int, test_share: float) -> int:
    """Number of test episodes for this many training episodes; at least one."""
    return max(1, round(num_train * test_share))


def _num_train(name: str, num_rows: int, test_share: float) -> int:
    """Number of training episodes if ``test_share`` is the ratio of test to training episodes."""
    if num_rows < 2:
        raise UserError(
            f"{name} has {format_count(num_rows, 'episode')}; it takes at least one for training and one for testing"
        )
    return num_rows - max(1, round(num_rows * test_share / (1 + test_share)))
