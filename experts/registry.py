"""The experts that can act in a task: rules, which are defined by code, and the networks in the store."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

from experts import functions
from experts.store import ExpertRecord, StoredExpert, read_arrays, stored_experts
from pipeline.envs.domain import SuppliedExpert
from pipeline.envs.policy import Policy
from pipeline.envs.registry import domain_of, domains
from pipeline.envs.task import Task
from pipeline.run_layout import RunLayout
from pipeline.versions import versions_of

RANDOM = "random"

_RANDOM = SuppliedExpert("experts.scripted.random_policy:RandomPolicy", None, "every action equally likely")


def rules_of(task: Task) -> dict[str, SuppliedExpert]:
    """Experts without weights that can act in a task, by kind: those that come with its domain, and the random one."""
    return {**domain_of(task).experts, RANDOM: _RANDOM}


def rule_kinds() -> set[str]:
    """Kinds of the rules of all domains; a network cannot have such a kind."""
    return {RANDOM, functions.KIND, *(kind for domain in domains() for kind in domain.experts)}


def rule_record(kind: str, task: Task) -> ExpertRecord:
    """Return the record of a rule in its installed version, e.g. revision ``scripted-3.1.1``."""
    rule = rules_of(task)[kind]
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
    records = [functions.function_record(path, task) for path in functions.allowed_functions()]
    for record in (*records, *(rule_record(kind, task) for kind in rules_of(task))):
        here = StoredExpert(record, RunLayout(out).expert(task.name, record.revision))
        rules.append(stored.get(record.revision, here))
    return networks + rules


def make_policy(task: Task, expert: StoredExpert, greedy: bool = False) -> Policy:
    """Build the policy of an expert; call this in the process that will use it.

    Args:
        task: task it acts in.
        expert: the expert.
        greedy: whether a network takes the mode of its distribution even if it is made to sample.

    Raises:
        UserError: weights cannot be read or do not fit the task.
    """
    record = expert.record
    if record.kind == functions.KIND:
        return functions.make_function_policy(str(record.training["function"]), task)
    if record.network is None:
        module, _, name = rules_of(task)[record.kind].policy.partition(":")
        policy: Policy = getattr(importlib.import_module(module), name)(task)
        return policy
    from experts.network import NetworkPolicy

    spec = dataclasses.replace(record.network, sampled=False) if greedy else record.network
    return NetworkPolicy(task, spec, read_arrays(expert), f"expert {record.revision} ({expert.folder})")
