"""Select the shards of a dataset."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import is_local
from pipeline.run_layout import RunLayout
from pipeline.seeds import SPLITS
from pipeline.storage.manifest import ShardManifest
from pipeline.storage.plan import count_missing, read_plan
from pipeline.storage.shards import finished_shards


@dataclass(frozen=True)
class Shard:
    """A finished shard and the folder of its files."""

    directory: Path
    manifest: ShardManifest

    @property
    def key(self) -> str:
        """Identifies its content: equal keys mean equal bytes."""
        return self.manifest.data.sha256 + self.manifest.episodes.sha256


def find_shards(
    out: Path,
    pattern: str,
    kept: Collection[str],
    tasks: Sequence[Task] | None = None,
    is_optional: bool = False,
) -> dict[Task, list[Shard]]:
    """Finished shards of the selected tasks and of those already in the dataset, collected ones before imported ones.

    Args:
        out: root of a run, with its shards in ``shards/`` and ``imported/``.
        pattern: selects the tasks to add; empty for none.
        kept: names of the tasks that are in the dataset and are kept.
        tasks: the table to choose from; all 157 if None.
        is_optional: whether the result may be empty.

    Raises:
        UserError: nothing is collected, a task selected by name or one of the dataset has no shards, or a task has
            shards of one split only.
    """
    check_root(out)
    root = RunLayout(out).shards
    others = {*folders_in(root), *folders_in(RunLayout(out).imported), *kept}
    chosen = {task.name for task in select_tasks(pattern, tasks, others)} if pattern else set()
    table = [task for task in select_tasks("*", tasks, others) if task.name in chosen | set(kept)]
    shards = {task: found for task in table if (found := shards_of(out, task))}
    check_all_there(out, {task.name for task in shards}, chosen, pattern, kept, "jat collect")
    if not shards and not is_optional:
        raise UserError(f"nothing is collected in {root} for {pattern!r}; run `jat collect` with the same --out first")
    for task, found in shards.items():
        check_splits(task.name, [shard.manifest.split for shard in found], "jat collect")
    return shards


def check_all_there(
    out: Path, there: Collection[str], chosen: Collection[str], pattern: str, kept: Collection[str], maker: str
) -> None:
    """Refuse if a task or corpus has no shards although it was selected by name or is in the dataset.

    Args:
        out: root of the run.
        there: names of those with shards.
        chosen: names of those that ``pattern`` matches.
        pattern: selects those to add.
        kept: names of those that are in the dataset and are kept.
        maker: the command that makes their shards.

    Raises:
        UserError: names the first missing one and the fix.
    """
    root = RunLayout(out).shards
    asked_by_name = {part.strip() for part in pattern.split(",")} & set(chosen)
    for name in sorted(asked_by_name - set(there)):
        raise UserError(f"{name} is not collected in {root}; run `{maker} --task {name}` with the same --out first")
    for name in sorted(set(kept) - set(there)):
        raise UserError(
            f"{name} is in {RunLayout(out).dataset} but its shards are gone from {root / name}; collect them again, "
            f"bring them back, or remove that dataset to build one without it"
        )


def check_splits(name: str, splits: Collection[str], maker: str) -> None:
    """Refuse a task or corpus that has shards of one split only.

    Raises:
        UserError: names the split and the command that makes its shards.
    """
    absent = set(SPLITS) - set(splits)
    if absent:
        raise UserError(f"{name} has no finished {' or '.join(sorted(absent))} shard; run `{maker}` again")


def check_root(out: Path) -> None:
    """Refuse a folder that is not the root of a run, and suggest the right one.

    Raises:
        UserError: it is in an object store, or inside a run.
    """
    if not is_local(out):
        raise UserError(f"--out {out}: a dataset is built on a disk; run `jat on-disk --stage dataset --out {out}`")
    if RunLayout(out).is_inside:
        raise UserError(
            f"--out {out} is a folder of shards or a dataset, not the root of a run; try --out {out.parent}"
        )


def folders_in(directory: Path) -> list[str]:
    """Names of the folders in a directory, which are named after tasks; none if it does not exist."""
    return sorted(path.name for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []


def shards_of(out: Path, task: Task) -> list[Shard]:
    """Finished shards of a task in a run, collected ones before imported ones."""
    collected = RunLayout(out).shards
    imported = RunLayout(out).imported_of(task.name)
    places = [(collected, task.name)]
    if imported.is_dir():
        places += [(imported, folder.name) for folder in sorted(imported.iterdir()) if folder.is_dir()]
    return [Shard(root / name, manifest) for root, name in places for manifest in finished_shards(root, name)]


def missing_of(
    out: Path, pattern: str, kept: Collection[str], tasks: Sequence[Task] | None = None
) -> dict[str, dict[str, int]]:
    """Episodes planned but not collected, by task and split, of the tasks that ``find_shards`` selects.

    Args:
        out: root of a run.
        pattern: selects the tasks to add; empty for none.
        kept: names of the tasks that are in the dataset and are kept.
        tasks: the table to choose from; all 157 if None.
    """
    root = RunLayout(out).shards
    planned = read_plan(root)
    chosen = {task.name for task in select_tasks(pattern, tasks, planned)} if pattern else set()
    plans = {name: plan for name, plan in planned.items() if name in chosen | set(kept)}
    found = {name: count_missing(plan, finished_shards(root, name)) for name, plan in plans.items()}
    return {name: counts for name, counts in found.items() if counts}


def environments_of(task: Task, shards: Sequence[Shard]) -> dict[str, list[Shard]]:
    """Shards by the environment in which they were played."""
    found: dict[str, list[Shard]] = {}
    for shard in shards:
        found.setdefault(shard.manifest.environment or task.env_id, []).append(shard)
    return found


def check_environments(shards: Mapping[Task, Sequence[Shard]]) -> None:
    """Refuse tasks with episodes of several environments, whose rewards, and possibly more, are not comparable.

    Raises:
        UserError: names the environments, the folders of their shards, and the fix.
    """
    for task, of_task in shards.items():
        found = environments_of(task, of_task)
        if len(found) > 1:
            places = "; ".join(
                f"{environment} in {', '.join(sorted({str(shard.directory) for shard in of_one}))}"
                for environment, of_one in found.items()
            )
            raise UserError(
                f"{task.name} has episodes of several environments: {places}. Move all but one of these folders away, "
                f"or mix them on purpose with --mix"
            )
