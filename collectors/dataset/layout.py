"""Assign the files of a folder to tasks and splits, for datasets of any origin.

Follows ``datasets``: the ``configs`` in the front matter of ``README.md`` decide. Without them the names decide, of
folders (``<task>/train/0000.parquet``) or files (``data/<task>/train-00000-of-00002.parquet``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError, first_line
from pipeline.foreign import MIB, check_file, leads_out
from pipeline.storage.episode_rules import Problem, Report
from pipeline.storage.validate import LINK

CARD = "README.md"
SPLIT_NAMES = {"train": "train", "test": "test", "validation": "validation", "valid": "validation", "val": "validation"}
NO_FILE = "no file where the card says there are some"
BAD_CARD = "card that cannot be read"
UNPLACED = "file of no task or split"
MAX_CARD_BYTES = 16 * MIB


@dataclass
class DatasetFiles:
    """Files by configuration and split, training first, each list in order; and files that could not be assigned."""

    files: dict[str, dict[str, list[Path]]] = field(default_factory=dict)
    unplaced: list[Path] = field(default_factory=list)
    absent: list[tuple[str, Problem]] = field(default_factory=list)  # by configuration: missing files of its card

    def add(self, config: str, split: str, path: Path) -> None:
        self.files.setdefault(config, {}).setdefault(split, []).append(path)


def read_layout(dataset: Path, names: Collection[str], report: Report) -> DatasetFiles:
    """Find the Parquet files of a folder.

    Args:
        dataset: the folder.
        names: of the configurations that folders may be named after, if no card defines them.
        report: is called if the card cannot be read.
    """
    everything = []
    for path in sorted(path for path in dataset.rglob("*.parquet") if not _is_hidden(path, dataset)):
        if leads_out(path, dataset):
            report(Problem(LINK, path, "is a link that leads out of the folder; put the file itself there"))
        else:
            everything.append(path)
    layout = DatasetFiles()
    for config, split, pattern in _read_card(dataset, report):
        found = [path for path in _match(dataset, pattern) if not leads_out(path, dataset)]
        if not found:
            reason = f"nothing matches {pattern!r} of {config}, {split}"
            layout.absent.append((config, Problem(NO_FILE, dataset / CARD, reason)))
        for path in found:
            layout.add(config, split, path)
    if layout.files:
        placed = {path for splits in layout.files.values() for files in splits.values() for path in files}
        layout.unplaced += [path for path in everything if path not in placed]
        return layout
    for path in everything:
        named, its_split = _by_name(path.relative_to(dataset), names)
        if named is None or its_split is None:
            layout.unplaced.append(path)
        else:
            layout.add(named, its_split, path)
    order = list(SPLIT_NAMES.values())
    for config, splits in layout.files.items():
        layout.files[config] = dict(sorted(splits.items(), key=lambda item: order.index(item[0])))
    return layout


def _is_hidden(path: Path, dataset: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.relative_to(dataset).parts)


def _match(dataset: Path, pattern: str) -> list[Path]:
    """Files of a folder that match a pattern of its card; a pattern that leads out of the folder matches none."""
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        return []
    try:
        return sorted(path for path in dataset.glob(pattern) if path.is_file())
    except ValueError:  # an invalid pattern
        return []


def _read_card(dataset: Path, report: Report) -> Iterator[tuple[str, str, str]]:
    """Configuration, split and pattern of every entry in the front matter."""
    path = dataset / CARD
    if not path.exists():
        return
    try:
        check_file(path, MAX_CARD_BYTES, None if not leads_out(path, dataset) else dataset)
    except UserError as error:
        report(Problem(BAD_CARD, path, first_line(error)))
        return
    parts = path.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return  # no front matter, which is allowed
    try:
        front = yaml.load(parts[1], Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        configs = front.get("configs", []) if isinstance(front, dict) else []
        entries = [(str(config["config_name"]), *entry) for config in configs for entry in _data_files(config)]
        if not all(isinstance(word, str) for entry in entries for word in entry):
            raise TypeError("names and paths are texts")
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        report(Problem(BAD_CARD, path, f"the front matter cannot be understood ({first_line(error)})"))
        return
    yield from entries


def _data_files(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Split and pattern of the files of one configuration, in each syntax that ``datasets`` accepts."""
    prefix = f"{config['data_dir']}/" if config.get("data_dir") else ""
    files = config.get("data_files")
    if files is None:
        yield from (("train", f"{prefix}train*"), ("test", f"{prefix}test*"))
        return
    for entry in files if isinstance(files, list) else [files]:
        split, paths = (entry.get("split", "train"), entry["path"]) if isinstance(entry, dict) else ("train", entry)
        yield from ((split, prefix + path) for path in (paths if isinstance(paths, list) else [paths]))


def _by_name(path: Path, names: Collection[str]) -> tuple[str | None, str | None]:
    """Configuration and split from the folders' and the file's names; either or both may be None."""
    words = [*path.parts[:-1], path.stem]
    config = next((word for word in reversed(words) if word in names), None)
    for word in reversed(words):
        start = word.split("-")[0].split("_")[0].split(".")[0]
        if start in SPLIT_NAMES and word != config:
            return config, SPLIT_NAMES[start]
    return config, None
