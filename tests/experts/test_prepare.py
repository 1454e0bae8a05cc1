from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from experts.algorithms import Algorithm
from experts.choice import choose
from experts.prepare import ExpertsConfig, MeasureJob, measure, prepare
from experts.registry import experts_of
from experts.store import StoredExpert, TrainingPoint, ensure_in_store
from experts.training import TrainJob
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Task
from pipeline.errors import JobsFailedError, UserError
from pipeline.files import read_json, write_json
from pipeline.runtime.cluster import Resources
from pipeline.scoring.measurement import Measurement, load_measurement
from tests.fakes import FAKE_COUNT, FAKE_GRID, FAKE_PIXELS, CountingEnv, store_network, store_random, write_measurement

FIRST = 1_500_000_000
pytestmark = pytest.mark.usefixtures("nothing_embedded")
one_worker = pytest.mark.usefixtures("one_worker")


class WorthlessEnv(CountingEnv):
    """Every action earns NaN, so every episode is rejected."""

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float("nan"), terminated, truncated, info


def config(out: Path, episodes: int = 4, **changes: Any) -> ExpertsConfig:
    return ExpertsConfig(**{"task": "*", "out": out, "episodes": episodes, "workers": 1, "expert": "random", **changes})


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Jobs run in this process, and are noted; Ray must not start."""
    jobs: list[Any] = []

    def here(
        function: Callable[[Any], Any], todo: Sequence[Any], workers: int, resources: Any = None
    ) -> Iterator[tuple[Any, Any]]:
        assert all(isinstance(resources(job) if resources else Resources(), Resources) for job in todo)
        jobs.extend(todo)
        for job in todo:
            yield job, function(job)

    def start(_: int) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("experts.prepare.run_jobs", here)
    monkeypatch.setattr("pipeline.runtime.pool.connect", start)
    return jobs


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[TrainJob]:
    """Two algorithms for the fake tasks; what they are asked for. They act 0.5 and 0.25."""
    started: list[TrainJob] = []

    def train(job: TrainJob) -> StoredExpert:
        started.append(job)
        action = {"ppo": 0.5, "sac": 0.25}[job.algorithm]
        return store_network(job.out, job.task, action, job.algorithm, [TrainingPoint(100, 1.0, 2.0)])

    module: Any = ModuleType("fake_algorithm")
    module.train = train
    monkeypatch.setitem(sys.modules, "fake_algorithm", module)
    here = Algorithm("fake_algorithm", lambda task: task.domain == "fake", (), num_cpus=2)
    elsewhere = Algorithm("nowhere", lambda task: task.domain == "mujoco", ())
    for where in ("experts.prepare", "experts.algorithms"):
        monkeypatch.setattr(f"{where}.ALGORITHMS", {"ppo": here, "sac": here, "trpo": elsewhere})
    monkeypatch.setattr("experts.prepare.default_algorithm", lambda task: "ppo")
    return started


def measured(out: Path, task: Task, revision: str) -> Measurement | None:
    return load_measurement(out / "experts" / task.name / revision, task)


def measurements(jobs: Sequence[Any]) -> list[tuple[str, str]]:
    return [(job.task.name, job.expert.record.kind) for job in jobs if isinstance(job, MeasureJob)]


@one_worker
def test_a_measurement_holds_every_episode_of_the_measuring_seeds(tmp_path: Path) -> None:
    prepare(config(tmp_path), [FAKE_COUNT, FAKE_GRID])
    found = measured(tmp_path, FAKE_COUNT, "random-1")
    assert found is not None
    assert (found.task, found.policy, found.revision) == ("fake-count", "random", "random-1")
    assert found.versions == {"numpy": np.__version__}
    assert found.seeds == [FIRST, FIRST + 1, FIRST + 2, FIRST + 3]
    assert found.lengths == [1, 2, 3, 4]
    assert found.returns == [1.0, 1.25 + 2.25, 1.5 + 2.5 + 3.5, 1.75 + 2.75 + 3.75 + 4.75]
    assert found.successes == [True, False, False, True]
    assert found.rejected == [None] * 4
    assert measured(tmp_path, FAKE_GRID, "random-1") is not None
    assert read_json(tmp_path / "experts" / "config.json")["episodes"] == 4
    assert read_json(tmp_path / "experts" / "fake-count" / "best.json") == {
        "best": None,
        "best-return": None,
        "best-success": None,
    }


def test_what_is_measured_stays_until_more_is_asked_for(tmp_path: Path, no_ray: list[Any]) -> None:
    path = tmp_path / "experts" / "fake-count" / "random-1" / "measurement.json"
    prepare(config(tmp_path, 3), [FAKE_COUNT])
    before = path.stat()
    for fewer_or_equal in (3, 2):
        prepare(config(tmp_path, fewer_or_equal), [FAKE_COUNT])
        assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    prepare(config(tmp_path, 5), [FAKE_COUNT])
    assert read_json(path)["lengths"] == [1, 2, 3, 4, 6]


@pytest.mark.parametrize("change", [{"revision": "0"}, {"versions": {"numpy": "0.1"}}], ids=["revision", "versions"])
def test_another_revision_or_version_is_measured_anew(
    change: dict[str, Any], tmp_path: Path, no_ray: list[Any]
) -> None:  # fmt: skip
    path = tmp_path / "experts" / "fake-count" / "random-1" / "measurement.json"
    prepare(config(tmp_path, 2), [FAKE_COUNT])
    before = read_json(path)
    write_json(path, {**before, **change})
    prepare(config(tmp_path, 2), [FAKE_COUNT])
    assert read_json(path) == before


def test_rules_and_the_random_policy_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[tuple[str, str]] = []

    def note(function: Any, jobs: Sequence[Any], workers: int, resources: Any = None) -> list[Any]:
        wanted.extend(measurements(jobs))
        return []

    monkeypatch.setattr("experts.prepare.run_jobs", note)
    for expert in ("best", "scripted,bot", "0.5*best+0.5*random"):
        wanted.clear()
        prepare(config(tmp_path, expert=expert), select_tasks("babyai-open,metaworld-reach"))
        assert wanted == [
            ("babyai-open", "bot"),
            ("babyai-open", "random"),
            ("metaworld-reach", "scripted"),
            ("metaworld-reach", "random"),
        ]


def test_the_bot_is_measured_better_than_random(tmp_path: Path) -> None:
    (task,) = select_tasks("babyai-go-to-local")
    bot, random = (measure(MeasureJob(task, expert, 10)) for expert in experts_of(tmp_path, task))
    assert bot.success_rate == 1.0
    assert random.accepted_returns.mean() < 0.6 < bot.accepted_returns.mean()


def test_embedded_experts_are_copied_and_nothing_is_played(
    tmp_path: Path, nothing_embedded: Path, no_ray: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    best = store_network(elsewhere, FAKE_COUNT, 0.5)
    write_measurement(best, FAKE_COUNT, [9] * 100, [True] * 100)
    weak = store_network(elsewhere, FAKE_COUNT, 0.1, "sac")
    write_measurement(weak, FAKE_COUNT, [1, 0] * 50, [True, False] * 50)
    write_measurement(store_random(elsewhere), FAKE_COUNT, [1, 0] * 50)
    (elsewhere / "experts").rename(nothing_embedded)
    run = tmp_path / "run"
    prepare(config(run, 100, expert="best"), [FAKE_COUNT])
    assert no_ray == []
    for expert in (best, weak):
        assert (run / "experts" / "fake-count" / expert.record.revision / "weights.safetensors").exists()
    assert read_json(run / "experts" / "fake-count" / "best.json") == {
        "best": best.record.revision,
        "best-return": best.record.revision,
        "best-success": best.record.revision,
    }
    lines = {line.split("│")[2].strip(): line for line in capsys.readouterr().out.splitlines() if "fake-count" in line}
    assert list(lines) == [best.record.revision, weak.record.revision, "random-1"]
    assert "9.00 [9.00, 9.00]" in lines[best.record.revision]
    assert "return, success" in lines[best.record.revision]
    assert "not better than random" in lines[weak.record.revision]
    assert "made to act 0.5" in lines[best.record.revision]
    assert "not better" not in lines["random-1"]


def test_a_task_without_an_expert_gets_one_trained_and_measured(
    tmp_path: Path, no_ray: list[Any], trainings: list[TrainJob]
) -> None:
    prepare(config(tmp_path, expert="best", seed=3, steps=10, seconds=1.5, target=7.0), [FAKE_COUNT])
    assert trainings == [TrainJob(FAKE_COUNT, "ppo", tmp_path, 3, 10, 1.5, 7.0)]
    assert measurements(no_ray) == [("fake-count", "ppo"), ("fake-count", "random")]
    best = read_json(tmp_path / "experts" / "fake-count" / "best.json")["best-return"]
    assert best.startswith("ppo-")
    # The fake's returns do not depend on actions, so this expert is no better than random.
    assert choose(tmp_path, FAKE_COUNT, allow_weak=True).revision == best
    no_ray.clear()
    prepare(config(tmp_path, expert="best"), [FAKE_COUNT])
    assert (len(trainings), no_ray) == (1, [])


def test_an_algorithm_is_trained_with_only_where_nothing_of_it_is_stored(
    tmp_path: Path, no_ray: list[Any], trainings: list[TrainJob]
) -> None:
    store_network(tmp_path, FAKE_COUNT, 0.9, "ppo")
    prepare(config(tmp_path, expert="ppo"), [FAKE_COUNT])
    assert trainings == []
    prepare(config(tmp_path, expert="0.5*sac+0.5*ppo"), [FAKE_COUNT])
    assert [job.algorithm for job in trainings] == ["sac"]
    prepare(config(tmp_path, expert="trpo,sac"), [FAKE_COUNT])  # no trpo in this domain
    assert len(trainings) == 1


def test_retraining_adds_an_expert_beside_the_one_that_is_there(
    tmp_path: Path, no_ray: list[Any], trainings: list[TrainJob]
) -> None:
    store_network(tmp_path, FAKE_COUNT, 0.9, "ppo")
    prepare(config(tmp_path, expert="best", retrain=True), [FAKE_COUNT])
    prepare(config(tmp_path, expert="sac", retrain=True), [FAKE_COUNT])
    assert [job.algorithm for job in trainings] == ["ppo", "sac"]
    assert [expert.record.kind for expert in experts_of(tmp_path, FAKE_COUNT)] == ["ppo", "ppo", "sac", "random"]
    # The older one was not asked for, so it is still not measured.
    assert len(list((tmp_path / "experts" / "fake-count").glob("ppo-*/measurement.json"))) == 1


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        (
            FAKE_COUNT,
            {"expert": "boot"},
            r"fake-count has no expert boot; it has none; algorithms .*: ppo, sac; or give",
        ),
        (FAKE_COUNT, {"expert": "trpo"}, "trpo has no recipe for fake-count; allowed there: ppo, sac"),
        (
            FAKE_COUNT,
            {"expert": "scripted,bot", "retrain": True},
            "scripted,bot cannot be trained; algorithms there: ppo",
        ),
        (FAKE_COUNT, {"expert": "random", "retrain": True}, "random cannot be trained"),
        (FAKE_COUNT, {"expert": "random", "steps": 5}, "--steps: nothing is to be trained; pass --retrain"),
        (FAKE_COUNT, {"expert": "released"}, r"JAT published no expert for --task \*; choose other tasks"),
        (FAKE_COUNT, {"expert": "released", "steps": 5}, "--steps: nothing is to be trained"),
        (FAKE_GRID, {"expert": "ppo"}, "ppo has no recipe for toy-grid; allowed there: none"),
    ],
)
def test_an_expert_a_task_cannot_have_is_refused_before_anything_is_done(
    task: Task,
    changes: dict[str, Any],
    message: str,
    tmp_path: Path,
    no_ray: list[Any],
    trainings: list[TrainJob],
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(config(tmp_path, **changes), [FAKE_COUNT, task])
    assert no_ray == []
    assert not (tmp_path / "experts").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": 0}, "--episodes is 0"),
        ({"workers": 0}, "--workers is 0"),
        ({"steps": 0}, "--steps is 0"),
        ({"seconds": 0.0}, r"--seconds is 0\.0"),
        ({"expert": "ppo", "sampled": True}, "--sampled is about experts to load"),
        ({"expert": "hub:a/b", "retrain": True}, "--retrain is about training"),
        ({"expert": "released", "retrain": True}, "--retrain is about training"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(Path("x"), **changes)


@pytest.mark.parametrize("source", ["hub:somebody/something", "./a/folder", "model.zip"])
def test_an_expert_is_loaded_from_where_it_is(
    source: str, tmp_path: Path, no_ray: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, bool]] = []

    def import_expert(task: Task, source: str, out: Path, sampled: bool = False) -> StoredExpert:
        asked.append((task.name, source, sampled))
        return store_network(out, task, 0.125, "sample-factory")

    module: Any = ModuleType("experts.importing.imports")
    module.import_expert = import_expert
    monkeypatch.setitem(sys.modules, "experts.importing.imports", module)
    store_network(tmp_path, FAKE_COUNT, 0.9)
    prepare(config(tmp_path, expert=source, sampled=True), [FAKE_COUNT])
    assert asked == [("fake-count", source, True)]
    assert measurements(no_ray) == [("fake-count", "sample-factory"), ("fake-count", "random")]


@one_worker
def test_failed_measurements_are_an_error_with_the_reason_after_the_others_are_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worthless = replace(FAKE_COUNT, name="fake-worthless", factory=WorthlessEnv)
    with pytest.raises(JobsFailedError, match="every episode of fake-worthless rejected: reward not finite"):
        prepare(config(tmp_path, 2), [worthless, FAKE_PIXELS])
    assert measured(tmp_path, worthless, "random-1") is None
    assert measured(tmp_path, FAKE_PIXELS, "random-1") is not None
    assert "pixel-count" in capsys.readouterr().out


def test_a_failed_training_does_not_keep_the_others_from_being_measured(
    tmp_path: Path, no_ray: list[Any], trainings: list[TrainJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    import experts.prepare

    here = experts.prepare.run_jobs
    other = replace(FAKE_COUNT, name="fake-other")

    def first_fails(function: Any, jobs: Sequence[Any], *rest: Any) -> Iterator[tuple[Any, Any]]:
        if jobs and isinstance(jobs[0], TrainJob):
            yield from here(function, jobs[1:], *rest)
            raise JobsFailedError("1 of 2 jobs failed")
        yield from here(function, jobs, *rest)

    monkeypatch.setattr("experts.prepare.run_jobs", first_fails)
    with pytest.raises(JobsFailedError, match="1 of 2"):
        prepare(config(tmp_path, expert="best"), [FAKE_COUNT, other])
    assert measurements(no_ray) == [("fake-count", "random"), ("fake-other", "ppo"), ("fake-other", "random")]


def test_retraining_that_was_interrupted_does_not_train_again_what_it_had_finished(
    tmp_path: Path, no_ray: list[Any], trainings: list[TrainJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    import experts.prepare

    here = experts.prepare.run_jobs
    tasks = [FAKE_COUNT, replace(FAKE_COUNT, name="fake-other")]

    def killed_after_one(function: Any, jobs: Sequence[Any], *rest: Any) -> Iterator[tuple[Any, Any]]:
        yield from here(function, jobs[:1], *rest)
        raise KeyboardInterrupt

    again = config(tmp_path, expert="best", retrain=True)
    with monkeypatch.context() as patch:
        patch.setattr("experts.prepare.run_jobs", killed_after_one)
        with pytest.raises(KeyboardInterrupt):
            prepare(again, tasks)
    prepare(again, tasks)
    assert [job.task.name for job in trainings] == ["fake-count", "fake-other"]
    assert [pair for pair in measurements(no_ray) if pair[1] == "ppo"] == [("fake-count", "ppo"), ("fake-other", "ppo")]
    # That request is done with; the same words are a new one, and so are other words before it is done.
    prepare(again, tasks)
    assert len(trainings) == 4
    with monkeypatch.context() as patch:
        patch.setattr("experts.prepare.run_jobs", killed_after_one)
        with pytest.raises(KeyboardInterrupt):
            prepare(again, tasks)
    prepare(replace(again, seed=1), tasks)
    assert [job.seed for job in trainings[4:]] == [0, 1, 1]


def test_as_a_command_what_is_measured_takes_seconds_and_no_ray(tmp_path: Path) -> None:
    (task,) = select_tasks("babyai-open")
    for expert in experts_of(tmp_path, task):
        write_measurement(ensure_in_store(tmp_path, expert), task, [0.5] * 100)
    # Whoever imports Ray here fails.
    source = "import sys, runpy; sys.modules['ray'] = None; runpy.run_module('experts.prepare', run_name='__main__')"
    words = ["--task", "babyai-open", "--expert", "bot", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", source, *words], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "2 measurements wanted, 2 already there" in done.stderr
    assert "not better than random" in done.stdout
