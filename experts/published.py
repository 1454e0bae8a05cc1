"""Where experts of JAT's tasks are published on the Hugging Face Hub, and which stored expert came from there."""

from __future__ import annotations

from collections.abc import Sequence

from experts.store import ExpertRecord, StoredExpert
from pipeline.envs.task import Task

# For `--expert`: the expert of each task that JAT published.
RELEASED = "released"

# The games whose repository is named otherwise; there is none for surround.
_GAMES = {
    "asteroids": "asteroid",
    "kungfumaster": "kongfumaster",
    "montezumarevenge": "montezuma",
    "privateeye": "privateye",
}


def released_repository(task_name: str) -> str | None:
    """The repository with the Sample Factory training that JAT collected a task's episodes with.

    None where nothing was published: BabyAI's bot is a rule, and surround has no trained agent.
    """
    domain, _, name = task_name.partition("-")
    if domain == "atari" and name != "surround":
        return f"edbeeching/atari_2B_atari_{_GAMES.get(name, name)}_1111"
    if domain in ("metaworld", "mujoco"):
        return f"qgallouedec/sample-factory-{name}-v2"
    return None


def suggested_repositories(task: Task) -> tuple[str, ...]:
    """Where experts of a task are likely to be found on the Hub; not checked."""
    released = released_repository(task.name)
    found = [released] if released else []
    if task.domain == "mujoco":
        name, env = task.name.removeprefix("mujoco-"), task.env_id.rpartition("-")[0]
        if name not in ("ant", "humanoid", "standup"):  # gymnasium's v5 of these three observes other things
            found.insert(0, f"farama-minari/{env}-v5-SAC-expert")
        if name in ("halfcheetah", "hopper", "humanoid", "swimmer", "walker"):  # in v3 as in v4
            found.append(f"sb3/sac-{env}-v3")
    return tuple(found)


def repository_and_commit(repository: str, commit: str) -> str:
    """How a repository is named in messages and in the record of an expert that was loaded from it."""
    return f"{repository} on the Hugging Face Hub, commit {commit}"


def is_released(record: ExpertRecord) -> bool:
    """Whether an expert was loaded from the repository that JAT published for its task."""
    repository = released_repository(record.task)
    return repository is not None and record.origin.startswith(f"Loaded from {repository_and_commit(repository, '')}")


def released_among(experts: Sequence[StoredExpert], sampled: bool) -> StoredExpert | None:
    """The one of a task's stored experts that JAT published, if it is there and acts as asked for."""
    for expert in experts:
        network = expert.record.network
        if network is not None and network.sampled == sampled and is_released(expert.record):
            return expert
    return None
