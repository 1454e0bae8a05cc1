"""Relabelling (DAgger, arXiv 1011.0686): the agent acts, experts label what it meets, and it learns from that.

    jat dagger --task 'mujoco-*' --rounds 2 --out runs/relabelled

Round 0 clones the experts. In each later round the last agent plays new seeds of the tasks that it is not good enough
at, the experts label every step, and the training goes on from the last checkpoint with all episodes so far. Every step
is a stage's own command, which resumes; a round is finished when ``OUT/rounds/N/round.json`` is there. So this command
may be killed at any point and run again. With more ``--rounds`` it goes on.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dags.chain import run_stage
from pipeline.cli import check_at_least_one, parse, run
from pipeline.errors import UserError
from pipeline.files import exclusive, is_local, write_json
from pipeline.records import read_values
from pipeline.run_layout import CONFIG, RunLayout
from pipeline.scoring.rounds import Round, load_rounds
from pipeline.storage.manifest import DatasetManifest
from pipeline.tables import Column, Table, print_table
from trainer.config import RECIPES
from trainer.evaluation.results import load_scores
from trainer.training.logs import TrainManifest

log = logging.getLogger(__name__)

WARMUP = 10  # at most this part of a round's steps is warm-up
SEPARATORS = "+*,"  # of --policy, in which the path of a checkpoint stands


@dataclass(frozen=True)
class DaggerConfig:
    """Collect, train and evaluate in rounds: experts label what the agent does, and it learns from that."""

    task: str
    """Task name, domain, glob, or comma list of these."""
    out: Path = Path("runs/default")
    """Root of all outputs of a run."""
    rounds: int = 3
    """Rounds of relabelling, after round 0, in which the experts act."""
    episodes: int = 25
    """Training episodes per task and round."""
    steps: int = 2000
    """Optimiser steps per round."""
    train_recipe: str = "base"
    """Recipe of `jat train`."""
    enough: float = 0.95
    """Tasks with at least this mean score get no more episodes; 1 is the expert."""
    evaluate: int = 20
    """Episodes per task to evaluate each round's agent on."""
    workers: int = 2
    """Worker processes of collection and evaluation."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "rounds", "episodes", "steps", "evaluate", "workers")
        if self.train_recipe not in RECIPES:
            raise UserError(f"--train-recipe {self.train_recipe!r} is unknown; allowed: {', '.join(RECIPES)}")
        if not self.enough > 0:
            raise UserError(f"--enough is {self.enough:g}; it must be above 0")
        if not is_local(self.out):
            raise UserError(f"--out {self.out}: rounds need a disk; name a folder")
        if any(letter in str(self.out.absolute()) for letter in SEPARATORS):
            raise UserError(f"--out {self.out}: its path has one of {SEPARATORS}, which --policy reads as a mix")

    @property
    def fixed(self) -> dict[str, str]:
        """The settings that must stay the same from round to round."""
        names = ("task", "episodes", "steps", "train_recipe", "evaluate")
        return {name: str(getattr(self, name)) for name in names}


def relabel(config: DaggerConfig) -> list[Round]:
    """Run the rounds that are not finished; if a stage fails, exit with its exit code.

    Raises:
        UserError: another process works in the folder, or it has rounds of other settings.
    """
    layout = RunLayout(config.out)
    with exclusive(layout.rounds / ".lock", "wait for it, or use another --out"):
        _check_same(config)
        write_json(layout.config(layout.rounds.name), config.fixed)
        rounds = load_rounds(config.out)
        while len(rounds) <= config.rounds:
            wanted = rounds[-1].in_need(config.enough) if rounds else []
            if rounds and not wanted:
                log.info("no task is below --enough %g: done after round %d", config.enough, rounds[-1].number)
                break
            rounds.append(_play_round(config, rounds, wanted))
            write_json(layout.round_record(rounds[-1].number), rounds[-1])
            log.info("round %d: mean score %s", rounds[-1].number, _two_digits(rounds[-1].mean))
        _run("trainer.reporting.report", "--name", _evaluation(rounds[-1].number), "--out", str(config.out))
    return rounds


def _check_same(config: DaggerConfig) -> None:
    path = RunLayout(config.out).rounds / CONFIG
    if not path.exists():
        return
    fix = f"move {path.parent} away to start anew"
    before = read_values(path, dict[str, str], "the settings of a relabelling", fix)
    differ = [name for name, value in config.fixed.items() if before.get(name) != value]
    if differ:
        name = differ[0]
        flag = f"--{name.replace('_', '-')}"
        raise UserError(f"{path.parent} has rounds with {flag} {before.get(name)}, not {config.fixed[name]}; {fix}")


def _play_round(config: DaggerConfig, rounds: Sequence[Round], wanted: Sequence[str]) -> Round:
    """Run one round's stages.

    Args:
        config: the options.
        rounds: the finished ones.
        wanted: tasks to collect more episodes of; ignored in the first round.
    """
    layout, number = RunLayout(config.out), len(rounds)
    out = ["--out", str(config.out)]
    workers = ["--workers", str(config.workers)]
    log.info("round %d of %d%s", number, config.rounds, f": {', '.join(wanted)}" if wanted else "")
    training = ["--dataset", str(layout.dataset), "--out", str(layout.round(number))]
    if rounds:
        episodes = rounds[-1].episodes | {name: rounds[-1].episodes[name] + config.episodes for name in wanted}
        agent = layout.at(rounds[-1].checkpoint).absolute()
        counts = ",".join(f"{name}={episodes[name]}" for name in wanted)
        more = ["--policy", f"agent:{agent}", "--labels", "best", "--episodes", counts]
        _run("dags.collect", "--task", ",".join(wanted), *more, *workers, *out)
        training += ["--from", str(agent)]
    else:
        _run("experts.prepare", "--task", config.task, *workers, *out)
        _run("dags.collect", "--task", config.task, "--episodes", str(config.episodes), *workers, *out)
    _run("collectors.dataset.build", "--task", config.task, *out)
    recipe = [] if config.train_recipe == "base" else ["--recipe", config.train_recipe]
    # A round may be short: the default of 200 steps must not be most of it.
    steps = ["--steps", str(config.steps), "--warmup-steps", str(max(1, min(200, config.steps // WARMUP)))]
    _run("trainer.train", "--task", config.task, *steps, *recipe, *training)
    manifest = TrainManifest.read(RunLayout(layout.round(number)).train_manifest)
    checkpoint = layout.round(number) / manifest.checkpoint
    name = _evaluation(number)
    played = ["--episodes", str(config.evaluate), "--video-episodes", "0"]
    _run("trainer.evaluation.evaluate", "--checkpoint", str(checkpoint), "--name", name, *played, *workers, *out)
    scores = {each.task: None if each.score is None else each.score.mean for each in load_scores(config.out, name)}
    dataset = DatasetManifest.load(layout.dataset / DatasetManifest.FILE_NAME)
    splits = [split for name in scores for split in dataset.tasks[name].splits.values()]
    return Round(
        number,
        episodes if rounds else dict.fromkeys(scores, config.episodes),
        sum(split.num_steps for split in splits),
        config.steps,
        str(checkpoint.relative_to(config.out)),
        scores,
    )


def _evaluation(number: int) -> str:
    """Name of the evaluation of a round's agent."""
    return f"round-{number}"


def _run(module: str, *words: str) -> None:
    code = run_stage([sys.executable, "-m", module, *words])
    if code:
        log.error("%s ended with exit code %d; run the same command again to go on", module, code)
        sys.exit(code)


def rounds_table(rounds: Sequence[Round], enough: float) -> Table:
    """A row per round: what it has cost and how good its agent is. The records have the score of each task."""
    mean, least = Column("mean score", ".2f"), Column("its score", ".2f")
    table = Table("round", Column("queries", ",.0f"), mean, "tasks below", "lowest", least, title="Rounds")
    for each in rounds:
        known = {name: score for name, score in each.scores.items() if score is not None}
        lowest = min(known, key=lambda name: known[name], default=None)
        below = len(each.in_need(enough))
        table.add_row(each.number, each.queries, each.mean, below, lowest, known[lowest] if lowest else None)
    table.caption = (
        f"Queries are the steps so far in which an expert acted or labelled, tasks below those under {enough:g}. "
        f"The last agent: {rounds[-1].checkpoint}"
    )
    return table


def _two_digits(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def main() -> None:
    config = parse(DaggerConfig, prints_tables=True)
    print_table(rounds_table(relabel(config), config.enough))


if __name__ == "__main__":
    run("dags.dagger")
