"""Every JSON file of a run, damaged in every way that ``tests/damage.py`` knows: it is read, or refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from collectors.rates import RATES, read_rates
from experts.queue.entries import QueueEntry
from experts.queue.states import EntryState, read_list, read_state, write_list
from experts.training import PROGRESS, Budget, TrainingProgress, read_progress
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.media.film import films_in
from pipeline.run_layout import RunLayout
from pipeline.scoring.measurement import read_measurement
from pipeline.storage.manifest import DatasetManifest
from tests.damage import damaged
from tests.trainer.report_run import EXPERT, write_run
from trainer.evaluation.journal import TaskResults
from trainer.evaluation.results import load_curve, load_evaluation, load_measurement_of
from trainer.reporting.commands import stage_runs
from trainer.reporting.facts import gather
from trainer.reporting.videos import MadeVideo
from trainer.training.logs import TrainManifest, last_row, read_log

TASK = "mujoco-pendulum"
ENTRY = QueueEntry("atari-pong", "ppo-cpu")
LONGEST = 700  # characters of a message, the path included

Reader = Callable[[Path], Any]
# File in the run, and what reads it, given the root.
READERS: dict[str, Reader] = {
    "evaluation/scores.json": load_evaluation,
    "evaluation/curve.json": load_curve,
    f"evaluation/{TASK}.json": lambda out: load_measurement_of(out, TASK),
    f"evaluation/films/{TASK}/1800000000.json": lambda out: films_in(RunLayout(out).agent_films(TASK)),
    f"experts/{TASK}/{EXPERT}/measurement.json": lambda out: read_measurement(
        out / "experts" / TASK / EXPERT / "measurement.json"
    ),
    "dataset/manifest.json": lambda out: DatasetManifest.load(out / "dataset" / "manifest.json"),
    "dataset/config.json": stage_runs,
    "train/config.json": stage_runs,
    "train/manifest.json": lambda out: TrainManifest.read(RunLayout(out).train_manifest),
    "rates.json": lambda out: read_rates(out / "rates.json"),
    "queue/queue.json": read_list,
    f"queue/{ENTRY.name}/state.json": lambda out: read_state(out, ENTRY),
    f"training/{PROGRESS}": lambda out: read_progress(out / "training"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with each of the files."""
    out = tmp_path_factory.mktemp("run")
    write_run(out, filmed=TASK, pattern=TASK)
    shipped = read_json(RATES)
    write_json(out / "rates.json", {**shipped, "tasks": dict(list(shipped["tasks"].items())[:2])})
    write_list(out, [ENTRY])
    write_json(RunLayout(out).queue / ENTRY.name / "state.json", EntryState(asked=asdict(ENTRY)))
    (out / "training").mkdir()
    write_json(out / "training" / PROGRESS, TrainingProgress(5, 1.0, 2.0, 3.0, Budget(10, None)))
    return out


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused_in_one_line(name: str, run: Path) -> None:
    path = run / name
    text = path.read_text()
    READERS[name](run)
    refused = 0
    try:
        for content in damaged(text):
            path.write_bytes(content)
            try:
                READERS[name](run)
            except UserError as error:
                message = str(error)
                assert str(path) in message and "\n" not in message and message.isprintable(), message
                assert len(message) < LONGEST + len(str(run)), message
                refused += 1
    finally:
        path.write_text(text)
    assert refused >= 8


@pytest.mark.parametrize(
    "line", [b"x", b"[]", b"1", b"{}", b'{"step": "a", "timesteps": 1}', b'{"step": 1}', b"\xff", b"[" * 100_000]
)
def test_a_damaged_row_of_a_training_curve_is_one_line(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1, "timesteps": 2, "loss": NaN}\n' + line + b"\n" + b'{"step": 3, "cut')
    for read in (read_log,) if b'"step": 1' in line else (read_log, last_row):
        with pytest.raises(UserError, match="is not the curve of a training") as error:
            read(path)
        assert "\n" not in str(error.value)


def test_damaged_lines_of_an_evaluation_s_journal_are_played_again(tmp_path: Path) -> None:
    from pipeline.envs.registry import select_tasks

    (task,) = select_tasks(TASK)
    heading = json.dumps({"revision": "r", "versions": TaskResults(tmp_path, task, "r").versions})
    played = '{"seed": 1800000001, "total_reward": 1.0, "length": 2, "success": null, "rejected": null}'
    for damage in ("x", "[]", "{}", '{"seed": "a"}', "[" * 100_000, played[:30]):
        (tmp_path / f"{TASK}.jsonl").write_text(f"{heading}\n{damage}\n{played}\n")
        assert list(TaskResults(tmp_path, task, "r").played) == [1_800_000_001]
        (tmp_path / f"{TASK}.jsonl").write_text(f"{damage}\n{played}\n")
        assert not TaskResults(tmp_path, task, "r").played


@pytest.mark.parametrize("content", [b"[]", b'{"made_of": 1, "fits": true}', b"x", b"{}"])
def test_a_damaged_note_of_a_video_is_one_line(content: bytes, tmp_path: Path) -> None:
    from trainer.reporting import videos

    path = tmp_path / "a.mp4"
    path.with_suffix(".json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json"):
        videos._made(path, [], 1, list, 1)
    write_json(path.with_suffix(".json"), MadeVideo("other", True))


def test_names_in_results_that_are_paths_are_refused(run: Path) -> None:
    text = RunLayout(run).scores().read_text()
    try:
        RunLayout(run).scores().write_text(text.replace(f'"{TASK}"', '"../../../etc/passwd"'))
        with pytest.raises(UserError, match="is no name"):
            gather(run)
    finally:
        RunLayout(run).scores().write_text(text)
