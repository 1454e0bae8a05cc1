"""The ``jat`` command: every stage and tool of the pipeline as a sub-command.

    jat collect --task 'metaworld-*' --episodes 20
    jat dataset validate

A sub-command refers to a module whose ``main`` parses its options. Only the standard library is imported until one is
chosen, so ``jat --help`` is quick, and ``jat status`` does not import torch.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        name: words after ``jat``; two words if it belongs to a group.
        module: module whose ``main`` parses the options.
        summary: one line for ``jat --help``.
        arguments: arguments that are passed before the user's.
    """

    name: str
    module: str
    summary: str
    arguments: tuple[str, ...] = ()


STAGES = (
    Command("experts", "experts.prepare", "find, train or load the expert of each task, and measure it"),
    Command("experts-queue", "experts.queue.run", "train many experts in the order of a file, resumed after any kill"),
    Command("collect", "dags.collect", "collect episodes of the experts, or of the agent, into shards"),
    Command("corpora", "collectors.documents.collect", "collect documents (texts, images with captions) into shards"),
    Command("dataset", "collectors.dataset.build", "build the dataset from the shards; more in `dataset --help`"),
    Command("train", "trainer.train", "train one agent on the dataset"),
    Command("evaluate", "trainer.evaluation.evaluate", "play unseen seeds with the trained agent"),
    Command("film", "experts.film", "film the experts on the seeds that the agent was filmed on"),
    Command("report", "trainer.reporting.report", "write the report: scores, plots, videos"),
    Command("publish", "collectors.dataset.publish", "publish the dataset to the Hub, an object store or a folder"),
)
RUNS = (
    Command("demo", "dags.chain", "all stages on six tasks, in minutes", ("--recipe", "demo")),
    Command("chain", "dags.chain", "the stages one after another"),
    Command("dagger", "dags.dagger", "rounds of relabelling: experts label what the agent does, and it learns from it"),
    Command("dags", "dags.serve", "Airflow with a DAG per stage, on this machine"),
    Command("on-disk", "dags.on_disk", "a stage that needs a disk, for an output root in an object store"),
)
FACTS = (
    Command("tasks", "pipeline.envs.registry", "print the task table"),
    Command("plan", "collectors.forecast", "estimate what a collection takes"),
    Command("status", "collectors.status", "how far the stages of a run are"),
    Command("rates", "collectors.rates", "measure what a collection has cost, for `jat plan`"),
    Command("browse", "collectors.browser.browse", "look at the episodes of a dataset, on a page of this machine"),
    Command("experts-report", "experts.report", "table and plots of the measured experts"),
    Command("completion", "dags.completion", "print what completes these words in bash, zsh or fish"),
)
DATASET = (
    Command("dataset build", "collectors.dataset.build", "build the dataset from the shards, as `jat dataset`"),
    Command("dataset validate", "collectors.dataset.validate", "check a dataset and list all its problems"),
    Command(
        "dataset import", "collectors.dataset.importing.imports", "import episodes of the Hub, of Minari or of a folder"
    ),
    Command("dataset doctor", "collectors.dataset.doctor.doctor", "what looks wrong with its quality, and what to do"),
    Command("dataset export", "collectors.dataset.exporting.export", "export a dataset for LeRobot or Minari"),
    Command("dataset filter", "collectors.dataset.surgery.select", "make a dataset of chosen episodes"),
    Command("dataset remove", "collectors.dataset.surgery.remove", "make a dataset without these episodes or tasks"),
    Command("dataset split", "collectors.dataset.surgery.split", "make several datasets of one"),
    Command("dataset merge", "collectors.dataset.surgery.merge", "make one dataset of several"),
    Command("dataset undo", "collectors.dataset.surgery.undo", "bring back what was before a change in place"),
    Command("dataset confirm", "collectors.dataset.surgery.confirm", "make a change in place final"),
    Command("dataset replay", "collectors.replay", "play a stored episode again and compare"),
    Command("dataset video", "collectors.video", "render a stored episode to mp4"),
    Command("dataset publish", "collectors.dataset.publish", "publish the dataset, as `jat publish`"),
)
AGENT = (
    Command("agent play", "trainer.play", "show the trained agent in a task, step by step"),
    Command("agent generate", "trainer.generate", "continue a text with the trained network"),
    Command("agent compare", "trainer.evaluation.compare", "how likely one evaluation beats another"),
    Command("agent curve", "trainer.evaluation.curve", "evaluate the checkpoints of a training"),
    Command("agent publish", "trainer.publish", "publish the trained network"),
)
SECTIONS = (
    ("stages", STAGES),
    ("runs", RUNS),
    ("information", FACTS),
    ("dataset", DATASET),
    ("agent", AGENT),
)
COMMANDS = {command.name: command for _, section in SECTIONS for command in section}
# A command of a group can be called without the group, unless another command has the same name.
WITHOUT_GROUP = {name.split()[1]: name for name in COMMANDS if " " in name and name.split()[1] not in COMMANDS}
GROUPS = {command.name.split()[0] for command in COMMANDS.values() if " " in command.name}
USAGE = "usage: jat COMMAND [OPTIONS]; `jat COMMAND --help` lists the options of one"
HELP = ("-h", "--help")


def main() -> None:
    """Run the sub-command of the command line; the entry point of ``jat``."""
    words = sys.argv[1:]
    if words[:1] == ["--version"]:
        sys.stdout.write(f"jat {importlib.metadata.version('jat-pipeline')}\n")
        return
    if words and words[0] in HELP:
        sys.stdout.write(describe(SECTIONS))
        return
    if not words:
        sys.stderr.write(describe(SECTIONS))
        sys.exit(2)
    command, rest = find_command(words)
    from pipeline.cli import run

    sys.argv = [f"jat {command.name}", *command.arguments, *rest]
    if command.name in GROUPS and any(word in HELP for word in rest):
        sys.stdout.write(describe(_section_of(command.name)) + "\n")
    run(command.module, sys.argv[0])


def find_command(words: Sequence[str]) -> tuple[Command, list[str]]:
    """Find the sub-command at the start of ``words``; return it and the remaining words.

    Raises:
        SystemExit: with code 2 after printing the nearest command; with code 0 after printing the help of a group.
    """
    first, *rest = words
    if first in GROUPS and rest and not rest[0].startswith("-"):
        name = f"{first} {rest[0]}"
        if name in COMMANDS:
            return COMMANDS[name], rest[1:]
        _refuse(name, {command: command for command in COMMANDS if command.startswith(f"{first} ")})
    if first in COMMANDS:
        return COMMANDS[first], rest
    if first in GROUPS:
        is_help = bool(rest) and rest[0] in HELP
        (sys.stdout if is_help else sys.stderr).write(describe(_section_of(first)))
        sys.exit(0 if is_help else 2)
    if first in WITHOUT_GROUP:
        return COMMANDS[WITHOUT_GROUP[first]], rest
    _refuse(first, {name: name for name in (*COMMANDS, *GROUPS)} | WITHOUT_GROUP)


def _section_of(group: str) -> list[tuple[str, Sequence[Command]]]:
    return [(title, section) for title, section in SECTIONS if section[0].name.startswith(f"{group} ")]


def _refuse(name: str, allowed: Mapping[str, str]) -> NoReturn:
    """Exit with code 2 after printing the full name of the nearest allowed command."""
    nearest = [] if name.startswith("-") else difflib.get_close_matches(name, allowed, n=1)
    hint = f"did you mean `jat {allowed[nearest[0]]}`?" if nearest else "`jat --help` lists the commands"
    from pipeline.secrets import redacted

    sys.stderr.write(f"error: there is no command `jat {redacted(name)}`; {hint}\n")
    sys.exit(2)


def describe(sections: Sequence[tuple[str, Sequence[Command]]]) -> str:
    """Help text of some sections."""
    lines = [USAGE]
    for title, commands in sections:
        lines += ["", f"{title}:"] + [f"  {command.name:<18} {command.summary}" for command in commands]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
