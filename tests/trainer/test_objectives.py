from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.envs.policy import Observations
from pipeline.envs.rollout import rollout
from pipeline.errors import UserError
from tests.fakes import FAKE_COUNT, FAKE_TASKS, num_steps, observation_at, reward_at
from tests.trainer.conftest import write_references
from trainer.agent import Agent
from trainer.batch import StepBatch
from trainer.checkpoint import latest_checkpoint, load_agent_config, load_checkpoint
from trainer.config import BaseModelConfig, ModelConfig, TrainConfig
from trainer.data.returns import ReturnScale, asked_returns, best_episodes, returns_to_go, with_parts
from trainer.data.sources import open_sources
from trainer.evaluation.evaluate import EvaluateConfig, evaluate
from trainer.networks.base_model import MAX_WEIGHT, BaseModel, advantage_weights
from trainer.networks.build import build_model
from trainer.networks.layout import layout_of
from trainer.train import train
from trainer.training.logs import read_log

MakeConfig = Callable[..., TrainConfig]
SMALL = BaseModelConfig(hidden_size=32, num_layers=2, num_heads=2, window_steps=4, cell_size=8, vocab_size=320)
REWARDS, STARTS = np.array([1.0, 2.0, 3.0, 10.0, 0.5, 0.5]), np.array([0, 3, 4, 6])


def base(make_config: MakeConfig, **changes: Any) -> TrainConfig:
    return make_config(model=SMALL, **changes)


def last_of(out: Path) -> Path:
    checkpoint = latest_checkpoint(out / "train" / "checkpoints")
    assert checkpoint is not None
    return checkpoint


def test_the_return_to_go_is_what_is_still_earned_per_step_that_is_left() -> None:
    to_go = returns_to_go(REWARDS, STARTS, max_steps=5)
    assert to_go.tolist() == pytest.approx([6 / 5, 5 / 4, 3 / 3, 10 / 5, 1 / 5, 0.5 / 4])


@pytest.mark.parametrize(("share", "rows"), [(0.01, [1]), (0.34, [0, 1]), (0.67, [0, 1, 2]), (1.0, [0, 1, 2])])
def test_the_best_share_of_the_episodes_is_by_return_and_never_empty(share: float, rows: list[int]) -> None:
    assert best_episodes(REWARDS, STARTS, share).tolist() == rows


def test_filtered_cloning_sees_the_best_episodes_only(make_config: MakeConfig, run_dir: Path) -> None:
    config = base(make_config, objective="filtered", best_share=0.2)
    source = open_sources(config, FAKE_TASKS).sources[0]
    # The training split has seeds 0 to 39; what a seed earns is known, and so is what its first step shows.
    returns = [sum(reward_at(FAKE_COUNT, seed, t) for t in range(num_steps(seed))) for seed in range(40)]
    best = sorted(range(40), key=lambda seed: -returns[seed])[:8]
    seen = set()
    for index in range(source.batches.num_batches):
        for part in source.batches.parts(index):
            ends = part.previous_rewards[part.mask]
            seen |= {float(value) for value in ends}
    assert max(seen) > 0
    counted = sum(int(p.mask.sum()) for i in range(source.batches.num_batches) for p in source.batches.parts(i))
    assert counted == sum(num_steps(seed) for seed in best)


def test_the_returns_that_windows_carry_are_those_of_their_steps(make_config: MakeConfig, run_dir: Path) -> None:
    data = open_sources(base(make_config, objective="return-conditioned", normalise=False), FAKE_TASKS)
    scale = data.returns["fake-count"]
    returns = [sum(reward_at(FAKE_COUNT, seed, t) for t in range(num_steps(seed))) for seed in range(40)]
    assert (scale.lowest, scale.highest) == (min(returns), max(returns))
    assert scale.asked == pytest.approx(np.quantile(returns, 0.9))
    known = {}
    for seed in range(40):
        for t in range(num_steps(seed)):
            left = sum(reward_at(FAKE_COUNT, seed, k) for k in range(t, num_steps(seed)))
            shown = tuple(observation_at(FAKE_COUNT, seed, t).tolist())
            known[shown] = (left / (FAKE_COUNT.max_steps - t) - scale.mean) / scale.std
    batches = data.sources[0].batches
    count = 0
    for index in range(batches.num_batches):
        for part in batches.parts(index):
            assert part.to_go is not None and part.labels is None
            for shown, value in zip(part.observations[part.mask], part.to_go[part.mask], strict=True):
                assert float(value) == pytest.approx(known[tuple(shown.tolist())], abs=1e-4)
                count += 1
    assert count == len(known)


def test_an_agent_is_asked_for_what_is_left_of_the_return_at_every_step(
    make_config: MakeConfig, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(base(make_config, objective="return-conditioned"), FAKE_TASKS)
    checkpoint = load_checkpoint(last_of(run_dir))
    scale = checkpoint.config.returns["fake-count"]
    seen: list[np.ndarray] = []
    embed = BaseModel.embed_observations

    def noted(model: BaseModel, *args: Any) -> Any:
        if args[-1] is not None:
            seen.append(args[-1].numpy()[0, 0])
        return embed(model, *args)

    agent = Agent(checkpoint, [FAKE_COUNT], returns={"fake": 12.0})
    monkeypatch.setattr(BaseModel, "embed_observations", noted)
    (episode,) = rollout(FAKE_COUNT, agent, [3], 1)
    earned = np.concatenate([[0.0], np.cumsum(episode.rewards)[:-1]])
    left = (12.0 - earned) / (FAKE_COUNT.max_steps - np.arange(len(episode.rewards)))
    np.testing.assert_allclose(seen, (left - scale.mean) / scale.std, rtol=1e-4)
    # Without a wish it is the ninth decile, and another wish gives other actions.
    monkeypatch.undo()
    low, high = (
        Agent(checkpoint, [FAKE_COUNT], returns={"fake-count": value}) for value in (scale.lowest, scale.highest)
    )
    first = Observations(observation_at(FAKE_COUNT, 3, 0)[None], None, np.zeros(1, np.float32))
    acted = []
    for one in (low, high):
        one.reset([0], [3], [])
        acted.append(one.act([0], first))
    assert not np.array_equal(*acted)


def test_weights_grow_with_the_advantage_are_clipped_and_have_mean_one() -> None:
    weights = advantage_weights(torch.tensor([-1.0, 0.0, 1.0]))
    assert weights.mean().item() == pytest.approx(1) and weights[0] < weights[1] < weights[2]
    assert (weights[2] / weights[1]).log().item() == pytest.approx(1 / np.std([-1, 0, 1]), rel=1e-4)
    assert advantage_weights(torch.zeros(4)).tolist() == [1.0] * 4
    outlier = advantage_weights(torch.tensor([0.0] * 999 + [1.0]))
    assert (outlier[-1] / outlier[0]).item() == pytest.approx(MAX_WEIGHT, rel=0.05)


def test_with_advantages_the_better_of_two_actions_is_learned_where_cloning_learns_their_mean() -> None:
    torch.manual_seed(0)
    layout = layout_of(FAKE_COUNT, 4)
    generator = torch.Generator().manual_seed(0)
    acted = {}
    for returns in ("unused", "value"):
        model = build_model(dataclasses.replace(SMALL, returns=returns), [layout])
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(150):
            observations = torch.randn(64, 1, 4, generator=generator)
            good = torch.rand(64, 1, generator=generator) < 0.5
            actions = torch.where(good, 0.5, -0.5)[..., None].expand(64, 1, 2)
            # What a state is worth says nothing of the action: that is for the predicted return to tell apart.
            to_go = observations[..., 0] * 2 + torch.where(good, 0.5, -0.5)
            batch = step_batch(observations, actions, to_go if returns == "value" else None)
            optimizer.zero_grad()
            model.losses(batch).total.backward()
            optimizer.step()
        outputs, _ = model.eval()(step_batch(torch.randn(256, 1, 4, generator=generator), torch.zeros(256, 1, 2)))
        acted[returns] = outputs.mean().item()
    assert abs(acted["unused"]) < 0.12
    assert acted["value"] > 0.25


def step_batch(observations: torch.Tensor, actions: torch.Tensor, to_go: torch.Tensor | None = None) -> Any:
    size = observations.shape[:2]
    return StepBatch(
        "continuous_observations", observations, torch.zeros(size), actions, torch.ones(size, dtype=torch.bool),
        torch.zeros(size[0], dtype=torch.int64), to_go=to_go,
    )  # fmt: skip


@pytest.mark.parametrize("objective", ["filtered", "return-conditioned", "advantage"])
def test_every_objective_trains_resumes_nothing_twice_and_acts(
    make_config: MakeConfig, run_dir: Path, objective: str
) -> None:
    write_references(run_dir)
    config = base(make_config, objective=objective)
    train(config, FAKE_TASKS)
    assert all(np.isfinite(row["loss"]) for row in read_log(run_dir / "train" / "log.jsonl"))
    agent = load_agent_config(last_of(run_dir))
    assert bool(agent.returns) == (objective == "return-conditioned")
    scores = evaluate(EvaluateConfig(out=run_dir, episodes=2, video_episodes=0), FAKE_TASKS, is_worker=True)
    assert [score.num_episodes for score in scores] == [2, 2]
    with pytest.raises(UserError, match=f"objective was {objective}, is clone"):
        train(dataclasses.replace(config, objective="clone"), FAKE_TASKS)


def test_a_clone_goes_on_with_another_objective(make_config: MakeConfig, run_dir: Path) -> None:
    train(base(make_config), FAKE_TASKS)
    (run_dir / "train").rename(run_dir / "cloned")
    start = latest_checkpoint(run_dir / "cloned" / "checkpoints")
    train(base(make_config, objective="advantage", start=start, steps=1), FAKE_TASKS)
    assert load_checkpoint(last_of(run_dir)).config.model == dataclasses.replace(SMALL, returns="value")


def test_a_return_that_no_episode_has_is_refused_before_work(make_config: MakeConfig, run_dir: Path) -> None:
    write_references(run_dir)
    train(base(make_config, objective="return-conditioned"), FAKE_TASKS)
    highest = load_agent_config(last_of(run_dir)).returns["toy-grid"].highest
    with pytest.raises(UserError, match=rf"no episode of toy-grid .* return of 99; they are from -\S+ to {highest:g}$"):
        evaluate(EvaluateConfig(out=run_dir, returns={"toy": 99.0}), FAKE_TASKS, is_worker=True)
    assert not (run_dir / "evaluation").exists()


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: asked_returns({}, {"fake": 1.0}, [FAKE_COUNT]), "cannot be asked; train one with --objective return-"),
        (lambda: with_parts(TrainConfig(objective="advantage", model=ModelConfig())), "take --recipe base"),
        (lambda: TrainConfig(objective="filtered", best_share=0.0), "--best-share is 0; it must be above 0"),
    ],
)
def test_what_cannot_be_is_one_clear_line(run: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        run()


def test_scales_of_a_task_without_spread_divide_by_nothing() -> None:
    scale = ReturnScale(mean=2.0, std=1.0, lowest=2.0, highest=2.0, asked=2.0)
    assert asked_returns({"fake-count": scale}, {}, [FAKE_COUNT]) == {"fake-count": 2.0}
