"""Where experts of JAT's tasks are published on the Hugging Face Hub, and which stored expert came from there."""

from __future__ import annotations

from collections.abc import Sequence

from experts.store import ExpertRecord, StoredExpert
from pipeline.envs.domain import domain_name
from pipeline.envs.registry import domain_named, domain_of
from pipeline.envs.task import Task

# For `--expert`: the expert of each task that JAT published.
RELEASED = "released"


def released_repository(task_name: str) -> str | None:
    """The repository with the Sample Factory training that JAT collected a task's episodes with.

    None where nothing was published: BabyAI's bot is a rule, and surround has no trained agent.
    """
    return domain_named(domain_name(task_name)).jat_experts.get(task_name)


def suggested_repositories(task: Task) -> tuple[str, ...]:
    """Where experts of a task are likely to be found on the Hub; not checked."""
    return domain_of(task).hub_experts.get(task.name, ())


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
