"""``jat dagger``: rounds of collect, train and evaluate, each finished by its record; kills cost no finished work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dags import dagger
from dags.dagger import DaggerConfig, relabel, rounds_table
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.run_layout import RunLayout
from pipeline.scoring.rounds import Round, load_rounds
from pipeline.storage.manifest import DatasetManifest, SplitManifest, TaskManifest

A, B = "fake-a", "fake-b"
# Scores by round: B is good from the start, A gets better with each round.
SCORES = [{A: 0.2, B: 0.97}, {A: 0.6, B: 0.99}, {A: 0.96, B: 0.99}, {A: 0.99, B: 0.99}]


class Stages:
    """Instead of the stages: notes their commands, and leaves what `dagger` reads of their outputs.

    Args:
        dies_at: number of the command that ends with an error before it has done anything, once; None for none.
    """

    def __init__(self, out: Path, dies_at: int | None = None) -> None:
        self._out, self._dies_at = out, dies_at
        self.commands: list[list[str]] = []

    def run(self, words: Sequence[str]) -> int:
        assert words[:2] == [sys.executable, "-m"]
        if len(self.commands) == self._dies_at:
            self._dies_at = None
            return 137
        module, *rest = words[2:]
        self.commands.append([module, *rest])
        options = dict(zip(rest[::2], rest[1::2], strict=True))
        layout = RunLayout(self._out)
        if module == "dags.collect" and not options.get("--policy"):
            self._write_dataset({A: 10, B: 10})
        elif module == "dags.collect":
            before = DatasetManifest.load(layout.dataset / "manifest.json")
            counts = {name: of_task.splits["train"].num_episodes for name, of_task in before.tasks.items()}
            wanted = [pair.split("=") for pair in options["--episodes"].split(",")]
            assert options["--task"] == ",".join(name for name, _ in wanted)
            self._write_dataset(counts | {name: int(count) for name, count in wanted})
        elif module == "trainer.train":
            manifest = {"checkpoint": "train/checkpoints/step-00000007", "steps": 7}
            write_json(RunLayout(Path(options["--out"])).train_manifest, manifest)
        return 0

    def _write_dataset(self, episodes: dict[str, int]) -> None:
        def split(count: int) -> SplitManifest:
            return SplitManifest(count, 100 * count, 0, None, 0.0, (), ())

        tasks = {name: TaskManifest("bot", "bot-1", {}, {"train": split(n)}) for name, n in episodes.items()}
        write_json(RunLayout(self._out).dataset / "manifest.json", DatasetManifest("d", tasks))


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> None:
    class Manifest:
        checkpoint = "train/checkpoints/step-00000007"

    class Score:
        def __init__(self, task: str, mean: float) -> None:
            self.task, self.score = task, type("Interval", (), {"mean": mean})

    monkeypatch.setattr(dagger.TrainManifest, "read", lambda path: Manifest)
    monkeypatch.setattr(
        dagger,
        "load_scores",
        lambda out, name: [Score(*pair) for pair in SCORES[int(name.removeprefix("round-"))].items()],
    )


def config(out: Path, **changes: Any) -> DaggerConfig:
    return DaggerConfig(**{"task": "fake-*", "out": out, "rounds": 3, "episodes": 10, "steps": 7, **changes})


def play(out: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int | None = None, **changes: Any) -> Stages:
    stages = Stages(out, dies_at)
    monkeypatch.setattr(dagger, "run_stage", stages.run)
    if dies_at is not None:
        with pytest.raises(SystemExit) as ended:
            relabel(config(out, **changes))
        assert ended.value.code == 137
    relabel(config(out, **changes))
    return stages


@pytest.mark.usefixtures("scores")
def test_each_round_collects_where_there_is_need_and_trains_on_from_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = play(tmp_path, monkeypatch)
    names = ["experts.prepare", "dags.collect", "collectors.dataset.build", "trainer.train",
             "trainer.evaluation.evaluate"]  # fmt: skip
    assert [words[0] for words in stages.commands] == [*names, *names[1:], *names[1:], "trainer.reporting.report"]
    collected = [" ".join(words) for words in stages.commands if words[0] == "dags.collect"]
    assert "--policy" not in collected[0] and "--episodes 10 " in collected[0]
    for number, count in ((1, 20), (2, 30)):
        agent = tmp_path / "rounds" / str(number - 1) / "train/checkpoints/step-00000007"
        assert f"--task {A} --policy agent:{agent} --labels best --episodes {A}={count} " in collected[number]
        training = [words for words in stages.commands if words[0] == "trainer.train"][number]
        assert training[training.index("--out") + 1] == str(tmp_path / "rounds" / str(number))
        assert training[training.index("--from") + 1] == str(agent)
        assert training[training.index("--dataset") + 1] == str(tmp_path / "dataset")
    rounds = load_rounds(tmp_path)
    assert [each.episodes for each in rounds] == [{A: 10, B: 10}, {A: 20, B: 10}, {A: 30, B: 10}]
    assert [each.queries for each in rounds] == [2000, 3000, 4000]
    assert [each.scores for each in rounds] == SCORES[:3]  # the third has no need any more
    (row, *_) = rounds_table(rounds, 0.95).texts()
    assert row == ("0", "2,000", "0.58", "1", A, "0.20")


@pytest.mark.usefixtures("scores")
@pytest.mark.parametrize("dies_at", range(14))
def test_a_run_that_is_ended_at_any_command_goes_on_there(
    dies_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = play(tmp_path / "whole", monkeypatch)
    killed = play(tmp_path / "killed", monkeypatch, dies_at)

    def named(words: list[str], out: str) -> str:
        return " ".join(words).replace(f"/{out}", "")

    done = [named(words, "killed") for words in killed.commands]
    expected = [named(words, "whole") for words in whole.commands]
    # The commands of its round are called again, and each does only what is missing; none of a finished round.
    begun = max(first for first in (0, 5, 9, 13) if first <= dies_at)
    assert done == expected[:dies_at] + expected[begun:]
    for name in ("0", "1", "2"):
        records = [read_json(tmp_path / out / "rounds" / name / "round.json") for out in ("whole", "killed")]
        assert records[0] == records[1]


@pytest.mark.usefixtures("scores")
def test_more_rounds_go_on_and_other_settings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(tmp_path, monkeypatch, rounds=1)
    with pytest.raises(UserError, match=r"has rounds with --steps 7, not 8; move .* away to start anew"):
        play(tmp_path, monkeypatch, steps=8)
    stages = play(tmp_path, monkeypatch, rounds=2)
    assert stages.commands[0][0] == "dags.collect" and len(load_rounds(tmp_path)) == 3
    write_json(tmp_path / "rounds" / "1" / "round.json", {"number": 1})
    with pytest.raises(UserError, match="is not the record of a round"):
        play(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "--rounds"),
        ({"episodes": 0}, "--episodes"),
        ({"train_recipe": "huge"}, "--train-recipe 'huge' is unknown; allowed: base, s"),
        ({"enough": 0.0}, "--enough is 0; it must be above 0"),
        ({"out": Path("a+b")}, "its path has one of"),
    ],
)
def test_bad_options_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        config(**{"out": tmp_path, **changes})


def test_scores_that_nobody_knows_are_no_need() -> None:
    found = Round(0, {A: 1, B: 1}, 1, 1, "x", {A: None, B: 0.5})
    assert found.in_need(0.9) == [B] and found.mean == 0.5
    assert Round(0, {}, 1, 1, "x", {A: None}).mean is None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_real_rounds_go_on_after_a_kill(tmp_path: Path) -> None:
    task = "babyai-go-to-obj"
    words = f"--task {task} --rounds 1 --episodes 4 --steps 3 --train-recipe s --enough 9 --evaluate 2 --workers 1"
    command = [sys.executable, "-m", "dags.dagger", *words.split(), "--out", str(tmp_path)]
    first = RunLayout(tmp_path).round_record(0)
    process = subprocess.Popen(command, start_new_session=True)
    waiting = time.monotonic() + 600
    while not (first.exists() and len(list(RunLayout(tmp_path).shards.rglob("train-*.json"))) > 1):
        assert time.monotonic() < waiting and process.poll() is None
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)  # in the second round, when the agent has played
    process.wait()
    finished = {path: path.read_bytes() for path in (first, *RunLayout(tmp_path).shards.rglob("train-*"))}
    subprocess.run(command, check=True, timeout=600)
    assert {path: path.read_bytes() for path in finished} == finished
    assert [each.number for each in load_rounds(tmp_path)] == [0, 1]
    sides = sorted((RunLayout(tmp_path).dataset / "episodes" / task).glob("train-*.parquet"))
    rows = [row for path in sides for row in pq.read_table(path).to_pylist()]
    assert [(row["seed"], row["expert"]) for row in rows] == list(enumerate(["bot"] * 4 + ["agent"] * 4))
    assert all(row["label_expert"].startswith("bot-") and row["num_labelled"] for row in rows[4:])
    assert "Rounds of relabelling" in (RunLayout(tmp_path).report("round-1") / "index.html").read_text()
