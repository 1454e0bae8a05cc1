"""From a config to a network: which class, whether the tasks fit it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.tasks import CONTINUOUS, DISCRETE, Task
from trainer.config import BaseModelConfig, ModelConfig

if TYPE_CHECKING:
    from trainer.networks.layout import TaskLayout
    from trainer.networks.model import Model

CONFIGS: dict[str, type[ModelConfig] | type[BaseModelConfig]] = {"jat": ModelConfig, "base": BaseModelConfig}


def build_model(config: ModelConfig | BaseModelConfig, layouts: Sequence[TaskLayout]) -> Model:
    """An untrained network for tasks of these layouts, in this order."""
    if isinstance(config, BaseModelConfig):
        from trainer.networks.base_model import BaseModel

        return BaseModel(config, layouts)
    from trainer.networks.jat_model import JatModel

    return JatModel(config)


def read_model_config(raw: dict[str, Any]) -> ModelConfig | BaseModelConfig:
    """From JSON; one without ``architecture`` is of before there was a choice.

    Raises:
        UserError: another architecture, or other options than this version has.
    """
    architecture = raw.get("architecture", "jat")
    if architecture not in CONFIGS:
        raise UserError(f"unknown architecture {architecture!r}; this version has: {', '.join(CONFIGS)}")
    known = set(CONFIGS[architecture].__dataclass_fields__)
    if unknown := sorted(set(raw) - known):
        raise UserError(f"architecture {architecture} of this version has no option {', '.join(unknown)}")
    # Checkpoints made before there were pictures have none of their parameters.
    before = {"picture_size": 0, "idle_decoder": False} if architecture == "jat" else {}
    return CONFIGS[architecture](**{**before, **raw})


def check_context(config: ModelConfig | BaseModelConfig, context_steps: int, name: str) -> None:
    """Refuse to look back further in a task than the network has positions for.

    Raises:
        UserError: names both.
    """
    if isinstance(config, ModelConfig) and 2 * context_steps > config.max_positions:
        raise UserError(
            f"--contexts: {context_steps} time steps in {name} take {2 * context_steps} positions; the checkpoint has "
            f"{config.max_positions}"
        )


def check_model_fits(config: ModelConfig | BaseModelConfig, tasks: Sequence[Task], text_tokens: int) -> None:
    """Refuse a network that a task's observations or actions do not fit.

    Raises:
        UserError: names the task, its sizes and the option to change.
    """
    for task in tasks:
        if problem := misfit(config, task, text_tokens):
            raise UserError(problem)


def misfit(config: ModelConfig | BaseModelConfig, task: Task, text_tokens: int) -> str | None:
    """Why a task's observations or actions do not fit a network, and the option to change; None if they do."""
    is_grid_world = task.observation_shape == (148,) and task.has_text
    if task.observation == DISCRETE and config.discrete_encoder == "cells" and not is_grid_world:
        return f"{task.name} is no grid world with a mission: use --model.discrete-encoder flat"
    return _jat_misfit(config, task, text_tokens) if isinstance(config, ModelConfig) else None


def _jat_misfit(model: ModelConfig, task: Task, text_tokens: int) -> str | None:
    if task.observation == DISCRETE:
        size = task.observation_shape[0] + (text_tokens if task.has_text else 0)
        if size != model.max_discrete_size:
            return (
                f"{task.name} has {size} integers per step, {text_tokens} text tokens included; "
                f"--model.max-discrete-size is {model.max_discrete_size}"
            )
    widest = task.action.size if task.action.kind == "continuous" else 0
    if task.observation == CONTINUOUS:
        widest = max(widest, task.observation_shape[0] + 1)  # the reward is appended
    if widest > model.max_continuous_size:
        return (
            f"{task.name} needs {widest} continuous numbers per step; "
            f"--model.max-continuous-size is {model.max_continuous_size}"
        )
    return None
