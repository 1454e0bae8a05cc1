"""Defines the record of a domain: everything that is particular to a family of tasks, said in the domain's one file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.envs.task import Task

# Names of domains and tasks are folders, config names of datasets, and CSS variables of pages.
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
PART_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")  # of a part of an observation, which is a column
MAX_NAME = 100  # characters
# Names that no domain may have: pages call other colours so, and tables all domains together.
RESERVED = (
    "page", "card", "ink", "soft", "line", "hover", "accent", "bad", "tile", "dot", "overall", "other0", "other1",
    "other2",
)  # fmt: skip


@dataclass(frozen=True)
class SuppliedExpert:
    """An expert without weights that comes with a domain, such as the script of its simulator.

    Attributes:
        policy: ``module:name`` of a function or class that takes the task and returns a ``Policy``. A text, because
            experts build on environments, so a domain must not import them.
        package: the distribution that defines its behaviour; its version is part of the expert's revision. None if the
            expert is defined in the same file or package as the domain.
        origin: provenance in one sentence.
    """

    policy: str
    package: str | None
    origin: str


@dataclass(frozen=True)
class Domain:
    """A family of tasks, and how they are described, shown and trained.

    Attributes:
        name: the first part of its tasks' names, in front of the first dash.
        title: its full name, as reports show it.
        tasks: its tasks; their results are grouped under ``title``.

        about: one paragraph on observations and actions, for the card of a dataset.
        differences: from the data that JAT published, one sentence each.
        licence: of the software and assets that the episodes are made with.
        citations: BibTeX entries of the authors of the environments.

        colours: its colours on a light and on a dark page, such as ``("#b8470f", "#f99b5c")``; None to get one of the
            spare ones.
        steps_per_frame, frames_per_s: of the films of its episodes. Viewers follow a grid world step by step, but 100
            steps of a robot arm are one motion.
        steps_per_s: real time in steps per second, if the environment's ``render_fps`` does not say it.

        shard_episodes: default number of episodes in a shard of imported ones.
        jat_iqm: JAT's published IQM of expert-normalised scores over all tasks of the domain (arXiv 2402.09844).
        jat_context_steps: JAT's context in evaluation, in time steps.
        jat_experts: repository on the Hub with the training that JAT collected a task's episodes with, by task.
        hub_experts: repositories where experts of a task are likely to be found, best first, by task.

        experts: experts without weights that come with the domain, by the name for ``--expert``.
        is_arcade: whether its tasks are games with scores and ``info["lives"]``. Experts are then trained on the sign
            of rewards, and a lost life ends a training episode.
        training_steps: environment steps of a long training of an expert; None for the algorithm's default.
        envpool: returns the id in EnvPool and its options, for tasks that EnvPool implements equally; else None.
        check: raises ``UserError`` if a task cannot be played on this machine although its packages are installed.
    """

    name: str
    title: str
    tasks: tuple[Task, ...] = ()

    about: str = ""
    differences: tuple[str, ...] = ()
    licence: str = ""
    citations: tuple[str, ...] = ()

    colours: tuple[str, str] | None = None
    steps_per_frame: int = 2
    frames_per_s: int = 20
    steps_per_s: int | None = None

    shard_episodes: int = 500
    jat_iqm: float | None = None
    jat_context_steps: int | None = None
    jat_experts: Mapping[str, str] = field(default_factory=dict)
    hub_experts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    experts: Mapping[str, SuppliedExpert] = field(default_factory=dict)
    is_arcade: bool = False
    training_steps: int | None = None
    envpool: Callable[[Task], tuple[str, dict[str, Any]] | None] | None = None
    check: Callable[[Task], None] | None = None


def domain_name(task_name: str) -> str:
    """Name of a task's domain: what stands in front of the first dash."""
    return task_name.partition("-")[0]
