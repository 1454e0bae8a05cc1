"""The options of a training run, and named recipes. This module does not import torch, so that ``--help`` is fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from pipeline.cli import by_name, check_at_least_one
from pipeline.envs.registry import DEMO_TASKS
from pipeline.errors import UserError
from pipeline.run_layout import RunLayout

Value = TypeVar("Value")

# Values by task or domain name; on the command line `NAME NUMBER NAME NUMBER`.
Counts = Annotated[dict[str, int], by_name(int)]
Weights = Annotated[dict[str, float], by_name(float)]


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of JAT's network. The defaults are those of the released checkpoint, 192.7 M parameters."""

    architecture: Literal["jat"] = "jat"
    """Network architecture. Each architecture has its own options; the recipe selects it."""
    hidden_size: int = 768
    """Width of the residual stream."""
    num_layers: int = 12
    """Transformer blocks; they alternate global and local attention."""
    num_heads: int = 12
    """Attention heads per block."""
    window_size: int = 256
    """Number of past positions a local block attends to; a time step has two positions."""
    max_positions: int = 512
    """Number of learned position embeddings, twice the longest context in time steps."""
    vocab_size: int = 50257
    """Number of token embeddings, shared by texts, integer observations and discrete actions."""
    max_continuous_size: int = 377
    """Width that continuous vectors are padded to by repetition; at least observation size + 1 and action size of every
    task."""
    max_discrete_size: int = 212
    """Length of a discrete observation: BabyAI's 148 integers plus 64 text tokens."""
    picture_size: int = 224
    """Side in pixels of an image that precedes a text; 0 for a network without images."""
    patch_size: int = 16
    """Side in pixels of an image patch; each patch is one position."""
    idle_decoder: bool = True
    """Include the released network's decoder of discrete observations. It is never called; it only keeps loading and
    saving of the released weights lossless."""
    discrete_encoder: Literal["flat", "cells"] = "flat"
    """How a discrete observation becomes one embedding. `flat` is JAT's encoder; `cells`, for grid worlds with a
    mission, lets the mission modulate every cell first."""
    cell_size: int = 48
    """Embedding width of a cell in the `cells` encoder."""
    observation_loss_coef: float = 0.005
    """kappa: weight of the loss on predicting the next observation."""
    action_loss_coef: float = 0.995
    """Weight of the loss on predicting the action."""

    @property
    def num_patches(self) -> int:
        """Number of positions of an image."""
        return (self.picture_size // self.patch_size) ** 2

    @property
    def token_size(self) -> int:
        """Width that each token of a discrete observation is projected to before the tokens are concatenated."""
        return self.hidden_size // 50


@dataclass(frozen=True)
class BaseModelConfig:
    """This project's own network: its sizes and the design choices that docs/ablations.md compares one by one."""

    architecture: Literal["base"] = "base"
    """Network architecture. Each architecture has its own options; the recipe selects it."""
    returns: Annotated[Literal["unused", "input", "value"], tyro.conf.Suppress] = "unused"
    """Nothing, an input for the return to go, or a head that predicts it; --objective says which."""
    hidden_size: int = 128
    """Width of the residual stream."""
    num_layers: int = 4
    """Transformer blocks."""
    num_heads: int = 4
    """Attention heads per block."""
    window_steps: int = 32
    """Attention window in time steps, including the current step, in training and in acting; deeper blocks see
    further."""
    observation_noise: float = 0.0
    """Standard deviation of noise added to continuous observations in training, in units of the observation's own
    standard deviation. The agent's errors lead it to states that no expert visited; noise makes the network smooth
    there."""
    observation_limit: float = 5.0
    """Normalised observations and rewards are clipped to plus and minus this value."""
    observation_loss_coef: float = 0.0
    """kappa: weight of the loss on predicting the next continuous observation; the action loss has weight 1 - kappa."""
    vocab_size: int = 512
    """Number of token embeddings for missions and integer observations."""
    discrete_encoder: Literal["flat", "cells"] = "cells"
    """How a discrete observation becomes one embedding. `flat` concatenates the integers' embeddings; `cells` lets the
    mission of a grid world modulate every cell first, and does the same as `flat` for all other observations."""
    cell_size: int = 32
    """Embedding width of a cell in the `cells` encoder, of an integer in the `flat` encoder."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "hidden_size", "num_layers", "num_heads", "window_steps", prefix="model.")
        if self.hidden_size % (2 * self.num_heads):
            raise UserError(
                f"--model.hidden-size {self.hidden_size} must be a multiple of twice --model.num-heads {self.num_heads}"
            )
        for name in ("observation_noise", "observation_loss_coef"):
            value = getattr(self, name)
            if not 0 <= value < (1 if name != "observation_noise" else float("inf")):
                raise UserError(f"--model.{name.replace('_', '-')} is {value}; it must be at least 0 and below 1")


@dataclass(frozen=True)
class TrainConfig:
    """Fit one transformer to OUT/dataset.

    The defaults are recipe ``base``: this project's own network, for two CPU cores and tasks without images; it trains
    on all of Meta-World in an hour or two. A micro-batch is eight windows of a Meta-World task. Micro-batches are small
    and many so that every step covers many tasks.
    """

    task: str = "*"
    """Tasks to train on: task name, domain, glob, or comma list of these, among the tasks of the dataset."""
    corpora: str = ""
    """Corpora of the dataset to train on as well: name, glob, or comma list of these; empty for none."""
    out: Path = Path("runs/default")
    """Root directory of all outputs of a run."""
    dataset: Path | None = None
    """Dataset directory; default OUT/dataset."""
    start: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Start from the weights of a checkpoint: its folder, `builtin`, or a repository of the Hub. Tasks that it does not
    know begin untrained. The network's options must be those of the checkpoint."""
    steps: int = 10_000
    """Number of optimiser steps."""
    seconds: float | None = None
    """Train for so many seconds instead of --steps; the learning rate follows the time, and a run that goes on after an
    interruption has the rest of it."""
    batch_steps: int = 800
    """Time steps per micro-batch, including padding. A micro-batch holds windows of one task."""
    micro_batches: int = 8
    """Micro-batches per optimiser step, each of a task drawn by sampling weight."""
    context_steps: int = 128
    """Longest window in time steps; the agent uses the same context length."""
    contexts: Counts = field(default_factory=dict)
    """Longest window by task or domain name, in time steps; --context-steps for tasks not listed."""
    text_tokens: int = 16
    """Number of tokens that a mission is truncated or padded to."""
    tokenizer: str = "bpe"
    """`bpe` trains a tokenizer on the run's own texts, without network access; otherwise a folder with a
    `tokenizer.json`, or a repository on the Hugging Face Hub such as `gpt2`, which JAT uses."""
    text_boundaries: bool = True
    """Put the end-of-text token before and after every document of a corpus, so that the model also learns to predict
    the first word and to end a text. JAT does not use this token."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW: linear warm-up, then cosine decay to a tenth."""
    warmup_steps: int = 200
    """Number of warm-up optimiser steps."""
    weight_decay: float = 0.1
    """Weight decay of AdamW, applied to matrices only."""
    grad_clip: float = 1.0
    """Maximum gradient norm; larger gradients are clipped."""
    normalise: bool = True
    """Standardise continuous observations and rewards with the dataset's statistics. JAT does not."""
    loss_weights: Weights = field(default_factory=lambda: {"metaworld": 10.0, "mujoco": 10.0})
    """Loss weight of a task or corpus, by its name or domain. If not listed: 10 for a task with continuous actions,
    whose squared errors are about a hundredth of a cross-entropy, and 1 for all others."""
    sampling_weights: Weights = field(default_factory=dict)
    """Sampling weight of a task or corpus, by its name or domain; 1 if not listed."""
    objective: Literal["clone", "filtered", "return-conditioned", "advantage"] = "clone"
    """What is learned: `clone`, every action; for data of mixed quality `filtered`, a task's best episodes by return;
    `return-conditioned`, every action given the return that followed, which the agent is then asked for; `advantage`,
    every action, weighted by how much more it earned than usual."""
    best_share: float = 0.3
    """Share of a task's episodes that `--objective filtered` keeps."""
    sampling: Literal["uniform", "adaptive", "adaptive-loss"] = "uniform"
    """How tasks are drawn: `uniform`, by sampling weight; `adaptive`, also by what each lacks and how fast it improves,
    in a few episodes played during the training; `adaptive-loss`, by its validation loss, without simulators."""
    sampling_every: int = 500
    """Optimiser steps between two measurements for adaptive sampling. Their time counts in --seconds."""
    sampling_episodes: int = 5
    """Episodes of each task in a measurement of `--sampling adaptive`."""
    seed: int = 0
    """Seed of the initial weights and of the order of the data."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the matrix products; auto selects bfloat16 if the processor has instructions for it."""
    compile: bool = False
    """Compile the network's blocks with torch.compile, which needs a C++ compiler and takes up to a minute. Recipe
    `base` then trains about a tenth faster on a CPU. Results are the same up to rounding."""
    threads: int = 2
    """CPU threads of each worker."""
    workers: int = 1
    """Number of worker processes that train together, each with a GPU if the cluster has GPUs; they share the
    micro-batches of a step. With 1, training runs in this process, unless `RAY_ADDRESS` is set."""
    shard: bool = False
    """Shard the network, its gradients and the optimiser state over the workers (FSDP2), for networks too large for one
    device. Results are the same up to rounding; communication increases."""
    loader_threads: int = 1
    """Threads of each worker that prefetch batches."""
    checkpoint_every: int = 500
    """Optimiser steps between checkpoints that are kept and whose validation loss is measured."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints to resume from, written at any step; only the newest is kept, and it is deleted when
    the next regular checkpoint is saved."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep; the one with the lowest validation loss is kept as well."""
    validation_steps: int = 256
    """Time steps of each task's test split, at least one window, on which every checkpoint measures the validation
    loss; 0 for none."""
    track: str = ""
    """Trackers that receive the training curve in addition to `log.jsonl`: comma list of `tensorboard`, `trackio` and
    `wandb`."""
    model: ModelConfig | BaseModelConfig = field(default_factory=BaseModelConfig)
    """Options of the network."""

    @property
    def dataset_dir(self) -> Path:
        return self.dataset or RunLayout(self.out).dataset

    @property
    def longest_context(self) -> int:
        return max([self.context_steps, *self.contexts.values()])

    @property
    def trackers(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.track.split(",") if name.strip())

    def __post_init__(self) -> None:
        check_at_least_one(
            self, "steps", "batch_steps", "micro_batches", "context_steps", "text_tokens", "threads", "workers",
            "loader_threads", "checkpoint_every", "keep_checkpoints", "sampling_every", "sampling_episodes",
        )  # fmt: skip
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise UserError(f"--seconds is {self.seconds:g}; it must be a number above 0")
        if not 0 < self.best_share <= 1:
            raise UserError(f"--best-share is {self.best_share:g}; it must be above 0 and at most 1")
        if not self.checkpoint_minutes > 0:
            raise UserError(f"--checkpoint-minutes is {self.checkpoint_minutes:g}; it must be above 0")
        if self.shard and self.workers == 1:
            raise UserError(
                "--shard spreads the network over several workers, and --workers is 1; raise it, or leave --shard out"
            )
        longest = self.longest_context
        if isinstance(self.model, ModelConfig) and 2 * longest > self.model.max_positions:
            raise UserError(
                f"--context-steps {longest} needs {2 * longest} positions, "
                f"--model.max-positions is {self.model.max_positions}"
            )
        if self.batch_steps < longest:
            raise UserError(f"--batch-steps {self.batch_steps} holds no window of --context-steps {longest}")
        if min(self.contexts.values(), default=1) < 1:
            raise UserError(f"--contexts {self.contexts}: each must be at least 1")


# Loss weights of tasks that are not listed, by kind of action.
LOSS_WEIGHTS = {"continuous": 10.0, "discrete": 1.0}


def lookup_by_task_or_domain(values: Mapping[str, Value], name: str, domain: str, default: Value) -> Value:
    """Look up a setting given by task or domain name: the task's value, else its domain's, else the default."""
    return values.get(name, values.get(domain, default))


def jat() -> TrainConfig:
    """The released JAT, for a GPU: sizes, loss and weights of arXiv 2402.09844, 250,000 steps of 320 sequences each.

    docs/jat.md lists which peculiarities of the released code are kept.
    """
    return TrainConfig(
        steps=250_000,
        batch_steps=20 * 256,
        micro_batches=16,
        corpora="*",
        context_steps=256,
        contexts={"atari": 32},
        text_tokens=64,
        tokenizer="gpt2",
        text_boundaries=False,
        normalise=False,
        learning_rate=3e-4,
        weight_decay=0.0,
        loss_weights={"mujoco": 10.0, "mujoco-pendulum": 50.0, "mujoco-doublependulum": 20.0, "metaworld": 50.0},
        sampling_weights={"wikipedia": 10.0, "oscar": 10.0, "conceptual-captions": 10.0, "ok-vqa": 10.0},
        model=ModelConfig(),
    )


def s() -> TrainConfig:
    """Recipe ``base``, which is also called ``m``, at half its width, 64."""
    return TrainConfig(model=BaseModelConfig(hidden_size=64))


def l() -> TrainConfig:  # noqa: E743
    """Recipe ``base`` at twice its width, 256."""
    return TrainConfig(model=BaseModelConfig(hidden_size=256))


def jat_small() -> TrainConfig:
    """The JAT architecture at a small size, as a comparison for ``base``: 11 M parameters, 8 M of them for images.

    For two CPU cores and tasks without images, with another encoder of grid worlds (docs/training.md).
    """
    from pipeline.envs.babyai import NUM_INTEGERS

    text_tokens = 16
    return TrainConfig(
        steps=5_000,
        batch_steps=2048,
        micro_batches=1,
        text_tokens=text_tokens,
        warmup_steps=100,
        # Without weights the grid worlds would dominate the trunk. JAT's weight for Meta-World is 50.
        loss_weights={"metaworld": 10.0, "mujoco": 1.0},
        sampling_weights={"babyai": 1.5},
        model=ModelConfig(
            hidden_size=256,
            num_layers=2,
            num_heads=4,
            max_positions=256,
            vocab_size=512,
            max_discrete_size=NUM_INTEGERS + text_tokens,
            picture_size=0,
            idle_decoder=False,
            discrete_encoder="cells",
            cell_size=32,
        ),
    )


def demo() -> TrainConfig:
    """The default recipe on the demo's six tasks, with smaller and more steps; takes a few minutes on two cores."""
    return TrainConfig(
        task=DEMO_TASKS,
        steps=1000,
        micro_batches=4,
        warmup_steps=100,
        checkpoint_every=100,
        workers=2,
        threads=1,
        sampling_weights={"babyai": 1.5},
    )


RECIPES = {"base": TrainConfig, "s": s, "m": TrainConfig, "l": l, "jat": jat, "jat-small": jat_small, "demo": demo}
