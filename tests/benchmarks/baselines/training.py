"""The baseline of ``python -m tests.benchmarks.train``: JAT's way of loading and training in straightforward code.

Loading: ``datasets.map`` over Python lists cuts episodes into windows and pads them to 256 steps; a batch is built from
the returned rows. Training: GPT-Neo with materialised attention scores, a separate projection for every token, rows of
256 steps whatever their length, everything in float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.envs.task import DISCRETE, Task
from pipeline.storage.observations import observation_column
from pipeline.storage.schema import REWARDS, TEXTS, action_column
from trainer.batch import StepBatch
from trainer.config import ModelConfig
from trainer.data.tokenizer import encode
from trainer.networks.gpt_neo import SelfAttention
from trainer.networks.jat_model import JatModel

WINDOW_STEPS = 256


def padded_windows(dataset: Path, task: Task, tokenizer: Any, num_tokens: int, cache: Path) -> Any:
    """Return the training split of a task as rows of 256 steps with a mask, created by ``datasets.map``."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    episodes = load_dataset(str(dataset), task.name, split="train", cache_dir=str(cache))
    names = [observation_column(task), action_column(task), REWARDS]

    def cut_and_pad(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        made: dict[str, list[Any]] = {name: [] for name in (*names, "mask")}
        for row in range(len(rows[REWARDS])):
            columns = {name: list(rows[name][row]) for name in names}
            if task.has_text:
                tokens = encode(tokenizer, rows[TEXTS][row], num_tokens).tolist()
                pairs = zip(columns[names[0]], tokens, strict=True)
                columns[names[0]] = [[*numbers, *ids] for numbers, ids in pairs]
            for begin in range(0, len(columns[REWARDS]), WINDOW_STEPS):
                for name, values in columns.items():
                    window = values[begin : begin + WINDOW_STEPS]
                    missing = WINDOW_STEPS - len(window)
                    zero = [0] * len(window[0]) if isinstance(window[0], list) else 0
                    made[name].append(window + [zero] * missing)
                made["mask"].append([True] * (WINDOW_STEPS - missing) + [False] * missing)
        return made

    return episodes.map(cut_and_pad, batched=True, batch_size=20, remove_columns=episodes.column_names)


def read_batches(rows: Any, batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Yield tensors of ``batch_size`` rows of ``padded_windows``, as a collator builds them from Python lists."""
    for begin in range(0, len(rows), batch_size):
        chosen = [rows[i] for i in range(begin, min(begin + batch_size, len(rows)))]
        yield {name: torch.tensor([row[name] for row in chosen]) for name in chosen[0]}


def pad_rows(parts: Sequence[StepBatch], most: int) -> StepBatch:
    """Return at most ``most`` windows of a batch, evenly spaced, as rows of 256 steps."""
    padded: list[dict[str, Any]] = []
    for part in parts:
        missing = WINDOW_STEPS - part.mask.shape[1]
        tensors: dict[str, Any] = {
            field.name: _pad(value, missing) if value.ndim > 1 else value
            for field in dataclasses.fields(part)
            if isinstance(value := getattr(part, field.name), Tensor)
        }
        padded.append(tensors)
    whole: dict[str, Any] = {name: torch.cat([tensors[name] for tensors in padded]) for name in padded[0]}
    stride = -(-len(whole["mask"]) // most)
    return dataclasses.replace(parts[0], **{name: values[::stride] for name, values in whole.items()})


def _pad(values: Tensor, missing: int) -> Tensor:
    """Append ``missing`` steps of zeros to ``(B, T, ...)``."""
    return F.pad(values, (0, 0) * (values.ndim - 2) + (0, missing))


class EagerAttention(SelfAttention):
    """The same attention with materialised scores and weights."""

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        length = x.shape[1]
        query, key, value = self._split(self.q_proj(x)), self._split(self.k_proj(x)), self._split(self.v_proj(x))
        positions = torch.arange(length, device=x.device)
        visible = self._visible(positions[:, None], positions[None, :])
        scores = query.float() @ key.float().transpose(-1, -2)
        lowest = torch.finfo(scores.dtype).min
        scores = torch.where(visible, scores, lowest)
        if real is not None:
            scores = scores + torch.where(real[:, None, None, :], 0.0, lowest)
        mixed = torch.softmax(scores, dim=-1).to(value.dtype) @ value
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class PlainJat(JatModel):
    """JAT's network without optimisations; same parameters, same numbers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        for module in list(self.modules()):
            for name, child in list(module.named_children()):
                if type(child) is SelfAttention:
                    setattr(module, name, _eager(child, config))

    def embed_observations(self, kind: str, observations: Tensor, previous_rewards: Tensor) -> Tensor:
        if kind != DISCRETE:
            return super().embed_observations(kind, observations, previous_rewards)
        squeezed = F.relu(self.multi_discrete_encoder["1"](self.transformer.wte(observations)))
        embedded = self.multi_discrete_encoder["4"](squeezed.flatten(2))
        return torch.cat([embedded, previous_rewards[..., None]], dim=-1)


def _eager(attention: SelfAttention, config: ModelConfig) -> nn.Module:
    eager = EagerAttention(config, is_local=attention.window_size is not None)
    eager.load_state_dict(attention.state_dict())
    return eager
