"""Steps per second of every Meta-World task: as collected, with metaworld's own class, and the physics alone.

    python -m tests.benchmarks.metaworld_stepping --task 'metaworld-*'

All three replay the same episodes of the scripted policy, resets included, one episode each in turns. *Physics* is
``mj_step`` with five substeps per step and nothing else; the columns *step* leave resets out. Times are processor times
of this process, so other work on the machine affects ratios little.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from experts.scripted.metaworld import ScriptedPolicy
from pipeline.envs.registry import select_tasks
from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task
from pipeline.tables import Column, Table, print_table
from tests.benchmarks.study import write_between

SUBSTEPS = 5
HEADINGS = (
    "steps/s", "metaworld's", "physics alone", "/ physics", "/ metaworld's", "step / physics", "step / metaworld's",
)  # fmt: skip


class Times:
    """Processor seconds of one way of stepping, per episode."""

    def __init__(self) -> None:
        self.resets: list[float] = []
        self.steps: list[float] = []

    def rate(self, num_steps: int) -> float:
        return num_steps / statistics.median(map(sum, zip(self.resets, self.steps, strict=True)))


def measure(task: Task, num_episodes: int) -> tuple[Times, Times, Times, int]:
    """Time episodes of one task.

    Returns:
        times of the environment as collected, of metaworld's own and of the physics, and the steps of an episode.
    """
    episodes = list(rollout(task, ScriptedPolicy(task), range(num_episodes + 1), 1, keep_observations=False))
    env, reference = task.make_env(), task.as_reference().make_env()
    quick_times, own_times, physics_times = Times(), Times(), Times()
    gc.collect()
    gc.disable()
    for number, episode in enumerate(episodes):
        found = [play(env, episode.seed, episode.actions), play(reference, episode.seed, episode.actions)]
        found.append(step_physics(env, episode.seed, episode.actions))
        if number > 0:  # the first one loads and compiles
            for times, (reset_s, steps_s) in zip((quick_times, own_times, physics_times), found, strict=True):
                times.resets.append(reset_s)
                times.steps.append(steps_s)
    gc.enable()
    env.close()
    reference.close()
    return quick_times, own_times, physics_times, len(episodes[0])


def play(env: Any, seed: int, actions: np.ndarray) -> tuple[float, float]:
    """Replay an episode; return the seconds of the reset and of all steps."""
    begun = time.process_time()
    env.reset(seed=seed)
    middle = time.process_time()
    for action in actions:
        env.step(action)
    return middle - begun, time.process_time() - middle


def step_physics(env: Any, seed: int, actions: np.ndarray) -> tuple[float, float]:
    """Step the simulator through an episode; return zero and the seconds of all steps."""
    env.reset(seed=seed)
    sawyer = env.unwrapped
    model, data = sawyer.model, sawyer.data
    controls = []
    for action in actions:
        env.step(action)
        controls.append((data.mocap_pos.copy(), data.ctrl.copy()))
    env.reset(seed=seed)
    position, control = data.mocap_pos, data.ctrl
    begun = time.process_time()
    for position[:], control[:] in controls:
        mujoco.mj_step(model, data, nstep=SUBSTEPS)
    return 0.0, time.process_time() - begun


def ratio(times: Times, other: Times, part: Callable[[Times], Sequence[float]]) -> float:
    """How many times as fast ``times`` is as ``other``: the median over episodes."""
    return statistics.median(b / a for a, b in zip(part(times), part(other), strict=True))


def whole(times: Times) -> list[float]:
    return [a + b for a, b in zip(times.resets, times.steps, strict=True)]


@dataclass(frozen=True)
class Row:
    """The result of one task, or their median or smallest; rates are steps per second."""

    name: str
    rates: tuple[float, ...] | None
    ratios: tuple[float, ...]


def measure_rows(tasks: Sequence[Task], num_episodes: int) -> list[Row]:
    rows = []
    for task in tasks:
        quick, own, physics, num_steps = measure(task, num_episodes)
        ratios = [ratio(quick, other, part) for part in (whole, lambda times: times.steps) for other in (physics, own)]
        rows.append(Row(task.name, tuple(times.rate(num_steps) for times in (quick, own, physics)), tuple(ratios)))
    columns = list(zip(*(row.ratios for row in rows), strict=True))
    for name, middle in (("median", statistics.median), ("smallest", min)):
        rows.append(Row(name, None, tuple(map(middle, columns))))
    return rows


def as_markdown(rows: Sequence[Row]) -> str:
    lines = [f"| task | {' | '.join(HEADINGS)} |", "|---|" + "---:|" * len(HEADINGS)]
    for row in rows:
        rates = [f"{rate:,.0f}" for rate in row.rates] if row.rates else ["", "", ""]
        lines.append(f"| {' | '.join([row.name, *rates, *(f'{value:.2f}' for value in row.ratios)])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="metaworld", help="task names, globs or the domain")
    parser.add_argument("--episodes", type=int, default=8, help="episodes of each task")
    parser.add_argument("--core", type=int, help="the core to run on")
    parser.add_argument("--write", type=Path, help="document with the lines <!-- STEPPING --> and <!-- end -->")
    given = parser.parse_args()
    if given.core is not None:
        os.sched_setaffinity(0, {given.core})
    rows = measure_rows(select_tasks(given.task), given.episodes)
    table = Table("task", *(Column(name, ",.0f") for name in HEADINGS[:3]), *(Column(n, ".2f") for n in HEADINGS[3:]))
    for row in rows:
        table.add_row(row.name, *(row.rates or (None, None, None)), *row.ratios)
    print_table(table)
    if given.write:
        write_between(given.write, "STEPPING", as_markdown(rows))


if __name__ == "__main__":
    main()
