"""Resolve ``--expert``, ``--policy`` and ``--labels`` to the mix of experts that acts, or labels, in a task.

Syntax:

best                        the highest measured mean return among those whose success rate is within 0.05 of the best
best-return                 the highest measured mean return
best-success                the highest success rate; no expert in tasks that do not define success
scripted                    a kind: the best expert of that kind
sac-1a2b3c4d                a revision
py:package.module:name      a function or class of one's own (experts/functions.py); this runs its code
agent, agent:CHECKPOINT     of --policy: the agent that the run has trained, or another (experts/acting/agents.py)
released                    the expert that JAT published, once `jat experts --expert released` has loaded it
scripted,bot                for each task the first of these that exists
0.7*best+0.3*scripted       a mix: each seed is played by one of them, drawn with these weights
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from experts import functions
from experts.acting.agents import KIND as AGENT
from experts.acting.agents import agent_named, is_agent, make_agent
from experts.acting.labels import can_label, labels_as_it_acts, make_labeller
from experts.importing.published import RELEASED, is_released
from experts.ranking import (
    ExpertResult,
    best_by_return,
    best_by_success,
    best_of,
    is_better_than_random,
    random_among,
    rank_experts,
)
from experts.registry import RANDOM, experts_of, make_policy
from experts.store import ExpertRecord, StoredExpert, ensure_in_store
from pipeline.envs.policy import Observations, Policy
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.scoring.measurement import load_measurement

POLICY = "--policy"  # the option that may name agents
BEST, BEST_RETURN, BEST_SUCCESS = "best", "best-return", "best-success"
# Functions that select the measured expert for each of these names, or None.
BESTS = {BEST: best_of, BEST_RETURN: best_by_return, BEST_SUCCESS: best_by_success}


@dataclass(frozen=True)
class WeightedNames:
    """One part of ``--expert``: its weight, and names in order of preference."""

    weight: float
    names: tuple[str, ...]


def parse_choice(text: str, flag: str = "--expert") -> tuple[WeightedNames, ...]:
    """Parse the value of ``--expert``, or of another option (``flag``) with its syntax.

    Raises:
        UserError: a name is empty, or a weight is not a number above 0.
    """
    return tuple(_parse_part(part, text, flag) for part in text.split("+"))


def _parse_part(part: str, text: str, flag: str) -> WeightedNames:
    weight, _, names = part.rpartition("*")
    found = tuple(name.strip() for name in names.split(","))
    try:
        number = float(weight) if weight else 1.0
    except ValueError:
        number = 0.0
    if not (0 < number < float("inf")) or not all(found):
        raise UserError(
            f"{flag} {text!r}: {part.strip()!r} is neither a name, names such as scripted,bot, nor a weight above 0 "
            f"and these, such as 0.3*scripted"
        )
    return WeightedNames(number, found)


def named(name: str, experts: Sequence[StoredExpert]) -> list[StoredExpert]:
    """Return the experts whose kind or revision is ``name``; for ``released``, those that JAT published."""
    if name.startswith(functions.PREFIX):
        path = name.removeprefix(functions.PREFIX)
        return [expert for expert in experts if expert.record.training.get("function") == path]
    if name == RELEASED:
        return [expert for expert in experts if is_released(expert.record)]
    return [expert for expert in experts if name in (expert.record.kind, expert.record.revision)]


@dataclass(frozen=True)
class Mix:
    """Experts of one task with weights that sum to about 1; usually one expert with weight 1.

    The expert of a seed is a function of the seed only, so it depends neither on shards nor on workers.
    """

    experts: tuple[StoredExpert, ...]
    weights: tuple[float, ...]

    @property
    def kind(self) -> str:
        return self._describe([expert.record.kind for expert in self.experts])

    @property
    def revision(self) -> str:
        """The mix as a value for ``--expert``."""
        return self._describe([expert.record.revision for expert in self.experts])

    def _describe(self, names: Sequence[str]) -> str:
        if len(names) == 1:
            return names[0]
        return "+".join(f"{weight:g}*{name}" for weight, name in zip(self.weights, names, strict=True))

    def index_of(self, seed: int) -> int:
        """Index of the expert for ``seed``; its RNG stream differs from the policy's (``seeds.policy_generator``)."""
        if len(self.experts) == 1:
            return 0
        bounds = np.cumsum(self.weights)
        return int(np.searchsorted(bounds, np.random.default_rng((seed, 2)).random() * bounds[-1], side="right"))

    def actor(self, seed: int) -> ExpertRecord:
        """Record of the expert for ``seed``."""
        return self.experts[self.index_of(seed)].record

    def mean_steps(self, task: Task) -> float | None:
        """Weighted mean of the experts' measured episode lengths in steps; None if one of them is not measured."""
        means = []
        for expert in self.experts:
            found = load_measurement(expert.folder, task)
            if found is None:
                return None
            means.append(float(np.mean(found.lengths)))
        return float(np.average(means, weights=self.weights))

    @property
    def can_label(self) -> bool:
        """Whether any of the experts can say what it would do."""
        return any(can_label(expert.record) for expert in self.experts)

    @property
    def labels_as_it_acts(self) -> bool:
        """Whether the experts' labels are the actions that they execute."""
        return all(labels_as_it_acts(expert.record) for expert in self.experts)

    def make_policy(self, task: Task, num_slots: int | None = None) -> Policy:
        """Build the policy that plays every seed with its expert; call this in the process that will use it.

        Args:
            task: the task.
            num_slots: number of environments, which an agent must know; ``task.lockstep`` if None.

        Raises:
            UserError: weights cannot be read or do not fit the task.
        """
        slots = task.lockstep if num_slots is None else num_slots
        return self._routed(
            [
                make_agent(task, expert, slots) if expert.record.kind == AGENT else make_policy(task, expert)
                for expert in self.experts
            ]
        )

    def make_labeller(self, task: Task) -> Policy:
        """Build the policy whose actions are the labels; else as ``make_policy``."""
        return self._routed([make_labeller(task, expert) for expert in self.experts])

    def _routed(self, policies: Sequence[Policy]) -> Policy:
        return policies[0] if len(policies) == 1 else MixedPolicy(self, policies)


class MixedPolicy:
    """Routes every slot to the policy that plays its seed."""

    def __init__(self, mix: Mix, policies: Sequence[Policy]) -> None:
        self._mix, self._policies = mix, policies
        self._index: dict[int, int] = {}

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        for slot, seed in zip(slots, seeds, strict=True):
            self._index[slot] = self._mix.index_of(seed)
        for policy, rows in self._by_policy(slots):
            policy.reset([slots[row] for row in rows], [seeds[row] for row in rows], [envs[row] for row in rows])

    def act(self, slots: Sequence[int], observations: Observations) -> Sequence[Any]:
        actions: list[Any] = [None] * len(slots)
        for policy, rows in self._by_policy(slots):
            texts = observations.texts
            shown = Observations(
                values=observations.values[rows],
                texts=None if texts is None else [texts[row] for row in rows],
                rewards=observations.rewards[rows],
            )
            for row, action in zip(rows, policy.act([slots[row] for row in rows], shown), strict=True):
                actions[row] = action
        return actions

    def _by_policy(self, slots: Sequence[int]) -> list[tuple[Policy, list[int]]]:
        """Group the rows of ``slots`` by policy."""
        rows: dict[int, list[int]] = {}
        for row, slot in enumerate(slots):
            rows.setdefault(self._index[slot], []).append(row)
        return [(self._policies[index], found) for index, found in rows.items()]


def choose(out: Path, task: Task, text: str = BEST, allow_weak: bool = False, flag: str = "--expert") -> Mix:
    """Resolve ``text`` to experts of ``task``, and copy them to the store of ``out`` if they are not there yet.

    Every expert, including rules, must have a valid measurement and be clearly better than random, so that no data of
    unknown quality is collected. Only the random policy and agents, chosen by name, are exempt.

    Args:
        out: root of the run; its experts take precedence over those embedded in this package.
        task: task they act in.
        text: value of ``--expert``; see the module docstring.
        allow_weak: accept experts that are not clearly better than random.
        flag: the option that ``text`` is of; only ``--policy`` may name agents.

    Raises:
        UserError: ``text`` is malformed, or the expert does not exist, is not measured or is too weak.
    """
    parts = parse_choice(text, flag)
    functions.allow_functions(text)
    there, measured = experts_of(out, task), rank_experts(out, task)
    total = sum(part.weight for part in parts)
    weights: dict[str, float] = {}
    agents: list[StoredExpert] = []
    for part in parts:
        if flag == POLICY and is_agent(part.names[0]):
            agents.append(agent_named(out, task, part.names[0]))
            revision = agents[-1].record.revision
        else:
            revision = _choose_one(out, task, part.names, there, measured, allow_weak, flag)
        weights[revision] = weights.get(revision, 0.0) + part.weight / total
    random = random_among(measured)
    if random is not None:
        ensure_in_store(out, random.expert)  # the baseline of later stages
    # Sorted, and rounded to the digits of `Mix.revision`, so that parsing that text gives the same mix.
    chosen = [ensure_in_store(out, expert) for expert in there if expert.record.revision in weights]
    found = {expert.record.revision: expert for expert in (*chosen, *agents)}
    kept = tuple(found[revision] for revision in sorted(found))
    return Mix(kept, tuple(float(f"{weights[expert.record.revision]:g}") for expert in kept))


def _choose_one(
    out: Path,
    task: Task,
    names: Sequence[str],
    there: Sequence[StoredExpert],
    measured: Sequence[ExpertResult],
    allow_weak: bool,
    flag: str,
) -> str:
    """Return the revision that the first usable one of ``names`` resolves to."""
    text = ",".join(names)
    prepare = f"`jat experts --task {task.name} --expert {text} --out {out}`"
    for name in names:
        candidates = {expert.record.revision: expert for expert in named(name, there)}
        if any(expert.record.kind == RANDOM for expert in candidates.values()):
            return next(iter(candidates))
        if name in BESTS:
            found = BESTS[name](measured)
        else:
            found = best_of([standing for standing in measured if standing.revision in candidates])
        if found is not None:
            if not allow_weak:
                _check_worth(found, random_among(measured), prepare)
            return found.revision
        if candidates:
            raise UserError(f"{task.name}: expert {name} is not measured with the installed packages; run {prepare}")
    revisions = ", ".join(expert.record.revision for expert in there)
    raise UserError(
        f"{task.name}: {flag} {text} means no measured expert; there: {revisions}. Run {prepare}"
        + (", or choose --expert random on purpose" if flag == "--expert" else "")
    )


def _check_worth(found: ExpertResult, random: ExpertResult | None, prepare: str) -> None:
    name = found.task.name
    if random is None:
        raise UserError(f"{name}: the random policy is not measured, so nothing is known to be better; run {prepare}")
    if not is_better_than_random(found, random):
        expert, chance = found.mean_return, random.mean_return
        raise UserError(
            f"{name}: expert {found.revision} is not clearly better than random: mean return {expert.mean:.4g} "
            f"[{expert.low:.4g}, {expert.high:.4g}], random's {chance.mean:.4g} [{chance.low:.4g}, {chance.high:.4g}]. "
            f"Choose or train another, or pass --allow-weak"
        )
