"""One training run in one process: its data, network, optimiser and training loop.

Each of several workers runs this with its share of every optimiser step's micro-batches; rank 0 writes. All randomness
is a function of (seed, step, rank), so a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.run_layout import CHECKPOINTS, TRAIN_LOG
from pipeline.stopping import deferred_stop, stop_requested
from trainer.checkpoint import (
    Checkpoint,
    CheckpointProgress,
    latest_checkpoint,
    load_optimizer_state,
    load_progress,
    newest_state,
    save_state,
)
from trainer.config import TrainConfig
from trainer.data.loader import Loader, to_device
from trainer.data.sources import open_sources
from trainer.networks.build import build_model
from trainer.networks.layout import layout_of
from trainer.networks.weights import read_weights
from trainer.training.agents import agent_of
from trainer.training.budget import TrainingBudget
from trainer.training.compiling import check_compiler, compile_blocks
from trainer.training.group import LossModule, current_group
from trainer.training.logs import check_identity, cut_log, stop_path
from trainer.training.memory import bytes_held, describe_bytes, explaining_out_of_memory
from trainer.training.optimizer import adamw, choose_dtype
from trainer.training.reporter import StepReporter, totals_of
from trainer.training.sampling import AdaptiveSampling, Player
from trainer.training.sharding import Shards, idle_batches
from trainer.training.start import take_over
from trainer.training.totals import StepTotals
from trainer.training.validation import losses_by_source, validation_loss

log = logging.getLogger(__name__)

MeasuredT = TypeVar("MeasuredT")


class TrainingRun:
    """A training run, restored from its last checkpoint if there is one.

    Args:
        config: settings of the run.
        tasks: tasks to train on, all in the dataset.
        directory: folder of its checkpoints and log.
        identity: what determines the result of the run.
        start: the checkpoint whose weights the run starts from; None for an untrained network.
        player: plays the tasks for ``--sampling adaptive``.

    Raises:
        UserError: the last checkpoint is of another run.
    """

    def __init__(
        self,
        config: TrainConfig,
        tasks: Sequence[Task],
        directory: Path,
        identity: dict[str, Any],
        start: Checkpoint | None = None,
        player: Player | None = None,
    ) -> None:
        self.config, self.tasks, self.directory, self.budget = config, tasks, directory, TrainingBudget.of(config)
        self.group = current_group()
        torch.set_num_threads(max(1, min(config.threads, (os.cpu_count() or 1) // self.group.local_size)))
        self.dtype = choose_dtype(config.dtype, self.group.device)
        if config.compile:
            check_compiler(self.group.device)
        self.data = open_sources(config, tasks, (start.tokenizer, start.normalisers) if start else None)
        torch.manual_seed(config.seed)
        self.layouts = [layout_of(task, config.text_tokens) for task in tasks]
        self.model = build_model(config.model, self.layouts)
        if start is not None:
            take_over(self.model, self.layouts, tasks, start)
        self.progress = CheckpointProgress(identity)
        found = self._resume()
        self._shards: Shards | None = None
        self._network = LossModule(self.model)
        if config.shard:
            self._shards = Shards(self._network, self.model, self.group)
        else:
            self.model.to(self.group.device)
        self.optimizer = adamw(self.model, config)
        if found is not None:
            state = load_optimizer_state(found, mapped=config.shard)
            self.optimizer.load_state_dict(self._shards.own_part(state, self.optimizer) if self._shards else state)
        if config.compile:
            compile_blocks(self.model)
        self._saved_at = time.monotonic()
        self._is_saving = self._is_stopping = False
        self._shared = self._network if config.shard else self.group.share_gradients(self._network)
        self._player, self._waited_s = player, 0.0
        self._sampling = None
        if config.sampling != "uniform":
            self._sampling = AdaptiveSampling(config, self.data, self.group, self.progress.sampling)
        self._loader = self._open_loader()

    def _open_loader(self) -> Loader:
        config = self.config
        return Loader(
            [source.batches for source in self.data.sources],
            self._sampling.mixture if self._sampling else self.data.mixture(config),
            config.micro_batches,
            self.progress.step,
            self.group.rank,
            self.group.world_size,
            config.loader_threads,
        )

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def waited_s(self) -> float:
        """Seconds that this part of the run has waited for data."""
        return self._waited_s + self._loader.waited_s

    @property
    def checkpoints(self) -> Path:
        return self.directory / CHECKPOINTS

    def _resume(self) -> Path | None:
        """Load progress and weights from the last checkpoint, and return its path."""
        found = newest_state(self.directory)
        if found is not None:
            progress = load_progress(found)
            check_identity(found, progress.identity, self.progress.identity)
            self.model.load_state_dict(read_weights(found, self.model, str(found)))
            self.progress = progress
            log.info("going on from %s", found)
        if self.group.is_main_process:
            cut_log(self.directory / TRAIN_LOG, self.progress.step)
        return found

    def close(self) -> None:
        """Stop the loader threads; ``fit`` calls this itself."""
        self._loader.close()

    def fit(self) -> None:
        """Train the remaining steps, or until this process, or the one that started the workers, is asked to stop.

        Raises:
            UserError: a loss is not finite, or out of memory.
        """
        config, is_main_process = self.config, self.group.is_main_process
        log.info(
            "%.1f M parameters, %s on %d x %s, from step %d; %.0f %s left",
            self.num_parameters / 1e6, self.dtype, self.group.world_size, self.group.device.type,
            self.progress.step, self.budget.left(totals_of(self.progress)), self.budget.label,
        )  # fmt: skip
        with contextlib.ExitStack() as stack:
            if is_main_process:
                reporter = StepReporter(config, self.directory, self.progress)
                stack.callback(reporter.close)
            stack.callback(self.close)
            started = time.monotonic() - self.progress.seconds
            waited, first_step = self.progress.waited_seconds, self.progress.step
            stack.enter_context(deferred_stop())
            self._agree_on_saving()
            self._adapt_sampling()
            while not self._is_finished() and not self._is_stopping:
                row = self.one_step()
                if is_main_process and self.progress.step == first_step + 1:
                    log.info("each worker holds %s", describe_bytes(bytes_held(self.model, self.optimizer)))
                row |= self._adapt_sampling()
                # All workers must agree on the time: the learning rate and the end may follow it.
                (seconds,) = self.group.max([time.monotonic() - started])
                self.progress = replace(self.progress, seconds=seconds, waited_seconds=waited + self.waited_s)
                is_kept = self.progress.step % config.checkpoint_every == 0 or self._is_finished()
                if is_kept:
                    self.progress = replace(self.progress, validation_loss=self.validate())
                    if self.progress.validation_loss is not None:
                        row["validation_loss"] = self.progress.validation_loss
                if is_main_process:
                    reporter.report(row, self.progress)
                self._agree_on_saving()
                if is_kept or self._is_saving or self._is_stopping:
                    self._save(is_kept)

    def _is_finished(self) -> bool:
        return not self.budget.left(totals_of(self.progress))

    def _agree_on_saving(self) -> None:
        """Decide, the same in all workers, whether to save now although no regular checkpoint is due, and whether to
        stop."""
        is_late = time.monotonic() - self._saved_at >= 60 * self.config.checkpoint_minutes
        is_asked = stop_requested() or stop_path(self.directory).exists()
        own = [float(flag and self.group.is_main_process) for flag in (is_late, is_asked)]
        self._is_saving, self._is_stopping = (bool(flag) for flag in self.group.max(own))

    def one_step(self) -> dict[str, float]:
        """Run one optimiser step in all workers; return its row of the log.

        Raises:
            UserError: a loss is not finite, or out of memory.
        """
        step = self.progress.step
        torch.manual_seed(_seed_of(self.config.seed, step, self.group.rank))
        rate = self.budget.learning_rate(step, self.progress.seconds)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        with explaining_out_of_memory(self.config):
            totals = self._accumulate()
        if self._shards:
            self._shards.drop_unused()
        total_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        norm = float(total_norm.full_tensor() if isinstance(total_norm, DTensor) else total_norm)
        row = self._sum_up(totals)
        if not math.isfinite(row["loss"]) or not math.isfinite(norm):
            self._refuse(totals)
        self.optimizer.step()
        self.progress = replace(self.progress, step=step + 1)
        return row | {"learning_rate": rate, "gradient_norm": norm}

    def _accumulate(self) -> StepTotals:
        """Run forward and backward of this worker's micro-batches; gradients are shared in the last pass."""
        totals = StepTotals()
        num_own = self.config.micro_batches // self.group.world_size
        for number in range(num_own):
            micro_batch = self._loader.next()
            weight = self.data.sources[micro_batch.source].loss_weight / num_own
            loss, action_loss = torch.zeros(2, device=self.group.device)
            idle = idle_batches(self.group, micro_batch.parts) if self._shards else []
            for part in micro_batch.parts:
                share = part.num_steps / micro_batch.num_steps
                is_last = number == num_own - 1 and part is micro_batch.parts[-1]
                with self.group.sharing(self._shared, is_last):
                    part_loss, part_action_loss = self._losses(part.batch, self._shared)
                    (part_loss * (share * weight)).backward()
                loss, action_loss = loss + share * part_loss.detach(), action_loss + share * part_action_loss
                totals.padded_steps += part.padded_steps
            self._keep_in_step(idle)
            totals.micro_batches.append(micro_batch)
            totals.losses.append(loss)
            totals.action_losses.append(action_loss)
            totals.num_steps += micro_batch.num_steps
        return totals

    def _keep_in_step(self, idle: Sequence[Any]) -> None:
        """Run dummy passes so that every FSDP rank issues the same collectives; the RNG state is restored
        afterwards."""
        devices = [self.group.device] if self.group.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=bool(idle)):
            for batch in idle:
                (self._losses(batch, self._shared)[0] * 0).backward()

    def _losses(self, batch: Any, network: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the total loss and the action loss."""
        device = self.group.device
        with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
            total, action = network(to_device(batch, device))
        return total, action

    def _sum_up(self, totals: StepTotals) -> dict[str, float]:
        """Average the losses over the micro-batches of all workers, and update the counters."""
        sums = totals.sum_up(self.group, self.data.sources)
        self.progress = replace(
            self.progress,
            timesteps=self.progress.timesteps + sums.num_steps,
            padded_timesteps=self.progress.padded_timesteps + sums.padded_steps,
        )
        return {"loss": sums.loss / self.config.micro_batches} | sums.by_domain

    def _refuse(self, totals: StepTotals) -> None:
        found = totals.not_finite(self.group, self.data.sources)
        what = f"the loss of {found}" if found else "the gradient, of finite losses,"
        last = latest_checkpoint(self.checkpoints)
        raise UserError(
            f"{what} is not finite at step {self.progress.step}; {last.name if last else 'no checkpoint'} is kept. "
            f"Lower --learning-rate ({self.config.learning_rate:g}), or look at these rows of the dataset"
        )

    def _adapt_sampling(self) -> dict[str, float]:
        """Measure what each task needs, if it is time to, and draw by it from here on; return columns of the log."""
        state, step, sampling = self.progress.sampling, self.progress.step, self._sampling
        if sampling is None or self._is_finished() or not sampling.is_due(state, step):
            return {}
        state = sampling.update(state, step, partial(self._held_out, losses_by_source), self._play)
        self.progress = replace(self.progress, sampling=state)
        self._loader.close()
        self._waited_s += self._loader.waited_s
        self._loader = self._open_loader()
        return sampling.columns(state)

    def _play(self, number: int, own: Sequence[int]) -> Mapping[int, float]:
        """Play tasks with the weights as they are now. A network that is spread over the workers is whole in the main
        process only, which plays for all."""
        assert self._player is not None, "nobody plays for --sampling adaptive"
        weights = self._shards.weights() if self._shards else self.model.state_dict()
        if self._shards:
            own = range(len(self.tasks)) if self.group.is_main_process else []
        return self._player(self._agent(), weights, number, own)

    def validate(self) -> float | None:
        """Return the training objective on a small fixed part of the test split; None if the run has no validation."""
        return self._held_out(validation_loss)

    def _held_out(self, measure: Callable[..., MeasuredT]) -> MeasuredT:
        """Call a function of ``trainer/training/validation.py`` with the network as it is now."""
        self.model.eval()
        # Not through the gradient-sharing wrapper, which every worker would have to call equally often.
        found = measure(self.data, self.group, lambda batch: self._losses(batch, self._network)[0], self._shards)
        self.model.train()
        return found

    def _save(self, is_kept: bool) -> None:
        """Write a checkpoint on rank 0: a regular one that is kept, or one to resume from."""
        self._saved_at = time.monotonic()
        weights = self._shards.weights() if self._shards else self.model.state_dict()
        optimizer_state = self._shards.optimizer_state(self.optimizer) if self._shards else self.optimizer.state_dict()
        if not self.group.is_main_process:
            return
        keep = self.config.keep_checkpoints
        save_state(self.directory, self._agent(), optimizer_state, self.progress, weights, keep, is_kept)

    def _agent(self) -> Checkpoint:
        return agent_of(self.model, self.config, self.tasks, self.layouts, self.data, self.progress)


def _seed_of(seed: int, step: int, rank: int) -> int:
    """Return the seed of torch's generators for one step; neighbouring steps get unrelated seeds."""
    mixed = (seed * 1_000_003 + step) * 1_000_003 + rank
    return mixed % 2**63
