"""Checkpoints: one directory per step, complete once it has its final name.

``checkpoints/`` holds those that are kept, at regular steps, so they do not depend on when a run was interrupted;
``resume/`` holds at most one, of any step, and only while no later one is kept.

    checkpoints/step-00001000/
        model.safetensors        parameters, under the released JAT's names
        normalisers.safetensors  per task: observation mean and standard deviation, reward standard deviation
        tokenizer.json           mission texts to ids
        config.json              architecture, context, tasks, step, digest of the dataset
        optimizer.pt             optimiser state, loaded as data only (no code is executed)
        training.json            identity of the run, its progress, and its validation loss

The order of the data, the learning rate and all random numbers are functions of the seed and the step, and of what
adaptive sampling last measured, so resuming needs no other state.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays_file
from safetensors.numpy import save_file as save_arrays_file
from safetensors.torch import save_file
from tokenizers import Tokenizer

from pipeline.envs.task import CONTINUOUS, DISCRETE, IMAGE
from pipeline.errors import UserError, first_line
from pipeline.files import read_json, temporary_beside, write_json
from pipeline.foreign import MIB, check_file
from pipeline.names import check_name
from pipeline.records import RecordError, read_record, record_of
from pipeline.run_layout import CHECKPOINTS, CONFIG, IDENTITY, RESUME
from trainer.config import BaseModelConfig, ModelConfig
from trainer.data.adaptive import SamplingState
from trainer.data.arrays import Normaliser
from trainer.data.returns import ReturnScale
from trainer.data.tokenizer import load_tokenizer, save_tokenizer
from trainer.networks.build import build_model, read_model_config
from trainer.networks.layout import TaskLayout
from trainer.networks.model import Model
from trainer.networks.weights import os_errors, read_weights

log = logging.getLogger(__name__)

PROGRESS = "training.json"
MAX_NORMALISERS = 256 * MIB
MAX_SIZE = 100_000_000  # upper limit of any size in config.json: far more than any network has
OBSERVATIONS, ACTIONS = (CONTINUOUS, DISCRETE, IMAGE), ("discrete", "continuous")


@dataclass(frozen=True)
class AgentConfig:
    """What is needed to act with a checkpoint, besides the weights.

    Attributes:
        context_steps: context length of training, in time steps.
        text_tokens: number of tokens a mission is truncated or padded to.
        tasks: names of the tasks it was trained on.
        layouts: their sizes, in the same order.
        dataset_digest: digest of the dataset it was trained on.
        step: number of optimiser steps done.
        contexts: ``context_steps`` of the tasks or domains where it differs.
        corpora: names of the corpora it was trained on.
        text_boundaries: whether the end-of-text token surrounded their texts.
        trained_timesteps: real (not padded) time steps processed.
        returns: by task, the returns that the agent can be asked for; empty if its network does not see any.
    """

    model: ModelConfig | BaseModelConfig
    context_steps: int
    text_tokens: int
    tasks: list[str]
    layouts: list[TaskLayout]
    dataset_digest: str
    step: int
    trained_timesteps: int
    contexts: dict[str, int] = field(default_factory=dict)
    corpora: list[str] = field(default_factory=list)
    text_boundaries: bool = False
    returns: dict[str, ReturnScale] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointProgress:
    """Progress and identity of a run.

    Attributes:
        identity: what determines its result: settings, tasks, digest of the dataset.
        timesteps, padded_timesteps: processed so far, without and with padding.
        seconds, waited_seconds: training time so far, and the part of it spent waiting for data.
        validation_loss: at this step; None if it was not measured.
        sampling: what adaptive sampling knows; None without it, and before its first update.
    """

    identity: dict[str, Any]
    step: int = 0
    timesteps: int = 0
    padded_timesteps: int = 0
    seconds: float = 0.0
    waited_seconds: float = 0.0
    validation_loss: float | None = None
    sampling: SamplingState | None = None


@dataclass(frozen=True)
class Checkpoint:
    """All contents of a checkpoint except the optimiser state."""

    model: Model
    tokenizer: Tokenizer
    normalisers: dict[str, Normaliser]
    config: AgentConfig


def save_checkpoint(
    directory: Path,
    checkpoint: Checkpoint,
    optimizer_state: dict[str, Any],
    progress: CheckpointProgress,
    weights: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Write a checkpoint into ``directory`` and return its path; see ``write_agent`` for ``weights``."""
    final = directory / f"step-{checkpoint.config.step:08d}"
    with temporary_beside(final) as temporary:
        temporary.mkdir()
        write_agent(temporary, checkpoint, weights)
        with (temporary / "optimizer.pt").open("wb") as handle:  # given a path, torch hides why a write failed
            torch.save(optimizer_state, handle)
        write_json(temporary / PROGRESS, progress)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
    return final


def save_state(
    directory: Path,
    checkpoint: Checkpoint,
    optimizer_state: dict[str, Any],
    progress: CheckpointProgress,
    weights: dict[str, torch.Tensor],
    keep: int,
    is_kept: bool,
) -> None:
    """Write the checkpoint that a run in ``directory`` resumes from, and delete obsolete ones.

    Args:
        directory: directory of the run.
        checkpoint, optimizer_state, weights: see ``save_checkpoint``.
        progress: includes the validation loss if the checkpoint is kept.
        keep: number of checkpoints to keep, besides the best one.
        is_kept: whether this checkpoint is one of those to keep.
    """
    if is_kept:
        saved = save_checkpoint(directory / CHECKPOINTS, checkpoint, optimizer_state, progress, weights)
        remove_old_checkpoints(directory / CHECKPOINTS, keep)
    else:
        progress = dataclasses.replace(progress, validation_loss=None)
        saved = save_checkpoint(directory / RESUME, checkpoint, optimizer_state, progress, weights)
        log.info("saved step %d, to resume from", progress.step)
    for path in (directory / RESUME).glob("step-*"):
        if path != saved:
            shutil.rmtree(path)


def write_agent(directory: Path, checkpoint: Checkpoint, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Write all files needed for acting into a folder: everything except the optimiser state.

    Args:
        directory: an empty folder.
        checkpoint: what to write.
        weights: the full state of the network, if the network itself holds only a part of it.
    """
    with os_errors(directory):
        save_file(checkpoint.model.state_dict() if weights is None else weights, directory / "model.safetensors")
    arrays = {}
    for task, normaliser in checkpoint.normalisers.items():
        arrays[f"{task}/observation_mean"] = normaliser.observation_mean
        arrays[f"{task}/observation_std"] = normaliser.observation_std
        arrays[f"{task}/reward_std"] = torch.tensor([normaliser.reward_std], dtype=torch.float64).numpy()
    with os_errors(directory):
        save_arrays_file(arrays, directory / "normalisers.safetensors")
    save_tokenizer(checkpoint.tokenizer, directory / "tokenizer.json")
    write_json(directory / CONFIG, dataclasses.asdict(checkpoint.config))


def load_agent_config(path: Path) -> AgentConfig:
    """Read the config that acting with a checkpoint needs, without its weights.

    Raises:
        UserError: not a checkpoint directory, one of another version, or one with invalid values in config.json.
    """
    file = path / CONFIG
    if not file.exists():
        raise UserError(f"{path} is not a checkpoint: it has no config.json. Train one, or pass its step-... folder")
    if (path / IDENTITY).is_file():
        newest = latest_checkpoint(path / CHECKPOINTS) or path / CHECKPOINTS / "step-..."
        raise UserError(f"{path} is the folder of a training; pass a checkpoint of it, such as {newest}")
    raw = read_json(file)
    if not isinstance(raw, dict):
        raise UserError(f"{file} is not that of a checkpoint: it holds a {type(raw).__name__}; get it again")
    known = {field.name for field in dataclasses.fields(AgentConfig)}
    optional = {"contexts", "corpora", "text_boundaries", "returns"}
    if unlike := sorted(set(raw) - known | known - optional - set(raw)):
        raise UserError(
            f"{path} is of another version: its config.json and this version differ in {', '.join(unlike)[:200]}"
        )
    model = read_model_config(raw["model"], str(file))
    try:
        config = record_of({**raw, "model": dataclasses.asdict(model)}, AgentConfig)
        _check_names(config)
    except RecordError as error:
        raise UserError(f"{file} is not that of a checkpoint ({error}); get it again") from error
    return config


def _check_names(config: AgentConfig) -> None:
    for name in (*config.tasks, *config.corpora, *config.contexts, *config.returns):
        check_name("task", name)
    sizes = [config.context_steps, config.text_tokens, *config.contexts.values()]
    for layout in config.layouts:
        sizes += [layout.observation_size, layout.action_size, layout.text_size, layout.main_size]
        if layout.observation not in OBSERVATIONS or layout.action not in ACTIONS or not layout.low < layout.high:
            raise RecordError(f"layout {layout.observation[:40]!r}, {layout.action[:40]!r} is of no task")
    if len(config.layouts) != len(config.tasks) or not all(0 <= size <= MAX_SIZE for size in sizes):
        raise RecordError(
            f"{len(config.tasks)} tasks, {len(config.layouts)} layouts, or a size is not from 0 to {MAX_SIZE:,}"
        )


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint directory; weights are loaded as data, no code in it is executed.

    Raises:
        UserError: not a checkpoint directory, one of another version, or damaged.
    """
    config = load_agent_config(path)
    with torch.device("meta"):  # allocate no memory for the config's sizes before the file is checked against them
        claimed = build_model(config.model, config.layouts)
    weights = read_weights(path, claimed, str(path))
    model = build_model(config.model, config.layouts)
    model.load_state_dict(weights)
    tokenizer = load_tokenizer(path / "tokenizer.json", config.model.vocab_size)
    return Checkpoint(model, tokenizer, _load_normalisers(path / "normalisers.safetensors", config), config)


def _load_normalisers(path: Path, config: AgentConfig) -> dict[str, Normaliser]:
    """Load the normalisers of the tasks that have one."""
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}; get it again")
    check_file(path, MAX_NORMALISERS)
    try:
        arrays = load_arrays_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}); get it again") from error
    found = {}
    for task in {name.split("/")[0] for name in arrays}:
        values = [arrays.get(f"{task}/{name}") for name in ("observation_mean", "observation_std", "reward_std")]
        size = config.layouts[config.tasks.index(task)].main_size if task in config.tasks else 0
        mean, deviation, reward = (np.zeros(0) if value is None else value for value in values)
        is_sound = mean.shape == deviation.shape == (size,) and reward.shape == (1,)
        if not (is_sound and all(np.isfinite(value).all() for value in (mean, deviation, reward))):
            raise UserError(f"{path} does not fit its config.json: the arrays of {task[:60]!r}; get both again")
        found[task] = Normaliser(mean, deviation, float(reward[0]))
    return found


# Errors that torch raises for truncated or foreign files.
_DAMAGED = (OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError, UnpicklingError)


def load_optimizer_state(path: Path, mapped: bool = False) -> dict[str, Any]:
    """Load the optimiser state to the CPU, whatever device it was saved from.

    Args:
        path: a checkpoint.
        mapped: memory-map the file and read values when they are used; copy them before the file is deleted.

    Raises:
        UserError: the file is missing, damaged, or holds more than tensors and numbers.
    """
    file = path / "optimizer.pt"
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", mmap=mapped, weights_only=True)
    except _DAMAGED as error:
        fix = f"remove {path} to resume from the one before it"
        raise UserError(f"{file} cannot be read ({first_line(error)}); {fix}") from error
    return state


def load_progress(path: Path) -> CheckpointProgress:
    """Read the training progress stored in a checkpoint.

    Raises:
        UserError: the file is damaged.
    """
    return read_record(path / PROGRESS, CheckpointProgress, "the progress of a training", f"remove {path}")


def latest_checkpoint(directory: Path) -> Path | None:
    """Return the checkpoint with the most steps, or None."""
    return max(directory.glob("step-*"), default=None)


def newest_state(directory: Path) -> Path | None:
    """Return the checkpoint that a run in a directory resumes from: the one with the most steps, kept or not; None for
    a new run."""
    found = [latest_checkpoint(directory / name) for name in (CHECKPOINTS, RESUME)]
    return max((path for path in found if path), key=lambda path: path.name, default=None)


def best_checkpoint(directory: Path) -> Path | None:
    """Return the checkpoint with the lowest validation loss, the latest if several are equal; None if none was
    measured."""
    losses = {path: load_progress(path).validation_loss for path in sorted(directory.glob("step-*"), reverse=True)}
    measured = {path: loss for path, loss in losses.items() if loss is not None}
    return min(measured, key=measured.__getitem__) if measured else None


def remove_old_checkpoints(directory: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints and the best one."""
    best = best_checkpoint(directory)
    for path in sorted(directory.glob("step-*"))[:-keep]:
        if path != best:
            shutil.rmtree(path)
