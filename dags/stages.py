"""The stages: which command each is, which options it takes, what starts it, and whether it works task by task."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One command of the pipeline.

    Attributes:
        name: as in ``make NAME``.
        module: run as ``python -m MODULE``.
        options: those of the chain's that it takes, besides ``--out``.
        after: the stage whose end starts this one; None for those that a person or a clock starts.
        also_after: another one whose end starts it.
        by_task: whether tasks are worked on apart from each other, so that a scheduler may spread them and one that
            fails leaves the others alone.
        reads: files and folders below OUT that it needs on a disk; none if the stage works in an object store itself.
        makes: folders below OUT that it writes on a disk. One that is read, too, is shared with other stages.
    """

    name: str
    module: str
    options: tuple[str, ...]
    after: str | None
    by_task: bool = False
    reads: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    also_after: str | None = None


# What is told of a dataset without its data.
FACTS = ("dataset/manifest.json", "dataset/config.json", "dataset/statistics")

# In an order in which they can run one after another.
STAGES = (
    Stage("experts", "experts.prepare", ("recipe", "task", "workers"), None, by_task=True),
    Stage(
        "collect", "collectors.collect", ("recipe", "task", "workers", "episodes", "expert"), "experts", by_task=True
    ),
    Stage(
        "dataset", "collectors.dataset.build", ("task",), "collect",
        reads=("shards", "imported"), makes=("dataset",), also_after="corpora",
    ),
    Stage("train", "trainer.train", ("recipe", "task"), "dataset", reads=("dataset",), makes=("train",)),
    Stage(
        "evaluate", "trainer.evaluation.evaluate", ("recipe", "task", "workers"), "train",
        reads=("train", "experts", *FACTS), makes=("evaluation",),
    ),
    Stage(
        "film", "experts.film", ("task", "workers"), "evaluate",
        reads=("evaluation", "experts", *FACTS), makes=("experts",),
    ),
    Stage(
        "report", "trainer.reporting.report", (), "film",
        reads=("experts", "shards/config.json", *FACTS, "train", "evaluation"), makes=("report",),
    ),
)  # fmt: skip
# Beside the others: texts and images, which come from elsewhere,
CORPORA = Stage("corpora", "collectors.documents.collect", ("task", "workers", "episodes", "source"), None)
# long trainings, which nobody waits for (of the chain's options it takes the number of workers alone),
QUEUE = Stage(
    "experts-queue", "experts.queue.run", ("queue", "workers"), None,
    reads=("experts",), makes=("queue", "experts"),
)  # fmt: skip
# and what nothing waits for; it needs a place to publish to.
PUBLISH = Stage(
    "publish", "collectors.dataset.publish", ("to",), "dataset", reads=("dataset",), makes=("publish",)
)  # fmt: skip

ALL_STAGES = (*STAGES, CORPORA, QUEUE, PUBLISH)


def command(stage: Stage, options: Mapping[str, str], python: str = sys.executable) -> list[str]:
    """The command line of a stage; of ``options`` (``out`` and others, by name) those it takes.

    A stage that needs a disk, and whose ``out`` is in an object store, is started by ``dags/on_disk.py``.
    """
    own = [word for name in stage.options if options.get(name) for word in (f"--{name}", options[name])]
    out = ["--out", options["out"]] if options.get("out") else []
    if stage.reads and "://" in options.get("out", ""):
        return [python, "-m", "dags.on_disk", "--stage", stage.name, *out, "--", *own]
    return [python, "-m", stage.module, *out, *own]
