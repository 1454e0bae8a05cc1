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
        after: the stage whose end starts this one; None for the first.
        by_task: whether tasks are worked on apart from each other, so that a scheduler may spread them and one that
            fails leaves the others alone.
    """

    name: str
    module: str
    options: tuple[str, ...]
    after: str | None
    by_task: bool = False


# In an order in which they can run one after another.
STAGES = (
    Stage("experts", "experts.prepare", ("recipe", "task", "workers"), None, by_task=True),
    Stage(
        "collect", "collectors.collect", ("recipe", "task", "workers", "episodes", "expert"), "experts", by_task=True
    ),
    Stage("dataset", "collectors.dataset.build", ("task",), "collect"),
    Stage("train", "trainer.train", ("recipe", "task"), "dataset"),
    Stage("evaluate", "trainer.evaluate", ("recipe", "task", "workers"), "train"),
    Stage("film", "experts.film", ("task", "workers"), "evaluate"),
    Stage("report", "trainer.report", (), "film"),
)
# Beside the others: nothing waits for it, and it needs a place to publish to.
PUBLISH = Stage("publish", "collectors.dataset.publish", ("to",), "dataset")


def command(stage: Stage, options: Mapping[str, str], python: str = sys.executable) -> list[str]:
    """The command line of a stage; of ``options`` (``out`` and others, by name) those it takes."""
    words = [python, "-m", stage.module]
    for name in ("out", *stage.options):
        if options.get(name):
            words += [f"--{name}", options[name]]
    return words
