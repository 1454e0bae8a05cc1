from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from collectors.config import CollectConfig
from collectors.forecast import Cost, ForecastConfig, costs, forecast
from collectors.rates import Rate, Rates
from pipeline.errors import UserError
from tests.fakes import FAKE_TASKS

RATES = Rates(
    {"fake-count": Rate(100.0, 50.0, 20.0, 9, "sac")},
    {"toy": Rate(10.0, 1000.0, 3.0, 0, "somebody guessed")},
    150_000_000,
)


def test_the_cost_of_a_task_is_arithmetic() -> None:
    config = CollectConfig("*", episodes="10,toy=2000steps", test_share=0.25, shard_episodes="4,toy=100")
    found = costs(config, FAKE_TASKS, RATES)
    # 10 + 3 episodes of 100 steps at 50 steps/s, in shards of 4: 3 + 1.
    assert found["fake-count"] == Cost(1, 1, 13, 1300.0, 26.0, 26_000.0, 4, 8.0)
    assert found["fake-count"].files == 4 * 3 + 1
    # 200 + 50 episodes of 10 steps.
    assert found["toy-grid"] == Cost(1, 0, 250, 2500.0, 2.5, 7500.0, 3, 1.0)
    total = found["fake-count"] + found["toy-grid"]
    assert total == Cost(2, 1, 263, 3800.0, 28.5, 33_500.0, 7, 8.0)
    # Two workers share the work; twenty wait for the longest shard.
    assert (total.seconds(2), total.seconds(20)) == (14.25, 8.0)


def test_the_table_has_domains_or_tasks_and_says_what_is_an_estimate() -> None:
    def printed(config: ForecastConfig) -> str:
        console = Console(file=io.StringIO(), width=200)
        console.print(forecast(config, FAKE_TASKS, RATES))
        return console.file.getvalue()  # type: ignore[attr-defined]

    config = ForecastConfig(episodes="10", shard_episodes="4", workers=2)
    text = printed(config)
    assert "ESTIMATE: somebody guessed" in text and "1 of 2 tasks measured" in text
    assert "2 workers with a core each" in text
    assert "fake-count" not in text
    by_task = printed(ForecastConfig(episodes="10", shard_episodes="4", workers=2, by_task=True))
    # What starting takes is said; one is no plural.
    started = dataclasses.replace(RATES, start_s=9.0)
    console = Console(file=io.StringIO(), width=200)
    console.print(forecast(ForecastConfig(episodes="10", shard_episodes="4", workers=1), FAKE_TASKS[:1], started))
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1 worker with a core each: 31 s, 9 s of it to start Ray and workers" in told
    assert "1 of 1 task measured" in told
    assert "fake-count" in by_task and "toy-grid" in by_task


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": "toy=3"}, "says nothing about fake-count"),
        ({"shard_episodes": "toy=3"}, "--shard-episodes 'toy=3' says nothing about fake-count"),
        ({"episodes": "9,nobody=3"}, "'nobody' is neither a task nor a domain"),
    ],
)
def test_options_that_say_nothing_of_a_task_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        forecast(ForecastConfig(**options), FAKE_TASKS, RATES)


def test_no_worker_is_none() -> None:
    with pytest.raises(UserError, match="--workers is 0"):
        ForecastConfig(workers=0)
