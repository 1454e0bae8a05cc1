"""Compare Meta-World as collected with metaworld's own classes, bit by bit: 20 seeds, three kinds of actions.

    python -m tests.benchmarks.metaworld_equality --task 'metaworld-*' --seeds 20

Both environments of a task play the same actions, one task after another in one process. Compared are observations
before and after rounding, rewards, ends, all of ``info``, the scripts' actions, and the state of the simulator at the
end of each episode. The command prints a line per task and fails at the first difference. With 20 seeds it takes about
ten minutes of a core.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experts.ranking import rank_experts
from experts.registry import make_policy
from experts.scripted.metaworld import ScriptedPolicy
from experts.scripted.random_policy import RandomPolicy
from pipeline.envs.policy import Observations, Policy
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import CONTINUOUS, Task

NO_RUN = Path("no-run")  # so that only embedded experts act
STATE = ("qpos", "qvel", "qacc_warmstart", "ctrl", "mocap_pos", "mocap_quat", "time", "xpos", "geom_xpos", "site_xpos")


class DifferenceError(AssertionError):
    """The two environments of a task differ."""


def policies_of(task: Task) -> list[Policy]:
    """Make the random policy, the script, and the best network that comes with this package."""
    ranked = rank_experts(NO_RUN, task)
    networks = [found.expert for found in ranked if found.expert.record.network is not None]
    return [RandomPolicy(task), ScriptedPolicy(task), *(make_policy(task, expert) for expert in networks[:1])]


def compare(task: Task, policies: Iterable[Policy], seeds: Iterable[int], num_steps: int) -> int:
    """Play each seed with each policy; return the number of steps.

    Raises:
        DifferenceError: anything is not equal.
    """
    env, reference = task.make_env(), task.as_reference().make_env()
    if type(reference.unwrapped).__module__.split(".")[0] != "metaworld":
        raise DifferenceError(f"{task.name}: the reference is not metaworld's own class")
    policies = list(policies)
    done = 0
    for seed in seeds:
        for policy in policies:
            done += _compare_episode(task, (env, reference), policy, seed, num_steps)
    env.close()
    reference.close()
    return done


def _compare_episode(task: Task, envs: tuple[Any, Any], policy: Policy, seed: int, num_steps: int) -> int:
    what = f"{task.name}, seed {seed}, {type(policy).__name__}"
    (seen, info), (expected, expected_info) = [env.reset(seed=seed) for env in envs]
    policy.reset([0], [seed], [envs[0]])
    script = ScriptedPolicy(task.as_reference())
    script.reset([0], [seed], [envs[1]])
    reward = 0.0
    for step in range(num_steps):
        _check(f"{what}, observation {step}", seen[CONTINUOUS], expected[CONTINUOUS])
        _check(f"{what}, unrounded observation {step}", *(env.unwrapped._prev_obs for env in envs))
        if info.keys() != expected_info.keys():
            raise DifferenceError(f"{what}: info {step} has other keys")
        for key, value in expected_info.items():
            _check(f"{what}, {key} of info {step}", np.float64(info[key]), np.float64(value))
        observed = Observations(seen[CONTINUOUS][None], None, np.array([reward], np.float32))
        (chosen,) = policy.act([0], observed)
        if isinstance(policy, ScriptedPolicy):
            _check(f"{what}, action {step}", chosen, script.act([0], observed)[0])
        action = np.asarray(chosen).astype(np.float32).clip(-1, 1)  # as the rollout does
        (seen, reward, *ends, info), (expected, own, *own_ends, expected_info) = [env.step(action) for env in envs]
        _check(f"{what}, reward {step}", reward, own)
        if ends != own_ends:
            raise DifferenceError(f"{what}: ends {ends} at step {step}, metaworld's {own_ends}")
    for name in STATE:
        found, own_state = [getattr(env.unwrapped.data, name) for env in envs]
        _check(f"{what}, {name} at the end", found, own_state)
    return num_steps


def _check(what: str, found: Any, expected: Any) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    if (found.dtype, found.shape, found.tobytes()) != (expected.dtype, expected.shape, expected.tobytes()):
        raise DifferenceError(f"{what}: {found} ({found.dtype}), metaworld's {expected} ({expected.dtype})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="metaworld", help="task names, globs or the domain")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100, help="steps of each episode")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    begun, total = time.process_time(), 0
    for task in select_tasks(given.task):
        policies = policies_of(task)
        total += compare(task, policies, range(given.seeds), given.steps)
        spent = math.ceil(time.process_time() - begun)
        print(f"{task.name}: equal with {len(policies)} policies; {total} steps in all, {spent} s", flush=True)


if __name__ == "__main__":
    main()
