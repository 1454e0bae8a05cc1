"""The collector that the chaos tests kill, as a command: real tasks of three kinds of experts, and faulty ones.

python -m tests.chaos.collector OUT TASKS EPISODES [WORKERS] [EXPERT]
"""

from __future__ import annotations

import sys

from collectors.collect import collect
from collectors.config import CollectConfig
from pipeline.cli import configure_logging
from pipeline.envs.registry import all_tasks, select_tasks
from pipeline.envs.task import Task
from pipeline.errors import JobsFailedError, UserError
from pipeline.files import location
from tests.fakes import FAKE_COUNT, FAULTY


def table() -> tuple[Task, ...]:
    return (*all_tasks(), FAKE_COUNT, *FAULTY.values())


def main() -> int:
    configure_logging("INFO")
    out, tasks, episodes, *rest = sys.argv[1:]
    config = CollectConfig(
        task=tasks,
        out=location(out),
        episodes=episodes,
        shard_episodes="8",
        workers=int(rest[0]) if rest else 2,
        envs=4,
        expert=rest[1] if len(rest) > 1 else "scripted,bot,best",
        allow_weak=True,  # measured in too few episodes to tell
        stall_s=20.0,
    )
    try:
        collect(config, select_tasks(tasks, table()))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except JobsFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
