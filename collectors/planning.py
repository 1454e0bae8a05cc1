"""Plan a collection: who acts in each task and who labels, and which shards are missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from collectors.config import CollectConfig
from collectors.jobs import CollectJob, read_quarantine
from experts.acting.noise import noise_of_task
from experts.choice import POLICY, Mix, choose
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.seeds import SPLITS
from pipeline.storage.manifest import ShardManifest
from pipeline.storage.plan import (
    ShardJob,
    TaskPlan,
    count_missing,
    describe_missing,
    interleaved,
    missing_jobs,
    read_task_plan,
)
from pipeline.storage.shards import finished_shards
from pipeline.versions import format_versions, versions_of

MAX_ERRORS = 5  # number of errors of one kind shown in a message


def choose_all(config: CollectConfig, out: Path, tasks: Sequence[Task]) -> tuple[dict[str, Mix], dict[str, Mix]]:
    """The acting experts of each task, and those that label it (empty without ``--labels``).

    Raises:
        UserError: some tasks have no such expert, or one that can label nothing.
    """
    acting = (POLICY, config.policy) if config.policy else ("--expert", config.expert)
    mixes = _choose(config, out, tasks, *acting)
    labellers = _choose(config, out, tasks, "--labels", config.labels) if config.labels else {}
    _check_can_label(labellers)
    return mixes, labellers


def plan_tasks(
    config: CollectConfig,
    tasks: Sequence[Task],
    mixes: Mapping[str, Mix],
    mean_steps: Callable[[Task], float | None],
    labellers: Mapping[str, Mix] | None = None,
) -> dict[str, TaskPlan]:
    """The plan of each task, by task name.

    Args:
        config: the options.
        tasks: the selected tasks.
        mixes: the acting experts of each task.
        mean_steps: mean number of steps per episode of a task, None if unknown; only called if the option gives steps.
        labellers: the experts of ``--labels`` of each task, if it is given.

    Raises:
        UserError: the number of episodes of a task cannot be determined.
    """
    plan = {}
    for task in tasks:
        mix, noise = mixes[task.name], noise_of_task(config.noise, task)
        length = mean_steps(task) if config.counts_steps(task) else None
        labeller = (labellers or {}).get(task.name) or (mix if noise and mix.can_label else None)
        plan[task.name] = TaskPlan(
            mix.kind,
            mix.revision,
            versions_of(task.packages),
            config.shard_size(task),
            {split: config.num_episodes(task, split, length) for split in SPLITS},
            str(noise) if noise else None,
            labeller.revision if labeller else None,
        )
    return plan


def plan_jobs(
    config: CollectConfig,
    tasks: Sequence[Task],
    mixes: Mapping[str, Mix],
    plan: Mapping[str, TaskPlan],
    root: Path,
    labellers: Mapping[str, Mix] | None = None,
) -> list[CollectJob]:
    """The shards missing below ``root``, in the order in which to collect them.

    The cost per task is that of ``finished_shards``; per shard it is only arithmetic.

    Raises:
        UserError: the existing shards have another origin.
    """
    missing = [_missing(task, plan[task.name], root, bool(config.policy)) for task in tasks]
    quarantines = {task.name: read_quarantine(root, task) for task in tasks}
    return [
        CollectJob(
            shard,
            mixes[shard.task.name],
            root,
            config.envs,
            quarantines[shard.task.name],
            (labellers or {}).get(shard.task.name),
        )
        for shard in interleaved(missing)
    ]


def _check_can_label(labellers: Mapping[str, Mix]) -> None:
    """Raise UserError if the experts of ``--labels`` have nothing to say in a task."""
    for name, mix in labellers.items():
        if not mix.can_label:
            raise UserError(f"{name}: --labels {mix.kind} can label nothing; name an expert that knows what to do")


def _choose(config: CollectConfig, out: Path, tasks: Sequence[Task], flag: str, text: str) -> dict[str, Mix]:
    """The experts of each task that an option names.

    Raises:
        UserError: some tasks have no such expert; the message names the first few.
    """
    mixes, errors = {}, []
    for task in tasks:
        try:
            mixes[task.name] = choose(out, task, text, config.allow_weak, flag)
        except UserError as error:
            errors.append(str(error))
    if len(errors) == 1:
        raise UserError(errors[0])
    if errors:
        shown = "\n  ".join(errors[:MAX_ERRORS]) + ("\n  ..." if len(errors) > MAX_ERRORS else "")
        raise UserError(f"{len(errors)} of {len(tasks)} tasks have no expert to collect with:\n  {shown}")
    return mixes


def _missing(task: Task, plan: TaskPlan, root: Path, may_differ: bool) -> list[ShardJob]:
    """The missing jobs of a task.

    Args:
        task: the task.
        plan: its plan.
        root: folder of the shards.
        may_differ: whether others may have played the shards that are there.

    Raises:
        UserError: existing shards were collected with other package versions, or by another expert or with other noise
            where they may not; or shards that another plan wants are missing, and this one would take their seeds.
    """
    done = finished_shards(root, task.name)
    if may_differ:
        _check_plan_is_done(task, plan, root, done)
    now = (plan.expert, plan.expert_revision, plan.versions, plan.noise)
    for shard in done:
        before = (shard.expert, shard.expert_revision, shard.versions, shard.noise)
        if before != now and not (may_differ and shard.versions == plan.versions):
            noise = f"--noise '{shard.noise}'" if shard.noise else "no --noise"
            raise UserError(
                f"{root / task.name} holds episodes of {_describe(*before)}; this run would add {_describe(*now)}. "
                f"Use another --out, move that folder away, or name the expert that is there: "
                f"--expert '{shard.expert_revision}'" + (f", with {noise}" if shard.noise != plan.noise else "")
            )
    return [
        job
        for split in SPLITS
        for job in missing_jobs(
            task,
            split,
            plan.episodes[split],
            plan.expert,
            [shard for shard in done if shard.split == split],
            plan.shard_episodes,
            plan.noise,
            plan.labels,
        )
    ]


def _check_plan_is_done(task: Task, plan: TaskPlan, root: Path, done: Sequence[ShardManifest]) -> None:
    """Refuse to play the seeds that an earlier plan has for somebody else.

    Raises:
        UserError: the earlier plan is of others, and not complete.
    """
    before = read_task_plan(root, task.name)
    if before is None or dataclasses.replace(before, episodes={}) == dataclasses.replace(plan, episodes={}):
        return
    missing = count_missing(before, done)
    if missing:
        raise UserError(
            f"{describe_missing({task.name: missing}, [task.name])} of an earlier plan ({before.expert_revision}) "
            f"are missing in {root}; run its command again before others play on"
        )


def _describe(expert: str, revision: str, versions: dict[str, str], noise: str | None) -> str:
    return f"expert {expert!r} ({revision}) with {format_versions(versions)}" + (f" and noise {noise}" if noise else "")
