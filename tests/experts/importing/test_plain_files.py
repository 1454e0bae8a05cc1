from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experts.importing.imports import import_expert
from experts.network import NetworkPolicy
from experts.store import StoredExpert, read_arrays
from pipeline.envs.policy import Observations
from pipeline.errors import UserError
from tests.experts.stable_baselines.models import Bomb, some_observations, task_named

pytestmark = pytest.mark.usefixtures("nothing_embedded")

HOPPER = task_named("mujoco-hopper")  # 11 numbers to 3


def act(expert: StoredExpert, observations: np.ndarray) -> np.ndarray:
    assert expert.record.network is not None
    policy = NetworkPolicy(HOPPER, expert.record.network, read_arrays(expert), "here")
    return np.asarray(
        policy.act(range(len(observations)), Observations(observations, None, np.zeros(len(observations))))
    )


def homework(nonlinearity: str = "lrelu", **changes: Any) -> dict[str, Any]:
    """What openai/imitation saved: layers ``(in, out)``, moments and biases with a first dimension of 1."""
    rng = np.random.default_rng(0)

    def affine(inputs: int, outputs: int) -> dict[str, Any]:
        weight = rng.normal(0, inputs**-0.5, (inputs, outputs)).astype(np.float32)
        return {"AffineLayer": {"W": weight, "b": rng.normal(0, 0.1, (1, outputs)).astype(np.float32)}}

    mean = rng.normal(0, 1, (1, 11))
    policy = {
        "logstdevs_1_Da": np.full((1, 3), -1.0, np.float32),
        "obsnorm": {"Standardizer": {"mean_1_D": mean, "meansq_1_D": mean**2 + rng.uniform(0.1, 4, (1, 11))}},
        "hidden": {"FeedforwardNet": {"layer_0": affine(11, 16), "layer_2": affine(16, 8)}},
        "out": affine(8, 3),
    }
    return {"nonlin_type": nonlinearity, "GaussianPolicy": policy | changes}


def load_policy(data: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """The formula of the homework's ``load_policy.py``."""
    policy = data["GaussianPolicy"]
    moments = policy["obsnorm"]["Standardizer"]
    deviation = np.sqrt(np.maximum(0, moments["meansq_1_D"] - np.square(moments["mean_1_D"])))
    x = (x - moments["mean_1_D"]) / (deviation + 1e-6)
    for name in sorted(policy["hidden"]["FeedforwardNet"]):
        layer = policy["hidden"]["FeedforwardNet"][name]["AffineLayer"]
        x = x @ layer["W"] + layer["b"]
        x = np.tanh(x) if data["nonlin_type"] == "tanh" else np.where(x > 0, x, 0.01 * x)
    return np.asarray(x @ policy["out"]["AffineLayer"]["W"] + policy["out"]["AffineLayer"]["b"])


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("nonlinearity", ["lrelu", "tanh"])
def test_an_expert_of_cs285_acts_as_its_homework_computes(nonlinearity: str, protocol: int, tmp_path: Path) -> None:
    data, path = homework(nonlinearity), tmp_path / "Hopper.pkl"
    path.write_bytes(pickle.dumps(data, protocol))
    expert = import_expert(HOPPER, str(path), tmp_path / "out")
    observations = some_observations(HOPPER)
    assert expert.record.kind == "cs285" and expert.record.origin == f"Loaded from {path}."
    np.testing.assert_allclose(act(expert, observations), load_policy(data, observations), atol=1e-5)


def test_a_pickle_of_something_else_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    marker, path = tmp_path / "gone-off", tmp_path / "policy.pkl"
    for value in ({"weights": 1}, 7, homework("gelu"), homework(out=Bomb(marker)), homework(hidden=Bomb(marker))):
        path.write_bytes(pickle.dumps(value))
        with pytest.raises(UserError, match=r"policy\.pkl is not an expert of cs285's homework"):
            import_expert(HOPPER, str(path), tmp_path / "out")
    path.write_bytes(pickle.dumps(homework()))
    with pytest.raises(UserError, match=r"takes observations 11 .* mujoco-walker .* has observations 17"):
        import_expert(task_named("mujoco-walker"), str(path), tmp_path / "out")
    assert not marker.exists() and not (tmp_path / "out").exists()


def linear() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, mean and deviation, one of which leaves its number out."""
    rng = np.random.default_rng(0)
    deviation = rng.uniform(0.5, 2, 11)
    deviation[4] = np.inf
    return rng.normal(0, 0.2, (3, 11)), rng.normal(0, 1, 11), deviation


def test_a_published_policy_of_augmented_random_search_acts_as_its_code_computes(tmp_path: Path) -> None:
    weights, mean, deviation = linear()
    objects = np.array([weights, mean, deviation], dtype=object)
    np.savez(tmp_path / "lin_policy_plus.npz", objects)
    expert = import_expert(HOPPER, str(tmp_path / "lin_policy_plus.npz"), tmp_path / "out")
    observations = some_observations(HOPPER)
    expected = ((observations - mean) / (deviation + 1e-8)) @ weights.T
    np.testing.assert_allclose(act(expert, observations), expected, atol=1e-5)
    np.savez(tmp_path / "plain.npz", weights, mean, deviation)
    assert (
        import_expert(HOPPER, str(tmp_path / "plain.npz"), tmp_path / "out").record.revision == expert.record.revision
    )


def test_weights_alone_are_a_policy_without_normalisation(tmp_path: Path) -> None:
    weights, _, _ = linear()
    np.savez(tmp_path / "weights.npz", weights)
    expert = import_expert(HOPPER, str(tmp_path / "weights.npz"), tmp_path / "out")
    observations = some_observations(HOPPER)
    np.testing.assert_allclose(act(expert, observations), observations @ weights.T, atol=1e-5)


def test_an_npz_of_something_else_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    path, marker = tmp_path / "policy.npz", tmp_path / "gone-off"
    weights, mean, deviation = linear()
    for arrays in (
        (weights, mean),
        (mean,),
        (np.arange(33).reshape(3, 11),),
        (np.array([Bomb(marker)] * 3, dtype=object),),
    ):
        np.savez(path, *arrays)
        with pytest.raises(UserError, match=r"policy\.npz is not a linear policy"):
            import_expert(HOPPER, str(path), tmp_path / "out")
    np.savez(path, weights[:, :9], mean[:9], deviation[:9])
    with pytest.raises(UserError, match="takes observations 9 and"):
        import_expert(HOPPER, str(path), tmp_path / "out")
    with pytest.raises(UserError, match="cannot be sampled"):
        import_expert(HOPPER, str(path), tmp_path / "out", sampled=True)
    assert not marker.exists() and not (tmp_path / "out").exists()


def test_a_header_that_claims_terabytes_gets_none(tmp_path: Path) -> None:
    np.save(tmp_path / "small.npy", np.zeros((3, 11)))
    raw = (tmp_path / "small.npy").read_bytes().replace(b"(3, 11)", b"(3, 9999999999)".ljust(15))
    header = len(raw) - 3 * 11 * 8 - 10
    raw = raw[:8] + header.to_bytes(2, "little") + raw[10:]
    with zipfile.ZipFile(tmp_path / "policy.npz", "w") as archive:
        archive.writestr("arr_0.npy", raw)
    with pytest.raises(UserError, match=r"policy\.npz is not a linear policy.*cannot reshape"):
        import_expert(HOPPER, str(tmp_path / "policy.npz"), tmp_path / "out")
