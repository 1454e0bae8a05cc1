"""The JAT network: GPT-Neo over interleaved observation and action embeddings (arXiv 2402.09844, section 4).

Each time step is two positions: [observation with the previous reward, action]. The hidden state at an observation
predicts the action, the one at an action predicts the next observation. Parameter names and shapes are those of the
released model, whose numbers ``tests/trainer/test_jat_model.py`` reproduces.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.tasks import CONTINUOUS, DISCRETE
from trainer.config import ModelConfig
from trainer.encoders import CellEncoder, ImageDecoder, ImageEncoder, PerStep
from trainer.gpt_neo import Transformer
from trainer.model import Losses, Model, StepBatch


class JatModel(Model):
    """Encoders, trunk and decoders."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.config = config
        self.transformer = Transformer(config)
        self.continuous_encoder = nn.Linear(config.max_continuous_size, hidden)
        # Numbered like the released nn.Sequential, whose element 0 is the shared token embedding.
        self.multi_discrete_encoder = nn.ModuleDict(
            {
                "1": nn.Linear(hidden, config.token_size),
                "4": nn.Linear(config.max_discrete_size * config.token_size, hidden - 1),
            }
        )
        if config.discrete_encoder == "cells":
            self.cell_encoder = CellEncoder(config, hidden - 1)
        self.image_encoder = PerStep(ImageEncoder(hidden))
        self.single_discrete_decoder = nn.Linear(hidden, config.vocab_size, bias=False)
        self.continuous_decoder = nn.Linear(hidden, config.max_continuous_size)
        self.image_decoder = PerStep(ImageDecoder(hidden))
        self.apply(self._initialise)
        if config.discrete_encoder == "cells":
            self.cell_encoder.initialise()

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        """GPT-Neo's: normal with standard deviation 0.02, biases zero."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def embed_observations(self, kind: str, observations: Tensor, previous_rewards: Tensor) -> Tensor:
        """``(B, T, ...)`` -> ``(B, T, hidden)``. Images carry no reward, as in the released model."""
        if kind == CONTINUOUS:
            return self.continuous_encoder(self._with_reward(observations, previous_rewards))
        if kind == DISCRETE:
            if self.config.discrete_encoder == "cells":
                embedded = self.cell_encoder(observations)
                return torch.cat([embedded, previous_rewards[..., None].to(embedded.dtype)], dim=-1)
            # Squeezing the 97 to 50,257 embeddings once and looking the results up equals squeezing every token of
            # the batch, at a hundredth of the arithmetic.
            table = F.relu(self.multi_discrete_encoder["1"](self.transformer.wte.weight))
            flat = F.embedding(observations, table).flatten(2)
            embedded = self.multi_discrete_encoder["4"](flat)
            return torch.cat([embedded, previous_rewards[..., None].to(embedded.dtype)], dim=-1)
        return self.image_encoder(observations)

    def embed_actions(self, actions: Tensor) -> Tensor:
        """``(B, T)`` int64 or ``(B, T, size)`` float -> ``(B, T, hidden)``."""
        if actions.dtype == torch.int64:
            return self.transformer.wte(actions)
        return self.continuous_encoder(self._repeat(actions))

    def decode_actions(self, hidden: Tensor, discrete: bool, size: int) -> Tensor:
        """Hidden states at observations -> logits, or means, of the ``size`` action dimensions."""
        decoder = self.single_discrete_decoder if discrete else self.continuous_decoder
        return decoder(hidden)[..., :size]

    def forward(self, batch: StepBatch) -> tuple[Tensor, Tensor | None]:
        """Predictions before any slicing to a task's sizes.

        Returns:
            actions ``(B, T, vocab or max_continuous_size)``, and next observations ``(B, T, max_continuous_size)`` or
            ``(B, T, 4, 84, 84)``; None for discrete observations, which JAT does not predict, and if kappa is 0.
        """
        observations = self.embed_observations(batch.kind, batch.observations, batch.previous_rewards)
        actions = self.embed_actions(batch.actions)
        interleaved = torch.stack([observations, actions.to(observations.dtype)], dim=2).flatten(1, 2)
        hidden = self.transformer(interleaved)
        at_observations, at_actions = hidden[:, ::2], hidden[:, 1::2]
        discrete = batch.actions.dtype == torch.int64
        predicted_actions = (self.single_discrete_decoder if discrete else self.continuous_decoder)(at_observations)
        predicted_observations = None
        if self.config.observation_loss_coef > 0 and batch.kind != DISCRETE:
            decoder = self.continuous_decoder if batch.kind == CONTINUOUS else self.image_decoder
            predicted_observations = decoder(at_actions)
        return predicted_actions, predicted_observations

    def losses(self, batch: StepBatch) -> Losses:
        """Cross-entropy or mean squared error of actions and next observations, averaged over real time steps."""
        actions, observations = self(batch)
        mask = batch.mask
        if batch.actions.dtype == torch.int64:
            action_loss = F.cross_entropy(actions[mask].float(), batch.actions[mask])
        else:
            action_loss = _masked_mse(actions, self._repeat(batch.actions), mask)
        observation_loss = torch.zeros((), device=mask.device)
        if observations is not None:
            target = batch.observations
            if batch.kind == CONTINUOUS:
                target = self._with_reward(target, batch.previous_rewards)
            observation_loss = _masked_mse(observations[:, :-1], target[:, 1:], mask[:, 1:])
        config = self.config
        total = config.observation_loss_coef * observation_loss + config.action_loss_coef * action_loss
        return Losses(total, observation_loss, action_loss)

    def new_cache(self, num_slots: int) -> Tensor:
        """Keys and values of ``num_slots`` episodes: ``(layers, 2, slots, heads, positions, hidden / heads)``."""
        config = self.config
        head_size = config.hidden_size // config.num_heads
        shape = (config.num_layers, 2, num_slots, config.num_heads, config.max_positions, head_size)
        return torch.zeros(shape, device=self.transformer.wte.weight.device)

    def extend(self, embeddings: Tensor, cache: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        return self.transformer.extend(embeddings, cache, slots, positions)

    def _with_reward(self, observations: Tensor, previous_rewards: Tensor) -> Tensor:
        return self._repeat(torch.cat([observations, previous_rewards[..., None]], dim=-1))

    def _repeat(self, x: Tensor) -> Tensor:
        """Repeat the last dimension cyclically up to ``max_continuous_size``."""
        size, wanted = x.shape[-1], self.config.max_continuous_size
        if size > wanted:
            raise ValueError(f"a vector of {size} does not fit max_continuous_size {wanted}")
        return x[..., torch.arange(wanted, device=x.device) % size]


def _masked_mse(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    per_step = F.mse_loss(predicted.float(), target.float(), reduction="none").flatten(2).mean(dim=2)
    return (per_step * mask).sum() / mask.sum().clamp(min=1)
