"""The trained network as a policy: many episodes at once, each with its own past.

Keys and values of past positions are cached per slot, so a step costs two positions whatever the episode's length.
When a slot's context is full, its newer half is embedded again at the first positions and the episode goes on; the
cost of that is spread over half a context of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.policy import Observations
from pipeline.seeds import policy_generator
from pipeline.tasks import Task
from trainer.checkpoint import Checkpoint
from trainer.config import of_task
from trainer.data import prepare_observations, prepare_rewards
from trainer.tokenizer import encode


class Agent:
    """A checkpoint acting in one task.

    Args:
        checkpoint: what acts.
        task: where; the checkpoint must have been trained on it.
        num_slots: most environments at once.
        temperature: discrete actions are sampled from ``softmax(logits / temperature)``; 0 takes the likeliest.
        context_steps: time steps it looks back; as many as it was trained to if None.

    Raises:
        UserError: the checkpoint was not trained on the task, or has no positions for so many time steps.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        task: Task,
        num_slots: int,
        temperature: float = 1.0,
        context_steps: int | None = None,
    ) -> None:
        config = checkpoint.config
        if task.name not in config.tasks:
            raise UserError(f"the checkpoint was not trained on {task.name}, only on: {', '.join(config.tasks)}")
        self._task, self._temperature = task, temperature
        self._model = checkpoint.model.eval()
        self._tokenizer, self._text_tokens = checkpoint.tokenizer, config.text_tokens
        self._normaliser = checkpoint.normalisers.get(task.name)
        self._max_positions = 2 * (
            context_steps or of_task(config.contexts, task.name, task.domain, config.context_steps)
        )
        if self._max_positions > config.model.max_positions:
            raise UserError(
                f"--contexts for {task.name} needs {self._max_positions} positions; the checkpoint has "
                f"{config.model.max_positions}"
            )
        self._cache = self._model.new_cache(num_slots)
        # Embeddings of the positions in the cache, to rebuild it when it is full.
        self._past = torch.zeros(num_slots, self._max_positions, config.model.hidden_size)
        self._positions = np.zeros(num_slots, np.int64)
        self._generators: dict[int, np.random.Generator] = {}
        self._tokens: dict[str, np.ndarray] = {}

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        for slot, seed in zip(slots, seeds, strict=True):
            self._positions[slot] = 0
            self._generators[slot] = policy_generator(seed)

    @torch.inference_mode()
    def act(self, slots: Sequence[int], observations: Observations) -> np.ndarray:
        index = np.asarray(slots)
        self._make_room(index)
        hidden = self._extend(index, self._embed(observations))
        discrete = self._task.action.kind == "discrete"
        output = self._model.decode_actions(hidden, discrete, self._task.action.size).numpy()
        if discrete:
            actions = np.array([self._choose(slot, row) for slot, row in zip(slots, output, strict=True)])
        else:
            # What the rollout will execute, and so what the past must contain.
            actions = np.clip(output, self._task.action.low, self._task.action.high)
        self._extend(index, self._model.embed_actions(torch.from_numpy(actions)[:, None])[:, 0])
        return actions

    def _embed(self, observations: Observations) -> Tensor:
        """``(n, hidden)``."""
        tokens = None
        if observations.texts is not None:
            tokens = np.stack([self._tokenise(text) for text in observations.texts])
        values = prepare_observations(self._task, observations.values, tokens, self._normaliser)
        rewards = prepare_rewards(observations.rewards, self._normaliser)
        return self._model.embed_observations(
            self._task.observation, torch.from_numpy(values)[:, None], torch.from_numpy(rewards)[:, None]
        )[:, 0]

    def _tokenise(self, text: str) -> np.ndarray:
        if text not in self._tokens:
            self._tokens[text] = encode(self._tokenizer, [text], self._text_tokens)[0]
        return self._tokens[text]

    def _extend(self, slots: np.ndarray, embeddings: Tensor) -> Tensor:
        """Append one position per slot; hidden states ``(n, hidden)``."""
        index, positions = torch.from_numpy(slots), torch.from_numpy(self._positions[slots])
        self._past[index, positions] = embeddings
        hidden = self._model.extend(embeddings[:, None], self._cache, index, positions[:, None])
        self._positions[slots] += 1
        return hidden[:, 0]

    def _make_room(self, slots: np.ndarray) -> None:
        """Keep only the newer half of the context where there is no room for another time step."""
        full = slots[self._positions[slots] + 2 > self._max_positions]
        if not len(full):
            return
        keep = self._max_positions // 4 * 2  # whole time steps
        index = torch.from_numpy(full)
        kept = self._past[index, self._max_positions - keep :]
        self._past[index, :keep] = kept
        positions = torch.arange(keep).expand(len(full), keep)
        self._model.extend(kept, self._cache, index, positions)
        self._positions[full] = keep

    def _choose(self, slot: int, logits: np.ndarray) -> int:
        if self._temperature == 0:
            return int(logits.argmax())
        scaled = (logits - logits.max()) / self._temperature
        cumulative = np.cumsum(np.exp(scaled))
        return int(np.searchsorted(cumulative, self._generators[slot].random() * cumulative[-1]))
