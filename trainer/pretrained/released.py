"""Loads the released JAT (``jat-project/jat``) as a checkpoint of this project: only its files are read, no code is
run.

The files are ``config.json``, ``model.safetensors`` and GPT-2's ``tokenizer.json`` (or ``vocab.json`` and
``merges.txt``). Parameters have the same names and shapes here, so they need no conversion.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pipeline.envs.babyai import NUM_INTEGERS
from pipeline.envs.registry import all_tasks
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.foreign import check_file
from trainer.checkpoint import AgentConfig, Checkpoint
from trainer.config import ModelConfig
from trainer.data.tokenizer import FILE_NAME, MAX_FILE, choose_tokenizer
from trainer.networks.build import misfit, model_config_of
from trainer.networks.jat_model import JatModel
from trainer.networks.layout import layout_of
from trainer.networks.weights import read_weights
from trainer.pretrained.folders import CONFIG

CORPORA = ("wikipedia", "oscar", "ok-vqa", "conceptual-captions")
# JAT's evaluation had a context of 256 positions, 32 in Atari; two positions are one time step.
CONTEXT_STEPS, ATARI_CONTEXT_STEPS = 128, 16

_SIZES = {
    "hidden_size": "hidden_size",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "window_size": "window_size",
    "max_position_embeddings": "max_positions",
    "vocab_size": "vocab_size",
    "max_continuous_size": "max_continuous_size",
    "max_discrete_value": "max_discrete_size",
    "image_size": "picture_size",
    "patch_size": "patch_size",
    "observation_loss_coef": "observation_loss_coef",
    "action_loss_coef": "action_loss_coef",
}
# Values for which the network here has no option.
_FIXED = {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "num_channels": 3}

# The shared token embedding has three names in the released state; a file may contain any of them.
_EMBEDDING = "transformer.wte.weight"
_ALIASES = ("single_discrete_encoder.weight", "multi_discrete_encoder.0.weight")
# Constants that some versions of transformers store with the parameters.
_CONSTANT = re.compile(r"transformer\.h\.\d+\.attn\.attention\.(bias|masked_bias)")


def is_released(config: Any) -> bool:
    """Whether a ``config.json`` has the released format."""
    return isinstance(config, dict) and config.get("model_type") == "jat"


def read_released(folder: Path, origin: str) -> Checkpoint:
    """Load the checkpoint in a folder with the released files.

    Args:
        folder: folder of the files.
        origin: name of the folder in messages.

    Raises:
        UserError: a file is missing or damaged, an option is unknown here, or parameters differ; the message lists the
            differences.
    """
    raw = read_json(folder / CONFIG)
    agent = read_agent_config(raw, origin)
    with torch.device("meta"):
        model = JatModel(read_model_config(raw, origin))
    model.load_state_dict(read_weights(folder, model, origin, _parameters), assign=True)
    return Checkpoint(model, _read_tokenizer(folder, agent.model.vocab_size, origin), {}, agent)


def read_agent_config(raw: dict[str, Any], origin: str) -> AgentConfig:
    """Return the config needed to act with the released network, from its ``config.json``.

    Raises:
        UserError: see ``read_model_config``.
    """
    config = read_model_config(raw, origin)
    text_tokens = config.max_discrete_size - NUM_INTEGERS
    tasks = [task for task in all_tasks() if misfit(config, task, text_tokens) is None]
    return AgentConfig(
        model=config,
        context_steps=min(CONTEXT_STEPS, config.max_positions // 2),
        contexts={"atari": min(ATARI_CONTEXT_STEPS, config.max_positions // 2)},
        text_tokens=text_tokens,
        tasks=[task.name for task in tasks],
        layouts=[layout_of(task, text_tokens) for task in tasks],
        dataset_digest="",
        step=0,
        trained_timesteps=0,
        corpora=list(CORPORA),
    )


def read_model_config(raw: dict[str, Any], origin: str) -> ModelConfig:
    """Read the sizes from the released ``config.json``.

    Raises:
        UserError: it is of another kind of model, lacks a size, or has an option that is unknown here.
    """
    if not is_released(raw):
        raise UserError(f"{origin}: {CONFIG} is of a {raw.get('model_type', 'nameless')} model, not of jat")
    absent = sorted(set(_SIZES) - set(raw))
    if absent:
        raise UserError(f"{origin}: {CONFIG} lacks {', '.join(absent)}")
    config = model_config_of({ours: raw[theirs] for theirs, ours in _SIZES.items()}, ModelConfig, f"{origin}: {CONFIG}")
    fixed = {
        **_FIXED,
        "intermediate_size": (None, 4 * config.hidden_size),
        "attention_layers": [("global", "local")[layer % 2] for layer in range(config.num_layers)],
    }
    try:
        found = {**raw, "attention_layers": _attention_layers(raw, config.num_layers)}
    except (TypeError, ValueError) as error:
        raise UserError(f"{origin}: {CONFIG} has no readable attention_layers ({error})") from error
    for name, wanted in fixed.items():
        allowed = wanted if isinstance(wanted, tuple) else (wanted,)
        if name in found and found[name] not in allowed:
            raise UserError(f"{origin}: {CONFIG} has {name} {found[name]}; only {allowed[-1]} can be loaded"[:400])
    return config


def _attention_layers(raw: dict[str, Any], num_layers: int) -> list[str]:
    """Return the kind of attention of each layer; ``attention_types`` lists them as (kinds, repetitions)."""
    if "attention_layers" in raw:
        return list(raw["attention_layers"])
    pairs = raw.get("attention_types", [[["global", "local"], num_layers // 2]])
    if any(count > num_layers for _, count in pairs):
        raise ValueError(f"more than {num_layers} layers")
    return [kind for kinds, count in pairs for _ in range(count) for kind in kinds]


def _parameters(stored: Collection[str]) -> dict[str, str]:
    """Map this project's parameter names to those in a released file: one of the embedding's names, and no
    constants."""
    names = {name: name for name in stored if not _CONSTANT.fullmatch(name)}
    aliases = [name for name in _ALIASES if name in names]
    if _EMBEDDING not in names and aliases:
        names[_EMBEDDING] = aliases[0]
    return {ours: theirs for ours, theirs in names.items() if ours not in aliases}


def _read_tokenizer(folder: Path, vocab_size: int, origin: str) -> Tokenizer:
    if (folder / FILE_NAME).is_file():
        return choose_tokenizer(str(folder), [], vocab_size)
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocabulary.is_file() and merges.is_file()):
        raise UserError(f"{origin} has no {FILE_NAME}, nor vocab.json and merges.txt")
    for file in (vocabulary, merges):
        check_file(file, MAX_FILE)
    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{origin}: vocab.json and merges.txt are no tokenizer ({error})") from error
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer
