"""Which kinds of expert there are, and which one a task gets unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from experts.babyai_bot import BabyAIBotPolicy
from experts.metaworld_scripted import ScriptedPolicy
from experts.random_policy import RandomPolicy
from pipeline.errors import UserError
from pipeline.policy import Policy
from pipeline.tasks import Task
from pipeline.versions import format_versions, versions_of

DEFAULT = "default"


@dataclass(frozen=True)
class ExpertKind:
    """A way to get a policy for a task.

    Attributes:
        make: builds the policy, in the process that will use it.
        domains: where it can act; None for everywhere.
        packages: the distributions that define its behaviour; their versions are its revision.
    """

    make: Callable[[Task], Policy]
    domains: tuple[str, ...] | None
    packages: tuple[str, ...]

    @property
    def revision(self) -> str:
        return format_versions(versions_of(self.packages)) or "1"


KINDS = {
    "bot": ExpertKind(BabyAIBotPolicy, ("babyai",), ("minigrid",)),
    "scripted": ExpertKind(ScriptedPolicy, ("metaworld",), ("metaworld",)),
    "random": ExpertKind(RandomPolicy, None, ()),
}


def resolve(task: Task, expert: str = DEFAULT) -> str:
    """The name of the expert kind that acts in ``task``.

    Raises:
        UserError: unknown kind, a kind that cannot act in this domain, or a domain without an expert.
    """
    possible = [name for name, kind in KINDS.items() if kind.domains is None or task.domain in kind.domains]
    if expert == DEFAULT:
        experts = [name for name in possible if name != "random"]
        if not experts:
            raise UserError(
                f"{task.name}: there is no expert for {task.domain} yet, only the random policy. "
                f"Choose other tasks, or pass --expert random (EXPERT=random) on purpose"
            )
        return experts[0]
    if expert not in KINDS:
        raise UserError(f"unknown expert {expert!r}; allowed: {DEFAULT}, {', '.join(sorted(KINDS))}")
    if expert not in possible:
        raise UserError(f"expert {expert!r} cannot act in {task.name}; allowed there: {', '.join(possible)}")
    return expert
