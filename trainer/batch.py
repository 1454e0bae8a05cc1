"""Batches, which the data makes and networks take, and the losses that networks return."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StepBatch:
    """B windows of T time steps, shorter ones padded at the end.

    Attributes:
        kind: key of the tasks' main observation.
        observations: continuous ``(B, T, size)`` float; discrete ``(B, T, integers + text tokens)`` int64; image ``(B,
            T, 4, 84, 84)`` float in [-1, 1]. Text tokens of a vector follow its numbers; those of an image fill one
            more channel (``trainer.data.batches.text_plane``).
        previous_rewards: ``(B, T)``; reward of the action before each step.
        actions: ``(B, T)`` int64 or ``(B, T, size)`` float.
        mask: ``(B, T)`` bool, False on padding.
        labels: shape and dtype of ``actions``; what the network shall learn to do, if that is not what was executed.
        labelled: ``(B, T)`` bool, False on padding and where there is nothing to learn; given with ``labels``.
        to_go: ``(B, T)`` float; standardised return to go (``trainer/data/returns.py``), for objectives that use it.
        tasks: ``(B,)`` int64; the windows' tasks as indices in the network's list. They have the same sizes.
    """

    kind: str
    observations: Tensor
    previous_rewards: Tensor
    actions: Tensor
    mask: Tensor
    tasks: Tensor
    labels: Tensor | None = None
    labelled: Tensor | None = None
    to_go: Tensor | None = None

    @property
    def targets(self) -> Tensor:
        """``(n,)`` or ``(n, size)``: the actions to learn, of all steps that enter the loss."""
        return (self.actions if self.labels is None else self.labels)[self.learned]

    @property
    def learned(self) -> Tensor:
        """``(B, T)`` bool: the steps whose action enters the loss."""
        return self.mask if self.labelled is None else self.labelled


@dataclass(frozen=True)
class TextBatch:
    """B texts of at most L tokens, shorter ones padded at the end, each preceded by an image if there are any.

    Attributes:
        tokens: ``(B, L)`` int64.
        mask: ``(B, L)`` bool, False on padding.
        pictures: ``(B, 3, size, size)`` float, normalised as by ``trainer.data.text_data.prepare_picture``; or None.
    """

    tokens: Tensor
    mask: Tensor
    pictures: Tensor | None = None


Batch = StepBatch | TextBatch


@dataclass(frozen=True)
class Losses:
    """Scalar losses. ``total`` is minimised; ``observation`` is zero if observations are not predicted.

    For texts, ``action`` is the loss of the next token.
    """

    total: Tensor
    observation: Tensor
    action: Tensor
