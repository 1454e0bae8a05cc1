from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.cli import parse
from pipeline.envs.task import CONTINUOUS, DISCRETE, IMAGE
from pipeline.errors import UserError
from trainer.batch import StepBatch
from trainer.config import RECIPES, BaseModelConfig, TrainConfig
from trainer.networks.base_model import BaseModel
from trainer.networks.build import BUILT_IN, read_model_config
from trainer.networks.layout import TaskLayout
from trainer.training.logs import check_identity

ARM = TaskLayout(CONTINUOUS, 5, "continuous", 3, -1.0, 1.0)
LAYOUTS = [
    ARM,
    TaskLayout(DISCRETE, 10, "discrete", 4, -1.0, 1.0),
    ARM,
    TaskLayout(CONTINUOUS, 6, "discrete", 3, -1.0, 1.0),
    TaskLayout(IMAGE, 4 * 84 * 84, "discrete", 6, -1.0, 1.0),
    TaskLayout(CONTINUOUS, 5, "continuous", 3, -2.0, 2.0),
]
TINY = BaseModelConfig(
    hidden_size=32, num_layers=2, num_heads=2, window_steps=3, vocab_size=300, discrete_encoder="flat", cell_size=4
)
B, T = 2, 9
VARIANTS: list[dict[str, Any]] = [
    {},
    {"observation_loss_coef": 0.1},
]


def make_batch(task: int, seed: int = 0) -> StepBatch:
    layout, g = LAYOUTS[task], torch.Generator().manual_seed(seed)
    if layout.observation == CONTINUOUS:
        observations = torch.randn(B, T, layout.observation_size, generator=g)
    elif layout.observation == DISCRETE:
        observations = torch.randint(0, 9, (B, T, layout.observation_size), generator=g)
    else:
        observations = torch.rand(B, T, 4, 84, 84, generator=g) * 2 - 1
    if layout.action == "discrete":
        actions = torch.randint(0, layout.action_size, (B, T), generator=g)
    else:
        actions = (torch.rand(B, T, layout.action_size, generator=g) * 2 - 1) * layout.high
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[1, 6:] = False
    rewards = torch.randn(B, T, generator=g)
    return StepBatch(layout.observation, observations, rewards, actions, mask, torch.full((B,), task))


def make_model(**changes: Any) -> BaseModel:
    torch.manual_seed(0)
    return BaseModel(dataclasses.replace(TINY, **changes), LAYOUTS).eval()


@pytest.mark.parametrize("task", range(len(LAYOUTS)))
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_acting_step_by_step_is_what_the_whole_episode_at_once_gives(changes: dict[str, Any], task: int) -> None:
    """Three times as long as the window, with a slot begun three steps late after another episode in it."""
    model, batch = make_model(**changes), make_batch(task)
    with torch.no_grad():
        whole, _ = model(batch)
        memory = model.new_memory([task] * 4, LAYOUTS[task], context_steps=T)
        starts = {2: 0, 1: 3}  # slot of each row: its first step
        memory.observe(torch.tensor([1]), batch.observations[:1, 5], torch.ones(1))
        for now in range(T + 3):
            memory.forget([slot for slot, first in starts.items() if first == now])
            rows = [(row, slot, now - first) for row, (slot, first) in enumerate(starts.items())]
            rows = [(row, slot, t) for row, slot, t in rows if 0 <= t < T]
            index = torch.tensor([row for row, _, _ in rows]), torch.tensor([t for _, _, t in rows])
            slots = torch.tensor([slot for _, slot, _ in rows])
            outputs = memory.observe(slots, batch.observations[index], batch.previous_rewards[index])
            torch.testing.assert_close(outputs, whole[index], atol=1e-5, rtol=1e-5)
            memory.act(slots, batch.actions[index])


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_parameter_that_a_mixture_of_all_tasks_can_train_gets_a_gradient(changes: dict[str, Any]) -> None:
    model = make_model(**changes)
    for task in range(len(LAYOUTS)):
        losses = model.losses(make_batch(task))
        assert torch.isfinite(losses.total)
        losses.total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_no_prediction_sees_the_future_or_its_own_action(changes: dict[str, Any]) -> None:
    model, batch = make_model(**changes), make_batch(0)
    changed = dataclasses.replace(batch, observations=batch.observations.clone(), actions=batch.actions.clone())
    changed.observations[:, 5:] += 1
    changed.actions[:, 4:] *= -1
    with torch.no_grad():
        before, after = model(batch)[0], model(changed)[0]
    torch.testing.assert_close(after[:, :5], before[:, :5], atol=0, rtol=0)
    assert not torch.allclose(after[:, 5:], before[:, 5:])


def test_past_rewards_matter_and_past_actions_do_not() -> None:
    batch, model = make_batch(0), make_model()
    other_actions = dataclasses.replace(batch, actions=-batch.actions)
    other_rewards = dataclasses.replace(batch, previous_rewards=-batch.previous_rewards)
    with torch.no_grad():
        before = model(batch)[0]
        assert torch.equal(model(other_actions)[0], before)
        assert not torch.equal(model(other_rewards)[0], before)


def test_one_block_looks_back_just_the_window() -> None:
    model, batch = make_model(num_layers=1), make_batch(0)
    changed = dataclasses.replace(batch, observations=batch.observations.clone())
    changed.observations[:, 2] += 1
    with torch.no_grad():
        differs = (model(batch)[0] != model(changed)[0]).any(dim=-1).all(dim=0)
    assert differs.tolist() == [False, False, True, True, True, False, False, False, False]


def test_padding_changes_no_loss() -> None:
    model = make_model(observation_loss_coef=0.1)
    batch = make_batch(0)
    garbage = dataclasses.replace(batch, observations=batch.observations.clone(), actions=batch.actions.clone())
    garbage.observations[1, 6:], garbage.actions[1, 6:] = 3.0, 0.5
    assert model.losses(garbage).total.item() == model.losses(batch).total.item()


def test_tasks_of_the_same_sizes_have_maps_and_an_embedding_of_their_own() -> None:
    batch = make_batch(0)
    other = dataclasses.replace(batch, tasks=torch.full((B,), 2))
    shared = make_model()
    with torch.no_grad():
        shared.task_embedding.weight[2] = shared.task_embedding.weight[0]
        by_maps = shared(batch)[0], shared(other)[0]
        for maps in (shared.encoders[ARM.observation_name], shared.action_decoders[ARM.action_name]):
            maps.weight[1], maps.bias[1] = maps.weight[0], maps.bias[0]  # type: ignore[index,operator]
        assert torch.equal(shared(batch)[0], shared(other)[0])
        shared.task_embedding.weight[2] += 1
        by_embedding = shared(batch)[0], shared(other)[0]
    assert not torch.allclose(*by_maps) and not torch.allclose(*by_embedding)


def test_windows_of_several_tasks_can_share_a_batch() -> None:
    model, one, other = make_model(), make_batch(0), make_batch(2, seed=1)
    together = StepBatch(
        CONTINUOUS,
        *(
            torch.cat([getattr(one, name), getattr(other, name)])
            for name in ("observations", "previous_rewards", "actions", "mask", "tasks")
        ),
    )
    with torch.no_grad():
        expected = torch.cat([model(one)[0], model(other)[0]])
        torch.testing.assert_close(model(together)[0], expected, atol=1e-5, rtol=1e-5)


def test_noise_is_added_in_training_only() -> None:
    model, batch = make_model(observation_noise=0.5), make_batch(0)
    with torch.no_grad():
        assert torch.equal(model(batch)[0], model(batch)[0])
        model.train()
        assert not torch.equal(model(batch)[0], model(batch)[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "--model.num-layers is 0"),
        ({"hidden_size": 34, "num_heads": 4}, "must be a multiple of twice --model.num-heads 4"),
        ({"observation_loss_coef": 1.0}, "--model.observation-loss-coef is 1.0"),
        ({"observation_noise": -0.1}, "--model.observation-noise is -0.1"),
    ],
)
def test_impossible_choices_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TINY, **changes)


@pytest.mark.parametrize(("recipe", "flag"), [("base", "--model.window-steps"), ("jat-small", "--model.window-size")])
def test_a_recipe_decides_the_network_and_its_flags(recipe: str, flag: str) -> None:
    config = parse(TrainConfig, RECIPES, argv=["--recipe", recipe, flag, "7"])
    expected = RECIPES[recipe]()
    changed = {flag.removeprefix("--model.").replace("-", "_"): 7}
    assert config == dataclasses.replace(expected, model=dataclasses.replace(expected.model, **changed))


def test_a_checkpoint_says_which_network_it_is_of() -> None:
    config = dataclasses.replace(TINY, window_steps=7)
    assert read_model_config(dataclasses.asdict(config)) == config
    with pytest.raises(UserError, match="unknown architecture 'mamba'; this version has: jat, base"):
        read_model_config({"architecture": "mamba"})
    with pytest.raises(UserError, match="architecture base of this version has no option experts"):
        read_model_config({**dataclasses.asdict(config), "experts": 8})


def test_a_checkpoint_of_before_opens_if_it_has_what_is_built_in_now() -> None:
    before = {**dataclasses.asdict(TINY), **BUILT_IN}
    assert read_model_config(before) == TINY
    with pytest.raises(UserError, match="norm is 'layer'; networks of this kind are of an earlier version"):
        read_model_config({**before, "norm": "layer"})
    with pytest.raises(UserError, match=r"config.json: continuous_head is 'bins', num_bins is '21'; networks of this"):
        read_model_config({**before, "continuous_head": "bins", "num_bins": 21})


def test_a_training_of_before_is_the_same_training_now() -> None:
    now = {"seed": 0, "model": dataclasses.asdict(TINY)}
    check_identity(Path("run"), {"seed": 0, "model": {**now["model"], **BUILT_IN}}, now)
    with pytest.raises(UserError, match=r"model.norm was layer, is None"):
        check_identity(Path("run"), {"seed": 0, "model": {**now["model"], **BUILT_IN, "norm": "layer"}}, now)


@pytest.mark.parametrize("task", [0, 1], ids=["continuous", "discrete"])
def test_labels_are_the_targets_the_executed_actions_the_inputs_and_steps_without_a_label_do_not_count(
    task: int,
) -> None:
    model, batch = make_model(observation_loss_coef=0.1), make_batch(task)
    labelled = batch.mask.clone()
    labelled[:, ::2] = False
    labels = -batch.actions if task == 0 else (batch.actions + 1) % 4
    wanted = dataclasses.replace(batch, labels=labels, labelled=labelled)
    head, (outputs, predicted) = model.head(LAYOUTS[task]), model(wanted)
    expected = head.loss(outputs[labelled], labels[labelled]).mean()
    assert model.losses(wanted).action.item() == expected.item() != model.losses(batch).action.item()
    torch.testing.assert_close((outputs, predicted), model(batch), atol=0, rtol=0)
    assert (predicted is not None) is (task == 0)  # what comes after the executed actions
    noise = torch.where(labelled[..., None] if task == 0 else labelled, labels, 0)
    assert model.losses(dataclasses.replace(wanted, labels=noise)).action.item() == expected.item()
    executed = dataclasses.replace(batch, labels=batch.actions, labelled=batch.mask)
    assert model.losses(executed).total.item() == model.losses(batch).total.item()
    silent = model.losses(dataclasses.replace(wanted, labelled=torch.zeros_like(labelled)))
    silent.total.backward()
    assert silent.action.item() == 0
