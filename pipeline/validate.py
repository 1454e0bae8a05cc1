"""The rules an episode file must keep. What breaks one is refused with the file, the row and the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.manifest import FileEntry, ShardManifest
from pipeline.schema import EpisodeBlock, features, read_blocks
from pipeline.tasks import Task


def check_shard(task: Task, directory: Path, shard: ShardManifest) -> None:
    """Check both files of a shard against its manifest and the rules, reading one row group at a time.

    Raises:
        UserError: a checksum, a column, a length, a value or a seed is wrong.
    """
    check_bytes(directory, shard)
    data_path, side_path = directory / shard.data.name, directory / shard.episodes.name
    _check_columns(task, data_path)
    side = pq.read_table(side_path)
    accepted = side.filter(pa.compute.is_valid(side["row"]))
    if accepted["row"].to_pylist() != list(range(shard.num_episodes)):
        raise UserError(f"{side_path}: accepted rows are not 0 to {shard.num_episodes - 1} in order")
    expected_seeds = list(range(shard.first_seed, shard.first_seed + shard.num_seeds))
    if side["seed"].to_pylist() != expected_seeds:
        raise UserError(f"{side_path}: seeds are not {shard.first_seed} to {expected_seeds[-1]}, each once")
    lengths = accepted["length"].to_numpy()
    num_rows = pq.read_metadata(data_path).num_rows
    if num_rows != shard.num_episodes:
        raise UserError(f"{data_path}: {num_rows} episodes, the manifest says {shard.num_episodes}")
    row = 0
    for block in read_blocks(task, data_path):
        _check_block(task, data_path, row, block, lengths[row : row + len(block.lengths)])
        row += len(block.lengths)


def check_bytes(directory: Path, shard: ShardManifest) -> None:
    """Check that both files of a shard are the ones its manifest was written for.

    Raises:
        UserError: one is missing or damaged.
    """
    for entry in (shard.data, shard.episodes):
        _check_file(directory, entry)


def _check_file(directory: Path, entry: FileEntry) -> None:
    path = directory / entry.name
    if not path.exists():
        raise UserError(f"{path} is missing; delete {path.stem}.json beside it and run `make collect` again")
    found = sha256_of(path)
    if found != entry.sha256:
        raise UserError(
            f"{path} is damaged: SHA-256 {found[:12]}..., expected {entry.sha256[:12]}...; "
            f"delete it and run `make collect` again to make it anew"
        )


def _check_columns(task: Task, path: Path) -> None:
    found, expected = pq.read_schema(path), features(task).arrow_schema
    if found.remove_metadata() != expected.remove_metadata():
        raise UserError(f"{path}: columns are {found.remove_metadata()}, expected {expected.remove_metadata()}")


def _check_block(task: Task, path: Path, first_row: int, block: EpisodeBlock, lengths: np.ndarray) -> None:
    wrong = np.flatnonzero((block.lengths != lengths) | (block.lengths < 1))
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            f"{path}, row {first_row + row}: {block.lengths[row]} steps, the side table says {lengths[row]}"
        )
    action = task.action
    low, high = (0, action.size - 1) if action.kind == "discrete" else (action.low, action.high)
    _check_steps(path, first_row, block, np.isfinite(block.rewards), "reward not finite")
    in_range = (block.actions >= low) & (block.actions <= high)
    _check_steps(path, first_row, block, in_range, f"action outside [{low}, {high}]")
    if block.observations.dtype.kind == "f":
        _check_steps(path, first_row, block, np.isfinite(block.observations), "observation not finite")


def _check_steps(path: Path, first_row: int, block: EpisodeBlock, good: np.ndarray, reason: str) -> None:
    if good.all():
        return
    step = int(np.flatnonzero(~good.reshape(len(good), -1).all(axis=1))[0])
    row = int(np.searchsorted(np.cumsum(block.lengths), step, side="right"))
    raise UserError(f"{path}, row {first_row + row}: {reason}")
