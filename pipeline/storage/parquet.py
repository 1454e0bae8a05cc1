"""Parquet layout of episodes: one row per episode; row group size and encoding depend on the kind of observation.

Every choice is measured by ``tests/benchmarks/parquet.py``; docs/parquet.md has the figures. A row cannot be split over
pages or row groups, so reading an episode, or a window of it, reads its whole row group regardless of the page size.
"""

from __future__ import annotations

import hashlib
from typing import Any

from pipeline.envs.task import CONTINUOUS, DISCRETE, IMAGE, Task

# Approximate bytes of uncompressed observations per row group; a larger episode is a row group of its own. Small groups
# give fast random access to episodes and windows, and a changed episode changes few bytes of the file. Large groups
# compress better if episodes are similar. Vectors hardly compress across episodes: a hopper step takes 48 bytes instead
# of 44, and an episode is read twelve times as fast as from groups of 32 MiB. Grid worlds do: a step takes 10.4 bytes
# with 4 MiB and 12.5 with 1 MiB. An Atari episode is nearly always a group of its own.
ROW_GROUP_BYTES = {CONTINUOUS: 2**17, DISCRETE: 4 * 2**20, IMAGE: 8 * 2**20}

# Levels above 1 save a sixth to a fifth for grids and images, at a hundredth of the time of collecting them; for
# vectors they save 1 % or nothing.
COMPRESSION = "zstd"
COMPRESSION_LEVEL = {CONTINUOUS: 1, DISCRETE: 9, IMAGE: 9}


def ends_row_group(seed: int, num_bytes: int, held_bytes: int, group_bytes: int) -> bool:
    """Whether a row group ends with an episode.

    Groups have at least a quarter of ``group_bytes`` and end once they have twice ``group_bytes``. In between, the
    boundary is chosen pseudo-randomly from a hash of the seed. After an episode whose length has changed, the
    boundaries soon coincide with the earlier ones again, so publishing again uploads only the groups around that
    episode and not the rest of the file.

    Args:
        seed: seed of the episode, or any other number that permanently identifies it.
        num_bytes: bytes of its observations.
        held_bytes: bytes of the observations in the group so far, including this episode.
        group_bytes: target size in bytes; 0 for one group per episode.
    """
    if held_bytes >= 2 * group_bytes:
        return True
    if held_bytes < group_bytes / 4:
        return False
    lot = int.from_bytes(hashlib.blake2b(seed.to_bytes(8, "little"), digest_size=4).digest(), "little") / 2**32
    return lot < num_bytes / (group_bytes * 3 / 4)


def parquet_options(task: Task) -> dict[str, Any]:
    """Encoding of a task's episodes as arguments of ``pyarrow.parquet.ParquetWriter``."""
    kind = task.observation
    return {
        "compression": COMPRESSION,
        "compression_level": COMPRESSION_LEVEL[kind],
        # Continuous values and images hardly ever repeat: a hopper step takes 78 bytes with a dictionary and 48
        # without. A grid world's step takes 10 bytes with and 18 without.
        "use_dictionary": kind == DISCRETE,
        # Splits floats into their four bytes, so that signs and exponents are adjacent: 1 to 10 % fewer bytes.
        "use_byte_stream_split": kind == CONTINUOUS
        and task.action.kind == "continuous"
        and not any(part.values for part in task.parts),
        # Min/max statistics of nested columns are never used for predicate push-down, and for images they would store
        # whole images: 52 bytes per step instead of 44.
        "write_statistics": False,
        "write_page_index": True,
        # Content-defined pages cost 17 % or more for grids and up to 3 % for vectors, and save no more upload than
        # small row groups with boundaries chosen by seed, see `ends_row_group`.
        "use_content_defined_chunking": False,
    }
