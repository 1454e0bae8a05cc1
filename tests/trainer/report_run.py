"""A made-up run of all 157 tasks, as the stages would have left it: for the report's layout, not for its numbers.

JAT's published figures are real; everything else is drawn from a fixed generator. It has the cases that make a page
break: tasks that are not scorable, negative scores, scores far above 1, rejected episodes, one task without a film.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Task
from pipeline.files import write_json
from pipeline.media.film import Filmed
from pipeline.media.video import write_mp4
from pipeline.run_layout import RunLayout
from pipeline.runtime.hardware import Hardware
from pipeline.scoring.measurement import Measurement
from pipeline.scoring.scores import jat_scores
from pipeline.seeds import seeds_of
from pipeline.storage.manifest import DatasetManifest, FileEntry, SplitManifest, TaskManifest
from pipeline.versions import versions_of
from trainer.config import TrainConfig
from trainer.evaluation.results import CheckpointPoint, Curve, Settings, TaskScore, write_evaluation
from trainer.evaluation.scoring import evaluation_of, score_task
from trainer.training.logs import TrainManifest

EPISODES = 8
WEIGHTS = b"made up"
SETTINGS = Settings(
    "train/checkpoints/step-00020000", sha256(WEIGHTS).hexdigest()[:16], 20000, 80_000_000, 1.0, {}, "mean"
)
SKILL = {"atari": 0.35, "babyai": 0.9, "metaworld": 0.75, "mujoco": 0.85}
HARDWARE = Hardware("AMD EPYC 9B14", 2, 16.4, True)
NOT_SCORABLE = ("atari-bowling", "atari-venture")
WITHOUT_FILM = "atari-zaxxon"
EXPERT = "ppo-01234567"
SIZES = {"atari": (210, 160), "babyai": (214, 192), "metaworld": (240, 240), "mujoco": (240, 240)}


def write_run(out: Path, filmed: str = "*", pattern: str = "*") -> None:
    """Write the run.

    Args:
        out: its root.
        filmed: tasks that are filmed.
        pattern: tasks that were evaluated.
    """
    generator = np.random.default_rng(0)
    tasks = select_tasks(pattern)
    scores = [_write_task(out, task, generator) for task in tasks]
    evaluation = evaluation_of(SETTINGS, scores)
    write_evaluation(out, "", evaluation)
    _write_dataset(out, tasks, generator)
    _write_training(out, generator)
    grown = [_grown(evaluation.tasks, share) for share in (0.3, 0.8, 1.0)]
    points = []
    for number, part in enumerate(grown, 1):
        result = evaluation_of(SETTINGS, part)
        domains = {domain.domain: domain.expert for domain in (*result.domains, result.overall) if domain.expert}
        steps = 6000 * number
        points.append(CheckpointPoint(f"step-{steps:08d}", steps, steps * 4000, steps / 2.0, steps * 1e12, domains))
    write_json(out / "evaluation" / "curve.json", Curve([t.name for t in tasks], EPISODES, "temperature 1", points))
    films = {domain: _film(out, size) for domain, size in SIZES.items()}
    for task in select_tasks(filmed):
        if task.name != WITHOUT_FILM:
            _write_films(out, task, films[task.domain])


def _write_task(out: Path, task: Task, generator: np.random.Generator) -> TaskScore:
    jat = jat_scores()[task.name]
    random, expert = jat["random"], jat["expert"] if jat["expert"] > jat["random"] else jat["random"] + 1
    skill = float(np.clip(generator.normal(SKILL[task.domain], 0.3), -0.2, 1.9))
    drawn = random + (expert - random) * generator.normal(skill, 0.15, EPISODES)
    if task.name in NOT_SCORABLE:
        expert = random - 1
    spread = 0.1 * abs(expert - random)
    references = [
        _measurement(task, "random", "random-1", [random - spread, random, random + spread]),
        _measurement(task, "ppo", EXPERT, [expert - spread, expert, expert + spread]),
    ]
    for measurement in references:
        write_json(out / "experts" / task.name / measurement.revision / "measurement.json", measurement)
    agent = _measurement(task, "agent", SETTINGS.revision, drawn.tolist())
    write_json(out / "evaluation" / f"{task.name}.json", agent)
    return score_task(task.domain, agent, *references)


def _measurement(task: Task, policy: str, revision: str, returns: list[float]) -> Measurement:
    purpose, count = ("evaluate" if policy == "agent" else "measure"), len(returns)
    successes = None if task.success is None else [value > 0 for value in returns]
    rejected: list[str | None] = [None] * count
    if policy == "agent" and task.name == "mujoco-pusher":
        rejected[0] = "observation not finite"
    return Measurement(
        task.name, policy, revision, versions_of(task.packages), seeds_of(purpose, count), returns, [100] * count,
        successes, rejected,
    )  # fmt: skip


def _grown(scores: Sequence[TaskScore], share: float) -> list[TaskScore]:
    """The scores as they were when so much was learned."""
    return [replace(s, scores=None if s.scores is None else [value * share for value in s.scores]) for s in scores]


def _write_dataset(out: Path, tasks: tuple[Task, ...], generator: np.random.Generator) -> None:
    manifests = {}
    for task in tasks:
        splits = {}
        for split, count in (("train", 300), ("test", 30)):
            entry = FileEntry(f"data/{task.name}/{split}.parquet", int(generator.integers(1e5, 1e7)), "0" * 64)
            splits[split] = SplitManifest(count, count * 100, int(generator.integers(0, 3)), None, 12.5, (entry,), ())
        manifests[task.name] = TaskManifest("ppo", EXPERT, versions_of(task.packages), splits)
    write_json(out / "dataset" / "manifest.json", DatasetManifest("0" * 16, manifests))
    write_json(out / "dataset" / "config.json", {"task": "*", "out": "runs/made-up"})


def _write_training(out: Path, generator: np.random.Generator) -> None:
    manifest = TrainManifest(
        "train/checkpoints/step-00020000", "0" * 16, 20000, 80_000_000, 26_400_000, 9120.0, 0.021,
        "train/checkpoints/step-00018000", 0.41, 0.013, HARDWARE,
    )  # fmt: skip
    write_json(out / "train" / "manifest.json", manifest)
    checkpoint = out / SETTINGS.checkpoint
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(WEIGHTS)
    lines = []
    for step in range(1, 401):
        row = {"loss": 2 * step**-0.3 * generator.lognormal(0, 0.05), "step": 50 * step, "timesteps": 200_000 * step}
        for domain, scale in (("atari", 2.0), ("babyai", 1.2), ("metaworld", 0.2), ("mujoco", 0.4)):
            row[f"action_loss/{domain}"] = scale * step**-0.3 * generator.lognormal(0, 0.1)
        if step % 40 == 0:
            row["validation_loss"] = 2.1 * step**-0.28
        lines.append(json.dumps(row))
    (out / "train" / "log.jsonl").write_text("\n".join(lines) + "\n")
    write_json(out / "train" / "config.json", TrainConfig())


def _film(out: Path, size: tuple[int, int]) -> bytes:
    """A second and a half of a square that moves."""
    frames = []
    for index in range(30):
        frame = np.full((*size, 3), 40, np.uint8)
        frame[60:100, 4 * index : 4 * index + 40] = (90, 170, 240)
        frames.append(frame)
    path = out / "film.mp4"
    write_mp4(path, frames, 20)
    data = path.read_bytes()
    path.unlink()
    return data


def _write_films(out: Path, task: Task, film: bytes) -> None:
    (seed,) = seeds_of("evaluate", 1)
    for directory, revision, earned in (
        (RunLayout(out).agent_films(task.name), SETTINGS.revision, 10.0),
        (RunLayout(out).expert_films(task.name, EXPERT), EXPERT, 20.0),
    ):
        filmed = Filmed(task.name, seed, revision, versions_of(task.packages), earned, 60, 30, None, None)
        directory.mkdir(parents=True)
        filmed.path(directory).write_bytes(film)
        write_json(directory / f"{seed}.json", asdict(filmed))
