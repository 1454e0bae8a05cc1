"""Action heads: they turn network outputs into a training loss and into actions.

Outputs for continuous actions are scaled so that an action's bounds are -1 and 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


class Head(ABC):
    """Interprets the outputs of a decoder as an action distribution.

    Attributes:
        num_outputs: outputs that the decoder must have.
        num_draws: random numbers needed to sample one action.
    """

    num_outputs: int
    num_draws: int

    @abstractmethod
    def loss(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Return the loss per step ``(n,)``, given outputs ``(n, num_outputs)`` and the expert's actions ``(n,)`` or
        ``(n, size)``."""

    @abstractmethod
    def choose(self, outputs: Tensor, draws: Tensor, temperature: float = 1.0) -> Tensor:
        """Return actions ``(n,)`` or ``(n, size)``; samples are a function of ``draws`` ``(n, num_draws)`` in (0,
        1)."""


class Categorical(Head):
    """One of ``size`` legal actions; a temperature of 0 selects the mode."""

    def __init__(self, size: int) -> None:
        self.num_outputs, self.num_draws = size, 1

    def loss(self, outputs: Tensor, actions: Tensor) -> Tensor:
        return F.cross_entropy(outputs.float(), actions, reduction="none")

    def choose(self, outputs: Tensor, draws: Tensor, temperature: float = 1.0) -> Tensor:
        if temperature == 0:
            return outputs.argmax(dim=-1)
        return _pick(outputs / temperature, draws[:, 0])


@dataclass(frozen=True)
class Scale:
    """Converts actions between their bounds and -1 to 1."""

    low: float = -1.0
    high: float = 1.0

    def to_unit(self, actions: Tensor) -> Tensor:
        return (actions.float() - (self.high + self.low) / 2) * (2 / (self.high - self.low))

    def from_unit(self, values: Tensor) -> Tensor:
        return (self.high + self.low) / 2 + values.float() * ((self.high - self.low) / 2)


class Squared(Head):
    """Predicts the mean action by squared error."""

    def __init__(self, size: int, scale: Scale) -> None:
        self.num_outputs, self.num_draws, self.scale = size, 0, scale

    def loss(self, outputs: Tensor, actions: Tensor) -> Tensor:
        return F.mse_loss(outputs.float(), self.scale.to_unit(actions), reduction="none").mean(dim=-1)

    def choose(self, outputs: Tensor, draws: Tensor, temperature: float = 1.0) -> Tensor:
        return self.scale.from_unit(outputs)


def _pick(logits: Tensor, draws: Tensor) -> Tensor:
    """Sample an index from ``softmax(logits)`` along the last dimension, using one number in (0, 1) each."""
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
    return (cumulative < draws[..., None] * cumulative[..., -1:]).sum(dim=-1).clamp(max=logits.shape[-1] - 1)
