"""What a training run can be told, and named sets of it. No torch here, so that ``--help`` is quick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pipeline.cli import by_name, check_at_least_one
from pipeline.envs.registry import DEMO_TASKS
from pipeline.errors import UserError

Value = TypeVar("Value")

# By task or by domain; a flag takes `NAME NUMBER NAME NUMBER`.
Counts = Annotated[dict[str, int], by_name(int)]
Weights = Annotated[dict[str, float], by_name(float)]
# Which continuous action is taken, of those that the network finds likely.
ActionSelection = Literal["mean", "likeliest", "sample"]


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of JAT's network. The defaults are the released one's, 192.7 M parameters."""

    architecture: Literal["jat"] = "jat"
    """Which network; its options differ by architecture, and a recipe decides it."""
    hidden_size: int = 768
    """Width of the residual stream."""
    num_layers: int = 12
    """Transformer blocks; they alternate global and local attention."""
    num_heads: int = 12
    """Attention heads per block."""
    window_size: int = 256
    """Positions a local block looks back; two positions are one time step."""
    max_positions: int = 512
    """Learned positions = twice the longest context in time steps."""
    vocab_size: int = 50257
    """Token embeddings, shared by texts, integers of observations and discrete actions."""
    max_continuous_size: int = 377
    """Width that continuous vectors are repeated to; at least observation + 1 and action size of every task."""
    max_discrete_size: int = 212
    """Integers of a discrete observation, 148, plus its text tokens, 64."""
    picture_size: int = 224
    """Side in pixels of a picture that comes before a text; 0 for a network without pictures."""
    patch_size: int = 16
    """Side in pixels of the patches of a picture; each is one position."""
    idle_decoder: bool = True
    """Have the released network's decoder of discrete observations, which it never calls: only for its weights to go
    in and out whole."""
    discrete_encoder: Literal["flat", "cells"] = "flat"
    """How a discrete observation becomes one embedding: `flat` is JAT's; `cells`, for grid worlds with a mission, lets
    the mission modulate every cell first."""
    cell_size: int = 48
    """Width of a cell in the `cells` encoder."""
    observation_loss_coef: float = 0.005
    """kappa: weight of the loss that predicts the next observation."""
    action_loss_coef: float = 0.995
    """Weight of the loss that predicts the action."""

    @property
    def num_patches(self) -> int:
        """Positions of a picture."""
        return (self.picture_size // self.patch_size) ** 2

    @property
    def token_size(self) -> int:
        """Width a token of a discrete observation is squeezed to before they are laid side by side."""
        return self.hidden_size // 50


@dataclass(frozen=True)
class BaseModelConfig:
    """Our own network: sizes, and the choices that docs/ablations.md compares one by one."""

    architecture: Literal["base"] = "base"
    """Which network; its options differ by architecture, and a recipe decides it."""
    hidden_size: int = 256
    """Width of the residual stream."""
    num_layers: int = 4
    """Transformer blocks."""
    num_heads: int = 4
    """Attention heads per block."""
    window_steps: int = 32
    """Time steps that a step attends to, itself included, in training and in acting; deeper blocks see further."""
    embeddings_per_step: Literal[1, 2] = 1
    """1: observation, previous reward and previous action in one sum; 2: observation with previous reward, then action,
    as JAT."""
    previous_action: bool = False
    """Whether the network sees its own past actions. Imitating an expert whose next action is much like its last, it
    can learn to repeat itself."""
    previous_reward: bool = True
    """Whether the network sees what the last action earned."""
    linear_maps: Literal["task", "layout"] = "task"
    """Linear encoders and decoders of continuous observations and of actions: one per task, or one for all tasks with
    the same sizes."""
    task_embedding: bool = True
    """Whether a learned vector tells the trunk which task it is; a new one of every task is the only way to know it
    where `linear_maps` is `layout` and the observations do not tell."""
    positions: Literal["rotary", "none"] = "rotary"
    """How the attention knows how long ago something was."""
    norm: Literal["rms", "layer"] = "rms"
    """Normalisation before attention and feed-forward."""
    feed_forward: Literal["swiglu", "gelu"] = "swiglu"
    """Feed-forward with a gate, or with a GELU and as many parameters."""
    continuous_head: Literal["squared", "bins", "mixture"] = "squared"
    """How continuous actions are predicted: their mean by squared error; each dimension over bins; a mixture of
    Gaussians."""
    num_bins: int = 41
    """Bins per dimension of the `bins` head."""
    num_components: int = 5
    """Gaussians of the `mixture` head."""
    observation_noise: float = 0.0
    """Standard deviation of noise added to continuous observations in training, where 1 is that of the observation
    itself. The agent's own errors lead it where no expert was; noise makes the network smooth there."""
    observation_limit: float = 5.0
    """Normalised observations and rewards are clipped to plus and minus this."""
    dropout: float = 0.0
    """Share of each block's output that is dropped in training."""
    observation_loss_coef: float = 0.0
    """kappa: weight of the loss that predicts the next continuous observation; that of the action is 1 - kappa."""
    vocab_size: int = 512
    """Token embeddings of missions and integers of observations."""
    discrete_encoder: Literal["flat", "cells"] = "cells"
    """How a discrete observation becomes one embedding: `flat` lays the integers' embeddings side by side, for any;
    `cells` is for grid worlds with a mission, which modulates every cell first."""
    cell_size: int = 32
    """Width of a cell in the `cells` encoder, of an integer in the `flat` one."""

    def __post_init__(self) -> None:
        check_at_least_one(
            self, "hidden_size", "num_layers", "num_heads", "window_steps", "num_components", prefix="model."
        )
        if self.hidden_size % (2 * self.num_heads):
            raise UserError(
                f"--model.hidden-size {self.hidden_size} must be a multiple of twice --model.num-heads {self.num_heads}"
            )
        if self.embeddings_per_step == 2 and not self.previous_action:
            raise UserError(
                "--model.embeddings-per-step 2 gives past actions embeddings of their own, which needs "
                "--model.previous-action"
            )
        if self.num_bins < 2:
            raise UserError(f"--model.num-bins is {self.num_bins}; it must be at least 2")
        for name in ("observation_noise", "dropout", "observation_loss_coef"):
            value = getattr(self, name)
            if not 0 <= value < (1 if name != "observation_noise" else float("inf")):
                raise UserError(f"--model.{name.replace('_', '-')} is {value}; it must be at least 0 and below 1")


@dataclass(frozen=True)
class TrainConfig:
    """Fit one transformer to OUT/dataset.

    The defaults are recipe ``base``: our own network, for two CPU cores and tasks without images; all of Meta-World in
    an hour or two. A micro-batch is eight windows of a Meta-World task; many small ones, so that a step has seen many
    tasks.
    """

    task: str = "*"
    """Task name, domain, glob, or comma list of these, among the tasks of the dataset."""
    corpora: str = ""
    """Corpora of the dataset to train on too: name, glob, or comma list of these; none if empty."""
    out: Path = Path("runs/default")
    """Root of all outputs of a run."""
    dataset: Path | None = None
    """Dataset directory; OUT/dataset if not given."""
    steps: int = 10_000
    """Optimiser steps."""
    batch_steps: int = 800
    """Time steps per micro-batch, padding included. A micro-batch holds windows of one task."""
    micro_batches: int = 8
    """Micro-batches per optimiser step, each from a task drawn by sampling weight."""
    context_steps: int = 128
    """Longest window in time steps; the agent looks back as far."""
    contexts: Counts = field(default_factory=dict)
    """Longest window of a task, by task or domain name; --context-steps where not named."""
    text_tokens: int = 16
    """Tokens a mission is cut or padded to."""
    tokenizer: str = "bpe"
    """`bpe` is trained on the run's own texts, without network; else a folder with a `tokenizer.json`, or a repository
    on the Hugging Face Hub such as `gpt2`, JAT's."""
    text_boundaries: bool = True
    """Put the end-of-text token before and after every document of a corpus, so that its first word is learned too and
    writing knows where to end. JAT has no such token."""
    learning_rate: float = 1e-3
    """Peak of AdamW's learning rate; linear warm-up, then a cosine down to a tenth."""
    warmup_steps: int = 200
    """Optimiser steps of the warm-up."""
    weight_decay: float = 0.1
    """AdamW's weight decay, on matrices only."""
    grad_clip: float = 1.0
    """Largest norm of the gradient."""
    normalise: bool = True
    """Standardise continuous observations and rewards with the dataset's statistics. JAT does not."""
    loss_weights: Weights = field(default_factory=lambda: {"metaworld": 10.0, "mujoco": 10.0})
    """Weight of a task's or corpus' loss, by its name or domain; 1 where not named. Squared errors of actions are a
    hundredth of a cross-entropy."""
    sampling_weights: Weights = field(default_factory=dict)
    """How often a task or corpus is drawn, by its name or domain; 1 where not named."""
    seed: int = 0
    """Initial weights and order of the data follow from it."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matrix products; auto takes bfloat16 where the processor has instructions for it."""
    compile: bool = False
    """Compile the network's blocks (torch.compile), which takes a C++ compiler and up to a minute. Recipe `base` then
    trains about a tenth faster on a CPU. The same numbers up to rounding."""
    threads: int = 2
    """CPU threads of each worker."""
    workers: int = 1
    """Processes that train together, each with a GPU where the cluster has them; they share out the micro-batches of a
    step. One is this process, unless `RAY_ADDRESS` is set."""
    shard: bool = False
    """Spread the network, its gradients and the optimiser's state over the workers (FSDP2), so that each holds its
    share of them, for networks that a device has no room for. The same numbers up to rounding, and more messages."""
    loader_threads: int = 1
    """Threads of each worker that read batches ahead."""
    checkpoint_every: int = 500
    """Optimiser steps between checkpoints that are kept and whose validation loss is measured."""
    checkpoint_minutes: float = 5.0
    """Minutes after which a checkpoint to resume from is written, whatever the step; there is one of these, and it goes
    when the next one is kept."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep; the one with the least validation loss is kept too."""
    validation_steps: int = 256
    """Time steps of each task's test split, a window or more, whose loss every checkpoint measures; 0 for none."""
    track: str = ""
    """Where the training curve goes beside `log.jsonl`: comma list of `tensorboard`, `trackio` and `wandb`."""
    model: ModelConfig | BaseModelConfig = field(default_factory=BaseModelConfig)
    """The network."""

    @property
    def dataset_dir(self) -> Path:
        return self.dataset or self.out / "dataset"

    @property
    def longest_context(self) -> int:
        return max([self.context_steps, *self.contexts.values()])

    @property
    def trackers(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.track.split(",") if name.strip())

    def __post_init__(self) -> None:
        check_at_least_one(
            self, "steps", "batch_steps", "micro_batches", "context_steps", "text_tokens", "threads", "workers",
            "loader_threads", "checkpoint_every", "keep_checkpoints",
        )  # fmt: skip
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


def lookup_by_task_or_domain(values: Mapping[str, Value], name: str, domain: str, default: Value) -> Value:
    """A setting given by task or by domain name: that of the task, else of its domain, else the default."""
    return values.get(name, values.get(domain, default))


def jat() -> TrainConfig:
    """The released JAT: sizes, loss and weights of arXiv 2402.09844. For a GPU.

    Its 250,000 steps saw about 320 sequences each. Which peculiarities of the released code are kept: docs/jat.md.
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


def small() -> TrainConfig:
    """The JAT architecture at a small size, to compare ``base`` with: 11 M parameters, 8 M of them for images.

    For two CPU cores and tasks without images. One part is exchanged: JAT's flat encoder of grid worlds takes far more
    compute than a CPU has to learn which object the mission names (docs/training.md).
    """
    text_tokens = 16
    return TrainConfig(
        steps=5_000,
        batch_steps=2048,
        micro_batches=1,
        text_tokens=text_tokens,
        warmup_steps=100,
        # Unweighted, the trunk would serve the grid worlds alone. JAT's weight for Meta-World is 50.
        loss_weights={"metaworld": 10.0},
        sampling_weights={"babyai": 1.5},
        model=ModelConfig(
            hidden_size=256,
            num_layers=2,
            num_heads=4,
            max_positions=256,
            vocab_size=512,
            max_discrete_size=148 + text_tokens,
            picture_size=0,
            idle_decoder=False,
            discrete_encoder="cells",
            cell_size=32,
        ),
    )


def demo() -> TrainConfig:
    """The default recipe on the demo's six tasks, for about ten minutes on two cores."""
    return TrainConfig(
        task=DEMO_TASKS, steps=600, checkpoint_every=60, workers=2, threads=1, sampling_weights={"babyai": 1.5}
    )


RECIPES = {"base": TrainConfig, "jat": jat, "small": small, "demo": demo}
