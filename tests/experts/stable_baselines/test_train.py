from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experts import algorithms
from experts.network import NetworkPolicy
from experts.stable_baselines import cloning
from experts.stable_baselines import train as training
from experts.stable_baselines.demonstrations import demonstrate
from experts.stable_baselines.envs import PoolVecEnv, ReferenceEnv, make_vec_env, pool_of
from experts.stable_baselines.recipes import (
    METAWORLD,
    MUJOCO,
    OFF_POLICY,
    STEERED,
    TUNED,
    StableBaselinesRecipe,
    own_algorithm,
    recipe_of,
)
from experts.stable_baselines.teachers import teacher_of
from experts.store import read_arrays, read_expert, stored_experts
from experts.training import Budget, TrainingStoppedError, TrainJob, read_curve, read_progress
from pipeline.envs.metaworld import DIFFERENT_IN_ENVPOOL
from pipeline.envs.registry import select_tasks
from pipeline.envs.rollout import rollout
from pipeline.envs.task import CONTINUOUS, Task
from pipeline.errors import UserError

pytestmark = pytest.mark.slow

SMALL = StableBaselinesRecipe(
    "ppo", Budget(6000, 600), num_envs=8, batch_size=64, rollout_steps=64, epochs=2, warmup_steps=200, gradient_steps=1
)


def task_named(name: str) -> Task:
    (task,) = select_tasks(name)
    return task


def small(algorithm: str, **changes: Any) -> StableBaselinesRecipe:
    return replace(SMALL, algorithm=algorithm, **changes)


@pytest.mark.usefixtures("nothing_embedded")
@pytest.mark.parametrize("algorithm", ["ppo", "trpo", "sac", "tqc", "crossq"])
def test_each_algorithm_trains_into_the_store(algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experts.training.TrainingMonitor.report", _always(training.TrainingMonitor.report))
    task = task_named("mujoco-reacher")
    recipe = small(algorithm, budget=Budget(1200, 600), hidden=(32, 32))
    expert = training.train(TrainJob(task, algorithm, tmp_path), recipe)
    assert expert.record.kind == algorithm and expert.record.training["steps"] >= 1200
    assert [e.record.revision for e in stored_experts(tmp_path, task.name)] == [expert.record.revision]
    assert not (tmp_path / "training" / task.name / algorithm).exists()
    stored = read_expert(expert.folder)
    assert stored.record.network is not None and stored.record.network.hidden == (32, 32)
    assert stored.record.training["recipe"]["batch_size"] == 64 and not stored.record.network.sees_goal
    policy = NetworkPolicy(task, stored.record.network, read_arrays(stored), "test")
    (episode,) = rollout(task, policy, [7])
    assert len(episode) == 50 and episode.rejected is None


def _always(report: Any) -> Any:
    """Reports as if the last one were long ago, so that a second of training has a curve."""

    def wrapped(self: Any, steps: int, mean_return: float | None, **options: Any) -> bool:
        return bool(report(self, steps, mean_return, **{**options, "force": True}))

    return wrapped


def test_a_target_ends_the_training_and_the_policy_is_better_than_random(tmp_path: Path) -> None:
    task = task_named("mujoco-pendulum")
    recipe = replace(SMALL, budget=Budget(200_000, 600, target=60), epochs=8, rollout_steps=128)
    expert = training.train(TrainJob(task, "ppo", tmp_path), recipe)
    assert expert.record.training["steps"] < 150_000
    stored = read_expert(expert.folder)
    assert stored.record.network is not None
    policy = NetworkPolicy(task, stored.record.network, read_arrays(stored), "test")
    returns = [episode.total_reward for episode in rollout(task, policy, range(10))]
    assert np.mean(returns) > 40  # a random policy gets 6


CHILD = """
import sys
from pathlib import Path
from experts.stable_baselines import train as training
from tests.experts.stable_baselines.test_train import ENDLESS, slow
training.CHECKPOINT_SECONDS = 0.0
training.train(slow(Path(sys.argv[1])), ENDLESS)
"""
ENDLESS = replace(SMALL, budget=Budget(1_000_000_000, 1e9))


def slow(out: Path) -> TrainJob:
    return TrainJob(task_named("mujoco-pendulum"), "ppo", out)


def test_killed_training_goes_on_from_its_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = slow(tmp_path)
    child = subprocess.Popen([sys.executable, "-W", "ignore", "-c", CHILD, str(tmp_path)], start_new_session=True)
    deadline = time.monotonic() + 120
    while not (found := sorted(job.folder.glob("checkpoint-*"))) or int(found[-1].name.split("-")[1]) < 2000:
        assert child.poll() is None and time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)  # its process group is empty: nothing of it lives on
    reached = max(int(path.name.split("-")[1]) for path in job.folder.glob("checkpoint-*"))
    # What a kill left half-written is not taken for a checkpoint.
    (job.folder / ".checkpoint-999999999999.1.tmp").mkdir()
    recipe = replace(ENDLESS, budget=Budget(reached + 3000, 600))
    with pytest.raises(UserError, match="another recipe"):
        training.train(job, recipe)
    with caplog.at_level("INFO"):
        expert = training.train(replace(job, steps=reached + 3000), ENDLESS)
    assert f"resuming from {reached:,} steps" in caplog.text
    assert reached + 3000 <= expert.record.training["steps"] < reached + 3000 + 2 * 8 * 64
    assert not job.folder.exists()


@pytest.mark.usefixtures("nothing_embedded")
def test_a_damaged_checkpoint_is_an_error_and_not_a_new_start(tmp_path: Path) -> None:
    job = replace(slow(tmp_path), steps=1000)
    training.make_state(job, SMALL).save(job, SMALL)
    (folder,) = job.folder.glob("checkpoint-*")
    data = (folder / "model.zip").read_bytes()
    (folder / "model.zip").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"cannot be resumed.*remove"):
        training.train(job, SMALL)
    assert stored_experts(tmp_path, job.task.name) == []


def test_the_best_policy_outlives_a_kill(tmp_path: Path) -> None:
    job = slow(tmp_path)
    state = training.make_state(job, SMALL)
    state.note(12.5)
    assert state.best is not None
    for parameter in state.model.policy.parameters():
        parameter.data.add_(1)
    state.note(12.0)  # worse: not kept
    state.save(job, SMALL)
    resumed = training.make_state(job, SMALL)
    resumed.resume(job, SMALL)
    assert resumed.best is not None
    assert (resumed.best.spec, resumed.best.score) == (state.best.spec, 12.5)
    assert all(torch.equal(resumed.best.arrays[name], array) for name, array in state.best.arrays.items())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pendulum's own recipe is over within a second."""
    monkeypatch.setitem(TUNED, "mujoco-pendulum", replace(SMALL, budget=Budget(1500, 600)))
    monkeypatch.setattr("experts.training.TrainingMonitor.report", _always(training.TrainingMonitor.report))


@pytest.mark.usefixtures("nothing_embedded", "quick")
def test_a_training_of_the_queue_keeps_its_state_and_goes_on_with_a_larger_budget(tmp_path: Path) -> None:
    job = replace(slow(tmp_path), is_queued=True)
    first = algorithms.train(job)
    assert first.record.training["steps"] == 1536 and first.record.training["core_seconds"] > 0
    (folder,) = job.folder.glob("checkpoint-*")
    assert int(folder.name.split("-")[1]) == 1536
    again = algorithms.train(job)  # its budget is used up
    assert again.record.revision == first.record.revision
    more = algorithms.train(replace(job, steps=3000))
    assert more.record.training["steps"] == 3072
    assert more.record.training["core_seconds"] > first.record.training["core_seconds"]


@pytest.mark.usefixtures("nothing_embedded", "quick")
def test_a_training_that_is_stopped_has_a_checkpoint_and_its_best_policy_can_be_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(slow(tmp_path), is_queued=True, steps=1_000_000)
    with pytest.raises(UserError, match=r"holds no checkpoint to export; wait"):
        algorithms.export(job)
    stop = threading.Event()
    monkeypatch.setattr("experts.training.STOP", stop)
    threading.Timer(2.5, stop.set).start()
    with pytest.raises(TrainingStoppedError, match="training mujoco-pendulum with ppo was stopped at"):
        algorithms.train(job)
    (folder,) = job.folder.glob("checkpoint-*")
    steps = read_progress(job.folder).steps
    assert 1500 < steps <= int(folder.name.split("-")[1]) <= steps + 512
    assert stored_experts(tmp_path, job.task.name) == []
    before = {path: path.stat().st_mtime_ns for path in job.folder.rglob("*")}
    expert = algorithms.export(job)
    assert expert.record.training["steps"] == int(folder.name.split("-")[1])
    assert {path: path.stat().st_mtime_ns for path in job.folder.rglob("*")} == before
    best = torch.load(folder / "best.pth", weights_only=True)
    assert all(torch.equal(array, best[name]) for name, array in read_arrays(read_expert(expert.folder)).items())


@pytest.mark.usefixtures("quick")
def test_a_checkpoint_of_another_recipe_or_task_is_refused_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = slow(tmp_path)
    algorithms.check_can_resume(job)
    recipe = recipe_of(job.task, "ppo")
    training.make_state(job, recipe).save(job, recipe)
    algorithms.check_can_resume(job)
    other = replace(job, task=task_named("mujoco-hopper"))
    shutil.copytree(job.folder, other.folder)
    with pytest.raises(UserError, match=r"is of mujoco-pendulum, not of mujoco-hopper; remove .*hopper/ppo"):
        algorithms.check_can_resume(other)
    monkeypatch.setitem(TUNED, "mujoco-pendulum", replace(recipe, hidden=(32,)))
    with pytest.raises(UserError, match=r"another recipe of ppo; remove"):
        algorithms.check_can_resume(job)


def test_a_checkpoint_is_removed_only_when_the_next_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = slow(tmp_path)
    state = training.make_state(job, SMALL)
    state.save(job, SMALL)
    (first,) = job.folder.glob("checkpoint-*")

    def cut_off(path: Path) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("experts.stable_baselines.checkpoint.sync_folder", cut_off)
        with pytest.raises(OSError, match="no space"):
            state.save(job, SMALL)  # at the same number of steps
    assert list(job.folder.glob("checkpoint-*")) == [first]
    state.save(job, SMALL)
    (second,) = job.folder.glob("checkpoint-*")
    assert second.name == f"{first.name}-1"
    assert training.make_state(job, SMALL).resume(job, SMALL) == 0


def test_an_episode_succeeds_at_any_step_and_lends_nothing_to_the_next(tmp_path: Path) -> None:
    job = TrainJob(task_named("metaworld-reach"), "ppo", tmp_path)
    recipe = small("ppo", num_envs=2)
    progress = training._Progress(job, recipe, training.TrainingMonitor(job, recipe.budget), None)  # type: ignore[arg-type]
    script = [  # success of each environment, and whether its episode ends
        ((True, False), (False, False)),
        ((False, False), (True, False)),
        ((False, False), (True, True)),
        ((False, True), (False, True)),
    ]
    for successes, dones in script:
        progress._note_episodes(np.array(dones), [{"success": success} for success in successes])
    assert list(progress._successes) == [True, False, False, True]


def test_what_is_kept_of_an_off_policy_actor_is_its_average(tmp_path: Path) -> None:
    job = TrainJob(task_named("mujoco-reacher"), "sac", tmp_path)
    state = training.make_state(job, small("sac", hidden=(16, 16)))
    model: Any = state.model
    before, first = model.actor.mu.bias.clone(), state.export()[1]["head.bias"]
    model.actor.mu.bias.data.add_(1)
    assert torch.equal(state.export()[1]["head.bias"], first)
    assert state.averaged is not None
    for _ in range(100):
        state.averaged.update()
    expected = 1 - (1 - state.averaged.SHARE) ** 100
    torch.testing.assert_close(state.export()[1]["head.bias"][:2] - first[:2], torch.full((2,), expected))
    assert torch.equal(model.actor.mu.bias, before + 1)  # training goes on from its own


@pytest.mark.parametrize("algorithm", ["sac", "tqc", "crossq"])
def test_a_critic_that_is_frozen_for_the_actor_learns_the_same(algorithm: str, tmp_path: Path) -> None:
    job = TrainJob(task_named("mujoco-reacher"), algorithm, tmp_path)
    weights = []
    for frozen in (False, True):
        model: Any = training.make_state(job, small(algorithm, hidden=(16, 16))).model
        before = [weight.detach().clone() for weight in model.critic.parameters()]
        if frozen:
            training._freeze_for_the_actor(model.critic)
        model.learn(800)
        weights.append([weight.detach() for weight in model.policy.parameters()])
        assert not any(torch.equal(*pair) for pair in zip(before, model.critic.parameters(), strict=True))
    for one, other in zip(*weights, strict=True):
        assert torch.equal(one, other)


def test_values_are_not_rounded_to_bfloat16() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 64), training.NormReLU(), torch.nn.Linear(64, 1))
    network[-1].bias.data.fill_(700.0)
    exact = network(x := torch.randn(256, 4))
    training._in_bfloat16(network, network[:-1], network[-1])
    with torch.no_grad():
        found = network(x)
    assert found.dtype == torch.float32
    assert 0 < (found - exact).abs().max() < 0.1  # bfloat16 has nothing between 700 and 704


def test_off_policy_training_resumes_with_its_own_transitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The first batch after resuming is drawn from at least the warm-up's transitions.
    sizes: list[int] = []
    sample = training.MixedReplayBuffer.sample

    def note(self: Any, batch_size: int, env: Any = None) -> Any:
        sizes.append(self.size() * self.n_envs)
        return sample(self, batch_size, env)

    monkeypatch.setattr(training.MixedReplayBuffer, "sample", note)
    task = task_named("mujoco-reacher")
    recipe = small("sac", hidden=(16, 16))
    job = TrainJob(task, "sac", tmp_path, steps=3000)
    state = training.make_state(job, recipe)
    model: Any = state.model
    model.num_timesteps = 600
    model.log_ent_coef.data.fill_(-3.0)
    state.save(job, recipe)
    again = training.make_state(job, recipe)
    resumed: Any = again.model
    assert again.resume(job, recipe) == resumed.num_timesteps == 600
    assert resumed.log_ent_coef.item() == -3.0
    assert torch.equal(resumed.actor.mu.weight, model.actor.mu.weight)
    assert state.averaged is not None and again.averaged is not None
    for one, other in zip(state.averaged.average, again.averaged.average, strict=True):
        assert torch.equal(one, other)
    expert = training.train(job, recipe)
    assert expert.record.training["steps"] >= 3000
    assert 2000 <= sizes[0] <= 2000 + 2 * recipe.num_envs


# --- environments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mujoco-halfcheetah", "mujoco-walker", "mujoco-swimmer", "mujoco-humanoid"])
def test_envpool_steps_as_gymnasium_does(name: str) -> None:
    task = task_named(name)
    pool = PoolVecEnv(task, 1, seed=3)
    env = task.make_env()
    env.reset(seed=0)
    simulator: Any = env.unwrapped
    hidden = {"mujoco-humanoid": 2, "mujoco-swimmer": 2}.get(name, 1)
    start = pool.reset()[0].astype(np.float64)
    num_positions, num_velocities = simulator.model.nq, simulator.model.nv
    positions = np.concatenate([np.zeros(hidden), start[: num_positions - hidden]])
    simulator.set_state(positions, start[num_positions - hidden : num_positions - hidden + num_velocities])
    generator = np.random.default_rng(0)
    for _ in range(3):
        action = generator.uniform(task.action.low, task.action.high, task.action.size).astype(np.float32)
        observations, rewards, _, _ = pool.step(action[None])
        observation, reward, *_ = env.step(action)
        np.testing.assert_allclose(observations[0], observation[CONTINUOUS], rtol=1e-3, atol=1e-3)
        assert rewards[0] == pytest.approx(reward, abs=1e-3)


def test_an_episode_that_ends_shows_its_last_observation_and_begins_anew() -> None:
    pool = PoolVecEnv(task_named("mujoco-reacher"), 2, seed=0)
    pool.reset()
    for _ in range(49):
        _, _, dones, _ = pool.step(np.zeros((2, 2)))
        assert not dones.any()
    observations, _, dones, infos = pool.step(np.zeros((2, 2)))
    assert dones.all()
    for index, info in enumerate(infos):
        assert info["TimeLimit.truncated"] is True
        assert not np.array_equal(info["terminal_observation"], observations[index])


def test_meta_world_shows_its_goal_in_training() -> None:
    task = task_named("metaworld-reach")
    goals = PoolVecEnv(task, 4, seed=0).reset()[:, -3:]
    assert np.abs(goals).max(axis=1).min() > 0.01
    assert len(np.unique(goals, axis=0)) == 4
    env = ReferenceEnv(task)
    observation, _ = env.reset(seed=1)
    unwrapped: Any = env.unwrapped
    np.testing.assert_allclose(observation[-3:], unwrapped._target_pos, rtol=1e-6)


def test_tasks_that_differ_in_envpool_are_trained_in_the_reference() -> None:
    for name in DIFFERENT_IN_ENVPOOL:
        env = make_vec_env(task_named(name), 1, seed=0)
        assert not isinstance(env, PoolVecEnv)
        assert env.reset().shape == (1, 39)
        env.close()


def test_atari_has_no_recipe_here() -> None:
    assert pool_of(task_named("atari-pong")) is None
    with pytest.raises(ValueError, match="EnvPool does not have atari-pong"):
        PoolVecEnv(task_named("atari-pong"), 1, seed=0)
    with pytest.raises(UserError, match="no Stable-Baselines3 recipe"):
        recipe_of(task_named("atari-pong"), "ppo")


# --- recipes and demonstrations -------------------------------------------------------------------------------------


def test_every_task_has_its_recipe() -> None:
    assert list(MUJOCO) == [task.name for task in select_tasks("mujoco")]
    for name, recipe in MUJOCO.items():
        assert recipe_of(task_named(name), recipe.algorithm) == recipe
        for other in training.CLASSES:
            found = recipe_of(task_named(name), other)
            assert found.algorithm == other and (found.num_envs > 32 or other not in OFF_POLICY)
    metaworld = {name: own_algorithm(task_named(f"metaworld-{name}")) for name in ("soccer", "door-close")}
    assert metaworld == {"soccer": "sac", "door-close": "ppo"}
    assert set(STEERED) < {task.name.removeprefix("metaworld-") for task in select_tasks("metaworld")}
    # JAT's expert gets 375.2 in soccer, random 5.7; in disassemble it is no better than random.
    assert recipe_of(task_named("metaworld-soccer"), "sac").budget.target == pytest.approx(430.6, abs=0.1)
    disassemble = recipe_of(task_named("metaworld-disassemble"), "ppo")
    assert disassemble == METAWORLD and disassemble.budget.target is None


def test_batches_hold_the_share_of_demonstrations(tmp_path: Path) -> None:
    task = task_named("metaworld-reach")
    recipe = small("sac", hidden=(16, 16), num_envs=4)
    job = TrainJob(task, "sac", tmp_path)
    env = training._make_env(job, recipe)
    model: Any = training._make_model(job, recipe, env)
    demonstrate(model, teacher_of("scripted", task, tmp_path), 200, 0.25, (0.0, 0.1, 0.3), seed=0)
    buffer = model.replay_buffer
    shown = buffer.demonstrations
    # Two episodes of each environment; the noiseless script reaches its goal, where a step earns nearly 10.
    assert shown.pos == 0 and shown.full and shown.dones.sum() == 8
    assert shown.rewards[60:100, 0].mean() > 8
    assert np.abs(shown.actions).max() <= 1
    for _ in range(30):  # own transitions are told by an impossible reward
        buffer.add(np.zeros((4, 39)), np.zeros((4, 39)), np.zeros((4, 4)), np.full(4, -100.0), np.zeros(4), [{}] * 4)
    batch = buffer.sample(64, env)
    assert int((batch.rewards < -50).sum()) == 48 and batch.observations.shape == (64, 39)
    assert batch.discounts is not None and batch.discounts.shape == (64, 1)


def test_curves_survive_and_points_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    job = slow(tmp_path)
    first = training.TrainingMonitor(job, Budget(100, 100))
    for steps in (10, 20, 30):
        assert not first.report(steps, float(steps), force=True)
    first.close()
    second = training.TrainingMonitor(job, Budget(100, 100, target=50), start_steps=20)
    assert [point.steps for point in second.curve] == [10, 20]
    assert not second.report(30, 49.0)
    assert second.report(40, 50.0)  # the target
    assert second.report(100, 0.0)  # the budget
    second.close()
    assert [point.steps for point in read_curve(job.folder / "curve.csv")] == [10, 20, 40, 100]


def test_an_expert_of_another_algorithm_demonstrates(tmp_path: Path) -> None:
    """The embedded PPO of the pusher gets -27; its actions, within 2 newton metres, are halved for the buffer."""
    task = task_named("mujoco-pusher")
    recipe = small("sac", hidden=(16, 16), num_envs=4, budget=Budget(400, 600), teacher="ppo", demonstration_steps=400)
    job = TrainJob(task, "sac", tmp_path)
    model: Any = training._make_model(job, recipe, training._make_env(job, recipe))
    teacher = teacher_of("ppo", task, tmp_path)
    demonstrate(model, teacher, 100, 0.25, (0.0,), seed=0)
    shown = model.replay_buffer.demonstrations
    assert shown.dones.sum() == 4
    assert -40 < shown.rewards.sum(axis=0).mean() < -15
    expected = teacher.act(shown.observations[3]) / 2
    np.testing.assert_allclose(shown.actions[3], expected.clip(-1, 1), atol=1e-6)
    expert = training.train(job, recipe)
    assert expert.record.training["teacher"] == teacher.revision
    assert expert.record.origin.endswith(f"shown episodes of {teacher.revision}")


def test_an_on_policy_expert_begins_as_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded PPO of the pendulum gets 1000; its clone stands, too, before it has learned by itself."""
    task = task_named("mujoco-pendulum")
    monkeypatch.setattr(cloning, "ROUNDS", 4)
    recipe = small("ppo", budget=Budget(512, 600), teacher="ppo", critic_steps=10_000, exploration=(0.1, 0.01))
    job = TrainJob(task, "ppo", tmp_path)
    expert = training.train(job, recipe)
    teacher = teacher_of("ppo", task, tmp_path)
    assert expert.record.training["teacher"] == teacher.revision
    assert expert.record.origin.endswith(f"from a clone of {teacher.revision}")
    assert expert.record.network is not None
    policy = NetworkPolicy(task, expert.record.network, read_arrays(expert), "test")
    assert all(episode.total_reward > 900 for episode in rollout(task, policy, range(5)))


def test_a_cloned_actor_waits_for_its_critic_and_explores_by_schedule(tmp_path: Path) -> None:
    recipe = small("ppo", critic_steps=1000, exploration=(0.2, 0.05))
    job = TrainJob(task_named("mujoco-pendulum"), "ppo", tmp_path)
    model: Any = training.make_state(job, recipe).model
    half_range = model.action_space.high[0]
    actor = [weight.detach().clone() for weight in cloning._actor_parameters(model.policy)]

    def actor_is_as_it_was() -> bool:
        now = cloning._actor_parameters(model.policy)
        return all(torch.equal(*pair) for pair in zip(actor, now, strict=True))

    value = model.policy.value_net.weight.detach().clone()
    model.learn(1000, cloning.Exploration(recipe, 2048))  # two rollouts of 512 steps: from 0 and from 512
    assert actor_is_as_it_was() and not torch.equal(model.policy.value_net.weight, value)
    assert model.policy.log_std.exp().item() == pytest.approx(0.2 * 0.25**0.25 * half_range)
    model.learn(1000, cloning.Exploration(recipe, 2048), reset_num_timesteps=False)
    assert not actor_is_as_it_was()
    assert model.policy.log_std.exp().item() == pytest.approx(0.2 * 0.25**0.75 * half_range)


@pytest.mark.usefixtures("nothing_embedded")
def test_a_teacher_that_is_not_there_is_an_error_before_the_training(tmp_path: Path) -> None:
    job = TrainJob(task_named("mujoco-pusher"), "sac", tmp_path)
    with pytest.raises(UserError, match=r"learns from a ppo expert.*--expert ppo"):
        training.train(job, small("sac", teacher="ppo"))
    assert not job.folder.exists()
