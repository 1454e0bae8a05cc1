from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from collectors.collect import collect
from collectors.config import CollectConfig
from collectors.rates import Rate, Rates, RatesConfig, load_rates, measure, measure_start, read_rates, update_rates
from pipeline.envs.registry import all_tasks, select_tasks
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.runtime.stage import reported
from pipeline.runtime.status import StageStatus
from tests.fakes import FAKE_COUNT, FAKE_GRID, num_steps

pytestmark = pytest.mark.usefixtures("nothing_embedded")
RATE = Rate(10.0, 100.0, 5.0, 3, "bot")


@pytest.mark.usefixtures("one_worker")
def test_figures_are_those_of_the_shards_and_of_all_runs_that_made_them(tmp_path: Path) -> None:
    root = tmp_path / "shards"
    config = CollectConfig("*", tmp_path, "10", 0.1, "5", 1, 2, "random", max_rejected=1.0)
    for run, task in ((config, FAKE_COUNT), (replace(config, episodes="20"), FAKE_COUNT), (config, FAKE_GRID)):
        with reported("collect", tmp_path, run.task):
            collect(run, [task])
    (path,) = (tmp_path / "status" / "collect").iterdir()
    progress = read_json(path)
    # What an earlier run spent is not forgotten by a later one, of other tasks or of more episodes.
    assert {name: task["timed"] for name, task in progress["tasks"].items()} == {"fake-count": 22, "toy-grid": 11}
    assert all(0 < task["busy_s"] < 60 for task in progress["tasks"].values())
    progress["tasks"]["fake-count"]["busy_s"] = 11.0
    write_json(path, progress)
    found, driver_bytes = measure(root)
    length = sum(num_steps(s) for s in [*range(20), *range(1_000_000_000, 1_000_000_002)]) / 22
    num_bytes = sum(path.stat().st_size for path in (root / "fake-count").glob("*.parquet"))
    rate = found["fake-count"]
    assert rate.steps_per_episode == pytest.approx(length, rel=1e-3)
    assert rate.steps_per_second == pytest.approx(2 * length, rel=1e-3)
    assert rate.bytes_per_step == pytest.approx(num_bytes / (22 * length), rel=1e-3)
    assert (rate.episodes, rate.source) == (22, "random") and driver_bytes > 10**7


def test_where_nothing_was_timed_there_is_nothing_to_note(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no shard in .* is finished and timed; run `jat collect`"):
        update_rates(RatesConfig(tmp_path))


def test_tasks_of_other_runs_and_estimates_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rates.json"
    monkeypatch.setattr("collectors.rates.measure", lambda root: ({"babyai-synth": RATE}, 7))
    update_rates(RatesConfig(tmp_path))
    write_json(path, {**read_json(path), "estimates": {"atari": read_json(path)["tasks"]["babyai-synth"]}})
    faster = replace(RATE, steps_per_second=200.0)
    monkeypatch.setattr("collectors.rates.measure", lambda root: ({"babyai-goto": faster}, 5))
    monkeypatch.setattr("collectors.rates.select_tasks", lambda name: ())
    update_rates(RatesConfig(tmp_path))
    assert read_rates(path) == Rates({"babyai-goto": faster, "babyai-synth": RATE}, {"atari": RATE}, 7)


def test_only_on_purpose_and_from_enough_episodes_the_shipped_table_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "package" / "rates.json"
    write_json(shipped, asdict(Rates({"babyai-synth": RATE, "babyai-goto": RATE}, {}, 7, 9.0)))
    before = shipped.read_bytes()
    monkeypatch.setattr("collectors.rates.RATES", shipped)
    slow = replace(RATE, steps_per_second=2.0, episodes=6)
    monkeypatch.setattr("collectors.rates.measure", lambda root: ({"babyai-synth": slow}, 7))
    out = tmp_path / "run"
    update_rates(RatesConfig(out))
    assert shipped.read_bytes() == before
    # The run is planned with its own figures and with the shipped ones of what it has not collected.
    assert load_rates(out).tasks == {"babyai-synth": slow, "babyai-goto": RATE}
    assert load_rates().tasks == {"babyai-synth": RATE, "babyai-goto": RATE}
    assert load_rates(out).start_s == 9.0
    with pytest.raises(UserError, match=r"--ship takes at least 100 episodes .* babyai-synth \(6\)"):
        update_rates(RatesConfig(out, ship=True))
    assert shipped.read_bytes() == before
    many = replace(slow, episodes=100)
    monkeypatch.setattr("collectors.rates.measure", lambda root: ({"babyai-synth": many}, 7))
    update_rates(RatesConfig(out, ship=True))
    assert load_rates().tasks == {"babyai-synth": many, "babyai-goto": RATE}


def test_the_start_is_from_the_command_to_the_first_step() -> None:
    runs = [
        StageStatus("collect", "", "", started=100.0, counting_since=since, done=1) for since in (105.0, 109.0, 140.0)
    ]
    assert measure_start([*runs, StageStatus("collect", "", "", started=1.0)]) == 9.0
    assert measure_start([]) == 0.0


def test_a_task_without_figures_takes_the_mean_of_its_domain_then_the_estimate() -> None:
    a, b = RATE, Rate(30.0, 300.0, 7.0, 9, "bot")
    rates = Rates({"babyai-goto": a, "babyai-synth": b}, {"atari": RATE, "babyai": RATE})
    other, pong, ant = select_tasks("babyai-boss-level,atari-pong,mujoco-ant")
    pong, other, ant = (next(t for t in (other, pong, ant) if t.domain == d) for d in ("atari", "babyai", "mujoco"))
    long = Rates({"mujoco-ant": replace(RATE, steps_per_episode=1000.0)})
    (pusher,) = select_tasks("mujoco-pusher")
    assert long.of_task(pusher).steps_per_episode == pusher.max_steps == 100
    # Half the steps at 100/s and half at 300/s: 150/s.
    assert rates.of_task(other) == Rate(20.0, pytest.approx(150.0), 6.0, 0, "mean of 2 tasks")
    assert rates.of_task(pong) == RATE
    with pytest.raises(UserError, match="nothing is known of what mujoco-ant costs"):
        rates.of_task(ant)


def test_the_figures_that_come_with_this_package_cover_every_domain() -> None:
    assert 1 < load_rates().start_s < 60
    rates = load_rates()
    assert set(rates.tasks) <= {task.name for task in all_tasks()}
    for task in all_tasks():
        rate = rates.of_task(task)
        assert 0 < rate.steps_per_episode <= task.max_steps
        assert rate.steps_per_second > 0 and rate.bytes_per_step > 0
