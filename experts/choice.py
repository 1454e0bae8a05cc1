"""Which expert acts: what ``--expert`` may say, and the mix of experts that it means in a task.

best                        the highest measured mean return among those whose success rate is within 0.05 of the best
best-return                 the highest measured mean return
best-success                the most successes; nothing in tasks without a notion of success
scripted                    a kind: the best of that kind
sac-1a2b3c4d                a revision
scripted,bot                for each task the first of these that it has
0.7*best+0.3*scripted       a mix: each seed is played by one of them, drawn with these weights
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

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

BEST, BEST_RETURN, BEST_SUCCESS = "best", "best-return", "best-success"
# The measured expert that each of these names means; None where there is none.
BESTS = {BEST: best_of, BEST_RETURN: best_by_return, BEST_SUCCESS: best_by_success}


@dataclass(frozen=True)
class WeightedNames:
    """A share of a choice: its weight, and names in order of preference."""

    weight: float
    names: tuple[str, ...]


def parse_choice(text: str) -> tuple[WeightedNames, ...]:
    """The parts of what ``--expert`` says.

    Raises:
        UserError: an empty name, or a weight that is not a number above 0.
    """
    return tuple(_parse_part(part, text) for part in text.split("+"))


def _parse_part(part: str, text: str) -> WeightedNames:
    weight, _, names = part.rpartition("*")
    found = tuple(name.strip() for name in names.split(","))
    try:
        number = float(weight) if weight else 1.0
    except ValueError:
        number = 0.0
    if not (0 < number < float("inf")) or not all(found):
        raise UserError(
            f"--expert {text!r}: {part.strip()!r} is neither a name, names such as scripted,bot, nor a weight above 0 "
            f"and these, such as 0.3*scripted"
        )
    return WeightedNames(number, found)


def named(name: str, experts: Sequence[StoredExpert]) -> list[StoredExpert]:
    """Those whose kind or revision is ``name``."""
    return [expert for expert in experts if name in (expert.record.kind, expert.record.revision)]


@dataclass(frozen=True)
class Mix:
    """Experts of one task with weights that sum to about 1; usually one with weight 1.

    Which of them plays a seed follows from the seed alone, so it depends neither on shards nor on workers.
    """

    experts: tuple[StoredExpert, ...]
    weights: tuple[float, ...]

    @property
    def kind(self) -> str:
        return self._describe([expert.record.kind for expert in self.experts])

    @property
    def revision(self) -> str:
        """For ``--expert``, the same mix again."""
        return self._describe([expert.record.revision for expert in self.experts])

    def _describe(self, names: Sequence[str]) -> str:
        if len(names) == 1:
            return names[0]
        return "+".join(f"{weight:g}*{name}" for weight, name in zip(self.weights, names, strict=True))

    def index_of(self, seed: int) -> int:
        """Which expert plays ``seed``. Not the policy's own stream of numbers (``seeds.policy_generator``)."""
        if len(self.experts) == 1:
            return 0
        bounds = np.cumsum(self.weights)
        return int(np.searchsorted(bounds, np.random.default_rng((seed, 2)).random() * bounds[-1], side="right"))

    def actor(self, seed: int) -> ExpertRecord:
        """Who plays ``seed``."""
        return self.experts[self.index_of(seed)].record

    def mean_steps(self, task: Task) -> float | None:
        """Steps of an episode, as measured of each expert; None if one of them is not measured."""
        means = []
        for expert in self.experts:
            found = load_measurement(expert.folder, task)
            if found is None:
                return None
            means.append(float(np.mean(found.lengths)))
        return float(np.average(means, weights=self.weights))

    def make_policy(self, task: Task) -> Policy:
        """The policy that plays every seed with its expert, built in the process that will use it.

        Raises:
            UserError: weights that cannot be read or do not fit the task.
        """
        policies = [make_policy(task, expert) for expert in self.experts]
        return policies[0] if len(policies) == 1 else MixedPolicy(self, policies)


class MixedPolicy:
    """Hands every slot to the policy that plays its seed."""

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
        """The policies that have any of ``slots``, with the rows of these."""
        rows: dict[int, list[int]] = {}
        for row, slot in enumerate(slots):
            rows.setdefault(self._index[slot], []).append(row)
        return [(self._policies[index], found) for index, found in rows.items()]


def choose(out: Path, task: Task, text: str = BEST, allow_weak: bool = False) -> Mix:
    """The experts that ``text`` means in ``task``, copied into ``out`` where they are not there yet.

    Every expert must be validly measured and clearly better than random, rules too: nothing is collected whose worth
    is unknown. Only the random policy, chosen by that name, needs neither.

    Args:
        out: root of the run; experts embedded in this package are looked up after its own.
        task: where they act.
        text: see the top of this module.
        allow_weak: take experts that are not clearly better than random.

    Raises:
        UserError: malformed, not there, not measured, or too weak.
    """
    parts = parse_choice(text)
    there, measured = experts_of(out, task), rank_experts(out, task)
    total = sum(part.weight for part in parts)
    weights: dict[str, float] = {}
    for part in parts:
        revision = _choose_one(out, task, part.names, there, measured, allow_weak)
        weights[revision] = weights.get(revision, 0.0) + part.weight / total
    random = random_among(measured)
    if random is not None:
        ensure_in_store(out, random.expert)  # later stages compare with it
    # In a fixed order and with the digits that `Mix.revision` shows, so that the same text is the same mix.
    experts = [expert for expert in there if expert.record.revision in weights]
    kept = tuple(ensure_in_store(out, expert) for expert in sorted(experts, key=lambda e: e.record.revision))
    return Mix(kept, tuple(float(f"{weights[expert.record.revision]:g}") for expert in kept))


def _choose_one(
    out: Path,
    task: Task,
    names: Sequence[str],
    there: Sequence[StoredExpert],
    measured: Sequence[ExpertResult],
    allow_weak: bool,
) -> str:
    """The revision that the first possible one of ``names`` means."""
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
        f"{task.name}: --expert {text} means no measured expert; there: {revisions}. Run {prepare}, "
        f"or choose --expert random on purpose"
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
