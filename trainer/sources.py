"""What a run trains on: the batches of every task, how often each is drawn and how much it counts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.tasks import Task
from trainer.arrays import Normaliser, TaskArrays, load_arrays
from trainer.config import TrainConfig, of_task
from trainer.data import TaskBatches
from trainer.loader import Batches, MicroBatch, Mixture, as_parts
from trainer.tokenizer import choose_tokenizer, encode

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One task, or one set of texts.

    Attributes:
        batches: of the training split.
        validation: a little of the test split, always the same; None for no validation.
    """

    name: str
    domain: str
    loss_weight: float
    sampling_weight: float
    batches: Batches
    validation: MicroBatch | None


@dataclass(frozen=True)
class TrainingData:
    """The sources of a run and what acting with its checkpoints needs of them: tokenizer and normalisers by task."""

    sources: list[Source]
    tokenizer: Tokenizer
    normalisers: dict[str, Normaliser]

    def mixture(self, config: TrainConfig) -> Mixture:
        weights = [source.sampling_weight for source in self.sources]
        return Mixture(weights, config.steps * config.micro_batches, config.seed)


def open_sources(config: TrainConfig, tasks: Sequence[Task]) -> TrainingData:
    """Lay out what is not laid out yet, and open it.

    Raises:
        UserError: a task is not in the dataset, or there is no such tokenizer.
    """
    cache = config.out / "train" / "cache"
    log.info("opening %d tasks of %s", len(tasks), config.dataset_dir)
    arrays = [load_arrays(config.dataset_dir, task, "train", cache) for task in tasks]
    texts = sorted({text for a in arrays for text in a.texts})
    tokenizer = choose_tokenizer(config.tokenizer, texts, config.model.vocab_size)
    normalisers = [a.normaliser() if config.normalise else None for a in arrays]

    def batches(a: TaskArrays, batch_steps: int, seed: int) -> TaskBatches:
        tokens = encode(tokenizer, a.texts, config.text_tokens) if a.task.has_text else None
        index = [task.name for task in tasks].index(a.task.name)
        context_steps = of_task(config.contexts, a.task.name, a.task.domain, config.context_steps)
        return TaskBatches(a, tokens, normalisers[index], context_steps, batch_steps, (seed, index), index)

    def validation(index: int, task: Task) -> MicroBatch | None:
        if config.validation_steps == 0:
            return None
        few = batches(
            load_arrays(config.dataset_dir, task, "test", cache),
            max(config.validation_steps, config.longest_context),
            seed=0,  # the same for all runs
        )
        return MicroBatch(index, 0, as_parts(few.parts(0)))

    sources = [
        Source(
            name=task.name,
            domain=task.domain,
            loss_weight=of_task(config.loss_weights, task.name, task.domain, 1.0),
            sampling_weight=of_task(config.sampling_weights, task.name, task.domain, 1.0),
            batches=batches(a, config.batch_steps, config.seed),
            validation=validation(index, task),
        )
        for index, (task, a) in enumerate(zip(tasks, arrays, strict=True))
    ]
    log.info("%d episodes, %d steps", sum(len(a.starts) - 1 for a in arrays), sum(a.num_steps for a in arrays))
    found = {task.name: n for task, n in zip(tasks, normalisers, strict=True) if n is not None}
    return TrainingData(sources, tokenizer, found)


def sampling_shares(sources: Sequence[Source]) -> np.ndarray:
    """``(len(sources),)``: how much each counts in the objective, summing to 1."""
    weights = np.array([source.sampling_weight for source in sources], np.float64)
    shares: np.ndarray = weights / weights.sum()
    return shares
