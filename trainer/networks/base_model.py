"""The base model, this project's own network; docs/ablations.md compares each of its options with the alternatives.

A time step is one embedding, the sum of the observation, the last reward and the task; its hidden state predicts the
action. Continuous values have linear maps of their own in every task, action heads have exactly the legal number of
outputs, and attention covers a window of steps with rotary positions.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.envs.babyai import NUM_INTEGERS
from pipeline.envs.task import CONTINUOUS, IMAGE
from trainer.batch import Batch, Losses, StepBatch
from trainer.config import BaseModelConfig
from trainer.networks.encoders import CellEncoder, ImageEncoder, PerStep
from trainer.networks.heads import Categorical, Head, Scale, Squared
from trainer.networks.layout import TaskLayout
from trainer.networks.model import Model, RolloutCache
from trainer.networks.trunk import Trunk

# Of the loss of the predicted returns, whose network is apart: it only must not fill the gradient norm that is clipped.
VALUE_LOSS_COEF = 0.1
MAX_WEIGHT = 20.0  # of a step, before the weights are divided by their mean


def advantage_weights(advantages: Tensor) -> Tensor:
    """Return the weights of steps ``(n,)`` with mean 1: the exponentials of their advantages, in units of the batch's
    standard deviation, clipped (arXiv 1910.00177)."""
    scaled = advantages / advantages.std(correction=0).clamp(min=1e-6)
    weights = scaled.exp().clamp(max=MAX_WEIGHT)
    return weights / weights.mean()


class TaskLinear(nn.Module):
    """A batch of linear maps, one of which is selected per window.

    Args:
        num_maps: number of maps.
        in_size, out_size: sizes of each map.
        scale: scale of the initial weights; 1 preserves the variance.
    """

    def __init__(self, num_maps: int, in_size: int, out_size: int, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_maps, in_size, out_size) * scale * in_size**-0.5)
        self.bias = nn.Parameter(torch.zeros(num_maps, out_size))

    def forward(self, x: Tensor, maps: Tensor) -> Tensor:
        """``(B, T, in_size)`` with ``maps`` ``(B,)`` -> ``(B, T, out_size)``."""
        if len(self.weight) == 1:
            return F.linear(x, self.weight[0].T, self.bias[0])
        return torch.bmm(x, self.weight[maps]) + self.bias[maps][:, None]


class FlatEncoder(nn.Module):
    """Concatenates the integers' embeddings and projects them to one: ``(B, T, n)`` int64 -> ``(B, T, out_size)``."""

    def __init__(self, num_integers: int, vocab_size: int, size: int, out_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, size)
        self.out = nn.Linear(num_integers * size, out_size)

    def forward(self, integers: Tensor) -> Tensor:
        return self.out(F.relu(self.embedding(integers)).flatten(2))


def split_text(layout: TaskLayout, observations: Tensor) -> tuple[Tensor, Tensor | None]:
    """Split the text tokens ``(B, T, text_size)`` int64, if there are any, off observations ``(B, T, ...)``."""
    if not layout.text_size:
        return observations, None
    if layout.observation == CONTINUOUS:
        return observations[..., : layout.main_size], observations[..., layout.main_size :].long()
    return observations[:, :, :-1], observations[:, :, -1].flatten(2)[..., : layout.text_size].long()


class BaseModel(Model):
    """Encoders, trunk and heads for a list of tasks.

    Args:
        config: sizes and options.
        layouts: layouts of the tasks, in the order of their indices.
    """

    def __init__(self, config: BaseModelConfig, layouts: Sequence[TaskLayout]) -> None:
        super().__init__()
        self.config, self.layouts = config, list(layouts)
        hidden = config.hidden_size
        self.trunk = Trunk(config, config.window_steps)
        self.task_embedding = nn.Embedding(len(layouts), hidden)
        self.reward_encoder = nn.Linear(1, hidden, bias=False)
        self.return_encoder = nn.Linear(1, hidden, bias=False) if config.returns == "input" else None
        self.value_trunk = self.value_decoder = None
        if config.returns == "value":
            layers = [layer for _ in range(2) for layer in (nn.Linear(hidden, hidden), nn.SiLU())]
            self.value_trunk, self.value_decoder = nn.Sequential(*layers), TaskLinear(len(layouts), hidden, 1)
        self.encoders = nn.ModuleDict()
        self.text_encoders = nn.ModuleDict()
        self.action_encoders = nn.ModuleDict()
        self.action_decoders = nn.ModuleDict()
        self.observation_decoders = nn.ModuleDict()
        observation_maps, action_maps = [0] * len(layouts), [0] * len(layouts)
        for index, layout in enumerate(layouts):
            of_observation = [i for i, o in enumerate(layouts) if o.observation_name == layout.observation_name]
            of_action = [i for i, o in enumerate(layouts) if o.action_name == layout.action_name]
            observation_maps[index], action_maps[index] = of_observation.index(index), of_action.index(index)
            self._add_observations(layout, len(of_observation))
            self._add_actions(layout, len(of_action))
        # Index of the map that a task uses, among those of its layout.
        self.observation_maps: Tensor
        self.action_maps: Tensor
        self.register_buffer("observation_maps", torch.tensor(observation_maps), persistent=False)
        self.register_buffer("action_maps", torch.tensor(action_maps), persistent=False)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.trunk.blocks)

    def rows_by_task(self, names: Collection[str]) -> dict[str, dict[int, int]]:
        found = {}
        for name in names:
            part, _, rest = name.partition(".")
            if part in ("task_embedding", "value_decoder"):
                found[name] = {index: index for index in range(len(self.layouts))}
            elif isinstance(self.get_submodule(name.rpartition(".")[0]), TaskLinear):
                is_action = part.startswith("action")
                maps = self.action_maps if is_action else self.observation_maps
                names = [layout.action_name if is_action else layout.observation_name for layout in self.layouts]
                used_by = rest.partition(".")[0]
                found[name] = {index: int(maps[index]) for index, name in enumerate(names) if name == used_by}
        return found

    def _add_observations(self, layout: TaskLayout, num_maps: int) -> None:
        name, size, config = layout.observation_name, layout.main_size, self.config
        if name in self.encoders:
            return
        if layout.text_size:
            self.text_encoders[name] = FlatEncoder(
                layout.text_size, config.vocab_size, config.cell_size, config.hidden_size
            )
        if layout.observation == CONTINUOUS:
            self.encoders[name] = TaskLinear(num_maps, size, config.hidden_size)
            if config.observation_loss_coef > 0:
                self.observation_decoders[name] = TaskLinear(num_maps, config.hidden_size, size)
        elif layout.observation == IMAGE:
            self.encoders[name] = PerStep(ImageEncoder(config.hidden_size))
        elif config.discrete_encoder == "cells" and layout.is_grid_world:
            encoder = CellEncoder(config.vocab_size, size - NUM_INTEGERS, config.cell_size, config.hidden_size)
            encoder.initialise()
            self.encoders[name] = encoder
        else:
            self.encoders[name] = FlatEncoder(size, config.vocab_size, config.cell_size, config.hidden_size)

    def _add_actions(self, layout: TaskLayout, num_maps: int) -> None:
        name, config = layout.action_name, self.config
        if name not in self.action_decoders:
            outputs = self.head(layout).num_outputs
            self.action_decoders[name] = TaskLinear(num_maps, config.hidden_size, outputs, scale=0.1)
        if layout.observation_name in self.observation_decoders and name not in self.action_encoders:
            self.action_encoders[name] = TaskLinear(num_maps, layout.action_size, config.hidden_size)

    def head(self, layout: TaskLayout) -> Head:
        if layout.action == "discrete":
            return Categorical(layout.action_size)
        return Squared(layout.action_size, Scale(layout.low, layout.high))

    def embed_observations(
        self,
        layout: TaskLayout,
        observations: Tensor,
        previous_rewards: Tensor,
        tasks: Tensor,
        to_go: Tensor | None = None,
    ) -> Tensor:
        """Observations ``(B, T, ...)`` of tasks ``(B,)`` with one observation layout -> ``(B, T, hidden)``."""
        limit = self.config.observation_limit
        encoder = self.encoders[layout.observation_name]
        observations, tokens = split_text(layout, observations)
        if layout.observation == CONTINUOUS:
            values = observations.clamp(-limit, limit)
            if self.training and self.config.observation_noise > 0:
                values = values + self.config.observation_noise * torch.randn_like(values)
            embedded = encoder(values, self.observation_maps[tasks])
        else:
            embedded = encoder(observations)
        if tokens is not None:
            embedded = embedded + self.text_encoders[layout.observation_name](tokens)
        embedded = embedded + self.reward_encoder(previous_rewards.clamp(-limit, limit)[..., None])
        if self.return_encoder is not None and to_go is not None:
            embedded = embedded + self.return_encoder(to_go.clamp(-limit, limit)[..., None])
        return embedded + self.task_embedding(tasks)[:, None]

    def embed_actions(self, layout: TaskLayout, actions: Tensor, tasks: Tensor) -> Tensor:
        """``(B, T)`` int64 or ``(B, T, size)`` float -> ``(B, T, hidden)``."""
        if layout.action == "discrete":
            values = F.one_hot(actions, layout.action_size).float()
        else:
            values = Scale(layout.low, layout.high).to_unit(actions)
        return self.action_encoders[layout.action_name](values, self.action_maps[tasks])

    def decode_actions(self, layout: TaskLayout, hidden: Tensor, tasks: Tensor) -> Tensor:
        """Hidden states of observations ``(B, T, hidden)`` -> outputs ``(B, T, outputs)`` for the task's head."""
        return self.action_decoders[layout.action_name](hidden, self.action_maps[tasks])

    def forward(self, batch: StepBatch) -> tuple[Tensor, Tensor | None]:
        """Return action outputs ``(B, T, outputs)``, and next observations ``(B, T, size)`` if they are predicted."""
        return self._predict(batch, self._embed(batch))

    def _embed(self, batch: StepBatch) -> Tensor:
        layout = self.layouts[int(batch.tasks[0])]
        return self.embed_observations(layout, batch.observations, batch.previous_rewards, batch.tasks, batch.to_go)

    def _predict(self, batch: StepBatch, embedded: Tensor) -> tuple[Tensor, Tensor | None]:
        tasks = batch.tasks
        layout = self.layouts[int(tasks[0])]
        actions = (
            self.embed_actions(layout, batch.actions, tasks) if layout.action_name in self.action_encoders else None
        )
        hidden = self.trunk(embedded)
        after_action = hidden if actions is None else hidden + actions
        predicted = None
        if layout.observation_name in self.observation_decoders:
            decoder = self.observation_decoders[layout.observation_name]
            predicted = decoder(after_action, self.observation_maps[tasks])
        return self.decode_actions(layout, hidden, tasks), predicted

    def losses(self, batch: Batch) -> Losses:
        if not isinstance(batch, StepBatch):
            raise TypeError("the base model has no part for texts")
        embedded = self._embed(batch)
        outputs, predicted = self._predict(batch, embedded)
        mask, kappa = batch.mask, self.config.observation_loss_coef
        head = self.head(self.layouts[int(batch.tasks[0])])
        of_steps = head.loss(outputs[batch.learned], batch.targets)
        value_loss = torch.zeros((), device=mask.device)
        if self.value_trunk is not None and self.value_decoder is not None:
            assert batch.to_go is not None, "without returns there is no advantage"
            # Of the current observation alone: what came before would tell who acts, and so explain the return.
            values = self.value_decoder(self.value_trunk(embedded.detach()), batch.tasks)[..., 0].float()
            errors = (batch.to_go - values)[mask]
            value_loss = errors.square().mean()
            of_steps = of_steps * advantage_weights(errors.detach())
        action_loss = of_steps.mean() if len(of_steps) else of_steps.sum()  # a batch may have no label
        observation_loss = torch.zeros((), device=mask.device)
        if predicted is not None:
            limit, real = self.config.observation_limit, mask[:, 1:]
            seen, _ = split_text(self.layouts[int(batch.tasks[0])], batch.observations)
            target = seen[:, 1:].clamp(-limit, limit)
            errors = F.mse_loss(predicted[:, :-1].float(), target.float(), reduction="none").mean(dim=2)
            observation_loss = (errors * real).sum() / real.sum().clamp(min=1)
        total = kappa * observation_loss + (1 - kappa) * action_loss + VALUE_LOSS_COEF * value_loss
        return Losses(total, observation_loss, action_loss)

    def new_memory(self, tasks: Sequence[int], layout: TaskLayout, context_steps: int) -> BaseMemory:
        return BaseMemory(self, tasks, layout)


class BaseMemory(RolloutCache):
    """KV cache of the last ``window`` positions of each slot."""

    def __init__(self, model: BaseModel, tasks: Sequence[int], layout: TaskLayout) -> None:
        self._model, self._layout, self.num_slots = model, layout, len(tasks)
        self._cache = model.trunk.new_cache(self.num_slots)
        device = self._cache.device
        self._tasks = torch.tensor(tasks, device=device)
        self._positions = torch.zeros(self.num_slots, dtype=torch.int64, device=device)

    def forget(self, slots: Sequence[int]) -> None:
        self._positions[list(slots)] = 0
        self._cache[:, :, list(slots)] = 0  # attention weight zero does not mask non-finite values

    def observe(
        self, slots: Tensor, observations: Tensor, previous_rewards: Tensor, to_go: Tensor | None = None
    ) -> Tensor:
        model, tasks = self._model, self._tasks[slots]
        embedded = model.embed_observations(
            self._layout,
            observations[:, None],
            previous_rewards[:, None],
            tasks,
            None if to_go is None else to_go[:, None],
        )
        hidden = model.trunk.extend(embedded, self._cache, slots, self._positions[slots])
        self._positions[slots] += 1
        return model.decode_actions(self._layout, hidden, tasks)[:, 0]

    def act(self, slots: Tensor, actions: Tensor) -> None:
        """Nothing: the network does not see its past actions."""
