"""The JAT network: GPT-Neo over interleaved observation and action embeddings (arXiv 2402.09844, section 4).

Each time step is two positions: [observation with the previous reward, action]. The hidden state at an observation
predicts the action, the one at an action predicts the next observation. A text has one position per token, preceded by
one per patch of its image if it has one, and every hidden state at a token predicts the next token. Parameter names and
shapes are those of the released model, whose outputs ``tests/trainer/networks/test_jat_model.py`` reproduces;
``docs/jat.md`` lists which of its peculiarities are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.envs.babyai import NUM_INTEGERS
from pipeline.envs.task import CONTINUOUS, DISCRETE
from pipeline.errors import UserError
from trainer.batch import Batch, Losses, StepBatch, TextBatch
from trainer.config import ModelConfig
from trainer.networks.encoders import CellEncoder, ImageDecoder, ImageEncoder, PatchEncoder, PerStep
from trainer.networks.gpt_neo import Transformer, width_of
from trainer.networks.heads import Categorical, Head, Scale, Squared
from trainer.networks.layout import TaskLayout
from trainer.networks.model import Model, RolloutCache


class JatModel(Model):
    """Encoders, trunk and decoders."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.config = config
        self.transformer = Transformer(config)
        self.continuous_encoder = nn.Linear(config.max_continuous_size, hidden)
        # Numbered like the released nn.Sequential, where element 0 is the shared token embedding.
        self.multi_discrete_encoder = nn.ModuleDict(
            {
                "1": nn.Linear(hidden, config.token_size),
                "4": nn.Linear(config.max_discrete_size * config.token_size, hidden - 1),
            }
        )
        if config.discrete_encoder == "cells":
            self.cell_encoder = CellEncoder(
                config.vocab_size, config.max_discrete_size - NUM_INTEGERS, config.cell_size, hidden - 1
            )
        self.image_encoder = PerStep(ImageEncoder(hidden))
        self.single_discrete_decoder = nn.Linear(hidden, config.vocab_size, bias=False)
        self.continuous_decoder = nn.Linear(hidden, config.max_continuous_size)
        self.image_decoder = PerStep(ImageDecoder(hidden))
        if config.picture_size:
            self.vit_encoder = PatchEncoder(hidden, config.patch_size)
        if config.idle_decoder:
            self.multi_discrete_decoder = nn.ModuleDict(
                {
                    "0": nn.Linear(hidden, config.max_discrete_size * config.token_size),
                    "3": nn.Linear(config.token_size, hidden),
                    "5": nn.Linear(hidden, 8, bias=False),
                }
            )
        self.apply(self._initialise)
        if config.discrete_encoder == "cells":
            self.cell_encoder.initialise()

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.transformer.h)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        """Initialise as GPT-Neo does: normal with standard deviation 0.02, zero biases."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def embed_observations(self, kind: str, observations: Tensor, previous_rewards: Tensor) -> Tensor:
        """``(B, T, ...)`` -> ``(B, T, hidden)``. Images include no reward, as in the released model."""
        if kind == CONTINUOUS:
            return self.continuous_encoder(self._with_reward(observations, previous_rewards))
        if kind == DISCRETE:
            if self.config.discrete_encoder == "cells":
                embedded = self.cell_encoder(observations)
                return torch.cat([embedded, previous_rewards[..., None].to(embedded.dtype)], dim=-1)
            squeeze = self.multi_discrete_encoder["1"]
            if observations.numel() < self.config.vocab_size:
                squeezed = F.relu(squeeze(self.transformer.wte(observations)))
            else:
                # Projecting the 97 to 50,257 embeddings once and looking up the results equals projecting every token
                # of the batch, at a hundredth of the arithmetic.
                squeezed = F.embedding(observations, F.relu(squeeze(self.transformer.wte.weight)))
            embedded = self.multi_discrete_encoder["4"](squeezed.flatten(2))
            return torch.cat([embedded, previous_rewards[..., None].to(embedded.dtype)], dim=-1)
        return self.image_encoder(observations)

    def embed_actions(self, actions: Tensor) -> Tensor:
        """``(B, T)`` int64 or ``(B, T, size)`` float -> ``(B, T, hidden)``."""
        if actions.dtype == torch.int64:
            return self.transformer.wte(actions)
        return self.continuous_encoder(self._repeat(actions))

    def embed_text(self, tokens: Tensor, pictures: Tensor | None = None) -> Tensor:
        """``(B, L)`` tokens and ``(B, 3, size, size)`` images -> ``(B, patches + L, hidden)``."""
        embedded = self.transformer.wte(tokens)
        if pictures is None:
            return embedded
        size = self.config.picture_size
        if tuple(pictures.shape[1:]) != (3, size, size):
            raise ValueError(f"pictures of {tuple(pictures.shape[1:])} do not fit picture_size {size}")
        return torch.cat([self.vit_encoder(pictures).to(embedded.dtype), embedded], dim=1)

    def decode_tokens(self, hidden: Tensor) -> Tensor:
        """Hidden states at tokens -> logits of the next token, ``(..., vocab)``."""
        return self.single_discrete_decoder(hidden)

    def decode_actions(self, hidden: Tensor, discrete: bool, size: int) -> Tensor:
        """Hidden states at observations -> logits, or means, of the ``size`` action dimensions."""
        decoder = self.single_discrete_decoder if discrete else self.continuous_decoder
        bias = None if decoder.bias is None else decoder.bias[:size]
        return F.linear(hidden, decoder.weight[:size], bias)  # of 50,257 logits, 18 at most are of actions

    def forward(self, batch: StepBatch, hide_padding: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return the predictions before they are sliced to a task's sizes.

        Args:
            batch: B windows.
            hide_padding: make the predictions at padding equal those of the released code; they are never used.

        Returns:
            actions ``(B, T, vocab or max_continuous_size)``, and next observations ``(B, T, max_continuous_size)`` or
                ``(B, T, 4, 84, 84)``; None for discrete observations, which JAT does not predict, and if kappa is 0.
        """
        observations = self.embed_observations(batch.kind, batch.observations, batch.previous_rewards)
        actions = self.embed_actions(batch.actions)
        interleaved = torch.stack([observations, actions.to(observations.dtype)], dim=2).flatten(1, 2)
        real = batch.mask.repeat_interleave(2, dim=1) if hide_padding else None
        hidden = self.transformer(interleaved, real)
        at_observations, at_actions = hidden[:, ::2], hidden[:, 1::2]
        discrete = batch.actions.dtype == torch.int64
        predicted_actions = (self.single_discrete_decoder if discrete else self.continuous_decoder)(at_observations)
        predicted_observations = None
        if self.config.observation_loss_coef > 0 and batch.kind != DISCRETE:
            decoder = self.continuous_decoder if batch.kind == CONTINUOUS else self.image_decoder
            predicted_observations = decoder(at_actions)
        return predicted_actions, predicted_observations

    def text_logits(self, batch: TextBatch, hide_padding: bool = False) -> Tensor:
        """Return the logits of the next token at every patch and token, ``(B, patches + L, vocab)``; see
        ``forward``."""
        embedded = self.embed_text(batch.tokens, batch.pictures)
        real = F.pad(batch.mask, (embedded.shape[1] - batch.mask.shape[1], 0), value=True) if hide_padding else None
        return self.decode_tokens(self.transformer(embedded, real))

    def losses(self, batch: Batch) -> Losses:
        """Cross-entropy of tokens or discrete actions, or mean squared error of continuous actions and of next
        observations.

        Each is averaged over the real time steps or tokens. The first token of a text is not predicted, not even after
        an image.
        """
        if isinstance(batch, TextBatch):
            return self._text_losses(batch)
        actions, observations = self(batch)
        mask = batch.mask
        if batch.actions.dtype == torch.int64:
            logits, targets = actions[batch.learned].float(), batch.targets
            action_loss = F.cross_entropy(logits, targets) if len(targets) else logits.sum()  # maybe without labels
        else:
            wanted = batch.actions if batch.labels is None else batch.labels
            action_loss = _masked_mse(actions, self._repeat(wanted), batch.learned)
        observation_loss = torch.zeros((), device=mask.device)
        if observations is not None:
            target = batch.observations
            if batch.kind == CONTINUOUS:
                target = self._with_reward(target, batch.previous_rewards)
            observation_loss = _masked_mse(observations[:, :-1], target[:, 1:], mask[:, 1:])
        config = self.config
        total = config.observation_loss_coef * observation_loss + config.action_loss_coef * action_loss
        return Losses(total, observation_loss, action_loss)

    def _text_losses(self, batch: TextBatch) -> Losses:
        hidden = self.transformer(self.embed_text(batch.tokens, batch.pictures))
        targets = batch.mask[:, 1:]
        # The vocabulary is large, so only the positions that enter the loss are decoded.
        logits = self.decode_tokens(hidden[:, -batch.tokens.shape[1] : -1][targets])
        summed = F.cross_entropy(logits.float(), batch.tokens[:, 1:][targets], reduction="sum")
        loss = summed / targets.sum().clamp(min=1)
        return Losses(loss, torch.zeros_like(loss), loss)

    def head(self, layout: TaskLayout) -> Head:
        """Return the head. The released model regresses unscaled actions, whatever their bounds."""
        size = layout.action_size
        return Categorical(size) if layout.action == "discrete" else Squared(size, Scale())

    def new_memory(self, tasks: Sequence[int], layout: TaskLayout, context_steps: int) -> RolloutCache:
        if 2 * context_steps > self.config.max_positions:
            raise UserError(
                f"--contexts of {context_steps} needs {2 * context_steps} positions; the checkpoint has "
                f"{self.config.max_positions}"
            )
        return JatMemory(self, layout, len(tasks), context_steps)

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


class JatMemory(RolloutCache):
    """KV cache of past positions, two per time step; a step computes two positions whatever the episode's length.

    The position of an action is deferred until the next observation, and both are computed together, which is faster
    than one by one. Position embeddings are learned, so the oldest ones cannot simply be evicted: when the context is
    full, its newer half is recomputed at the first positions and the episode continues. The cost is amortised over half
    a context of steps.
    """

    def __init__(self, model: JatModel, layout: TaskLayout, num_slots: int, context_steps: int) -> None:
        self._model, self._layout, self.num_slots = model, layout, num_slots
        self._max_positions = 2 * context_steps
        self._kept = self._max_positions // 4 * 2  # positions kept when the context is full; whole time steps
        self._cache = model.transformer.new_cache(num_slots, self._max_positions)
        # Embeddings of all positions, to rebuild the cache when it is full; the last one may not be in the cache yet.
        self._past = torch.zeros(num_slots, self._max_positions, model.config.hidden_size, device=self._cache.device)
        self._positions = torch.zeros(num_slots, dtype=torch.int64)
        self._cached = torch.zeros(num_slots, dtype=torch.int64)

    def forget(self, slots: Sequence[int]) -> None:
        self._positions[list(slots)] = 0
        self._cached[list(slots)] = 0
        self._cache[:, :, list(slots)] = 0  # attention weight zero does not mask non-finite values

    def paces(self, slots: Sequence[int]) -> list[tuple[int, int]]:
        """Return the number of positions that the next step computes and the number that it reads, per slot."""
        return [
            (position + 1 - cached, width_of(position + 1, self._max_positions))
            for position, cached in map(self._before_next, slots)
        ]

    def stand_in(self, slots: Sequence[int], like: int) -> None:
        self._positions[list(slots)], self._cached[list(slots)] = self._before_next(like)

    def _before_next(self, slot: int) -> tuple[int, int]:
        """Return the number of positions of a slot, and of those in the cache, when the next step begins; see
        ``_make_room``."""
        position = int(self._positions[slot])
        is_full = position + 2 > self._max_positions
        return (self._kept, self._kept) if is_full else (position, int(self._cached[slot]))

    def observe(
        self, slots: Tensor, observations: Tensor, previous_rewards: Tensor, to_go: Tensor | None = None
    ) -> Tensor:
        self._make_room(slots)
        embedded = self._model.embed_observations(
            self._layout.observation, observations[:, None], previous_rewards[:, None]
        )
        self._append(slots, embedded[:, 0])
        hidden = self._catch_up(slots)
        return self._model.decode_actions(hidden, self._layout.action == "discrete", self._layout.action_size)

    def act(self, slots: Tensor, actions: Tensor) -> None:
        self._append(slots, self._model.embed_actions(actions[:, None])[:, 0])

    def _append(self, slots: Tensor, embeddings: Tensor) -> None:
        self._past[slots, self._positions[slots]] = embeddings.to(self._past.dtype)
        self._positions[slots] += 1

    def _catch_up(self, slots: Tensor) -> Tensor:
        """Compute the positions that are not in the cache yet; return hidden states at the last positions, ``(n,
        hidden)``."""
        missing = self._positions[slots] - self._cached[slots]
        hidden = torch.empty(len(slots), self._past.shape[2], device=self._past.device)
        for count in missing.unique().tolist():
            rows = (missing == count).nonzero()[:, 0]
            chosen = slots[rows]
            positions = self._cached[chosen][:, None] + torch.arange(count)
            new = self._past[chosen[:, None], positions]
            hidden[rows] = self._model.transformer.extend(new, self._cache, chosen, positions)[:, -1].to(hidden.dtype)
        self._cached[slots] = self._positions[slots]
        return hidden

    def _make_room(self, slots: Tensor) -> None:
        """Evict the older half of the context in slots without room for another time step.

        Slots are recomputed one by one: each needs many positions, and no result may depend on how many slots are full
        at the same time.
        """
        for slot in slots[self._positions[slots] + 2 > self._max_positions].tolist():
            self._past[slot, : self._kept] = self._past[slot, self._max_positions - self._kept :].clone()
            positions = torch.arange(self._kept)[None]
            newer = self._past[slot : slot + 1, : self._kept]
            self._model.transformer.extend(newer, self._cache, torch.tensor([slot]), positions)
            self._positions[slot] = self._cached[slot] = self._kept
