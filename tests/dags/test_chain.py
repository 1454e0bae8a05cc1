"""The whole chain on a real BabyAI and a real Meta-World task, every stage of it killed once and started again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import load_dataset

from dags.chain import ChainConfig, options, run_chain, stages_between
from dags.stages import STAGES, command
from pipeline.errors import UserError
from pipeline.files import read_json, sha256_of
from pipeline.runtime.status import read_statuses
from pipeline.stopping import stop_signals
from trainer.training.logs import read_log

pytestmark = pytest.mark.slow

TASKS = "babyai-go-to-obj,metaworld-reach"
WORKERS = ["--workers", "2"]
COMMANDS = {
    "experts": ["experts.prepare", "--task", TASKS, "--episodes", "6", *WORKERS],
    "collect": [
        "collectors.collect", "--task", TASKS, "--episodes", "24", "--shard-episodes", "6", "--envs", "4", *WORKERS,
    ],
    "dataset": ["collectors.dataset.build"],
    "train": [
        "trainer.train", "--steps", "40", "--batch-steps", "256", "--micro-batches", "1", "--checkpoint-every", "10",
        "--context-steps", "100", "--text-tokens", "8", "--threads", "1", "--model.hidden-size", "48",
        "--model.num-layers", "1", "--model.num-heads", "2",
    ],
    "evaluate": ["trainer.evaluation.evaluate", "--episodes", "3", "--video-episodes", "1", *WORKERS],
    "film": ["experts.film", *WORKERS],
    "report": ["trainer.reporting.report"],
}  # fmt: skip
# What each stage has visibly done when it is killed, always before its end.
KILL_WHEN: dict[str, Callable[[Path, str], bool]] = {
    "experts": lambda out, log: any(out.glob("experts/*/*/measurement.json")),
    "collect": lambda out, log: any(out.glob("shards/*/*.json")),
    "dataset": lambda out, log: "10 of 10 shards checked" in log,
    "train": lambda out, log: any(out.glob("train/checkpoints/step-*")),
    "evaluate": lambda out, log: any(out.glob("evaluation/*-*.json")),
    "film": lambda out, log: "2 tasks whose expert is to be filmed" in log,
    "report": lambda out, log: "rendering" in log,
}
MANIFESTS = {
    "dataset": "dataset/manifest.json",
    "train": "train/manifest.json",
    "evaluate": "evaluation/scores.json",
    "report": "report/manifest.json",
}


def arguments(stage: str, out: Path) -> list[str]:
    return [sys.executable, "-m", *COMMANDS[stage], "--out", str(out)]


def run(stage: str, out: Path) -> str:
    done = subprocess.run(arguments(stage, out), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def kill_midway(stage: str, out: Path) -> None:
    """Start a stage and kill -9 it and all its children once it has done something."""
    log = out / f"{stage}.killed.log"
    with log.open("w") as handle:
        process = subprocess.Popen(arguments(stage, out), stdout=handle, stderr=handle, start_new_session=True)
        deadline = time.monotonic() + 120
        while not KILL_WHEN[stage](out, log.read_text()):
            assert process.poll() is None, f"{stage} ended before it could be killed: {log.read_text()}"
            assert time.monotonic() < deadline, f"{stage} did nothing: {log.read_text()}"
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if stage in MANIFESTS:
        assert not (out / MANIFESTS[stage]).exists(), f"{stage} was killed too late to show anything"


def shard_checksums(out: Path) -> dict[str, str]:
    shards = [path for path in sorted(out.glob("shards/*/*-*")) if path.parent.name != "progress"]
    return {str(path.relative_to(out)): sha256_of(path) for path in shards}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose every stage was killed once."""
    out = tmp_path_factory.mktemp("chain")
    for stage in COMMANDS:
        kill_midway(stage, out)
        run(stage, out)
    return out


@pytest.mark.timeout(600)
def test_a_run_killed_at_every_stage_ends_like_an_undisturbed_one(
    out: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    undisturbed = tmp_path_factory.mktemp("undisturbed")
    run("experts", undisturbed)
    run("collect", undisturbed)
    assert shard_checksums(out) == shard_checksums(undisturbed)
    run("dataset", undisturbed)
    assert read_json(out / MANIFESTS["dataset"]) == read_json(undisturbed / MANIFESTS["dataset"])
    assert [row["step"] for row in read_log(out / "train" / "log.jsonl")] == list(range(1, 41))
    scores = read_json(out / MANIFESTS["evaluate"])["tasks"]
    assert [score["task"] for score in scores] == TASKS.split(",")
    assert not list(out.rglob("*.tmp"))
    # Nothing is told any more of the runs that were killed.
    assert [(status.stage, status.state) for status in read_statuses(out)] == [(stage, "done") for stage in COMMANDS]


def test_running_the_chain_again_does_nothing(out: Path) -> None:
    def made() -> dict[Path, int]:
        files = [path for path in out.rglob("*") if path.is_file() and path.name != "config.json"]
        return {path: path.stat().st_mtime_ns for path in files if out / "status" not in path.parents}

    before = made()
    said = {stage: run(stage, out) for stage in COMMANDS}
    assert made() == before
    assert "0 shards with 0 episodes to collect" in said["collect"]
    assert "already trained" in said["train"]
    assert "0 tasks to evaluate" in said["evaluate"]
    assert "0 tasks whose expert is to be filmed" in said["film"]


def test_the_dataset_opens_as_the_readme_says(out: Path, tmp_path: Path) -> None:
    episodes = load_dataset(str(out / "dataset"), "metaworld-reach", cache_dir=str(tmp_path))
    assert {split: rows.num_rows for split, rows in episodes.items()} == {"train": 24, "test": 3}
    first = episodes["train"][0]
    assert list(first) == ["continuous_observations", "continuous_actions", "rewards"]
    assert (len(first["rewards"]), len(first["continuous_observations"][0]), len(first["continuous_actions"][0])) == (
        100, 39, 4,
    )  # fmt: skip
    who = load_dataset(str(out / "dataset"), "babyai-go-to-obj-episodes", cache_dir=str(tmp_path))
    assert who["train"]["seed"][:3] == [0, 1, 2]
    assert set(who["train"]["expert"]) == {"bot"}


def test_the_report_shows_every_task_and_needs_no_network(out: Path) -> None:
    page = (out / "report" / "index.html").read_text()
    for task in TASKS.split(","):
        assert f'<tr data-task="{task}"' in page
        assert f'id="video-{task}"' in page
    assert page.count("data:video/mp4;base64,") == 2  # one of each domain
    for outside in ('src="http', ' href="http', "@import", "url(http"):
        assert outside not in page
    table = run("report", out)
    assert "metaworld-reach" in table
    assert "mean of babyai" in table
    assert str(out / "report" / "index.html") in table


def test_stages_run_in_order_and_the_first_failure_ends_the_chain(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[str] = []

    def start(words: list[str]) -> subprocess.Popen[bytes]:
        started.append(words[2])
        return Popen([sys.executable, "-c", f"exit({3 if words[2] == 'trainer.train' else 0})"])

    Popen = subprocess.Popen
    monkeypatch.setattr("dags.chain.subprocess.Popen", start)
    with pytest.raises(SystemExit) as ended:
        run_chain(ChainConfig(out=tmp_path))
    assert ended.value.code == 3
    assert started == ["experts.prepare", "collectors.collect", "collectors.dataset.build", "trainer.train"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_and_the_chain_waits_for_the_stage_to_save_its_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    code = (
        "import signal, sys, time; from pathlib import Path\n"
        "def save(*arguments): time.sleep(1); Path(sys.argv[1], 'saved').touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save); Path(sys.argv[1], 'at-work').touch(); time.sleep(60)"
    )
    monkeypatch.setattr("dags.chain.command", lambda stage, options: [sys.executable, "-c", code, str(tmp_path)])

    def stop() -> None:
        while not (tmp_path / "at-work").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises((KeyboardInterrupt, SystemExit)) as ended, stop_signals():
        run_chain(ChainConfig(out=tmp_path))
    stopper.join()
    assert (tmp_path / "saved").exists()
    assert ended.type is (KeyboardInterrupt if number == signal.SIGINT else SystemExit)


def test_the_duration_of_each_stage_is_printed_at_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = {"dataset": 0.0, "train": 1.0}
    code = "import sys, time; time.sleep(float(sys.argv[1]))"
    monkeypatch.setattr(
        "dags.chain.command", lambda stage, options: [sys.executable, "-c", code, str(seconds[stage.name])]
    )
    run_chain(ChainConfig(out=tmp_path, first="dataset", last="train"))
    told = {name: int(number) for name, number in re.findall(r"│ (\w+) +│ +(\d+) │", capsys.readouterr().out)}
    assert list(told) == [*seconds, "all"]
    assert told["train"] >= 1
    assert told["all"] == pytest.approx(told["dataset"] + told["train"], abs=1)


def test_a_stage_gets_the_options_it_takes_and_no_other() -> None:
    config = ChainConfig(out=Path("o"), recipe="demo", task="babyai", episodes="5", workers=3)
    words = {stage.name: command(stage, options(config))[2:] for stage in STAGES}
    assert words["collect"] == [
        "collectors.collect", "--out", "o", "--recipe", "demo", "--task", "babyai", "--workers", "3",
        "--episodes", "5",
    ]  # fmt: skip
    assert words["dataset"] == ["collectors.dataset.build", "--out", "o", "--task", "babyai"]
    assert words["train"] == ["trainer.train", "--out", "o", "--recipe", "demo", "--task", "babyai"]


def test_a_part_of_the_chain_can_be_run() -> None:
    assert [stage.name for stage in stages_between("train", "report")] == ["train", "evaluate", "film", "report"]
    with pytest.raises(UserError, match="unknown stage 'trian'; allowed: experts, collect"):
        stages_between("trian", "report")
    with pytest.raises(UserError, match="'collect' comes before 'train'"):
        stages_between("train", "collect")
