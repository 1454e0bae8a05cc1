"""Validate a dataset of any origin and list all problems.

    jat dataset validate --dataset runs/default/dataset

For datasets of this project (with a ``manifest.json``): every byte, every side table, every episode, the totals, and
consistency between files. For others, such as a copy of JAT's: whatever can be checked from their files. Records of
earlier checks are not trusted, and nothing is modified. Exit code 1 if there are problems.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from collectors.dataset.card.configs import num_rows
from collectors.dataset.corpora import pattern_of_tasks
from collectors.dataset.findings import Findings, problem_table, total_table
from collectors.dataset.layout import UNPLACED, DatasetFiles, read_layout
from collectors.dataset.repeats import Repeats
from collectors.dataset.sources import folders_in
from collectors.dataset.validate_corpora import scan_document_file, validate_corpus
from pipeline.cli import parse, run
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Task
from pipeline.errors import JobsFailedError, UserError
from pipeline.files import is_local
from pipeline.runtime.progress import Progress
from pipeline.seeds import SPLITS, seed_range
from pipeline.storage.corpora import CORPORA, corpora_named
from pipeline.storage.episode_rules import Problem, scan_episodes
from pipeline.storage.manifest import CorpusSplit, DatasetManifest, SplitManifest
from pipeline.storage.outcomes import Outcomes, Rewards, count_outcomes, merge_outcomes, scan_outcomes
from pipeline.storage.schema import ALL_EPISODES, DOCUMENTS_SUFFIX, EPISODES_SUFFIX
from pipeline.storage.validate import (
    OVERLAP,
    SEEDS,
    TOTALS,
    flagged_rows,
    read_side,
    scan_file,
    scan_rows,
    scan_versions,
)
from pipeline.tables import print_tables
from pipeline.text import format_count

log = logging.getLogger(__name__)

TEXT_SETS = {corpus.name: corpus for corpus in CORPORA}  # corpora have documents instead of episodes
UNKNOWN = "configuration of no known task"
NO_SEEDS = "no seeds: no episode can be made again"
CARD_DIFFERS = "card and manifest disagree"


@dataclass(frozen=True)
class ValidateConfig:
    """Check a dataset and list everything that is wrong with it."""

    dataset: Path = Path("runs/default/dataset")
    """Folder of the dataset: one built by `jat dataset`, or any with Parquet files in JAT's columns."""
    task: str = "*"
    """Tasks and corpora to check: name, domain, glob, or comma list."""


def validate(config: ValidateConfig, tasks: Sequence[Task] | None = None) -> Findings:
    """Check everything of the selected tasks in a dataset.

    Args:
        config: the options.
        tasks: the table to choose from; all 157 if None.

    Raises:
        UserError: there is no such folder, or no dataset in it.
    """
    dataset = config.dataset
    _check_is_dataset(dataset)
    findings = Findings()
    pattern = pattern_of_tasks(config.task, tasks)
    others = folders_in(dataset / "data")
    chosen = {task.name: task for task in select_tasks(pattern, tasks, others)} if pattern else {}
    texts = {corpus.name for corpus in corpora_named(config.task)}
    everything = {task.name: task for task in select_tasks("*", tasks, others)}
    side_names = {name + EPISODES_SUFFIX for name in everything} | {name + DOCUMENTS_SUFFIX for name in TEXT_SETS}
    layout = read_layout(dataset, {*everything, *side_names, *TEXT_SETS}, findings.add)
    for name, problem in layout.absent:
        # A missing side table is also reported as one of its task.
        if name.removesuffix(EPISODES_SUFFIX) in chosen or (config.task == "*" and name != ALL_EPISODES):
            findings.add(problem)
    manifest_path = dataset / DatasetManifest.FILE_NAME
    if not manifest_path.exists():
        if not layout.files and not layout.unplaced:
            raise UserError(
                f"{dataset} holds no Parquet files; name a folder made by `jat dataset`, or a download of a dataset "
                f"(what `datasets` keeps in its cache or writes with save_to_disk is Arrow, not Parquet)"
            )
        _validate_foreign(layout, chosen, everything, findings, texts)
        return findings
    manifest = DatasetManifest.load(manifest_path)
    for name in sorted(set(manifest.tasks) - set(everything)):
        findings.add(Problem(UNKNOWN, manifest_path, f"{name} is no task"))
    names = [name for name in manifest.tasks if name in chosen]
    corpora = [name for name in manifest.corpora if name in texts]
    files = sum(len(s.data) + len(s.episodes) for n in names for s in manifest.tasks[n].splits.values())
    files += sum(len(s.data) + len(s.documents) for n in corpora for s in manifest.corpora[n].splits.values())
    progress = Progress("files checked", files)
    for name in names:
        _validate_task(dataset, chosen[name], manifest, progress, findings)
        _compare_with_card(dataset, name, EPISODES_SUFFIX, manifest.tasks[name].splits, layout, findings)
    for name in corpora:
        validate_corpus(dataset, TEXT_SETS[name], manifest.corpora[name], progress, findings)
        _compare_with_card(dataset, name, DOCUMENTS_SUFFIX, manifest.corpora[name].splits, layout, findings)
    if len(names) + len(corpora) == len(manifest.tasks) + len(manifest.corpora):
        named = {entry.name for entry in manifest.files}
        _report_unplaced([path for path in layout.unplaced if str(path.relative_to(dataset)) not in named], findings)
    return findings


def _check_is_dataset(dataset: Path) -> None:
    if not is_local(dataset):
        raise UserError(f"--dataset {dataset}: only a dataset on a disk can be checked; copy it to one first")
    if not dataset.is_dir():
        raise UserError(f"--dataset {dataset} is no folder; name one made by `jat dataset`, or a download of another")
    if not (dataset / DatasetManifest.FILE_NAME).exists():
        for inside in ("dataset", "../dataset"):
            other = (dataset / inside).resolve()
            if (other / DatasetManifest.FILE_NAME).exists():
                raise UserError(f"--dataset {dataset} is a folder of a run, not a dataset; try --dataset {other}")


# Datasets of this project, with a manifest.


def _validate_task(
    dataset: Path, task: Task, manifest: DatasetManifest, progress: Progress, findings: Findings
) -> None:
    info = manifest.tasks[task.name]
    seeds: list[tuple[Path, np.ndarray]] = []
    repeats = Repeats(task, findings)
    for split, of_split in info.splits.items():
        if split not in SPLITS:
            findings.add(Problem(SEEDS, dataset / DatasetManifest.FILE_NAME, f"{task.name} has a split {split!r}"))
            continue
        seeds += _validate_split(dataset, task, split, of_split, info.versions, repeats, progress, findings)
    _scan_seeds(seeds, findings)


def _validate_split(
    dataset: Path,
    task: Task,
    split: str,
    info: SplitManifest,
    versions: dict[str, str],
    repeats: Repeats,
    progress: Progress,
    findings: Findings,
) -> list[tuple[Path, np.ndarray]]:
    """Check the files of a split; returns the seeds of each side table."""
    seeds = []
    found = {"episodes": 0, "steps": 0, "rejected": 0}
    outcomes: list[Outcomes] = []
    is_complete = len(info.data) == len(info.episodes)
    if not is_complete:
        reason = f"{task.name}, {split}: {len(info.data)} data files and {len(info.episodes)} side tables"
        findings.add(Problem(TOTALS, dataset / DatasetManifest.FILE_NAME, reason))
    for data, episodes in zip(info.data, info.episodes, strict=False):
        data_path, side_path = dataset / data.name, dataset / episodes.name
        lengths, rewards = None, Rewards()
        side = read_side(side_path, findings.add) if scan_file(dataset, episodes, findings.add) else None
        flagged = flagged_rows(side)
        findings.num_flagged += int(flagged.sum())
        if scan_file(dataset, data, findings.add):
            digests: list[bytes] = []
            lengths = scan_episodes(task, data_path, findings.add, flagged, rewards.take, digests)
            repeats.add(data_path, split, digests, _seeded_rows(side, len(digests)))
            findings.count(task.domain, task.name, split, len(lengths), int(lengths.sum()), data.num_bytes)
        progress.advance(2)
        is_complete &= lengths is not None and side is not None
        if side is not None:
            num_rejected = side["row"].null_count
            scan_rows(side_path, side, len(side) - num_rejected, data_path, lengths, findings.add)
            scan_versions(side_path, side, versions, findings.add)
            scan_outcomes(task, side_path, side, lengths, rewards, findings.add)
            outcomes.append(count_outcomes(task, side))
            found["rejected"] += num_rejected
            values = side["seed"].drop_null().to_numpy()
            seeds.append((side_path, values))
            _scan_seed_range(side_path, split, values, findings)
        if lengths is not None:
            found["episodes"] += len(lengths)
            found["steps"] += int(lengths.sum())
    said = {"episodes": info.num_episodes, "steps": info.num_steps, "rejected": info.num_rejected}
    if is_complete:
        whose, total = f"{task.name}, {split}", merge_outcomes(outcomes)
        findings.compare(dataset / DatasetManifest.FILE_NAME, whose, said, found)
        successes = {"successes": info.num_successes}
        findings.compare(dataset / DatasetManifest.FILE_NAME, whose, successes, {"successes": total.num_successes})
        if not total.has_return_sum(info.mean_return * max(1, total.num_episodes)):
            reason = f"{whose}: mean return {info.mean_return:g}, the files have {total.mean_return:g}"
            findings.add(Problem(TOTALS, dataset / DatasetManifest.FILE_NAME, reason))
    return seeds


def _seeded_rows(side: pa.Table | None, num_rows: int) -> np.ndarray:
    """``(E,)`` bool: for which rows of its data file a side table has a seed."""
    if side is None:
        return np.zeros(num_rows, bool)
    known = side.filter(side["row"].is_valid())["seed"].is_valid().to_numpy()
    return known if len(known) == num_rows else np.zeros(num_rows, bool)


def _scan_seed_range(path: Path, split: str, seeds: np.ndarray, findings: Findings) -> None:
    allowed = seed_range(split)
    strange = np.flatnonzero((seeds < allowed[0]) | (seeds > allowed[-1]))
    if len(strange):
        reason = f"seed {seeds[strange[0]]} is not of {split}, which has {allowed[0]} to {allowed[-1]}"
        findings.add(Problem(SEEDS, path, reason, int(strange[0]), len(strange)))


def _scan_seeds(tables: Sequence[tuple[Path, np.ndarray]], findings: Findings) -> None:
    """Report seeds of a task that were played twice, in one file, in two, or in both splits."""
    if not tables:
        return
    seeds = np.concatenate([values for _, values in tables])
    table_of = np.repeat(np.arange(len(tables)), [len(values) for _, values in tables])
    row_of = np.concatenate([np.arange(len(values)) for _, values in tables])
    order = np.argsort(seeds, kind="stable")
    twice = order[1:][seeds[order[1:]] == seeds[order[:-1]]]
    if len(twice):
        where = twice.min()
        first = order[np.searchsorted(seeds[order], seeds[where])]
        path = tables[table_of[where]][0]
        reason = f"seed {seeds[where]} is in row {row_of[first]} of {tables[table_of[first]][0].name}, too"
        findings.add(Problem(OVERLAP, path, reason, int(row_of[where]), len(twice)))


def _compare_with_card(
    dataset: Path,
    name: str,
    suffix: str,
    splits: Mapping[str, SplitManifest] | Mapping[str, CorpusSplit],
    layout: DatasetFiles,
    findings: Findings,
) -> None:
    """Check that the card points ``load_dataset`` to the files that the manifest names.

    Args:
        dataset: its folder.
        name: of a task or corpus.
        suffix: of the configuration of its side tables; without the dash, the name of the split's field with them.
        splits: of the manifest.
        layout: as read from the card.
        findings: collects the problems.
    """
    side = suffix.removeprefix("-")
    for config, kind in ((name, "data"), (name + suffix, side)):
        for split, info in splits.items():
            if not num_rows(info, side, kind == side):
                continue  # a split without rows is not in the card
            said = {dataset / entry.name for entry in getattr(info, kind)}
            found = set(layout.files.get(config, {}).get(split, []))
            there = {path for path in said if path.exists()}  # missing files are reported elsewhere
            for path in sorted(there ^ found):
                whose = "manifest" if path in said else "card"
                findings.add(Problem(CARD_DIFFERS, path, f"only the {whose} names it, as {config}, {split}"))


# Datasets of others, without a manifest.


def _validate_foreign(
    layout: DatasetFiles,
    chosen: Mapping[str, Task],
    everything: Mapping[str, Task],
    findings: Findings,
    texts: Collection[str],
) -> None:
    wanted = {config: splits for config, splits in layout.files.items() if config in chosen or config in texts}
    known = {*everything, *TEXT_SETS}
    progress = Progress("files checked", sum(len(files) for splits in wanted.values() for files in splits.values()))
    for config, splits in layout.files.items():
        if config in wanted:
            repeats = Repeats(everything[config], findings) if config in everything else None
            for split, files in splits.items():
                for path in files:
                    if repeats is None:
                        scan_document_file(TEXT_SETS[config], split, path, findings)
                    else:
                        _scan_foreign_file(everything[config], split, path, repeats, findings)
                    progress.advance()
            if config in chosen and config + EPISODES_SUFFIX not in layout.files:
                for files in splits.values():
                    findings.add(Problem(NO_SEEDS, files[0].parent, f"{config} has no side table", count=len(files)))
        elif (
            config != ALL_EPISODES
            and not {config.removesuffix(EPISODES_SUFFIX), config.removesuffix(DOCUMENTS_SUFFIX)} & known
        ):
            findings.add(Problem(UNKNOWN, next(iter(splits.values()))[0], f"{config} is no task"))
    _report_unplaced(layout.unplaced, findings)


def _scan_foreign_file(task: Task, split: str, path: Path, repeats: Repeats, findings: Findings) -> None:
    digests: list[bytes] = []
    lengths = scan_episodes(task, path, findings.add, digests=digests)
    repeats.add(path, split, digests, np.zeros(len(digests), bool))
    findings.count(task.domain, task.name, split, len(lengths), int(lengths.sum()), path.stat().st_size)


def _report_unplaced(paths: Sequence[Path], findings: Findings) -> None:
    for path in paths:
        findings.add(Problem(UNPLACED, path, "neither card nor names say which task and split it is of"))


def main() -> None:
    config = parse(ValidateConfig, prints_tables=True)
    started = time.monotonic()
    findings = validate(config)
    print_tables({"domains": total_table(findings)} | ({"problems": problem_table(findings)} if findings.kinds else {}))
    log.info("%s checked in %.1f s", config.dataset, time.monotonic() - started)
    if findings.num_flagged:
        log.info("%d imported episodes have actions out of range, as their side tables say", findings.num_flagged)
    if findings.num_equal:
        log.info("%d episodes equal another one, as they may where a world is small", findings.num_equal)
    if findings.kinds:
        count = sum(kind.count for kind in findings.kinds.values())
        raise JobsFailedError(
            f"{format_count(count, 'problem')} of {format_count(len(findings.kinds), 'kind')} in {config.dataset}"
        )
    log.info("0 problems")


if __name__ == "__main__":
    run("collectors.dataset.validate")
