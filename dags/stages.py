"""Definition of the stages: command, options, upstream stage, inputs and outputs, and whether it is split by task."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.run_layout import (
    CONFIG,
    DATASET,
    EVALUATION,
    EXPERTS,
    IMPORTED,
    MANIFEST,
    REPORT,
    ROUNDS,
    SHARDS,
    STATISTICS,
    TRAIN,
)
from pipeline.run_layout import PUBLISH as PUBLISH_FOLDER
from pipeline.run_layout import QUEUE as QUEUE_FOLDER


@dataclass(frozen=True)
class Stage:
    """One command of the pipeline.

    Attributes:
        name: name as in ``make NAME``.
        module: module that is run as ``python -m MODULE``.
        options: options of the chain that the stage accepts, besides ``--out``.
        after: upstream stage, which triggers this one when it finishes; None if a user or a schedule starts it.
        also_after: another upstream stage that triggers it.
        by_task: whether tasks are processed independently, so that a scheduler can distribute them and a failed task
            does not affect the others.
        reads: files and folders below OUT that the stage needs on a local disk; empty if it reads and writes an object
            store itself.
        makes: folders below OUT that it writes on a local disk. A folder that is also in ``reads`` is shared with other
            stages.
    """

    name: str
    module: str
    options: tuple[str, ...]
    after: str | None
    by_task: bool = False
    reads: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    also_after: str | None = None


# Metadata of a dataset, without its data.
FACTS = (f"{DATASET}/{MANIFEST}", f"{DATASET}/{CONFIG}", f"{DATASET}/{STATISTICS}")

# In topological order: they can run one after another.
STAGES = (
    Stage("experts", "experts.prepare", ("recipe", "task", "workers"), None, by_task=True),
    Stage(
        "collect", "collectors.collect", ("recipe", "task", "workers", "episodes", "expert"), "experts", by_task=True
    ),
    Stage(
        "dataset", "collectors.dataset.build", ("task",), "collect",
        reads=(SHARDS, IMPORTED), makes=(DATASET,), also_after="corpora",
    ),
    Stage("train", "trainer.train", ("recipe", "task"), "dataset", reads=(DATASET,), makes=(TRAIN,)),
    Stage(
        "evaluate", "trainer.evaluation.evaluate", ("recipe", "task", "workers"), "train",
        reads=(TRAIN, EXPERTS, *FACTS), makes=(EVALUATION,),
    ),
    Stage(
        "film", "experts.film", ("task", "workers"), "evaluate",
        reads=(EVALUATION, EXPERTS, *FACTS), makes=(EXPERTS,),
    ),
    Stage(
        "report", "trainer.reporting.report", (), "film",
        reads=(EXPERTS, f"{SHARDS}/{CONFIG}", *FACTS, TRAIN, EVALUATION), makes=(REPORT,),
    ),
)  # fmt: skip
# Stages outside the chain. Texts and images from other sources:
CORPORA = Stage("corpora", "collectors.documents.collect", ("task", "workers", "episodes", "source"), None)
# Long trainings of experts, which no other stage waits for. Of the chain's options it accepts only the workers:
QUEUE = Stage(
    "experts-queue", "experts.queue.run", ("queue", "workers"), None,
    reads=(EXPERTS,), makes=(QUEUE_FOLDER, EXPERTS),
)  # fmt: skip
# Rounds of relabelling, which run stages themselves:
DAGGER = Stage(
    "dagger", "dags.dagger", ("task", "workers", "episodes"), None,
    reads=(EXPERTS,), makes=(EXPERTS, SHARDS, DATASET, ROUNDS, EVALUATION, REPORT),
)  # fmt: skip
# Publishing, which no other stage waits for. It needs a destination:
PUBLISH = Stage(
    "publish", "collectors.dataset.publish", ("to",), "dataset", reads=(DATASET,), makes=(PUBLISH_FOLDER,)
)  # fmt: skip

ALL_STAGES = (*STAGES, CORPORA, QUEUE, DAGGER, PUBLISH)


def command(stage: Stage, options: Mapping[str, str], python: str = sys.executable) -> list[str]:
    """Command line of a stage, with those of ``options`` (``out`` and others, by name) that it accepts.

    A stage that needs a local disk is started through ``dags/on_disk.py`` if its ``out`` is in an object store.
    """
    own = [word for name in stage.options if options.get(name) for word in (f"--{name}", options[name])]
    out = ["--out", options["out"]] if options.get("out") else []
    if stage.reads and "://" in options.get("out", ""):
        return [python, "-m", "dags.on_disk", "--stage", stage.name, *out, "--", *own]
    return [python, "-m", stage.module, *out, *own]
