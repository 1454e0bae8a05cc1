"""The experts that can act in a task: rules, which are defined by code, and the networks in the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experts.scripted.babyai import BabyAIBotPolicy
from experts.scripted.metaworld import ScriptedPolicy
from experts.scripted.random_policy import RandomPolicy
from experts.store import ExpertRecord, StoredExpert, read_arrays, stored_experts
from pipeline.envs.policy import Policy
from pipeline.envs.task import Task
from pipeline.scoring.measurement import experts_directory
from pipeline.versions import versions_of

RANDOM = "random"


@dataclass(frozen=True)
class Rule:
    """An expert without weights.

    Attributes:
        make: builds the policy in the process that will use it.
        domains: domains it can act in; None for all.
        package: the distribution that defines its behaviour; its version is part of the revision. None if the rule is
            defined in this package.
        origin: provenance of the rule in one sentence.
    """

    make: Callable[[Task], Policy]
    domains: tuple[str, ...] | None
    package: str | None
    origin: str


RULES = {
    "bot": Rule(BabyAIBotPolicy, ("babyai",), "minigrid", "the planner that ships with minigrid"),
    "scripted": Rule(ScriptedPolicy, ("metaworld",), "metaworld", "the scripted policy that ships with metaworld"),
    RANDOM: Rule(RandomPolicy, None, None, "every action equally likely"),
}


def rule_record(kind: str, task: Task) -> ExpertRecord:
    """Return the record of a rule in its installed version, e.g. revision ``scripted-3.1.1``."""
    rule = RULES[kind]
    versions = versions_of([rule.package] if rule.package else [])
    # Replace the plus of local version labels, because it separates the parts of a mix.
    version = "".join(versions.values()).replace("+", "_") or "1"
    return ExpertRecord(task.name, kind, f"{kind}-{version}", None, rule.origin, versions=versions)


def experts_of(out: Path, task: Task) -> list[StoredExpert]:
    """Return all experts that can act in ``task``: networks of ``out``, embedded networks, rules, the random policy.

    A stored rule of another version than the installed one is left out, because it cannot act any more. The folder of a
    rule that is not in a store yet does not exist; ``store.ensure_in_store`` creates it.
    """
    stored = {expert.record.revision: expert for expert in stored_experts(out, task.name)}
    networks = [expert for expert in stored.values() if expert.record.network is not None]
    rules = []
    for kind, rule in RULES.items():
        if rule.domains is None or task.domain in rule.domains:
            record = rule_record(kind, task)
            here = StoredExpert(record, experts_directory(out, task.name) / record.revision)
            rules.append(stored.get(record.revision, here))
    return networks + rules


def make_policy(task: Task, expert: StoredExpert) -> Policy:
    """Build the policy of an expert; call this in the process that will use it.

    Raises:
        UserError: weights cannot be read or do not fit the task.
    """
    record = expert.record
    if record.network is None:
        return RULES[record.kind].make(task)
    from experts.network import NetworkPolicy

    return NetworkPolicy(task, record.network, read_arrays(expert), f"expert {record.revision} ({expert.folder})")
