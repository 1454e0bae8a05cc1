"""An animated picture for the README: the built-in agent in a task of each domain, side by side.

python -m tests.trainer.strip docs/acting.gif
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image

from pipeline.envs.registry import select_tasks
from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task
from pipeline.media.film import draw, pace
from pipeline.seeds import FIRST_SEED
from trainer.agent import Agent
from trainer.pretrained.load import from_pretrained

TASKS = "atari-pong,babyai-go-to-seq,metaworld-door-open,mujoco-ant"
SIDE, FRAMES, FRAMES_PER_S, COLOURS = 200, 90, 15, 96


class EnoughError(Exception):
    """There are as many frames as are shown."""


def film(task: Task, agent: Agent) -> list[Image.Image]:
    """Frames of the agent in one episode after another."""
    frames: list[Image.Image] = []
    stride, frames_per_s = pace(task.domain)
    every = max(1, round(stride * frames_per_s / FRAMES_PER_S))
    calls = itertools.count()

    def add_frame(seed: int, env: gym.Env[Any, Any]) -> None:
        if next(calls) % every == 0:
            frames.append(Image.fromarray(draw(task, env)).convert("RGB").resize((SIDE, SIDE), Image.LANCZOS))
        if len(frames) == FRAMES:
            raise EnoughError

    with contextlib.suppress(EnoughError):
        for seed in itertools.count(FIRST_SEED["evaluate"]):
            list(rollout(task, agent, [seed], 1, add_frame, keep_observations=False))
    return frames


def main() -> None:
    checkpoint = from_pretrained("builtin")
    films = [film(task, Agent(checkpoint, [task])) for task in select_tasks(TASKS)]
    pictures = [Image.fromarray(np.concatenate([np.asarray(frames[t]) for frames in films], 1)) for t in range(FRAMES)]
    palette = Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures[::15]])).quantize(COLOURS)
    small = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    small[0].save(Path(sys.argv[1]), save_all=True, append_images=small[1:], duration=1000 // FRAMES_PER_S, loop=0)


if __name__ == "__main__":
    main()
