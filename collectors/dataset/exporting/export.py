"""Export a dataset for other tools: LeRobot (v3) or Minari.

jat dataset export --dataset runs/default/dataset --format lerobot --task 'metaworld-*' --to ./metaworld-lerobot
jat dataset export --dataset runs/default/dataset --format minari --to ./minari
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from collectors.dataset.exporting.episodes import labelled_tasks
from collectors.dataset.exporting.lerobot import INFO, VERSION, layout_of, write_lerobot
from collectors.dataset.exporting.minari import check_minari, write_minari
from collectors.dataset.layout import CARD
from collectors.dataset.surgery.places import NewPlace, check_empty, new_folder
from collectors.dataset.surgery.source import Source, open_source
from collectors.stored import naming_missing_packages
from collectors.video import steps_per_s
from pipeline.cli import parse, run
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import sha256_of, temporary_beside
from pipeline.publishing.publish import Options, parse_target, publish
from pipeline.storage.manifest import FileEntry

log = logging.getLogger(__name__)

MAX_NAMED = 4  # tasks named in an error


@dataclass(frozen=True)
class ExportConfig:
    """Export a dataset for other tools; texts and images of corpora are left out."""

    format: Literal["lerobot", "minari"]
    """`lerobot`: one LeRobotDataset v3 of tasks with the same observations and actions. `minari`: two Minari datasets
    for each task, `jat/TASK/train-v0` and `test-v0`, in a folder for MINARI_DATASETS_PATH."""
    to: str
    """A folder that is not there yet (./name), owner/name on the Hub, or a URL such as s3://bucket/path."""
    dataset: Path = Path("runs/default/dataset")
    """Folder of the dataset."""
    task: str = "*"
    """Tasks: name, domain, glob, or comma list."""
    public: bool = False
    """Create the Hub repository as public instead of private."""


def export(config: ExportConfig, tasks: Sequence[Task] | None = None) -> None:
    """Write the export, and publish it if it goes to the Hub or a store.

    Args:
        config: the options.
        tasks: the table to choose from; all 157 if None.

    Raises:
        UserError: tasks that the format cannot hold together, a place that is taken, a damaged dataset; nothing was
            written.
        JobsFailedError: publishing failed for longer than the retries last.
    """
    source = open_source(config.dataset, tasks)
    chosen = source.choose(config.task, tasks)
    labelled = labelled_tasks(source, chosen)
    if labelled:
        log.warning("the labels of %s are left out: an export has what was executed", _shortened(labelled))
    options = Options(tag=VERSION if config.format == "lerobot" else None, public=config.public)
    is_hub = "://" in config.to or not isinstance(parse_target(config.to, "dataset", Options()), Path)
    if not is_hub:
        target = Path(config.to).expanduser()
        check_empty(target.absolute())
        write = _writer(config, source, chosen)
        with new_folder(NewPlace(config.dataset, target), "export") as folder:
            write(folder)
        return
    options = options if "://" not in config.to or config.to.startswith("hf://") else Options()
    parse_target(config.to, "dataset", options)  # before the work
    write = _writer(config, source, chosen)
    with temporary_beside(config.dataset.absolute().with_name("export")) as folder:
        files = folder / "files"
        write(files)
        last = INFO if config.format == "lerobot" else CARD
        names = sorted(str(path.relative_to(files)) for path in files.rglob("*") if path.is_file())
        entries = [FileEntry(n, (files / n).stat().st_size, sha256_of(files / n)) for n in names if n != last]
        publish(files, entries, last, config.to, "dataset", folder / "records", options)


def _writer(config: ExportConfig, source: Source, tasks: Sequence[Task]) -> Callable[[Path], None]:
    """Check that the format can hold the tasks; returns what writes them to a folder.

    Raises:
        UserError: it cannot; the message says what it can hold.
    """
    if config.format == "minari":
        check_minari(source, tasks)
        return lambda folder: write_minari(folder, source, tasks)
    layouts: dict[tuple[object, ...], list[str]] = {}
    for task in tasks:
        layouts.setdefault(layout_of(task), []).append(task.name)
    if len(layouts) > 1:
        groups = "; ".join(_shortened(names) for names in layouts.values())
        raise UserError(
            f"a LeRobot dataset holds tasks with the same observations and actions, and these have "
            f"{len(layouts)} kinds; export each kind on its own, with --task: {groups}"
        )
    with naming_missing_packages(tasks[0]):
        fps = steps_per_s(tasks[0])
    return lambda folder: write_lerobot(folder, source, tasks, fps)


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def main() -> None:
    export(parse(ExportConfig))


if __name__ == "__main__":
    run("collectors.dataset.exporting.export")
