"""Action heads: they turn network outputs into a training loss and into actions.

Outputs for continuous actions are scaled so that an action's bounds are -1 and 1. ``Squared`` predicts a single value,
the mean of the expert's actions; ``Bins`` and ``ActionMixture`` can represent several modes ("left or right, not the
middle").
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config import ActionSelection

# For the components of a mixture: without a minimum, the density of a saturated action would grow without bound.
MIN_LOG_STD = -4.0


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
    def choose(self, outputs: Tensor, how: ActionSelection, draws: Tensor, temperature: float = 1.0) -> Tensor:
        """Return actions ``(n,)`` or ``(n, size)``; samples are a function of ``draws`` ``(n, num_draws)`` in (0,
        1)."""


class Categorical(Head):
    """One of ``size`` legal actions; a temperature of 0 selects the mode."""

    def __init__(self, size: int) -> None:
        self.num_outputs, self.num_draws = size, 1

    def loss(self, outputs: Tensor, actions: Tensor) -> Tensor:
        return F.cross_entropy(outputs.float(), actions, reduction="none")

    def choose(self, outputs: Tensor, how: ActionSelection, draws: Tensor, temperature: float = 1.0) -> Tensor:
        if how != "sample" or temperature == 0:
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

    def choose(self, outputs: Tensor, how: ActionSelection, draws: Tensor, temperature: float = 1.0) -> Tensor:
        return self.scale.from_unit(outputs)


class Bins(Head):
    """Each dimension is discretised into equal bins from -1 to 1; the outer bins are centred on the bounds, which
    experts often choose."""

    def __init__(self, size: int, num_bins: int, scale: Scale) -> None:
        self.size, self.num_bins, self.scale = size, num_bins, scale
        self.num_outputs, self.num_draws = size * num_bins, size
        self.width = 2.0 / (num_bins - 1)

    def loss(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Cross-entropy with an action's weight interpolated between its two nearest bin centres, so there is no
        rounding error."""
        log_p = self._logits(outputs).float().log_softmax(dim=-1)
        place = (self.scale.to_unit(actions).clamp(-1, 1) + 1) / self.width
        below = place.floor().clamp(max=self.num_bins - 2)
        above_weight = place - below
        index = below.long()[..., None]
        below_p, above_p = log_p.gather(-1, index)[..., 0], log_p.gather(-1, index + 1)[..., 0]
        return -((1 - above_weight) * below_p + above_weight * above_p).mean(dim=-1)

    def choose(self, outputs: Tensor, how: ActionSelection, draws: Tensor, temperature: float = 1.0) -> Tensor:
        logits = self._logits(outputs)
        if how == "mean":
            centres = torch.linspace(-1, 1, self.num_bins, device=outputs.device)
            return self.scale.from_unit((logits.float().softmax(dim=-1) * centres).sum(dim=-1))
        chosen = logits.argmax(dim=-1) if how == "likeliest" or temperature == 0 else _pick(logits / temperature, draws)
        return self.scale.from_unit(chosen * self.width - 1)

    def _logits(self, outputs: Tensor) -> Tensor:
        return outputs.unflatten(-1, (self.size, self.num_bins))


class ActionMixture(Head):
    """A mixture of Gaussians with diagonal covariance over the whole action."""

    def __init__(self, size: int, num_components: int, scale: Scale) -> None:
        self.size, self.num_components, self.scale = size, num_components, scale
        self.num_outputs, self.num_draws = num_components * (2 * size + 1), size + 1

    def loss(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Return the negative log density per dimension."""
        logits, means, log_stds = self._split(outputs)
        errors = (self.scale.to_unit(actions)[:, None] - means) * torch.exp(-log_stds)
        log_densities = (-0.5 * errors.square() - log_stds - 0.5 * math.log(2 * math.pi)).sum(dim=-1)
        return -torch.logsumexp(logits.log_softmax(dim=-1) + log_densities, dim=-1) / self.size

    def choose(self, outputs: Tensor, how: ActionSelection, draws: Tensor, temperature: float = 1.0) -> Tensor:
        """``likeliest`` selects the mean of the component with the largest weight."""
        logits, means, log_stds = self._split(outputs)
        if how == "mean":
            return self.scale.from_unit((logits.softmax(dim=-1)[..., None] * means).sum(dim=1))
        is_sampled = how == "sample" and temperature > 0
        component = _pick(logits / temperature, draws[:, 0]) if is_sampled else logits.argmax(dim=-1)
        rows = torch.arange(len(component), device=component.device)
        mean = means[rows, component]
        if not is_sampled:
            return self.scale.from_unit(mean)
        noise = log_stds[rows, component].exp() * math.sqrt(temperature) * torch.special.ndtri(draws[:, 1:])
        return self.scale.from_unit(mean + noise)

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split into logits ``(n, components)``, means and log standard deviations ``(n, components, size)``."""
        count, size = self.num_components, self.size
        logits, means, log_stds = outputs.float().split([count, count * size, count * size], dim=-1)
        log_stds = MIN_LOG_STD + F.softplus(log_stds - MIN_LOG_STD)
        return logits, means.unflatten(-1, (count, size)), log_stds.unflatten(-1, (count, size))


def _pick(logits: Tensor, draws: Tensor) -> Tensor:
    """Sample an index from ``softmax(logits)`` along the last dimension, using one number in (0, 1) each."""
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
    return (cumulative < draws[..., None] * cumulative[..., -1:]).sum(dim=-1).clamp(max=logits.shape[-1] - 1)
