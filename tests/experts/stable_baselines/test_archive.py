from __future__ import annotations

import base64
import dataclasses
import json
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from experts.network import NetworkPolicy, build_network
from experts.stable_baselines.archive import export_model, load_archive
from experts.stable_baselines.vec_normalize import read_statistics
from pipeline.envs.policy import Observations
from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task
from pipeline.errors import UserError
from tests.experts.stable_baselines.models import (
    Bomb,
    NormReLU,
    bomb,
    make_model,
    predictions,
    some_observations,
    task_named,
    with_member,
)
from tests.experts.test_tensors import BOMB_BYTES, zip_bomb
from tests.fakes import FAKE_PIXELS

HOPPER, HUMANOID, PENDULUM = (task_named(f"mujoco-{name}") for name in ("hopper", "humanoid", "pendulum"))

CASES: dict[str, tuple[str, Task, dict[str, Any]]] = {
    "ppo": ("ppo", HOPPER, {}),
    "ppo-elu-bound-3": ("ppo", PENDULUM, {"policy_kwargs": {"activation_fn": nn.ELU}}),
    "ppo-gsde": ("ppo", HOPPER, {"use_sde": True}),
    "ppo-one-layer": ("ppo", HOPPER, {"policy_kwargs": {"net_arch": [8]}}),
    "ppo-linear": ("ppo", HOPPER, {"policy_kwargs": {"net_arch": []}}),
    "trpo-relu-bound-0.4": ("trpo", HUMANOID, {"policy_kwargs": {"activation_fn": nn.ReLU}}),
    "a2c": ("a2c", HOPPER, {}),
    "sac-bound-0.4": ("sac", HUMANOID, {}),
    "sac-tanh": ("sac", HOPPER, {"policy_kwargs": {"activation_fn": nn.Tanh}}),
    "tqc-norm-relu-bound-3": ("tqc", PENDULUM, {"policy_kwargs": {"activation_fn": NormReLU}}),
    "crossq-bound-0.4": ("crossq", HUMANOID, {}),
    "crossq-epsilon": ("crossq", HOPPER, {"policy_kwargs": {"batch_norm_eps": 0.5, "activation_fn": nn.ELU}}),
    "crossq-without-layers": ("crossq", HOPPER, {"policy_kwargs": {"batch_norm": False}}),
    "td3-bound-3": ("td3", PENDULUM, {}),
    "ars-bound-3": ("ars", PENDULUM, {}),
    "ars-tanh-not-squashed": ("ars", HOPPER, {"policy_kwargs": {"activation_fn": nn.Tanh, "squash_output": False}}),
    "ars-without-biases": ("ars", HOPPER, {"policy_kwargs": {"with_bias": False}}),
    "ars-linear": ("ars", HOPPER, {"policy": "LinearPolicy"}),
    "ars-linear-squashed-bound-0.4": (
        "ars",
        HUMANOID,
        {"policy": "LinearPolicy", "policy_kwargs": {"squash_output": True, "with_bias": True}},
    ),
}


def act(task: Task, network: Any, observations: np.ndarray) -> np.ndarray:
    """What a rollout would store: the policy's actions, clipped to the task's bounds."""
    policy = NetworkPolicy(task, *network, "here")
    actions = policy.act(range(len(observations)), Observations(observations, None, np.zeros(len(observations))))
    return np.clip(actions, task.action.low, task.action.high)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_memory_and_file_give_the_actions_of_the_library(case: str, normalised: bool, tmp_path: Path) -> None:
    algorithm, task, settings = CASES[case]
    model, normaliser = make_model(algorithm, task, **settings)
    observations = some_observations(task)
    expected = predictions(model, normaliser if normalised else None, observations)
    assert expected.std() > 0.03 * task.action.high, "actions that are all alike prove nothing"

    model.save(tmp_path / "model.zip")
    normaliser.save(str(tmp_path / "vec_normalize.pkl"))
    statistics = tmp_path / "vec_normalize.pkl" if normalised else None
    kind, *loaded = load_archive(tmp_path / "model.zip", task, statistics=statistics)
    exported = export_model(model, task, normaliser if normalised else None)

    assert kind == algorithm
    assert loaded[0] == exported[0]
    assert loaded[1].keys() == exported[1].keys()
    assert all(torch.equal(loaded[1][name], array) for name, array in exported[1].items())
    np.testing.assert_allclose(act(task, exported, observations), expected, rtol=0, atol=1e-5)


def test_what_is_exported_does_not_change_with_the_model() -> None:
    model, normaliser = make_model("sac", HOPPER)
    _, arrays = export_model(model, HOPPER, normaliser)
    before = {name: array.clone() for name, array in arrays.items()}
    for parameter in model.policy.parameters():
        parameter.data.zero_()
    normaliser.obs_rms.mean[:] = 0
    assert all(torch.equal(arrays[name], array) for name, array in before.items())


@pytest.mark.parametrize("algorithm", ["sac", "tqc", "crossq"])
def test_means_and_deviations_are_those_of_the_library_also_where_it_limits_them(algorithm: str) -> None:
    model, _ = make_model(algorithm, HOPPER)
    model.policy.actor.log_std.bias.data.copy_(torch.tensor([5.0, 0.0, -30.0]))
    spec, arrays = export_model(model, HOPPER)
    observations = torch.from_numpy(some_observations(HOPPER))
    model.policy.set_training_mode(False)
    with torch.no_grad():
        means, log_std, _ = model.policy.actor.get_action_dist_params(observations)
    assert log_std.max() == 2 and log_std.min() == -20
    found_means, found_log_std = build_network(spec, arrays, "here")(observations)
    torch.testing.assert_close(found_means, means, rtol=0, atol=1e-5)
    torch.testing.assert_close(found_log_std, log_std, rtol=0, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_sampled_actions_are_distributed_as_the_library_says(algorithm: str, tmp_path: Path) -> None:
    num = 4000
    model, _ = make_model(algorithm, PENDULUM)
    model.save(tmp_path / "model.zip")
    _, *network = load_archive(tmp_path / "model.zip", PENDULUM, sampled=True)
    observation = some_observations(PENDULUM, 1)
    policy = NetworkPolicy(PENDULUM, *network, "here")
    slots = range(num)
    policy.reset(slots, slots, [None] * num)  # type: ignore[list-item]
    actions = np.asarray(policy.act(slots, Observations(np.repeat(observation, num, 0), None, np.zeros(num))))[:, 0]
    shown = torch.from_numpy(observation)
    with torch.no_grad():
        if algorithm == "ppo":
            distribution = model.policy.get_distribution(shown).distribution
            mean, std = distribution.mean.item(), distribution.stddev.item()
        else:
            means, log_std, _ = model.policy.actor.get_action_dist_params(shown)
            mean, std = means.item(), log_std.exp().item()
            actions = np.arctanh(actions.astype(np.float64) / PENDULUM.action.high)
    assert abs(actions.mean() - mean) < 5 * std / math.sqrt(num)
    assert abs(actions.std() / std - 1) < 5 / math.sqrt(2 * num)


def test_a_loaded_expert_plays_whole_episodes(tmp_path: Path) -> None:
    model, normaliser = make_model("crossq", PENDULUM)
    model.save(tmp_path / "model.zip")
    normaliser.save(str(tmp_path / "vec_normalize.pkl"))
    _, *network = load_archive(tmp_path / "model.zip", PENDULUM, statistics=tmp_path / "vec_normalize.pkl")
    episodes = list(rollout(PENDULUM, NetworkPolicy(PENDULUM, *network, "here"), [3, 4], num_envs=2))
    assert [episode.seed for episode in episodes] == [3, 4]
    for episode in episodes:
        expected = predictions(model, normaliser, episode.observations)
        np.testing.assert_allclose(episode.actions, expected, rtol=0, atol=1e-5)


# What cannot be read.


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of a SAC model for the hopper; tests only read them."""
    folder = tmp_path_factory.mktemp("saved")
    model, normaliser = make_model("sac", HOPPER)
    model.save(folder / "model.zip")
    normaliser.save(str(folder / "vec_normalize.pkl"))
    return {"model": folder / "model.zip", "statistics": folder / "vec_normalize.pkl"}


def copied(path: Path, folder: Path, length: int | None = None) -> Path:
    target = folder / path.name
    target.write_bytes(path.read_bytes()[:length])
    return target


def with_data(path: Path, **changes: Any) -> Path:
    """A copy whose readable settings are others."""
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
    return with_member(path, "data", json.dumps(data | changes).encode())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.zip does not exist; expected what model\.save"):
        load_archive(tmp_path / "none.zip", HOPPER)


# A saved model holds zips of torch, so what is cut off late looks like one of these.
@pytest.mark.parametrize(
    ("share", "message"),
    [(0, "is not a whole zip"), (0.3, "is not a whole zip"), (0.9, "but no data and no policy")],
)
def test_a_zip_that_is_cut_off_is_refused(share: float, message: str, saved: dict[str, Path], tmp_path: Path) -> None:
    path = copied(saved["model"], tmp_path, int(share * saved["model"].stat().st_size))
    with pytest.raises(UserError, match=rf"model\.zip .*{message}.*, copy or download it again"):
        load_archive(path, HOPPER)


def test_a_zip_with_a_damaged_member_is_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    path = copied(saved["model"], tmp_path)
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("policy.pth").header_offset
    raw[start + 500] ^= 255
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"model\.zip is not a whole zip .*CRC"):
        load_archive(path, HOPPER)


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("cat.jpg", b"")
    with pytest.raises(UserError, match=r"photos\.zip holds cat\.jpg but no data and no policy\.pth"):
        load_archive(tmp_path / "photos.zip", HOPPER)


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("policy.pth", b"", r"its policy\.pth is cut off"),
        ("policy.pth", b"PK\x03\x04 and then nothing", r"its policy\.pth is cut off"),
        ("policy.pth", pickle.dumps({"actor": 1}), r"its policy\.pth is"),
        ("data", b"{", "its data is not JSON"),
        ("data", b"\xff\xfe\xfd", "its data is not JSON"),
        ("data", b"[]", "is not a dict"),
    ],
)
def test_a_model_with_a_wrong_member_is_refused(
    member: str, content: bytes, message: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    path = with_member(copied(saved["model"], tmp_path), member, content)
    with pytest.raises(UserError, match=message):
        load_archive(path, HOPPER)


def test_weights_that_are_cut_off_are_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    path = copied(saved["model"], tmp_path)
    with zipfile.ZipFile(path) as archive:
        weights = archive.read("policy.pth")
    with pytest.raises(UserError, match=r"its policy\.pth is cut off"):
        load_archive(with_member(path, "policy.pth", weights[: len(weights) // 2]), HOPPER)


def test_a_bomb_in_the_weights_does_not_go_off(saved: dict[str, Path], tmp_path: Path) -> None:
    marker = tmp_path / "gone-off"
    torch.save({"weight": Bomb(marker)}, tmp_path / "bomb.pth")
    for raw in ((tmp_path / "bomb.pth").read_bytes(), bomb(marker, 2)):
        path = with_member(copied(saved["model"], tmp_path), "policy.pth", raw)
        with pytest.raises(UserError, match="holds more than tensors, which is not read"):
            load_archive(path, HOPPER)
    assert not marker.exists()


def test_pickles_in_the_settings_are_not_decoded(saved: dict[str, Path], tmp_path: Path) -> None:
    marker = tmp_path / "gone-off"
    with zipfile.ZipFile(saved["model"]) as archive:
        data = json.loads(archive.read("data"))
    pickled = [value for value in data.values() if isinstance(value, dict) and ":serialized:" in value]
    assert len(pickled) > 3
    for value in pickled:
        value[":serialized:"] = base64.b64encode(bomb(marker)).decode()
    kind, _, _ = load_archive(with_member(copied(saved["model"], tmp_path), "data", json.dumps(data).encode()), HOPPER)
    assert kind == "sac" and not marker.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"policy_class": {"__module__": "stable_baselines3.dqn.policies"}},
            "of dqn, whose actions are not continuous",
        ),
        ({"policy_class": {"__module__": "sb3_contrib.common.recurrent.policies"}}, r"policy of sb3_contrib\.common"),
        ({"policy_class": None}, "policy of None, which cannot be read; allowed: ppo, trpo"),
        ({"policy_class": {"__module__": "stable_baselines3.common.policies"}}, "weights are not those of a2c's"),
        ({"policy_class": {"__module__": "stable_baselines3.td3.policies"}}, "weights are not those of td3's"),
        ({"policy_kwargs": {"activation_fn": "<class 'torch.nn.modules.activation.GELU'>"}}, "GELU.*allowed: Tanh"),
        ({"policy_kwargs": {"features_extractor_class": "<class 'mine.Scaled'>"}}, r"features extractor.*mine\.Scaled"),
        ({"use_sde": True}, "gSDE"),
        ({"observation_space": {":type:": "<class 'gymnasium.spaces.dict.Dict'>"}}, "dict of observations"),
        (
            {"action_space": {"low": "[-2. -2. -2.]"}},
            r"low is \[-2\. -2\. -2\.\]; that of mujoco-hopper .* is -1",
        ),
        ({"action_space": {"high": "[0.4 0.4 0.4]"}}, "whose high is"),
    ],
)
def test_settings_that_would_act_differently_are_refused(
    changes: dict[str, Any], message: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    path = with_data(copied(saved["model"], tmp_path), **changes)
    with pytest.raises(UserError, match=message):
        load_archive(path, HOPPER)


def test_a_model_of_another_size_is_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    path = with_data(copied(saved["model"], tmp_path), action_space=None)
    with pytest.raises(UserError, match=r"takes observations 11 and gives continuous actions of size 3; mujoco-ant"):
        load_archive(path, task_named("mujoco-ant"))
    with pytest.raises(UserError, match="pixel-count has others, give it a Sample Factory checkpoint"):
        load_archive(path, FAKE_PIXELS)


def test_a_model_that_has_no_distribution_is_not_sampled(tmp_path: Path) -> None:
    for algorithm, settings, reason in (
        ("td3", {}, "is deterministic"),
        ("ars", {}, "is deterministic"),
        ("ppo", {"use_sde": True}, "gSDE"),
    ):
        model, _ = make_model(algorithm, HOPPER, **settings)
        model.save(tmp_path / "model.zip")
        with pytest.raises(UserError, match=f"{reason}.*take its greedy actions"):
            load_archive(tmp_path / "model.zip", HOPPER, sampled=True)


def test_a_model_in_a_wrapped_environment_is_told_so(tmp_path: Path) -> None:
    """As RL Zoo's TimeFeatureWrapper: model and statistics belong together, and both see a number more."""
    wrapped = dataclasses.replace(HOPPER, observation_shape=(12,))
    model, normaliser = make_model("ppo", wrapped)
    model.save(tmp_path / "model.zip")
    normaliser.save(str(tmp_path / "vec_normalize.pkl"))
    with pytest.raises(UserError, match=r"takes observations 12 .*has observations 11.*or in a wrapped environment"):
        load_archive(tmp_path / "model.zip", HOPPER, statistics=tmp_path / "vec_normalize.pkl")


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"policy_class": {"__module__": ["a"]}}',
        b'{"policy_class": {"__module__": "stable_baselines3.sac.policies"}, "policy_kwargs": {"activation_fn": [1]}}',
        b'{"policy_class": {"__module__": "stable_baselines3.sac.policies"}, "policy_kwargs": 7}',
        b'{"policy_class": {"__module__": "stable_baselines3.sac.policies"}, "action_space": {"low": [1e400]}}',
    ],
)
def test_settings_of_wrong_types_are_one_line(data: bytes, saved: dict[str, Path], tmp_path: Path) -> None:
    path = with_member(copied(saved["model"], tmp_path), "data", data)
    with pytest.raises(UserError, match=r"changed-model\.zip") as caught:
        load_archive(path, HOPPER)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_weights_that_are_no_plain_arrays_are_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    torch.save({"actor.mu.weight": torch.zeros(1).expand(10**12)}, tmp_path / "policy.pth")
    path = with_member(copied(saved["model"], tmp_path), "policy.pth", (tmp_path / "policy.pth").read_bytes())
    with pytest.raises(UserError, match=r"policy\.pth: 'actor\.mu\.weight' is not a plain array"):
        load_archive(path, HOPPER)


def test_a_model_that_unpacks_to_too_much_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zip_bomb(tmp_path / "bomb.zip", "policy.pth")
    with pytest.raises(UserError, match=r"bomb\.zip holds policy\.pth but no data"):
        load_archive(bomb, HOPPER)
    monkeypatch.setattr("experts.stable_baselines.saved_model._MOST_BYTES", BOMB_BYTES - 1)
    with pytest.raises(UserError, match=r"bomb\.zip holds 1 files that unpack to 16 MiB; at most .* are read"):
        load_archive(bomb, HOPPER)


def test_weights_that_are_not_finite_are_refused() -> None:
    model, _ = make_model("ppo", HOPPER)
    model.policy.action_net.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"the PPO model: head\.(bias|weight) holds values that are not finite"):
        export_model(model, HOPPER)


# Statistics of observations.


def expected_statistics() -> Any:
    return make_model("ppo", HOPPER)[1]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_statistics_are_those_that_were_saved(protocol: int, tmp_path: Path) -> None:
    normaliser = expected_statistics()
    normaliser.epsilon = np.float64(0.25)  # numpy's numbers are pickled otherwise than Python's
    normaliser.obs_rms.var = normaliser.obs_rms.var.astype(np.float32)
    raw = pickle.dumps(normaliser, protocol)
    if protocol == 2:
        raw = raw.replace(b"cnumpy._core.", b"cnumpy.core.")  # as numpy 1 names its functions
        assert b"numpy.core.multiarray" in raw
    path = tmp_path / "vec_normalize.pkl"
    path.write_bytes(raw)
    found = read_statistics(path)
    assert found is not None
    np.testing.assert_array_equal(found.mean, normaliser.obs_rms.mean)
    np.testing.assert_array_equal(found.var, normaliser.obs_rms.var)
    assert (found.epsilon, found.clip) == (0.25, 4.0)


def test_statistics_of_rewards_only_normalise_nothing(saved: dict[str, Path], tmp_path: Path) -> None:
    normaliser = expected_statistics()
    normaliser.norm_obs = False
    normaliser.save(str(tmp_path / "vec_normalize.pkl"))
    _, spec, _ = load_archive(saved["model"], HOPPER, statistics=tmp_path / "vec_normalize.pkl")
    assert not spec.normalise
    assert not export_model(make_model("ppo", HOPPER)[0], HOPPER, normaliser)[0].normalise


def test_a_bomb_in_the_statistics_does_not_go_off(tmp_path: Path) -> None:
    marker, path = tmp_path / "gone-off", tmp_path / "vec_normalize.pkl"
    path.write_bytes(bomb(marker))
    with pytest.raises(UserError, match=r"vec_normalize\.pkl is a pickle of something else"):
        read_statistics(path)
    normaliser = expected_statistics()
    normaliser.extra = Bomb(marker)  # beside sound statistics it is inert
    path.write_bytes(pickle.dumps(normaliser))
    assert read_statistics(path) is not None
    normaliser.obs_rms.mean = Bomb(marker)  # in place of them it is refused
    path.write_bytes(pickle.dumps(normaliser))
    with pytest.raises(UserError, match="expected an array, found pathlib"):
        read_statistics(path)
    assert not marker.exists()


def damaged_statistics() -> dict[str, tuple[bytes, str]]:
    whole = pickle.dumps(expected_statistics())
    of_dict, objects, negative = expected_statistics(), expected_statistics(), expected_statistics()
    of_dict.obs_rms = {"observation": of_dict.obs_rms}
    objects.obs_rms.mean = np.array([None] * 11)
    negative.obs_rms.var = -np.ones(11)
    return {
        "empty": (b"", "is not a whole pickle"),
        "cut off": (whole[: len(whole) // 2], "is not a whole pickle"),
        "text": (b"mean: 0\n", "is not a whole pickle"),
        "another object": (pickle.dumps({"mean": 0}), "is a pickle of something else"),
        "persistent": (b"\x80\x04K\x01Q.", "is not a whole pickle"),
        "dict of observations": (pickle.dumps(of_dict), "a dict of observations"),
        "objects": (pickle.dumps(objects), "no readable mean and variance.*expected bytes, found list"),
        "negative": (pickle.dumps(negative), "below 0"),
    }


@pytest.mark.parametrize("case", damaged_statistics())
def test_damaged_statistics_are_refused(case: str, tmp_path: Path) -> None:
    raw, message = damaged_statistics()[case]
    (tmp_path / "vec_normalize.pkl").write_bytes(raw)
    with pytest.raises(UserError, match=rf"vec_normalize\.pkl .*{message}"):
        read_statistics(tmp_path / "vec_normalize.pkl")


def test_missing_statistics_and_those_of_another_size_are_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.pkl cannot be read \(No such file"):
        load_archive(saved["model"], HOPPER, statistics=tmp_path / "none.pkl")
    make_model("ppo", PENDULUM)[1].save(str(tmp_path / "other.pkl"))
    with pytest.raises(UserError, match=r"model\.zip sees 11 numbers a step, .*other\.pkl has statistics of 4"):
        load_archive(saved["model"], HOPPER, statistics=tmp_path / "other.pkl")
    model, normaliser = make_model("ppo", HOPPER)
    normaliser.obs_rms.mean = np.zeros(4)
    with pytest.raises(UserError, match="sees 11 numbers a step, its VecNormalize has statistics of 4"):
        export_model(model, HOPPER, normaliser)
