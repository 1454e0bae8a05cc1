"""Builds a network from a config and checks that the tasks fit it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.envs.babyai import NUM_INTEGERS
from pipeline.envs.task import CONTINUOUS, DISCRETE, Task
from pipeline.errors import UserError
from pipeline.records import RecordError, record_of
from pipeline.run_layout import CONFIG
from trainer.config import BaseModelConfig, ModelConfig

if TYPE_CHECKING:
    from trainer.networks.layout import TaskLayout
    from trainer.networks.model import Model

ConfigT = TypeVar("ConfigT", bound=ModelConfig | BaseModelConfig)
MAX_LAYERS, MAX_SIZE = 1000, 10_000_000  # far more than any network here has
# Options of the base model that lost their comparison (docs/ablations.md), each with the value that is built in now, or
# that had no effect beside these.
BUILT_IN: dict[str, Any] = {
    "embeddings_per_step": 1, "positions": "rotary", "norm": "rms", "feed_forward": "swiglu",
    "previous_action": False, "previous_reward": True, "linear_maps": "task", "task_embedding": True,
    "continuous_head": "squared", "num_bins": 41, "num_components": 5, "dropout": 0.0,
}  # fmt: skip
CONFIGS: dict[str, type[ModelConfig] | type[BaseModelConfig]] = {"jat": ModelConfig, "base": BaseModelConfig}


def build_model(config: ModelConfig | BaseModelConfig, layouts: Sequence[TaskLayout]) -> Model:
    """Build an untrained network for tasks of these layouts, in this order."""
    if isinstance(config, BaseModelConfig):
        from trainer.networks.base_model import BaseModel

        return BaseModel(config, layouts)
    from trainer.networks.jat_model import JatModel

    return JatModel(config)


def read_model_config(raw: Any, origin: str = CONFIG) -> ModelConfig | BaseModelConfig:
    """Read a model config from JSON; one without ``architecture`` was written before there was a choice.

    Raises:
        UserError: an unknown architecture, options that this version does not have, or values out of range.
    """
    if not isinstance(raw, dict):
        raise UserError(f"{origin}: the model is a {type(raw).__name__}, expected an object")
    architecture = raw.get("architecture", "jat")
    if not isinstance(architecture, str) or architecture not in CONFIGS:
        raise UserError(f"unknown architecture {str(architecture)[:60]!r}; this version has: {', '.join(CONFIGS)}")
    if architecture == "base":
        raw = {name: value for name, value in raw.items() if name not in BUILT_IN or value != BUILT_IN[name]}
        if gone := [f"{name} is {str(raw[name])[:60]!r}" for name in BUILT_IN if name in raw]:
            raise UserError(
                f"{origin}: {', '.join(gone)}; networks of this kind are of an earlier version: open it with the "
                f"version that made it, or train one anew"
            )
    known = set(CONFIGS[architecture].__dataclass_fields__)
    if unknown := sorted(set(raw) - known):
        raise UserError(f"architecture {architecture} of this version has no option {', '.join(unknown)[:200]}")
    # Checkpoints written before images were supported have no parameters for them.
    before = {"picture_size": 0, "idle_decoder": False} if architecture == "jat" else {}
    return model_config_of({**before, **raw}, CONFIGS[architecture], origin)


def model_config_of(raw: Mapping[str, Any], kind: type[ConfigT], origin: str) -> ConfigT:
    """Make a config from its options, which are checked before anything of these sizes is allocated.

    Raises:
        UserError: a value of another type, or one out of range.
    """
    try:
        config = record_of(raw, kind)
    except RecordError as error:
        raise UserError(f"{origin} does not describe a network ({error})") from error
    for name, value in vars(config).items():
        most = MAX_LAYERS if name == "num_layers" else MAX_SIZE
        least = 0 if name == "picture_size" else 1
        if type(value) is int and not least <= value <= most:
            raise UserError(f"{origin} does not describe a network: {name} is {value}, not from {least} to {most:,}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{origin} does not describe a network: {name} is {value}")
    if config.hidden_size % config.num_heads:
        raise UserError(
            f"{origin} does not describe a network: {config.hidden_size} is no multiple of {config.num_heads} heads"
        )
    return config


def check_context(config: ModelConfig | BaseModelConfig, context_steps: int, name: str) -> None:
    """Fail if a task's context is longer than the network's number of positions.

    Raises:
        UserError: names both.
    """
    if isinstance(config, ModelConfig) and 2 * context_steps > config.max_positions:
        raise UserError(
            f"--contexts: {context_steps} time steps in {name} take {2 * context_steps} positions; the checkpoint has "
            f"{config.max_positions}"
        )


def check_model_fits(config: ModelConfig | BaseModelConfig, tasks: Sequence[Task], text_tokens: int) -> None:
    """Fail if a task's observations or actions do not fit the network.

    Raises:
        UserError: names the task, its sizes and the option to change.
    """
    for task in tasks:
        if problem := misfit(config, task, text_tokens):
            raise UserError(problem)


def misfit(config: ModelConfig | BaseModelConfig, task: Task, text_tokens: int) -> str | None:
    """Return why a task's observations or actions do not fit a network, with the option to change; None if they fit."""
    if isinstance(config, ModelConfig) and task.has_text and task.observation != DISCRETE:
        return f"{task.name} has a text beside {task.observation}, which JAT's network has no part for: use recipe base"
    if config.architecture == "jat" and config.discrete_encoder == "cells" and not _has_cells(task):
        return f"{task.name} is no grid world with a mission: use --model.discrete-encoder flat"
    if max(task.observation_values, default=0) > config.vocab_size:
        return (
            f"{task.name} has integers of {max(task.observation_values)} values, --model.vocab-size is "
            f"{config.vocab_size}; raise it"
        )
    return _jat_misfit(config, task, text_tokens) if isinstance(config, ModelConfig) else None


def _has_cells(task: Task) -> bool:
    """Whether the ``cells`` encoder fits, if the task needs an encoder of integers at all."""
    return task.observation != DISCRETE or (task.observation_shape == (NUM_INTEGERS,) and task.has_text)


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
