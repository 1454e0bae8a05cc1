from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch

from pipeline.envs.policy import Observations
from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task
from pipeline.errors import UserError
from tests.fakes import FAKE_COUNT, FAKE_GRID, FAKE_PIXELS, FAKE_TASKS, observation_at, text_at
from trainer.agent import Agent
from trainer.batch import StepBatch
from trainer.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint
from trainer.config import TrainConfig
from trainer.data.batches import prepare_observations, prepare_rewards
from trainer.data.tokenizer import encode
from trainer.networks.jat_model import JatMemory
from trainer.train import train


@pytest.fixture
def checkpoint(make_config: Callable[..., TrainConfig], run_dir: Path) -> Checkpoint:
    train(make_config(), FAKE_TASKS)
    path = latest_checkpoint(run_dir / "train" / "checkpoints")
    assert path is not None
    return load_checkpoint(path)


def observations(task: Task, seeds: list[int], t: int) -> Observations:
    return Observations(
        values=np.stack([observation_at(task, seed, t) for seed in seeds]),
        texts=[text_at(seed, t) for seed in seeds] if task.has_text else None,
        rewards=np.array([float(seed % 7 + t) if t else 0.0 for seed in seeds], np.float32),
    )


def predict_whole(checkpoint: Checkpoint, task: Task, seed: int, steps: range, actions: list[np.ndarray]) -> np.ndarray:
    """What the network says at the last of ``steps``, given all of them at once as in training."""
    shown = [observations(task, [seed], t) for t in steps]
    tokens = None
    if task.has_text:
        texts = [text_at(seed, t) for t in steps]
        tokens = encode(checkpoint.tokenizer, texts, checkpoint.config.text_tokens)[None]
    normaliser = checkpoint.normalisers.get(task.name)
    values = prepare_observations(task, np.stack([o.values[0] for o in shown])[None], tokens, normaliser)
    rewards = prepare_rewards(np.stack([o.rewards[0] for o in shown])[None], normaliser)
    past = np.stack(actions)[None]  # the last one is not yet an input
    batch = StepBatch(
        task.observation,
        torch.from_numpy(values),
        torch.from_numpy(rewards),
        torch.from_numpy(past),
        torch.ones(1, len(steps), dtype=torch.bool),
        torch.tensor([checkpoint.config.tasks.index(task.name)]),
    )
    with torch.no_grad():
        predicted, _ = checkpoint.model.eval()(batch)
    return predicted[0, -1, : task.action.size].numpy()


@pytest.mark.parametrize("task", FAKE_TASKS, ids=lambda task: task.name)
def test_acting_step_by_step_is_what_training_on_the_episode_would_say(checkpoint: Checkpoint, task: Task) -> None:
    """Two episodes in lockstep, the second one begun two steps late in another slot."""
    agent = Agent(checkpoint, [task] * 3, temperature=0)
    starts = {2: (11, 0), 0: (23, 2)}  # slot: seed, first step
    taken: dict[int, list[np.ndarray]] = {2: [], 0: []}
    for now in range(4):
        for slot, (seed, first) in starts.items():
            if first == now:
                agent.reset([slot], [seed], [])
        running = [slot for slot, (_, first) in starts.items() if first <= now]
        rows = [observations(task, [starts[slot][0]], now - starts[slot][1]) for slot in running]
        together = Observations(
            np.concatenate([row.values for row in rows]),
            [text for row in rows for text in row.texts or []] if task.has_text else None,
            np.concatenate([row.rewards for row in rows]),
        )
        for slot, action in zip(running, agent.act(running, together), strict=True):
            seed, first = starts[slot]
            taken[slot].append(np.asarray(action))
            expected = predict_whole(checkpoint, task, seed, range(now - first + 1), taken[slot])
            if task.action.kind == "discrete":
                assert action == expected.argmax()
            else:
                np.testing.assert_allclose(action, np.clip(expected, -1, 1), atol=1e-5)


def test_a_full_context_keeps_its_newer_half(checkpoint: Checkpoint) -> None:
    """The context is 4 steps: at step 4 the agent must see steps 2, 3 and 4 and nothing older."""
    agent = Agent(checkpoint, [FAKE_COUNT])
    agent.reset([0], [11], [])
    taken = []
    for t in range(7):
        (action,) = agent.act([0], observations(FAKE_COUNT, [11], t))
        taken.append(action)
        first = {4: 2, 5: 2, 6: 4}.get(t, 0)
        expected = predict_whole(checkpoint, FAKE_COUNT, 11, range(first, t + 1), taken[first:])
        np.testing.assert_allclose(action, np.clip(expected, -1, 1), atol=1e-5)


@pytest.mark.parametrize("task", FAKE_TASKS, ids=lambda task: task.name)
def test_an_episode_does_not_depend_on_the_others_played_beside_it(checkpoint: Checkpoint, task: Task) -> None:
    seeds = list(range(100, 112))
    alone = [e for seed in seeds for e in rollout(task, Agent(checkpoint, [task]), [seed], 1)]
    few, many = (list(rollout(task, Agent(checkpoint, [task] * n), seeds, n)) for n in (3, 5))
    for one, of_few, of_many in zip(alone, few, many, strict=True):
        assert one.actions.tobytes() == of_few.actions.tobytes() == of_many.actions.tobytes()


def test_where_a_row_depends_on_its_place_episodes_are_computed_one_by_one(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a library that rounds differently in some rows."""
    assert 32 in Agent(checkpoint, [FAKE_COUNT])._sizes
    monkeypatch.setattr("trainer.agent._STEADY_SIZES", WeakKeyDictionary())  # the network is another then
    observe = JatMemory.observe

    def place_dependent(self: JatMemory, *args: torch.Tensor) -> torch.Tensor:
        outputs = observe(self, *args)
        return outputs + 1e-6 * torch.arange(len(outputs))[:, None]

    monkeypatch.setattr(JatMemory, "observe", place_dependent)
    assert Agent(checkpoint, [FAKE_COUNT])._sizes == (1,)
    test_an_episode_does_not_depend_on_the_others_played_beside_it(checkpoint, FAKE_COUNT)


def test_a_block_of_a_size_that_gives_other_numbers_is_not_used(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    observe = JatMemory.observe

    def size_dependent(self: JatMemory, *args: torch.Tensor) -> torch.Tensor:
        outputs = observe(self, *args)
        return outputs + 1e-6 * (len(outputs) == 64)

    monkeypatch.setattr(JatMemory, "observe", size_dependent)
    assert 64 not in Agent(checkpoint, [FAKE_COUNT])._sizes
    test_an_episode_does_not_depend_on_the_others_played_beside_it(checkpoint, FAKE_COUNT)


def test_temperature_zero_takes_the_likeliest_and_a_high_one_explores(checkpoint: Checkpoint) -> None:
    def actions(temperature: float, seed: int) -> list[int]:
        agent = Agent(checkpoint, [FAKE_GRID] * 64, temperature)
        slots = list(range(64))
        agent.reset(slots, [seed + slot for slot in slots], [])
        return [int(a) for a in agent.act(slots, observations(FAKE_GRID, [3] * 64, 0))]

    assert len(set(actions(0, 0))) == 1
    assert set(actions(1e6, 0)) == {0, 1, 2, 3, 4}
    assert actions(1, 0) == actions(1, 0)
    assert actions(1e6, 0) != actions(1e6, 1000)


def test_a_task_it_was_not_trained_on_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(UserError, match="not trained on pixel-count, only on: fake-count, toy-grid"):
        Agent(checkpoint, [FAKE_PIXELS])


def test_a_shorter_context_is_all_that_it_sees(checkpoint: Checkpoint) -> None:
    """Of 2 steps: at step 2 the agent must see steps 1 and 2 alone."""
    agent = Agent(checkpoint, [FAKE_COUNT], context_steps=2)
    agent.reset([0], [11], [])
    taken = []
    for t in range(4):
        (action,) = agent.act([0], observations(FAKE_COUNT, [11], t))
        taken.append(action)
        first = max(0, t - 1)
        expected = predict_whole(checkpoint, FAKE_COUNT, 11, range(first, t + 1), taken[first:])
        np.testing.assert_allclose(action, np.clip(expected, -1, 1), atol=1e-5)


def test_a_context_longer_than_the_positions_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(UserError, match="--contexts of 5 needs 10 positions; the checkpoint has 8"):
        Agent(checkpoint, [FAKE_COUNT], context_steps=5)
