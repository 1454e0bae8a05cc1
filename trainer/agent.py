"""The trained network as a policy: many episodes at once, each with its own past.

The network keeps the pasts (``Memory``), with caches of keys and values, so that a step costs about the same whatever
the episode's length. The agent prepares observations as training does, and draws actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.policy import Observations
from pipeline.seeds import policy_generator
from pipeline.tasks import Task
from trainer.checkpoint import Checkpoint
from trainer.config import BaseModelConfig, Choose, of_task
from trainer.data.arrays import Normaliser
from trainer.data.batches import prepare_observations, prepare_rewards
from trainer.data.tokenizer import encode


class Agent:
    """A checkpoint acting.

    Args:
        checkpoint: what acts.
        tasks: where, slot by slot; the checkpoint must have been trained on them, and they must share their layout.
        temperature: discrete actions are sampled from ``softmax(logits / temperature)``; 0 takes the likeliest.
        context_steps: time steps it looks back; as many as it was trained to if None.
        continuous: which of the continuous actions that the network finds likely is taken.

    Raises:
        UserError: the checkpoint was not trained on a task, or has no positions for so many time steps.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tasks: Sequence[Task],
        temperature: float = 1.0,
        context_steps: int | None = None,
        continuous: Choose = "mean",
    ) -> None:
        config = checkpoint.config
        for name in dict.fromkeys(task.name for task in tasks):
            if name not in config.tasks:
                raise UserError(f"the checkpoint was not trained on {name}, only on: {', '.join(config.tasks)}")
        indices = [config.tasks.index(task.name) for task in tasks]
        task, layout = tasks[0], config.layouts[indices[0]]
        if any(config.layouts[index] != layout for index in indices):
            raise ValueError(f"not of one layout: {', '.join(dict.fromkeys(task.name for task in tasks))}")
        self._task, self._temperature = task, temperature
        self._choose: Choose = "sample" if task.action.kind == "discrete" else continuous
        self._tokenizer, self._text_tokens = checkpoint.tokenizer, config.text_tokens
        self._normalisers = [checkpoint.normalisers.get(task.name) for task in tasks]
        model = checkpoint.model.eval()
        self._head = model.head(layout)
        if context_steps is not None and isinstance(config.model, BaseModelConfig):
            raise UserError(f"--contexts for {task.name}: this network looks back as in training, not {context_steps}")
        looks_back = context_steps or of_task(config.contexts, task.name, task.domain, config.context_steps)
        self._memory = model.new_memory(indices, layout, looks_back)
        self._generators: dict[int, np.random.Generator] = {}
        self._tokens: dict[str, np.ndarray] = {}

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        self._memory.forget(slots)
        for slot, seed in zip(slots, seeds, strict=True):
            self._generators[slot] = policy_generator(seed)

    @torch.inference_mode()
    def act(self, slots: Sequence[int], observations: Observations) -> np.ndarray:
        index = torch.tensor(slots)
        tokens = None
        if observations.texts is not None:
            tokens = np.stack([self._tokenise(text) for text in observations.texts])
        normaliser = self._normaliser_of(slots)
        values = prepare_observations(self._task, observations.values, tokens, normaliser)
        rewards = prepare_rewards(observations.rewards, normaliser)
        outputs = self._memory.observe(index, torch.from_numpy(values), torch.from_numpy(rewards))
        draws = torch.from_numpy(np.stack([self._generators[slot].random(self._head.num_draws) for slot in slots]))
        actions = self._head.choose(outputs, self._choose, draws, self._temperature)
        if self._task.action.kind == "continuous":
            # What the rollout will execute, and so what the past must contain.
            actions = actions.float().clamp(self._task.action.low, self._task.action.high)
        self._memory.act(index, actions)
        return actions.numpy()

    def _normaliser_of(self, slots: Sequence[int]) -> Normaliser | None:
        chosen = [normaliser for slot in slots if (normaliser := self._normalisers[slot]) is not None]
        return Normaliser.of_rows(chosen) if chosen else None

    def _tokenise(self, text: str) -> np.ndarray:
        if text not in self._tokens:
            self._tokens[text] = encode(self._tokenizer, [text], self._text_tokens)[0]
        return self._tokens[text]
