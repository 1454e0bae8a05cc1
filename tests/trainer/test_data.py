from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from tests.fakes import FAKE_COUNT, FAKE_GRID, FAKE_PIXELS, expected_episode, observation_at, reward_at
from trainer.arrays import Normaliser, TaskArrays, load_arrays
from trainer.data import TaskBatches
from trainer.loader import Mixture
from trainer.model import StepBatch

TRAIN_SEEDS = range(40)
# Lengths of the episodes of seeds 0 to 4, and so of every five: see tests.fakes.num_steps.
LENGTHS = [1, 2, 3, 4, 6]


def arrays_of(out: Path, task: object) -> TaskArrays:
    return load_arrays(out / "dataset", task, "train", out / "cache")  # type: ignore[arg-type]


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
    mixture = Mixture([1.0, 3.0], num_draws=4000, seed=0)
    seen = [0, 0]
    for draw in range(4000):
        task, index = mixture[draw]
        assert index == seen[task]
        seen[task] += 1
    assert seen[1] / seen[0] == pytest.approx(3, rel=0.1)
    assert [mixture[i] for i in range(50)] != [Mixture([1.0, 3.0], 4000, seed=1)[i] for i in range(50)]


def test_normalised_observations_have_mean_zero_and_deviation_one(run_dir: Path) -> None:
    arrays = arrays_of(run_dir, FAKE_COUNT)
    normaliser = arrays.normaliser()
    assert isinstance(normaliser, Normaliser)
    values = normaliser.observations(np.asarray(arrays.observations))
    # The first number is the same in all training seeds: a constant is centred, not divided by nothing.
    assert values[:, 0].tolist() == [0.0] * len(values)
    np.testing.assert_allclose(values[:, 1:].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(values[:, 1:].std(axis=0), 1, atol=1e-4)
    assert normaliser.rewards(arrays.rewards).std() == pytest.approx(1, abs=1e-4)
    assert arrays_of(run_dir, FAKE_GRID).normaliser() is None
