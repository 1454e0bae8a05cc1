"""Shows the agent acting: in the terminal, step by step with its return, or as a video.

    jat agent play --task metaworld-assembly
    jat agent play --task babyai-go-to-local --out runs/demo
    jat agent play --task metaworld-reach --checkpoint owner/name --to reach.mp4

In a terminal each step is drawn with coloured half blocks; if the output is redirected to a file or a pipe, only the
lines with actions, rewards and returns are written.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from pipeline.cli import check_at_least_one, parse, run
from pipeline.envs.episode import Episode
from pipeline.envs.policy import Observations, Policy
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.media.film import draw, pace
from pipeline.seeds import FIRST_SEED
from trainer.pretrained.folders import BUILTIN, check_trained, checkpoint_folder

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

log = logging.getLogger(__name__)

# What is drawn in the terminal is at most so many characters wide, and stays for so many seconds.
COLUMNS, DELAY_S = 64, 0.1
UPPER_HALF_BLOCK = "\u2580"  # two pixels per character: foreground above background colour


@dataclass(frozen=True)
class PlayConfig:
    """Show the agent acting in a task."""

    task: str
    """Name of the task to play."""
    out: Path = Path("runs/default")
    """Root directory of all outputs of a run."""
    checkpoint: Path | None = None
    """Checkpoint folder, `builtin`, or a repository of the Hub such as jat-project/jat; default is the final checkpoint
    of `jat train`, or `builtin`, the agent that comes with this package, if nothing is trained in OUT."""
    seed: int = FIRST_SEED["evaluate"]
    """Seed of the first episode; the default is the first evaluation seed."""
    episodes: int = 1
    """Number of episodes, with consecutive seeds."""
    temperature: float = 1.0
    """Softmax temperature for sampling discrete actions; 0 takes the mode."""
    to: Path | None = None
    """Write an mp4 file at this path instead of drawing in the terminal."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "episodes")
        if self.temperature < 0 or self.seed < 0:
            raise UserError("--temperature and --seed must be at least 0")
        if self.to is not None and self.to.suffix != ".mp4":
            raise UserError(f"--to {self.to} must end in .mp4")


@dataclass
class Spoken:
    """Policy wrapper for one environment that reports each step once its reward is known.

    Args:
        policy: the wrapped policy.
        tell: called with step, action, reward and return so far.
    """

    policy: Policy
    tell: Callable[[int, Any, float, float], None]
    step: int = 0
    action: Any = None
    total: float = 0.0

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        self.step, self.total = 0, 0.0
        self.policy.reset(slots, seeds, envs)

    def act(self, slots: Sequence[int], observations: Observations) -> Iterable[Any]:
        if self.step:
            self.earned(float(observations.rewards[0]))
        actions = list(self.policy.act(slots, observations))
        self.step, self.action = self.step + 1, actions[0]
        return actions

    def earned(self, reward: float) -> None:
        """Report the last action with its reward."""
        self.total += reward
        self.tell(self.step, self.action, reward, self.total)


def play(config: PlayConfig, tasks: Sequence[Task] | None = None) -> list[Episode]:
    """Show episodes of the agent, and return them without their observations.

    Raises:
        UserError: no such task or checkpoint, it was not trained on the task, or the task cannot be drawn.
    """
    found = select_tasks(config.task, tasks)
    if len(found) > 1:
        raise UserError(f"--task {config.task} is {len(found)} tasks; name one, such as {found[0].name}")
    task = found[0]
    folder = checkpoint_folder(config.out, config.checkpoint, BUILTIN)
    check_trained(task.name, folder, tasks)
    # Imported here because they take seconds to import: errors above come first.
    from rich.console import Console

    from pipeline.envs.rollout import rollout
    from trainer.agent import Agent
    from trainer.pretrained.load import from_pretrained

    checkpoint = from_pretrained(folder)
    agent = Agent(checkpoint, [task], config.temperature)
    console = Console()
    with _screen(config, task, console) as (listener, show):
        policy = Spoken(agent, lambda *step: show(_line(*step)))
        episodes = []
        for seed in range(config.seed, config.seed + config.episodes):
            (episode,) = rollout(task, policy, [seed], 1, listener, keep_observations=False)
            if len(episode):
                policy.earned(float(episode.rewards[-1]))
            console.print(_summary(task, episode), soft_wrap=True)
            episodes.append(episode)
    return episodes


@contextmanager
def _screen(
    config: PlayConfig, task: Task, console: Console
) -> Iterator[tuple[Callable[[int, gym.Env[Any, Any]], None] | None, Callable[[str], None]]]:
    """Yield the outputs: a rollout listener, if frames are drawn, and a function that takes a step's line of text."""
    if config.to is not None:
        from pipeline.media.video import mp4_writer

        stride, frames_per_s = pace(task.domain)
        with mp4_writer(config.to, frames_per_s) as add_frame:
            calls = 0

            def film(seed: int, env: gym.Env[Any, Any]) -> None:
                nonlocal calls
                if calls % stride == 0:
                    add_frame(draw(task, env))
                calls += 1

            yield film, lambda line: None
        log.info("wrote %s", config.to)
    elif console.is_terminal and console.color_system is not None:
        from rich.console import Group
        from rich.live import Live

        with Live(console=console, auto_refresh=False) as live:
            picture: list[Text] = []

            def take_picture(seed: int, env: gym.Env[Any, Any]) -> None:
                picture[:] = [half_blocks(draw(task, env), min(COLUMNS, console.width))]

            def show(line: str) -> None:
                live.update(Group(*picture, line), refresh=True)
                time.sleep(DELAY_S)

            yield take_picture, show
    else:
        yield None, lambda line: console.print(line, soft_wrap=True, highlight=False)


def half_blocks(frame: np.ndarray, columns: int) -> Text:
    """Convert an image ``(H, W, 3)`` uint8 to coloured characters, two pixels in each."""
    from rich.text import Text

    height, width = frame.shape[:2]
    rows = max(2, round(height / width * columns) // 2 * 2)
    small = frame[np.arange(rows) * height // rows][:, np.arange(columns) * width // columns]
    text = Text(no_wrap=True)
    for upper, lower in zip(small[::2], small[1::2], strict=True):
        for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
            text.append(UPPER_HALF_BLOCK, f"rgb({','.join(map(str, above))}) on rgb({','.join(map(str, below))})")
        text.append("\n")
    return text


def _line(step: int, action: Any, reward: float, total: float) -> str:
    values = np.atleast_1d(np.asarray(action))
    shown = str(int(values[0])) if values.dtype.kind == "i" else " ".join(f"{value:+.2f}" for value in values[:8])
    more = " ..." if len(values) > 8 else ""
    return f"step {step:5d}  action {shown}{more}  reward {reward:8.3f}  return {total:10.3f}"


def _summary(task: Task, episode: Episode) -> str:
    if episode.rejected is not None:
        return f"{task.name}, seed {episode.seed}: does not count, {episode.rejected}"
    success = {None: "", True: ", success", False: ", no success"}[episode.success]
    return f"{task.name}, seed {episode.seed}: return {episode.total_reward:.3f} in {len(episode)} steps{success}"


def main() -> None:
    play(parse(PlayConfig))


if __name__ == "__main__":
    run("trainer.play")
