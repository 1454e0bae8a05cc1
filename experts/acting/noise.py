"""Action noise: parse ``--noise``, and wrap a policy with it.

Syntax:

epsilon=0.05                    discrete tasks: with this probability a uniformly random action replaces the expert's
gaussian=0.1                    continuous tasks: Gaussian noise is added to every dimension, with this share of half
                                the action's range as standard deviation; the sum is clipped like any action
0.5*epsilon=0.05                only in this share of the episodes, chosen by seed
epsilon=0.05,0.5*gaussian=0.1   both, for tasks of both kinds

What is executed is noisy; the label of a step is the expert's clean action (DART, arXiv 1703.09327).

The noise of an episode is a function of its seed only. Its RNG stream differs from the policy's (``(seed, 1)``) and
from the one that assigns seeds to the experts of a mix (``(seed, 2)``), so noise changes neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from pipeline.envs.policy import GiveUp, LabelledActions, Observations, Policy
from pipeline.envs.task import Action, Task
from pipeline.errors import UserError

# Kind of action that each noise applies to.
NAMES = {"epsilon": "discrete", "gaussian": "continuous"}


@dataclass(frozen=True)
class Noise:
    """One kind of noise and its share of the episodes; ``parse_noise`` parses its text form.

    Attributes:
        name: ``epsilon`` or ``gaussian``.
        amount: probability, or standard deviation as a share of half the range; above 0 and at most 1.
        share: share of the episodes with noise; above 0 and at most 1.
    """

    name: str
    amount: float
    share: float = 1.0

    def __str__(self) -> str:
        return self._strength if self.share == 1 else f"{self.share!r}*{self._strength}"

    @property
    def _strength(self) -> str:
        return f"{self.name}={self.amount!r}"

    def of_episode(self, seed: int) -> str | None:
        """Return the noise in the episode of ``seed``, such as ``epsilon=0.05``; None if there is none."""
        return None if self._generator(seed) is None else self._strength

    def _generator(self, seed: int) -> np.random.Generator | None:
        """Return the RNG of an episode's noise, after the draw that decides whether there is any; else None."""
        generator = np.random.default_rng((seed, 3))
        return generator if generator.random() < self.share else None


def parse_noise(text: str) -> tuple[Noise, ...]:
    """Parse the value of ``--noise``; an empty tuple if it is empty.

    Raises:
        UserError: a name is unknown or given twice, or a number is not above 0 and at most 1.
    """
    found = tuple(_parse_part(part.strip(), text) for part in text.split(",")) if text.strip() else ()
    for name in NAMES:
        if sum(noise.name == name for noise in found) > 1:
            raise UserError(f"--noise {text!r}: {name} is there twice; name it once")
    return found


def _parse_part(part: str, text: str) -> Noise:
    share, _, strength = part.rpartition("*")
    name, _, amount = strength.partition("=")
    if name.strip() not in NAMES:
        raise UserError(
            f"--noise {text!r}: {name.strip()!r} is no noise; allowed: epsilon=PROBABILITY for discrete actions, "
            f"gaussian=SHARE of half the range for continuous ones, either in a share of the episodes: 0.5*epsilon=0.1"
        )
    return Noise(name.strip(), _parse_share(amount, part, text), _parse_share(share, part, text) if share else 1.0)


def _parse_share(number: str, part: str, text: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:  # also true for NaN
        raise UserError(f"--noise {text!r}: {number.strip()!r} in {part!r} is not a number above 0 and at most 1")
    return value


def noise_of_task(text: str, task: Task) -> Noise | None:
    """Return the part of ``--noise`` that applies to ``task``, or None."""
    return next((noise for noise in parse_noise(text) if NAMES[noise.name] == task.action.kind), None)


def check_noise(text: str, tasks: Sequence[Task]) -> None:
    """Check that every part of ``--noise`` applies to at least one task.

    Raises:
        UserError: the text is malformed, or a part is for a kind of action that no task has.
    """
    for noise in parse_noise(text):
        if all(task.action.kind != NAMES[noise.name] for task in tasks):
            raise UserError(
                f"--noise {text!r}: {noise.name} is for {NAMES[noise.name]} actions, and no chosen task has these; "
                f"leave it out or choose such a task"
            )


class NoisyPolicy:
    """Wraps another policy and adds each episode's noise to its actions; the labels are its actions without.

    Networks and scripted policies react to the next observation. The BabyAI bot plans ahead; it reads the executed
    action from the environment and undoes it (0 of 280 episodes given up on seven levels with epsilon=0.05, 1 with
    0.2).
    """

    def __init__(self, task: Task, policy: Policy, noise: Noise) -> None:
        self._action, self._policy, self._noise = task.action, policy, noise
        self._generators: dict[int, np.random.Generator | None] = {}

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        for slot, seed in zip(slots, seeds, strict=True):
            self._generators[slot] = self._noise._generator(seed)
        self._policy.reset(slots, seeds, envs)

    def act(self, slots: Sequence[int], observations: Observations) -> LabelledActions:
        clean = list(self._policy.act(slots, observations))
        noisy = [self._disturb(self._generators[slot], action) for slot, action in zip(slots, clean, strict=True)]
        return LabelledActions(noisy, clean)

    def _disturb(self, generator: np.random.Generator | None, action: Any) -> Any:
        if generator is None or isinstance(action, GiveUp):
            return action
        if self._noise.name == "epsilon":
            return _replaced(generator, self._action, self._noise.amount, action)
        return _shifted(generator, self._action, self._noise.amount, action)


def _replaced(generator: np.random.Generator, space: Action, epsilon: float, action: Any) -> Any:
    return int(generator.integers(space.size)) if generator.random() < epsilon else action


def _shifted(generator: np.random.Generator, space: Action, amount: float, action: Any) -> np.ndarray:
    deviation = amount * (space.high - space.low) / 2
    return np.asarray(action) + generator.normal(0.0, deviation, space.size)
