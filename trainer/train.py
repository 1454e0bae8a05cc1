"""Fit one transformer to a dataset.

    python -m trainer.train --recipe small --out runs/default

Reads ``OUT/dataset``, writes ``OUT/train``: checkpoints, ``log.jsonl`` with the training curve, and ``manifest.json``
when the last step is done. Run the same command again after a kill and it goes on from the last checkpoint, with the
same batches and so the same curve as a run that was never stopped.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import parse, run
from pipeline.errors import UserError
from pipeline.files import digest_of, read_json, replacing, write_json
from pipeline.manifest import DatasetManifest
from pipeline.progress import Progress
from pipeline.tasks import CONTINUOUS, DISCRETE, Task, select_tasks
from trainer.config import RECIPES, TrainConfig, of_task

if TYPE_CHECKING:
    import torch

    from trainer.data import Mixture, TaskBatches
    from trainer.model import StepBatch

log = logging.getLogger(__name__)

# These may change between the parts of one run without changing its result.
FREE_TO_CHANGE = ("out", "dataset", "threads", "keep_checkpoints", "checkpoint_every")


@dataclass(frozen=True)
class TrainManifest:
    """A finished training run."""

    checkpoint: str
    digest: str
    steps: int
    trained_timesteps: int
    num_parameters: int
    train_seconds: float
    padding_share: float


def train_manifest_path(out: Path) -> Path:
    return out / "train" / "manifest.json"


def train(config: TrainConfig, tasks: Sequence[Task] | None = None) -> None:
    """Train to ``config.steps``, from the last checkpoint if there is one.

    Args:
        config: the run.
        tasks: the table that ``config.task`` chooses from; all 157 if None.

    Raises:
        UserError: no dataset, a task that is not in it, or the output folder holds another run.
    """
    chosen = choose_tasks(config, tasks)
    identity = _identity(config, chosen)
    directory = config.out / "train"
    _check_same_run(directory / "identity.json", identity)
    if train_manifest_path(config.out).exists():
        log.info("already trained: %s", train_manifest_path(config.out))
        return
    write_json(directory / "identity.json", identity)
    write_json(directory / "config.json", config)
    TrainingRun(config, chosen, directory).to_the_end()


def _manifest(config: TrainConfig) -> DatasetManifest:
    path = config.dataset_dir / DatasetManifest.FILE_NAME
    if not path.exists():
        raise UserError(f"there is no dataset in {path.parent}; run `make collect dataset` with the same OUT first")
    return DatasetManifest.load(path)


def choose_tasks(config: TrainConfig, tasks: Sequence[Task] | None = None) -> tuple[Task, ...]:
    """The tasks a run trains on: those of the dataset that match ``config.task``.

    Raises:
        UserError: no dataset, or a task named in full that is not in it.
    """
    manifest = _manifest(config)
    wanted = select_tasks(config.task, tasks)
    chosen = tuple(task for task in wanted if task.name in manifest.tasks)
    literal = [part.strip() for part in config.task.split(",")]
    absent = [task.name for task in wanted if task.name in literal and task.name not in manifest.tasks]
    if absent or not chosen:
        missing = ", ".join(absent) or config.task
        raise UserError(f"{missing} is not in {config.dataset_dir}; it has: {', '.join(manifest.tasks)}")
    _check_sizes(config, chosen)
    return chosen


def _check_sizes(config: TrainConfig, tasks: Sequence[Task]) -> None:
    """Refuse a network that a task's observations or actions do not fit."""
    model = config.model
    for task in tasks:
        if task.observation == DISCRETE:
            size = task.observation_shape[0] + (config.text_tokens if task.has_text else 0)
            if size != model.max_discrete_size:
                raise UserError(
                    f"{task.name} has {size} integers per step, {config.text_tokens} text tokens included; "
                    f"--model.max-discrete-size is {model.max_discrete_size}"
                )
            if model.discrete_encoder == "cells" and (task.observation_shape != (148,) or not task.has_text):
                raise UserError(f"{task.name} is no grid world with a mission: use --model.discrete-encoder flat")
        widest = task.action.size if task.action.kind == "continuous" else 0
        if task.observation == CONTINUOUS:
            widest = max(widest, task.observation_shape[0] + 1)  # the reward is appended
        if widest > model.max_continuous_size:
            raise UserError(
                f"{task.name} needs {widest} continuous numbers per step; "
                f"--model.max-continuous-size is {model.max_continuous_size}"
            )


def _identity(config: TrainConfig, tasks: Sequence[Task]) -> dict[str, Any]:
    """What decides the result of a run."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in FREE_TO_CHANGE}
    return {**settings, "task": [task.name for task in tasks], "dataset_digest": _manifest(config).digest}


def _check_same_run(path: Path, identity: dict[str, Any]) -> None:
    """Refuse to go on with a run of other settings or data."""
    if not path.exists():
        return
    before = read_json(path)
    now = json.loads(json.dumps(identity))
    differ = [f"{key} was {before.get(key)}, is {now.get(key)}" for key in now if before.get(key) != now.get(key)]
    if differ:
        raise UserError(
            f"{path.parent} holds another training run: {'; '.join(differ)}. "
            f"Move that folder away, or pass the settings it was made with"
        )


class TrainingRun:
    """One training run: its data, network and optimiser, and the loop.

    Args:
        config: the run.
        tasks: what to train on, all in the dataset.
        directory: where its checkpoints and log are, or will be.
    """

    def __init__(self, config: TrainConfig, tasks: Sequence[Task], directory: Path) -> None:
        import torch

        from trainer.jat_model import JatModel

        self.config, self.tasks, self.directory = config, tasks, directory
        self.digest = _manifest(config).digest
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = _dtype(config.dtype, self.device)
        self._load_data()
        self.model = JatModel(config.model).to(self.device)
        self.optimizer = _adamw(self.model, config)
        self.step = self.timesteps = 0
        self.padded_timesteps = 0
        self.seconds = 0.0
        self._resume()

    def _load_data(self) -> None:
        from trainer.data import Mixture, TaskBatches, load_arrays
        from trainer.tokenizer import choose_tokenizer, encode

        config = self.config
        log.info("laying out %d tasks of %s", len(self.tasks), config.dataset_dir)
        cache = config.out / "train" / "cache"
        arrays = [load_arrays(config.dataset_dir, task, "train", cache) for task in self.tasks]
        texts = sorted({text for a in arrays for text in a.texts})
        self.tokenizer = choose_tokenizer(config.tokenizer, texts, config.model.vocab_size)
        normalisers = [a.normaliser() if config.normalise else None for a in arrays]
        self.normalisers = {a.task.name: n for a, n in zip(arrays, normalisers, strict=True) if n is not None}
        self.batches: list[TaskBatches] = [
            TaskBatches(
                a,
                encode(self.tokenizer, a.texts, config.text_tokens) if a.task.has_text else None,
                normaliser,
                of_task(config.contexts, a.task.name, a.task.domain, config.context_steps),
                config.batch_steps,
                seed=(config.seed, index),
            )
            for index, (a, normaliser) in enumerate(zip(arrays, normalisers, strict=True))
        ]
        self.mixture: Mixture = Mixture(
            [_weight(config.sampling_weights, task) for task in self.tasks],
            config.steps * config.micro_batches,
            config.seed,
        )
        self.loss_weights = [_weight(config.loss_weights, task) for task in self.tasks]
        log.info("%d episodes, %d steps", sum(len(a.starts) - 1 for a in arrays), sum(a.num_steps for a in arrays))

    def _resume(self) -> None:
        from trainer.checkpoint import latest_checkpoint, load_checkpoint, load_optimizer_state

        found = latest_checkpoint(self.directory / "checkpoints")
        if found is None:
            (self.directory / "log.jsonl").unlink(missing_ok=True)
            return
        checkpoint = load_checkpoint(found)
        self.model.load_state_dict(checkpoint.model.state_dict())
        self.optimizer.load_state_dict(load_optimizer_state(found))
        self.step, self.timesteps = checkpoint.config.step, checkpoint.config.trained_timesteps
        # What was logged after the checkpoint will be logged again.
        rows = [row for row in read_log(self.directory / "log.jsonl") if row["step"] <= self.step]
        if rows:
            self.seconds, self.padded_timesteps = rows[-1]["seconds"], rows[-1]["padded_timesteps"]
        with replacing(self.directory / "log.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        log.info("going on from %s", found)

    def to_the_end(self) -> None:
        from trainer.checkpoint import remove_old_checkpoints

        config = self.config
        num_parameters = sum(p.numel() for p in self.model.parameters())
        log.info(
            "%.1f M parameters, %s on %s, steps %d to %d",
            num_parameters / 1e6, self.dtype, self.device, self.step, config.steps,
        )  # fmt: skip
        progress = Progress("training steps", config.steps - self.step)
        started = time.monotonic() - self.seconds
        while self.step < config.steps:
            row = self.one_step()
            self.seconds = time.monotonic() - started
            row |= {"step": self.step, "timesteps": self.timesteps, "padded_timesteps": self.padded_timesteps}
            row["seconds"] = round(self.seconds, 3)
            with (self.directory / "log.jsonl").open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(row) + "\n")
            rate = self.timesteps / self.seconds
            progress.advance(1, f"loss {row['loss']:.4f}, {rate:,.0f} timesteps/s")
            if self.step % config.checkpoint_every == 0 or self.step == config.steps:
                self.last_checkpoint = self._save()
                remove_old_checkpoints(self.directory / "checkpoints", config.keep_checkpoints)
        self._finish(num_parameters)

    def one_step(self) -> dict[str, Any]:
        """One optimiser step; what to log of it."""
        import torch

        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = _learning_rate(config, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        by_domain: dict[str, list[float]] = {}
        for micro in range(config.micro_batches):
            task, index = self.mixture[self.step * config.micro_batches + micro]
            batch = _to_device(self.batches[task].batch(index), self.device)
            with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
                losses = self.model.losses(batch)
            (losses.total * (self.loss_weights[task] / config.micro_batches)).backward()
            total += losses.total.item() / config.micro_batches
            by_domain.setdefault(self.tasks[task].domain, []).append(losses.action.item())
            self.timesteps += int(batch.mask.sum())
            self.padded_timesteps += batch.mask.numel()
        if not math.isfinite(total):
            raise UserError(
                f"the loss is not finite at step {self.step}; the checkpoints before it are kept. "
                f"Lower --learning-rate, or check the dataset"
            )
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        self.optimizer.step()
        self.step += 1
        return {"loss": total} | {f"action_loss/{name}": sum(v) / len(v) for name, v in by_domain.items()}

    def _save(self) -> Path:
        from trainer.checkpoint import AgentConfig, Checkpoint, save_checkpoint

        config = AgentConfig(
            model=self.config.model,
            context_steps=self.config.context_steps,
            text_tokens=self.config.text_tokens,
            tasks=[task.name for task in self.tasks],
            dataset_digest=self.digest,
            step=self.step,
            trained_timesteps=self.timesteps,
            contexts=self.config.contexts,
            text_boundaries=self.config.text_boundaries,
        )
        checkpoint = Checkpoint(self.model, self.tokenizer, self.normalisers, config)
        return save_checkpoint(self.directory / "checkpoints", checkpoint, self.optimizer)

    def _finish(self, num_parameters: int) -> None:
        manifest = TrainManifest(
            checkpoint=str(self.last_checkpoint.relative_to(self.config.out)),
            digest=digest_of(read_json(self.directory / "identity.json")),
            steps=self.step,
            trained_timesteps=self.timesteps,
            num_parameters=num_parameters,
            train_seconds=round(self.seconds, 1),
            padding_share=1 - self.timesteps / self.padded_timesteps,
        )
        write_json(train_manifest_path(self.config.out), manifest)
        log.info("trained in %.0f s, %.1f %% padding", self.seconds, 100 * manifest.padding_share)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The training curve: one dict per optimiser step. A line cut off by a kill is left out."""
    return list(_complete_rows(path)) if path.exists() else []


def _complete_rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


def _weight(weights: dict[str, float], task: Task) -> float:
    return of_task(weights, task.name, task.domain, 1.0)


def _dtype(name: str, device: str) -> torch.dtype:
    import torch

    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    # Processors without matrix instructions for bfloat16 emulate it, slower than float32.
    fast = device == "cuda" or torch.cpu.get_capabilities().get("amx_bf16", False)
    return torch.bfloat16 if fast else torch.float32


def _adamw(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    import torch

    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


def _learning_rate(config: TrainConfig, step: int) -> float:
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def _to_device(batch: StepBatch, device: str) -> StepBatch:
    from trainer.model import StepBatch

    return StepBatch(
        kind=batch.kind,
        observations=batch.observations.to(device),
        previous_rewards=batch.previous_rewards.to(device),
        actions=batch.actions.to(device),
        mask=batch.mask.to(device),
    )


def main() -> None:
    train(parse(TrainConfig, RECIPES, default_recipe="small"))


if __name__ == "__main__":
    run("trainer.train")
