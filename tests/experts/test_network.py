from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from experts.network import NetworkPolicy, PolicyNetwork, _Rows, build_network
from experts.spec import NetworkSpec
from pipeline.envs.policy import Observations
from pipeline.envs.registry import select_tasks
from pipeline.envs.rollout import rollout
from pipeline.envs.task import Action, Task
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.records import record_of
from pipeline.seeds import policy_generator
from tests.fakes import FAKE_COUNT, FAKE_PIXELS, CountingEnv

# Two hidden layers of two, from two numbers to one, with weights that can be followed on paper.
TINY_TASK = replace(FAKE_COUNT, observation_shape=(2,), action=Action("continuous", 1, -2.0, 2.0))
TINY = NetworkSpec((2,), (2,), "relu", "gaussian", 1, -2.0, 2.0)
ARRAYS = {
    "hidden.0.weight": torch.tensor([[1.0, 0.0], [0.0, -1.0]]),
    "hidden.0.bias": torch.tensor([0.5, 0.25]),
    "head.weight": torch.tensor([[1.0, 2.0]]),
    "head.bias": torch.tensor([-0.5]),
    "log_std": torch.tensor([np.log(0.5)]),
}


def task_named(name: str) -> Task:
    (task,) = select_tasks(name)
    return task


def act(spec: NetworkSpec, arrays: dict[str, Tensor], values: Any, seeds: Sequence[int] = ()) -> Any:
    """What the policy does in one step, in slots 0, 1, ..."""
    task = replace(TINY_TASK, action=Action(TINY_TASK.action.kind, spec.action_size, -2.0, 2.0))
    if spec.head == "categorical":
        task = replace(task, action=Action("discrete", spec.action_size))
    policy = NetworkPolicy(task, spec, arrays, "test")
    slots = range(len(values))
    policy.reset(slots, seeds or slots, [CountingEnv(task)] * len(slots))
    observations = Observations(np.array(values, np.float32), None, np.zeros(len(slots), np.float32))
    return policy.act(slots, observations)


def test_the_arithmetic_of_a_small_network() -> None:
    # relu([1 + 0.5, -(-2) + 0.25]) = [1.5, 2.25] -> 1.5 + 4.5 - 0.5; relu([-0.5, -2.75]) = [0, 0] -> -0.5
    assert act(TINY, ARRAYS, [[1, -2], [-1, 3]]).tolist() == [[5.5], [-0.5]]


def test_observations_are_shifted_scaled_normalised_and_clipped() -> None:
    spec = replace(TINY, subtract=1.0, scale=2.0, normalise=True, epsilon=0.0, clip=3.0)
    arrays = {**ARRAYS, "mean": torch.tensor([1.0, -1.0]), "var": torch.tensor([4.0, 0.25])}
    # ([5, -2] - 1) / 2 = [2, -1.5]; minus the mean, over the deviation: [0.5, -1]; relu([1, 1.25]) -> 1 + 2.5 - 0.5
    assert act(spec, arrays, [[5, -2]]).tolist() == [[3.0]]
    # ([101, -2] - 1) / 2 = [50, -1.5] -> [24.5, -1], clipped to [3, -1]; relu([3.5, 1.25]) -> 3.5 + 2.5 - 0.5
    assert act(spec, arrays, [[101, -2]]).tolist() == [[5.5]]


def test_a_squashed_head_is_stretched_to_the_bounds() -> None:
    spec = replace(TINY, head="squashed")
    np.testing.assert_allclose(act(spec, ARRAYS, [[1, -2], [-1, 3]]), 2 * np.tanh([[5.5], [-0.5]]), rtol=1e-6)


def test_a_soft_limit_bends_the_means() -> None:
    found = act(replace(TINY, tanh_scale=4.0), ARRAYS, [[1, -2]])
    np.testing.assert_allclose(found, 4 * np.tanh([[5.5 / 4]]), rtol=1e-6)


def test_sampled_actions_follow_from_the_episode_s_seed() -> None:
    found = act(replace(TINY, sampled=True), ARRAYS, [[1, -2], [1, -2]], seeds=[7, 8])
    noise = [policy_generator(seed).standard_normal(1) for seed in (7, 8)]
    np.testing.assert_allclose(found, 5.5 + 0.5 * np.array(noise), rtol=1e-6)


def test_a_state_dependent_deviation_is_the_second_half_of_the_head() -> None:
    spec = replace(TINY, state_dependent_std=True, sampled=True)
    arrays = {k: v for k, v in ARRAYS.items() if k != "log_std"}
    arrays |= {"head.weight": torch.tensor([[1.0, 2.0], [0.0, 0.0]]), "head.bias": torch.tensor([-0.5, -1.0])}
    noise = policy_generator(7).standard_normal(1)
    np.testing.assert_allclose(act(spec, arrays, [[1, -2]], seeds=[7]), [5.5 + noise * np.exp(-1)], rtol=1e-6)


def test_a_discrete_choice_is_the_likeliest_or_drawn_by_its_probability() -> None:
    spec = replace(TINY, head="categorical", action_size=3)
    arrays = {k: v for k, v in ARRAYS.items() if k.startswith("hidden")}
    probabilities = np.array([0.2, 0.5, 0.3])
    arrays |= {"head.weight": torch.zeros(3, 2), "head.bias": torch.tensor(np.log(probabilities))}
    assert act(spec, arrays, [[1, -2], [0, 0]]).tolist() == [1, 1]
    drawn = act(replace(spec, sampled=True), arrays, [[1, -2]] * 4000)
    np.testing.assert_allclose(np.bincount(drawn) / 4000, probabilities, atol=0.03)


def random_arrays(spec: NetworkSpec, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn_like(array) * 0.2 for name, array in PolicyNetwork(spec).state_dict().items()}


@pytest.mark.parametrize("sampled", [False, True])
def test_an_episode_does_not_depend_on_how_many_share_the_batch(sampled: bool) -> None:
    spec = NetworkSpec((4,), (64, 64), "tanh", "gaussian", 2, normalise=True, sampled=sampled)
    arrays = random_arrays(spec) | {"var": torch.full((4,), 9.0)}
    played = [
        list(rollout(FAKE_COUNT, NetworkPolicy(FAKE_COUNT, spec, arrays, "test"), range(12), num_envs))
        for num_envs in (1, 5, 12)
    ]
    for alone, few, many in zip(*played, strict=True):
        assert alone.actions.tobytes() == few.actions.tobytes() == many.actions.tobytes()
    assert len({episode.actions.tobytes() for episode in played[0]}) == 12


class PlaceDependent(PolicyNetwork):
    """As a library that rounds differently in some rows of a block."""

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor | None]:
        means, log_std = super().forward(observations)
        return means + 1e-12 * torch.arange(len(means))[:, None], log_std


def test_where_a_row_depends_on_its_place_rows_are_computed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = NetworkSpec((4,), (64, 64), "tanh", "gaussian", 2)
    policy = NetworkPolicy(FAKE_COUNT, spec, random_arrays(spec), "test")
    assert len(policy._block) == FAKE_COUNT.lockstep
    monkeypatch.setattr("experts.network.PolicyNetwork", PlaceDependent)
    assert len(NetworkPolicy(FAKE_COUNT, spec, random_arrays(spec), "test")._block) == 1


@pytest.mark.parametrize("encoder", ["convnet_atari", "convnet_simple", "convnet_impala"])
def test_images_go_in_channels_first(encoder: str) -> None:
    spec = NetworkSpec((4, 84, 84), (8,), "relu", "categorical", 5, encoder=encoder, scale=255.0)
    arrays = random_arrays(spec)
    policy = NetworkPolicy(FAKE_PIXELS, spec, arrays, "test")
    images = np.random.default_rng(0).integers(0, 256, (3, 84, 84, 4), np.uint8)
    policy.reset(range(3), range(3), [CountingEnv(FAKE_PIXELS)] * 3)
    found = policy.act(range(3), Observations(images, None, np.zeros(3, np.float32)))
    logits, _ = build_network(spec, arrays, "test")(torch.tensor(images).permute(0, 3, 1, 2).float())
    assert found.tolist() == logits.argmax(1).tolist()


def test_the_goal_that_a_task_hides_is_shown_to_who_needs_it() -> None:
    task = task_named("metaworld-reach")
    # Its first action numbers are the goal.
    weight = torch.zeros(4, 39)
    weight[:3, -3:] = torch.eye(3)
    arrays = {"head.weight": weight, "head.bias": torch.zeros(4), "log_std": torch.zeros(4)}
    spec = NetworkSpec((39,), (), "relu", "gaussian", 4, sees_goal=True)
    goals: dict[int, list[float]] = {}

    def note(seed: int, env: Any) -> None:
        goals[seed] = env.unwrapped._get_pos_goal().tolist()

    episodes = list(rollout(task, NetworkPolicy(task, spec, arrays, "test"), [3, 4], 2, note))
    for episode in episodes:
        np.testing.assert_allclose(episode.actions[0, :3], goals[episode.seed], rtol=1e-6)
        np.testing.assert_array_equal(episode.observations[:, -3:], 0)  # still hidden from whoever learns from it
    assert goals[3] != goals[4]


def test_a_spec_comes_back_from_json(tmp_path: Any) -> None:
    write_json(tmp_path / "spec.json", asdict(TINY))
    assert record_of(read_json(tmp_path / "spec.json"), NetworkSpec) == TINY


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"observation_shape": (105,)}, "takes observations 105 and gives continuous actions of size 8"),
        ({"action_size": 7}, "takes observations 27 and gives continuous actions of size 7"),
        ({"head": "categorical"}, "takes observations 27 and gives discrete actions of size 8"),
    ],
)
def test_sizes_of_another_task_are_refused_with_both(changes: dict[str, Any], found: str) -> None:
    spec = replace(NetworkSpec((27,), (), "tanh", "gaussian", 8), **changes)
    with pytest.raises(
        UserError, match=rf"somewhere {found}; mujoco-ant \(Ant-v4\) has observations 27 and continuous"
    ):
        NetworkPolicy(task_named("mujoco-ant"), spec, {}, "somewhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": torch.zeros(1)}, "somewhere: arrays extra are missing or too many"),
        ({"head.bias": None}, r"arrays head\.bias are missing or too many"),
        ({"head.bias": torch.zeros(3)}, r"head\.bias has shape 3, expected 1"),
        ({"hidden.0.bias": torch.tensor([0.0, float("nan")])}, r"hidden\.0\.bias holds values that are not finite"),
    ],
)
def test_arrays_that_are_not_the_network_s_are_refused(changes: dict[str, Tensor | None], message: str) -> None:
    arrays = {name: array for name, array in {**ARRAYS, **changes}.items() if array is not None}
    with pytest.raises(UserError, match=message):
        build_network(TINY, arrays, "somewhere")


@pytest.mark.parametrize("name", ["standard_normal", "gumbel"])
def test_numbers_drawn_in_blocks_are_those_drawn_one_row_at_a_time(name: str) -> None:
    together, apart = policy_generator(3), policy_generator(3)
    draw = together.standard_normal if name == "standard_normal" else partial(together.gumbel, 0, 1)
    rows = _Rows(draw, 3)
    for _ in range(2 * _Rows.BLOCK + 1):
        expected = apart.standard_normal(3) if name == "standard_normal" else apart.gumbel(size=3)
        np.testing.assert_array_equal(rows.next(), expected)
