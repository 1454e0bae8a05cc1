"""Small datasets in the formats of others: JAT's, as its card and files have them, and Minari's."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pictures

FLOATS = List(List(Value("float32")))  # of variable length, as in JAT's files
FEATURES = {
    "mujoco": Features(
        {"continuous_observations": FLOATS, "continuous_actions": FLOATS, "rewards": List(Value("float32"))}
    ),
    "babyai": Features(
        {
            "text_observations": List(Value("string")),
            "discrete_observations": List(List(Value("int64"))),
            "discrete_actions": List(Value("int64")),
            "rewards": List(Value("float32")),
        }
    ),
    "atari": Features(
        {
            "image_observations": List(Image()),
            "discrete_actions": List(Value("int64")),
            "rewards": List(Value("float32")),
        }
    ),
}
FEATURES["metaworld"] = FEATURES["mujoco"]

Row = dict[str, Any]


def continuous_row(number: int, num_steps: int, size: int, action_size: int, action: float = 0.5) -> Row:
    """An episode whose values tell its number and step."""
    return {
        "continuous_observations": [[number + t / 8] * size for t in range(num_steps)],
        "continuous_actions": [[action] * action_size for _ in range(num_steps)],
        "rewards": [number + t / 4 for t in range(num_steps)],
    }


def grid_row(number: int, num_steps: int, last_reward: float = 0.5) -> Row:
    return {
        "text_observations": ["go to the red ball"] * num_steps,
        "discrete_observations": [[t % 4, *[number % 11] * 147] for t in range(num_steps)],
        "discrete_actions": [(number + t) % 7 for t in range(num_steps)],
        "rewards": [*[0.0] * (num_steps - 1), last_reward] if num_steps else [],
    }


def frames(number: int, num_steps: int) -> np.ndarray:
    """``(T + 3, 84, 84)`` uint8; step t shows frames t to t + 3."""
    found = np.arange((num_steps + 3) * 84 * 84).reshape(-1, 84, 84)
    return (found * (number + 1) // 7 % 251).astype(np.uint8)


def stacks(number: int, num_steps: int) -> np.ndarray:
    """``(T, 84, 84, 4)``."""
    return np.stack([np.moveaxis(frames(number, num_steps)[t : t + 4], 0, -1) for t in range(num_steps)])


def image_row(number: int, num_steps: int) -> Row:
    return {
        "image_observations": [{"bytes": png(stack), "path": None} for stack in stacks(number, num_steps)],
        "discrete_actions": [(number + t) % 6 for t in range(num_steps)],
        "rewards": [float(t % 2) for t in range(num_steps)],
    }


def claiming(width: int, height: int, colour: int = 6) -> bytes:
    """A PNG of a few bytes whose header says that it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def png(stack: np.ndarray) -> bytes:
    """As JAT wrote it: four frames as the channels of one RGBA image."""
    buffer = io.BytesIO()
    Pictures.fromarray(stack, "RGBA").save(buffer, "PNG")
    return buffer.getvalue()


def write_jat(
    folder: Path,
    rows: Mapping[str, Mapping[str, Sequence[Row]]],
    num_files: int = 2,
    group_rows: int | None = None,
    edit: Callable[[str, Dataset], Dataset] = lambda task, dataset: dataset,
) -> Path:
    """A folder like JAT's repository: files by task, and a card that places them.

    Args:
        folder: where.
        rows: by task and split.
        num_files: per split.
        group_rows: rows per row group.
        edit: changes the table of a task.
    """
    configs = []
    for task, splits in rows.items():
        entries = []
        for split, episodes in splits.items():
            columns = FEATURES[task.split("-")[0]]
            dataset = edit(task, Dataset.from_list(list(episodes), columns))
            (folder / task).mkdir(parents=True, exist_ok=True)
            count = min(num_files, len(dataset))
            for index in range(count):
                part = dataset.shard(count, index, contiguous=True)
                part.to_parquet(folder / task / f"{split}-{index:05d}-of-{count:05d}.parquet", batch_size=group_rows)
            entries.append(f"  - split: {split}\n    path: {task}/{split}-*\n")
        configs.append(f"- config_name: {task}\n  data_files:\n{''.join(entries)}")
    (folder / "README.md").write_text(f"---\nlicense: apache-2.0\nconfigs:\n{''.join(configs)}---\n# JAT\n")
    return folder


def write_minari(
    env: gym.Env[Any, Any], name: str, lengths: Sequence[int], with_env: bool = True, observation_space: Any = None
) -> Path:
    """A dataset that Minari itself writes, of random actions in a real environment; its folder.

    Minari's collector is not used because it needs jax; its writer is, which makes the same files.

    Args:
        env: where.
        name: such as ``mujoco/hopper/test-v0``.
        lengths: steps of each episode, at most; it may end by itself before.
        with_env: whether the dataset names the environment.
        observation_space: to say instead of the environment's own.
    """
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.storage.datasets_root_dir import get_dataset_path

    buffers = []
    for number, length in enumerate(lengths):
        env.action_space.seed(number)
        observations, actions, rewards, ends = [env.reset(seed=number)[0]], [], [], []
        while len(actions) < length and not (ends and any(ends[-1])):
            actions.append(env.action_space.sample())
            observation, reward, *end, _ = env.step(actions[-1])
            observations.append(observation)
            rewards.append(float(reward))
            ends.append(end)
        terminations, truncations = map(list, zip(*ends, strict=True))
        buffers.append(
            EpisodeBuffer(
                id=number,
                seed=number,
                observations=_columns(observations),
                actions=actions,
                rewards=rewards,
                terminations=terminations,
                truncations=truncations,
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends descriptions and the like
        minari.create_dataset_from_buffers(
            name,
            buffers,
            env=env if with_env else None,
            algorithm_name="random",
            observation_space=observation_space or env.observation_space,
            action_space=env.action_space,
        )
    folder: Path = get_dataset_path(name)
    return folder


def _columns(observations: list[Any]) -> Any:
    """Dictionaries one after another as a dictionary of lists."""
    if not isinstance(observations[0], dict):
        return observations
    return {key: [observation[key] for observation in observations] for key in observations[0]}
