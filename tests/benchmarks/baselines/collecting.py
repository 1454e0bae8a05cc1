"""Baseline for collection: one environment, unbatched decisions, all episodes in memory until the end.

Episodes are written with ``Dataset.from_dict`` at the end. JAT's data was made this way, with Sample Factory's own
networks acting. Only ``tests/benchmarks/collect.py`` uses it, for comparison.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from experts.registry import make_policy
from experts.store import StoredExpert, write_expert
from pipeline.envs.policy import Observations
from pipeline.envs.task import IMAGE, TEXT, Task
from pipeline.storage.observations import observation_column
from pipeline.storage.schema import REWARDS, TEXTS, action_column, features

# Called with a new episode's seed and environment; returns a function from one observation to one action.
Begin = Callable[[int, gym.Env[Any, Any]], Callable[[dict[str, Any]], Any]]


def collect_plainly(task: Task, begin: Begin, seeds: Iterable[int], path: Path) -> int:
    """Play the episodes and write them to one Parquet file. Returns the number of steps."""
    from datasets import Dataset
    from PIL import Image

    columns: dict[str, list[list[Any]]] = {name: [] for name in features(task)}
    env = task.make_env(drawable=True)  # the reference environment
    num_steps = 0
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        act = begin(seed, env)
        for column in columns.values():
            column.append([])
        over = False
        while not over:
            action = act(observation)
            seen = observation[task.observation]
            shown = Image.fromarray(np.ascontiguousarray(seen), "RGBA") if task.observation == IMAGE else seen
            columns[observation_column(task)][-1].append(shown)
            if task.has_text:
                columns[TEXTS][-1].append(observation[TEXT])
            columns[action_column(task)][-1].append(action)
            observation, reward, terminated, truncated, _ = env.step(action)
            columns[REWARDS][-1].append(float(reward))
            over = terminated or truncated
            num_steps += 1
    env.close()
    Dataset.from_dict(columns, features(task)).to_parquet(path)
    return num_steps


def rule_actor(task: Task, expert: StoredExpert) -> Begin:
    """A scripted expert, called for one decision at a time."""
    policy = make_policy(task, expert)

    def begin(seed: int, env: gym.Env[Any, Any]) -> Callable[[dict[str, Any]], Any]:
        policy.reset([0], [seed], [env])

        def act(observation: dict[str, Any]) -> Any:
            values = observation[task.observation][None]
            texts = [observation[TEXT]] if task.has_text else None
            (action,) = policy.act([0], Observations(values, texts, np.zeros(1, np.float32)))
            return action if task.action.kind == "discrete" else np.clip(action, task.action.low, task.action.high)

        return act

    return begin


def sample_factory_actor(task: Task, folder: Path) -> tuple[Begin, StoredExpert]:
    """Sample Factory's own untrained network for a task, and the same weights as an expert in the store of ``folder``.

    Raises:
        ImportError: Sample Factory is not installed.
    """
    import torch

    from experts.sample_factory.adaptations import apply
    from experts.sample_factory.checkpoint import CHECKPOINTS, load_checkpoint
    from experts.sample_factory.recipes import recipe_of, settings_of

    apply()
    logging.getLogger("rl").setLevel(logging.WARNING)  # it logs every layer it creates
    from sample_factory.algo.utils.rl_utils import prepare_and_normalize_obs
    from sample_factory.cfg.arguments import parse_sf_args
    from sample_factory.model.actor_critic import create_actor_critic
    from sample_factory.model.model_utils import get_rnn_size
    from sample_factory.utils.attr_dict import AttrDict

    torch.manual_seed(0)
    _, defaults = parse_sf_args(["--env", task.name])
    settings = settings_of(recipe_of(task), task, folder, 0, 1, 1, gpu=False, niceness=0)
    cfg = AttrDict(vars(defaults) | settings)
    shape, action = task.observation_shape, task.action
    is_image = len(shape) == 3
    space = (
        gym.spaces.Box(0, 255, (shape[2], *shape[:2]), np.uint8)
        if is_image
        else gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
    )
    actions = (
        gym.spaces.Discrete(action.size)
        if action.kind == "discrete"
        else gym.spaces.Box(action.low, action.high, (action.size,))
    )
    model = create_actor_critic(cfg, gym.spaces.Dict(obs=space), actions)
    model.eval()

    checkpoints = folder / "sample-factory" / CHECKPOINTS
    checkpoints.mkdir(parents=True)
    torch.save({"model": model.state_dict()}, checkpoints / "checkpoint_000000001_1.pth")
    (checkpoints.parent / "config.json").write_text(json.dumps(dict(cfg)), encoding="utf-8")
    spec, arrays = load_checkpoint(checkpoints.parent, task, sampled=True)
    expert = write_expert(folder, task.name, "sample-factory", spec, arrays, "untrained")

    def begin(seed: int, env: gym.Env[Any, Any]) -> Callable[[dict[str, Any]], Any]:
        states = torch.zeros(1, get_rnn_size(cfg))

        def act(observation: dict[str, Any]) -> Any:
            nonlocal states
            values = observation[task.observation]
            values = np.ascontiguousarray(np.moveaxis(values, -1, 0)) if is_image else values
            with torch.no_grad():
                normalised = prepare_and_normalize_obs(model, {"obs": torch.from_numpy(values)[None]})
                outputs = model(normalised, states)
            states = outputs["new_rnn_states"]
            chosen = outputs["actions"].numpy().reshape(-1)
            return int(chosen[0]) if action.kind == "discrete" else np.clip(chosen, action.low, action.high)

        return act

    return begin, expert
