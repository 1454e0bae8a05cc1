from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experts.bfloat16 import is_fast
from experts.network import NetworkPolicy, build_network
from experts.sample_factory.checkpoint import choose_checkpoint, find_checkpoints, load_checkpoint, newest_checkpoint
from pipeline.envs.rollout import rollout
from pipeline.errors import UserError
from tests.experts.sample_factory.reference import CASES
from tests.experts.sample_factory.tasks import task_named

SUPPORTED = sorted(CASES.keys() - {"recurrent", "resnet"})


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("reference")
    subprocess.run(
        [sys.executable, "-m", "tests.experts.sample_factory.reference", str(folder)],
        check=True,
        capture_output=True,
        timeout=200,
    )
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def pendulum(reference: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(reference / "mlp-tanh-limit", tmp_path / "pendulum"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_loaded_network_answers_as_sample_factory_does(reference: Path, name: str) -> None:
    spec, arrays = load_checkpoint(reference / name, task_named(CASES[name].task))
    expected = torch.load(reference / name / "expected.pt")
    output, log_std = build_network(spec, arrays, name)(expected["observations"].float())
    found = output if log_std is None else torch.cat([output, log_std], dim=1)
    assert expected["outputs"].std() > 0.05
    torch.testing.assert_close(found, expected["outputs"], rtol=1e-5, atol=1e-5)


def test_training_computes_nearly_the_same_faster(reference: Path) -> None:
    outputs, exact = (torch.load(reference / name / "expected.pt")["outputs"] for name in ("training", "convnet_atari"))
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs, exact, rtol=0.02, atol=0.02 * float(exact.std()))
    assert torch.equal(outputs, exact) == (not is_fast(torch.device("cpu")))


@pytest.mark.parametrize("name", ["mlp-tanh-limit", "convnet_atari"])
@pytest.mark.parametrize("sampled", [False, True])
def test_a_loaded_expert_plays(reference: Path, name: str, sampled: bool) -> None:
    task = dataclasses.replace(task_named(CASES[name].task), max_steps=20)
    policy = NetworkPolicy(task, *load_checkpoint(reference / name, task, sampled), origin=name)
    episodes = list(rollout(task, policy, [5, 6]))
    assert [episode.rejected for episode in episodes] == [None, None]
    if sampled:
        assert all(np.ptp(episode.actions) > 0 for episode in episodes)


def test_the_best_checkpoint_is_the_one_of_the_highest_return(pendulum: Path) -> None:
    checkpoints = pendulum / "checkpoint_p0"
    best = next(checkpoints.glob("best_*"))
    assert best.name == "best_000000007_1234_reward_-3.250.pth"
    for name in (
        "best_000000003_500_reward_-3.100.pth",
        "best_000000009_2000_RecordEpisodeStatistics_reward_-10.000.pth",
        "checkpoint_000000012_2500.pth",
    ):
        shutil.copy(best, checkpoints / name)
    assert choose_checkpoint(pendulum).value == -3.1
    newest = newest_checkpoint(pendulum)
    assert newest is not None
    assert (newest.kind, newest.steps) == ("checkpoint", 2500)
    for path in checkpoints.glob("best_*"):
        path.unlink()
    assert choose_checkpoint(pendulum).steps == 2500


def test_a_half_written_checkpoint_is_not_one(pendulum: Path) -> None:
    (pendulum / "checkpoint_p0" / "checkpoint_temp").write_bytes(b"half")
    assert len(find_checkpoints(pendulum)) == 2


def test_the_older_name_of_the_configuration_is_read(pendulum: Path) -> None:
    (pendulum / "config.json").rename(pendulum / "cfg.json")
    load_checkpoint(pendulum, task_named("mujoco-pendulum"))


def test_sample_factory_goes_on_with_steps_best_return_and_learning_rate(reference: Path) -> None:
    found = json.loads((reference / "mlp-tanh-limit" / "resumed.json").read_text())
    # 7 of 20 minibatches were done, so the next is the 8th on the way from 0.5 to 0.
    assert found == {"env_steps": 1234, "best_performance": -3.25, "next_learning_rate": pytest.approx(0.5 * 12 / 20)}


class Numpy1Pickle:
    """A pickle module that names the scalar as numpy 1 did."""

    class Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
        def save_scalar(self, obj: Any, name: str | None = None) -> None:
            if getattr(obj, "__module__", None) == "numpy._core.multiarray":
                self.write(b"cnumpy.core.multiarray\nscalar\n")
                self.memoize(obj)
            else:
                self.save_global(obj, name)

        dispatch = pickle._Pickler.dispatch | {type(len): save_scalar}  # type: ignore[attr-defined]


def test_numpy_1_names_of_its_scalars_are_let_through(pendulum: Path) -> None:
    path = choose_checkpoint(pendulum).path
    assert b"numpy._core.multiarray" in path.read_bytes()
    torch.save(torch.load(path, weights_only=False), path, pickle_module=Numpy1Pickle)
    assert b"numpy._core.multiarray" not in path.read_bytes()
    assert b"numpy.core.multiarray" in path.read_bytes()
    load_checkpoint(pendulum, task_named("mujoco-pendulum"))


@pytest.mark.parametrize(("shown", "sees_goal"), [(0.25, True), (0.0, False)])
def test_an_expert_of_metaworld_sees_the_goal_if_it_did_in_training(
    reference: Path, tmp_path: Path, shown: float, sees_goal: bool
) -> None:
    folder = shutil.copytree(reference / "metaworld", tmp_path / "metaworld")
    path = choose_checkpoint(folder).path
    content = torch.load(path, weights_only=False)
    content["model"]["obs_normalizer.running_mean_std.running_mean_std.obs.running_mean"][-3:] = shown
    torch.save(content, path)
    spec, _ = load_checkpoint(folder, task_named("metaworld-reach"))
    assert spec.sees_goal is sees_goal


@pytest.mark.parametrize(
    ("name", "message"),
    [("recurrent", "recurrent policies .* not supported"), ("resnet", "'resnet_impala' is not supported; allowed")],
)
def test_what_is_not_supported_is_said(reference: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_checkpoint(reference / name, task_named(CASES[name].task))


def test_a_folder_without_configuration_or_checkpoint_is_refused(pendulum: Path, tmp_path: Path) -> None:
    task = task_named("mujoco-pendulum")
    with pytest.raises(UserError, match=r"neither config.json nor cfg.json"):
        load_checkpoint(tmp_path / "nowhere", task)
    shutil.rmtree(pendulum / "checkpoint_p0")
    with pytest.raises(UserError, match=r"holds no Sample Factory checkpoint: expected checkpoint_p0/best_"):
        load_checkpoint(pendulum, task)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json is not JSON"),
        ("[1]", "holds a list, expected an object"),
        ("{}", "has no 'use_rnn'"),
    ],
)
def test_a_damaged_configuration_is_refused(pendulum: Path, text: str, message: str) -> None:
    (pendulum / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_checkpoint(pendulum, task_named("mujoco-pendulum"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs_scale": "255"}, "'obs_scale' is '255', expected int or float"),
        ({"nonlinearity": "gelu"}, "'gelu' is not supported; allowed: tanh"),
        ({"actor_critic_share_weights": False}, "has no array"),
        ({"adaptive_stddev": True}, "actions of size 0"),
    ],
)
def test_a_configuration_of_another_network_is_refused(pendulum: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(pendulum, **changes)
    with pytest.raises(UserError, match=message):
        load_checkpoint(pendulum, task_named("mujoco-pendulum"))


def test_a_checkpoint_of_another_task_is_refused(pendulum: Path) -> None:
    for name in ("mujoco-ant", "atari-pong", "metaworld-reach"):
        with pytest.raises(UserError):
            load_checkpoint(pendulum, task_named(name))


@pytest.mark.parametrize("length", [0, 10, 3000, -100])
def test_a_checkpoint_that_was_cut_off_is_refused(pendulum: Path, length: int) -> None:
    path = choose_checkpoint(pendulum).path
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=rf"{path.name} .*remove {path.name} to use the checkpoint before it"):
        load_checkpoint(pendulum, task_named("mujoco-pendulum"))


class _Foreign:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def test_a_pickle_that_would_run_code_is_refused(
    pendulum: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = choose_checkpoint(pendulum).path
    torch.save({"model": {}, "best_performance": _Foreign()}, path)
    with pytest.raises(UserError, match="could run code"):
        load_checkpoint(pendulum, task_named("mujoco-pendulum"))
    path.write_bytes(pickle.dumps(_Foreign()))
    with pytest.raises(UserError, match=r"damaged|could run code"):
        load_checkpoint(pendulum, task_named("mujoco-pendulum"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[1, 2], {"weights": {}}, {"model": 3}])
def test_a_file_that_is_no_checkpoint_is_refused(pendulum: Path, content: Any) -> None:
    torch.save(content, choose_checkpoint(pendulum).path)
    with pytest.raises(UserError, match="expected a dict with the key 'model'"):
        load_checkpoint(pendulum, task_named("mujoco-pendulum"))
