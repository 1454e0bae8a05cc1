"""Loads and saves trained networks, as folders and Hub repositories, with everything needed to act or to generate text.

A folder holds ``model.safetensors``, ``config.json``, ``tokenizer.json``, ``normalisers.safetensors`` and a card,
``README.md``; the released JAT's own files are read as well. Loading runs no code of the folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from pipeline.errors import UserError
from pipeline.files import read_json, temporary_beside
from trainer.checkpoint import AgentConfig, Checkpoint, load_agent_config, load_checkpoint, write_agent
from trainer.pretrained.folders import CONFIG, locate
from trainer.pretrained.released import is_released, read_agent_config, read_released


def from_pretrained(source: str | Path) -> Checkpoint:
    """Load a trained network that can act (``trainer.agent.Agent``) and generate text (``trainer.generate.generate``).

    Args:
        source: a checkpoint of `jat train`, a folder of ``save_pretrained``, the released JAT's files, or a repository
            of the Hub with any of them; see ``locate``.

    Raises:
        UserError: the source is empty, a file is missing or damaged, or it does not fit this version of the networks.
    """
    folder = locate(source)
    raw = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else None
    if raw is not None and is_released(raw):
        return read_released(folder, str(source))
    if raw is not None and not (isinstance(raw, dict) and "tasks" in raw):
        raise UserError(
            f"{source} is neither this project's nor JAT's: its {CONFIG} has no tasks and no model_type jat"
        )
    return load_checkpoint(folder)


def agent_config(folder: Path) -> AgentConfig:
    """Load the config needed to act with the network in a folder, without its weights.

    Raises:
        UserError: see ``from_pretrained``.
    """
    if (folder / CONFIG).is_file() and is_released(raw := read_json(folder / CONFIG)):
        return read_agent_config(raw, str(folder))
    return load_agent_config(folder)


def half_of(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights in float16.

    Raises:
        UserError: a weight is too large for float16.
    """
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    if lost := [name for name, value in half.items() if value.isinf().any()]:
        raise UserError(f"{lost[0]} holds weights above 65,504, too large for float16; leave out --half")
    return half


def save_pretrained(checkpoint: Checkpoint, folder: Path, card: str, is_half: bool = False) -> None:
    """Write a folder that ``from_pretrained`` reads; it appears only when it is complete.

    Args:
        checkpoint: what to save.
        folder: must not exist yet.
        card: text of its ``README.md``.
        is_half: whether the weights are stored in float16. Networks compute in float32 in any case.

    Raises:
        UserError: the folder exists.
    """
    if folder.exists():
        raise UserError(f"{folder} exists; give a new folder")
    with temporary_beside(folder) as temporary:
        temporary.mkdir()
        write_agent(temporary, checkpoint, half_of(checkpoint.model.state_dict()) if is_half else None)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        shutil.move(temporary, folder)
