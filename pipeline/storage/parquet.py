"""How episodes are laid out in Parquet: one row each, in row groups of a size and an encoding per kind of observation.

Every choice is measured by ``jat bench parquet``; docs/parquet.md has the figures. A row cannot be split over pages or
row groups, so an episode or a window of one costs the reading of its row group, whatever the pages.
"""

from __future__ import annotations

import hashlib
from typing import Any

from pipeline.envs.task import CONTINUOUS, DISCRETE, IMAGE, Task

# Uncompressed observations per row group, about; an episode that has more is one by itself. Small groups make single
# episodes and windows fast to reach and keep what a changed episode moves small; large ones compress better where
# episodes are alike. Vectors hardly compress across episodes: a hopper's step takes 48 bytes and not 44, and an episode
# is reached twelve times as fast as in 32 MiB. Grid worlds do: 10.4 bytes in 4 MiB, 12.5 in 1 MiB. A game is nearly
# always a group.
ROW_GROUP_BYTES = {CONTINUOUS: 2**17, DISCRETE: 4 * 2**20, IMAGE: 8 * 2**20}

# Levels above 1 gain a sixth to a fifth for grids and images, at a hundredth of what collecting them takes; for
# vectors 1 % or nothing.
COMPRESSION = "zstd"
COMPRESSION_LEVEL = {CONTINUOUS: 1, DISCRETE: 9, IMAGE: 9}


def ends_row_group(seed: int, num_bytes: int, held_bytes: int, group_bytes: int) -> bool:
    """Whether a row group ends with an episode.

    Groups have a quarter of ``group_bytes`` at least and end once they have twice that. In between the seed decides, as
    if by lot, so that after an episode that has become longer or shorter groups soon end where they did before:
    publishing again then moves the groups around that episode and not the rest of the file.

    Args:
        seed: of the episode, or any number that stays its own.
        num_bytes: of its observations.
        held_bytes: of the observations of the group so far, this episode's included.
        group_bytes: to aim at; 0 for a group per episode.
    """
    if held_bytes >= 2 * group_bytes:
        return True
    if held_bytes < group_bytes / 4:
        return False
    lot = int.from_bytes(hashlib.blake2b(seed.to_bytes(8, "little"), digest_size=4).digest(), "little") / 2**32
    return lot < num_bytes / (group_bytes * 3 / 4)


def parquet_options(task: Task) -> dict[str, Any]:
    """How a task's episodes are encoded, as ``pyarrow.parquet.ParquetWriter`` takes it."""
    kind = task.observation
    return {
        "compression": COMPRESSION,
        "compression_level": COMPRESSION_LEVEL[kind],
        # Measured values hardly ever occur twice, nor do images: with a dictionary a hopper's step takes 78 bytes,
        # without one 48, a grid world's 10 and 18.
        "use_dictionary": kind == DISCRETE,
        # The four bytes of floats apart, so that signs and exponents stand beside each other: 1 to 10 % fewer bytes.
        "use_byte_stream_split": kind == CONTINUOUS and task.action.kind == "continuous",
        # Least and greatest values of nested lists serve nobody's search, and for images they are whole images: 52
        # bytes per step instead of 44.
        "write_statistics": False,
        "write_page_index": True,
        # Pages cut by content cost grids 17 % and more, vectors up to 3 %, and save no more than small row groups do,
        # which end where the seeds say.
        "use_content_defined_chunking": False,
    }
