"""What training and the agent ask of a network: one batch type in, losses out, and acting step by step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from pipeline.envs.task import IMAGE
from trainer.networks.heads import Head
from trainer.networks.layout import TaskLayout


@dataclass(frozen=True)
class StepBatch:
    """B windows of T time steps, shorter ones padded at their end.

    Attributes:
        kind: the tasks' main observation key.
        observations: continuous ``(B, T, size)`` float; discrete ``(B, T, integers + text tokens)`` int64; image
            ``(B, T, 4, 84, 84)`` float in [-1, 1].
        previous_rewards: ``(B, T)``; what the action before each step earned.
        actions: ``(B, T)`` int64 or ``(B, T, size)`` float.
        mask: ``(B, T)`` bool, False on padding.
        tasks: ``(B,)`` int64; the windows' tasks as indices in the network's list. They share sizes.
    """

    kind: str
    observations: Tensor
    previous_rewards: Tensor
    actions: Tensor
    mask: Tensor
    tasks: Tensor


@dataclass(frozen=True)
class TextBatch:
    """B texts of at most L tokens, shorter ones padded at their end, each after a picture if there are any.

    Attributes:
        tokens: ``(B, L)`` int64.
        mask: ``(B, L)`` bool, False on padding.
        pictures: ``(B, 3, size, size)`` float, normalised as ``trainer.data.text_data.prepare_picture`` does; or None.
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


class RolloutCache(ABC):
    """The pasts of some episodes in slots, as one network keeps them; all of tasks of one layout.

    Each time step is one ``observe`` and then one ``act``.

    Attributes:
        num_slots: how many there are.
    """

    num_slots: int

    def paces(self, slots: Sequence[int]) -> Sequence[Hashable]:
        """What decides the shape of the next step of each slot: only slots of one pace are computed together."""
        return [0] * len(slots)

    def stand_in(self, slots: Sequence[int], like: int) -> None:  # noqa: B027  most have no paces
        """Let idle slots be computed together with slot ``like``; what they hold is of no meaning."""

    @abstractmethod
    def forget(self, slots: Sequence[int]) -> None:
        """New episodes begin in ``slots``."""

    @abstractmethod
    def observe(self, slots: Tensor, observations: Tensor, previous_rewards: Tensor) -> Tensor:
        """What the network says of the next action: ``(n, outputs)``, for the layout's ``Head``.

        Args:
            slots: ``(n,)`` int64.
            observations: ``(n, ...)``, as in ``StepBatch`` without the time.
            previous_rewards: ``(n,)``.
        """

    @abstractmethod
    def act(self, slots: Tensor, actions: Tensor) -> None:
        """What was done then, ``(n,)`` int64 or ``(n, size)`` float."""


class Model(nn.Module, ABC):
    """A network that can be trained on step batches of the tasks it was made for, and act in them."""

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks of the trunk in their order: most of the parameters, and all used by every batch."""

    def block_sizes(self, layout: TaskLayout) -> tuple[int, ...]:
        """How many slots acting computes at once, no more and no fewer; the first size sets the numbers.

        As many as are usually played together, and others that are used where they give the same numbers. Images are
        the same price one by one.
        """
        return (8,) if layout.observation == IMAGE else (32, 64)

    @abstractmethod
    def losses(self, batch: Batch) -> Losses:
        """Losses of one batch, averaged over its real (not padded) time steps or tokens."""

    @abstractmethod
    def head(self, layout: TaskLayout) -> Head:
        """How to read the network's action outputs for tasks of a layout."""

    @abstractmethod
    def new_memory(self, tasks: Sequence[int], layout: TaskLayout, context_steps: int) -> RolloutCache:
        """An empty memory to act with.

        Args:
            tasks: of each slot, as indices in the network's list of tasks.
            layout: of these tasks.
            context_steps: time steps that the network was trained to look back.
        """
