"""Hidden states to actions: what is minimised in training, and what can be drawn from when acting.

The numbers for continuous actions are on the scale where an action's bounds are -1 and 1. ``Squared`` gives one
answer, the mean of all that the expert might do; ``Bins`` and ``ActionMixture`` can say "left or right, not the
middle".
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config import ActionSelection

# Of a mixture's components: below it, the density of an action that saturates would grow without bound.
MIN_LOG_STD = -4.0


class Head(ABC):
    """How the numbers that a decoder gives for an action are to be read.

    Attributes:
        num_outputs: numbers the decoder must give.
        num_draws: random numbers that sampling one action takes.
    """

    num_outputs: int
    num_draws: int

    @abstractmethod
    def loss(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Per step ``(n,)``, of outputs ``(n, num_outputs)`` and the expert's actions ``(n,)`` or ``(n, size)``."""

    @abstractmethod
    def choose(self, outputs: Tensor, how: ActionSelection, draws: Tensor, temperature: float = 1.0) -> Tensor:
        """Actions ``(n,)`` or ``(n, size)``; sampled ones follow from ``draws`` ``(n, num_draws)`` in (0, 1)."""


class Categorical(Head):
    """One of ``size`` legal actions; a temperature of 0 takes the likeliest."""

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
    """Actions between their bounds <-> -1 to 1."""

    low: float = -1.0
    high: float = 1.0

    def to_unit(self, actions: Tensor) -> Tensor:
        return (actions.float() - (self.high + self.low) / 2) * (2 / (self.high - self.low))

    def from_unit(self, values: Tensor) -> Tensor:
        return (self.high + self.low) / 2 + values.float() * ((self.high - self.low) / 2)


class Squared(Head):
    """The mean action, by squared error."""

    def __init__(self, size: int, scale: Scale) -> None:
        self.num_outputs, self.num_draws, self.scale = size, 0, scale

    def loss(self, outputs: Tensor, actions: Tensor) -> Tensor:
        return F.mse_loss(outputs.float(), self.scale.to_unit(actions), reduction="none").mean(dim=-1)

    def choose(self, outputs: Tensor, how: ActionSelection, draws: Tensor, temperature: float = 1.0) -> Tensor:
        return self.scale.from_unit(outputs)


class Bins(Head):
    """Each dimension in equal bins from -1 to 1, the outer ones centred on the bounds that experts like to take."""

    def __init__(self, size: int, num_bins: int, scale: Scale) -> None:
        self.size, self.num_bins, self.scale = size, num_bins, scale
        self.num_outputs, self.num_draws = size * num_bins, size
        self.width = 2.0 / (num_bins - 1)

    def loss(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Cross-entropy with an action's weight shared between its two nearest centres, so nothing is rounded off."""
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
        """Negative log density per dimension."""
        logits, means, log_stds = self._split(outputs)
        errors = (self.scale.to_unit(actions)[:, None] - means) * torch.exp(-log_stds)
        log_densities = (-0.5 * errors.square() - log_stds - 0.5 * math.log(2 * math.pi)).sum(dim=-1)
        return -torch.logsumexp(logits.log_softmax(dim=-1) + log_densities, dim=-1) / self.size

    def choose(self, outputs: Tensor, how: ActionSelection, draws: Tensor, temperature: float = 1.0) -> Tensor:
        """``likeliest`` is the mean of the component with the most weight."""
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
        """Logits ``(n, components)``, means and logarithms of standard deviations ``(n, components, size)``."""
        count, size = self.num_components, self.size
        logits, means, log_stds = outputs.float().split([count, count * size, count * size], dim=-1)
        log_stds = MIN_LOG_STD + F.softplus(log_stds - MIN_LOG_STD)
        return logits, means.unflatten(-1, (count, size)), log_stds.unflatten(-1, (count, size))


def _pick(logits: Tensor, draws: Tensor) -> Tensor:
    """Index drawn from ``softmax(logits)`` along the last dimension by a number in (0, 1) each."""
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
    return (cumulative < draws[..., None] * cumulative[..., -1:]).sum(dim=-1).clamp(max=logits.shape[-1] - 1)
