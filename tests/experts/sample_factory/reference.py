"""Checkpoints written by Sample Factory's own classes, with what its own network answers to random observations.

    python -m tests.experts.sample_factory.reference OUT

One folder per case below OUT: a Sample Factory folder, and ``expected.pt`` with ``observations`` and ``outputs``. One
of them also has ``resumed.json``. ``training`` is ``convnet_atari`` again, as it computes in our trainings.
A process of its own, so that neither Sample Factory nor its adaptations reach the tests.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NUM_OBSERVATIONS = 16


@dataclass(frozen=True)
class Case:
    """A network of Sample Factory for one of our tasks, and the settings that make it."""

    task: str
    settings: dict[str, Any] = field(default_factory=dict)


MLP = {"encoder_mlp_layers": [64, 64], "nonlinearity": "tanh"}
CNN = {"obs_scale": 255.0, "nonlinearity": "relu"}
CASES = {
    "mlp": Case("mujoco-ant", MLP | {"adaptive_stddev": False}),
    "mlp-adaptive": Case("mujoco-ant", MLP | {"adaptive_stddev": True, "continuous_tanh_scale": 2.0}),
    "mlp-tanh-limit": Case("mujoco-pendulum", MLP | {"adaptive_stddev": False, "continuous_tanh_scale": 0.5}),
    "mlp-unnormalised-elu-decoder": Case(
        "mujoco-pendulum",
        {
            "encoder_mlp_layers": [32],
            "decoder_mlp_layers": [16],
            "nonlinearity": "elu",
            "adaptive_stddev": False,
            "normalize_input": False,
            "obs_subtract_mean": 0.5,
            "obs_scale": 2.0,
        },
    ),
    "mlp-discrete": Case("fake-discrete", MLP),
    "mlp-separate-critic": Case("mujoco-ant", MLP | {"adaptive_stddev": False, "actor_critic_share_weights": False}),
    "metaworld": Case("metaworld-reach", MLP | {"adaptive_stddev": False}),
    "convnet_atari": Case("atari-pong", CNN | {"encoder_conv_architecture": "convnet_atari"}),
    "convnet_atari-unnormalised": Case(
        "atari-pong", CNN | {"encoder_conv_architecture": "convnet_atari", "normalize_input": False}
    ),
    "convnet_simple": Case("atari-pong", CNN | {"encoder_conv_architecture": "convnet_simple"}),
    "convnet_impala": Case(
        "atari-pong",
        CNN | {"encoder_conv_architecture": "convnet_impala", "encoder_conv_mlp_layers": [64], "nonlinearity": "elu"},
    ),
    "recurrent": Case("mujoco-pendulum", MLP | {"use_rnn": True, "rnn_size": 8}),
    "resnet": Case("atari-pong", CNN | {"encoder_conv_architecture": "resnet_impala"}),
}


def write_case(case: Case, folder: Path) -> None:
    """Random weights and statistics, saved as Sample Factory's learner saves them."""
    import gymnasium as gym
    import numpy as np
    import torch
    from sample_factory.algo.learning.learner import Learner
    from sample_factory.algo.utils.rl_utils import prepare_and_normalize_obs
    from sample_factory.cfg.arguments import parse_sf_args
    from sample_factory.model.actor_critic import create_actor_critic
    from sample_factory.model.model_utils import get_rnn_size
    from sample_factory.utils.attr_dict import AttrDict

    from tests.experts.sample_factory.tasks import task_named

    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    task = task_named(case.task)
    _, defaults = parse_sf_args(["--env", case.task])
    cfg = AttrDict(
        vars(defaults) | {"use_rnn": False, "train_dir": str(folder.parent), "experiment": folder.name} | case.settings
    )
    shape = task.observation_shape
    if len(shape) == 3:
        space = gym.spaces.Box(0, 255, (shape[2], *shape[:2]), np.uint8)
        observations = torch.from_numpy(generator.integers(0, 256, (NUM_OBSERVATIONS, *space.shape), np.uint8))
    else:
        space = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
        observations = torch.from_numpy(generator.normal(0, 3, (NUM_OBSERVATIONS, *shape)).astype(np.float32))
    size = task.action.size
    actions = gym.spaces.Discrete(size) if task.action.kind == "discrete" else gym.spaces.Box(-1, 1, (size,))
    model = create_actor_critic(cfg, gym.spaces.Dict(obs=space), actions)
    with torch.no_grad():
        for name, array in model.state_dict().items():
            if name.endswith("running_var"):
                array.copy_(torch.rand_like(array) * 2 + 0.1)
            elif array.dtype.is_floating_point:
                array.add_(torch.randn_like(array) * (0.02 if array.dim() > 1 else 0.1))
    model.eval()

    learner = Learner(cfg, None, None, 0, None)
    learner.actor_critic, learner.optimizer = model, torch.optim.Adam(model.parameters())
    learner.train_step, learner.env_steps, learner.is_initialized = 7, 1234, True
    learner.save_best(0, "reward", np.float64(-3.25))  # a numpy scalar goes into both files, as in a training
    learner.save()
    (folder / "config.json").write_text(json.dumps(dict(cfg)), encoding="utf-8")

    with torch.no_grad():
        normalised = prepare_and_normalize_obs(model, {"obs": observations})
        outputs = model(normalised, torch.zeros(NUM_OBSERVATIONS, get_rnn_size(cfg)))["action_logits"]
    torch.save({"observations": observations, "outputs": outputs}, folder / "expected.pt")


def write_resumed(folder: Path) -> None:
    """What a learner of Sample Factory knows when it has begun in a folder with a checkpoint."""
    import gymnasium as gym
    import torch
    from sample_factory.algo.learning.learner import Learner
    from sample_factory.algo.utils.model_sharing import ParameterServer
    from sample_factory.utils.attr_dict import AttrDict

    cfg = AttrDict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    cfg |= {"lr_schedule": "linear_decay", "train_for_env_steps": 10_240, "batch_size": 1024, "num_epochs": 2}
    cfg |= {"learning_rate": 0.5, "serial_mode": True, "device": "cpu"}
    spaces = AttrDict(
        obs_space=gym.spaces.Dict(obs=gym.spaces.Box(-1, 1, (4,))), action_space=gym.spaces.Box(-1, 1, (1,))
    )
    versions = torch.zeros(1)
    learner = Learner(AttrDict(cfg), spaces, versions, 0, ParameterServer(0, versions, True))
    learner.init()
    known = {
        "env_steps": learner.env_steps,
        "best_performance": float(learner.best_performance),
        "next_learning_rate": learner.lr_scheduler.update(None, None),
    }
    (folder / "resumed.json").write_text(json.dumps(known), encoding="utf-8")


def main() -> None:
    from experts.sample_factory.adaptations import apply, speed_up

    apply()
    for name, case in CASES.items():
        write_case(case, Path(sys.argv[1]) / name)
    write_resumed(Path(sys.argv[1]) / "mlp-tanh-limit")
    speed_up()
    write_case(CASES["convnet_atari"], Path(sys.argv[1]) / "training")


if __name__ == "__main__":
    main()
