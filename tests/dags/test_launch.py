from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import dags.launch
from dags.launch import Launcher, StageError, check_out
from dags.stages import STAGES
from pipeline.errors import UserError

pytestmark = pytest.mark.slow

COLLECT = next(stage for stage in STAGES if stage.name == "collect")
FAKE = str(Path(__file__).with_name("fake_python.py"))
FAKE_CLIENT = str(Path(__file__).with_name("fake_client.py"))


def launcher(out: Path, task: str, monkeypatch: pytest.MonkeyPatch, **told: object) -> Launcher:
    monkeypatch.setenv("FAKE_PYTHON", json.dumps(told))
    return Launcher(COLLECT, {"out": str(out), "task": task, "episodes": "5"}, {"JAT_PYTHON": FAKE})


def wait_for(path: Path) -> int:
    deadline = time.monotonic() + 30
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(path.read_text())


def wait_until_gone(process: int) -> None:
    deadline = time.monotonic() + 30
    while psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_every_line_is_handed_on_and_the_command_has_the_stage_s_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    launcher(tmp_path, "babyai-synth", monkeypatch).run(lines.append)
    assert lines == ["collectors.collect works on babyai-synth"]
    call = json.loads((tmp_path / "calls.jsonl").read_text())
    assert call["options"] == {"--out": str(tmp_path), "--task": "babyai-synth", "--episodes": "5"}


@pytest.mark.parametrize(("code", "is_permanent"), [(1, False), (2, True), (137, False)])
def test_a_failure_says_what_the_command_said_and_whether_a_retry_may_help(
    code: int, is_permanent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StageError, match=r"^babyai-synth cannot be done$") as failed:
        launcher(tmp_path, "babyai-synth", monkeypatch, fail={"babyai-synth": code}).run(lambda line: None)
    assert failed.value.is_permanent == is_permanent


def test_a_stopped_command_ends_with_all_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = launcher(tmp_path, "babyai-synth", monkeypatch, hang=["babyai-synth"])
    errors: list[StageError] = []

    def run() -> None:
        try:
            command.run(lambda line: None)
        except StageError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    grandchild = wait_for(tmp_path / "child.pid")
    command.stop()
    thread.join(30)
    wait_until_gone(grandchild)
    assert "stopped from outside" in str(errors[0]) and not errors[0].is_permanent


def test_a_command_ends_when_the_scheduler_s_process_is_killed(tmp_path: Path) -> None:
    script = (
        "from dags.launch import Launcher; from dags.stages import STAGES; "
        f"Launcher(STAGES[1], {{'out': {str(tmp_path)!r}, 'task': 'a'}}, {{'JAT_PYTHON': {FAKE!r}}}).run(print)"
    )
    environ = {**os.environ, "FAKE_PYTHON": json.dumps({"hang": ["a"]})}
    scheduler = subprocess.Popen([sys.executable, "-c", script], env=environ, stdout=subprocess.DEVNULL)
    sleeper = psutil.Process(wait_for(tmp_path / "child.pid"))
    stage = sleeper.parent()
    assert stage is not None
    scheduler.send_signal(signal.SIGKILL)
    scheduler.wait()
    wait_until_gone(stage.pid)
    sleeper.kill()


def test_with_a_ray_dashboard_the_command_is_submitted_as_a_job() -> None:
    environ = {"JAT_RAY_JOBS": "http://head:8265", "JAT_RAY_PYTHON": "/opt/python", "JAT_PYTHON": "/here/python"}
    words = Launcher(COLLECT, {"out": "s3://b/run", "task": "babyai"}, environ).words
    split = words.index("--")
    assert words[:6] == ["/here/python", "-m", "ray.scripts.scripts", "job", "submit", "--address"]
    assert words[split + 1 :] == [
        "/opt/python", "-m", "collectors.collect", "--out", "s3://b/run", "--task", "babyai",
    ]  # fmt: skip


def test_a_job_is_told_which_code_of_the_user_s_own_to_use() -> None:
    environ = {"JAT_RAY_JOBS": "http://head:8265", "JAT_DOMAINS": "/nfs/attic.py", "JAT_FUNCTIONS": "attic:tell"}
    words = Launcher(COLLECT, {"out": "/o"}, environ).words
    said = words[words.index("--runtime-env-json") + 1]
    assert words.index("--runtime-env-json") < words.index("--")
    assert json.loads(said) == {"env_vars": {"JAT_DOMAINS": "/nfs/attic.py", "JAT_FUNCTIONS": "attic:tell"}}


def test_a_job_reserves_what_its_stage_is_to_have() -> None:
    environ = {
        "JAT_RAY_JOBS": "http://head:8265",
        "JAT_RAY_RESERVE": '{"collect": {"num-cpus": 0.5, "memory": 34359738368}, "train": {"num-gpus": 1}}',
    }
    words = Launcher(COLLECT, {"out": "/o"}, environ).words
    assert words[words.index("--") - 2 : words.index("--")] == [
        "--entrypoint-num-cpus=0.5", "--entrypoint-memory=34359738368",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("8 GPUs", "give JSON such as"),
        ('{"train": 8}', "give JSON such as"),
        ('{"train": {"num-cpus": "many"}}', "give JSON such as"),
        ('{"trian": {"num-cpus": 1}}', "has trian; allowed: collect, corpora, dagger, dataset"),
        ('{"train": {"gpus": 1}}', "has gpus; allowed: memory, num-cpus, num-gpus"),
    ],
)
def test_a_reservation_that_is_not_understood_is_refused(text: str, problem: str) -> None:
    with pytest.raises(StageError, match=problem) as failed:
        Launcher(COLLECT, {"out": "/o"}, {"JAT_RAY_JOBS": "http://head:8265", "JAT_RAY_RESERVE": text})
    assert failed.value.is_permanent


def test_an_output_root_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    check_out(str(tmp_path / "new" / "folder"))
    check_out("memory://bucket/run")
    with pytest.raises(UserError, match="give an absolute path or a URL"):
        check_out("runs/default")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be a folder: .*/file is a file; choose another"):
        check_out(str(tmp_path / "file" / "run"))


def job(folder: Path, monkeypatch: pytest.MonkeyPatch, lost: int, away: int, minutes: str = "1") -> Launcher:
    monkeypatch.setenv("FAKE_CLIENT", json.dumps({"folder": str(folder), "lost": lost, "away": away}))
    monkeypatch.setattr(dags.launch, "ASK_EVERY_S", 0.01)
    environ = {"JAT_RAY_JOBS": "http://head:8265", "JAT_PYTHON": FAKE_CLIENT, "JAT_RAY_WAIT_MINUTES": minutes}
    return Launcher(COLLECT, {"out": "s3://b/run", "task": "babyai"}, environ)


def called(folder: Path, verb: str) -> list[str]:
    return (folder / f"{verb}.txt").read_text().splitlines()


def test_a_cluster_that_comes_back_is_given_the_command_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    job(tmp_path, monkeypatch, lost=1, away=2).run(lines.append)
    assert lines[-3:] == [
        "lost JAT_RAY_JOBS=http://head:8265; waiting up to 1 minutes for it, to submit again",
        "JAT_RAY_JOBS=http://head:8265 is back",
        "528 of 528 episodes",
    ]
    assert len(called(tmp_path, "list")) == 3
    first, second = called(tmp_path, "submit")
    names = [line.split("--submission-id ")[1].split()[0] for line in (first, second)]
    assert first.replace(names[0], names[1]) == second  # the same command
    assert names[0] != names[1]
    assert called(tmp_path, "stop")[0].endswith(names[0])  # what is left of the first, if only the connection broke


def test_a_cluster_that_stays_away_is_a_failure_that_a_retry_may_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StageError, match=r"^the connection to JAT_RAY_JOBS=http://head:8265 broke") as failed:
        job(tmp_path, monkeypatch, lost=1, away=10**6, minutes="0.003").run(lambda line: None)
    assert not failed.value.is_permanent
    assert len(called(tmp_path, "submit")) == 1


def test_a_command_that_loses_its_cluster_every_time_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StageError, match=r"broke, or its head died"):
        job(tmp_path, monkeypatch, lost=10**6, away=0).run(lambda line: None)
    assert len(called(tmp_path, "submit")) == dags.launch.MAX_SUBMISSIONS


def test_stopping_ends_the_wait_for_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = job(tmp_path, monkeypatch, lost=1, away=10**6)

    def say(line: str) -> None:
        if line.startswith("lost "):
            waiting.stop()

    with pytest.raises(StageError, match="stopped from outside"):
        waiting.run(say)
    assert len(called(tmp_path, "submit")) == 1


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_a_wait_that_is_no_time_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageError, match="give a number of minutes") as failed:
        job(tmp_path, monkeypatch, lost=0, away=0, minutes=text)
    assert failed.value.is_permanent
