"""The interface of a network: losses of batches for training, and a rollout cache for acting step by step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Sequence

from torch import Tensor, nn

from pipeline.envs.task import IMAGE
from trainer.batch import Batch, Losses
from trainer.networks.heads import Head
from trainer.networks.layout import TaskLayout


class RolloutCache(ABC):
    """Per-episode state of a network (such as its KV cache) in slots; all slots have tasks of one layout.

    Each time step is one ``observe`` followed by one ``act``.

    Attributes:
        num_slots: number of slots.
    """

    num_slots: int

    def paces(self, slots: Sequence[int]) -> Sequence[Hashable]:
        """Return a key of the shape of each slot's next step: only slots with equal keys are computed together."""
        return [0] * len(slots)

    def stand_in(self, slots: Sequence[int], like: int) -> None:  # noqa: B027  most have no paces
        """Make idle slots computable together with slot ``like``; their contents are meaningless."""

    @abstractmethod
    def forget(self, slots: Sequence[int]) -> None:
        """Reset ``slots`` for new episodes."""

    @abstractmethod
    def observe(
        self, slots: Tensor, observations: Tensor, previous_rewards: Tensor, to_go: Tensor | None = None
    ) -> Tensor:
        """Return the network's outputs for the next action: ``(n, outputs)``, for the layout's ``Head``.

        Args:
            slots: ``(n,)`` int64.
            observations: ``(n, ...)``, as in ``StepBatch`` without the time dimension.
            previous_rewards: ``(n,)``.
            to_go: ``(n,)``, the return asked for, as in ``StepBatch``; None for the mean. Seen by networks that are
                trained with it only.
        """

    @abstractmethod
    def act(self, slots: Tensor, actions: Tensor) -> None:
        """Append the actions taken, ``(n,)`` int64 or ``(n, size)`` float."""


class Model(nn.Module, ABC):
    """A network that can be trained on step batches of the tasks it was built for, and can act in them."""

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks of the trunk in order: they hold most of the parameters, and every batch uses all of them."""

    def block_sizes(self, layout: TaskLayout) -> tuple[int, ...]:
        """Return the exact numbers of slots that acting may compute at once; the results of the first size are the
        reference.

        The first is the usual number of environments; other sizes are only used if they give the same numbers. For
        images, single slots cost the same per slot.
        """
        return (8,) if layout.observation == IMAGE else (32, 64)

    def rows_by_task(self, names: Collection[str]) -> dict[str, dict[int, int]]:
        """Return the parameters of which each task has its own row: by name, the row of each task by its index.

        Args:
            names: names of parameters.
        """
        return {}

    @abstractmethod
    def losses(self, batch: Batch) -> Losses:
        """Return the losses of one batch, averaged over its real (not padded) time steps or tokens."""

    @abstractmethod
    def head(self, layout: TaskLayout) -> Head:
        """Return the head that interprets the network's action outputs for tasks of a layout."""

    @abstractmethod
    def new_memory(self, tasks: Sequence[int], layout: TaskLayout, context_steps: int) -> RolloutCache:
        """Return an empty rollout cache.

        Args:
            tasks: task of each slot, as an index in the network's list of tasks.
            layout: layout of these tasks.
            context_steps: context length of training, in time steps.
        """
