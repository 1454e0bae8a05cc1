"""The agent of a training as it is now: what its checkpoints hold, and what plays for adaptive sampling."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.envs.task import Task
from trainer.checkpoint import AgentConfig, Checkpoint, CheckpointProgress
from trainer.config import TrainConfig
from trainer.data.sources import TrainingData
from trainer.networks.layout import TaskLayout
from trainer.networks.model import Model


def agent_of(
    model: Model,
    config: TrainConfig,
    tasks: Sequence[Task],
    layouts: Sequence[TaskLayout],
    data: TrainingData,
    progress: CheckpointProgress,
) -> Checkpoint:
    """Return what there is to act with; of a network that is spread over the workers, without its weights.

    Args:
        model: the network.
        config, tasks, data: of the run.
        layouts: those of the tasks, in the order of the network's.
        progress: how far the training is.
    """
    agent = AgentConfig(
        model=config.model,
        context_steps=config.context_steps,
        text_tokens=config.text_tokens,
        tasks=[task.name for task in tasks],
        layouts=list(layouts),
        dataset_digest=progress.identity["dataset_digest"],
        step=progress.step,
        trained_timesteps=progress.timesteps,
        contexts=config.contexts,
        corpora=data.corpora,
        text_boundaries=config.text_boundaries,
        returns=data.returns if config.objective == "return-conditioned" else {},
    )
    return Checkpoint(model, data.tokenizer, data.normalisers, agent)
