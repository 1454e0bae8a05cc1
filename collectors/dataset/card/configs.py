"""The card's front matter for ``datasets`` and the Hub: files, columns and sizes of the tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.storage.manifest import CorpusSplit, SplitManifest

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
        # The pattern contains the number of files, so that a card matches only its own files while an old and a new
        # version coexist.
        files = [
            {"split": split, "path": f"{kind}/{name}/{split}-*-of-{len(getattr(info, kind)):05d}.parquet"}
            for split, info in splits.items()
        ]
        configs.append({"config_name": config, "data_files": files})
        counts = [
            {
                "name": split,
                "num_bytes": sum(entry.num_bytes for entry in getattr(info, kind)),
                "num_examples": getattr(info, f"num_{side}") + (info.num_rejected if kind == side else 0),
            }
            for split, info in splits.items()
        ]
        num_bytes = sum(count["num_bytes"] for count in counts)
        infos.append(
            {
                "config_name": config,
                "features": its_columns._to_yaml_list(),
                "splits": counts,
                "download_size": num_bytes,
                "dataset_size": num_bytes,
            }
        )
    return configs, infos
