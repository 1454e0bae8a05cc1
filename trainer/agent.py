"""The trained network as a policy for vectorised environments, with a separate history per episode.

The network stores the histories (``RolloutCache``) in KV caches, so the cost of a step hardly depends on the episode's
length. The agent preprocesses observations as training does, and samples actions.

An episode is bitwise independent of how many others are played with it: slots are computed in blocks of a fixed size,
the last one filled up with idle slots, so that the libraries use the same code path for every row. When the agent is
created, it verifies on this processor that a row gives the same numbers at every place of the block, whatever the other
rows hold; if not, every slot is computed as a block of its own. Blocks of other sizes are used if they give the same
numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from pipeline.envs.policy import Observations
from pipeline.envs.task import DISCRETE, IMAGE, Task
from pipeline.errors import UserError
from pipeline.seeds import policy_generator
from trainer.checkpoint import Checkpoint
from trainer.config import BaseModelConfig, lookup_by_task_or_domain
from trainer.data.arrays import Normaliser
from trainer.data.batches import prepare_observations, prepare_rewards, text_plane
from trainer.data.returns import asked_returns
from trainer.data.tokenizer import encode
from trainer.networks.layout import TaskLayout
from trainer.networks.model import Model, RolloutCache

log = logging.getLogger(__name__)

# Cache of verified block sizes of a network, by layout and context: a worker plays many tasks with one network.
_STEADY_SIZES: WeakKeyDictionary[Model, dict[tuple[TaskLayout, int], tuple[int, ...]]] = WeakKeyDictionary()


class Agent:
    """The policy of a checkpoint.

    Args:
        checkpoint: checkpoint to act with.
        tasks: task of each slot; the checkpoint must have been trained on them, and they must share a layout.
        temperature: discrete actions are sampled from ``softmax(logits / temperature)``; 0 takes the mode.
        context_steps: context length in time steps; that of training if None.
        returns: what to ask for, by task or domain, of an agent that was trained with returns to go; by default what
            nine of ten training episodes stay below.

    Raises:
        UserError: the checkpoint was not trained on a task, has too few positions for so many time steps, or knows no
            episode with such a return.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tasks: Sequence[Task],
        temperature: float = 1.0,
        context_steps: int | None = None,
        returns: Mapping[str, float] | None = None,
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
        asked = asked_returns(config.returns, returns or {}, tasks)
        self._scales = [config.returns.get(task.name) for task in tasks]
        self._asked = [asked.get(task.name, 0.0) for task in tasks]
        self._to_earn: dict[int, float] = {}  # by slot: what is asked for and not earned yet, and the steps left
        self._steps_left: dict[int, int] = {}
        self._tokenizer, self._text_tokens = checkpoint.tokenizer, config.text_tokens
        self._normalisers = [checkpoint.normalisers.get(task.name) for task in tasks]
        model = checkpoint.model.eval()
        self._head = model.head(layout)
        if context_steps is not None and isinstance(config.model, BaseModelConfig):
            raise UserError(f"--contexts for {task.name}: this network looks back as in training, not {context_steps}")
        looks_back = context_steps or lookup_by_task_or_domain(
            config.contexts, task.name, task.domain, config.context_steps
        )
        new_memory = partial(model.new_memory, layout=layout, context_steps=looks_back)
        self._sizes = model.block_sizes(layout)
        if self._sizes != (1,):
            num_slots, known = 2 * max(self._sizes), _STEADY_SIZES.setdefault(model, {})
            if (layout, looks_back) not in known:
                known[layout, looks_back] = self._steady_sizes(layout, lambda: new_memory([indices[0]] * num_slots))
            self._sizes = known[layout, looks_back]
        self._memory = new_memory(indices + [indices[0]] * (self._sizes[-1] - 1))  # extra slots fill blocks
        self._generators: dict[int, np.random.Generator] = {}
        self._tokens: dict[str, np.ndarray] = {}

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        self._memory.forget(slots)
        for slot, seed in zip(slots, seeds, strict=True):
            self._generators[slot] = policy_generator(seed)
            self._to_earn[slot], self._steps_left[slot] = self._asked[slot], self._task.max_steps

    @torch.inference_mode()
    def act(self, slots: Sequence[int], observations: Observations) -> np.ndarray:
        tokens = None
        if observations.texts is not None:
            tokens = np.stack([self._tokenise(text) for text in observations.texts])
        normaliser = self._normaliser_of(slots)
        values = prepare_observations(self._task, observations.values, tokens, normaliser)
        rewards = prepare_rewards(observations.rewards, normaliser)
        draws = np.stack([self._generators[slot].random(self._head.num_draws) for slot in slots])
        to_go = self._returns_to_go(slots, observations.rewards)
        inputs = (torch.from_numpy(values), torch.from_numpy(rewards), torch.from_numpy(draws))
        _, actions = self._step(self._memory, slots, *inputs, to_go)
        return actions.numpy()

    def _returns_to_go(self, slots: Sequence[int], rewards: np.ndarray) -> Tensor | None:
        """Return what is left to earn, as in training ``(n,)``; None for a network that is not asked."""
        found = []
        for slot, reward in zip(slots, rewards, strict=True):
            if (scale := self._scales[slot]) is None:
                return None
            self._to_earn[slot] -= float(reward)
            to_go = self._to_earn[slot] / max(1, self._steps_left[slot])
            self._steps_left[slot] -= 1
            found.append(scale.standardise(np.array(to_go)))
        return torch.from_numpy(np.array(found, np.float32))

    def _step(
        self,
        memory: RolloutCache,
        slots: Sequence[int],
        values: Tensor,
        rewards: Tensor,
        draws: Tensor,
        to_go: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute each slot's network outputs and actions; both are appended to the cache."""
        row_of = {slot: row for row, slot in enumerate(slots)}
        outputs: list[Tensor] = []
        actions: list[Tensor] = []
        order: list[int] = []  # rows of the inputs, in block order
        for block in self._blocks(memory, slots):
            # An idle slot gets the input of the first row.
            rows, index = torch.tensor([row_of.get(slot, 0) for slot in block]), torch.tensor(block)
            said = memory.observe(index, values[rows], rewards[rows], None if to_go is None else to_go[rows])
            chosen = self._head.choose(said, draws[rows], self._temperature)
            if self._task.action.kind == "continuous":
                # Clamped as the rollout will execute it, because the history must contain the executed action.
                chosen = chosen.float().clamp(self._task.action.low, self._task.action.high)
            memory.act(index, chosen)
            places = [place for place, slot in enumerate(block) if slot in row_of]
            order += [row_of[block[place]] for place in places]
            outputs.append(said[places])
            actions.append(chosen[places])
        places_of_rows = torch.tensor(order).argsort()
        return torch.cat(outputs)[places_of_rows], torch.cat(actions)[places_of_rows]

    def _blocks(self, memory: RolloutCache, slots: Sequence[int]) -> Iterator[list[int]]:
        """Yield the slots in blocks of one of the sizes, ascending, filled up with idle slots."""
        running = set(slots)
        idle = [slot for slot in range(memory.num_slots) if slot not in running]
        paces: dict[Hashable, list[int]] = {}
        for slot, pace in zip(slots, memory.paces(slots), strict=True):
            paces.setdefault(pace, []).append(slot)
        for alike in paces.values():
            first = 0
            while first < len(alike):
                left = len(alike) - first
                size = next((size for size in self._sizes if size >= left), self._sizes[-1])
                chosen = alike[first : first + size]
                others = idle[: size - len(chosen)]
                memory.stand_in(others, chosen[0])
                yield sorted(chosen + others)
                first += size

    @torch.inference_mode()
    def _steady_sizes(self, layout: TaskLayout, new_memory: Callable[[], RolloutCache]) -> tuple[int, ...]:
        """Return the block sizes, ascending, that give an episode the same numbers at any place, with any others and
        alone.

        Args:
            layout: layout of the observations.
            new_memory: creates an empty cache with twice as many slots as the largest block.
        """
        (rows, *_), generator = self._sizes, np.random.default_rng(0)
        steps = [
            (
                torch.from_numpy(_random_observations(generator, rows, layout, self._task)),
                torch.from_numpy(generator.standard_normal(rows).astype(np.float32)),
                torch.from_numpy(generator.random((rows, self._head.num_draws))),
            )
            for _ in range(2)
        ]

        def play(slots: Sequence[int], episodes: Sequence[int]) -> list[Tensor]:
            """Return the network's outputs in two steps of these episodes."""
            memory = new_memory()
            return [self._step(memory, slots, *(x[list(episodes)] for x in step))[0] for step in steps]

        def is_steady(size: int) -> bool:
            self._sizes = (size,)
            others = [*range(1, rows), 0]
            arrangements = [
                (play(range(rows), range(rows)), list(range(rows))),
                (play(range(1, 2 * rows, 2), others), others),
                (play([rows // 2], [rows // 2]), [rows // 2]),
            ]
            return all(
                torch.equal(step, wanted[episodes])
                for found, episodes in arrangements
                for step, wanted in zip(found, expected, strict=True)
            )

        candidates, self._sizes = self._sizes, (rows,)
        expected = play(range(rows), range(rows))
        if not is_steady(rows):
            log.info("what the network says depends on a row's place here, so episodes are computed one by one")
            return (1,)
        return tuple(sorted({rows, *filter(is_steady, candidates[1:])}))

    def _normaliser_of(self, slots: Sequence[int]) -> Normaliser | None:
        chosen = [normaliser for slot in slots if (normaliser := self._normalisers[slot]) is not None]
        return Normaliser.of_rows(chosen) if chosen else None

    def _tokenise(self, text: str) -> np.ndarray:
        if text not in self._tokens:
            self._tokens[text] = encode(self._tokenizer, [text], self._text_tokens)[0]
        return self._tokens[text]


def _random_observations(generator: np.random.Generator, rows: int, layout: TaskLayout, task: Task) -> np.ndarray:
    """Return random network inputs ``(rows, ...)``; integers are valid for every encoder."""
    if layout.observation == DISCRETE:
        return generator.integers(0, 4, (rows, layout.observation_size))
    shape = task.observation_shape if layout.observation == IMAGE else (layout.main_size,)
    values = generator.standard_normal((rows, *shape)).astype(np.float32)
    tokens = generator.integers(0, 4, (rows, layout.text_size)) if layout.text_size else None
    if layout.observation != IMAGE:
        return values if tokens is None else np.concatenate([values, tokens.astype(np.float32)], axis=-1)
    images = np.moveaxis(values, -1, -3)
    return images if tokens is None else np.concatenate([images, text_plane(tokens, images.shape[-2:])], axis=-3)
