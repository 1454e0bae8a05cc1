"""Which shards a dataset is made of."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import is_local
from pipeline.manifest import ShardManifest
from pipeline.seeds import SPLITS
from pipeline.shards import finished_shards
from pipeline.tasks import Task, select_tasks


@dataclass(frozen=True)
class Shard:
    """A finished shard and the folder its files are in."""

    directory: Path
    manifest: ShardManifest

    @property
    def key(self) -> str:
        """Tells its content: equal keys, equal bytes."""
        return self.manifest.data.sha256 + self.manifest.episodes.sha256


def find_shards(
    out: Path,
    pattern: str,
    kept: Collection[str],
    tasks: Sequence[Task] | None = None,
    is_optional: bool = False,
) -> dict[Task, list[Shard]]:
    """Finished shards of the tasks chosen and of those the dataset already has, by split and first seed.

    Args:
        out: root of a run, with its shards in ``shards/``.
        pattern: which tasks to add; empty for none.
        kept: names of the tasks that are in the dataset and stay there.
        tasks: the table to choose from; all 157 if None.
        is_optional: whether there may be nothing.

    Raises:
        UserError: nothing collected, not what was asked for by name, or no longer what the dataset has; one split only.
    """
    check_root(out)
    root = out / "shards"
    chosen = {task.name for task in select_tasks(pattern, tasks)} if pattern else set()
    table = [task for task in select_tasks("*", tasks) if task.name in chosen | set(kept)]
    shards = {task: found for task in table if (found := _shards_of(root, task))}
    collected = {task.name for task in shards}
    asked_by_name = {part.strip() for part in pattern.split(",")} & chosen
    for name in sorted(asked_by_name - collected):
        raise UserError(f"{name} is not collected in {root}; run `make collect TASK={name}` with the same OUT first")
    for name in sorted(set(kept) - collected):
        raise UserError(
            f"{name} is in {out / 'dataset'} but its shards are gone from {root / name}; collect them again, "
            f"bring them back, or remove that dataset to build one without it"
        )
    if not shards and not is_optional:
        raise UserError(f"nothing is collected in {root} for {pattern!r}; run `make collect` with the same OUT first")
    for task, found in shards.items():
        absent = set(SPLITS) - {shard.manifest.split for shard in found}
        if absent:
            raise UserError(
                f"{task.name} has no finished {' or '.join(sorted(absent))} shard; run `make collect` again"
            )
    return shards


def check_root(out: Path) -> None:
    """Refuse what is not the root of a run, and say what would be.

    Raises:
        UserError: an object store, or a folder inside a run.
    """
    if not is_local(out):
        raise UserError(f"--out {out}: a dataset is built on a disk; copy the shards to one, then `make publish`")
    if not (out / "shards").is_dir() and ((out / "plan.json").exists() or (out / "manifest.json").exists()):
        raise UserError(
            f"--out {out} is a folder of shards or a dataset, not the root of a run; try --out {out.parent}"
        )


def _shards_of(root: Path, task: Task) -> list[Shard]:
    directory = root / task.name
    return [Shard(directory, manifest) for manifest in finished_shards(root, task.name)]
