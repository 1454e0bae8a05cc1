"""What training and the agent ask of a network: one batch type in, losses out, and acting step by step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from trainer.config import ModelConfig


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
class TextBatch:
    """B texts of at most L tokens, shorter ones padded at their end, each after a picture if there are any.

    Attributes:
        tokens: ``(B, L)`` int64.
        mask: ``(B, L)`` bool, False on padding.
        pictures: ``(B, 3, size, size)`` float, normalised as ``trainer.text_data.prepare_picture`` does; or None.
    """

    tokens: Tensor
    mask: Tensor
    pictures: Tensor | None = None


Batch = StepBatch | TextBatch


@dataclass(frozen=True)
class Losses:
    """Scalars. ``total`` is what is minimised; ``observation`` is zero where observations are not predicted.

    Of texts, ``action`` is the loss of the next token.
    """

    total: Tensor
    observation: Tensor
    action: Tensor


class Model(nn.Module, ABC):
    """A network that can be trained on step batches and act.

    Training asks for ``losses``. The agent keeps one cache for all its episodes and extends it position by position:
    it embeds an observation, extends, decodes an action from the hidden state, embeds that action and extends again.
    """

    config: ModelConfig

    @abstractmethod
    def losses(self, batch: Batch) -> Losses:
        """Losses of one batch, averaged over its real (not padded) time steps or tokens."""

    @abstractmethod
    def embed_observations(self, kind: str, observations: Tensor, previous_rewards: Tensor) -> Tensor:
        """``(B, T, ...)`` as in ``StepBatch`` -> ``(B, T, hidden)``."""

    @abstractmethod
    def embed_actions(self, actions: Tensor) -> Tensor:
        """``(B, T)`` int64 or ``(B, T, size)`` float -> ``(B, T, hidden)``."""

    @abstractmethod
    def decode_actions(self, hidden: Tensor, discrete: bool, size: int) -> Tensor:
        """Hidden states at observations -> logits, or means, of the ``size`` action dimensions."""

    @abstractmethod
    def new_cache(self, num_slots: int) -> Tensor:
        """An empty cache for ``num_slots`` episodes."""

    @abstractmethod
    def extend(self, embeddings: Tensor, cache: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Hidden states ``(n, k, hidden)`` of k new positions in each of n slots; the cache is updated in place.

        Args:
            embeddings: ``(n, k, hidden)``.
            cache: from ``new_cache``.
            slots: ``(n,)`` rows of the cache.
            positions: ``(n, k)`` positions of the new entries.
        """
