"""The Python of the jobs in tests, with options that make every stage a matter of seconds."""

from __future__ import annotations

import os
import sys

from dags.stages import STAGES
from tests.dags.test_chain import COMMANDS

OPTIONS = {
    "experts": ["--episodes", "20"],
    "collect": ["--shard-episodes", "50"],
    "train": [*COMMANDS["train"][1:], "--steps", "4", "--checkpoint-every", "2"],
}


def main() -> None:
    words = sys.argv[1:]
    stages = {stage.module: stage.name for stage in STAGES}
    name = words[words.index("--stage") + 1] if "--stage" in words else stages[words[1]]
    os.execv(sys.executable, [sys.executable, *words, *OPTIONS.get(name, [])])


if __name__ == "__main__":
    main()
