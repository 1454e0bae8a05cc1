"""The training data of a run: batches, sampling weight and loss weight of every task and corpus."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.envs.task import Task
from pipeline.run_layout import RunLayout
from pipeline.storage.corpora import Corpus
from pipeline.storage.manifest import DatasetManifest
from pipeline.text import format_count
from trainer.config import LOSS_WEIGHTS, ModelConfig, TrainConfig, lookup_by_task_or_domain
from trainer.data.arrays import Normaliser, TaskArrays, load_arrays, load_normaliser
from trainer.data.batches import TaskBatches
from trainer.data.corpora import choose_corpora, load_corpus, sample_texts
from trainer.data.loader import Batches, MicroBatch, Mixture, as_parts
from trainer.data.returns import ReturnScale, best_episodes, returns_to_go, scale_of
from trainer.data.text_data import TextBatches
from trainer.data.tokenizer import choose_tokenizer, encode

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSource:
    """One task, or one set of texts.

    Attributes:
        batches: batches of the training split.
        validation: a small fixed part of the test split; None for no validation.
    """

    name: str
    domain: str
    loss_weight: float
    sampling_weight: float
    batches: Batches
    validation: MicroBatch | None


@dataclass(frozen=True)
class TrainingData:
    """The sources of a run, with the tokenizer and, by task, the normalisers and return scales that acting with its
    checkpoints needs.

    Tasks come first, in their order, then the chosen corpora.
    """

    sources: list[TrainingSource]
    tokenizer: Tokenizer
    normalisers: dict[str, Normaliser]
    corpora: list[str]
    returns: dict[str, ReturnScale]

    def mixture(
        self,
        config: TrainConfig,
        shares: Sequence[float] | None = None,
        first: int = 0,
        drawn: Sequence[int] | None = None,
    ) -> Mixture:
        """The draws of a run: by sampling weight, or by ``shares`` from draw ``first`` on; see ``Mixture``."""
        num_draws = config.steps * config.micro_batches if config.seconds is None else None
        weights = [source.sampling_weight for source in self.sources] if shares is None else shares
        return Mixture(weights, config.seed, num_draws, first, drawn)


def open_sources(
    config: TrainConfig, tasks: Sequence[Task], start: tuple[Tokenizer, Mapping[str, Normaliser]] | None = None
) -> TrainingData:
    """Convert the data that is not cached yet, and open it.

    Args:
        config: settings of the run.
        tasks: tasks to train on.
        start: the tokenizer of a checkpoint to start from, and its normalisers by task.

    Raises:
        UserError: a task is not in the dataset, or the tokenizer does not exist.
    """
    cache = RunLayout(config.out).train_cache
    log.info("opening %s of %s", format_count(len(tasks), "task"), config.dataset_dir)
    manifest = DatasetManifest.load(config.dataset_dir / DatasetManifest.FILE_NAME)
    before = start[1] if start else {}
    normalisers = [
        (before.get(task.name) or load_normaliser(config.dataset_dir, task)) if config.normalise else None
        for task in tasks
    ]
    arrays = [load_arrays(config.dataset_dir, manifest, task, "train", cache) for task in tasks]
    corpora = choose_corpora(config)
    texts = sorted({text for a in arrays for text in a.texts})
    tokenizer = (
        start[0]
        if start
        else choose_tokenizer(
            config.tokenizer, itertools.chain(texts, sample_texts(config, manifest, corpora)), config.model.vocab_size
        )
    )
    _warn_of_cut_texts(tokenizer, texts, config.text_tokens)

    uses_returns = config.objective in ("return-conditioned", "advantage")
    scales = [scale_of(task, a.rewards, a.starts) for task, a in zip(tasks, arrays, strict=True) if uses_returns]

    def batches(index: int, a: TaskArrays, batch_steps: int, seed: int) -> TaskBatches:
        tokens = encode(tokenizer, a.texts, config.text_tokens) if a.task.has_text else None
        context_steps = lookup_by_task_or_domain(config.contexts, a.task.name, a.task.domain, config.context_steps)
        episodes = best_episodes(a.rewards, a.starts, config.best_share) if config.objective == "filtered" else None
        to_go = (
            scales[index].standardise(returns_to_go(a.rewards, a.starts, a.task.max_steps)) if uses_returns else None
        )
        return TaskBatches(
            a, tokens, normalisers[index], context_steps, batch_steps, (seed, index), index, episodes, to_go
        )

    def validation(index: int, task: Task) -> MicroBatch | None:
        if config.validation_steps == 0:
            return None
        few = batches(
            index,
            load_arrays(config.dataset_dir, manifest, task, "test", cache),
            max(config.validation_steps, config.longest_context),
            seed=0,  # the same for all runs
        )
        return MicroBatch(index, 0, as_parts(few.parts(0)))

    sources = [
        TrainingSource(
            name=task.name,
            domain=task.domain,
            loss_weight=lookup_by_task_or_domain(
                config.loss_weights, task.name, task.domain, LOSS_WEIGHTS[task.action.kind]
            ),
            sampling_weight=lookup_by_task_or_domain(config.sampling_weights, task.name, task.domain, 1.0),
            batches=batches(index, a, config.batch_steps, config.seed),
            validation=validation(index, task),
        )
        for index, (task, a) in enumerate(zip(tasks, arrays, strict=True))
    ]
    log.info("%d episodes, %d steps", sum(len(a.starts) - 1 for a in arrays), sum(a.num_steps for a in arrays))
    sources += [
        _open_corpus(config, manifest, corpus, tokenizer, cache, index)
        for index, corpus in enumerate(corpora, len(sources))
    ]
    found = {task.name: n for task, n in zip(tasks, normalisers, strict=True) if n is not None}
    returns = {task.name: scale for task, scale in zip(tasks, scales, strict=uses_returns)}
    return TrainingData(sources, tokenizer, found, [corpus.name for corpus in corpora], returns)


def _warn_of_cut_texts(tokenizer: Tokenizer, texts: Sequence[str], text_tokens: int) -> None:
    """Warn if missions lose their end, as most do with the tokenizer of a checkpoint that was trained without any."""
    lengths = [len(found.ids) for found in tokenizer.encode_batch(list(texts))]
    num_cut = sum(length > text_tokens for length in lengths)
    if num_cut:
        log.warning(
            "%d of %s have up to %d tokens and are cut to --text-tokens %d",
            num_cut, format_count(len(texts), "mission"), max(lengths), text_tokens,
        )  # fmt: skip


def _open_corpus(
    config: TrainConfig, manifest: DatasetManifest, corpus: Corpus, tokenizer: Tokenizer, cache: Path, index: int
) -> TrainingSource:
    model = config.model
    assert isinstance(model, ModelConfig), "choose_corpora has refused others"
    domain = "captions" if corpus.has_images else "texts"

    def batches(split: str, batch_steps: int, seed: int) -> TextBatches:
        arrays = load_corpus(config, manifest, corpus, split, tokenizer, cache)
        log.info("%s, %s: %d documents, %d tokens", corpus.name, split, len(arrays.starts) - 1, arrays.starts[-1])
        # A time step has two positions.
        most = max(2 * batch_steps, model.max_positions)
        return TextBatches(arrays, model.max_positions, most, model.picture_size, model.num_patches, (seed, index))

    validation = None
    if config.validation_steps:
        few = batches("test", config.validation_steps, seed=0)  # the same for all runs
        validation = MicroBatch(index, 0, as_parts(few.parts(0)))
    return TrainingSource(
        name=corpus.name,
        domain=domain,
        loss_weight=lookup_by_task_or_domain(config.loss_weights, corpus.name, domain, 1.0),
        sampling_weight=lookup_by_task_or_domain(config.sampling_weights, corpus.name, domain, 1.0),
        batches=batches("train", config.batch_steps, config.seed),
        validation=validation,
    )


def sampling_shares(sources: Sequence[TrainingSource]) -> np.ndarray:
    """Return ``(len(sources),)``: the weight of each source in the objective, summing to 1."""
    weights = np.array([source.sampling_weight for source in sources], np.float64)
    shares: np.ndarray = weights / weights.sum()
    return shares
