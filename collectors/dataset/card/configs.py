"""The card's front matter for ``datasets`` and the Hub: files, columns and sizes of the tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.storage.manifest import CorpusSplit, SplitManifest
from pipeline.storage.schema import ALL_EPISODES

if TYPE_CHECKING:
    from datasets import Features


def table_pair(
    name: str,
    suffix: str,
    columns: Features,
    side_columns: Features,
    splits: Mapping[str, SplitManifest] | Mapping[str, CorpusSplit],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """``configs`` and ``dataset_info`` of a task or corpus: its data, then its side table.

    Args:
        name: of the task or corpus.
        suffix: of the configuration of the side table; without the dash, the name of its folder and of its field in a
            split.
        columns: of the data.
        side_columns: of the side table.
        splits: of the manifest.
    """
    side = suffix.removeprefix("-")
    configs, infos = [], []
    for config, kind, its_columns in ((name, "data", columns), (name + suffix, side, side_columns)):
        files = [
            {"split": split, "path": _pattern(kind, name, split, len(getattr(info, kind)))}
            for split, info in splits.items()
            if num_rows(info, side, kind == side)
        ]
        configs.append({"config_name": config, "data_files": files})
        counts = [
            {
                "name": split,
                "num_bytes": sum(entry.num_bytes for entry in getattr(info, kind)),
                "num_examples": num_rows(info, side, kind == side),
            }
            for split, info in splits.items()
            if num_rows(info, side, kind == side)
        ]
        infos.append(_info(config, its_columns, counts))
    return configs, infos


def all_episodes_config(
    columns: Features, splits: Mapping[str, Mapping[str, SplitManifest]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """``configs`` and ``dataset_info`` of the side tables of all tasks as one table.

    Args:
        columns: of a side table.
        splits: of the manifest, by task.
    """
    names = list(dict.fromkeys(split for of_task in splits.values() for split in of_task))
    files, counts = [], []
    for split in names:
        infos = {
            task: of_task[split]
            for task, of_task in splits.items()
            if split in of_task and num_rows(of_task[split], "episodes", True)
        }
        if not infos:
            continue
        paths = [_pattern("episodes", task, split, len(info.episodes)) for task, info in infos.items()]
        files.append({"split": split, "path": paths})
        counts.append(
            {
                "name": split,
                "num_bytes": sum(entry.num_bytes for info in infos.values() for entry in info.episodes),
                "num_examples": sum(num_rows(info, "episodes", True) for info in infos.values()),
            }
        )
    return {"config_name": ALL_EPISODES, "data_files": files}, _info(ALL_EPISODES, columns, counts)


def num_rows(info: SplitManifest | CorpusSplit, kind: str, with_rejected: bool) -> int:
    """Number of rows of a split's data, or of its side table; ``datasets`` cannot open a split without any."""
    count: int = getattr(info, f"num_{kind}")
    return count + (info.num_rejected if with_rejected else 0)


def _pattern(kind: str, name: str, split: str, num_files: int) -> str:
    """Matches the files of a split. It contains their number, so that a card matches only its own files while an old
    and a new version coexist."""
    return f"{kind}/{name}/{split}-*-of-{num_files:05d}.parquet"


def _info(config: str, columns: Features, counts: list[dict[str, Any]]) -> dict[str, Any]:
    num_bytes = sum(count["num_bytes"] for count in counts)
    return {
        "config_name": config,
        "features": columns._to_yaml_list(),
        "splits": counts,
        "download_size": num_bytes,
        "dataset_size": num_bytes,
    }
