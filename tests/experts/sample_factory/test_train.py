from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from experts.network import NetworkPolicy
from experts.sample_factory import recipes
from experts.sample_factory import train as training
from experts.sample_factory.checkpoint import newest_checkpoint
from experts.sample_factory.train import train
from experts.store import read_arrays, read_expert
from experts.training import read_curve
from pipeline.envs.registry import select_tasks
from pipeline.envs.rollout import rollout
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from tests.experts.sample_factory.small import SMALL, small_job
from tests.experts.sample_factory.tasks import task_named

pytestmark = pytest.mark.slow

MARKER = "SAMPLE_FACTORY_TEST"


def marked_processes(marker: str) -> list[int]:
    """Processes that inherited the marker in their environment, whatever their group, session or parent."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = path.read_bytes()
        except OSError:
            continue
        if f"{MARKER}={marker}".encode() in environment.split(b"\0"):
            found.append(int(path.parent.name))
    return found


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"{what} did not come within {seconds:.0f} s"
        time.sleep(0.1)
    return result


@pytest.fixture
def marker(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Marks what a test starts, and sees to it that nothing is left of it."""
    value = uuid.uuid4().hex
    monkeypatch.setenv(MARKER, value)
    yield value
    left = marked_processes(value)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def assert_all_gone(marker: str) -> None:
    # The last one is torch's manager of shared memory, which cleans up behind the others and then ends by itself.
    wait_for(lambda: not marked_processes(marker), "the end of all processes", 60.0)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a training that was killed after its first checkpoint with steps."""
    out = tmp_path_factory.mktemp("killed")
    marker = uuid.uuid4().hex
    state = small_job(out).folder / "state"
    errors = out / "errors"
    with errors.open("wb") as stderr:
        parent = subprocess.Popen(
            [sys.executable, "-m", "tests.experts.sample_factory.small", str(out)],
            env=os.environ | {MARKER: marker},
            stderr=stderr,
        )

    def has_steps() -> bool:
        assert parent.poll() is None, errors.read_text()
        last = newest_checkpoint(state)
        return last is not None and last.steps > 0

    try:
        wait_for(has_steps, "a checkpoint")
        assert len(marked_processes(marker)) >= 5  # this one, the main process, learner, inference, rollout worker
    finally:
        parent.kill()
        parent.wait()
    assert_all_gone(marker)
    return out


@pytest.fixture
def interrupted(killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to go on with."""
    monkeypatch.setattr(recipes, "MUJOCO", SMALL)
    return Path(shutil.copytree(killed, tmp_path / "out"))


def test_a_killed_training_goes_on_from_its_checkpoint_and_stores_an_expert(
    interrupted: Path, marker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Left by a kill in the middle of writing; Sample Factory would take it for the newest checkpoint.
    job = small_job(interrupted, target=5.0)
    state = job.folder / "state"
    (state / "checkpoint_p0" / "checkpoint_temp").write_bytes(b"half")
    (job.folder / "curve.csv").unlink()  # or the target may have been reached before the kill
    start = newest_checkpoint(state)
    assert start is not None
    messages = []

    def listen(process: Any) -> Iterator[Any]:
        for message in original(process):
            messages.append(message)
            yield message

    original = training._messages
    monkeypatch.setattr(training, "_messages", listen)
    stored = train(job, num_cpus=1)
    assert_all_gone(marker)

    known = [message for message in messages if message and message["steps"] is not None]
    assert {message["start_steps"] for message in known} == {start.steps}
    steps = [message["steps"] for message in known]
    assert start.steps <= steps[0]
    assert start.steps < steps[-1]
    assert not job.folder.exists()
    record = read_expert(stored.folder).record
    assert (record.kind, record.task) == ("sample-factory", "mujoco-pendulum")
    assert record.training["steps"] == steps[-1]
    assert read_curve(stored.folder / "curve.csv")[-1].mean_return >= 5.0
    assert record.network is not None
    assert record.network.hidden == (64, 64)
    policy = NetworkPolicy(job.task, record.network, read_arrays(stored), "stored")
    assert all(episode.rejected is None for episode in rollout(job.task, policy, [1, 2]))


REPORTS = """
import sys
from experts.sample_factory.recipes import RETURN
from experts.sample_factory.runner import SupervisedRunner

runner = SupervisedRunner.__new__(SupervisedRunner)
runner._progress, runner._start_steps, runner.env_steps = sys.stdout, 0, {0: 800}
for returns in ([], [21.0] * 19, [21.0] * 19 + [-19.0]):
    runner.policy_avg_stats = {RETURN: [returns]}
    runner.report()
"""


def test_the_first_few_episodes_to_end_make_no_mean_return() -> None:
    # In a process of its own, so that Sample Factory does not reach the tests.
    lines = subprocess.run([sys.executable, "-c", REPORTS], check=True, capture_output=True, text=True).stdout
    assert [json.loads(line)["mean_return"] for line in lines.splitlines()] == [None, None, 19.0]


def test_a_training_that_was_killed_when_it_was_done_is_only_stored(
    interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(interrupted, target=5.0)
    start = newest_checkpoint(job.folder / "state")
    assert start is not None
    (job.folder / "curve.csv").write_text(f"{start.steps},3.0,5.5\n")
    monkeypatch.setattr(training, "_run", None)
    assert train(job, num_cpus=1).record.training["steps"] == start.steps
    assert not job.folder.exists()


def test_the_best_policy_so_far_is_exported_and_nothing_else_changes(interrupted: Path) -> None:
    job = small_job(interrupted)
    before = {path: path.stat().st_mtime_ns for path in job.folder.rglob("*")}
    record = training.export(job).record
    assert {path: path.stat().st_mtime_ns for path in job.folder.rglob("*")} == before
    last = newest_checkpoint(job.folder / "state")
    assert last is not None and record.training["steps"] == last.steps and record.network is not None
    with pytest.raises(UserError, match="holds no checkpoint to export"):
        training.export(small_job(interrupted / "elsewhere"))


def test_a_checkpoint_of_other_settings_is_refused_before_anything_starts(interrupted: Path) -> None:
    job = small_job(interrupted)
    recipes.check(job)
    recipes.check(dataclasses.replace(job, seed=5, steps=10))  # neither changes what a checkpoint holds
    settings = read_json(job.folder / "settings.json")
    write_json(job.folder / "settings.json", {**settings, "encoder_mlp_layers": [32]})
    for refuse in (recipes.check, train):
        with pytest.raises(UserError, match=r"trained with encoder_mlp_layers = \[32\], not \[64, 64\]; remove it"):
            refuse(job)


def cut_off_newest(out: Path) -> Path:
    last = newest_checkpoint(small_job(out).folder / "state")
    assert last is not None
    last.path.write_bytes(last.path.read_bytes()[:-1000])
    return last.path


def test_a_damaged_last_checkpoint_is_an_error_before_anything_starts(interrupted: Path) -> None:
    path = cut_off_newest(interrupted)
    with pytest.raises(UserError, match=rf"{path.name} .*remove {path.name} to use the checkpoint before it"):
        train(small_job(interrupted), num_cpus=1)
    assert path.exists()


def test_sample_factory_itself_fails_on_a_damaged_checkpoint_and_is_ended(
    interrupted: Path, marker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cut_off_newest(interrupted)
    before = path.read_bytes()
    monkeypatch.setattr(training, "_check_state", lambda state: 1)
    with pytest.raises(RuntimeError, match=r"died: learner_proc0 \(exit code 1\)"):
        train(small_job(interrupted), num_cpus=1)
    assert_all_gone(marker)
    assert path.read_bytes() == before


def test_an_exception_ends_all_processes(tmp_path: Path, marker: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        with training._sample_factory(tmp_path / "settings.json", tmp_path / "log"):
            wait_for(lambda: marked_processes(marker), "a process")
            raise KeyboardInterrupt
    assert marked_processes(marker) == []


def test_a_process_of_sample_factory_ends_its_group_when_the_main_one_is_killed(marker: str) -> None:
    main = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, time\n"
            "from experts.sample_factory.main import end_with_parent\n"
            "if os.fork() == 0:\n"
            "    end_with_parent()\n"
            "    print('ready', flush=True)\n"
            "time.sleep(600)\n",
        ],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert main.stdout is not None
    assert main.stdout.readline() == b"ready\n"
    assert len(marked_processes(marker)) == 2
    main.kill()
    main.wait()
    main.stdout.close()
    assert_all_gone(marker)


@pytest.mark.parametrize("name", ["atari-pong", "mujoco-hopper", "metaworld-reach"])
@pytest.mark.parametrize(("num_cpus", "num_workers"), [(1, 1), (2, 2), (3, 2), (7, 4), (16, None)])
def test_every_number_of_cores_keeps_the_transitions_of_an_iteration(
    name: str, num_cpus: int, num_workers: int | None, tmp_path: Path
) -> None:
    task = task_named(name)
    recipe = recipes.recipe_of(task)
    settings = training.settings_of(recipe, task, tmp_path, 0, 1000, num_cpus, gpu=False, niceness=0)
    assert settings["num_workers"] == (num_workers or {"atari": 8}.get(task.domain, 16))
    transitions = settings["num_workers"] * settings["num_envs_per_worker"] * settings["rollout"]
    assert transitions == settings["batch_size"] * settings["num_batches_per_epoch"]
    assert settings["num_envs_per_worker"] % settings["worker_num_splits"] == 0


def test_a_domain_without_a_recipe_is_refused(tmp_path: Path) -> None:
    (task,) = select_tasks("babyai-open")
    with pytest.raises(UserError, match="babyai-open: sample-factory has no recipe for it; allowed: images"):
        train(training.TrainJob(task, "sample-factory", tmp_path))
