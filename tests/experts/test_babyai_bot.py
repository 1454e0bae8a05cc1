from __future__ import annotations

import pytest

from experts.babyai_bot import MAX_SUBGOALS, BabyAIBotPolicy
from pipeline.rollout import rollout
from pipeline.tasks import Task, select_tasks


def task_named(name: str) -> Task:
    (task,) = select_tasks(name)
    return task


@pytest.mark.parametrize(
    "name", ["babyai-go-to-local", "babyai-open-door", "babyai-pickup-loc", "babyai-put-next-local", "babyai-synth-loc"]
)
def test_the_bot_solves_levels(name: str) -> None:
    task = task_named(name)
    episodes = list(rollout(task, BabyAIBotPolicy(task), range(10), num_envs=4))
    assert [episode.success for episode in episodes] == [True] * 10
    assert all(episode.ended == "terminated" and episode.rejected is None for episode in episodes)
    assert all(0 < episode.rewards[-1] <= 1 for episode in episodes)


def test_a_bot_that_loops_gives_up_with_a_reason_and_the_others_go_on() -> None:
    task = task_named("babyai-unlock-to-unlock")
    # Of these seeds the bot loops in the second, at its third step.
    before, looping, after = rollout(task, BabyAIBotPolicy(task), [5, 7, 8], num_envs=1)
    assert looping.rejected == f"policy: bot: LoopingError: over {MAX_SUBGOALS} sub-goals"
    assert (looping.ended, len(looping)) == ("rejected", 2)
    assert [before.success, after.success] == [True, True]
