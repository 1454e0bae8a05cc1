from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from experts.choice import choose, named
from experts.importing import published, released
from experts.importing.published import is_released, released_repository
from experts.importing.released import MAX_UNANSWERED, load_released
from experts.store import StoredExpert, stored_experts
from pipeline.envs.registry import all_tasks, select_tasks
from pipeline.envs.task import Task
from pipeline.errors import JobsFailedError, UserError
from pipeline.files import read_json
from pipeline.publishing.hub import HubUnavailableError, Snapshot
from tests.fakes import store_network
from tests.hub import client_environment, wait_until
from tests.hub_models import FakeHub, make_sample_factory, serve_models

pytestmark = pytest.mark.usefixtures("nothing_embedded")

COMMIT = "1" * 40
# `jat experts` once per line of the input, with its jobs in this process. Exit codes go to stdout; what a command says,
# and a line of dashes after it, to stderr.
RUN = """
import sys
from pathlib import Path
from experts import prepare, store
from pipeline.cli import run

def here(function, jobs, workers, resources=None):
    for job in jobs:
        yield job, function(job)

prepare.run_jobs, store.EMBEDDED = here, Path("nothing")
for line in sys.stdin:
    sys.argv = ["jat", *line.split()]
    code = 0
    try:
        run("experts.prepare", "jat experts")
    except SystemExit as error:
        code = error.code
    print(f"exit code {code}", flush=True)
    print("---", file=sys.stderr, flush=True)
"""
GOOD = ("mujoco-hopper", "mujoco-pendulum")
# One is of other sizes, of one the checkpoint is cut off, and of one there is no repository.
BAD = ("mujoco-reacher", "mujoco-swimmer", "mujoco-walker")
TASKS = ",".join(("atari-surround", *GOOD, *BAD))


def start(hub: FakeHub, folder: Path, *commands: tuple[str, str]) -> subprocess.Popen[str]:
    """Run commands one after the other, each with the name of its OUT and its tasks."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN],
        env=client_environment(hub.address, folder / "cache"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    for out, tasks in commands:
        process.stdin.write(f"--task {tasks} --expert released --episodes 1 --out {folder / out}\n")
    process.stdin.close()
    process.stdin = None
    return process


@dataclass(frozen=True)
class Ran:
    """What a command said to stderr, and its exit code."""

    code: int
    said: str


def end(process: subprocess.Popen[str]) -> list[Ran]:
    printed, said = process.communicate(timeout=100)
    codes = [int(line.rpartition(" ")[2]) for line in printed.splitlines() if line.startswith("exit code ")]
    return [Ran(code, text) for code, text in zip(codes, said.split("---\n"), strict=False)]


@dataclass(frozen=True)
class Outcome:
    """A command that was killed and run again, and commands without the Hub.

    Attributes:
        out: what the first two made.
        killed_with: names of the tasks with an expert when it was killed.
        resumed: the second run of the command.
        resumed_asked: the paths that it asked the Hub for.
        all_there: a run for what is in the store, after the Hub has gone.
        cached: a run into another folder for what is in the Hub's cache, and for two tasks that are not.
        without: a run into another folder for what is not.
    """

    out: Path
    killed_with: list[str]
    resumed: Ran
    resumed_asked: list[str]
    all_there: Ran
    cached: Ran
    without: Ran


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Three processes, seconds each: the client of the Hub reads its settings when it is imported."""
    folder = tmp_path_factory.mktemp("released")
    swimmer = make_sample_factory(folder / "swimmer", 8, 2)
    checkpoint = next((swimmer / "checkpoint_p0").iterdir())
    checkpoint.write_bytes(checkpoint.read_bytes()[:200])
    trained = {
        "hopper": make_sample_factory(folder / "hopper"),
        "pendulum": make_sample_factory(folder / "pendulum", 4, 1),
        "reacher": make_sample_factory(folder / "reacher", 5, 3),
        "swimmer": swimmer,
    }
    repositories = {f"qgallouedec/sample-factory-{name}-v2": {COMMIT: path} for name, path in trained.items()}
    with serve_models(repositories) as hub:
        hub.held.add("qgallouedec/sample-factory-pendulum-v2")
        process = start(hub, folder, ("out", TASKS))
        wait_until(lambda: any("pendulum" in path and path.endswith(".pth") for path in hub.asked), "never asked for")
        process.kill()
        end(process)
        killed_with = [path.parts[-3] for path in (folder / "out").glob("experts/*/*/expert.json")]
        hub.held.clear()
        hub.asked.clear()
        (resumed,) = end(start(hub, folder, ("out", TASKS)))
        asked = list(hub.asked)
    commands = (
        ("out", ",".join(GOOD)), ("other", "mujoco-hopper,mujoco-humanoid,mujoco-walker"), ("none", "mujoco-walker"),
    )  # fmt: skip
    return Outcome(folder / "out", killed_with, resumed, asked, *end(start(hub, folder, *commands)))


def test_every_released_expert_is_loaded_and_measured_in_one_command(outcome: Outcome) -> None:
    for name in GOOD:
        (expert,) = [e for e in stored_experts(outcome.out, name) if e.record.kind == "sample-factory"]
        repository = f"qgallouedec/sample-factory-{name.removeprefix('mujoco-')}-v2"
        assert expert.record.origin == f"Loaded from {repository} on the Hugging Face Hub, commit {COMMIT}."
        assert len(read_json(expert.folder / "measurement.json")["seeds"]) == 1


def test_a_killed_command_resumes_and_asks_only_for_what_is_missing(outcome: Outcome) -> None:
    assert outcome.killed_with == ["mujoco-hopper"]
    assert "5 released experts wanted, 1 already there" in outcome.resumed.said
    assert not [path for path in outcome.resumed_asked if "hopper" in path]
    assert [path for path in outcome.resumed_asked if "pendulum" in path]


def test_progress_tells_how_many_which_and_how_large(outcome: Outcome) -> None:
    lines = [line for line in outcome.resumed.said.splitlines() if " of 4 experts" in line]
    assert [line.partition(" of 4")[0][-1] for line in lines] == ["1", "2", "3", "4"]
    assert "mujoco-pendulum: sample-factory-" in lines[0] and lines[0].endswith(" MB")


def test_what_cannot_be_had_is_listed_at_the_end_with_its_reason(outcome: Outcome) -> None:
    assert outcome.resumed.code == 1
    *_, title, reacher, swimmer, walker = outcome.resumed.said.splitlines()
    assert title == "error: 3 released experts of 5 cannot be had; the others are done:"
    assert "mujoco-walker: there is no public repository qgallouedec/sample-factory-walker-v2" in walker
    assert "mujoco-reacher: " in reacher and "takes observations 5 " in reacher and "has observations 11" in reacher
    assert "mujoco-swimmer: " in swimmer and "cut off" in swimmer
    assert "JAT published no expert for 1 task: atari-surround" in outcome.resumed.said
    for name in BAD:
        assert [expert.record.kind for expert in stored_experts(outcome.out, name)] == ["random"]
    assert not (outcome.out / "experts" / "atari-surround").exists()


def test_what_is_there_needs_no_hub_and_is_not_measured_again(outcome: Outcome) -> None:
    assert outcome.all_there.code == 0
    assert "2 released experts wanted, 2 already there" in outcome.all_there.said
    assert "4 measurements wanted, 4 already there" in outcome.all_there.said


def test_without_the_hub_what_its_cache_holds_is_loaded(outcome: Outcome) -> None:
    assert outcome.cached.code == 1
    *_, title, last = outcome.cached.said.splitlines()
    assert title == "error: 2 released experts of 3 cannot be had; the others are done:"
    assert "mujoco-humanoid, mujoco-walker: qgallouedec/sample-factory-humanoid-v2 cannot be downloaded" in last
    assert stored_experts(outcome.out.with_name("other"), "mujoco-hopper")


def test_without_the_hub_and_its_cache_the_command_ends_at_once_with_one_line(outcome: Outcome) -> None:
    assert outcome.without.code == 2
    (line,) = [line for line in outcome.without.said.splitlines() if "cannot be downloaded" in line]
    assert line.startswith("error: qgallouedec/sample-factory-walker-v2 cannot be downloaded from the Hugging Face Hub")
    assert line.endswith("(1 of 1 released experts are not here yet)")
    assert not (outcome.out.with_name("none") / "experts").exists()


def test_a_released_expert_is_chosen_for_collecting_by_that_name(outcome: Outcome) -> None:
    (task,) = select_tasks("mujoco-hopper")
    mix = choose(outcome.out, task, "0.5*released+0.5*random", allow_weak=True)
    assert sorted(expert.record.kind for expert in mix.experts) == ["random", "sample-factory"]


def test_an_expert_of_another_origin_is_not_a_released_one(tmp_path: Path) -> None:
    (task,) = select_tasks("mujoco-hopper")
    assert not named("released", [store_network(tmp_path, task, 0.5, "sample-factory")])


def test_one_hundred_and_seventeen_tasks_have_a_released_expert() -> None:
    without = [task.name for task in all_tasks() if released_repository(task.name) is None]
    assert len(all_tasks()) - len(without) == 117
    assert [name for name in without if not name.startswith("babyai-")] == ["atari-surround"]


# Answers of the Hub, one after the other; `None` is none.


def load(
    answers: list[str | None], out: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], list[JobsFailedError]]:
    """Load an expert per answer: `had`, `refused`, or no answer. Returns the tasks that the Hub was asked about."""
    tasks = select_tasks("mujoco-*")[: len(answers)]
    asked: list[str] = []

    def fetch(task: Task, source: str, only_cached: bool = False) -> Snapshot:
        answer = answers[tasks.index(task)]
        if only_cached or answer is None:
            asked.extend([] if only_cached else [task.name])
            raise HubUnavailableError(f"no answer for {source}")
        asked.append(task.name)
        if answer == "refused":
            raise UserError(f"{source} is\nbad")
        return Snapshot(source, COMMIT, out)

    def import_snapshot(task: Task, found: Snapshot, out: Path, sampled: bool = False) -> StoredExpert:
        return store_network(out, task, 0.5, "sample-factory")

    monkeypatch.setattr(released, "fetch", fetch)
    monkeypatch.setattr(released, "import_snapshot", import_snapshot)
    failures: list[JobsFailedError] = []
    chosen = load_released(tasks, out, False, failures)
    assert [bool(chosen[task.name]) for task in tasks] == [answer == "had" for answer in answers]
    return asked, failures


def test_a_hub_that_stops_answering_is_not_asked_about_every_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, (error,) = load(["had", "refused", None, None, None, None], tmp_path, monkeypatch)
    assert len(asked) == 2 + MAX_UNANSWERED
    assert str(error).startswith("5 released experts of 6 cannot be had")
    refused, unanswered = error.failures
    assert refused.reason.endswith(" is bad")
    assert unanswered.job.count("mujoco-") == 4
    assert "no answer for hub:qgallouedec" in unanswered.reason and "run the same command again" in unanswered.reason


def test_one_repository_without_an_answer_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, (error,) = load([None, "had", None, "had"], tmp_path, monkeypatch)
    assert len(asked) == 4
    assert str(error).startswith("2 released experts of 4 cannot be had")


def test_an_expert_that_acts_otherwise_is_loaded_again(tmp_path: Path) -> None:
    (task,) = select_tasks("mujoco-hopper")
    expert = store_network(tmp_path, task, 0.5, "sample-factory")
    assert not is_released(expert.record)
    assert published.released_among([expert], sampled=False) is None
