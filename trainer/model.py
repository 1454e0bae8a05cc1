"""The JAT network: GPT-Neo over interleaved observation and action embeddings (arXiv 2402.09844, section 4).

Each time step is two positions: [observation with the previous reward, action]. The hidden state at an observation
predicts the action, the one at an action predicts the next observation. Parameter names and shapes are those of the
released model, whose numbers ``tests/trainer/test_model.py`` reproduces.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.tasks import CONTINUOUS, DISCRETE
from trainer.config import ModelConfig


class SelfAttention(nn.Module):
    """GPT-Neo's attention: causal, no scaling of the scores, no bias in the projections of query, key and value."""

    def __init__(self, config: ModelConfig, is_local: bool) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.window_size = config.window_size if is_local else None
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.q_proj = nn.Linear(size, size, bias=False)
        self.out_proj = nn.Linear(size, size)

    def _split(self, x: Tensor) -> Tensor:
        batch, length, size = x.shape
        return x.view(batch, length, self.num_heads, size // self.num_heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, P, hidden)`` -> the same shape."""
        length = x.shape[1]
        query, key, value = self._split(self.q_proj(x)), self._split(self.k_proj(x)), self._split(self.v_proj(x))
        mask = None
        if self.window_size is not None and length > self.window_size:
            positions = torch.arange(length, device=x.device)
            mask = self._visible(positions[:, None], positions[None, :])
        mixed = _attend(query, key, value, mask, is_causal=mask is None)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def extend(self, x: Tensor, cache: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Attend from k new positions per slot to everything before them, keeping keys and values in ``cache``.

        Args:
            x: ``(n, k, hidden)``.
            cache: ``(2, slots, heads, positions, hidden / heads)``, updated in place.
            slots: ``(n,)`` rows of the cache.
            positions: ``(n, k)`` positions of the new entries.
        """
        query = self._split(self.q_proj(x))
        for kind, new in enumerate((self.k_proj(x), self.v_proj(x))):
            cache[kind, slots[:, None], :, positions] = self._split(new).transpose(1, 2)
        past = cache[:, slots, :, : int(positions.max()) + 1]
        key_positions = torch.arange(past.shape[3], device=x.device)
        mask = self._visible(positions[:, None, :, None], key_positions)
        mixed = _attend(query, past[0], past[1], mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _visible(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        visible = key_positions <= query_positions
        if self.window_size is not None:
            visible = visible & (query_positions - key_positions < self.window_size)
        return visible


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """Attention where ``mask`` is True, to the past, or to everything; ``(B, heads, P, size)`` each.

    On a CPU always in float32, as GPT-Neo computes its scores: torch's CPU kernel takes seven times as long in
    bfloat16 to go backwards through short sequences.
    """
    on_cpu = query.device.type == "cpu"
    if on_cpu:
        query, key, value = query.float(), key.float(), value.float()
    with torch.autocast(query.device.type, enabled=not on_cpu and torch.is_autocast_enabled(query.device.type)):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal, scale=scale)


class Attention(nn.Module):
    """Only there for the released parameter names (``attn.attention.*``)."""

    def __init__(self, config: ModelConfig, is_local: bool) -> None:
        super().__init__()
        self.attention = SelfAttention(config, is_local)


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.hidden_size, 4 * config.hidden_size)
        self.c_proj = nn.Linear(4 * config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config: ModelConfig, is_local: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size)
        self.attn = Attention(config, is_local)
        self.ln_2 = nn.LayerNorm(config.hidden_size)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn.attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))

    def extend(self, x: Tensor, cache: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        x = x + self.attn.attention.extend(self.ln_1(x), cache, slots, positions)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """The trunk: embeddings in, hidden states out, both ``(B, P, hidden)``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(config.max_positions, config.hidden_size)
        self.h = nn.ModuleList(Block(config, is_local=layer % 2 == 1) for layer in range(config.num_layers))
        self.ln_f = nn.LayerNorm(config.hidden_size)

    def forward(self, embeddings: Tensor) -> Tensor:
        x = embeddings + self.wpe.weight[: embeddings.shape[1]]
        for block in self.h:
            x = block(x)
        return self.ln_f(x)

    def extend(self, embeddings: Tensor, cache: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """As ``forward`` for k new positions ``(n, k)`` of some slots; see ``new_cache``."""
        x = embeddings + self.wpe(positions)
        for layer, block in enumerate(cast(Iterable[Block], self.h)):
            x = block.extend(x, cache[layer], slots, positions)
        return self.ln_f(x)


class ChannelGate(nn.Module):
    """Squeeze-and-excitation: scales each channel by a function of all channels' means (arXiv 1709.01507)."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.fc = nn.ModuleDict(
            {
                "0": nn.Linear(num_channels, num_channels // 8, bias=False),
                "2": nn.Linear(num_channels // 8, num_channels, bias=False),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        gates = torch.sigmoid(self.fc["2"](F.relu(self.fc["0"](x.mean(dim=(2, 3))))))
        return x * gates[:, :, None, None]


class ImageEncoder(nn.Module):
    """``(B, 4, 84, 84)`` -> ``(B, hidden)``."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 32, kernel_size=3, stride=2, padding=1)
        self.att1 = ChannelGate(32)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3, stride=2, padding=1)
        self.att2 = ChannelGate(64)
        self.conv3 = nn.Conv2d(64, 128, kernel_size=3, stride=2, padding=1)
        self.att3 = ChannelGate(128)
        self.fc = nn.Linear(128 * 11 * 11, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.att1(F.leaky_relu(F.instance_norm(self.conv1(x))))
        x = self.att2(F.leaky_relu(F.instance_norm(self.conv2(x))))
        x = self.att3(F.leaky_relu(F.instance_norm(self.conv3(x))))
        return self.fc(x.flatten(1))


class ImageDecoder(nn.Module):
    """``(B, hidden)`` -> ``(B, 4, 84, 84)`` in [-1, 1]."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.fc = nn.Linear(hidden_size, 128 * 11 * 11)
        self.deconv1 = nn.ConvTranspose2d(128, 64, kernel_size=3, stride=2, padding=1, output_padding=1)
        self.att1 = ChannelGate(64)
        self.deconv2 = nn.ConvTranspose2d(64, 32, kernel_size=3, stride=2, padding=1, output_padding=1)
        self.att2 = ChannelGate(32)
        self.deconv3 = nn.ConvTranspose2d(32, 4, kernel_size=3, stride=2, padding=1, output_padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x).view(-1, 128, 11, 11)
        x = F.leaky_relu(F.instance_norm(self.deconv1(x)))
        x = self.att1(F.interpolate(x, size=(21, 21)))  # 22 x 22 before
        x = self.att2(F.leaky_relu(F.instance_norm(self.deconv2(x))))
        return torch.tanh(self.deconv3(x))


class PerStep(nn.Module):
    """Applies a module made for ``(B, ...)`` to ``(B, T, ...)``; its name is in the released parameter names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class CellEncoder(nn.Module):
    """Direction, 7 x 7 x 3 view and mission -> one embedding; the mission modulates every cell on the way.

    Not JAT's: its flat encoder has to learn "this object is the one named" separately for each of the 49 cells, here
    the weights are shared by all cells. The modulation is BabyAI's own (FiLM, arXiv 1709.07871, as in arXiv
    1810.08272). ``(B, T, 148 + text tokens)`` int64 -> ``(B, T, out_size)``.
    """

    NUM_VALUES = 16  # more than any integer of a cell
    FLAT_SIZE = 16

    def __init__(self, config: ModelConfig, out_size: int) -> None:
        super().__init__()
        size, num_text = config.cell_size, config.max_discrete_size - 148
        self.cell_values = nn.Parameter(torch.empty(3, self.NUM_VALUES, size))
        self.words = nn.Embedding(config.vocab_size, size)
        self.mission = nn.Linear(num_text * size, 2 * size)
        self.modulation = nn.ModuleList(nn.Linear(2 * size, 4 * size) for _ in range(2))
        self.widen = nn.ModuleList(nn.Linear(size, 2 * size) for _ in range(2))
        self.narrow = nn.ModuleList(nn.Linear(2 * size, size) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(2))
        self.squeeze = nn.Linear(size, self.FLAT_SIZE)
        self.flat = nn.Linear(49 * self.FLAT_SIZE + 2 * size, out_size)
        self.direction = nn.Embedding(4, out_size)

    def forward(self, ids: Tensor) -> Tensor:
        steps = ids.flatten(0, 1)
        mission = F.relu(self.mission(self.words(steps[:, 148:]).flatten(1)))
        cells = self._embed_cells(steps[:, 1:148].view(-1, 49, 3))
        for modulation, norm, widen, narrow in zip(self.modulation, self.norms, self.widen, self.narrow, strict=True):
            scale, shift = modulation(mission)[:, None].chunk(2, dim=-1)
            cells = cells + narrow(F.relu(widen(norm(cells)) * (1 + scale) + shift))
        flat = F.relu(self.squeeze(cells)).flatten(1)
        embedded = self.flat(torch.cat([flat, mission], dim=1)) + self.direction(steps[:, 0])
        return embedded.unflatten(0, ids.shape[:2])

    def initialise(self) -> None:
        """Unit scale throughout; at GPT-Neo's 0.02 the modulation would start too weak to learn from."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        nn.init.normal_(self.cell_values, std=3**-0.5)
        nn.init.normal_(self.words.weight, std=1.0)

    def _embed_cells(self, values: Tensor) -> Tensor:
        """``(n, 49, 3)`` -> ``(n, 49, size)``: the sum of the three integers' embeddings.

        Summing once per combination and looking the sums up moves a third of the memory of summing per cell.
        """
        kind, colour, state = self.cell_values
        table = (kind[:, None, None] + colour[:, None] + state).flatten(0, 2)
        combination = (values[..., 0] * self.NUM_VALUES + values[..., 1]) * self.NUM_VALUES + values[..., 2]
        return F.embedding(combination, table)


@dataclass(frozen=True)
class StepBatch:
    """B windows of T time steps of one task, shorter ones padded at their end.

    Attributes:
        kind: the task's main observation key.
        observations: continuous ``(B, T, size)`` float; discrete ``(B, T, integers + text tokens)`` int64; image
            ``(B, T, 4, 84, 84)`` float in [-1, 1].
        previous_rewards: ``(B, T)``; what the action before each step earned.
        actions: ``(B, T)`` int64 or ``(B, T, size)`` float.
        mask: ``(B, T)`` bool, False on padding.
    """

    kind: str
    observations: Tensor
    previous_rewards: Tensor
    actions: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Losses:
    """Scalars. ``total`` is what is minimised; ``observation`` is zero where observations are not predicted."""

    total: Tensor
    observation: Tensor
    action: Tensor


class JatModel(nn.Module):
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
