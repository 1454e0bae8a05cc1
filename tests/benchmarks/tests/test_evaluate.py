from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task
from pipeline.errors import UserError
from tests.benchmarks.evaluate import BenchEvalConfig, bench_long, bench_task, bench_together, untrained
from tests.fakes import FAKE_COUNT, FAKE_GRID, CountingEnv
from tests.trainer.conftest import assert_acted_alike
from trainer.agent import Agent

pytestmark = pytest.mark.slow

TINY = BenchEvalConfig(hidden_size=50, num_layers=2, num_heads=2, context_steps=8, envs=3, rounds=2, threads=1)


class LongEnv(CountingEnv):
    """Never ends by itself."""

    def step(self, action: object) -> tuple[dict[str, object], float, bool, bool, dict[str, object]]:
        self.t = 0
        return self._observe(), 1.0, False, False, {"success": False}


def make_long(task: Task) -> LongEnv:
    return LongEnv(task)


@pytest.mark.parametrize("task", [FAKE_COUNT, FAKE_GRID], ids=lambda task: task.name)
def test_both_ways_act_alike_while_the_context_has_room(task: Task) -> None:
    ours, plain = untrained(TINY, task)
    seeds = [11, 13, 14]
    together = rollout(task, Agent(ours, [task] * 3), seeds, 3)
    one_by_one = rollout(task, Agent(plain, [task]), seeds, 1)
    assert_acted_alike(task, together, one_by_one)


def test_the_plain_way_looks_back_only_its_context() -> None:
    """Of 3 steps: the episode begun later, from what it then sees, goes on alike."""
    config = replace(TINY, context_steps=3)
    _, plain = untrained(config, FAKE_COUNT)
    memory = plain.model.new_memory([0], plain.config.layouts[0], 3)
    import torch

    torch.manual_seed(0)
    seen = torch.randn(6, 1, 4)
    slots, reward, action = torch.tensor([0]), torch.zeros(1), torch.zeros(1, 2)
    with torch.inference_mode():
        for observation in seen:
            outputs = memory.observe(slots, observation, reward)
            memory.act(slots, action)
        memory.forget([0])
        for observation in seen[3:]:
            again = memory.observe(slots, observation, reward)
            memory.act(slots, action)
    torch.testing.assert_close(outputs, again)


def test_rates_are_of_every_turn() -> None:
    rates = bench_task(TINY, FAKE_GRID)
    assert (rates.task, len(rates.ours), len(rates.plain)) == ("toy-grid", 2, 2)
    assert min(rates.ours + rates.plain) > 0


def test_tasks_together_are_timed_beside_one_by_one() -> None:
    tasks = [FAKE_COUNT, replace(FAKE_COUNT, name="fake-other")]
    ratios = bench_together(replace(TINY, together_episodes=3), tasks)
    assert len(ratios) == 2
    assert min(ratios) > 0


def test_long_episodes_are_timed_in_stretches_after_the_first() -> None:
    task = replace(FAKE_COUNT, factory=make_long, max_steps=42)
    assert len(bench_long(TINY, task)) == 4  # steps 8 to 40


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="--hidden-size 50 must be a multiple of --num-heads 3"):
        replace(TINY, num_heads=3)
    with pytest.raises(UserError, match="--envs is 0"):
        replace(TINY, envs=0)
