"""The DAGs on a real Airflow, in an environment and a home of its own; most runs on commands that only pretend."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dags.stages import ALL_STAGES
from pipeline.files import read_json
from tests.dags.test_chain import COMMANDS, TASKS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
AIRFLOW_PYTHON = ROOT / ".venv-dags" / "bin" / "python"
FAKE = Path(__file__).with_name("fake_python.py")


def airflow(home: Path, words: list[str], python: Path, timeout: float = 500) -> None:
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("JAT_")},
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PYTHONPATH": str(ROOT),
        "JAT_PYTHON": str(python),
        "JAT_RETRIES": "1",
        "JAT_RETRY_SECONDS": "0.1",
    }
    done = subprocess.run(
        [str(AIRFLOW_PYTHON), "-m", *words], env=environ, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An Airflow with its pools and no runs."""
    assert AIRFLOW_PYTHON.exists(), "run `make setup-dags`"
    home = tmp_path_factory.mktemp("airflow")
    airflow(home, ["airflow", "db", "migrate"], FAKE)
    airflow(home, ["airflow", "pools", "import", str(ROOT / "dags" / "pools.json")], FAKE)
    return home


def play(home: Path, runs: list[dict[str, Any]], python: Path) -> Any:
    plan, result = home / "plan.json", home / "result.json"
    result.unlink(missing_ok=True)
    plan.write_text(json.dumps(runs))
    airflow(home, ["tests.dags.airflow_runs", str(plan), str(result)], python)
    return read_json(result)


@pytest.fixture(scope="module")
def played(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All pretended runs, in one process: starting Airflow takes longer than they do."""
    out = str(tmp_path_factory.mktemp("out"))
    synth = {"task": "babyai-synth*,mujoco-ant", "episodes": "99000", "out": out}
    runs = [
        {
            "dag": "jat_collect",
            "conf": synth,
            "env": {"FAKE_PYTHON": json.dumps({"fail_once": ["babyai-synth"], "fail": {"mujoco-ant": 2}})},
        },
        {
            "dag": "jat_collect",
            "conf": {**synth, "task": "mujoco-ant"},
            "env": {"FAKE_PYTHON": json.dumps({"fail": {"mujoco-ant": 1}})},
        },
        {"dag": "jat_collect", "conf": {"task": "metawrld-*", "out": out}, "env": {"FAKE_PYTHON": "{}"}},
        {"dag": "jat_train", "conf": {"task": "metaworld-[ab]*", "out": out}},
        {"dag": "jat_publish", "conf": {"out": out}},
        {"dag": "jat_collect", "conf": {"task": "babyai", "out": "not/absolute"}},
        {"dag": "jat_experts-queue", "conf": {"queue": "/lists/atari.toml", "out": out}},
        {"dag": "jat_collect", "conf": {"task": "babyai-open", "epsiodes": 7, "out": out}},
        {"dag": "jat_experts", "conf": {"out": out}},
        {"dag": "jat_collect", "conf": {"task": "babyai-open", "episodes": 5, "workers": 1, "out": out}},
    ]
    result = play(home, runs, FAKE)
    result["calls"] = [json.loads(line) for line in (Path(out) / "calls.jsonl").read_text().splitlines()]
    return result


def states(run: Any) -> dict[str, str]:
    return {name: task["state"] for name, task in run["tasks"].items()}


@pytest.mark.timeout(600)
def test_the_dags_import_quickly_without_errors_and_without_what_they_do_not_need(played: Any) -> None:
    assert played["import"]["errors"] == {}
    assert played["import"]["dags"] == sorted(f"jat_{stage.name}" for stage in ALL_STAGES)
    assert played["import"]["heavy"] == []
    assert played["import"]["seconds"] < 5  # of processor time


@pytest.mark.timeout(600)
def test_one_task_that_fails_makes_the_run_red_while_the_others_go_on_and_are_handed_on(played: Any) -> None:
    run = played["runs"][0]
    assert run["state"] == "failed"
    assert states(run) == {
        "plan": "success",
        "collect babyai-synth": "success",
        "collect babyai-synth-loc": "success",
        "collect babyai-synth-seq": "success",
        "collect mujoco-ant": "failed",
        "hand_on": "success",
        "all_worked": "upstream_failed",
    }
    (handed,) = run["handed"]
    (of_one_set_of_options,) = handed["runs"]
    assert of_one_set_of_options["tasks"] == ["babyai-synth", "babyai-synth-loc", "babyai-synth-seq"]
    assert of_one_set_of_options["options"]["episodes"] == "99000"


@pytest.mark.timeout(600)
def test_a_failure_is_retried_unless_a_retry_cannot_help(played: Any) -> None:
    tasks = played["runs"][0]["tasks"]
    assert tasks["collect babyai-synth"] == {"state": "success", "tries": 2}
    assert tasks["collect mujoco-ant"] == {"state": "failed", "tries": 1}  # bad input
    assert played["runs"][1]["tasks"]["collect mujoco-ant"] == {"state": "failed", "tries": 2}


@pytest.mark.timeout(600)
def test_where_nothing_worked_nothing_is_handed_on(played: Any) -> None:
    run = played["runs"][1]
    assert (run["state"], run["handed"], states(run)["hand_on"]) == ("failed", [], "skipped")


@pytest.mark.timeout(600)
def test_bad_parameters_fail_before_any_work(played: Any) -> None:
    for run in (played["runs"][2], played["runs"][5]):
        assert (run["state"], run["handed"], states(run)["plan"]) == ("failed", [], "failed")
    assert not any("metawrld" in str(call) or "not/absolute" in str(call) for call in played["calls"])


@pytest.mark.timeout(600)
def test_a_misspelt_parameter_and_no_task_fail_before_any_work(played: Any) -> None:
    for run in (played["runs"][7], played["runs"][8]):
        assert (run["state"], run["handed"], states(run)["plan"]) == ("failed", [], "failed")
    assert not any(call["options"].get("--episodes") == "7" for call in played["calls"])
    assert not any(call["module"] == "experts.prepare" for call in played["calls"])


@pytest.mark.timeout(600)
def test_numbers_are_taken_as_numbers(played: Any) -> None:
    assert played["runs"][9]["state"] == "success"
    (call,) = [call for call in played["calls"] if call["options"].get("--task") == "babyai-open"]
    assert (call["options"]["--episodes"], call["options"]["--workers"]) == ("5", "1")


@pytest.mark.timeout(600)
def test_a_stage_that_is_one_piece_of_work_gets_all_tasks_at_once(played: Any) -> None:
    assert played["runs"][3]["state"] == "success"
    (call,) = [call for call in played["calls"] if call["module"] == "trainer.train"]
    names = call["options"]["--task"].split(",")
    assert "metaworld-assembly" in names and all(name[10] in "ab" for name in names)
    (handed,) = played["runs"][3]["handed"]
    assert handed["runs"][0]["tasks"] == names


@pytest.mark.timeout(600)
def test_the_queue_gets_its_list(played: Any) -> None:
    assert played["runs"][6]["state"] == "success"
    (call,) = [call for call in played["calls"] if call["module"] == "experts.queue.run"]
    assert (call["options"]["--queue"], "--task" in call["options"]) == ("/lists/atari.toml", False)


@pytest.mark.timeout(600)
def test_without_a_place_to_publish_to_nothing_is_published_and_nothing_is_red(played: Any) -> None:
    run = played["runs"][4]
    assert (run["state"], states(run)["plan"]) == ("success", "skipped")


@pytest.mark.timeout(1000)
def test_the_stages_run_one_after_another_on_real_tasks_and_a_second_time_do_nothing(
    home: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.dags.quick_python "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    conf = {"task": TASKS, "out": str(out)}
    runs = [{"dag": f"jat_{stage}", "conf": conf} for stage in COMMANDS]
    first = play(home, runs, python)
    assert [run["state"] for run in first["runs"]] == ["success"] * len(runs)
    assert (out / "report" / "index.html").exists()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    again = play(home, runs[1:3], python)
    assert [run["state"] for run in again["runs"]] == ["success"] * 2
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")} == before
