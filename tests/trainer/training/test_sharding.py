"""A network spread over workers trains as whole ones do. Groups of processes over gloo; with Ray in test_workers.py."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from pipeline.envs.task import CONTINUOUS
from pipeline.errors import UserError
from tests.fakes import FAKE_TASKS
from tests.trainer.conftest import TINY
from tests.trainer.training.local_group import run_group
from tests.trainer.training.test_compiling import HAS_COMPILER
from trainer.batch import Batch, StepBatch, TextBatch
from trainer.checkpoint import latest_checkpoint, load_checkpoint, load_optimizer_state, load_progress
from trainer.config import BaseModelConfig, ModelConfig, TrainConfig
from trainer.data.loader import SourceShare
from trainer.networks.jat_model import JatModel
from trainer.train import make_identity
from trainer.training.group import Group, current_group
from trainer.training.logs import read_log, stop_path
from trainer.training.memory import bytes_held
from trainer.training.run import TrainingRun
from trainer.training.sharding import Shards, idle_batches

pytestmark = pytest.mark.slow

MakeConfig = Callable[..., TrainConfig]

# With noise: what counts nothing must not use up random numbers. Every task has a layout of its own, so maps have a
# first dimension of 1, which cannot be cut.
BASE = BaseModelConfig(
    hidden_size=16, num_layers=2, num_heads=2, window_steps=3, discrete_encoder="flat",
    observation_noise=0.1, observation_loss_coef=0.1,
)  # fmt: skip


def train_here(config: TrainConfig, directory: Path, steps: int | None = None) -> dict[str, Any]:
    """Train in this process, as one of a group or alone: the bytes it held, and what it had to do for the others.

    Args:
        config: the run; its own number of workers is not looked at.
        directory: of the run.
        steps: stop there, as a kill would.
    """
    from trainer.training import run, sharding

    found: dict[str, Any] = {"idle": 0, "unused": set()}

    def counting(*arguments: Any, **named: Any) -> list[Any]:
        batches = idle_batches(*arguments, **named)
        found["idle"] += len(batches)
        return batches

    run.idle_batches = counting  # type: ignore[attr-defined]
    directory.mkdir(exist_ok=True, parents=True)
    training = TrainingRun(config, FAKE_TASKS, directory, make_identity(config, FAKE_TASKS))
    one_step = training.one_step

    def stepping() -> dict[str, float]:
        if training.progress.step == steps:
            raise InterruptedError
        row = one_step()
        found["unused"] |= {name for name, p in training.model.named_parameters() if p.grad is None}
        return row

    training.one_step = stepping  # type: ignore[method-assign]
    try:
        training.fit()
    except InterruptedError:
        pass
    except UserError as error:
        found["error"] = str(error)
    finally:
        run.idle_batches = sharding.idle_batches  # type: ignore[attr-defined]
    return found | {"bytes": bytes_held(training.model, training.optimizer)}


def train_each(jobs: Sequence[tuple[TrainConfig, Path]]) -> list[dict[str, Any]]:
    return [train_here(config, directory) for config, directory in jobs]


def curve(directory: Path) -> list[dict[str, Any]]:
    return read_log(directory / "log.jsonl")


def assert_same_curve(directory: Path, expected_directory: Path, rel: float = 1e-4) -> None:
    found, expected = curve(directory), curve(expected_directory)
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    assert [row["timesteps"] for row in found] == [row["timesteps"] for row in expected]
    for name in ("loss", "gradient_norm", "validation_loss"):
        numbers = [row[name] for row in expected if name in row]
        assert [row[name] for row in found if name in row] == pytest.approx(numbers, rel=rel), name


def last(directory: Path) -> Path:
    found = latest_checkpoint(directory / "checkpoints")
    assert found is not None
    return found


def header(path: Path) -> dict[str, Any]:
    """Names, types, shapes and places of the tensors in a safetensors file."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length])


def assert_same_checkpoint(found: Path, expected: Path) -> None:
    """Of the same layout to the byte, and with the same numbers up to rounding."""
    assert sorted(p.name for p in found.iterdir()) == sorted(p.name for p in expected.iterdir())
    assert header(found / "model.safetensors") == header(expected / "model.safetensors")
    weights, expected_weights = load_file(found / "model.safetensors"), load_file(expected / "model.safetensors")
    for name, value in expected_weights.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
    state, expected_state = load_optimizer_state(found), load_optimizer_state(expected)
    assert state["param_groups"] == expected_state["param_groups"]
    assert list(state["state"]) == list(expected_state["state"])
    for index, values in expected_state["state"].items():
        own = state["state"][index]
        assert [type(v) for v in own.values()] == [type(v) for v in values.values()]
        assert own["step"] == values["step"], "a parameter that was not used has been decayed, or the other way round"
        for name in ("exp_avg", "exp_avg_sq"):
            assert own[name].untyped_storage().nbytes() == values[name].untyped_storage().nbytes()
            torch.testing.assert_close(own[name], values[name], rtol=1e-3, atol=1e-5)
    assert load_progress(found).timesteps == load_progress(expected).timesteps


def test_a_spread_network_trains_as_whole_ones_do_and_holds_half(make_config: MakeConfig, run_dir: Path) -> None:
    variants: dict[str, dict[str, Any]] = {
        "jat": {"model": TINY},
        "base": {"model": BASE},
        "bfloat16": {"model": BASE, "dtype": "bfloat16"},
    }
    jobs = [
        (make_config(workers=2, shard=shard, micro_batches=4, **variant), run_dir / f"{name}-{shard}")
        for name, variant in variants.items()
        for shard in (False, True)
    ]
    results = run_group(2, train_each, jobs)
    for job, name in enumerate(variants):
        whole, spread = run_dir / f"{name}-False", run_dir / f"{name}-True"
        assert_same_curve(spread, whole, rel=2e-3 if name == "bfloat16" else 1e-4)
        if name != "bfloat16":
            assert_same_checkpoint(last(spread), last(whole))
        for whole_found, found in ((of_rank[2 * job], of_rank[2 * job + 1]) for of_rank in results):
            assert found["unused"] == whole_found["unused"] != set(), "gradients that nobody has must be none"
            for what, held in found["bytes"].items():
                if (name, what) != ("jat", "gradients"):  # without images half of its parameters have none
                    assert held / whole_found["bytes"][what] == pytest.approx(0.5, rel=0.03), (name, what)
            assert found["bytes"]["gradients"] <= found["bytes"]["parameters"]
    assert sum(found["idle"] for of_rank in results for found in of_rank) > 0, "no worker had to wait for another"


def test_a_checkpoint_goes_on_with_any_number_of_workers_whole_or_spread(
    make_config: MakeConfig, run_dir: Path
) -> None:
    model = dataclasses.replace(BASE, observation_noise=0.0)  # noise differs by the number of workers
    config = make_config(micro_batches=6, model=model)
    train_here(config, run_dir / "alone")

    directory = run_dir / "changing"
    spread = dataclasses.replace(config, workers=2, shard=True)
    run_group(2, train_here, spread, directory, 5)
    assert last(directory).name == "step-00000004"
    # Acting needs to know nothing of how it was trained.
    assert load_checkpoint(last(directory)).config.step == 4
    run_group(3, train_here, dataclasses.replace(spread, workers=3), directory, 8)
    assert last(directory).name == "step-00000008"
    train_here(config, directory)
    assert_same_curve(directory, run_dir / "alone")
    assert_same_checkpoint(last(directory), last(run_dir / "alone"))


def train_until_asked(config: TrainConfig, directory: Path, asked_at: int) -> int:
    """Train as one of a group whose starter is asked to stop while its leader is at a step; the steps done."""
    training = TrainingRun(config, FAKE_TASKS, directory, make_identity(config, FAKE_TASKS))
    one_step = training.one_step

    def stepping() -> dict[str, float]:
        if current_group().is_main_process and training.progress.step == asked_at:
            stop_path(directory).parent.mkdir(exist_ok=True)
            stop_path(directory).touch()
        return one_step()

    training.one_step = stepping  # type: ignore[method-assign]
    training.fit()
    return training.progress.step


def test_workers_that_share_a_network_save_and_stop_in_the_same_step_and_resume_bit_for_bit(
    make_config: MakeConfig, run_dir: Path
) -> None:
    config = make_config(shard=True, workers=2, micro_batches=2, steps=8, checkpoint_every=8, checkpoint_minutes=1e-9)
    whole, stopped = run_dir / "whole", run_dir / "stopped"
    for directory in (whole, stopped):
        directory.mkdir()
    run_group(2, train_here, config, whole)
    assert run_group(2, train_until_asked, config, stopped, 4) == [5, 5]
    assert [path.name for path in (stopped / "resume").iterdir()] == ["step-00000005"]
    stop_path(stopped).unlink()
    run_group(2, train_here, config, stopped)
    assert not list((stopped / "resume").iterdir())
    drop = ("seconds", "waited_seconds")
    curves = [[{k: v for k, v in row.items() if k not in drop} for row in curve(path)] for path in (whole, stopped)]
    assert curves[0] == curves[1]
    weights, resumed = (load_file(last(path) / "model.safetensors") for path in (whole, stopped))
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)


def test_a_loss_that_is_not_finite_ends_all_workers_with_the_same_words(make_config: MakeConfig, run_dir: Path) -> None:
    config = make_config(workers=2, shard=True, steps=400, learning_rate=1e18, warmup_steps=1)
    first, second = run_group(2, train_here, config, run_dir / "bad")
    assert "is not finite at step" in first["error"]
    assert first["error"].replace("no checkpoint", "") == second["error"].replace("no checkpoint", "")


@pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler, or no Python.h: apt-get install g++ python3-dev")
def test_a_spread_network_can_be_compiled(make_config: MakeConfig, run_dir: Path) -> None:
    model = dataclasses.replace(BASE, num_layers=1, observation_noise=0.0)  # whose draws differ then
    config = make_config(workers=2, shard=True, steps=6, model=model)
    jobs = [(dataclasses.replace(config, compile=how), run_dir / f"compiled-{how}") for how in (False, True)]
    run_group(2, train_each, jobs)
    assert_same_curve(jobs[1][1], jobs[0][1])


class TotalLoss(torch.nn.Module):
    def __init__(self, model: JatModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> torch.Tensor:
        return self.model.losses(batch).total


def gradients_of_text_and_steps(config: ModelConfig) -> tuple[dict[str, torch.Tensor | None], ...]:
    """Of whole networks and of one spread over two workers, one of which is at pictures with texts, one at steps."""
    group = current_group()
    torch.manual_seed(group.rank)
    mask = torch.ones(2, 3, dtype=torch.bool)
    rewards, tasks = torch.rand(2, 3), torch.zeros(2, dtype=torch.int64)
    side = config.picture_size
    batch: Batch = TextBatch(torch.randint(0, 99, (2, 3)), mask, torch.rand(2, 3, side, side))
    if group.is_main_process:
        batch = StepBatch(CONTINUOUS, torch.rand(2, 3, 4), rewards, torch.rand(2, 3, 2), mask, tasks)
    results = []
    for spread in (False, True):
        torch.manual_seed(7)
        model = JatModel(config)
        module: torch.nn.Module = TotalLoss(model)
        shards = Shards(module, model, group) if spread else None
        shared = module if spread else group.share_gradients(module)
        shared(batch).backward()
        if shards:
            shards.drop_unused()
        grads = {name: p.grad for name, p in model.named_parameters()}
        results.append({n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in grads.items()})
    return tuple(results)


def test_one_worker_may_be_at_texts_with_pictures_while_another_is_at_steps() -> None:
    config = dataclasses.replace(TINY, picture_size=8, patch_size=4, max_positions=12)
    for whole, spread in run_group(2, gradients_of_text_and_steps, config):
        assert {name for name, gradient in whole.items() if gradient is None} == {
            name for name, gradient in spread.items() if gradient is None
        }
        used = [name for name, gradient in whole.items() if gradient is not None]
        assert {"vit_encoder.projection.weight", "continuous_encoder.weight"} <= set(used)
        for name in used:
            torch.testing.assert_close(spread[name], whole[name], msg=lambda m, n=name: f"{n}: {m}")


class Others(Group):
    """One of two workers, the other of which has five batches to compute."""

    def max(self, values: Sequence[float]) -> list[float]:
        return [max(value, 5) for value in values]


def test_idle_batches_are_a_row_of_ones_own_or_of_another() -> None:
    group = Others(0, 2, 2, torch.device("cpu"))
    mask = torch.ones(3, 4, dtype=torch.bool)
    steps = StepBatch("x", torch.rand(3, 4, 2), torch.rand(3, 4), torch.rand(3, 4, 1), mask, torch.tensor([1, 1, 2]))
    texts = TextBatch(torch.ones(3, 4, dtype=torch.int64), mask)
    own = [SourceShare(texts, 12, 12), SourceShare(steps, 12, 12)]
    idle = idle_batches(group, own)
    assert len(idle) == 3
    assert torch.equal(idle[0].observations, steps.observations[:1])
    assert torch.equal(idle[0].tasks, torch.tensor([1]))
    assert idle[0].kind == "x"
    idle = idle_batches(group, [], other=own[0])
    assert len(idle) == 5
    assert idle[0].tokens.shape == (1, 4)
    assert idle[0].pictures is None
    assert idle_batches(group, own * 3) == []


def test_nobody_to_share_with_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match="--shard spreads the network over several workers, and --workers is 1; raise"):
        make_config(shard=True)
