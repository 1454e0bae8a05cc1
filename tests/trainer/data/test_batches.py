from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from collectors.dataset.build import DatasetConfig, build_dataset
from pipeline.envs.episode import Episode, label_array
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.storage.manifest import DatasetManifest
from pipeline.storage.plan import ShardJob
from pipeline.storage.shards import write_shard
from pipeline.storage.statistics import statistics_path
from tests.fakes import FAKE_COUNT, FAKE_GRID, FAKE_PIXELS, expected_episode, observation_at, reward_at
from trainer.batch import StepBatch
from trainer.data.arrays import Normaliser, TaskArrays, lay_out_images, load_arrays, load_normaliser
from trainer.data.batches import TaskBatches, _cut_into_parts, plan_cuts
from trainer.data.loader import Mixture
from trainer.data.windows import Windows

TRAIN_SEEDS = range(40)
# Lengths of the episodes of seeds 0 to 4, and so of every five: see tests.fakes.num_steps.
LENGTHS = [1, 2, 3, 4, 6]


def arrays_of(out: Path, task: object) -> TaskArrays:
    dataset = out / "dataset"
    return load_arrays(dataset, DatasetManifest.load(dataset / "manifest.json"), task, "train", out / "cache")  # type: ignore[arg-type]


def batches_of(out: Path, context_steps: int = 4, batch_steps: int = 16, seed: int = 0) -> TaskBatches:
    return TaskBatches(arrays_of(out, FAKE_COUNT), None, None, context_steps, batch_steps, (seed,))


def test_arrays_hold_the_episodes_end_to_end(run_dir: Path) -> None:
    for task in (FAKE_COUNT, FAKE_GRID):
        arrays = arrays_of(run_dir, task)
        assert arrays.starts[:7].tolist() == [0, 1, 3, 6, 10, 16, 17]
        assert arrays.num_steps == 8 * sum(LENGTHS)
        for row, seed in enumerate(TRAIN_SEEDS):
            expected = expected_episode(task, seed)
            steps = slice(arrays.starts[row], arrays.starts[row + 1])
            np.testing.assert_array_equal(arrays.observations[steps], expected.observations)
            np.testing.assert_array_equal(arrays.actions[steps], expected.actions)
            np.testing.assert_array_equal(arrays.rewards[steps], expected.rewards)
            if task.has_text:
                assert arrays.text_ids is not None
                assert tuple(arrays.texts[i] for i in arrays.text_ids[steps]) == expected.texts


def test_the_layout_is_made_once_and_a_half_made_one_is_not_taken(run_dir: Path) -> None:
    arrays_of(run_dir, FAKE_COUNT)
    (layout,) = (run_dir / "cache").iterdir()
    made = layout.stat().st_mtime_ns
    half_made = layout.with_name(f".{layout.name}.1.tmp")
    shutil.copytree(layout, half_made)
    (half_made / "rewards.npy").unlink()
    assert arrays_of(run_dir, FAKE_COUNT).num_steps == 8 * sum(LENGTHS)
    assert layout.stat().st_mtime_ns == made


def test_a_task_that_is_not_in_the_dataset_is_named(run_dir: Path) -> None:
    with pytest.raises(UserError, match=r"pixel-count is not in .*fake-count, toy-grid"):
        arrays_of(run_dir, FAKE_PIXELS)


def rows_of(parts: Sequence[StepBatch]) -> list[list[list[float]]]:
    """Observations of the real steps of each window."""
    return [
        observations[mask].tolist()
        for batch in parts
        for observations, mask in zip(batch.observations, batch.mask, strict=True)
    ]


def windows_of(parts: Sequence[StepBatch]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Observations, previous rewards and mask of each window."""
    for part in parts:
        yield from zip(part.observations, part.previous_rewards, part.mask, strict=True)


def test_an_epoch_holds_every_step_exactly_once_cut_at_the_context(run_dir: Path) -> None:
    batches = batches_of(run_dir)
    windows = [row for index in range(batches.num_batches) for row in rows_of(batches.parts(index))]
    expected = []
    for seed in TRAIN_SEEDS:
        steps = [observation_at(FAKE_COUNT, seed, t).tolist() for t in range(LENGTHS[seed % 5])]
        expected += [steps[:4], steps[4:]] if len(steps) > 4 else [steps]
    assert sorted(windows) == sorted(expected)


def test_the_reward_shown_is_the_one_before_also_across_a_cut(run_dir: Path) -> None:
    batches = batches_of(run_dir)
    for index in range(batches.num_batches):
        for observations, rewards, mask in windows_of(batches.parts(index)):
            for (_, high, low, t), reward in zip(observations[mask].tolist(), rewards[mask].tolist(), strict=True):
                seed = int(high * 20 + low)
                assert reward == (reward_at(FAKE_COUNT, seed, int(t) - 1) if t else 0.0)


def test_batches_keep_to_their_size_and_pad_little(run_dir: Path) -> None:
    batches = batches_of(run_dir)
    sizes = [[part.mask for part in batches.parts(index)] for index in range(batches.num_batches)]
    assert max(sum(mask.numel() for mask in masks) for masks in sizes) <= 16
    assert sum(int(mask.sum()) for masks in sizes for mask in masks) == 8 * sum(LENGTHS)
    assert sum(mask.numel() for masks in sizes for mask in masks) == 8 * sum(LENGTHS)


def test_a_batch_depends_on_seed_and_index_alone(run_dir: Path) -> None:
    one, other = batches_of(run_dir), batches_of(run_dir)
    far = 3 * one.num_batches + 1
    ahead = rows_of(other.parts(far))
    for index in range(far):
        one.parts(index)
    assert rows_of(one.parts(far)) == ahead
    assert rows_of(batches_of(run_dir, seed=1).parts(far)) != ahead


def test_epochs_differ_in_order(run_dir: Path) -> None:
    batches = batches_of(run_dir)
    first = [rows_of(batches.parts(i)) for i in range(batches.num_batches)]
    second = [rows_of(batches.parts(batches.num_batches + i)) for i in range(batches.num_batches)]
    assert first != second


def test_a_mixture_counts_each_tasks_draws_and_follows_its_weights() -> None:
    mixture = Mixture([1.0, 3.0], seed=0, num_draws=4000)
    seen = [0, 0]
    for draw in range(4000):
        task, index = mixture[draw]
        assert index == seen[task]
        seen[task] += 1
    assert seen[1] / seen[0] == pytest.approx(3, rel=0.1)
    assert [mixture[i] for i in range(50)] != [Mixture([1.0, 3.0], 1, 4000)[i] for i in range(50)]


def test_normalised_observations_have_mean_zero_and_deviation_one(run_dir: Path) -> None:
    arrays = arrays_of(run_dir, FAKE_COUNT)
    normaliser = load_normaliser(run_dir / "dataset", FAKE_COUNT)
    assert isinstance(normaliser, Normaliser)
    values = normaliser.observations(np.asarray(arrays.observations))
    # The first number is the same in all training seeds: a constant is centred, not divided by nothing.
    assert values[:, 0].tolist() == [0.0] * len(values)
    np.testing.assert_allclose(values[:, 1:].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(values[:, 1:].std(axis=0), 1, atol=1e-4)
    assert normaliser.rewards(arrays.rewards).std() == pytest.approx(1, abs=1e-4)
    assert load_normaliser(run_dir / "dataset", FAKE_GRID) is None


def test_a_dataset_without_statistics_is_told_how_to_get_them(run_dir: Path) -> None:
    statistics_path(run_dir / "dataset", FAKE_COUNT.name).unlink()
    with pytest.raises(UserError, match=r"fake-count.json is missing; build .* `jat dataset --task fake-count`"):
        load_normaliser(run_dir / "dataset", FAKE_COUNT)


def test_windows_of_unlike_lengths_come_in_parts_and_hardly_any_padding_is_left() -> None:
    lengths = np.sort(np.random.default_rng(0).geometric(1 / 30, 500).clip(1, 128))
    for batch_size in (128, 2048):
        cuts = plan_cuts(lengths, batch_size)
        assert sorted(range(500)) == sorted(i for c in cuts for i in range(c[0], c[-1]))
        padded = [int((np.diff(c) * lengths[c[1:] - 1]).sum()) for c in cuts]
        assert max(padded) <= batch_size
        assert 1 - lengths.sum() / sum(padded) < 0.05
        assert max(len(c) - 1 for c in cuts) <= 4
    # One cut, where it leaves the least padding: one step of 182.
    assert _cut_into_parts(np.array([3, 59, 60, 60])).tolist() == [0, 1, 4]


def test_alike_windows_come_in_one_part() -> None:
    assert [c.tolist() for c in plan_cuts(np.full(5, 10), 30)] == [[2, 5], [0, 2]]


def test_threads_may_ask_for_batches_of_different_epochs_at_once(run_dir: Path) -> None:
    alone, shared = batches_of(run_dir), batches_of(run_dir)
    indices = list(range(4 * alone.num_batches)) * 3
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda index: rows_of(shared.parts(index)), indices))
    assert found == [rows_of(alone.parts(index)) for index in indices]


def test_a_batch_can_be_described_by_the_rows_of_its_episodes(run_dir: Path) -> None:
    batches = batches_of(run_dir)
    for index in range(batches.num_batches):
        task, rows = batches.describe(index).split(", episode rows ")
        assert task == FAKE_COUNT.name
        seeds = {int(steps[0][1] * 20 + steps[0][2]) for steps in rows_of(batches.parts(index))}
        assert {int(row) for row in rows.split(", ")} == seeds


def test_images_are_laid_out_with_every_frame_once_and_come_back_exactly(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (9, 84, 84), np.uint8)
    stacks = np.lib.stride_tricks.sliding_window_view(frames, 4, axis=0)  # six steps that go on from one another
    jump = np.moveaxis(frames[[0, 2, 4, 6]], 0, -1)[None]
    seeds = (0, 1)
    episodes = [
        replace(
            expected_episode(FAKE_PIXELS, seed),
            observations=observations,
            actions=np.arange(len(observations)) % 5,
            rewards=np.ones(len(observations), np.float32),
        )
        for seed, observations in zip(seeds, (stacks, jump), strict=True)
    ]
    for split, first in (("train", 0), ("test", 1_000_000_000)):
        job = ShardJob(FAKE_PIXELS, split, first, 2, "random")
        write_shard(tmp_path / "shards", job, "1", [replace(e, seed=first + e.seed) for e in episodes])
    build_dataset(DatasetConfig(out=tmp_path), [FAKE_PIXELS])
    lay_out_images(tmp_path / "dataset", [FAKE_PIXELS], tmp_path / "cache", processes=1)
    (layout,) = (tmp_path / "cache").glob("*-train-*")
    arrays = arrays_of(tmp_path, FAKE_PIXELS)
    assert (layout / "frames.bin").stat().st_size == (9 + 4) * 84 * 84
    np.testing.assert_array_equal(arrays.observations_at(np.arange(7)), np.concatenate([stacks, jump]))
    batches = TaskBatches(arrays, None, None, 4, 8, (0,))
    shown = [p.observations[p.mask] for i in range(batches.num_batches) for p in batches.parts(i)]
    assert sum(map(len, shown)) == 7
    assert torch.cat(shown).shape[1:] == (4, 84, 84)


def labelled_run(out: Path, task: Task) -> None:
    """Seeds 0 to 39, of which those from 20 on are labelled with the next action; nothing at their first steps."""
    for split, first, count, labels in (
        ("train", 0, 20, None), ("train", 20, 20, "bot-1"), ("test", 1_000_000_000, 4, None),
    ):  # fmt: skip
        job = ShardJob(task, split, first, count, "agent", labels=labels)
        write_shard(out / "shards", job, "1", [labelled_episode(task, seed) for seed in job.seeds])
    build_dataset(DatasetConfig(out=out), [task])


def labelled_episode(task: Task, seed: int) -> Episode:
    episode = expected_episode(task, seed)
    discrete = task.action.kind == "discrete"
    labels: list[Any] = list((episode.actions + 1) % task.action.size if discrete else -episode.actions)
    return replace(episode, labels=label_array(task, [None, *labels[1:]]))


@pytest.mark.parametrize("task", [FAKE_COUNT, FAKE_GRID, FAKE_PIXELS], ids=lambda task: task.name)
def test_labels_are_learned_where_there_are_some_and_what_was_executed_elsewhere(task: Task, tmp_path: Path) -> None:
    labelled_run(tmp_path, task)
    arrays = arrays_of(tmp_path, task)
    tokens = np.zeros((len(arrays.texts), 2), np.int64)
    batches = TaskBatches(arrays, tokens, None, 4, 16, (0,))
    assert arrays.labels is not None and arrays.labelled is not None
    seen = {True: 0, False: 0}
    for index in range(batches.num_batches):
        for batch in batches.parts(index):
            assert batch.labels is not None and batch.labelled is not None
            assert not (batch.labelled & ~batch.mask).any() and torch.isfinite(batch.labels.float()).all()
            assert torch.equal(batch.targets, batch.labels[batch.labelled])
    for row, seed in enumerate(TRAIN_SEEDS):
        steps = slice(arrays.starts[row], arrays.starts[row + 1])
        episode = labelled_episode(task, seed)
        assert episode.labels is not None
        np.testing.assert_array_equal(arrays.actions[steps], episode.actions)  # inputs are what was executed
        expected = [seed < 20 or t > 0 for t in range(len(episode))]
        assert arrays.labelled[steps].tolist() == expected
        wanted = episode.actions if seed < 20 else episode.labels
        np.testing.assert_array_equal(arrays.labels[steps][expected], wanted[expected])
        seen[seed < 20] += len(episode)
    assert min(seen.values()) > 0
    windows = Windows(tmp_path / "dataset", task, length=4)
    item = windows[len(windows) - 1]
    assert item["labels"].shape == item["actions"].shape and not (item["labelled"] & ~item["mask"]).any()


def test_without_labels_the_executed_actions_are_learned(run_dir: Path) -> None:
    (batch, *_) = batches_of(run_dir).parts(0)
    assert batch.labels is None and batch.labelled is None and arrays_of(run_dir, FAKE_COUNT).labels is None
    assert torch.equal(batch.targets, batch.actions[batch.mask]) and torch.equal(batch.learned, batch.mask)
