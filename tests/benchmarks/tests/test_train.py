from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.benchmarks.baselines.training import PlainJat, pad_rows, padded_windows, read_batches
from tests.benchmarks.train import BenchTrainConfig, Goal, Loading, StepRates, bench, goals_of
from tests.fakes import FAKE_COUNT, FAKE_GRID, FAKE_TASKS
from tests.trainer.conftest import TINY, tiny_config
from trainer.data.sources import open_sources
from trainer.networks.jat_model import JatModel

pytestmark = pytest.mark.slow


def test_the_plain_network_computes_the_same_numbers_from_padded_rows(run_dir: Path) -> None:
    data = open_sources(tiny_config(run_dir), FAKE_TASKS)
    config = dataclasses.replace(TINY, max_positions=512)
    torch.manual_seed(0)
    ours = JatModel(config)
    plain = PlainJat(config)
    plain.load_state_dict(ours.state_dict())
    parts = data.sources[0].batches.parts(0)
    assert pad_rows(parts, most=2).mask.shape == (2, 256)
    for source in data.sources:
        for part in source.batches.parts(0):
            padded = pad_rows([part], most=100)
            assert padded.mask.shape == (len(part.mask), 256)
            found, expected = plain.losses(padded), ours.losses(part)
            assert found.total.item() == pytest.approx(expected.total.item(), rel=1e-4)


@pytest.mark.parametrize("task", FAKE_TASKS)
def test_the_plain_loader_reads_the_same_windows(run_dir: Path, tmp_path: Path, task: object) -> None:
    data = open_sources(tiny_config(run_dir), FAKE_TASKS)
    source = data.sources[FAKE_TASKS.index(task)]  # type: ignore[arg-type]
    rows = padded_windows(run_dir / "dataset", task, data.tokenizer, 6, tmp_path / "hf")  # type: ignore[arg-type]
    name = {FAKE_COUNT: "continuous_observations", FAKE_GRID: "discrete_observations"}[task]  # type: ignore[index]
    plain = [o[m].tolist() for b in read_batches(rows, 20) for o, m in zip(b[name], b["mask"], strict=True)]
    # Ours are cut at four steps; laid end to end both are the same episodes.
    ours = [p for i in range(source.batches.num_batches) for p in source.batches.parts(i)]
    flat = np.concatenate([part.observations[part.mask].numpy() for part in ours])
    expected = np.concatenate([np.array(window) for window in plain])
    if task is FAKE_COUNT:
        flat = flat * data.normalisers[FAKE_COUNT.name].observation_std
        flat = flat + data.normalisers[FAKE_COUNT.name].observation_mean
    order = [np.lexsort(np.round(steps, 3).T) for steps in (flat, expected)]
    np.testing.assert_allclose(flat[order[0]], expected[order[1]], atol=1e-3)


GOALS = {
    "timesteps/s beside plain": "at least",  # which differs on a GPU
    "padding": "at most 5 %",
    "waiting for data": "at most 3 %",
}


def test_every_goal_stands_beside_what_was_reached() -> None:
    plain = StepRates("plain", 1, [100.0, 10.0, 100.0], [0.8] * 3, [0.0] * 3)
    # The machine was slow in the second turn, for both.
    ours = StepRates("ours", 1, [300.0, 30.0, 290.0], [0.05, 0.01, 0.06], [0.02, 0.9, 0.04])
    goals = goals_of(Loading(ours=4_900, plain=100, mapping=7), [plain, ours], on_gpu=False)
    assert [(goal.wanted, goal.reached, goal.is_reached) for goal in goals] == [
        (50, pytest.approx(49), False),
        (3, pytest.approx(3), True),
        (5, pytest.approx(5), True),
        (3, pytest.approx(4), False),
    ]
    assert goals_of(Loading(5_000, 100, 7), [plain], on_gpu=True) == [
        Goal("windows/s beside JAT's loader", 50, 50, "x", True)
    ]
    assert [goal.is_reached for goal in goals_of(Loading(5_000, 100, 7), [plain, ours], on_gpu=True)][:2] == [
        True,
        False,
    ]


def test_the_benchmark_prints_rates_and_goals_of_every_recipe(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = BenchTrainConfig(out=run_dir, hidden_size=64, num_layers=1, num_heads=2, rounds=2, steps=1, threads=1)
    bench(config, [FAKE_COUNT])
    rows = [[cell.strip() for cell in line.split("\u2502")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    goals = {row[0]: row[1:] for row in rows if len(row) == 4}
    assert list(goals) == [
        "windows/s beside JAT's loader",
        *(f"{name}: {what}" for name in ("jat", "base") for what in GOALS),
    ]
    for what, (wanted, here, reached) in goals.items():
        assert wanted.startswith(GOALS.get(what.split(": ")[-1], "at least 50 x"))
        assert float(here.split()[0]) >= 0
        assert reached in ("yes", "NO")
